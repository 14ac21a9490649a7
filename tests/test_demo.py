"""What a user of the demo sees: a line per benchmark, and a picture in which every method is seen."""

from dataclasses import replace

import pytest

from dattri.benchmark import settings
from dattri.demo import draw, run_demo


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder for a small demo, whose few models are trained, for a few epochs, by the test that runs first."""
    setting = settings.find_setting("lr", "digits")
    setting = replace(setting, num_full=2, num_half=2, train_func=replace(setting.train_func, num_epochs=8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "_REGISTRY", dict(settings._REGISTRY))
        settings.register_setting(setting, replace=True)
        yield {"path": tmp_path_factory.mktemp("demo"), "num_subsets": 3, "num_removed": 3}


def test_one_line_for_each_benchmark(small, capfd):
    run_demo(**small)
    lines = [line.rsplit("\r", 1)[-1] for line in capfd.readouterr().err.split("\n") if line]
    metrics = ("lds", "loo", "mislabel")
    assert [line.split(":")[0] for line in lines] == [f"building digits_lr for {metric}" for metric in metrics]
    assert all("100%" in line for line in lines)
    run_demo(**small)
    assert capfd.readouterr().err == "", "a second run finds everything built"


def test_every_method_is_told_apart(small):
    results, truth = run_demo(**small)
    left, _, right = draw(results, truth).axes
    for axis in (left, right):
        lines = axis.get_lines()
        assert len({(line.get_color(), str(line.get_linestyle())) for line in lines}) == len(lines) >= len(results)
    assert [line.get_xdata()[0] for line in left.get_lines()] == [result.lds.mean for result in results.values()]
    assert right.get_xscale() == "log"
    *methods, chance = right.get_lines()
    assert (chance.get_xdata() == chance.get_ydata()).all()
    assert len(methods) == len(results)
