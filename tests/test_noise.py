"""Planted faults: what is changed is what is said, nothing else is, and a seed repeats it in every kind of array."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from dattri.benchmark import noise, utils
from dattri.benchmark.noise import add_duplicates, add_feature_noise, flip_by_matrix, plant_check, plant_shortcut

GENERATOR = np.random.default_rng(0)
MATRIX = [[0.7, 0.3, 0.0], [0.1, 0.55, 0.35], [0.0, 0.0, 1.0]]
LABELS = GENERATOR.integers(0, 3, 101)
INPUTS = GENERATOR.standard_normal((101, 4, 3))
LABEL_KINDS = [
    np.asarray, lambda v: v.astype(np.int16), lambda v: v.astype(float), torch.from_numpy,
    lambda v: torch.tensor(v).int(), lambda v: torch.tensor(v).bfloat16(), lambda v: torch.tensor(v).byte(),
]  # fmt: skip
INPUT_KINDS = [
    np.asarray, lambda v: v.astype("f4"), lambda v: v.astype("f2"), torch.from_numpy, lambda v: torch.tensor(v).float(),
    lambda v: torch.tensor(v).bfloat16(), lambda v: torch.tensor(v).half(),
    lambda v: torch.tensor(v).mT.contiguous().mT, lambda v: torch.tensor(v, requires_grad=True),
]  # fmt: skip
pytestmark = pytest.mark.filterwarnings("error")


def copied(values):
    """A copy, of an array or a tensor."""
    return values.detach().clone() if isinstance(values, torch.Tensor) else values.copy()


def same(one, two):
    """Whether kind, dtype and all values are equal."""
    return type(one) is type(two) and one.dtype == two.dtype and one.shape == two.shape and bool((one == two).all())


def differing(one, two):
    """Positions of samples that are not equal."""
    parts = zip(one, two, strict=True)
    return [number for number, (a, b) in enumerate(parts) if not bool((a == b).all())]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 100, 1001])
@pytest.mark.parametrize("num_classes", [1, 2, 3, 10])
def test_counts_of_flips_are_rounded_from_the_expected_ones(size, num_classes):
    generator = np.random.default_rng([size, num_classes])
    matrix, label = generator.dirichlet(np.ones(num_classes), num_classes), generator.integers(0, num_classes, size)
    counts = []
    for seed in (0, 1):
        flipped, indices = flip_by_matrix(label, matrix, seed=seed)
        assert indices == np.flatnonzero(flipped != label).tolist()
        counts.append(np.zeros((num_classes, num_classes), dtype=int))
        np.add.at(counts[-1], (label, flipped), 1)
    assert np.array_equal(*counts), "the seed does not change the counts"
    expected = np.bincount(label, minlength=num_classes)[:, None] * matrix
    assert (np.abs(counts[0] - expected) < 1).all()


@pytest.mark.parametrize("total", [10, 29, 30, 100, 1000])
def test_counts_without_a_remainder_are_exact(total):
    for tenths in range(11):
        shares = np.array([1 - tenths / 10, tenths / 10])
        exact = np.array([(10 - tenths) * total, tenths * total]) / 10
        counts = noise._rounded(shares, total)
        assert counts.sum() == total
        if (exact == exact.round()).all():
            assert (counts == exact).all()
    assert noise._rounded(np.array([0.25, 0.25, 0.5]), 2).tolist() == [1, 0, 1], "of equal remainders the first"
    assert noise._rounded(np.full(4, 0.25), 2).tolist() == [1, 1, 0, 0]


def test_which_samples_are_flipped_is_even():
    label, flips = np.zeros(10, int), np.zeros(10)
    for seed in range(2000):
        flips[flip_by_matrix(label, [[0.7, 0.3], [0, 1]], seed=seed)[1]] += 1
    assert flips.sum() == 6000
    assert scipy.stats.chisquare(flips).pvalue > 1e-4


def test_labels_that_are_no_numbers_from_zero():
    words = np.array(["cat", "dog", "cat", "cat"])
    swapped, indices = flip_by_matrix(words, [[0, 1], [1, 0]], label_space=["cat", "dog"])
    assert swapped.tolist() == ["dog", "cat", "dog", "dog"]
    assert indices == [0, 1, 2, 3]
    space, matrix = torch.tensor([7, -1]), torch.tensor([[0.0, 1], [0, 1]])
    given, _ = flip_by_matrix(torch.tensor([7, -1, 7]), matrix, label_space=space)
    assert given.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("number", range(len(LABEL_KINDS)))
def test_labels_of_every_kind(number):
    label = LABEL_KINDS[number](LABELS)
    before = copied(label)
    flipped, indices = flip_by_matrix(label, MATRIX, seed=3)
    expected, places = flip_by_matrix(LABELS, MATRIX, seed=3)
    assert indices == places == differing(flipped, label)
    assert same(flipped, LABEL_KINDS[number](expected))
    assert same(label, before), "input untouched"
    planted, expected = (
        plant_shortcut(INPUTS, labels, target=2, where=0, value=9, p=0.3, seed=3) for labels in (label, LABELS)
    )
    assert same(planted.label, LABEL_KINDS[number](expected.label))
    assert same(label, before)


@pytest.mark.parametrize("number", range(len(INPUT_KINDS)))
def test_inputs_of_every_kind(number):
    inputs = INPUT_KINDS[number](INPUTS)
    before = copied(inputs)
    noisy, indices = add_feature_noise(inputs, 0.3, scale=2, seed=5)
    planted = plant_shortcut(inputs, LABELS, target=1, where=(slice(1, 3), 0), value=[8, -9], p=0.3, seed=5)
    (longer, labels), pairs = add_duplicates(inputs, LABELS, p=0.3, seed=5)
    assert same(inputs.detach() if isinstance(inputs, torch.Tensor) else inputs, before), "input untouched"
    assert type(noisy) is type(planted.inputs) is type(longer) is type(before)
    assert noisy.dtype == planted.inputs.dtype == longer.dtype == before.dtype
    assert len(indices) == len(planted.indices) == len(pairs) == 30
    assert differing(noisy, before) == indices
    assert differing(planted.inputs, before) == planted.indices == indices
    reference = add_feature_noise(INPUTS, 0.3, scale=2, seed=5)[0]
    np.testing.assert_allclose(noise.numpy_of(noisy), reference, rtol=0.02, atol=0.02)
    carriers = planted.inputs[indices]
    assert bool((carriers[:, 1, 0] == 8).all())
    assert bool((carriers[:, 2, 0] == -9).all())
    kept = np.ones((4, 3), dtype=bool)
    kept[1:3, 0] = False
    assert bool((carriers[:, kept] == before[indices][:, kept]).all()), "other places are as they were"
    assert same(longer[:101], before)
    assert all(bool((longer[copy] == before[original]).all()) for copy, original in pairs)
    assert all(labels[copy] == LABELS[original] for copy, original in pairs)
    assert [copy for copy, _ in pairs] == list(range(101, 131))
    assert len({original for _, original in pairs}) == 30
    everywhere = planted.shortcut.apply(inputs)
    assert same(everywhere[indices], carriers)
    assert type(everywhere) is type(before)


FUNCTIONS = {
    "flip_by_matrix": lambda seed: flip_by_matrix(LABELS, MATRIX, seed=seed)[1],
    "add_feature_noise": lambda seed: add_feature_noise(INPUTS, seed=seed)[0].tolist(),
    "add_duplicates": lambda seed: add_duplicates(INPUTS, seed=seed)[1],
    "plant_shortcut": lambda seed: plant_shortcut(INPUTS, LABELS, target=0, where=0, value=0, seed=seed)[2],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_seeds(name):
    call = FUNCTIONS[name]
    np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
    expected = np.random.rand(), torch.rand(1)  # noqa: NPY002
    np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
    assert call(1) == call(1) != call(2)
    assert call(None) != call(None)
    assert (np.random.rand(), torch.rand(1)) == expected, "no global state is used or changed"  # noqa: NPY002
    assert getattr(utils, name) is getattr(noise, name)


@pytest.mark.parametrize("p", [0, 0.004, 0.29, 0.5, 1])
def test_shares_are_exact(p):
    count = int(p * 101)
    assert len(add_feature_noise(INPUTS, p)[1]) == count
    assert len(add_duplicates(INPUTS, LABELS, p=p).pairs) == count
    planted = plant_shortcut(INPUTS, LABELS, target=0, where=(), value=5, p=p)
    assert len(planted.indices) == count
    assert (planted.label[planted.indices] == 0).all()
    others = np.setdiff1d(np.arange(101), planted.indices)
    assert (planted.label[others] == LABELS[others]).all()


def test_noise_has_the_spread_it_says():
    units = np.array([1e-3, 1, 1e5, 0])
    inputs = GENERATOR.standard_normal((20000, 4)) * units + 7
    noisy, indices = add_feature_noise(inputs, 1, scale=0.3, seed=0)
    added = noisy - inputs
    assert len(indices) == 20000
    np.testing.assert_allclose(added.std(0), 0.3 * inputs.std(0), rtol=0.02)
    assert (np.abs(added.mean(0)) <= 4 * 0.3 * units / np.sqrt(20000)).all()
    assert (added[:, 3] == 0).all(), "a constant feature stays"
    assert scipy.stats.kstest(added[:, 1] / (0.3 * inputs[:, 1].std()), "norm").pvalue > 1e-4
    assert same(add_feature_noise(inputs, 1, scale=0)[0], inputs)


@pytest.mark.parametrize("where", [0, -1, (1, 2), slice(1, 3), (..., 0), ([0, 1], [2, 0]), (), "mask", "tensor"])
def test_places(where):
    mask = GENERATOR.random((4, 3)) < 0.5
    where = {"mask": mask, "tensor": torch.from_numpy(mask)}.get(where, where) if isinstance(where, str) else where
    planted = plant_shortcut(INPUTS, LABELS, target=0, where=where, value=5.5, p=1)
    expected = INPUTS.copy()
    for sample in expected:
        sample[where] = 5.5
    assert same(planted.inputs, expected)
    tensors = plant_shortcut(torch.tensor(INPUTS).float(), LABELS, target=0, where=where, value=5.5, p=1)
    assert same(tensors.inputs, torch.tensor(expected).float())


def test_tokens_and_pixels():
    tokens = torch.randint(1, 50, (20, 6))
    planted = plant_shortcut(tokens, torch.arange(20) % 2, target=1, where=-1, value=49, p=0.5)
    assert planted.inputs.dtype == torch.int64
    assert bool((planted.inputs[planted.indices, -1] == 49).all())
    pixels = np.zeros((20, 3, 8, 8), dtype=np.uint8)
    patch = np.arange(12).reshape(3, 2, 2)
    planted = plant_shortcut(pixels, np.arange(20) % 2, target=1, where=np.s_[:, :2, -2:], value=patch, p=0.5)
    assert (planted.inputs[planted.indices, :, :2, -2:] == patch).all()
    assert planted.inputs.sum() == 10 * patch.sum()


@pytest.mark.parametrize(("without", "with_plant"), list(itertools.product(range(4), repeat=2)))
def test_plant_check_is_the_exact_test(without, with_plant):
    generator = np.random.default_rng([without, with_plant])
    before, after = generator.integers(0, without + 1, 40), generator.integers(0, with_plant + 1, 40)
    check = plant_check(before, after, 0)
    gained, lost = int(((before != 0) & (after == 0)).sum()), int(((before == 0) & (after != 0)).sum())
    shares = [(before == 0).mean(), (after == 0).mean()]
    assert check[:3] == pytest.approx([*shares, shares[1] - shares[0]])
    assert check[4:] == (gained, lost, 40)
    smaller, changes = min(gained, lost), gained + lost
    tail = sum(scipy.special.comb(changes, k, exact=True) for k in range(smaller + 1)) / 2**changes
    assert check.pvalue == pytest.approx(min(1, 2 * tail))
    assert check.shows == (check.pvalue < 0.05)
    assert ("no effect shows" in str(check)) == (not check.shows)
    swapped = plant_check(torch.tensor(after), before.tolist(), torch.zeros(40))
    assert swapped.difference == -check.difference
    assert swapped.pvalue == check.pvalue


def test_no_effect_is_rarely_seen_where_there_is_none():
    generator = np.random.default_rng(0)
    shown = [plant_check(generator.integers(0, 3, 60), generator.integers(0, 3, 60), 0).shows for _ in range(1000)]
    assert np.mean(shown) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


def test_targets_of_each_sample_and_words():
    assert plant_check(["a", "b", "c"], ["b", "b", "a"], ["b", "b", "b"])[:2] == (1 / 3, 2 / 3)


SHORTCUT = plant_shortcut(INPUTS, LABELS, target=0, where=0, value=0.5).shortcut
PLANT = {"target": 0, "where": 0, "value": 1}
INVALID = {
    "label of two axes": (ValueError, r"label: .*shape \(1, 101\)", lambda: flip_by_matrix(LABELS[None], MATRIX)),
    "matrix not square": (ValueError, r"matrix: .*square.*\(2, 3\)", lambda: flip_by_matrix(LABELS, MATRIX[:2])),
    "rows of counts": (ValueError, "matrix:.*in row 0; to turn", lambda: flip_by_matrix(LABELS, np.eye(3) * 5)),
    "negative shares": (ValueError, "not negative", lambda: flip_by_matrix([0, 1], [[1.5, -0.5], [0, 1]])),
    "nan shares": (ValueError, "in row 1", lambda: flip_by_matrix([0, 1], [[1, 0], [np.nan, 1]])),
    "label without a row": (ValueError, "label: 2 at sample", lambda: flip_by_matrix(LABELS, np.eye(2))),
    "label space of other size": (ValueError, "label_space: expected 3 distinct",
                                  lambda: flip_by_matrix(LABELS, MATRIX, label_space=[0, 1])),
    "label twice": (ValueError, "3 distinct", lambda: flip_by_matrix(LABELS, MATRIX, label_space=[0, 1, 1])),
    "label space of other dtype": (ValueError, "does not fit labels of dtype int64",
                                   lambda: flip_by_matrix(LABELS, MATRIX, label_space=[0, 1, 1.5])),
    "noise on integers": (ValueError, "inputs: expected floating-point.*int64", lambda: add_feature_noise(LABELS)),
    "noise on a list": (TypeError, "inputs: .*got list", lambda: add_feature_noise([0.5])),
    "noise on a number": (ValueError, "single number", lambda: add_feature_noise(np.array(0.5))),
    "noise on nan": (ValueError, "sample 1", lambda: add_feature_noise(np.array([0, np.nan]))),
    "negative scale": (ValueError, "scale: .*-1", lambda: add_feature_noise(INPUTS, scale=-1)),
    "scale is nan": (ValueError, "scale: .*nan", lambda: add_feature_noise(INPUTS, scale=float("nan"))),
    "scale is too large": (ValueError, "too large for float16",
                           lambda: add_feature_noise(INPUTS.astype("f2"), 1, scale=1e6)),
    "p is no share": (ValueError, "p: .*1.5", lambda: add_feature_noise(INPUTS, 1.5)),
    "p is nan": (ValueError, "p: .*nan", lambda: add_duplicates(INPUTS, p=float("nan"))),
    "p is negative": (ValueError, "p: .*-0.1", lambda: plant_shortcut(INPUTS, LABELS, p=-0.1, **PLANT)),
    "p is None": (ValueError, "p: expected a share.*None", lambda: add_duplicates(INPUTS, p=None)),
    "p is a word": (ValueError, "p: expected a share.*'half'", lambda: add_feature_noise(INPUTS, "half")),
    "scale is a word": (ValueError, "scale: expected 0 or more.*'1'", lambda: add_feature_noise(INPUTS, scale="1")),
    "negative seed": (ValueError, "seed: expected None or an integer", lambda: add_duplicates(INPUTS, seed=-1)),
    "seed is a number": (ValueError, "seed: .*0.5", lambda: flip_by_matrix(LABELS, MATRIX, seed=0.5)),
    "seed of labels": (ValueError, "seed: .*-1", lambda: utils.flip_label(LABELS, p=0.5, seed=-1)),
    "no tensors": (ValueError, "one or more of the same length, got 0", add_duplicates),
    "two lengths": (ValueError, r"of lengths \[101, 3\]", lambda: add_duplicates(INPUTS, LABELS[:3])),
    "a list": (TypeError, r"tensors\[1\]: .*got list", lambda: add_duplicates(INPUTS, [1])),
    "lists to plant in": (TypeError, "inputs: .*got list", lambda: plant_shortcut([[1]], [0], **PLANT)),
    "too few labels": (ValueError, "inputs and label", lambda: plant_shortcut(INPUTS, LABELS[1:], **PLANT)),
    "no features": (ValueError, "num_features", lambda: plant_shortcut(INPUTS[:, 0, 0], LABELS, **PLANT)),
    "no such label": (ValueError, r"target: 5 is none of the labels \[0, 1, 2\]",
                      lambda: plant_shortcut(INPUTS, LABELS, **{**PLANT, "target": 5})),
    "no such place": (ValueError, r"where and value: .*\(4, 3\)",
                      lambda: plant_shortcut(INPUTS, LABELS, **{**PLANT, "where": 4})),
    "an empty place": (ValueError, "empty place",
                       lambda: plant_shortcut(INPUTS, LABELS, **{**PLANT, "where": slice(2, 2)})),
    "value of other shape": (ValueError, r"a value of shape \(2,\)",
                             lambda: plant_shortcut(INPUTS, LABELS, **{**PLANT, "value": [1, 2]})),
    "value is nan": (ValueError, "value: nan does not fit",
                     lambda: plant_shortcut(INPUTS, LABELS, **{**PLANT, "value": np.nan})),
    "value is too large": (ValueError, "value: 300 does not fit inputs of dtype uint8",
                           lambda: plant_shortcut(INPUTS.astype("u1"), LABELS, **{**PLANT, "value": 300})),
    "samples of other shape": (ValueError, r"expected samples of shape \(4, 3\), got \(3,\)",
                               lambda: SHORTCUT.apply(INPUTS[:, 0])),
    "value of other dtype": (ValueError, "value: 0.5 does not fit", lambda: SHORTCUT.apply(INPUTS.astype(int))),
    "predictions of two lengths": (ValueError, "without and with_plant", lambda: plant_check([0], [0, 1], 0)),
    "no predictions": (ValueError, "without and with_plant", lambda: plant_check([], [], 0)),
    "logits": (ValueError, "argmax", lambda: plant_check(INPUTS[:, 0], INPUTS[:, 0], 0)),
    "targets of other length": (ValueError, r"each of 2 samples, got \(3,\)",
                                lambda: plant_check([0, 1], [0, 1], [0] * 3)),
}  # fmt: skip


@pytest.mark.parametrize("case", INVALID)
def test_invalid_input_is_refused(case):
    error, message, call = INVALID[case]
    with np.errstate(invalid="ignore"), pytest.raises(error, match=message):
        call()
