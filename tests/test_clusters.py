"""The engines people have, each started here: the same bytes as one process, and recovery when a worker dies."""

import re
import subprocess

import pytest
from helpers import child_command, files, make_loader, train

from dattri.model_util.retrain import retrain_lds

START = {
    "dask": """
from dask.distributed import Client, LocalCluster
cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
client = Client(cluster)
client.run(torch.set_num_threads, 1)
""",
    "ray": """
import ray
from ray.util.joblib import register_ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False,
         runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}})
register_ray()
""",
    "loky": "",
}
RUN = """
import joblib
if __name__ == "__main__":
    with joblib.parallel_config(backend=sys.argv[2], n_jobs=2):
        retrain_lds(train, make_loader(), path, num_subsets=6, num_runs_per_subset=2, seed=7)
"""


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("engine", START)
def test_engine_gives_the_bytes_of_one_process(engine, tmp_path):
    command = child_command(START[engine] + RUN, tmp_path / "cluster", engine)
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    retrain_lds(train, make_loader(), tmp_path / "one", num_subsets=6, num_runs_per_subset=2, seed=7)
    assert files(tmp_path / "cluster") == files(tmp_path / "one")


@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_data_is_sent_once_and_not_with_every_task(engine, tmp_path):
    """2 MB of data and 24 tasks: what is pickled stays below twice the data, or one reference per task."""
    code = """
import joblib, numpy as np
from dattri.model_util.parallel import Shared, run_tasks
sent, pack = [], Shared.__getstate__
def counted(self):
    state = pack(self)
    sent.append(getattr(state["pickled"], "nbytes", 0))
    return state
Shared.__getstate__ = counted
class Job:
    def __init__(self): self.data = np.zeros(250_000)
    def __call__(self, task): return len(self.data)
if __name__ == "__main__":
    with joblib.parallel_config(backend=sys.argv[2], n_jobs=2):
        assert list(run_tasks(Job(), range(24))) == [250_000] * 24
    print("sent", sum(sent))
"""
    command = child_command(START[engine] + code, tmp_path / "unused", engine)
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    [sent] = re.findall(r"^sent (\d+)$", result.stdout, re.MULTILINE)  # Ray writes about its workers there too
    assert int(sent) < 2 * 2_000_000 + 100_000


def test_a_killed_worker_costs_only_what_it_was_doing(tmp_path):
    code = """
marker = sys.argv[2]
def deadly(dataloader, seed):
    if len(os.listdir(path)) > 4 and not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return train(dataloader)
try:
    retrain_lds(deadly, make_loader(), path, num_subsets=40, seed=7, n_jobs=2)
except RuntimeError as error:
    print(type(error).__name__, error)
done = sum(name.endswith(".pt") for _, _, names in os.walk(path) for name in names)
retrain_lds(deadly, make_loader(), path, num_subsets=40, seed=7, n_jobs=2)
print("kept", done)
"""
    command = child_command(code, tmp_path / "run", tmp_path / "marker")
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "RetrainError a worker process died" in result.stdout and "model_weights_0.pt" in result.stdout
    kept = int(result.stdout.rsplit("kept ")[-1])
    assert 2 <= kept < 40
    assert sum(name.endswith(".pt") for name in files(tmp_path / "run")) == 40
