"""Axes and sign of scores: what is warned of, how rarely random scores are accused, and who asks."""

import warnings

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dattri import GroundTruth, Predictions, Targets, judge
from dattri.benchmark.leaderboard import evaluate
from dattri.cli import app
from dattri.metric.correlation import lds
from dattri.metric.orientation import check_orientation

NORMAL = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, generator=NORMAL)


def subsets_of(num_train, num_subsets):
    return torch.stack([torch.randperm(num_train, generator=NORMAL)[: num_train // 2] for _ in range(num_subsets)])


def lds_truth(score, num_subsets=30, noise=0.5):
    """What retraining would say of scores that are right but for noise."""
    subsets = subsets_of(len(score), num_subsets)
    sums = score[subsets].sum(1)
    return sums + noise * sums.std() * draw(*sums.shape), subsets


def loo_truth(score, noise=0.5):
    removed = torch.randperm(len(score), generator=NORMAL)[: 3 * len(score) // 4]
    return score[removed] + noise * score.std() * draw(len(removed), score.shape[1]), removed


SCORE, SQUARE = draw(60, 20), draw(50, 50)
TRUTHS = {"lds": (SCORE, lds_truth(SCORE)), "loo": (SCORE, loo_truth(SCORE))}
SQUARES = {"lds": (SQUARE, lds_truth(SQUARE)), "loo": (SQUARE, loo_truth(SQUARE))}
IS_WRONG = (torch.arange(200) % 10 == 0).long()
OWN = IS_WRONG + 0.4 * draw(200)


@pytest.fixture(autouse=True)
def every_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("metric", TRUTHS)
@pytest.mark.parametrize("value", [None, "known"])
def test_the_opposite_sign(metric, value):
    score, truth = TRUTHS[metric]
    known = None if value is None else 0.5
    assert check_orientation(score, truth, value=known) is None
    with pytest.warns(UserWarning, match=r"^mine: .*opposite sign: .* -0\.\d+ is below 0 with 99.9% .* pass -score$"):
        found = check_orientation(-score, truth, metric, name="mine", value=known and -known)
    assert found is not None and found.startswith("the scores seem to have the opposite sign")


def test_the_opposite_sign_of_self_attribution_and_predictions():
    assert check_orientation(OWN, IS_WRONG) is None
    with pytest.warns(UserWarning, match="mislabel AUC .* is below 0.5 .*Larger must mean more suspicious"):
        check_orientation(-OWN, IS_WRONG)
    truth = TRUTHS["lds"][1]
    assert check_orientation(Predictions(truth[0]), truth) is None
    for judged in (check_orientation, judge):
        with pytest.warns(UserWarning, match="opposite sign"):
            judged(Predictions(-truth[0]), truth)


@pytest.mark.parametrize("metric", SQUARES)
def test_a_square_matrix_that_fits_only_when_transposed(metric):
    score, truth = SQUARES[metric]
    assert check_orientation(score, truth) is None
    for value in (None, 0.01):
        with pytest.warns(UserWarning, match=r"look like \(test, train\): .*, but 0\.\d+ transposed.* pass score.T$"):
            check_orientation(score.T, truth, value=value)
    assert check_orientation(score + score.T, truth) is None, "symmetric scores have no wrong side"
    assert check_orientation(score.T + 0.7 * score, truth) is None, "fits both ways, one better than the other"
    assert check_orientation(score.T, truth, value=0.9) is None, "a known value is believed"


@pytest.mark.parametrize("form", ["array", "list", "memory map", "gradient", "runs", "bfloat16"])
def test_forms_of_scores_and_truth(tmp_path, form):
    score, truth = SQUARES["lds"]
    np.save(tmp_path / "score.npy", score)
    forms = {
        "array": score.numpy(), "list": score.tolist(), "memory map": np.load(tmp_path / "score.npy", mmap_mode="r"),
        "gradient": score.clone().requires_grad_(), "bfloat16": score.bfloat16(),
    }  # fmt: skip
    given = forms.get(form, score)
    truth = Targets(-torch.stack([truth[0], truth[0]], 1), truth[1]) if form == "runs" else truth
    assert check_orientation(given, truth) is None
    turned = score.T.tolist() if form == "list" else given.T
    with pytest.warns(UserWarning, match="transposed"):
        check_orientation(turned, truth)


@pytest.mark.parametrize("num_models", [3, 4, 5, 6, 7])
@pytest.mark.parametrize("metric", ["lds", "loo"])
def test_few_models_accuse_nobody_by_chance(metric, num_models):
    """Three random numbers come in one particular order in a sixth of all cases."""
    flagged = 0
    for _ in range(150):
        score, values = draw(20, 1).expand(20, 4), draw(num_models, 1).expand(num_models, 4)
        chosen = subsets_of(20, num_models) if metric == "lds" else torch.randperm(20, generator=NORMAL)[:num_models]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flagged += check_orientation(score, (values, chosen)) is not None
    assert flagged <= 1


def test_blocks_of_columns_are_not_checked():
    score, truth = TRUTHS["lds"]
    assert check_orientation((-score).split(5, 1), truth) is None


def test_what_can_be_read_only_once_is_not_read():
    def blocks():
        raise AssertionError("read")
        yield

    assert check_orientation(blocks(), TRUTHS["lds"][1]) is None


def test_what_does_not_fit_is_refused():
    score, truth = TRUTHS["lds"]
    with pytest.raises(ValueError, match=r"it looks transposed, \(num_test, num_train\): pass score\.T"):
        check_orientation(score.T, truth)
    with pytest.raises(ValueError, match="metric: 'loo' does not fit"):
        check_orientation(score, truth, "loo")
    with pytest.raises(ValueError, match="metric: expected one of lds, loo, mislabel, got 'auc'"):
        check_orientation(score, truth, "auc")


KINDS = {
    "independent": draw,
    "shared by all tests": lambda rows, columns: draw(rows, 1) + 0.3 * draw(rows, columns),
    "of long tails": lambda rows, columns: draw(rows, columns) ** 3,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("truth", [lds_truth, loo_truth])
def test_random_scores_are_rarely_accused_and_good_ones_never(truth, kind):
    flagged = 0
    for _ in range(60):
        score = KINDS[kind](40, 40)
        found = truth(score)
        assert check_orientation(score + 0.5 * score.std() * draw(40, 40), found) is None
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            flagged += check_orientation(KINDS[kind](40, 40), found) is not None
    assert flagged <= 2


def test_undefined_values_are_no_finding():
    score, truth = TRUTHS["lds"]
    assert check_orientation(torch.ones_like(score), truth) is None
    assert check_orientation(-score, (truth[0][:2], truth[1][:2])) is None  # two subsets have no interval


def test_judge_warns():
    for metric, (score, truth) in TRUTHS.items():
        assert judge(score, truth).value > 0.5
        with pytest.warns(UserWarning, match="^score: the scores seem to have the opposite sign"):
            assert judge(-score, truth, metric).value < -0.5
    with pytest.warns(UserWarning, match="^score: the scores look like"):
        judge(SQUARE.T, SQUARES["lds"][1])
    for own in (-OWN, torch.diag(-OWN)):
        with pytest.warns(UserWarning, match="more suspicious"):
            judge(own, IS_WRONG)


def test_a_leaderboard_names_the_method(monkeypatch):
    score, truth = TRUTHS["lds"]
    attributes = {"targets": None, "train_sampler": range(len(score))}
    monkeypatch.setattr("dattri.benchmark.leaderboard.load_setting", lambda *_, **__: (attributes, GroundTruth(*truth)))
    methods = {"good": score, "bad": -score, "turned": score.T}
    with pytest.warns(UserWarning, match="^bad: the scores seem to have the opposite sign") as told:
        board = evaluate(methods, ("lr", "digits"), metrics=["lds"], baselines=False)
    assert len(told) == 1
    rows = {row.method: row for row in board.rows}
    assert rows["bad"].value == pytest.approx(float(lds(-score, truth).correlation.double().mean()), rel=1e-5)
    assert "it looks transposed, (num_test, num_train): pass score.T" in rows["turned"].error


def test_the_command_reads_folders_and_warns_in_one_line(tmp_path):
    score, truth = TRUTHS["lds"]
    GroundTruth(*truth).save(tmp_path / "truth.pt")
    (tmp_path / "explanations").mkdir()
    for number, part in enumerate(score.T.split(8)):
        torch.save(part.clone(), tmp_path / "explanations" / f"{number}.pt")
    torch.save({"good": score, "bad": -score}, tmp_path / "both.pt")

    def call(*arguments):
        options = ["--ground-truth", str(tmp_path / "truth.pt"), "--scores", *arguments]
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            return CliRunner().invoke(app, ["evaluate", *options])

    read = call(str(tmp_path / "explanations"))
    assert read.exit_code == 0 and "LDS 0." in read.output and "Warning" not in read.output
    assert (tmp_path / "explanations-truth.pt-lds.png").is_file()
    missing = call(str(tmp_path / "both.pt"))
    assert missing.exit_code == 1 and "pass the name of one with --array: 'good', 'bad'" in missing.output
    warned = call(str(tmp_path / "both.pt"), "--array", "bad")
    assert warned.exit_code == 0 and "LDS -0." in warned.output
    (line,) = [line for line in warned.output.splitlines() if "opposite sign" in line]
    assert line.startswith("Warning: score: the scores seem") and line.endswith("save their negative")
