"""Loading a benchmark from a hub: faults of the network, kills, rivals, other commits and changed files."""

import io
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from benchmark_helpers import (
    CHILD,
    FULL,
    HALF,
    INDICES,
    MANIFEST,
    REPO,
    SMALL,
    VALUES,
    WHOLE,
    bytes_in_place,
    check_whole,
    in_place,
    load,
    with_manifest,
)

from dattri.benchmark.hub import commit_of, fetch_file
from dattri.benchmark.settings import register_setting
from dattri.model_util.checkpoint import to_bytes

pytestmark = pytest.mark.usefixtures("one_thread", "registry")


BEFORE = [(FULL, []), (HALF, WHOLE[1:3]), (INDICES, WHOLE[1:]), (VALUES, WHOLE[1:])]
FAULTS = [("404", 1), ("500", 50), ("cut", 50), ("wrong", 1)]
RETRIES = pytest.mark.skipif(
    not hasattr(huggingface_hub, "close_session"), reason="before version 1, the client does not resume a cut download"
)


@pytest.mark.parametrize("name, before", BEFORE)
@pytest.mark.parametrize("fault, times", FAULTS)
def test_the_network_fails(on_hub, hub, tmp_path, name, before, fault, times):
    hub.faults[name] = [fault] * times
    error = FileNotFoundError if fault == "404" else OSError
    remedy = {"404": "Check repo_id", "wrong": "do not match the hub.s hash.*call again"}.get(fault, "call again")
    with pytest.raises(error, match=f"(?s){name} .*{hub.address}/datasets/{REPO}/resolve/.*{name}.*{remedy}"):
        load(tmp_path)
    assert in_place(tmp_path) == before
    hub.faults.clear()
    check_whole(tmp_path)


@pytest.mark.parametrize("fault, times", FAULTS[1:])
def test_the_network_fails_at_the_manifest(on_hub, hub, tmp_path, fault, times):
    """A repository may be without one, but not because it did not arrive."""
    hub.faults[MANIFEST] = [fault] * times
    with pytest.raises(OSError, match=f"(?s){MANIFEST} .*{hub.address}/.*{MANIFEST}.*call again"):
        load(tmp_path)
    assert in_place(tmp_path) == []
    hub.faults.clear()
    check_whole(tmp_path)


@pytest.mark.parametrize("name", [FULL, VALUES, MANIFEST])
@pytest.mark.parametrize(
    "faults",
    [["500"], pytest.param(["cut"], marks=RETRIES), pytest.param(["cut", "cut", "cut"], marks=RETRIES)],
)
def test_the_client_tries_again(on_hub, hub, tmp_path, name, faults):
    hub.faults[name] = list(faults)
    check_whole(tmp_path)
    assert hub.faults[name] == []


def test_a_part_that_is_missing(on_hub, hub, tmp_path):
    loo = {name: None for name in on_hub if "/loo/" in name}
    hub.change(("dataset", REPO), loo)
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match=rf"points_lr/loo/indices_loo\.pt .*{hub.address}.*redownload=True"):
            load(tmp_path, "loo")
        check_whole(tmp_path)
    hub.change(("dataset", REPO), {name: on_hub[name] for name in loo})
    assert load(tmp_path, "loo", redownload=True)[1].indices.tolist() == list(range(12))


@pytest.mark.parametrize("part", ["models_full/1/model_weights_0.pt", "models_half/4/model_weights_0.pt", INDICES[10:]])
@pytest.mark.parametrize("change", ["other", "removed", "added"])
def test_a_file_that_changed_on_disk(on_hub, hub, tmp_path, part, change):
    check_whole(tmp_path)
    whole = bytes_in_place(tmp_path)
    file = tmp_path / "load" / "benchmark" / "points_lr" / part
    if change == "other":
        file.write_bytes(bytes([*file.read_bytes()[:-1], 1]))
    elif change == "removed":
        file.unlink()
    else:
        file = file.with_name("extra.pt")
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{file} .*redownload=True"):
        load(tmp_path)
    check_whole(tmp_path, redownload=True)
    assert bytes_in_place(tmp_path) == whole


def test_a_process_is_killed_while_it_downloads(on_hub, hub, start_child, tmp_path):
    hub.faults.update({HALF: ["stall"], VALUES: ["stall"]})
    attempt = "number = start(load, path); print(number, flush=True); assert end(number) == -signal.SIGKILL"
    with start_child(CHILD + f"for _ in range(2): {attempt}", tmp_path) as process:
        for number, before in enumerate((WHOLE[1:3], WHOLE[1:])):
            assert hub.stalled.wait(60)
            hub.stalled.clear()
            os.kill(int(process.read_line(number)), signal.SIGKILL)
            left = in_place(tmp_path)
            assert left[1:] == before and re.fullmatch(r"\.(lds|models_half)\.\w+\.part", left[0])
        assert process.wait() == 0
    check_whole(tmp_path)


@pytest.mark.parametrize("fatal", [1, 2])
def test_a_replacement_that_stops_half_way(on_hub, tmp_path, monkeypatch, fatal):
    check_whole(tmp_path)
    rename, calls = Path.rename, []

    def interrupted(path, new):
        calls.append(path)
        if len(calls) == fatal:
            raise KeyboardInterrupt
        return rename(path, new)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", interrupted)
        load(tmp_path, redownload=True)
    assert in_place(tmp_path) == WHOLE
    check_whole(tmp_path)


def test_two_processes_at_once(on_hub, hub, run_child, tmp_path):
    both = "[start(check_whole, path) for _ in range(2)]"
    assert run_child(CHILD + f"print([end(number) for number in {both}])", tmp_path, timeout=120).strip() == "[0, 0]"
    stored = [path for method, path, _ in hub.requests if method == "GET" and path.startswith("/cdn/")]
    assert len(stored) == len(set(stored)) == 5, "each file was fetched once"
    check_whole(tmp_path)


def test_offline(on_hub, hub, tmp_path, offline):
    offline()
    with pytest.raises(OSError, match=f"(?s){FULL} .*{hub.address}.*could not be fetched.*HF_HUB_OFFLINE"):
        load(tmp_path)
    assert in_place(tmp_path) == [] and not hub.requests
    offline(False)
    check_whole(tmp_path)
    hub.requests.clear()
    offline()
    check_whole(tmp_path)
    with pytest.raises(OSError, match=r"points_lr/loo/indices_loo\.pt"):
        load(tmp_path, "loo")
    assert in_place(tmp_path) == WHOLE and not hub.requests


def other_values(published):
    """Files of another build, whose targets differ."""
    changed = {VALUES: torch.rand(4, 5), VALUES.replace("lds", "loo"): torch.rand(12, 5)}
    swapped = {FULL: published[HALF], HALF: published[FULL]}
    return with_manifest(published | {name: to_bytes(tensor) for name, tensor in changed.items()} | swapped)


@pytest.mark.parametrize("revision", [None, "main"])
def test_all_files_come_from_the_commit_of_the_first(on_hub, hub, tmp_path, revision):
    register_setting(replace(SMALL, revision=revision), replace=True)
    check_whole(tmp_path)
    other = other_values(on_hub)
    new = hub.change(("dataset", REPO), other)
    values = VALUES.replace("lds", "loo")
    assert torch.equal(load(tmp_path, "loo")[1].values, torch.load(io.BytesIO(on_hub[values])))
    attributes, truth = load(tmp_path, "loo", redownload=True)
    assert torch.equal(truth.values, torch.load(io.BytesIO(other[values]))) and len(attributes["models_full"]) == 5
    assert commit_of(fetch_file(REPO, values)) == new
    assert torch.equal(load(tmp_path)[1].values, torch.load(io.BytesIO(other[VALUES]))), "lds was of the old commit"


def test_a_replacement_that_fails_leaves_what_was_there(on_hub, hub, tmp_path):
    check_whole(tmp_path)
    hub.change(("dataset", REPO), other_values(on_hub))
    hub.faults[HALF] = ["500"] * 50
    before = bytes_in_place(tmp_path)
    with pytest.raises(OSError, match=HALF):
        load(tmp_path, redownload=True)
    assert bytes_in_place(tmp_path) == before
    check_whole(tmp_path)
    hub.faults.clear()
    attributes, _ = load(tmp_path, redownload=True)
    assert [len(attributes[f"models_{kind}"]) for kind in ("full", "half")] == [5, 3]


def test_data_that_are_fewer_than_the_setting_says(on_hub, hub, tmp_path):
    register_setting(replace(SMALL, train_size=13), replace=True)
    with pytest.raises(ValueError, match="train_size: points_lr uses 13 samples, but its data set has 12"):
        load(tmp_path)
    assert not hub.requests
