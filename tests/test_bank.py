"""Subsets that the user names, the targets of all their models, and what is asked of them."""

import itertools
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import SUBSETS, files, loss_of_file, make_loader, train
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dattri import (
    EnsembleTarget,
    EnsembleTrainer,
    GroundTruth,
    Predictions,
    Targets,
    calculate_lds_ground_truth,
    calculate_targets,
    ceiling_share,
    compare_lds,
    judge,
    lds,
    lds_interval,
    read_ground_truth,
    retrain_lds,
    retrain_subsets,
)
from dattri.model_util.plan import LdsPlan

pytestmark = pytest.mark.usefixtures("one_thread")
TESTS = DataLoader(make_loader().dataset, batch_size=5)
MASK = torch.zeros(len(SUBSETS), 12, dtype=torch.bool)
for row, positions in zip(MASK, SUBSETS, strict=True):
    row[positions] = True


def bank(path, subsets=SUBSETS, runs=2, **options):
    retrain_subsets(train, make_loader(), path, subsets, runs, **{"seed": 3, **options})
    return path


def net():
    return nn.Linear(1, 1)


def quadratic(outputs, labels):
    return (outputs - labels).square().mean(-1)


FORMS = {
    "mask": MASK, "array mask": MASK.numpy(), "tensors": [torch.tensor(subset) for subset in SUBSETS],
    "arrays": [np.array(subset, dtype=np.uint8) for subset in SUBSETS],
    "reversed": [subset[::-1] for subset in SUBSETS],
    "tuple": tuple(map(tuple, SUBSETS)), "generator": (subset for subset in SUBSETS),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_subsets_is_the_same_run(form, tmp_path):
    assert files(bank(tmp_path / form, FORMS[form])) == files(bank(tmp_path / "lists"))


def test_each_model_is_trained_on_its_subset(tmp_path):
    def remember(dataloader):
        model = train(dataloader)
        model.register_buffer("seen", torch.cat([inputs for inputs, _ in dataloader]).sort(0).values)
        return model

    retrain_subsets(remember, make_loader(), tmp_path, SUBSETS, seed=0)
    for subset, positions in enumerate(SUBSETS):
        seen = torch.load(tmp_path / str(subset) / "model_weights_0.pt")["seen"][:, 0] * 12
        assert seen.round().int().tolist() == sorted(positions)
        assert [*map(int, (tmp_path / str(subset) / "indices.txt").read_text().split())] == sorted(positions)


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_parts_in_any_order(order, tmp_path):
    for part in order:
        bank(tmp_path / "parts", partition=(part, 3))
    assert files(tmp_path / "parts") == files(bank(tmp_path / "whole"))


def test_shared_seed_leaves_only_the_data_to_differ(tmp_path):
    same = [list(range(12)), list(range(12)), [0, 1]]
    bank(tmp_path / "shared", same, shared_seed=True)
    bank(tmp_path / "own", same)

    def state(kind, subset, run):
        return torch.load(tmp_path / kind / f"{subset}" / f"model_weights_{run}.pt")

    for run in range(2):
        assert all(torch.equal(a, b) for a, b in zip(*(state("shared", s, run).values() for s in (0, 1)), strict=True))
        assert not torch.equal(state("own", 0, run)["0.weight"], state("own", 1, run)["0.weight"])
    assert not torch.equal(state("shared", 0, 0)["0.weight"], state("shared", 0, 1)["0.weight"])


@pytest.mark.parametrize("shared", [False, True])
def test_lds_with_and_without_a_shared_seed_are_two_runs(shared, tmp_path):
    retrain_lds(train, make_loader(), tmp_path, 3, seed=0, shared_seed=shared)
    with pytest.raises(ValueError, match=f"shared_seed: {shared} there, {not shared} in this call"):
        retrain_lds(train, make_loader(), tmp_path, 3, seed=0, shared_seed=not shared)


def test_directories_without_the_field_go_on(monkeypatch, tmp_path):
    """Earlier versions recorded no shared_seed."""
    record = LdsPlan.record
    with monkeypatch.context() as earlier:
        earlier.setattr(LdsPlan, "record", lambda plan: {k: v for k, v in record(plan).items() if k != "shared_seed"})
        retrain_lds(train, make_loader(), tmp_path, 3, seed=0)
    assert "shared_seed" not in (tmp_path / "metadata.yml").read_text()
    before = files(tmp_path)
    (tmp_path / "1" / "model_weights_0.pt").unlink()
    retrain_lds(train, make_loader(), tmp_path, 3, seed=0)
    assert files(tmp_path) == before
    with pytest.raises(ValueError, match="shared_seed: False there, True in this call"):
        retrain_lds(train, make_loader(), tmp_path, 3, seed=0, shared_seed=True)


def test_other_subsets_are_another_run(tmp_path):
    before = files(bank(tmp_path))
    with pytest.raises(ValueError, match=r"subsets_sha256: .* there, .* in this call"):
        bank(tmp_path, [*SUBSETS[:-1], [1, 3, 5, 7, 9]])
    with pytest.raises(ValueError, match=r"mode: 'subsets' there, 'lds'"):
        retrain_lds(train, make_loader(), tmp_path, 6, seed=3)
    present = files(tmp_path)
    assert before.items() <= present.items() and len(present) == len(before)
    bank(tmp_path, [[0], [1]], overwrite=True)
    assert len(list(tmp_path.glob("subsets_*.npy"))) == 1 and len(list(tmp_path.glob("*/indices.txt"))) == 2


DAMAGE = {
    "missing": lambda file: file.unlink(),
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "empty": lambda file: file.write_bytes(b""),
    "other bit": lambda file: file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 16])),
    "other shape": lambda file: np.save(file, np.load(file)[:-1]),
    "other dtype": lambda file: np.save(file, np.load(file).astype(np.int64)),
    "objects": lambda file: np.save(file, np.array([print, {}], dtype=object), allow_pickle=True),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_subsets_are_refused(kind, tmp_path):
    bank(tmp_path)
    DAMAGE[kind](next(tmp_path.glob("subsets_*.npy")))
    before = files(tmp_path)
    for call in (lambda: bank(tmp_path), lambda: calculate_targets(loss_of_file, tmp_path, TESTS)):
        with pytest.raises(ValueError, match=r"subsets_\w+\.npy (cannot be read|does not hold the subsets)"):
            call()
    assert files(tmp_path) == before


@pytest.mark.parametrize("value", ["../../x", "0" * 63, "'" + "0" * 64 + "'", "[1]"])
def test_the_plan_names_no_other_file(value, tmp_path):
    file = bank(tmp_path) / "metadata.yml"
    lines = [f"subsets_sha256: {value}" if "subsets_sha256" in line else line for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"metadata\.yml cannot be used"):
        calculate_targets(loss_of_file, tmp_path, TESTS)


def test_trainers_of_many_models_take_subsets_of_any_sizes(tmp_path):
    trainer = EnsembleTrainer(net, quadratic_mean, optimizer=partial(torch.optim.SGD, lr=0.1), num_epochs=2)
    retrain_subsets(trainer, make_loader(), tmp_path / "many", SUBSETS, 2, seed=3)
    alone = trainer  # one call, one model
    retrain_subsets(lambda loader, seed: alone(loader, seed=seed), make_loader(), tmp_path / "one", SUBSETS, 2, seed=3)
    for subset, run in itertools.product(range(len(SUBSETS)), range(2)):
        name = f"{subset}/model_weights_{run}.pt"
        for a, b in zip(*(torch.load(tmp_path / kind / name).values() for kind in ("many", "one")), strict=True):
            assert torch.allclose(a, b, atol=1e-6)
    before = files(tmp_path / "many")
    (tmp_path / "many" / "3" / "model_weights_1.pt").unlink()
    retrain_subsets(trainer, make_loader(), tmp_path / "many", SUBSETS, 2, seed=3)
    assert files(tmp_path / "many") == before


def quadratic_mean(outputs, labels):
    return quadratic(outputs, labels).mean()


def test_targets_are_those_of_each_model(tmp_path):
    found = calculate_targets(loss_of_file, bank(tmp_path), TESTS, n_jobs=2)
    assert found.values.shape == (6, 2, 12) and [row.tolist() for row in found.indices] == [*map(sorted, SUBSETS)]
    for subset, run in itertools.product(range(6), range(2)):
        expected = loss_of_file(tmp_path / str(subset) / f"model_weights_{run}.pt", TESTS)
        assert torch.equal(found.values[subset, run], expected)
    truth = calculate_lds_ground_truth(loss_of_file, tmp_path, TESTS)
    assert torch.equal(truth.values, -found.values.double().mean(1).float())
    score = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    sums = MASK.double() @ score.double()
    expected = [scipy.stats.spearmanr(sums[:, test], truth.values[:, test]).statistic for test in range(12)]
    assert np.allclose(lds(score, truth).correlation, expected, atol=1e-6)


def test_an_interrupted_evaluation_goes_on(tmp_path):
    bank(tmp_path)
    calls = []

    def target(path, dataloader):
        if len(calls) == 7:
            raise RuntimeError("out of memory")
        calls.append(path)
        return loss_of_file(path, dataloader)

    with pytest.raises(RuntimeError, match="out of memory"):
        calculate_targets(target, tmp_path, TESTS, cache="loss")
    first = calls.copy()
    calls.clear()
    found = calculate_targets(target, tmp_path, TESTS, cache="loss")
    assert len(first) == 7 and len(calls) == 5 and not {*first} & {*calls}
    assert torch.equal(found.values, calculate_targets(loss_of_file, tmp_path, TESTS).values)
    assert sorted(file.name for file in (tmp_path / "0").glob("targets*")) == ["targets_loss_0.pt", "targets_loss_1.pt"]
    bank(tmp_path)  # what is kept is no model, and no leftover
    assert len(list(tmp_path.rglob("targets_loss_*.pt"))) == 12


def test_kept_values_are_resumed_to_the_same_bytes_by_evaluators_of_many(tmp_path):
    trainer = EnsembleTrainer(net, quadratic_mean, optimizer=partial(torch.optim.SGD, lr=0.1), num_epochs=1)
    retrain_subsets(trainer, make_loader(), tmp_path, SUBSETS, 2, seed=3)
    target = EnsembleTarget(net, quadratic)
    whole = calculate_targets(target, tmp_path, TESTS, cache="loss")
    before = files(tmp_path)
    for name in ("0/targets_loss_1.pt", "4/targets_loss_0.pt"):
        (tmp_path / name).unlink()
    assert torch.equal(calculate_targets(target, tmp_path, TESTS, cache="loss").values, whole.values)
    assert files(tmp_path) == before


def test_values_of_something_else_are_refused(tmp_path):
    bank(tmp_path)
    calculate_targets(loss_of_file, tmp_path, TESTS, cache="loss")
    other = DataLoader(TensorDataset(*(tensor + 1 for tensor in TESTS.dataset.tensors)), batch_size=5)
    with pytest.raises(ValueError, match=r"cache: .*targets_loss_0\.pt was made with other test samples .*'loss'"):
        calculate_targets(loss_of_file, tmp_path, other, cache="loss")
    with pytest.raises(ValueError, match="made with another target function"):
        calculate_targets(partial(loss_of_file, scale=2), tmp_path, TESTS, cache="loss")
    kept = tmp_path / "2" / "targets_loss_1.pt"
    kept.write_bytes(kept.read_bytes()[:-30])  # cut off: evaluated again
    calculate_targets(loss_of_file, tmp_path, TESTS, cache="loss")
    (tmp_path / "2" / "targets_loss_0.pt").replace(kept)
    with pytest.raises(ValueError, match=r"2/targets_loss_1\.pt was made with another checkpoint"):
        calculate_targets(loss_of_file, tmp_path, TESTS, cache="loss")
    bank(tmp_path, overwrite=True)
    assert not list(tmp_path.rglob("targets_*"))


@pytest.mark.parametrize("values", [torch.zeros(3), torch.zeros(()), "text", torch.full((12,), float("nan"))], ids=str)
def test_damaged_values_are_refused(tmp_path, values):
    bank(tmp_path)
    calculate_targets(loss_of_file, tmp_path, TESTS, cache="loss")
    kept = tmp_path / "2" / "targets_loss_1.pt"
    torch.save({**torch.load(kept), "values": values}, kept)
    with pytest.raises(ValueError, match=r"targets_loss_1\.pt does not hold a finite value for each of 12 test"):
        calculate_targets(loss_of_file, tmp_path, TESTS, cache="loss")


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64], ids=str)
def test_means_of_whole_numbers_are_not_rounded(dtype):
    """Whether predictions are right, for example: the mean of two runs is often a half."""
    draw = torch.Generator().manual_seed(0)
    right = torch.rand(8, 2, 5, generator=draw) < 0.5
    mask, score = torch.rand(8, 9, generator=draw) < 0.5, torch.randn(9, 5, generator=draw)
    exact, whole = Targets(right.double(), mask), Targets(right.to(dtype), mask)
    assert torch.equal(whole.ground_truth().values, exact.ground_truth().values)
    assert torch.equal(lds(score, whole).correlation, lds(score, exact).correlation)
    assert torch.equal(lds(score, Targets(right.numpy(), mask)).correlation, lds(score, exact).correlation)
    assert Targets(right.half(), mask).ground_truth().values.dtype == torch.float16


INDICES = {
    "matrix": torch.tensor([[0, 1], [2, 3], [1, 2]]),
    "lists": [torch.tensor([0]), torch.tensor([1, 2]), torch.tensor([3])],
    "mask": torch.eye(3, 5, dtype=torch.bool),
}


@pytest.mark.parametrize("form", INDICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_targets_have_a_file_and_two_halves(form, dtype, tmp_path):
    indices = INDICES[form]
    targets = Targets(torch.rand(3, 2, 4).to(dtype), indices)
    targets.save(tmp_path / "targets.pt")
    loaded = Targets.load(tmp_path / "targets.pt")
    assert torch.equal(loaded.values, targets.values) and loaded.values.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(loaded.indices, indices, strict=True))
    first, second = targets.split(0.4, seed=1)
    truths = targets.ground_truth().split(0.4, seed=1)
    assert [len(part.values) for part in (first, second)] == [1, 2]
    assert sorted(map(tuple, torch.cat([first.values, second.values]).flatten(1).tolist())) == sorted(
        map(tuple, targets.values.flatten(1).tolist())
    )
    for part, truth in zip((first, second), truths, strict=True):
        assert torch.equal(part.ground_truth().values, truth.values)
        assert all(torch.equal(a, b) for a, b in zip(part.indices, truth.indices, strict=True))
    assert "3 subsets of 2 runs x 4 test samples" in repr(targets) and str(dtype).split(".")[1] in targets._repr_html_()


BAD = {
    "two axes": ((torch.zeros(3, 2), torch.zeros(3, 2).long()), r"shape \(num_subsets, num_runs, num_test\)"),
    "removed positions": ((torch.zeros(3, 1, 2), torch.arange(3)), "removed positions"),
    "fewer subsets": ((torch.zeros(3, 1, 2), torch.zeros(2, 2).long()), "each of the 3 rows"),
    "one tensor": (torch.zeros(3, 1, 2), "pair of tensors"),
}


@pytest.mark.parametrize("kind", BAD)
def test_files_of_something_else_are_no_targets(kind, tmp_path):
    content, message = BAD[kind]
    torch.save(content, tmp_path / "targets.pt")
    with pytest.raises(ValueError, match=f"targets .*targets.pt.*{message}"):
        Targets.load(tmp_path / "targets.pt")
    with pytest.raises(FileNotFoundError, match="targets: file not found"):
        Targets.load(tmp_path / "other.pt")


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, True, "half", float("nan")])
def test_shares_of_a_split(fraction):
    with pytest.raises(ValueError, match=r"fraction: expected a share in \(0, 1\)"):
        GroundTruth(torch.zeros(4, 2), torch.arange(4)).split(fraction)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_predictions_are_judged_as_sums_are(dtype):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(30, 20, generator=generator) < 0.5
    score = torch.randint(-3, 4, (20, 7), generator=generator)
    truth = torch.randn(30, 7, generator=generator), mask
    said = Predictions((mask.double() @ score.double()).to(dtype))
    expected, found = lds(score.double(), truth), lds(said, truth)
    assert torch.equal(found.correlation.double(), expected.correlation.to(found.correlation.dtype).double())
    assert found.correlation.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert np.allclose(lds_interval(said, truth), lds_interval(score.double(), truth))


def test_predictions_that_do_not_fit(tmp_path):
    truth = torch.randn(30, 7), torch.rand(30, 20) < 0.5
    said = np.lib.format.open_memmap(tmp_path / "said.npy", "w+", np.float32, (30, 7), fortran_order=True)
    said[:] = np.random.default_rng(0).normal(size=(30, 7))
    assert torch.equal(lds(Predictions(said), truth).correlation, lds(Predictions(said.copy()), truth).correlation)
    with pytest.raises(ValueError, match=r"predictions of shape \(num_subsets, num_test\), \(30, 7\), got \(31, 7\)"):
        lds(Predictions(torch.zeros(31, 7)), truth)
    broken = torch.zeros(30, 7)
    broken[3, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity at subset 3, test sample 2"):
        lds(Predictions(broken), truth)
    with pytest.raises(ValueError, match=r"transposed, pass Predictions\(values\.T\)"):
        lds(Predictions(torch.zeros(7, 30)), truth)
    with pytest.raises(ValueError, match="expected 30 rows of predictions, one for each subset, got 29"):
        lds(Predictions([torch.zeros(29, 7)]), truth)
    few = torch.randn(10, 7), truth[1][:10]
    with pytest.raises(ValueError, match=r"it has 10 rows, one for each subset, .* or Predictions\(score\) if rows"):
        lds(torch.zeros(10, 7), few)


def test_all_that_judges_takes_predictions_and_every_run():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(40, 20, generator=generator) < 0.5
    score = torch.randn(20, 7, generator=generator, dtype=torch.float64)
    sums = mask.double() @ score
    values = -sums[:, None] + torch.randn(40, 3, 7, generator=generator, dtype=torch.float64)
    targets = Targets(values, mask)
    truth, said = targets.ground_truth(), Predictions(sums)
    assert compare_lds(said, score, truth) == (0, 0, 0, 1)
    assert np.allclose(ceiling_share(said, targets), ceiling_share(score, targets))
    ours, theirs = judge(said, targets), judge(score, targets)
    assert ours.summary == theirs.summary and "with 3 runs per subset; the scores reach" in ours.summary
    assert judge(score, truth).summary.splitlines()[0] == ours.summary.splitlines()[0]
    assert "ceiling unknown: it requires two or more runs" in judge(score, Targets(values[:, :1], mask)).summary
    assert "ceiling unknown: it requires the Targets of two" in judge(score, truth).summary
    assert ours.summary.splitlines()[0] in ours._repr_html_() and "data:image/png" in ours._repr_html_()
    with pytest.raises(ValueError, match=r"predictions are of subsets.*; the ground truth is for 'loo'"):
        judge(said, (values[:20, 0], torch.arange(20)))


def test_a_file_of_targets_is_a_ground_truth(tmp_path):
    targets = Targets(torch.rand(5, 2, 3), torch.tensor([[0, 1], [1, 2], [2, 3], [0, 3], [1, 3]]))
    targets.save(tmp_path / "targets.pt")
    found = read_ground_truth(tmp_path / "targets.pt")
    assert isinstance(found, Targets) and torch.equal(found.values, targets.values)
    targets.ground_truth().save(tmp_path / "truth.pt")
    assert isinstance(read_ground_truth(tmp_path / "truth.pt"), GroundTruth)


def test_more_runs_are_joined(tmp_path):
    one, two = (bank(tmp_path / name, runs=runs, seed=seed) for name, runs, seed in (("one", 1, 3), ("two", 2, 4)))
    first, more = (calculate_targets(loss_of_file, path, TESTS) for path in (one, two))
    joined = first.join(more)
    assert joined.values.shape == (6, 3, 12) and torch.equal(joined.values[:, 1:], more.values)
    assert torch.equal(joined.join(Targets(more.values, MASK)).values[:, 3:], more.values)
    with pytest.raises(ValueError, match=r"other: expected runs of the same subsets"):
        first.join(Targets(more.values.flip(0), more.indices[::-1]))
    with pytest.raises(ValueError, match="other: expected runs of the same subsets on the same test samples"):
        first.join(Targets(more.values[:, :, :5], more.indices))


def test_every_run_is_a_ground_truth_too():
    targets = Targets(torch.randn(20, 2, 3), torch.rand(20, 9) < 0.5)
    score = torch.randn(9, 3)
    assert torch.equal(lds(score, targets).correlation, lds(score, targets.ground_truth()).correlation)
    assert lds_interval(score, targets) == lds_interval(score, targets.ground_truth())


def test_ctrl_c_says_what_is_lost(tmp_path):
    def stopped(path, dataloader):
        if path.endswith("2/model_weights_0.pt"):
            raise KeyboardInterrupt
        return loss_of_file(path, dataloader)

    bank(tmp_path)
    with pytest.raises(KeyboardInterrupt, match=r"4 of 12 models are done\. No values were kept; .*cache=\"NAME\""):
        calculate_targets(stopped, tmp_path, TESTS)
    with pytest.raises(KeyboardInterrupt, match=r"4 of 12 models are done\. Repeat the call to continue"):
        calculate_targets(stopped, tmp_path, TESTS, cache="loss")


def test_a_trainer_in_place_of_a_target_function_is_named(tmp_path):
    bank(tmp_path, SUBSETS[:2])
    trainer = EnsembleTrainer(net, nn.functional.mse_loss, optimizer=partial(torch.optim.SGD, lr=0.1), num_epochs=1)
    with pytest.raises(TypeError, match="target_func: got EnsembleTrainer, which trains models"):
        calculate_targets(trainer, tmp_path, TESTS)


def test_an_argument_that_was_not_given_before_is_named(tmp_path):
    bank(tmp_path)
    with pytest.raises(ValueError, match=r"train_kwargs\.width: nothing there, .4. in this call"):
        bank(tmp_path, width=4)


CHOICES = [
    (slice(1, 3), [1, 2]),
    ([3, 0], [3, 0]),
    (range(3, 0, -2), [3, 1]),
    (torch.tensor([True, False, False, True]), [0, 3]),
    (None, [0, 1, 2, 3]),
]
NO_CHOICES = [[], [4], [-1], [1, 1], [0.5], [[0, 1]], torch.ones(3, dtype=torch.bool), slice(4, 9), torch.tensor(1)]


@pytest.mark.parametrize(("which", "rows"), CHOICES)
@pytest.mark.parametrize("indices", ["positions", "mask", "unequal", "tuple"])
def test_selecting_subsets_and_tests(which, rows, indices):
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    unequal = [row.nonzero()[:, 0] for row in mask]
    kinds = {"positions": mask.double().topk(3, 1).indices, "mask": mask, "unequal": unequal, "tuple": (*unequal,)}
    targets = Targets(torch.arange(40.0).view(4, 2, 5), kinds[indices])
    for pair in (targets, targets.ground_truth()):
        found = pair.select(which, tests=slice(1, None))
        assert type(found) is type(pair) and torch.equal(found.values, pair.values[rows][..., 1:])
        assert all(torch.equal(one, pair.indices[row]) for one, row in zip(found.indices, rows, strict=True))
        assert torch.equal(pair.select(tests=[4, 0]).values, pair.values[..., [4, 0]])


@pytest.mark.parametrize("which", NO_CHOICES)
@pytest.mark.parametrize("side", ["subsets", "tests"])
def test_selecting_nothing_that_exists(which, side):
    truth = GroundTruth(torch.zeros(4, 4), torch.arange(8).view(4, 2))
    with pytest.raises(ValueError, match=f"^{side}: expected"):
        truth.select(**{side: which})
