"""The engines people have, each started here: the same bytes as one process, and recovery when a worker dies."""

import re
from functools import cache

import pytest
from helpers import CHILD_HEADER, SUBSETS, files, loss_of_file, make_loader, train

from dattri import calculate_targets, retrain_lds, retrain_subsets

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
os.environ.update(PYTHONPATH=os.pathsep.join(sys.path), OMP_NUM_THREADS="1")  # for the workers
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
register_ray()
""",
    "loky": "",
}
RUN = """
import joblib, numpy as np
from dattri import calculate_targets
from dattri.model_util.parallel import Shared, run_tasks
class Job:
    def __init__(self): self.data = np.zeros(250_000)
    def __call__(self, task): return len(self.data)
def counted(self):
    state = pack(self)
    sent.append(getattr(state["pickled"], "nbytes", 0))
    return state
with joblib.parallel_config(backend=sys.argv[2], n_jobs=2):
    retrain_lds(train, make_loader(), path + "/lds", num_subsets=6, num_runs_per_subset=2, seed=7)
    retrain_subsets(train, make_loader(), path + "/subsets", SUBSETS, seed=7)
    calculate_targets(loss_of_file, path + "/subsets", make_loader(shuffle=False), cache="loss")
    sent, pack = [], Shared.__getstate__
    Shared.__getstate__ = counted
    assert list(run_tasks(Job(), range(24))) == [250_000] * 24
print("sent", sum(sent))
"""
ENGINES = [pytest.param("dask", marks=pytest.mark.dask), pytest.param("ray", marks=pytest.mark.ray)]


@pytest.fixture(scope="module")
def run_on(fork_server, tmp_path_factory):
    """Start an engine, once for all tests; gives the folder of a run on it and what was printed."""

    @cache
    def run(engine):
        folder = tmp_path_factory.mktemp(engine)
        return folder, fork_server.run(CHILD_HEADER + START[engine] + RUN, folder, engine, timeout=300)

    return run


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("engine", [*ENGINES, "loky"])
def test_engine_gives_the_bytes_of_one_process(engine, run_on, tmp_path):
    folder, _ = run_on(engine)
    retrain_lds(train, make_loader(), tmp_path / "lds", num_subsets=6, num_runs_per_subset=2, seed=7)
    retrain_subsets(train, make_loader(), tmp_path / "subsets", SUBSETS, seed=7)
    calculate_targets(loss_of_file, tmp_path / "subsets", make_loader(shuffle=False), cache="loss")
    assert files(folder) == files(tmp_path)


@pytest.mark.parametrize("engine", ENGINES)
def test_data_is_sent_once_and_not_with_every_task(engine, run_on):
    """2 MB of data and 24 tasks: what is pickled stays below twice the data, or one reference per task."""
    [sent] = re.findall(r"^sent (\d+)$", run_on(engine)[1], re.MULTILINE)  # Ray writes about its workers there too
    assert int(sent) < 2 * 2_000_000 + 100_000


def test_a_killed_worker_costs_only_what_it_was_doing(run_child, tmp_path):
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
    output = run_child(code, tmp_path / "run", tmp_path / "marker", timeout=300)
    assert "RetrainError a worker process died" in output and "model_weights_0.pt" in output
    kept = int(output.rsplit("kept ")[-1])
    assert 2 <= kept < 40
    assert sum(name.endswith(".pt") for name in files(tmp_path / "run")) == 40
