"""What `judge` says about scores: the value of the metric, whatever form they have, and what cannot be judged."""

import json
import warnings

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dattri.cli import app
from dattri.metric import GroundTruth, Targets, ceiling_share, lds, lds_ceiling, loo_corr
from dattri.metric.report import judge
from dattri.metric.subsets import members_of, read_subsets

DRAW = torch.Generator().manual_seed(0)
SCORE = torch.randn(200, 30, generator=DRAW)
INDICES = torch.stack([torch.randperm(200, generator=DRAW)[:100] for _ in range(60)])
VALUES = SCORE[INDICES].sum(1) + 7 * torch.randn(60, 30, generator=DRAW)
SQUARE, IS_WRONG = torch.randn(200, 200, generator=DRAW), (torch.arange(200) % 10 == 0).long()
LDS, LOO = (VALUES, INDICES), (VALUES, torch.arange(60))
FORMS = {
    "tensor": SCORE,
    "bfloat16": SCORE.bfloat16(),
    "with gradient": SCORE.clone().requires_grad_(),
    "list": SCORE.tolist(),
    "array": SCORE.numpy(),
}


@pytest.mark.parametrize("form", FORMS)
def test_value_is_that_of_the_metric(form):
    of_subsets = judge(FORMS[form], (VALUES.bfloat16(), INDICES.to(torch.uint8)))
    of_samples = judge(FORMS[form], (VALUES.numpy(), np.arange(60)))
    assert of_subsets.value == pytest.approx(float(lds(SCORE, LDS).correlation.mean()), abs=0.01)
    assert of_samples.value == pytest.approx(float(loo_corr(SCORE, LOO).correlation.mean()), abs=0.01)
    assert "60 training samples left out" in of_samples.summary


def test_self_attribution_may_be_the_diagonal_of_a_matrix():
    assert judge(SQUARE, IS_WRONG).value == judge(SQUARE.diag(), IS_WRONG).value
    with pytest.raises(ValueError, match=r"expected the self-attribution of the training samples.*got \(200, 30\)"):
        judge(SCORE, IS_WRONG)


def test_summary_does_not_depend_on_the_form_of_subsets():
    mask = members_of(read_subsets(INDICES), 200, torch.device("cpu")).bool()
    summary = judge(SCORE, LDS).summary
    assert summary == judge(SCORE, (VALUES, mask)).summary == judge(SCORE, (VALUES, list(INDICES))).summary
    unequal = [row[: 20 + number % 3] for number, row in enumerate(INDICES)]
    assert "subsets of 20 to 22 training samples" in judge(SCORE, (VALUES, unequal)).summary


def test_ties_and_constants_are_said():
    constant = SCORE.clone()
    constant[:, 0] = 1.0
    assert "of only 29 of 30 test samples" in judge(constant, LDS).summary
    equal = judge(torch.ones(200), IS_WRONG).summary
    assert "all scores are equal" in equal
    assert "the first 180 samples (90%)" in equal  # any order of them


FLAT = torch.ones(60, 30)
NOTHING_TO_JUDGE = [
    ("score: the scores, or their sums, are constant", SCORE * 0, LDS),
    ("score: the scores, or their sums, are constant", SCORE * 0, LOO),
    ("ground_truth: the targets of every", SCORE, (FLAT, INDICES)),
    ("ground_truth: the targets of every", SCORE, (FLAT, torch.arange(60))),
    ("ground_truth: it has targets of 1 model", SCORE, (VALUES[:1], INDICES[:1])),
    ("ground_truth: 0 of 200 labels are wrong", SQUARE, torch.zeros(200)),
    ("ground_truth: 200 of 200", SQUARE, torch.ones(200)),
]


@pytest.mark.parametrize("number", range(len(NOTHING_TO_JUDGE)))
def test_what_cannot_be_judged_is_an_error_without_warnings(number):
    message, score, truth = NOTHING_TO_JUDGE[number]
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        warnings.simplefilter("error")
        judge(score, truth)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="metric: expected one of lds"):
        judge(SCORE, LDS, "auc")
    with pytest.raises(ValueError, match="metric: 'mislabel' does not fit the ground truth"):
        judge(SQUARE, GroundTruth(*LDS), "mislabel")
    with pytest.raises(ValueError, match=r"score: expected one row for each of the 199 training samples, got shape"):
        judge(SCORE, LDS, num_train=199)
    with pytest.raises(ValueError, match=r"it looks transposed, \(num_test, num_train\): pass score\.T"):
        judge(SCORE.T, LDS, num_train=200)


def run(*options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(app, ["evaluate", *map(str, options)])


def test_home_is_expanded_in_the_command(tmp_path, monkeypatch):
    """A shell leaves the tilde of --scores=~/a.npy alone."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir(), work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(work)
    np.save(home / "a.npy", SCORE.numpy())
    GroundTruth(*LDS).save(home / "truth.pt")
    done = run("--scores=~/a.npy", "--ground-truth=~/truth.pt", "--picture=~/b.png")
    assert done.exit_code == 0 and (home / "b.png").is_file()
    assert run("--scores=~/a.npy", "--ground-truth=~/truth.pt").exit_code == 0
    assert (home / "a.npy-truth.pt-lds.png").is_file() and not list(work.iterdir())


def test_json_has_no_nan(tmp_path):
    torch.save(SCORE[:, 0].clone(), tmp_path / "own.pt")
    torch.save(torch.arange(200) == 7, tmp_path / "wrong.pt")
    done = run("--scores", tmp_path / "own.pt", "--ground-truth", tmp_path / "wrong.pt", "--json")
    found = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["low"] is None and found["high"] is None and 0 <= found["value"] <= 1


def test_json_has_the_numbers_of_the_summary_and_comes_before_the_picture(tmp_path):
    runs = torch.randn(60, 2, 30, generator=torch.Generator().manual_seed(0)) - 5 * LDS[0][:60, None, :30]
    targets = Targets(runs, INDICES[:60])
    np.save(tmp_path / "a.npy", SCORE[:, :30].numpy())
    targets.save(tmp_path / "targets.pt")
    options = "--scores", tmp_path / "a.npy", "--ground-truth", tmp_path / "targets.pt"
    resource = pytest.importorskip("resource", reason="no limit of file sizes on this system")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))  # as on a full disk
        done = run(*options, "--json", "--picture", tmp_path / "a.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert done.exit_code == 1 and "Error" in done.output and "a.png" in done.output
    found, ours = json.JSONDecoder().raw_decode(done.output)[0], judge(SCORE[:, :30], targets)
    ceiling, share = lds_ceiling(targets), ceiling_share(SCORE[:, :30], targets)
    assert [found[name] for name in ("value", "low", "high")] == [ours.value, ours.low, ours.high]
    assert [found[f"ceiling{end}"] for end in ("", "_low", "_high")] == [ceiling.mean, ceiling.low, ceiling.high]
    assert [found[f"share{end}"] for end in ("", "_low", "_high")] == [*share] and found["num_undefined"] == 0


@pytest.mark.parametrize("name", ["truth.csv", "truth", "truth.npy"])
def test_ground_truth_is_not_saved_under_a_name_of_another_format(name, tmp_path):
    for truth in (GroundTruth(*LDS), Targets(LDS[0][:, None], LDS[1])):
        with pytest.raises(ValueError, match=rf"path: expected a name that ends with \.pt or \.pth, got '{name}'"):
            truth.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_a_ground_truth(tmp_path):
    np.save(tmp_path / "a.npy", SCORE.numpy())
    done = run("--scores", tmp_path / "a.npy", "--ground-truth", tmp_path)
    assert done.exit_code == 1 and f"ground truth: {tmp_path} is not a file" in done.output


def test_an_unbounded_share_of_the_ceiling_is_said_in_words():
    noise = torch.randn(60, 2, 30, generator=torch.Generator().manual_seed(0))  # so the ceiling may be 0
    summary = judge(SCORE, Targets(noise, INDICES)).summary
    assert "inf%" not in summary
    assert "too few models for an interval" in summary
