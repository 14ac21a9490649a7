"""Docstrings of public functions: each has examples, which run, and names related functions."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import dattri

MODULES = ["dattri", *(module.name for module in pkgutil.walk_packages(dattri.__path__, "dattri."))]
PUBLIC = {
    f"{value.__module__}.{name}": value
    for module in map(importlib.import_module, MODULES)
    for name in getattr(module, "__all__", [])
    if inspect.isroutine(value := getattr(module, name)) or inspect.isclass(value)
}
FUNCTIONS = sorted(name for name, value in PUBLIC.items() if inspect.isroutine(value))
WITHOUT_EXAMPLES = {
    "dattri.benchmark.hub.publish_benchmark": "needs an account on the hub",
    "dattri.benchmark.sharing.leaderboard_from": "needs the hub",
    "dattri.benchmark.sharing.publish_scores": "needs an account on the hub",
    "dattri.benchmark.datasets.cifar2": "downloads its data",
    "dattri.benchmark.datasets.maestro": "downloads its data",
    "dattri.benchmark.datasets.mnist": "downloads its data",
    "dattri.benchmark.datasets.shakespeare": "downloads its data",
    "dattri.benchmark.datasets.wikitext2": "downloads its data",
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_examples_and_see_also(name):
    lines = inspect.getdoc(PUBLIC[name]).splitlines()
    assert "See Also" in lines
    assert ("Examples" in lines) != (name in WITHOUT_EXAMPLES)


@pytest.mark.parametrize("name", [name for name in dattri.__all__ if inspect.isclass(getattr(dattri, name))])
def test_classes_of_the_front_door_have_examples_and_see_also(name):
    assert {"Examples", "See Also"} <= {*inspect.getdoc(getattr(dattri, name)).splitlines()}


def test_exceptions_are_public_functions():
    assert {*WITHOUT_EXAMPLES} <= {*FUNCTIONS}


def examples():
    """One doctest for each public docstring with examples, those of methods included."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for name, value in sorted(PUBLIC.items()) for test in finder.find(value, name) if test.examples]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("example", examples(), ids=lambda test: test.name)
def test_examples_run(example, tmp_path, monkeypatch):
    if example.name.endswith(".gpt2"):
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    report = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=report.append)
    assert result.failed == 0, "".join(report)
