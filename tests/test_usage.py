"""Wrong calls of the `dattri` command: one line, with the command whose help says more."""

import re

import pytest
import typer
from typer.testing import CliRunner

from dattri.cli import app

SMALL = ("--model", "lr", "--dataset", "digits")
WRONG = {
    "missing option": (("evaluate",), r"Missing option '--scores'; see dattri evaluate --help"),
    "missing argument": (("publish",), r"Missing argument '.*'; see dattri publish --help"),
    "option without a value": (("evaluate", "--scores"), r"'--scores' requires an argument; see dattri"),
    "unknown option": (("load", *SMALL, "--bogus", "1"), r"No such option.*--bogus.*; see dattri load --help"),
    "misspelt option": (("evaluate", "--scors", "x"), r"No such option.*--scors.*--scores.*; see dattri evaluate"),
    "option given twice": (
        ("evaluate", "--scores", "a.npy", "--scores=b.npy"), r"--scores was given 2 times; .*; see dattri evaluate"
    ),
    "unknown command": (("evalute",), r"No such command 'evalute'.*; see dattri --help"),
    "not a number": (
        ("load", *SMALL, "--metric", "lds", "--n-jobs", "x"), r"Invalid value for '--n-jobs'.*; see dattri load --help"
    ),
    "too many arguments": (("list", "more"), r"[Uu]nexpected extra argument.*more.*; see dattri list --help"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_one_line(name):
    arguments, message = WRONG[name]
    result = CliRunner().invoke(app, arguments, prog_name="dattri")
    assert result.exit_code == 2
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert re.search(message, line), line


def test_without_a_command_the_help_is_shown():
    result = CliRunner().invoke(app, [], prog_name="dattri")
    assert result.exit_code == 2 and "evaluate" in result.output and "Error" not in result.output


def test_help_and_version_succeed():
    for arguments in (["--help"], ["evaluate", "--help"], ["--version"], ["list"]):
        assert CliRunner().invoke(app, arguments, prog_name="dattri").exit_code == 0


def test_the_command_can_be_called_from_python():
    """Without standing alone, errors are raised, as typer does it."""
    with pytest.raises(typer.BadParameter.__base__, match="scores"):
        app(["evaluate"], standalone_mode=False)
