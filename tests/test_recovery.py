"""Kills, full disks, damaged files, shards and rivals: afterwards the same call gives the undisturbed bytes."""

import signal
import threading
import time

import joblib
import pytest
import torch
from helpers import CHILD_HEADER, SUBSETS, files, make_loader, train

from dattri.metric import calculate_lds_ground_truth
from dattri.model_util import checkpoint
from dattri.model_util.retrain import retrain_lds, retrain_loo, retrain_subsets

pytestmark = pytest.mark.usefixtures("one_thread")
RUNS = {
    "lds": "retrain_lds(train, make_loader(), path, num_subsets=6, num_runs_per_subset=2, seed=7, width=WIDTH)",
    "loo": "retrain_loo(train, make_loader(), path, seed=7, width=WIDTH)",
    "subsets": "retrain_subsets(train, make_loader(), path, SUBSETS, 2, seed=7, width=WIDTH)",
}
CALLS = {
    "lds": lambda path: retrain_lds(train, make_loader(), path, num_subsets=6, num_runs_per_subset=2, seed=7, width=8),
    "loo": lambda path: retrain_loo(train, make_loader(), path, seed=7, width=8),
    "subsets": lambda path: retrain_subsets(train, make_loader(), path, SUBSETS, 2, seed=7, width=8),
}


@pytest.mark.parametrize("mode", RUNS)
def test_killed_at_random_moments(mode, run_child, tmp_path):
    """Five kills or more, after between 1% and 15% of the time that the undisturbed run takes."""
    code = f"""
import random
WIDTH = 50_000  # large enough that writing takes a good part of the time
def attempt():
    child = os.fork()
    if child == 0:
        sys.stderr = open(os.devnull, "w")
        {RUNS[mode]}
        os._exit(0)
    return child

path = sys.argv[2]
start = time.perf_counter(); os.waitpid(attempt(), 0); whole = time.perf_counter() - start
path = sys.argv[1]
random.seed(0)
kills = unfinished = 0
for number in range(60):
    child = attempt()
    time.sleep(random.uniform(0.01, 0.15) * whole)
    os.kill(child, signal.SIGKILL)
    kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    unfinished += any(name.endswith(".part") for _, _, names in os.walk(path) for name in names)
    if number > 12 and not kills % 5: break
_, status = os.waitpid(attempt(), 0)
print(kills, unfinished, status)
"""
    kills, _, status = map(int, run_child(code, tmp_path / "killed", tmp_path / "quiet").split())
    assert kills >= 3 and status == 0
    assert files(tmp_path / "killed") == files(tmp_path / "quiet")


@pytest.mark.parametrize("mode", RUNS)
def test_killed_in_every_single_write(mode, run_child, tmp_path):
    """Each child dies between writing its n-th file and giving it its name."""
    code = f"""
WIDTH = 8
deaths = 0
for fatal in range(100):
    child = os.fork()
    if child == 0:
        sys.stderr = open(os.devnull, "w")
        calls = 0
        def fsync(descriptor, real=os.fsync):
            global calls
            calls += 1
            if calls == 1 + fatal % 3: os.kill(os.getpid(), signal.SIGKILL)
            real(descriptor)
        os.fsync = fsync
        {RUNS[mode]}
        os._exit(0)
    _, status = os.waitpid(child, 0)
    deaths += os.WIFSIGNALED(status)
    leftovers = sum(name.endswith(".part") for _, _, names in os.walk(path) for name in names)
    assert leftovers == os.WIFSIGNALED(status), leftovers
    if status == 0: break
print(deaths, status)
"""
    deaths, status = map(int, run_child(code, tmp_path / "killed").split())
    CALLS[mode](tmp_path / "quiet")
    assert deaths > 10 and status == 0
    assert files(tmp_path / "killed") == files(tmp_path / "quiet")


@pytest.mark.parametrize("mode", RUNS)
def test_leftovers_are_swept_and_the_bytes_are_equal(mode, tmp_path):
    CALLS[mode](tmp_path / "quiet")
    CALLS[mode](tmp_path / "other")
    folder = next(file for file in (tmp_path / "other").rglob("model_weights*.pt")).parent
    for place in (folder, tmp_path / "other"):
        (place / f".model_weights_0.pt.{'0' * 32}.part").write_bytes(b"PK\x03\x04 half of a file")
    CALLS[mode](tmp_path / "other")
    assert files(tmp_path / "other") == files(tmp_path / "quiet")


@pytest.mark.parametrize("mode", RUNS)
@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_truncated_checkpoint_is_trained_again(mode, keep, tmp_path):
    CALLS[mode](tmp_path / "run")
    before = files(tmp_path / "run")
    victim = sorted((tmp_path / "run").rglob("model_weights*.pt"))[2]
    victim.write_bytes(victim.read_bytes()[: int(keep * victim.stat().st_size)])
    with pytest.warns(UserWarning, match=f"{victim.parent.name}/{victim.name} is truncated"):
        CALLS[mode](tmp_path / "run")
    assert files(tmp_path / "run") == before


def test_unreadable_checkpoint_is_named_with_the_remedy(tmp_path):
    CALLS["lds"](tmp_path / "run")
    before = files(tmp_path / "run")
    victim = tmp_path / "run" / "3" / "model_weights_1.pt"
    content = bytearray(victim.read_bytes())
    content[content.index(torch.load(victim)["0.weight"].numpy().tobytes())] ^= 1  # one bit of one weight
    victim.write_bytes(content)
    with pytest.raises(ValueError, match=r"3/model_weights_1.pt is damaged.*Delete this file"):
        calculate_lds_ground_truth(lambda *_: torch.zeros(12), tmp_path / "run", make_loader())
    victim.unlink()
    CALLS["lds"](tmp_path / "run")
    assert files(tmp_path / "run") == before


@pytest.mark.parametrize(
    "size,order", [(5, (0, 5)), (5, (5, 0)), (2, (4, 8, 0, 6, 2)), (1, (9, 3, 0, 1, 2, 8, 7, 6, 5, 4))]
)
def test_shards_in_any_order(size, order, tmp_path):
    retrain_lds(train, make_loader(), tmp_path / "one", num_subsets=10, num_runs_per_subset=2, seed=3)
    for start_id in order:
        retrain_lds(
            train, make_loader(), tmp_path / "many", num_subsets=size, total_num_subsets=10, start_id=start_id,
            num_runs_per_subset=2, seed=3,
        )
    assert files(tmp_path / "many") == files(tmp_path / "one")


def test_shards_at_once_in_several_processes(start_child, tmp_path):
    code = """
start = int(sys.argv[2])
retrain_lds(train, make_loader(), path, num_subsets=4, total_num_subsets=8, start_id=start, seed=3, width=5000)
"""
    for process in [start_child(code, tmp_path / "many", start) for start in (4, 0, 4)]:  # one shard has a rival
        with process:
            assert process.wait() == 0, process.stderr
    retrain_lds(train, make_loader(), tmp_path / "one", num_subsets=8, seed=3, width=5000)
    assert files(tmp_path / "many") == files(tmp_path / "one")


def test_shards_without_a_seed_agree_on_one(tmp_path):
    for start_id in (2, 0):
        retrain_lds(train, make_loader(), tmp_path, num_subsets=2, total_num_subsets=4, start_id=start_id)
    before = files(tmp_path)
    assert sum(name.endswith(".pt") for name in before) == 4
    retrain_lds(train, make_loader(), tmp_path, num_subsets=4)
    assert files(tmp_path) == before


@pytest.fixture(scope="module")
def runs_of_two_workers(fork_server, tmp_path_factory):
    """A folder with a run of each kind by two workers, which are started once for both."""
    folder = tmp_path_factory.mktemp("two")
    runs = [f"path = sys.argv[1] + '/{mode}'\n{RUNS[mode].replace('seed=7', 'seed=7, n_jobs=2')}\n" for mode in RUNS]
    fork_server.run(CHILD_HEADER + "WIDTH = 8\n" + "".join(runs), folder)
    return folder


@pytest.mark.parametrize("mode", RUNS)
def test_equal_bytes_for_any_number_of_workers(mode, run_child, runs_of_two_workers, tmp_path):
    """The parent and its workers use one thread each."""
    run_child(f"WIDTH = 8\n{RUNS[mode].replace('seed=7', 'seed=7, n_jobs=1')}", tmp_path)
    assert files(tmp_path) == files(runs_of_two_workers / mode)


def test_a_writer_waits_for_the_process_that_sweeps_its_new_file(monkeypatch, tmp_path):
    """Another process opened the new file and locked it before the writer could, and now removes it."""
    fcntl = pytest.importorskip("fcntl")
    lock, swept = fcntl.flock, []

    def remove(part, other):
        part.unlink()
        other.close()

    def contended(file, how):
        if not swept:
            swept.append(next(tmp_path.iterdir()))
            other = swept[0].open("rb")
            lock(other, fcntl.LOCK_EX)
            threading.Timer(0.3, remove, (swept[0], other)).start()
        return lock(file, how)

    monkeypatch.setattr(fcntl, "flock", contended)
    with checkpoint.whole_file(tmp_path / "model.pt") as file:
        threading.Event().wait(0.6)
        file.write(b"whole")
    assert files(tmp_path) == {"model.pt": b"whole"} and swept


@pytest.mark.parametrize("mode", RUNS)
def test_full_disk(mode, run_child, tmp_path):
    """A file-size limit stands for a full disk: the write fails after a part of the file is written."""
    code = f"""
import resource
WIDTH = 8
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
import dattri.model_util.retrain as module
real, calls = module.atomic_write, 0
def shrinking(file, data, **options):
    global calls
    calls += 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(data) // 2 if calls == 4 else limit[0], limit[1]))
    real(file, data, **options)
module.atomic_write = shrinking
try:
    {RUNS[mode]}
except OSError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    print(type(error).__name__, error)
"""
    message = run_child(code, tmp_path / "run")
    assert "model_weights" in message and "cannot write" in message and "not affected" in message
    assert not any(name.endswith(".part") for name in files(tmp_path / "run"))
    partial = files(tmp_path / "run")
    CALLS[mode](tmp_path / "run")
    CALLS[mode](tmp_path / "quiet")
    assert files(tmp_path / "run") == files(tmp_path / "quiet")
    assert partial.items() < files(tmp_path / "quiet").items()


def test_read_only_directory(run_child, tmp_path):
    """As a user without the right to write (root may always write, so the child becomes nobody first)."""
    code = f"""
WIDTH = 8
if os.getuid() == 0: os.seteuid(65534)
try:
    {RUNS["lds"]}
except OSError as error:
    print(type(error).__name__, error)
"""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.name.startswith(("test_", "pytest-", "popen-")):
            folder.chmod(0o755)
    (tmp_path / "run").mkdir(mode=0o555)
    message = run_child(code, tmp_path / "run")
    assert "PermissionError" in message and "metadata.yml" in message
    assert files(tmp_path / "run") == {}
    (tmp_path / "run").chmod(0o755)
    CALLS["lds"](tmp_path / "run")
    CALLS["lds"](tmp_path / "quiet")
    assert files(tmp_path / "run") == files(tmp_path / "quiet")


def test_interrupted_by_the_keyboard(start_child, tmp_path):
    """Ctrl-C stops at once and keeps what is finished."""
    code = """
def slow(dataloader):
    time.sleep(0.05)
    return train(dataloader)
print("ready", flush=True)
retrain_lds(slow, make_loader(), path, num_subsets=200, seed=7)
"""
    with start_child(code, tmp_path / "run") as process:
        process.read_line(0)
        while not (tmp_path / "run" / "2" / "model_weights_0.pt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0 and "KeyboardInterrupt" in process.stderr
    kept = [name for name in files(tmp_path / "run") if name.endswith(".pt")]
    assert 3 <= len(kept) < 200 and not any(name.endswith(".part") for name in files(tmp_path / "run"))


def test_resuming_says_so(tmp_path, capfd):
    retrain_lds(train, make_loader(), tmp_path, num_subsets=2, total_num_subsets=6, seed=7)
    retrain_lds(train, make_loader(), tmp_path, num_subsets=6, seed=7)
    assert "resuming: 2 of 6 models found" in capfd.readouterr().err


def test_a_moved_directory_is_resumed_and_read(tmp_path):
    CALLS["lds"](tmp_path / "here")
    before = files(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "moved")
    (tmp_path / "moved" / "5" / "model_weights_0.pt").unlink()
    CALLS["lds"](tmp_path / "moved")
    assert files(tmp_path / "moved") == before
    values, indices = calculate_lds_ground_truth(lambda *_: torch.zeros(12), tmp_path / "moved", make_loader())
    assert values.shape == (6, 12) and indices.shape == (6, 6)


def test_a_relative_path_means_the_caller_s_folder(tmp_path, monkeypatch):
    """Workers outlive a call, with the working directory they were started in."""
    for name, count in (("first", 2), ("second", 4)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        retrain_lds(train, make_loader(), "run", num_subsets=count, seed=0, n_jobs=2)
        values, _ = calculate_lds_ground_truth(lambda *_: torch.zeros(12), "run", make_loader(), n_jobs=2)
        assert values.shape == (count, 12)
        assert sum(file.endswith(".pt") for file in files(tmp_path / name / "run")) == count


def test_threads_train_the_models_of_one_process(tmp_path):
    """Random generators belong to the whole process, so threads take turns."""
    with joblib.parallel_config(backend="threading", n_jobs=3):
        CALLS["loo"](tmp_path / "threads")
    CALLS["loo"](tmp_path / "quiet")
    assert files(tmp_path / "threads") == files(tmp_path / "quiet")
