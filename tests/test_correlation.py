"""Correlations over a grid of conditions: exact sums, any order, any number of threads, any form of subsets."""

import math
import warnings
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch

from dattri.metric import lds, lds_interval, loo_corr, loo_interval

NUM_TRAIN, NUM_TEST, NUM_SUBSETS = 60, 4, 25


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def halves(seed=0, num_train=NUM_TRAIN, num_subsets=NUM_SUBSETS):
    draw = generator(seed)
    return torch.stack([torch.randperm(num_train, generator=draw)[: num_train // 2] for _ in range(num_subsets)])


def with_one(value, seed=0):
    """Normal scores, but one of this size."""
    score = torch.randn(NUM_TRAIN, NUM_TEST, generator=generator(seed), dtype=torch.float64)
    score[3] = value
    return score


def whole(low, high, seed=0):
    return torch.randint(low, high, (NUM_TRAIN, NUM_TEST), generator=generator(seed))


def tenths():
    return whole(-9, 10).double() / 10


def random_mask():
    return torch.rand(NUM_SUBSETS, NUM_TRAIN) < 0.5


normal = partial(with_one, 0.5)
SIZES = (1e16, 1e20, 1e28, -1e28, 1e35, 1e100, 1e305, 1.7e308)
KINDS = {
    "normal": normal,
    "float32": lambda: normal().float(),
    "half": lambda: normal().half(),
    "bfloat16": lambda: normal().bfloat16(),
    "tenths": tenths,
    "tenths in float32": lambda: tenths().float(),
    "thirds": lambda: whole(0, 4).double() / 3,
    "ones and zeros": lambda: whole(0, 2).double(),
    "bool": lambda: whole(0, 2).bool(),
    "int8": lambda: whole(-100, 100).to(torch.int8),
    "int64 beyond float64": lambda: whole(-(2**62), 2**62),
    "int64 that differ in the last digit": lambda: 2**60 + whole(0, 2),
    "heavy tails": lambda: normal() ** 15,
    "cancelling": lambda: torch.cat([normal() * 1e17, -normal(1) * 1e17]).view(2, -1, NUM_TEST).sum(0) + normal(2),
    "tiny": lambda: normal() * 1e-310,
    "columns of very different size": lambda: normal() * torch.tensor([1e-200, 1.0, 1e12, 1e250], dtype=torch.float64),
    **{f"one of {value:.0e}": partial(with_one, value) for value in SIZES},
    "one of 1e35 in float32": lambda: with_one(1e35).float(),
}


def assert_as_scipy(result, ours, theirs, statistic):
    """Every column, statistic and p-value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = zip(ours.double().T, theirs.double().T, strict=True)
        expected = [tuple(statistic(left.numpy(), right.numpy())) for left, right in pairs]
    np.testing.assert_allclose(torch.stack(result, 1), expected, atol=1e-6)


def some(draw, *shape, ties):
    values = torch.randn(*shape, generator=draw)
    return (values * 2).round() if ties else values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_models", "num_test", "ties"), [(20, 5, False), (20, 5, True), (7, 1, True), (3, 4, False), (50, 3, True)]
)
def test_as_scipy(dtype, num_models, num_test, ties):
    draw = generator(1)
    score = some(draw, NUM_TRAIN, num_test, ties=ties).to(dtype)
    subsets, targets = halves(2, num_subsets=num_models), some(draw, num_models, num_test, ties=ties)
    removed = torch.randperm(NUM_TRAIN, generator=draw)[:num_models]
    before = score.clone(), targets.clone(), subsets.clone(), removed.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranked, linear = lds(score, (targets, subsets)), loo_corr(score, (targets, removed))
    assert_as_scipy(ranked, score.double()[subsets].sum(1), targets, scipy.stats.spearmanr)
    assert_as_scipy(linear, score[removed], targets, scipy.stats.pearsonr)
    assert ranked.correlation.dtype == linear.pvalue.dtype == torch.promote_types(dtype, torch.float32)
    assert all(map(torch.equal, before, (score, targets, subsets, removed)))


def test_two_models_and_one():
    score, targets, pair = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1])
    with pytest.warns(UserWarning, match="at least 3 subsets"):
        two = lds(score, (targets, pair[:, None]))
    assert two.correlation.item() == 1
    assert two.pvalue.isnan().all()
    assert_as_scipy(loo_corr(score, (targets, pair)), score, targets, scipy.stats.pearsonr)
    for metric, one in [(lds, torch.tensor([[0]])), (loo_corr, torch.tensor([0]))]:
        with pytest.warns(UserWarning, match="fewer than 2") as caught:
            single = metric(torch.ones(2, 1), (torch.ones(1, 1), one))
        assert len(caught) == 1
        assert torch.stack(single).isnan().all()


@pytest.mark.parametrize(("shift", "dtype"), [(1e4, torch.float32), (1e8, torch.float64), (1e12, torch.float64)])
def test_large_means_are_no_harm(shift, dtype):
    values = torch.randn(500, 3, generator=generator(1), dtype=torch.float64)
    x, y = (values + shift).to(dtype), (values.roll(1, 0) + 0.3 * values - shift).to(dtype)
    assert_as_scipy(loo_corr(x, (y, torch.arange(500))), x, y, scipy.stats.pearsonr)


def test_extreme_sizes_are_no_harm():
    values = torch.randn(500, 3, generator=generator(1), dtype=torch.float64)
    x, y = values * torch.tensor([1e-160, 1.0, 1e150], dtype=torch.float64), values.roll(1, 0) + values
    assert_as_scipy(loo_corr(x, (y, torch.arange(500))), x, y, scipy.stats.pearsonr)


EXTREME = {
    "near the end of float64": lambda draw: draw.choice([1e308, -1.5e308, 1.7e308], 30),
    "of one sign near the end": lambda draw: 1.7e308 - 1e307 * draw.random(30),
    "multiples of the smallest number": lambda draw: 5e-324 * draw.integers(0, 5, 30),
    "a mean of 1e15": lambda draw: 1e15 + draw.normal(size=30),
    "last bits": lambda draw: 1 + draw.integers(0, 4, 30) * 2.0**-52,
    "one outlier": lambda draw: np.append(draw.normal(size=29), 1e200),
}


def exact_pearson(x, y):
    """Pearson's correlation in rational numbers."""
    a, b = ([Fraction(float(value)) for value in values] for values in (x, y))
    a, b = ([value - sum(values) / len(values) for value in values] for values in (a, b))
    product = sum(left * right for left, right in zip(a, b, strict=True))
    share = product * product / (sum(left * left for left in a) * sum(right * right for right in b))
    return math.sqrt(share) * (1 if product > 0 else -1)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e300])
@pytest.mark.parametrize("name", EXTREME)
def test_loo_correlations_are_exact_at_any_scale(name, scale):
    draw = np.random.default_rng(0)
    x, y, removed = EXTREME[name](draw), scale * draw.normal(size=30), np.arange(30)
    pair = x[:, None], (y[:, None], removed)
    assert float(loo_corr(*pair).correlation) == pytest.approx(exact_pearson(x, y), abs=1e-14)
    assert loo_interval(*pair).mean == pytest.approx(exact_pearson(x, y), abs=1e-14)


SCORE = torch.tensor([[4.0, 0.0], [2.0, 1.0], [1.0, 2.0], [0.0, 5.0]])
TARGETS, PAIRS = torch.tensor([[-0.1, -0.9], [-0.4, -0.2], [-0.8, -0.5]]), torch.tensor([[0, 1], [1, 2], [2, 3]])
NAN = torch.tensor([[0.0, 0.0], [torch.nan, 0.0], [0.0, 0.0], [0.0, 0.0]])
WRONG = {
    "transposed": (lds, SCORE.T, (TARGETS, PAIRS), "transposed"),
    "more columns": (lds, torch.zeros(4, 3), (TARGETS, PAIRS), "one column per test"),
    "fewer rows": (lds, SCORE[:3], (TARGETS, PAIRS), "3 rows"),
    "a vector": (lds, SCORE[:, 0], (TARGETS, PAIRS), "real matrix"),
    "no pair": (lds, SCORE, TARGETS, "pair"),
    "positions instead of subsets": (lds, SCORE, (TARGETS, PAIRS[:, 0]), "expected subsets as positions"),
    "fewer targets": (lds, SCORE, (TARGETS[:2], PAIRS), "one subset for each row"),
    "nan in scores": (lds, SCORE + NAN, (TARGETS, PAIRS), "score: NaN.*train sample 1, test sample 0"),
    "nan in targets": (lds, SCORE, (TARGETS + NAN[:3], PAIRS), "ground_truth: NaN.*subset 1, test sample 0"),
    "subsets instead of positions": (loo_corr, SCORE, (TARGETS, PAIRS), "expected targets of shape"),
    "a mask": (loo_corr, SCORE, (TARGETS, torch.tensor([True, False, True])), "mask"),
    "fractions": (loo_corr, SCORE, (TARGETS, torch.tensor([0.5, 1, 2])), "whole numbers"),
    "infinity": (loo_corr, SCORE / 0, (TARGETS, torch.tensor([1, 0, 3])), "score: NaN or infinity"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_named(name):
    metric, score, truth, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        metric(score, truth)


def exact_lds(score, targets, subsets):
    """Sums by `math.fsum`, or of integers without bound, correlated by scipy column by column."""
    correlations = []
    add = sum if not score.is_floating_point() else math.fsum
    for column, target in zip(score.T, targets.T, strict=True):
        values = column.double().tolist() if score.is_floating_point() else column.long().tolist()
        sums = [float(add(values[row] for row in subset)) for subset in subsets]
        correlations.append(scipy.stats.spearmanr(sums, target).statistic)
    return correlations


@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_exact(kind):
    score, subsets = KINDS[kind](), halves()
    targets = torch.randn(NUM_SUBSETS, NUM_TEST, generator=generator(9), dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        computed = lds(score, (targets, subsets)).correlation
        expected = exact_lds(score, targets.numpy(), subsets.tolist())
    np.testing.assert_allclose(computed, expected, atol=1e-6 if computed.dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_training_samples_does_not_matter(kind):
    score, subsets = KINDS[kind](), halves()
    targets = torch.randn(NUM_SUBSETS, NUM_TEST, generator=generator(9))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = lds(score, (targets, subsets)).correlation
        for seed in range(40):
            order = torch.randperm(NUM_TRAIN, generator=generator(seed))
            moved = order.argsort()[subsets]
            assert torch.equal(lds(score[order], (targets, moved)).correlation.nan_to_num(), expected.nan_to_num())


def test_sums_too_large_for_float64_are_compared_all_the_same():
    score = normal() * 1e307
    targets = torch.randn(NUM_SUBSETS, NUM_TEST, generator=generator(9))
    computed = lds(score, (targets, halves())).correlation
    np.testing.assert_allclose(computed, lds(score / 2.0**64, (targets, halves())).correlation)
    score[0, 2] = 5e-324
    with pytest.raises(ValueError, match="test sample 2 has both scores near"):
        lds(score, (targets, halves()))


def test_bytes_do_not_depend_on_threads():
    draw = generator()
    score = torch.randn(3000, 80, generator=draw)
    score[:, ::3] = (score[:, ::3] * 5).round() / 10
    subsets = halves(num_train=3000, num_subsets=100)
    targets, removed = torch.randn(100, 80, generator=draw), torch.randn(3000, 80, generator=draw)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            several = [*lds(score, (targets, subsets)), *loo_corr(score, (removed, torch.arange(3000)))]
            results.append([*(part.numpy().tobytes() for part in several), lds_interval(score, (targets, subsets))])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1] == results[2]


def test_subsets_of_unequal_size_and_masks():
    draw = generator(3)
    score = torch.randn(NUM_TRAIN, NUM_TEST, generator=draw, dtype=torch.float64)
    mask = torch.rand(NUM_SUBSETS, NUM_TRAIN, generator=draw) < torch.linspace(0.1, 0.9, NUM_SUBSETS)[:, None]
    targets = torch.randn(NUM_SUBSETS, NUM_TEST, generator=draw, dtype=torch.float64)
    vectors = [row.nonzero().flatten() for row in mask]
    expected = [scipy.stats.spearmanr(mask.double() @ score[:, test], targets[:, test]) for test in range(NUM_TEST)]
    for subsets in (mask, mask.numpy(), mask.tolist(), vectors, [vector.numpy() for vector in vectors]):
        computed = lds(score, (targets, subsets))
        np.testing.assert_allclose(torch.stack(computed, 1), expected, atol=1e-12)
        assert lds_interval(score, (targets, subsets)) == lds_interval(score, (targets, mask))


WRONG_SUBSETS = {
    "mask of integers": (lambda: random_mask().long(), "looks like a mask"),
    "mask of floats": (lambda: random_mask().double(), "looks like a mask"),
    "mask of bytes": (lambda: random_mask().byte().numpy(), "looks like a mask"),
    "mask of integers, transposed": (lambda: torch.ones(NUM_TRAIN, NUM_SUBSETS).long(), "one subset for each row"),
    "mask, transposed": (lambda: torch.ones(NUM_TRAIN, NUM_SUBSETS).bool(), "one subset for each row"),
    "mask of other data": (lambda: torch.ones(NUM_SUBSETS, NUM_TRAIN - 1).bool(), "59 columns"),
    "a position twice": (lambda: torch.cat([halves(), halves()[:, :1]], 1), "more than once"),
    "beyond the samples": (lambda: halves() + 31, "names positions 31 to 90"),
    "negative": (lambda: halves() - 1, "names positions -1 to"),
    "fractions": (lambda: halves() / 2, "whole numbers"),
    "infinite": (lambda: halves() + torch.inf, "whole numbers"),
    "fewer": (lambda: halves()[1:], "one subset for each row"),
}


@pytest.mark.parametrize("name", WRONG_SUBSETS)
@pytest.mark.parametrize("metric", [lds, lds_interval])
def test_subsets_that_are_no_subsets(name, metric):
    make, message = WRONG_SUBSETS[name]
    with pytest.raises(ValueError, match=message):
        metric(normal(), (torch.randn(NUM_SUBSETS, NUM_TEST), make()))


REFUSED = {
    "masked": lambda score: np.ma.masked_array(score, score > 0),
    "longdouble": lambda score: score.astype(np.longdouble),
    "complex": lambda score: score.astype(complex),
    "object": lambda score: score.astype(object),
    "text": lambda score: score.astype(str),
    "structured": lambda score: score.view([("a", "f8")]),
    "float8": lambda score: torch.from_numpy(score).to(torch.float8_e4m3fn),
    "sparse": lambda score: torch.from_numpy(score).to_sparse(),
    "meta": lambda score: torch.from_numpy(score).to("meta"),
    "nested": lambda score: torch.nested.nested_tensor(list(torch.from_numpy(score))),
    "quantised": lambda score: torch.quantize_per_tensor(torch.from_numpy(score).float(), 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("way", ["whole", "in blocks"])
def test_scores_that_are_no_real_numbers_are_refused_by_name(name, way):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bad = REFUSED[name](normal().numpy())
    score = bad if way == "whole" else iter([bad])
    truths = {lds: (torch.randn(NUM_SUBSETS, NUM_TEST), halves()), loo_corr: (normal(), torch.arange(NUM_TRAIN))}
    for metric, truth in truths.items():
        with pytest.raises((TypeError, ValueError), match=r"^score: "):
            metric(score, truth)


@pytest.mark.parametrize(
    ("num_subsets", "num_tests", "shared"), [(10, 5, 0.0), (10, 50, 0.5), (20, 50, 0.0), (50, 5, 1.0)]
)
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_an_interval_holds_the_true_mean(num_subsets, num_tests, shared, correlation):
    """Scores and targets that are normal with a known correlation; `perf/coverage.py` has the whole grid."""
    pearson = 2 * math.sin(math.pi * correlation / 6)
    draw, held, repeats = np.random.default_rng(5), 0, 200
    single = torch.eye(num_subsets, dtype=torch.bool)  # each subset is one sample, so its sum is its score
    for _ in range(repeats):
        common, own = draw.standard_normal((2, num_subsets, 1)), draw.standard_normal((2, num_subsets, num_tests))
        x, noise = torch.from_numpy(shared**0.5 * common + (1 - shared) ** 0.5 * own)
        interval = lds_interval(x, (pearson * x + math.sqrt(1 - pearson**2) * noise, single))
        held += interval.low <= correlation <= interval.high
    assert held >= 0.9 * repeats
