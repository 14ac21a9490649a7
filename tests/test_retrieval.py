"""What scores alone show, against all orders of equal scores, scikit-learn, and plain loops."""

import itertools
import warnings

import numpy as np
import pytest
import sklearn.metrics
import torch
from matplotlib.figure import Figure

import dattri.metric.retrieval as module
from dattri.metric import mislabel_detection_auc
from dattri.metric.retrieval import class_share, detection_curve, top_overlap
from dattri.metric.retrieval import retrieval_metrics as retrieve

GENERATOR = np.random.default_rng(0)
DTYPES = ["?", "i1", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">f4", ">i2"]


def in_order(hits, k):
    """Recall, reciprocal rank and average precision of relevant samples in one order."""
    ranks = np.flatnonzero(hits) + 1
    return sum(hits[:k]) / len(ranks), 1 / ranks[0], np.mean(np.arange(1, len(ranks) + 1) / ranks)


def orders(score):
    """All orders of samples in which no score is larger than the one before."""
    return [order for order in itertools.permutations(range(len(score))) if (np.diff(score[list(order)]) <= 0).all()]


def brute_force(score, relevant, k):
    """The mean over all orders of equal scores."""
    return np.mean([in_order(relevant[list(order)], k) for order in orders(score)], axis=0)


@pytest.mark.parametrize("levels", [1, 2, 3, 7])
@pytest.mark.parametrize("num_train", [1, 2, 5, 6])
def test_ties_are_the_mean_over_all_orders(num_train, levels):
    generator = np.random.default_rng([num_train, levels])
    score, relevant = generator.integers(0, levels, (num_train, 8)), generator.random((num_train, 8)) < 0.4
    relevant[0, ~relevant.any(0)] = True
    for k in {1, (num_train + 1) // 2, num_train}:
        expected = np.transpose([brute_force(s, r, k) for s, r in zip(score.T, relevant.T, strict=True)])
        np.testing.assert_allclose(torch.stack(retrieve(score.astype(float), relevant, k=k)), expected, rtol=1e-13)


@pytest.mark.parametrize("levels", [1, 2, 3, 9])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_shares_and_overlaps_are_the_mean_over_all_orders(levels, k):
    generator = np.random.default_rng([levels, k])
    a, b, labels = (generator.integers(0, high, (5, 6)) for high in (levels, 3, 2))
    for column in range(6):
        one, two = (generator.permutation(orders(side[:, column])) for side in (a, b))
        common = np.mean([len({*x[:k]} & {*y[:k]}) / k for x in one for y in two])
        result = top_overlap(a[:, [column]], b[:, [column]].astype(float), k=k)
        assert float(result.overlap) == pytest.approx(common, rel=1e-6)
        assert result.by_chance == k / 5
        share = np.mean([np.mean(labels[order[:k], column] == 1) for order in one])
        result = class_share(a[:, [column]].astype(float), labels[:, column], [1], k=k)
        assert float(result.share) == pytest.approx(share, rel=1e-12)
        assert float(result.by_chance) == np.mean(labels[:, column] == 1)


def test_without_ties_as_scikit_learn():
    score, relevant = GENERATOR.standard_normal((300, 40)), GENERATOR.random((300, 40)) < 0.05
    relevant[0] |= ~relevant.any(0)
    found = retrieve(score, relevant)
    each = [sklearn.metrics.average_precision_score(r, s) for r, s in zip(relevant.T, score.T, strict=True)]
    np.testing.assert_allclose(found.average_precision, each, rtol=1e-12)
    mean = sklearn.metrics.label_ranking_average_precision_score(relevant.T, score.T)
    assert float(found.average_precision.mean()) == pytest.approx(mean, rel=1e-12)
    first = relevant & (np.cumsum(relevant, 0) == 1)  # with one relevant sample both are the same
    alone = retrieve(score, first)
    hits = [sklearn.metrics.top_k_accuracy_score([c], s[None], k=10, labels=range(300))
            for c, s in zip(first.argmax(0), score.T, strict=True)]  # fmt: skip
    assert alone.recall.tolist() == hits
    np.testing.assert_allclose(alone.reciprocal_rank, alone.average_precision, rtol=1e-15)


def test_top_of_scores_without_ties_is_what_topk_gives():
    a, b = torch.randn(2, 200, 30, generator=torch.Generator().manual_seed(0))
    labels, tests = torch.arange(200) % 3, torch.arange(30) % 4
    tops = [side.topk(10, dim=0).indices for side in (a, b)]
    expected = [len({*x.tolist()} & {*y.tolist()}) / 10 for x, y in zip(*(top.T for top in tops), strict=True)]
    assert torch.equal(top_overlap(a, b).overlap, torch.tensor(expected))
    result = class_share(a, labels, tests)
    assert torch.equal(result.share, (labels[tops[0]] == tests).sum(0) / 10)
    assert result.by_chance.tolist() == [pytest.approx(n / 200, rel=1e-6) for n in [67, 67, 66, 0] * 7 + [67, 67]]
    assert torch.equal(top_overlap(a, a).overlap, torch.ones(30))
    assert torch.equal(top_overlap(a, b, k=200).overlap, torch.ones(30))


@pytest.mark.parametrize(("num_train", "num_relevant"), [(100000, 1), (100000, 3), (100000, 50000), (7, 7)])
def test_constant_scores_get_what_chance_gets(num_train, num_relevant):
    places = [range(num_relevant)]
    found = retrieve(np.zeros((num_train, 1)), places, k=7)
    draws = np.arange(1, num_train + 1)
    harmonic = np.sum(1 / draws)
    density = (num_relevant - 1) / max(1, num_train - 1)
    assert float(found.recall) == pytest.approx(7 / num_train, rel=1e-12)
    assert float(found.average_precision) == pytest.approx(
        (harmonic + density * (num_train - harmonic)) / num_train, rel=1e-12
    )
    tail = harmonic - np.sum(1 / draws[: num_relevant - 1])
    expected = num_relevant / (num_train - num_relevant + 1) * tail
    assert float(found.reciprocal_rank) == pytest.approx(expected, rel=1e-11)


def test_a_tie_far_down_has_all_its_digits():
    """Group of 2 at ranks 10**6 - 1 and 10**6, computed by hand."""
    score = np.arange(10**6, 0, -1).astype(float)
    score[-2:] = 1
    found = retrieve(score[:, None], [[10**6 - 1]])
    expected = (1 / (10**6 - 1) + 1e-6) / 2
    assert float(found.average_precision) == pytest.approx(expected, rel=1e-14, abs=0)
    assert float(found.reciprocal_rank) == pytest.approx(expected, rel=1e-14, abs=0)


@pytest.mark.parametrize("before", [0, 1, 63, 64, 65, 1000, 10**6])
@pytest.mark.parametrize("size", [1, 2, 3, 100, 10**5])
def test_harmonic_differences(before, size):
    expected = np.sum(np.longdouble(1) / np.arange(before + 1, before + size + 1))
    given = module._harmonic(*(torch.tensor([float(count)], dtype=torch.float64) for count in (before, size)))
    assert float(given) == pytest.approx(float(expected), rel=1e-13, abs=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_layouts(dtype, tmp_path):
    values = GENERATOR.integers(0, 2 if dtype == "?" else 9, (40, 15)).astype(dtype)
    other = GENERATOR.integers(0, 9, (40, 15))
    relevant = GENERATOR.random((40, 15)) < 0.2
    relevant[0] = True
    labels, tests = GENERATOR.integers(0, 3, 40), GENERATOR.integers(0, 3, 15)
    expected = [retrieve(values.astype("f8"), relevant), class_share(values.astype("f8"), labels, tests)]
    expected_overlap = top_overlap(values.astype("f8"), other)
    files = {}
    for order in "CF":
        kind = np.lib.format.open_memmap(tmp_path / f"{order}.npy", "w+", dtype, values.shape, order == "F")
        kind[:] = values
        kind.flush()
        files[order] = np.load(tmp_path / f"{order}.npy", mmap_mode="r")
    native = torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))
    arrays = [values, np.asfortranarray(values), values[::-1].copy()[::-1], *files.values()]
    for score in [*arrays, native, native.T.clone().T]:
        given = [retrieve(score, relevant), class_share(score, labels, tests)]
        for ours, theirs in zip(itertools.chain(*given), itertools.chain(*expected), strict=True):
            assert ours.dtype == torch.promote_types(torch.float32, native.dtype)
            torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-7, atol=0)
        overlap = top_overlap(score, other).overlap
        torch.testing.assert_close(overlap, expected_overlap.overlap.to(overlap.dtype), rtol=1e-7, atol=0)
    blocks = retrieve(iter(np.array_split(values, 4, axis=1)), relevant)
    assert all(map(torch.equal, blocks, retrieve(values, relevant)))


class Elsewhere:
    """What HDF5, Zarr and Dask arrays have in common: a shape, a dtype, and slices that are read when asked for."""

    def __init__(self, values, chunks):
        self.values, self.shape, self.dtype, self.chunks = values, values.shape, values.dtype, chunks

    def __getitem__(self, part):
        return self.values[part]


@pytest.mark.parametrize("chunks", [None, (40, 1), (1, 15), (7, 4), ()])
def test_arrays_of_other_libraries(chunks):
    values, labels, tests = GENERATOR.standard_normal((40, 15)), np.arange(40) % 3, np.arange(15) % 3
    relevant, there = values + GENERATOR.standard_normal((40, 15)) > 1, Elsewhere(values, chunks)
    relevant[0] = True
    assert all(map(torch.equal, retrieve(there, relevant), retrieve(values, relevant)))
    assert all(map(torch.equal, retrieve(there, Elsewhere(relevant, chunks)), retrieve(values, relevant)))
    assert torch.equal(class_share(there, labels, tests).share, class_share(values, labels, tests).share)
    assert torch.equal(top_overlap(there, -values).overlap, top_overlap(values, -values).overlap)
    assert torch.equal(top_overlap(-values, there).overlap, top_overlap(values, -values).overlap)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tensors(dtype):
    score = torch.randn(40, 15, generator=torch.Generator().manual_seed(0)).to(dtype)
    relevant = torch.rand(40, 15, generator=torch.Generator().manual_seed(0)) < 0.3
    assert all(map(torch.equal, retrieve(score, relevant), retrieve(score.float(), relevant)))
    assert torch.equal(top_overlap(score, score.float()).overlap, top_overlap(score.float(), score).overlap)


def test_large_integers_are_compared_exactly():
    score = np.array([[2**53], [2**53 + 1], [2**53 + 2]])
    assert float(retrieve(score, [[1]], k=1).reciprocal_rank) == 0.5
    assert float(top_overlap(score, -score, k=1).overlap) == 0


def test_the_order_of_training_samples_never_matters():
    score, relevant = GENERATOR.integers(0, 5, (200, 20)).astype("f8"), GENERATOR.random((200, 20)) < 0.1
    relevant[0] = True
    labels, tests = GENERATOR.integers(0, 3, 200), GENERATOR.integers(0, 3, 20)
    order = GENERATOR.permutation(200)
    assert all(map(torch.equal, retrieve(score, relevant), retrieve(score[order], relevant[order])))
    one, two = class_share(score, labels, tests), class_share(score[order], labels[order], tests)
    assert all(map(torch.equal, one, two))
    other = GENERATOR.integers(0, 3, (200, 20))
    assert torch.equal(top_overlap(score, other).overlap, top_overlap(score[order], other[order]).overlap)
    detected = [detection_curve(score[o, 0], relevant[o, 0]) for o in (order, slice(None))]
    assert all(map(np.array_equal, *detected))


def test_blocks_and_threads_change_nothing(monkeypatch):
    score, relevant = GENERATOR.integers(0, 50, (100, 70)).astype("f4"), GENERATOR.random((100, 70)) < 0.1
    relevant[0] = True
    other, labels, tests = GENERATOR.standard_normal((100, 70)), np.arange(100) % 5, np.arange(70) % 5

    def everything():
        return [*retrieve(score, relevant), *class_share(score, labels, tests), top_overlap(score, other).overlap]

    expected = everything()
    for name, size in [("_PART_BYTES", 8 * 100), ("_SLAB_BYTES", 8 * 100 * 7), ("_SLAB_BYTES", 8 * 100)]:
        monkeypatch.setattr(module, name, size)
        assert all(map(torch.equal, everything(), expected))


def test_forms_of_relevant():
    score = GENERATOR.standard_normal((6, 3))
    mask = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 1, 1], [0, 1, 0]], dtype=bool)
    lists = [[0, 1], [2, 4, 5], [4]]
    expected = retrieve(score, mask, k=2)
    for form in (
        torch.from_numpy(mask), mask.tolist(), list(mask), np.asfortranarray(mask), lists, tuple(map(tuple, lists)),
        [torch.tensor(part) for part in lists], [np.array(part, dtype=">u2") for part in lists],
        [np.array(part, dtype=float) for part in lists], [{0, 1}, {2, 4, 5}, range(4, 5)], [[1, 0], [5, 2, 4], [4]],
    ):  # fmt: skip
        assert all(map(torch.equal, retrieve(score, form, k=2), expected))
    rows = np.array([[0, 1], [2, 4], [4, 5]])
    assert all(map(torch.equal, retrieve(score, rows, k=2), retrieve(score, rows.tolist(), k=2)))


def test_undefined_is_nan_with_one_warning():
    with pytest.warns(UserWarning, match="2 of 3 test samples have no relevant") as caught:
        found = retrieve(np.eye(4, 3), [[], [1], []], k=1)
    assert len(caught) == 1
    assert all(part.isnan().tolist() == [True, False, True] for part in found)
    with pytest.warns(UserWarning, match="no mislabelled"):
        curve = detection_curve(np.arange(3.0), np.zeros(3))
    assert np.isnan([curve.auc, curve.ideal_auc]).all()
    assert curve.inspected[-1] == 1


SCORE, NAN, RIGHT = np.arange(12.0).reshape(4, 3), np.arange(12.0).reshape(4, 3), [[0], [1], [2, 3]]
NAN[2, 1] = np.nan
LABELS = ([0, 1, 0, 1], [0, 1, 0])
INVALID = {
    "k is 0": (ValueError, "k: expected 1 to 4", lambda: retrieve(SCORE, RIGHT, k=0)),
    "k is large": (ValueError, "k: expected 1 to 4.*got 10", lambda: class_share(SCORE, *LABELS)),
    "k is no number": (TypeError, "k: expected an integer, got 2.0", lambda: top_overlap(SCORE, SCORE, k=2.0)),
    "k is a boolean": (TypeError, "k: expected an integer", lambda: retrieve(SCORE, RIGHT, k=True)),
    "nan": (ValueError, "score: NaN or infinity at train sample 2, test sample 1", lambda: retrieve(NAN, RIGHT, k=1)),
    "nan in a tensor of columns": (
        ValueError, "score: NaN or infinity at train sample 2, test sample 1",
        lambda: class_share(iter([SCORE[:, :1], NAN[:, 1:]]), *LABELS, k=1),
    ),
    "infinity": (
        ValueError, "b: NaN or infinity at train sample 1, test sample 0",
        lambda: top_overlap(SCORE, np.where(SCORE == 3, np.inf, 0), k=1),
    ),
    "transposed": (ValueError, "one of them looks transposed", lambda: retrieve(SCORE.T, RIGHT, k=1)),
    "one column": (ValueError, r"score: expected a real matrix", lambda: retrieve(SCORE[:, 0], RIGHT, k=1)),
    "complex": (ValueError, "complex", lambda: retrieve(SCORE * 1j, RIGHT, k=1)),
    "mask with other rows": (ValueError, "has 3 rows, but score has 4", lambda: retrieve(SCORE, SCORE[1:] > 1, k=1)),
    "position beyond": (ValueError, "position 4 is out of range", lambda: retrieve(SCORE, [[4], [1], [2]], k=1)),
    "negative": (ValueError, "position -1 for test sample 1", lambda: retrieve(SCORE, [[0], [-1], [2]], k=1)),
    "named twice": (ValueError, "position 1 is listed more than once for test sample 2.*bool",
                    lambda: retrieve(SCORE, [[0], [1], [1, 1]], k=1)),
    "mask of integers": (ValueError, "pass it as booleans", lambda: retrieve(SCORE, (SCORE > 3).astype(int), k=1)),
    "fractions": (ValueError, "whole numbers", lambda: retrieve(SCORE, [[0.5], [1], [1]], k=1)),
    "one list": (ValueError, "got a list of int", lambda: retrieve(SCORE, [0, 1, 2], k=1)),
    "one vector": (ValueError, r"got shape \(3,\)", lambda: retrieve(SCORE, np.arange(3), k=1)),
    "ragged mask": (ValueError, "torch.bool of shape", lambda: retrieve(SCORE, [[True], [True, False], [True]], k=1)),
    "no test samples": (ValueError, "one or more test samples", lambda: retrieve(SCORE[:, :0], [], k=1)),
    "shapes of two": (ValueError, r"a and b:.*\(4, 3\) and \(4, 2\)", lambda: top_overlap(SCORE, SCORE[:, 1:], k=1)),
    "b is a vector": (ValueError, r"b: expected a real matrix .*\(4,\)", lambda: top_overlap(SCORE, SCORE[:, 1], k=1)),
    "b is a text": (TypeError, "b: got str", lambda: top_overlap(SCORE, "b.npy", k=1)),
    "few train labels": (ValueError, "train_labels: expected one label for each of the 4",
                         lambda: class_share(SCORE, [0, 1], [0, 1, 0], k=1)),
    "few test labels": (ValueError, r"score, test_labels: expected one column of score for each of the 2 test samples",
                        lambda: class_share(SCORE, [0, 1, 1, 0], [0, 1], k=1)),
    "labels of two kinds": (ValueError, "labels of one kind", lambda: class_share(SCORE, ["0"] * 4, [0, 1, 1], k=1)),
    "fractions as labels": (ValueError, "train_labels: expected a vector",
                            lambda: class_share(SCORE, np.ones(4), [1], k=1)),
    "detection of positions": (ValueError, "flip_label", lambda: detection_curve(np.arange(3), [0, 2, 1])),
    "detection of nan": (ValueError, "train sample 1", lambda: detection_curve([0, np.nan, 1], [0, 1, 1])),
}  # fmt: skip


@pytest.mark.parametrize("case", INVALID)
def test_invalid_input_is_refused(case):
    error, message, call = INVALID[case]
    with warnings.catch_warnings(), pytest.raises(error, match=message):
        warnings.simplefilter("error")
        call()


def test_labels_may_be_words():
    words = class_share(SCORE, ["a", "b", "a", "b"], np.array(["a", "b", "a"]), k=3)
    assert all(map(torch.equal, words, class_share(SCORE, torch.tensor([0, 1, 0, 1]).byte(), [0, 1, 0], k=3)))


@pytest.mark.parametrize(("size", "levels", "share"), [(2, 2, 0.5), (50, 5, 0.3), (400, 10000, 0.1), (400, 1, 0.1)])
def test_detection_curve(size, levels, share):
    generator = np.random.default_rng([size, levels])
    score, wrong = generator.integers(0, levels, size), generator.random(size) < share
    wrong[:2] = [True, False]
    curve = detection_curve(score, wrong)
    assert curve.inspected.dtype == curve.found.dtype == torch.float64
    thresholds = [np.inf, *np.unique(score)[::-1]]
    for inspected, found, threshold in zip(curve.inspected, curve.found, thresholds, strict=True):
        seen = score >= threshold
        assert (inspected, found) == (seen.sum() / size, (seen & wrong).sum() / wrong.sum())
    rate = wrong.mean()
    assert curve.auc == pytest.approx((1 - rate) * mislabel_detection_auc(score, wrong).auc + rate / 2, rel=1e-12)
    assert detection_curve(wrong.astype(int), wrong).auc == pytest.approx(curve.ideal_auc, rel=1e-12)
    assert detection_curve(np.zeros(size), wrong).auc == curve.random_auc == 0.5


def test_detection_curve_is_drawn(tmp_path):
    curve = detection_curve([0.1, 0.9, 0.3, 0.3], [0, 1, 1, 0])
    axes = curve.plot()
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[0, 0], [0.5, 1], [1, 1]], [[0, 0], [0.25, 0.5], [0.75, 1], [1, 1]], [[0, 0], [1, 1]],
    ]  # fmt: skip
    assert len({line.get_linestyle() for line in axes.lines}) == 3, "readable in grey"
    assert "share" in axes.get_xlabel()
    assert "share" in axes.get_ylabel()
    axes.figure.savefig(tmp_path / "curve.png")
    mine = Figure().subplots()
    assert curve.plot(mine) is mine
