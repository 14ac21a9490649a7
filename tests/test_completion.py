"""What the Tab key offers: the answers of the `dattri` command to the shells, in the shells' own protocol."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dattri.benchmark.groups import GROUPS
from dattri.benchmark.metrics import METRICS
from dattri.cli import GROUP_NAMES, METRIC_NAMES

COMPLETE = "from dattri.cli import app; app(prog_name='dattri')"


@pytest.fixture
def completed(fork_server, tmp_path, monkeypatch):
    """What bash is told to offer for the last word of a line, which may be empty."""

    def ask(line):
        monkeypatch.setenv("_DATTRI_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        return fork_server.run(COMPLETE, cwd=tmp_path).split()

    return ask


@pytest.mark.parametrize("command", ["leaderboard", "evaluate", "load", "retrain", "build", "publish-scores"])
def test_models_and_data_sets_are_offered(completed, command):
    assert {"lr", "mlp", "nanogpt"} <= set(completed(f"dattri {command} --model "))
    assert {"digits", "mnist", "shakespeare"} <= set(completed(f"dattri {command} --dataset "))


def test_each_name_is_offered_once_and_begins_as_typed(completed):
    offered = completed("dattri leaderboard --model ml")
    assert offered == ["mlp"]


def test_what_is_typed_already_counts(completed):
    assert completed("dattri leaderboard --dataset digits --model ") == ["lr", "mlp"]
    assert completed("dattri leaderboard --model nanogpt --dataset ") == ["shakespeare"]
    assert completed("dattri leaderboard --dataset nowhere --model ") == []


@pytest.mark.parametrize("command", ["leaderboard", "evaluate", "load", "build"])
def test_metrics_are_offered(completed, command):
    assert completed(f"dattri {command} --metric ") == [*METRICS]
    assert completed(f"dattri {command} --metric l") == ["lds", "loo"]


def test_groups_and_baselines_are_offered(completed):
    assert completed("dattri retrain --mode ") == [*GROUPS]
    assert completed("dattri leaderboard --baselines ") == ["some", "all", "none"]


def test_names_that_the_command_lists_are_those_of_the_library():
    assert (tuple(METRICS), tuple(GROUPS)) == (METRIC_NAMES, GROUP_NAMES)


def test_own_settings_are_offered_whatever_their_module_prints(completed, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\nfrom dattri import find_setting, register_setting\nprint('loading')\n"
        "register_setting(replace(find_setting('lr', 'digits'), model='mine'))\n"
    )
    assert completed("dattri --import mine leaderboard --model mi") == ["mine"]


def test_a_module_that_fails_does_not_disturb_completion(completed, tmp_path):
    (tmp_path / "broken.py").write_text("raise ValueError('broken')")
    assert "lr" in completed("dattri --import broken leaderboard --model ")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_with_the_script_that_the_command_writes(tmp_path):
    """The whole way: the script is loaded, and its function is called as bash does when Tab is pressed."""
    script = """
    PATH="$1:$PATH"; source <(_DATTRI_COMPLETE=source_bash dattri)
    COMP_WORDS=(dattri leaderboard --metric m); COMP_CWORD=3
    $(complete -p dattri | sed 's/.*-F \\([^ ]*\\).*/\\1/') dattri
    echo "${COMPREPLY[@]}"
    """
    run = subprocess.run(
        ["bash", "-c", script, "bash", Path(sys.executable).parent],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.stdout.split() == ["mislabel"], run.stderr
