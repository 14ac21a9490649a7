"""Removing the top samples: what is removed, beside what, and what is trained again."""

import itertools
import math
import signal
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from helpers import files, removals, small_train
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dattri import (
    EnsembleTarget,
    EnsembleTrainer,
    Targets,
    brittleness,
    calculate_targets,
    removal_test,
    retrain_subsets,
)
from dattri.metric.removal import _crossed_mean
from dattri.model_util import retrain_dir
from dattri.model_util.retrain_dir import DifferentRunError

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = torch.tensor([1.0, 2.0, 3.0, 10.0, 4.0, 7.0, 5.0, 0.0])
TRAIN = DataLoader(TensorDataset(LABELS[:, None], LABELS), batch_size=8)
WANTED = torch.tensor([2.0, 6.0, 9.0])
TESTS = DataLoader(TensorDataset(torch.zeros(3, 1), WANTED), batch_size=2)
SCORES = -(LABELS[:, None] - WANTED).abs()  # close labels help
FOUR = {"fractions": [0.25, 0.5], "num_controls": 4, "seed": 0}


def learn_mean(dataloader):
    """A model whose answer is the mean of its labels."""
    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    model.bias.data.fill_(torch.cat([labels for _, labels in dataloader]).mean())
    return model


def no_training(dataloader):
    raise AssertionError("a model was trained")


no_training.__name__ = "learn_mean"


def answers(path, dataloader):
    model = nn.Linear(1, 1)
    model.load_state_dict(torch.load(path))
    with torch.no_grad():
        return torch.cat([model(inputs)[:, 0] for inputs, _ in dataloader])


def squared_error(path, dataloader):
    return (answers(path, dataloader) - torch.cat([labels for _, labels in dataloader])).square()


def is_close(path, dataloader):
    return (answers(path, dataloader) - torch.cat([labels for _, labels in dataloader])).abs() < 2.5


def models(path):
    """Every checkpoint with its bytes."""
    return {name: content for name, content in files(path).items() if name.endswith(".pt")}


def error_without(removed, test):
    left = [label for place, label in enumerate(LABELS.tolist()) if place not in removed]
    return (sum(left) / len(left) - float(WANTED[test])) ** 2


def test_the_top_samples_are_removed_and_random_ones(tmp_path):
    scores = SCORES + torch.arange(8.0)[:, None] / 100  # without ties
    result = removal_test(scores, learn_mean, TRAIN, squared_error, TESTS, tmp_path, direction="both", **FOUR)
    order = scores.argsort(dim=0, descending=True)
    assert result.values["scores"].shape == (2, 2, 3) and result.controls.shape == (2, 4, 3)
    for (place, size), test in itertools.product(enumerate((2, 4)), range(3)):
        for way, removed in enumerate((order[:size, test].tolist(), order[-size:, test].tolist())):
            found = float(result.values["scores"][way, place, test])
            assert math.isclose(found, error_without(removed, test), rel_tol=1e-5)
    possible = {
        size: [[error_without(some, test) for test in range(3)] for some in itertools.combinations(range(8), size)]
        for size in (2, 4)
    }
    for place, size in enumerate((2, 4)):
        for control in result.controls[place].numpy():
            assert np.isclose(possible[size], control, rtol=1e-5).all(1).any()
    assert np.allclose(result.full, [error_without([], test) for test in range(3)], rtol=1e-6)
    for row in result.rows:
        found = result.values["scores"][int(row.direction == "harmful"), [0.25, 0.5].index(row.fraction)]
        controls = result.controls[[0.25, 0.5].index(row.fraction)]
        assert math.isclose(row.effect, float((found - controls.mean(0)).mean()), rel_tol=1e-9)
        larger = ((found > controls).double() + (found == controls).double() / 2).mean()
        assert math.isclose(row.beats, float(larger if row.direction == "helpful" else 1 - larger), abs_tol=1e-9)


def test_a_new_method_and_a_new_size_train_only_what_is_new(tmp_path):
    first = removal_test({"a": SCORES}, learn_mean, TRAIN, squared_error, TESTS, tmp_path, **FOUR)
    before = files(tmp_path)
    options = {**FOUR, "fractions": [0.6, 0.25]}  # rows are in order all the same
    again = removal_test({"b": -SCORES, "a": SCORES}, learn_mean, TRAIN, squared_error, TESTS, tmp_path, **options)
    present = files(tmp_path)
    assert before.items() <= present.items()
    assert {name.split("/")[0] for name in present.keys() - before.keys()} == {"a", "b", "random_5_4"}
    assert torch.equal(again.values["a"][:, 1], first.values["a"][:, 0])
    assert torch.equal(again.controls[1], first.controls[0]) and again.rows[2] == first.rows[0]
    assert [row.num_removed for row in again.rows] == [2, 5, 2, 5]


TRAINER = EnsembleTrainer(
    partial(nn.Linear, 1, 1), nn.functional.mse_loss, optimizer=partial(torch.optim.SGD, lr=0.01), num_epochs=2
)


def loss_of_column(outputs, labels):
    return (outputs[:, 0] - labels).square()


GROWN = {  # first question and the next; what of the values they share
    "test samples": ({"tests": [0, 2]}, {"tests": [2, 1, 0]}),
    "other test samples": ({"tests": [0, 1]}, {"tests": [1, 2]}),
    "fewer test samples": ({}, {"tests": [1]}),
    "controls": ({}, {"num_controls": 7}),
    "controls twice": ({"num_controls": 3}, {"num_controls": 9, "fractions": [0.5, 0.25]}),
    "fewer controls": ({"num_controls": 7}, {}),
    "runs": ({}, {"num_runs": 2}),
    "fewer runs": ({"num_runs": 3}, {"num_runs": 2}),
    "fractions": ({}, {"fractions": [0.125, 0.25, 0.5]}),
    "directions": ({}, {"direction": "both"}),
    "everything": (
        {"tests": [0], "num_controls": 3},
        {"tests": [1, 0], "num_controls": 6, "num_runs": 2, "fractions": [0.375, 0.5], "direction": "both"},
    ),
}


@pytest.mark.parametrize("seed", [0, None], ids=["same seed", "no seed"])
@pytest.mark.parametrize("name", GROWN)
def test_a_changed_question_keeps_all_models_and_is_answered_as_if_it_were_the_first(name, seed, tmp_path):
    less, more = GROWN[name]
    arguments = (TRAIN, squared_error, TESTS)
    first = removal_test({"a": SCORES}, noisy_mean, *arguments, tmp_path / "run", **{**FOUR, **less})
    before = models(tmp_path / "run")
    both = {"b": SCORES.flip(0), "a": SCORES}
    grown = removal_test(both, noisy_mean, *arguments, tmp_path / "run", **{**FOUR, **more, "seed": seed})
    after = models(tmp_path / "run")
    assert before.items() <= after.items()
    whole = removal_test(both, noisy_mean, *arguments, tmp_path / "whole", **{**FOUR, **more})
    assert grown.rows == whole.rows and torch.equal(grown.controls, whole.controls)
    assert all(torch.equal(grown.values[method], whole.values[method]) for method in both)
    assert len(after) <= len(before) + len(models(tmp_path / "whole"))
    again = removal_test({"a": SCORES}, no_training_of_noise, *arguments, tmp_path / "run", **{**FOUR, **less})
    assert again.rows == first.rows and models(tmp_path / "run") == after


def test_only_missing_models_are_trained(tmp_path):
    calls = []

    def counted(dataloader):
        calls.append(1)
        return learn_mean(dataloader)

    counts = []
    for options in ({"tests": [0]}, {"tests": [0, 1]}, {"tests": [2], "num_controls": 6}, {"tests": [2, 0, 1]}):
        removal_test(
            SCORES.double() + torch.arange(8)[:, None] / 100, counted, TRAIN, squared_error, TESTS, tmp_path,
            **{**FOUR, **options},
        )
        counts.append(len(calls))
        calls.clear()
    assert counts == [1 + 2 * (4 + 1), 2, 2 * (2 + 1), 0]


def test_equal_removals_share_a_model(tmp_path):
    scores = torch.arange(8.0)[:, None].expand(8, 3)
    result = removal_test(scores, learn_mean, TRAIN, squared_error, TESTS, tmp_path, **FOUR)
    assert len(list((tmp_path / "scores" / "helpful_2").glob("*/*.pt"))) == 1
    assert np.allclose(result.values["scores"][0, 0], [error_without([6, 7], test) for test in range(3)], rtol=1e-5)


def test_models_that_are_trained_as_one_keep_their_bytes_and_numbers(tmp_path):
    target = EnsembleTarget(partial(nn.Linear, 1, 1), loss_of_column)
    columns = DataLoader(TensorDataset(LABELS[:, None], LABELS[:, None]), batch_size=3, shuffle=True)
    removal_test(SCORES, TRAINER, columns, target, TESTS, tmp_path / "run", tests=[1], **FOUR)
    before = models(tmp_path / "run")
    grown = removal_test(SCORES, TRAINER, columns, target, TESTS, tmp_path / "run", **{**FOUR, "num_controls": 6})
    whole = removal_test(SCORES, TRAINER, columns, target, TESTS, tmp_path / "whole", **{**FOUR, "num_controls": 6})
    assert before.items() < models(tmp_path / "run").items() and grown.rows == whole.rows


def old_directory(path, scores, tests, num_controls=4, stop=None):
    """The models that the first versions trained, bank by bank; the last one may be broken off."""
    options = {"seed": 0, "shared_seed": True}
    banks = {"full": torch.ones(1, 8, dtype=torch.bool)}
    for size in (2, 4):
        generator = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(size, 0, 0)))
        removed = [generator.choice(8, size, replace=False) for _ in range(num_controls)]
        banks[f"random_{size}_{num_controls}"] = mask_without(removed)
    for size in (2, 4):
        top = scores.argsort(dim=0, descending=True)[:size, tests]
        banks[f"scores/helpful_{size}"] = mask_without(top.T.numpy())
    for number, (name, mask) in enumerate(banks.items()):
        if number == stop:
            with pytest.raises(RuntimeError, match="the node is gone"):
                retrain_subsets(FailsAfter(2), TRAIN, path / name, mask, **options)
            return
        retrain_subsets(learn_mean, TRAIN, path / name, mask, **options)


def mask_without(removed):
    mask = torch.ones(len(removed), 8, dtype=torch.bool)
    return mask.scatter_(1, torch.as_tensor(np.stack(list(removed))).long(), value=False)


class FailsAfter:
    """`learn_mean` until the node is gone."""

    __name__ = "learn_mean"

    def __init__(self, number):
        self.number = number

    def __call__(self, dataloader):
        self.number -= 1
        if self.number < 0:
            raise RuntimeError("the node is gone")
        return learn_mean(dataloader)


@pytest.mark.parametrize("stop", [None, 1, 2, 3, 4])
def test_a_directory_of_the_first_versions_is_read_continued_and_grows(stop, tmp_path):
    scores = SCORES.double() + torch.arange(8)[:, None] / 100
    scores[:, 2] = scores[:, 0]  # the first versions trained equal removals twice
    arguments = (TRAIN, squared_error, TESTS)
    old_directory(tmp_path / "whole", scores, [0, 1, 2])
    whole = files(tmp_path / "whole")
    read = removal_test(scores, no_training, *arguments, tmp_path / "whole", **FOUR)
    assert files(tmp_path / "whole") == whole
    old_directory(tmp_path / "run", scores, [0, 1, 2], stop=stop)
    continued = removal_test(scores, learn_mean, *arguments, tmp_path / "run", **FOUR)
    banks = list(dict.fromkeys(name.rsplit("/", 2)[0] for name in models(tmp_path / "whole")))
    begun = [name for name in whole if stop is None or any(name.startswith(bank) for bank in BANKS[: stop + 1])]
    assert len(banks) == len(BANKS)
    assert {name: files(tmp_path / "run")[name] for name in begun} == {name: whole[name] for name in begun}
    assert continued.rows == read.rows
    old_directory(tmp_path / "few", scores, [0, 1], num_controls=3)
    before = models(tmp_path / "few")
    grown = removal_test(scores, learn_mean, *arguments, tmp_path / "few", **FOUR)
    assert grown.rows == read.rows and before.items() <= models(tmp_path / "few").items()


BANKS = ["full", "random_2_4", "random_4_4", "scores/helpful_2", "scores/helpful_4"]


def test_a_bank_of_format_1_is_read_but_does_not_grow(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # as it was written then
        patch.setattr(retrain_dir, "FORMAT", 1)
        patch.setattr(retrain_dir, "_signed", dict)
        first = removal_test(SCORES, learn_mean, TRAIN, squared_error, TESTS, tmp_path, tests=[0, 1], **FOUR)
    before = files(tmp_path)
    again = removal_test(SCORES, no_training, TRAIN, squared_error, TESTS, tmp_path, tests=[1], **FOUR)
    assert torch.equal(again.values["scores"][..., 0], first.values["scores"][..., 1])
    with pytest.raises(ValueError, match=r"helpful_2 was written by an early version .*another path"):
        removal_test(SCORES, learn_mean, TRAIN, squared_error, TESTS, tmp_path, **FOUR)
    assert files(tmp_path) == before


@pytest.mark.parametrize("fatal", [1, 3, 6, 8])
def test_a_kill_while_a_directory_grows_loses_nothing(fatal, start_child, tmp_path):
    more = {"tests": [0, 1, 5], "num_controls": 6, "fractions": [0.25, 0.375]}
    for name in ("run", "quiet"):
        removals(small_train, tmp_path / name)
    code = """
calls = []
def killed(dataloader):
    calls.append(1)
    if len(calls) == {fatal}: os.kill(os.getpid(), signal.SIGKILL)
    return train(dataloader)
killed.__name__ = "small_train"
removals(killed, path, **{more})
"""
    with start_child(code.format(fatal=fatal, more=more), tmp_path / "run") as child:
        assert child.wait(120) == -9
    resumed, quiet = removals(small_train, tmp_path / "run", **more), removals(small_train, tmp_path / "quiet", **more)
    assert files(tmp_path / "run") == files(tmp_path / "quiet") and resumed.rows == quiet.rows


def test_processes_that_ask_one_directory_at_once_agree(start_child, tmp_path):
    asked = [([0], 4), ([1, 2], 6), ([2, 0], 5), ([0, 1], 4)]
    code = "removals(small_train, path, tests={tests}, num_controls={number})"
    children = [start_child(code.format(tests=tests, number=number), tmp_path / "run") for tests, number in asked]
    for child in children:
        with child:
            assert child.wait(120) == 0
    before = models(tmp_path / "run")
    options = {"tests": [0, 1, 2], "num_controls": 6}
    found, alone = (removals(small_train, tmp_path / name, **options) for name in ("run", "alone"))
    assert found.rows == alone.rows and models(tmp_path / "run") == before


def noisy_mean(dataloader):
    """`learn_mean` with noise of training."""
    model = learn_mean(dataloader)
    model.bias.data += torch.randn(1)
    return model


def no_training_of_noise(dataloader):
    raise AssertionError("a model was trained")


no_training_of_noise.__name__ = "noisy_mean"


@pytest.mark.parametrize("fatal", [1, 6, 9])  # of nine models at least: full, and four controls of each size
def test_an_interrupted_test_goes_on_to_the_same_bytes(fatal, tmp_path):
    calls = []

    def fails(dataloader):
        calls.append(1)
        if len(calls) == fatal:
            raise RuntimeError("the node is gone")
        return learn_mean(dataloader)

    fails.__name__ = "learn_mean"
    arguments = (TRAIN, squared_error, TESTS)
    with pytest.raises(RuntimeError, match="the node is gone"):
        removal_test(SCORES, fails, *arguments, tmp_path / "run", **{**FOUR, "seed": None})
    resumed = removal_test(SCORES, fails, *arguments, tmp_path / "run", **{**FOUR, "seed": None})
    seed = int((tmp_path / "run" / "full" / "metadata.yml").read_text().split("seed: ")[1].split()[0])
    quiet = removal_test(SCORES, learn_mean, *arguments, tmp_path / "quiet", **{**FOUR, "seed": seed})
    assert files(tmp_path / "run") == files(tmp_path / "quiet")
    assert resumed.rows == quiet.rows


def test_a_bank_that_exists_serves_as_controls(tmp_path):
    subsets = [*itertools.islice(itertools.combinations(range(8), 6), 3), *itertools.combinations(range(8), 7)]
    retrain_subsets(learn_mean, TRAIN, tmp_path / "bank", subsets, seed=0, shared_seed=True)
    bank = calculate_targets(squared_error, tmp_path / "bank", TESTS)
    options = {**FOUR, "tests": [2, 0]}
    with pytest.warns(UserWarning, match=r"no subset leaves out 4 samples.*the given ones leave out 1, 2"):
        result = removal_test(
            SCORES, learn_mean, TRAIN, squared_error, TESTS, tmp_path / "run", controls=bank, **options
        )
    assert torch.equal(result.controls[0, :3], bank.values[:3, 0][:, [2, 0]].double())
    spreads = result.controls.var(1).mean(1).sqrt()
    for row, spread in zip(result.rows, spreads, strict=True):
        assert np.allclose(np.array(row[7:10]) * float(spread), row[4:7])
    assert len(list((tmp_path / "run" / "random_2_1").glob("*/model_weights_0.pt"))) == 1
    assert len(list((tmp_path / "run" / "random_4_4").glob("*/model_weights_0.pt"))) == 4
    with pytest.raises(ValueError, match=r"controls: expected Targets of the 3 test samples .*, got those of 2"):
        removal_test(
            SCORES, learn_mean, TRAIN, squared_error, TESTS, tmp_path / "run",
            controls=Targets(bank.values[:, :, :2], bank.indices), **options,
        )  # fmt: skip


def test_a_bank_of_controls_gives_as_many_runs_as_the_removals_have(tmp_path):
    subsets = [*itertools.islice(itertools.combinations(range(8), 6), 3)]
    retrain_subsets(learn_mean, TRAIN, tmp_path / "bank", subsets, num_runs_per_subset=2, seed=0, shared_seed=True)
    bank = calculate_targets(squared_error, tmp_path / "bank", TESTS)
    bank.values[:, 1] += 100
    common = (SCORES, learn_mean, TRAIN, squared_error, TESTS)
    options = {**FOUR, "fractions": [0.25]}
    result = removal_test(*common, tmp_path / "run", controls=bank, **options)
    assert torch.equal(result.controls[0, :3], bank.values[:, 0].double())
    with pytest.raises(ValueError, match=r"controls: expected 3 runs or more of each subset \(num_runs\), got 2"):
        removal_test(*common, tmp_path / "more", controls=bank, num_runs=3, **options)
    with pytest.raises(ValueError, match=r"seed: got None and controls.*pass the seed that the bank"):
        removal_test(*common, tmp_path / "new", controls=bank, **{**options, "seed": None})
    assert removal_test(*common, tmp_path / "run", controls=bank, **{**options, "seed": None}).rows == result.rows
    short = Targets(bank.values, torch.ones(3, 7, dtype=torch.bool).tril(5))
    with pytest.raises(ValueError, match=r"controls: their last position is 6, but there are 8 training samples"):
        removal_test(*common, tmp_path / "run", controls=short, **options)


def test_changed_scores_train_what_is_new_or_replace(tmp_path):
    first = removal_test(SCORES, learn_mean, TRAIN, squared_error, TESTS, tmp_path / "run", **FOUR)
    before = models(tmp_path / "run")
    fresh = removal_test(-SCORES, learn_mean, TRAIN, squared_error, TESTS, tmp_path / "fresh", **FOUR)
    changed = removal_test(-SCORES, learn_mean, TRAIN, squared_error, TESTS, tmp_path / "run", **FOUR)
    assert changed.rows == fresh.rows and before.items() < models(tmp_path / "run").items()
    assert {name.split("/")[0] for name in models(tmp_path / "run").keys() - before.keys()} == {"scores"}
    again = removal_test(SCORES, no_training, TRAIN, squared_error, TESTS, tmp_path / "run", **FOUR)
    assert again.rows == first.rows
    options = {**FOUR, "overwrite": True}
    replaced = removal_test(-SCORES, learn_mean, TRAIN, squared_error, TESTS, tmp_path / "run", **options)
    assert replaced.rows == fresh.rows and models(tmp_path / "run") == models(tmp_path / "fresh")


def test_a_name_longer_than_file_names_may_be(tmp_path):
    result = removal_test({"a" * 300: SCORES}, learn_mean, TRAIN, squared_error, TESTS, tmp_path, **FOUR)
    assert {row.method for row in result.rows} == {"a" * 300}


@pytest.mark.parametrize("question", [removal_test, brittleness])
def test_overwriting_that_was_cut_short_continues(question, tmp_path, monkeypatch):
    func, options = (squared_error, FOUR) if question is removal_test else (is_close, {"most": 0.5, "seed": 0})
    ask = partial(question, SCORES, learn_mean, TRAIN, func, TESTS, tmp_path, **options)
    ask()
    before = models(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # between a plan and its models
        patch.setattr(retrain_dir, "_discard_models", lambda folders: signal.raise_signal(signal.SIGINT))
        ask(overwrite=True)
    ask(overwrite=True)
    assert models(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("differing", "count", "seed"), [("seed", 8, 1), ("data_length", 9, 0), ("data_length", 7, 0)])
def test_another_seed_or_number_of_samples_needs_another_path(differing, count, seed, overwrite, tmp_path):
    """Overwriting would keep what all methods share, so no message advises it."""
    removal_test(SCORES, learn_mean, TRAIN, squared_error, TESTS, tmp_path, **FOUR)
    before = files(tmp_path)
    other = DataLoader(TensorDataset(LABELS[torch.arange(count) % 8, None], LABELS[torch.arange(count) % 8]))
    scores, options = SCORES[torch.arange(count) % 8], {**FOUR, "seed": seed, "overwrite": overwrite}
    with pytest.raises(DifferentRunError, match=rf"full already .*{differing}: .* in this call\. Use another path\.$"):
        removal_test(scores, no_training, TRAIN if count == 8 else other, squared_error, TESTS, tmp_path, **options)
    assert files(tmp_path) == before


def test_the_order_of_the_test_samples_changes_nothing(tmp_path):
    """Ties included, which are broken at random: the second test sample has three pairs of equal scores."""
    every = removal_test(SCORES, learn_mean, TRAIN, squared_error, TESTS, tmp_path / "every", **FOUR)
    some = removal_test(SCORES, learn_mean, TRAIN, squared_error, TESTS, tmp_path / "some", tests=[2, 1], **FOUR)
    assert torch.equal(some.values["scores"], every.values["scores"][..., [2, 1]]) and some.tests == [2, 1]


@pytest.mark.parametrize("form", ["float16", "bfloat16", "float64", "numpy", "memory map", "blocks"])
def test_every_form_of_scores(form, tmp_path):
    scores = (SCORES * 4).round()
    given = {"numpy": scores.numpy(), "blocks": [scores[:, :2], scores[:, 2:]]}.get(form)
    if form == "memory map":
        np.save(tmp_path / "scores.npy", scores.numpy())
        given = np.load(tmp_path / "scores.npy", mmap_mode="r")
    given = scores.to(getattr(torch, form)) if given is None else given
    expected = removal_test(scores, learn_mean, TRAIN, squared_error, TESTS, tmp_path / "expected", **FOUR)
    found = removal_test(given, learn_mean, TRAIN, squared_error, TESTS, tmp_path / "found", **FOUR)
    assert found.rows == expected.rows


BAD = {
    "fraction of one": ({"fractions": [1.0]}, r"fractions: expected shares in \(0, 1\), got 1\.0"),
    "less than a sample": ({"fractions": [0.05]}, r"0\.05 of 8 training samples is less than one; use 0\.12 or more"),
    "same size twice": ({"fractions": [0.25, 0.26]}, "different numbers of samples"),
    "one fraction": ({"fractions": 0.25}, r"fractions: expected a sequence of shares such as .*, got 0\.25"),
    "one test": ({"tests": 2}, "tests: expected a sequence of positions of test samples, got 2"),
    "no fractions": ({"fractions": []}, "expected one or more"),
    "few controls": ({"num_controls": 2}, "num_controls: expected an integer of at least 3"),
    "no such test": ({"tests": [3]}, r"tests: expected distinct positions of test samples, 0 to 2, got \[3\]"),
    "test twice": ({"tests": [1, 1]}, "tests: expected distinct positions"),
    "direction": ({"direction": "up"}, "direction: expected 'helpful', 'harmful' or 'both', got 'up'"),
    "confidence": ({"confidence": 95}, r"confidence: expected a number in \(0, 1\), got 95"),
    "transposed": ({"scores": SCORES.T}, "scores, 'scores': .*test sample of test_dataloader.*looks transposed"),
    "too few rows": ({"scores": SCORES[:7]}, "scores, 'scores': it has 7 rows, but the dataloader holds 8 training"),
    "too many rows": ({"scores": torch.cat([SCORES, SCORES])}, "has 16 rows, but the dataloader holds 8"),
    "not a number": ({"scores": {"a": SCORES * torch.nan}}, "scores, 'a': NaN or infinity at train sample 0"),
    "no methods": ({"scores": {}}, "scores: expected a matrix, or a dict of matrices by name"),
    "one pass": ({"fractions": iter([0.25])}, "fractions: expected a sequence of shares"),
    "None among fractions": ({"fractions": [0.25, None]}, r"fractions: expected shares in \(0, 1\), got None"),
    "fractions are None": ({"fractions": None}, "fractions: expected a sequence of shares"),
    "one long name": ({"scores": {"a" * 255: SCORES, "a" * 256: SCORES}}, "do not give distinct folder names"),
    "one folder": ({"scores": {"a b": SCORES, "a/b": SCORES}}, "do not give distinct folder names"),
    "name taken": ({"scores": {"full": SCORES}}, "do not give distinct folder names"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_named_and_nothing_is_written(kind, tmp_path):
    changed, message = BAD[kind]
    arguments = {**FOUR, "scores": SCORES, **changed}
    with pytest.raises(ValueError, match=message):
        removal_test(arguments.pop("scores"), learn_mean, TRAIN, squared_error, TESTS, tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_names_of_methods_stay_in_the_directory(tmp_path):
    scores = {"../../escape": SCORES, "TRAK (50), ε=1e-3": SCORES}
    result = removal_test(scores, learn_mean, TRAIN, squared_error, TESTS, tmp_path / "run", **FOUR)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert [row.method for row in result.rows][::2] == list(scores) and "&lt;" not in result._repr_html_()


@pytest.mark.parametrize(("num_tests", "num_controls"), [(1, 20), (5, 5), (10, 20), (50, 10)])
@pytest.mark.parametrize("shares", [(1.0, 1.0), (3.0, 0.3), (0.1, 2.0)])
def test_intervals_of_effects_cover(num_tests, num_controls, shares):
    """Effects of test samples, controls that all of them share, and noise: 1,000 draws."""
    of_tests, of_controls = shares
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hits = 0
    for _ in range(1000):
        tests = of_tests * draw(num_tests, 1) if num_tests > 1 else torch.zeros(1, 1, dtype=torch.float64)
        table = 2 + tests + of_controls * draw(1, num_controls) + draw(num_tests, num_controls)
        _, low, high = _crossed_mean(table, 0.95)
        hits += low <= 2 <= high
    assert 0.93 <= hits / 1000 <= 0.995


def brute_force(order, test):
    """Smallest number of removed samples that makes the answer wrong."""
    for count in range(1, 8):
        if error_without(order[:count], test) >= 2.5**2:
            return count
    return math.inf


def test_brittleness_is_what_brute_force_finds(tmp_path):
    scores = torch.stack([LABELS, -LABELS, LABELS], 1)  # removals push the mean one way: flips are monotonic
    two = DataLoader(TensorDataset(torch.zeros(2, 1), WANTED[:2]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = brittleness(scores[:, :2], learn_mean, TRAIN, is_close, two, tmp_path, most=0.9, seed=0)
    orders = [scores[:, test].argsort(descending=True).tolist() for test in range(2)]
    assert result.counts["scores"].tolist() == [brute_force(order, test) for test, order in enumerate(orders)]
    before = files(tmp_path)
    again = brittleness(scores[:, :2], learn_mean, TRAIN, is_close, two, tmp_path, most=0.9)
    assert files(tmp_path) == before and torch.equal(again.counts["random order"], result.counts["random order"])


BRITTLE = {
    "test samples": ({"tests": [0]}, {"tests": [1, 0]}),
    "other test samples": ({"tests": [0]}, {"tests": [1]}),
    "larger": ({"most": 0.4}, {"most": 0.9}),
    "smaller": ({"most": 0.9}, {"most": 0.5, "tests": [1]}),
    "methods": ({}, {"scores": {"scores": SCORES[:, :2], "other": SCORES[:, :2].flip(1)}}),
    "scores": ({}, {"scores": SCORES[:, :2].flip(0)}),
}


@pytest.mark.parametrize("name", BRITTLE)
def test_a_changed_question_of_brittleness_keeps_all_models(name, tmp_path):
    less, more = ({"scores": SCORES[:, :2], "most": 0.75, "seed": 0, **options} for options in BRITTLE[name])
    two = DataLoader(TensorDataset(torch.zeros(2, 1), WANTED[:2]))

    def ask(path, train_func, scores, **options):
        return brittleness(scores, train_func, TRAIN, is_close, two, tmp_path / path, **options).counts

    first = ask("run", learn_mean, **less)
    before = models(tmp_path / "run")
    grown, whole = ask("run", learn_mean, **more), ask("whole", learn_mean, **more)
    after = models(tmp_path / "run")
    assert before.items() <= after.items()
    assert all(torch.equal(grown[method], whole[method]) for method in whole)
    again = ask("run", no_training, **less)
    assert all(torch.equal(again[method], first[method]) for method in first)
    replaced = ask("run", learn_mean, **more, overwrite=True)
    assert all(torch.equal(replaced[method], whole[method]) for method in whole)
    assert models(tmp_path / "run") == models(tmp_path / "whole")


def test_twice_the_largest_removal_trains_no_size_again(tmp_path):
    never = DataLoader(TensorDataset(torch.zeros(1, 1), torch.tensor([4.0])))  # the mean of all: hard to flip
    options = {"tests": [0], "seed": 0}
    brittleness(SCORES[:, :1], learn_mean, TRAIN, is_close, never, tmp_path, most=0.375, **options)
    before = models(tmp_path)
    brittleness(SCORES[:, :1], learn_mean, TRAIN, is_close, never, tmp_path, most=0.75, **options)
    rows = [tuple(file.read_text().split()) for file in tmp_path.glob("*/round_*/*/indices.txt")]
    assert before.items() < models(tmp_path).items() and len(rows) == len({*rows})


def test_what_is_wrong_from_the_start_cannot_flip(tmp_path):
    with pytest.warns(UserWarning, match=r"1 of 3 test samples are mispredicted from the start \(first: 2\)"):
        result = brittleness(SCORES, learn_mean, TRAIN, is_close, TESTS, tmp_path, most=0.25, seed=0)
    assert result.counts["scores"].isnan().tolist() == [False, False, True]
    assert result.most == 2 and "test samples" in repr(result) and "<table>" in result._repr_html_()
    with pytest.raises(ValueError, match="correct_func: expected 1 for correctly predicted test samples"):
        brittleness(SCORES, learn_mean, TRAIN, squared_error, TESTS, tmp_path / "other", seed=0)


@pytest.mark.parametrize("most", [0, 1, 0.01, True, "half"])
def test_most_is_a_share(most, tmp_path):
    with pytest.raises(ValueError, match=r"most: expected a share in \(0, 1\) of at least one training sample"):
        brittleness(SCORES, learn_mean, TRAIN, is_close, TESTS, tmp_path / "run", most=most)
    with pytest.raises(ValueError, match="'random order' is reserved for the control"):
        brittleness({"random order": SCORES}, learn_mean, TRAIN, is_close, TESTS, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pictures_are_drawn_where_they_are_wanted(tmp_path):
    result = removal_test(
        {"a": SCORES, "b": -SCORES}, learn_mean, TRAIN, squared_error, TESTS, tmp_path, direction="both", **FOUR
    )
    left, right = Figure().subplots(1, 2)
    assert result.plot(left) is left and len(left.get_legend().get_texts()) == 5
    flips = brittleness(SCORES, learn_mean, TRAIN, is_close, TESTS, tmp_path / "flips", tests=[0, 1], seed=0)
    assert flips.plot(right) is right
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["scores", "random order"]


@pytest.mark.parametrize("bank", ["full", "a"])
def test_banks_that_are_links_are_not_followed(bank, tmp_path):
    """Neither does training write behind a link, nor does overwriting remove anything there."""
    path, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    arguments = ({"a": SCORES}, learn_mean, TRAIN, squared_error, TESTS, path)
    removal_test(*arguments, **FOUR)
    (path / bank).rename(elsewhere)
    (path / bank).symlink_to(elsewhere)
    before = files(elsewhere)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=f"{bank} is a link, and links are not followed"):
            removal_test(*arguments, overwrite=overwrite, **FOUR)
    assert files(elsewhere) == before
