"""The area under the ROC curve against scikit-learn and against all pairs, over dtypes, layouts, ties and classes."""

import itertools
import re

import numpy as np
import pytest
import sklearn.metrics
import torch

from dattri.benchmark.utils import flip_label
from dattri.metric import mislabel_detection_auc
from dattri.metric.mislabel import _counts, _counts_on_gpu
from dattri.metric.report import judge

KINDS = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
DTYPES = [torch.bfloat16, torch.float16, torch.uint16, torch.uint32, torch.uint64, torch.bool]
CASES = list(itertools.product((1, 2, 3, 50), (2, 7, 100), (0.1, 0.9)))
REFUSED = [
    np.ma.masked_array([1.0, 0.0], [True, False]), np.zeros(2, complex), torch.zeros(2, dtype=torch.float8_e4m3fn),
    np.array([1, None]), np.zeros(2, "f4,f4"),
]


def drawn(size, levels, share, seed=0):
    """Whole numbers with many ties, and labels of both classes where there are two samples."""
    generator = np.random.default_rng([seed, size, levels])
    truth = generator.random(size) < share
    truth[:2] = [True, False][:size]
    return generator.integers(0, levels, size), truth


def exact_auc(score, truth):
    """Share of pairs in the right order, ties counting half, in Python's exact integers."""
    wrong = [value for value, is_wrong in zip(score, truth, strict=True) if is_wrong]
    clean = [value for value, is_wrong in zip(score, truth, strict=True) if not is_wrong]
    return sum((a > b) + 0.5 * (a == b) for a in wrong for b in clean) / (len(wrong) * len(clean))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", "<>")
def test_arrays_against_scikit_learn(kind, order):
    for size, levels, share in [case for case in CASES if case[0] > 1]:
        values, truth = drawn(size, levels, share)
        score = values.astype(kind).astype(np.dtype(kind).newbyteorder(order))
        expected = sklearn.metrics.roc_curve(truth, score.astype(float), drop_intermediate=False)
        area = exact_auc(score.tolist(), truth.tolist())
        for layout in (score, np.repeat(score, 2)[::2], score[::-1].copy()[::-1], np.broadcast_to(score, size)):
            for labels in (truth, truth.astype(">i2"), truth.astype("f2")[::-1].copy()[::-1]):
                auc, curve = mislabel_detection_auc(layout, labels)
                assert all(map(np.array_equal, curve, expected))
                assert auc == sklearn.metrics.auc(curve.fpr, curve.tpr)
                assert auc == pytest.approx(area, rel=1e-12)
                assert all(part.dtype == torch.float64 for part in curve)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_against_scikit_learn(dtype):
    for size, levels, share in [case for case in CASES if case[0] > 1]:
        values, truth = drawn(size, levels, share)
        score = torch.from_numpy(values).to(dtype)
        expected = sklearn.metrics.roc_curve(truth, score.double(), drop_intermediate=False)
        for labels in (truth, torch.from_numpy(truth).to(dtype)):
            assert all(map(np.array_equal, mislabel_detection_auc(score, labels).curve, expected))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_accelerators_count_as_the_cpu_does(case):
    values, truth = drawn(*case)
    for dtype in (np.int64, np.float32, np.float64):
        on_gpu = _counts_on_gpu(torch.from_numpy(values.astype(dtype)), torch.from_numpy(truth))
        assert all(map(np.array_equal, _counts(values.astype(dtype), truth), on_gpu))


@pytest.mark.parametrize("center", [2**53, 2**62, -(2**60), 2**63 - 4])
@pytest.mark.parametrize("kind", ["i8", "u8", "list", "tensor"])
def test_integers_keep_their_order_beyond_float64(center, kind):
    if center < 0 and kind == "u8":
        center = 2**54
    score = [center + offset for offset in (0, 1, 2, 3, 1, 0)]
    truth = [0, 1, 1, 0, 0, 0]
    of_kind = {"list": list, "tensor": torch.tensor}.get(kind, lambda numbers: np.array(numbers, kind))(score)
    auc, curve = mislabel_detection_auc(of_kind, truth)
    assert auc == pytest.approx(exact_auc(score, truth), rel=1e-14)
    assert auc != pytest.approx(mislabel_detection_auc(np.array(score, float), truth).auc), "float64 sees other ties"
    assert curve.thresholds.tolist() == [np.inf, *map(float, sorted(set(score), reverse=True))]


def test_signs_of_zero_tie_and_tiny_differences_do_not():
    assert mislabel_detection_auc(np.array([-0.0, 0.0]), [0, 1]).auc == 0.5
    assert mislabel_detection_auc([0.1, np.nextafter(0.1, 1)], [0, 1]).auc == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_undefined_scores_are_named(dtype, bad):
    for place in (0, 3, 4):
        score = torch.arange(5.0).to(dtype)
        score[place] = bad
        with pytest.raises(ValueError, match=f"score: NaN or infinite at train sample {place}"):
            mislabel_detection_auc(score, [0, 1, 0, 1, 0])


def test_positions_are_met_with_the_line_that_turns_them_into_labels():
    _, flipped = flip_label(np.arange(100) % 10, p=0.1, seed=0)
    num_train, score = 100, torch.randn(100)
    for positions in (flipped, np.array(flipped), torch.tensor(flipped), list(range(100)), [0, 1, 2]):
        for function in (mislabel_detection_auc, judge):
            with pytest.raises(ValueError, match=r"^(score and )?ground_truth: expected") as error:
                function(score, positions)
            line = str(error.value).rpartition("flip_label, use ")[2]
            assert eval(line).nonzero().flatten().tolist() == flipped
    assert 0 <= mislabel_detection_auc(score, eval(line)).auc <= 1
    assert num_train == len(score)


@pytest.mark.parametrize("argument", ["score", "ground_truth"])
@pytest.mark.parametrize("values", REFUSED, ids=lambda values: f"{type(values).__name__} {values.dtype}")
def test_other_inputs_are_refused_by_name(argument, values):
    pair = {"score": [0.0, 1.0], "ground_truth": [0, 1]} | {argument: values}
    for function in (mislabel_detection_auc, judge):
        with pytest.raises((TypeError, ValueError), match=f"^{argument}: .*{re.escape(str(values.dtype))}"):
            function(**pair)
