"""Intervals, comparisons and ceilings against loops of scipy that leave out one unit after the other."""

import itertools
import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch

from dattri.metric import GroundTruth, Predictions, Targets, lds, lds_interval, loo_corr, mislabel_detection_auc
from dattri.metric.ceiling import (
    RetrainingPlan,
    _agreement,
    _intraclass,
    _model_of,
    _Range,
    _ratio,
    ceiling_share,
    lds_ceiling,
    plan_comparison,
    plan_lds,
)
from dattri.metric.jackknife import Estimate, fisher_interval
from dattri.metric.uncertainty import (
    Comparison,
    ConfidenceInterval,
    compare_lds,
    compare_loo,
    compare_mislabel,
    compare_targets,
    loo_interval,
    mislabel_interval,
)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def single(count):
    """Subsets of one sample each, so that a sum of scores is the score."""
    return torch.arange(count)[:, None]


def correlations(correlate, x, y):
    """Pseudo-values by a loop, (num_test, num_units), and plain correlations."""
    count, rows = len(x), range(x.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = np.array([correlate(x[:, t], y[:, t]).statistic for t in rows])
        without = [
            [correlate(np.delete(x[:, t], k), np.delete(y[:, t], k)).statistic for k in range(count)] for t in rows
        ]
    return count * whole[:, None] - (count - 1) * np.array(without), whole


def crossed(values):
    """Mean, standard error and degrees of freedom of a table, by the formulas of a two-way layout."""
    tests, units = values.shape
    mean, of_unit, of_test = values.mean(), values.mean(0), values.mean(1)
    v_units = of_unit.var(ddof=1) / units
    if tests == 1:
        return mean, v_units**0.5, units - 1
    v_tests = of_test.var(ddof=1) / tests
    degrees = (units - 1) * (tests - 1)
    v_both = ((values - of_unit - of_test[:, None] + mean) ** 2).sum() / degrees / units / tests
    variance = max(v_units + v_tests - v_both, v_units, v_tests)
    freedom = variance**2 / (v_units**2 / (units - 1) + v_tests**2 / (tests - 1) + v_both**2 / degrees)
    return mean, variance**0.5, max(freedom, 1)


def fisher(pseudo, plain, confidence=0.95):
    """Interval of a mean correlation on Fisher's scale."""
    mean, error, degrees = crossed(pseudo)
    centre = np.clip(mean, plain - 0.9 * (1 + plain), plain + 0.9 * (1 - plain))
    width = scipy.stats.t.ppf((1 + confidence) / 2, degrees) * error / (1 - (0.75 * centre + 0.25 * plain) ** 2)
    return np.tanh(np.arctanh(centre) + np.array([-width, width]))


SIZES = [(5, 1), (6, 2), (9, 4), (30, 3)]
LEVELS = [0, 2]  # values rounded to a few, with ties


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("levels", LEVELS)
def test_comparison_is_a_loop_of_scipy(sizes, levels):
    x, y, z = (np.round(part * levels) if levels else part for part in normal(sum(sizes), 3, *sizes))
    found = compare_lds(torch.tensor(x), torch.tensor(z), (torch.tensor(y), single(len(x))), confidence=0.9)
    (a, plain_a), (b, plain_b) = (correlations(scipy.stats.spearmanr, part, y) for part in (x, z))
    known = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    mean, error, degrees = crossed((a - b)[known])
    width = scipy.stats.t.ppf(0.95, degrees) * error
    expected = [(plain_a - plain_b)[known].mean(), max(mean - width, -2), min(mean + width, 2)]
    np.testing.assert_allclose(found[:3], expected, atol=1e-9)
    np.testing.assert_allclose(found.pvalue, 2 * scipy.stats.t.sf(abs(mean) / error, degrees), atol=1e-9)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("levels", LEVELS)
def test_loo_interval_is_a_loop_of_scipy(sizes, levels):
    x, y = (np.round(part * levels) if levels else part for part in normal(sum(sizes) + 1, 2, *sizes))
    found = loo_interval(torch.tensor(x), (torch.tensor(y), torch.arange(len(x))))
    pseudo, plain = correlations(scipy.stats.pearsonr, x, y)
    known = np.isfinite(pseudo).all(1)
    mean = plain[known].mean()
    np.testing.assert_allclose(found, [mean, *fisher(pseudo[known], mean)], atol=1e-8)


def test_loo_interval_where_one_row_is_nearly_all():
    x, y = normal(3, 2, 12, 5)
    x[4, 0], y[7, 1], x[2, 2], x[:, 3], x[:, 4] = 1e9, -1e12, 1e6, 1e150 * x[:, 3], 1e5 + x[:, 4]
    found = loo_interval(torch.tensor(x), (torch.tensor(y), torch.arange(12)))
    x[:, 3] /= 1e150
    pseudo, plain = correlations(scipy.stats.pearsonr, x, y)
    np.testing.assert_allclose(found, [plain.mean(), *fisher(pseudo, plain.mean())], atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("num_models", "num_tests"), [(5, 1), (6, 2), (20, 5), (60, 1), (60, 50), (100, 5)])
def test_perfect_agreement_has_an_interval_of_no_width(num_models, num_tests, dtype):
    """Rounding leads no further than 1, where Fisher's scale ends; so do two seeds if training has no noise."""
    for seed, scale, sign in itertools.product(range(5), (1.0, 0.1, 3.0), (1, -1)):
        values = torch.randn(num_models, num_tests, generator=torch.Generator().manual_seed(seed)).to(dtype)
        found = loo_interval(sign * scale * values, (values, torch.arange(num_models)))
        assert found == pytest.approx((sign, sign, sign), abs=1e-3)


def test_loo_interval_takes_positions_in_any_order_and_leaves_out_the_undefined():
    score, targets = torch.tensor(normal(4, 20, 6)), torch.tensor(normal(5, 9, 6))
    removed = torch.tensor([19, 3, 7, 0, 11, 5, 2, 13, 8])
    found = loo_interval(score, (targets, removed))
    assert found == pytest.approx(loo_interval(score[removed], (targets, torch.arange(9))))
    assert found.mean == pytest.approx(float(loo_corr(score, (targets, removed)).correlation.mean()))
    score[:, 2] = 3.0
    targets[1:, 4] = 1.0  # constant once model 0 is left out
    rest = [0, 1, 3, 5]
    assert loo_interval(score, (targets, removed)) == pytest.approx(
        loo_interval(score[:, rest], (targets[:, rest], removed))
    )


def test_loo_interval_reads_blocks_of_test_samples(tmp_path, monkeypatch):
    score, targets = normal(6, 300, 40).astype("float32"), torch.tensor(normal(7, 300, 40))
    truth = (targets, torch.arange(300))
    whole = loo_interval(torch.tensor(score), truth)
    np.save(tmp_path / "score.npy", score)
    mapped = np.load(tmp_path / "score.npy", mmap_mode="r")
    ways = [mapped, np.asfortranarray(score), iter(torch.tensor(score).split(7, dim=1))]
    assert all(loo_interval(way, truth) == pytest.approx(whole, abs=1e-9) for way in ways)
    monkeypatch.setattr("dattri.metric.uncertainty._CHUNK_BYTES", 8 * 300 * 3)
    assert loo_interval(mapped, truth) == pytest.approx(whole, abs=1e-9)


def pairs_auc(wrong, clean):
    """Share of pairs in order, and the shares of each sample, by all pairs."""
    order = (wrong[:, None] > clean) + 0.5 * (wrong[:, None] == clean)
    return order.mean(), order.mean(1), order.mean(0)


@pytest.mark.parametrize("sizes", [(4, 5), (3, 40), (40, 3), (25, 60)])
@pytest.mark.parametrize("levels", LEVELS)
def test_auc_interval_is_delong_over_all_pairs(sizes, levels):
    wrong, clean = normal(1, sizes[0]) + 0.5, normal(2, sizes[1])
    wrong, clean = (np.round(part * levels) if levels else part for part in (wrong, clean))
    score, is_wrong = np.concatenate([clean, wrong]), np.repeat([0, 1], [len(clean), len(wrong)])
    found = mislabel_interval(score, is_wrong, confidence=0.9)
    auc, of_wrong, of_clean = pairs_auc(wrong, clean)
    cautious = (min(sizes) * auc + 0.5) / (min(sizes) + 1)
    variances = [
        (part.var() * len(part) + 0.5 * cautious * (1 - cautious)) / (len(part) - 0.5) / len(part)
        for part in (of_wrong, of_clean)
    ]
    degrees = sum(variances) ** 2 / sum(
        variance**2 / (size - 1) for variance, size in zip(variances, sizes, strict=True)
    )
    width = scipy.stats.t.ppf(0.95, max(degrees, 1)) * sum(variances) ** 0.5 / (auc * (1 - auc))
    expected = scipy.special.expit(scipy.special.logit(auc) + np.array([-width, width]))
    np.testing.assert_allclose(found, [auc, *expected], rtol=1e-9)
    assert found.mean == mislabel_detection_auc(score, is_wrong).auc


def test_auc_interval_at_its_limits():
    is_wrong = np.arange(30) >= 24
    perfect, worst = (mislabel_interval(sign * np.arange(30.0), is_wrong) for sign in (1, -1))
    assert perfect == (1, pytest.approx(0.025 ** (1 / 6)), 1) and worst == (0, 0, pytest.approx(1 - 0.025 ** (1 / 6)))
    assert mislabel_interval(np.ones(30), is_wrong) == (0.5, 0.5, 0.5)
    one = mislabel_interval(np.arange(30.0), np.arange(30) == 20)
    assert 0 < one.mean < 1 and np.isnan(one[1:]).all()
    with pytest.warns(UserWarning, match="no mislabelled samples"):
        assert np.isnan(mislabel_interval(np.arange(30.0), np.zeros(30))).all()
    turned = mislabel_interval(-normal(1, 30), is_wrong)
    found = mislabel_interval(normal(1, 30), is_wrong)
    np.testing.assert_allclose([turned.low, turned.high], [1 - found.high, 1 - found.low])


def test_paired_is_far_surer_than_two_intervals():
    signal, noise = normal(8, 60, 40), normal(9, 2, 60, 40)
    truth = (torch.tensor(signal + normal(10, 60, 40)), single(60))
    a, b = (torch.tensor(signal + level * noise[0] + 0.2 * noise[1] * level) for level in (0.9, 1.1))
    first, second, both = lds_interval(a, truth), lds_interval(b, truth), compare_lds(a, b, truth)
    assert first.low < second.high  # they overlap
    assert both.low > 0 and both.pvalue < 0.001
    apart = math.hypot(first.high - first.low, second.high - second.low)
    assert both.high - both.low < 0.7 * apart


def test_comparison_turns_its_sign_and_knows_equals():
    a, b, y = torch.tensor(normal(11, 3, 20, 8))
    truth = (y, single(20))
    there, back = compare_lds(a, b, truth), compare_lds(b, a, truth)
    np.testing.assert_allclose(there, [-back.difference, -back.high, -back.low, back.pvalue], atol=1e-12)
    assert compare_lds(a, a, truth) == compare_lds(a, 7 * a, truth) == Comparison(0, 0, 0, 1)
    assert compare_lds(y, -y, truth) == Comparison(2, 2, 2, 0)
    half = b.clone()
    half[:, ::2] = 1.0  # undefined for b, so left out of both
    expected = compare_lds(a[:, 1::2], b[:, 1::2], (y[:, 1::2], single(20)))
    np.testing.assert_allclose(compare_lds(a, half, truth), expected, atol=1e-12)
    assert np.isnan(compare_lds(a, torch.ones(20, 8), truth)).all()
    two = compare_lds(a, b, (y[:2], single(2)))
    assert np.isfinite(two.difference) and np.isnan(two[1:]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    x, z, y = (part.to(dtype) for part in torch.tensor(normal(12, 3, 16, 4)))
    labels = torch.arange(16) % 4 == 0
    pairs = [
        (compare_lds(x, z, (y, single(16))), compare_lds(x.double(), z.double(), (y.double(), single(16)))),
        (loo_interval(x, (y, torch.arange(16))), loo_interval(x.double(), (y.double(), torch.arange(16)))),
        (mislabel_interval(x[:, 0], labels), mislabel_interval(x[:, 0].double(), labels)),
    ]
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected, atol=1e-9)
    runs = torch.stack([x, x + 0.5 * z], 1)
    found, expected = lds_ceiling(runs), lds_ceiling(runs.double())
    np.testing.assert_allclose(found[1:], expected[1:], atol=1e-9)
    assert found.per_test.dtype == torch.promote_types(dtype, torch.float32)


def made(seed, num_subsets=40, num_runs=3, num_tests=12, reliability=0.5):
    """Scores that know the truth, and targets of runs."""
    score = normal(seed, 60, num_tests)
    mask = np.argsort(normal(seed + 1, num_subsets, 60), axis=1) < 30
    effect = mask @ score
    effect = (effect - effect.mean(0)) / effect.std(0)
    noise = normal(seed + 2, num_subsets, num_runs, num_tests)
    losses = -(reliability**0.5) * effect[:, None] + (1 - reliability) ** 0.5 * noise
    return torch.tensor(score), GroundTruth(torch.tensor(losses), torch.tensor(mask))


@pytest.mark.parametrize("reliability", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("num_runs", [2, 3, 8])
def test_ceiling_is_what_the_truth_reaches(reliability, num_runs):
    found = []
    for seed in range(8):
        score, targets = made(100 * seed, 50, num_runs, 40, reliability)
        reached = float(lds(score, (-targets.values.mean(1), targets.indices)).correlation.mean())
        found.append(lds_ceiling(targets).mean - reached)
    assert abs(np.mean(found)) < (0.03 if reliability < 0.5 else 0.01)


@pytest.mark.parametrize("kind", ["lopsided", "long tails", "multiplied"])
def test_ceiling_of_values_that_are_not_normal(kind):
    generator = np.random.default_rng(3)
    found = []
    for _ in range(4):
        truth, noise = generator.standard_normal((80, 40)), generator.standard_normal((80, 3, 40))
        if kind == "lopsided":
            runs = generator.exponential(size=(80, 40))
            truth, runs = runs, runs[:, None] + noise
        elif kind == "long tails":
            runs = truth[:, None] + generator.standard_t(3, (80, 3, 40)) / 3**0.5
        else:
            runs = np.exp(1.5 * (truth[:, None] + noise))
        reached = [scipy.stats.spearmanr(truth[:, t], runs[:, :, t].mean(1)).statistic for t in range(40)]
        found.append(lds_ceiling(runs).mean - np.mean(reached))
    assert abs(np.mean(found)) < 0.02


def test_ceiling_of_normal_values_by_hand():
    """The agreement by scipy, Spearman-Brown, the square root; the factor for the shape is near 1."""
    _, targets = made(5, 200, 2, 30)
    ceiling = lds_ceiling(targets)
    runs = targets.values.numpy()
    agree = np.array([scipy.stats.spearmanr(runs[:, 0, t], runs[:, 1, t]).statistic for t in range(30)])
    one = 2 * np.sin(np.pi * agree / 6)
    expected = 6 / np.pi * np.arcsin(np.sqrt(2 * one / (1 + one)) / 2)
    np.testing.assert_allclose(ceiling.per_test, expected, atol=0.02)
    assert abs(ceiling.mean - expected.mean()) < 0.02 and ceiling.low < ceiling.mean < ceiling.high
    assert abs(ceiling.reliability - np.mean(2 * one / (1 + one))) < 0.02


def test_ceiling_at_its_limits():
    runs = torch.tensor(normal(1, 30, 1, 7)).repeat(1, 3, 1)
    same = lds_ceiling(runs)
    np.testing.assert_allclose([*same.per_test, *same[1:]], 1, atol=0.01)
    nothing = lds_ceiling(torch.tensor(normal(2, 30, 2, 200)))
    assert nothing.low == 0 and nothing.high < 0.5 and float(nothing.per_test.min()) == 0
    against = lds_ceiling(torch.cat([runs[:, :1], -runs[:, :1]], 1))
    assert against.mean == 0 == float(against.per_test.max())
    runs = torch.tensor(normal(3, 30, 2, 7)) + 2 * runs[:, :1]
    runs[:, 0, 2] = 1.0
    partly = lds_ceiling(runs)
    assert partly.per_test.isnan().tolist() == [test == 2 for test in range(7)] and np.isfinite(partly[1:]).all()
    constant = lds_ceiling(torch.ones(30, 2, 7))
    assert constant.per_test.isnan().all() and np.isnan(constant[1:]).all()
    few = lds_ceiling(runs[:3])
    assert np.isnan([few.low, few.high]).all()
    for layout in (np.asarray(runs), runs.transpose(0, 2).contiguous().transpose(0, 2)):
        np.testing.assert_allclose(lds_ceiling(layout)[1:], partly[1:], atol=1e-12)


def test_share_of_the_ceiling():
    score, targets = made(7, 60, 3, 40)
    perfect = ceiling_share(score, targets)
    assert perfect.low < 1 < perfect.high and perfect.high - perfect.low < 0.15
    reached = float(lds(score, (-targets.values.mean(1), targets.indices)).correlation.mean())
    assert perfect.mean == pytest.approx(reached / lds_ceiling(targets).mean)
    worst = ceiling_share(-score, targets)
    np.testing.assert_allclose(worst, [-perfect.mean, -perfect.high, -perfect.low], atol=1e-9)
    flat = score.clone()
    flat[:, ::2] = 1.0
    half = GroundTruth(targets.values[:, :, 1::2], targets.indices)
    np.testing.assert_allclose(ceiling_share(flat, targets), ceiling_share(score[:, 1::2], half), atol=1e-9)
    noise = GroundTruth(torch.tensor(normal(2, 60, 2, 40)), targets.indices)
    assert ceiling_share(score, noise)[1:] in [(-math.inf, math.inf), pytest.approx((math.nan,) * 2, nan_ok=True)]


def differs_significantly(share, top, bottom, correlation):
    """Whether the interval of top - share * bottom, from the intervals of both, leaves out 0."""
    (value, low, high), (other, least, most) = top, bottom
    difference = value - share * other
    for_below = share >= 0
    of_top = value - low if difference > 0 else high - value
    of_bottom = most - other if (difference > 0) == for_below else other - least
    square = of_top**2 + (share * of_bottom) ** 2 - 2 * correlation * share * of_top * of_bottom
    return abs(difference) > math.sqrt(max(square, 0))


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.3, 0.9])
@pytest.mark.parametrize("bottom", [(0.8, 0.7, 0.85), (0.5, 0.1, 0.9), (0.4, 0.0, 0.7), (0.98, 0.97, 0.985)])
@pytest.mark.parametrize(
    "top", [(0.5, 0.3, 0.6), (0.2, -0.1, 0.4), (-0.3, -0.5, -0.2), (-0.1, -0.4, 0.3), (0.0, -0.1, 0.1)]
)
def test_share_holds_what_its_parts_allow(top, bottom, correlation):
    low, high = _ratio(_Range(*top), _Range(*bottom), correlation)
    assert low <= top[0] / bottom[0] <= high
    for end, step in ((low, -1e-6), (high, 1e-6)):
        if math.isfinite(end):
            assert differs_significantly(end + step, top, bottom, correlation)
            assert not differs_significantly(end - step, top, bottom, correlation)
        else:
            assert bottom[1] == 0 and (step > 0 or top[1] <= 0) and (step < 0 or top[2] >= 0)


def test_share_of_symmetric_intervals_is_that_of_fieller():
    value, width, other, breadth, correlation = 0.5, 0.2, 0.8, 0.1, 0.4
    low, high = _ratio(
        _Range(value, value - width, value + width), _Range(other, other - breadth, other + breadth), correlation
    )
    leading, middle = other**2 - breadth**2, value * other - correlation * width * breadth
    root = math.sqrt(middle**2 - leading * (value**2 - width**2))
    assert (low, high) == pytest.approx(((middle - root) / leading, (middle + root) / leading))


@pytest.mark.parametrize("mean", [-0.15, 0.0, 0.4, 0.97])
@pytest.mark.parametrize("num_runs", [2, 3, 5, 40])
def test_interval_of_agreement_is_symmetric_on_the_scale_of_an_intraclass_correlation(mean, num_runs):
    estimate = Estimate(mean, 0.05**2 * (1 - mean) ** 2, 30, 0, 0, 0)
    low, high = _intraclass(mean, estimate, num_runs, 0.95)
    others = min(num_runs, 6) - 1
    scale = [math.log((1 + others * value) / (1 - value)) / 2 for value in (low, mean, high)]
    assert scale[1] - scale[0] == pytest.approx(scale[2] - scale[1]) and -1 / others < low < mean < high < 1
    if num_runs == 2:
        assert (low, high) == pytest.approx(fisher_interval(mean, estimate, 0.95))
    narrow = estimate._replace(variance=1e-10)
    width = np.subtract(*_intraclass(mean, narrow, num_runs, 0.95)[::-1])
    assert width == pytest.approx(2e-5 * scipy.stats.t.ppf(0.975, 30), rel=1e-3)


@pytest.mark.parametrize("reliability", [0.5, 0.9])
def test_uneven_quantiles_of_few_values_do_not_lower_the_ceiling(reliability):
    """Test samples that are equal count as one, so their quantiles are those of 100 values."""
    factors = []
    for seed in range(30):
        truth, noise = normal(seed, 100, 1, 1), normal(seed + 1000, 100, 3, 1)
        runs = (reliability**0.5 * truth + (1 - reliability) ** 0.5 * noise).repeat(5, axis=2)
        factors.append(_model_of(_agreement(torch.tensor(runs))).factor(3).value)
    assert abs(np.mean(factors) - 1) < {0.5: 0.004, 0.9: 0.0012}[reliability]


def test_plan_says_what_intervals_have():
    """On the average of some draws, within 15%."""
    for reliability in (0.3, 0.9):
        said, found = [], []
        for seed in range(0, 8000, 1000):
            signal, pilot = made(seed, 50, 2, 60, reliability)
            score = signal + torch.tensor(normal(seed + 5, 60, 60))
            reached = lds(score, (-pilot.values.mean(1), pilot.indices)).correlation
            (row,) = plan_lds(pilot, lds=reached, num_subsets=(100,), num_runs=(3,)).rows
            said.append((row.width, row.expected_lds))
            signal, targets = made(seed + 10, 100, 3, 60, reliability)
            score = signal + torch.tensor(normal(seed + 15, 60, 60))
            interval = lds_interval(score, (-targets.values.mean(1), targets.indices))
            found.append((interval.high - interval.low, interval.mean))
        assert row.models == 300
        (width, mean), (found_width, found_mean) = np.mean(said, axis=0), np.mean(found, axis=0)
        assert width == pytest.approx(found_width, rel=0.15) and mean == pytest.approx(found_mean, abs=0.03)


def test_plan_for_more_subsets_if_the_lds_differs_between_test_samples():
    """The part of the width that is due to the choice of test samples does not fall with the number of subsets."""
    said, found = [], []
    for seed in range(0, 6000, 1000):
        signal, targets = made(seed, 450, 2, 40, 0.9)
        seen = torch.tensor(np.random.default_rng(seed).uniform(-1, 1, 40))
        score = seen * signal + (1 - seen**2).sqrt() * torch.tensor(normal(seed + 5, 60, 40))
        pilot, more = (Targets(targets.values[part], targets.indices[part]) for part in (slice(50), slice(50, None)))
        truth = pilot.ground_truth()
        known = {"lds": lds(score, truth).correlation, "interval": lds_interval(score, truth)}
        plan = plan_lds(pilot, **known, num_subsets=(50, 400), num_runs=(2,))
        said.append([row.width for row in plan.rows])
        assert not plan.rough and said[-1][0] == pytest.approx(known["interval"].high - known["interval"].low, rel=0.02)
        assert plan.rows[0].expected_lds == pytest.approx(float(known["lds"].mean()), abs=0.02)
        interval = lds_interval(score, more.ground_truth())
        found.append(interval.high - interval.low)
    few, many = np.mean(said, axis=0)
    assert many == pytest.approx(np.mean(found), rel=0.1) and many > 0.7 * few  # it was 0.35


def test_plan_without_a_pilot_and_as_a_table():
    plan = plan_lds(reliability=0.5, lds=0.3, num_tests=100, num_subsets=(50, 200), num_runs=(1, 2))
    one, two = plan.rows[:2]
    assert one.ceiling == pytest.approx(6 / np.pi * np.arcsin(0.5**0.5 / 2)) and one.expected_lds == pytest.approx(0.3)
    assert two.expected_lds == pytest.approx(0.3 * two.ceiling / one.ceiling) and plan.rows[2].width < one.width
    assert isinstance(plan, RetrainingPlan) and len(str(plan).splitlines()) == 6 and "ceiling" in str(plan)
    assert plan._repr_html_().count("<tr>") == 5
    unknown = plan_lds(reliability=0.5, num_tests=100).rows[0]
    assert math.isnan(unknown.expected_lds) and unknown.width > 0


_RUNS = torch.tensor(normal(1, 10, 2, 3))


@pytest.mark.parametrize("confidence", [0, 1, 2, -0.5, "95%", True, None, float("nan")])
def test_confidence_is_checked_by_all(confidence):
    x, truth = torch.tensor(normal(1, 10, 3)), (torch.tensor(normal(2, 10, 3)), single(10))
    calls = [
        lambda: compare_lds(x, x, truth, confidence=confidence),
        lambda: loo_interval(x, (truth[0], torch.arange(10)), confidence=confidence),
        lambda: mislabel_interval(x[:, 0], torch.arange(10) < 3, confidence=confidence),
        lambda: lds_ceiling(_RUNS, confidence=confidence),
        lambda: ceiling_share(x, GroundTruth(_RUNS, single(10)), confidence=confidence),
        lambda: plan_lds(_RUNS, confidence=confidence),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="confidence: expected a number"):
            call()


def test_comparison_names_the_argument():
    x, y = torch.tensor(normal(1, 2, 10, 3))
    truth = (y, single(10))
    with pytest.raises(ValueError, match=r"^b: "):
        compare_lds(x, x[:, :2], truth)
    with pytest.raises(ValueError, match=r"^a: .*complex"):
        compare_lds(x + 1j, x, truth)
    with pytest.raises(ValueError, match=r"^b: NaN or infinity at train sample 4, test sample 1"):
        compare_lds(x, x.index_put((torch.tensor(4), torch.tensor(1)), torch.tensor(math.nan).double()), truth)
    with pytest.raises(ValueError, match=r"^ground_truth: "):
        compare_lds(x, x, (y[:, 0], single(10)))


def test_loo_interval_refuses_what_loo_corr_refuses():
    x, y = torch.tensor(normal(1, 2, 10, 3))
    with pytest.raises(ValueError, match="ground_truth: expected targets"):
        loo_interval(x, (y, torch.arange(9)))
    broken = y.clone()
    broken[3, 2] = math.inf
    with pytest.raises(ValueError, match="ground_truth: NaN or infinity at model 3, test sample 2"):
        loo_interval(x, (broken, torch.arange(10)))
    with pytest.raises(ValueError, match="score: NaN or infinity at train sample 3, test sample 2"):
        loo_interval(broken, (y, torch.arange(10)))
    few = loo_interval(x, (y[:3], torch.arange(3)))
    assert np.isfinite(few.mean) and np.isnan(few[1:]).all()
    assert np.isnan(loo_interval(torch.ones(10, 3), (y, torch.arange(10)))).all()


@pytest.mark.parametrize(
    ("targets", "kind", "message"),
    [
        (_RUNS[:, :1], ValueError, "needs two or more runs.*got 1.*Repeat the call of .*num_runs_per_subset=2"),
        (_RUNS[:, 0], ValueError, r"expected shape \(num_subsets, num_runs, num_test\), got \(10, 3\); means over"),
        (_RUNS[:0], ValueError, r"expected shape .* got \(0, 2, 3\)"),
        (_RUNS.index_fill(2, torch.tensor(1), math.nan), ValueError, "NaN or infinity at subset 0, run 0, test"),
        (_RUNS + 1j, ValueError, "targets: .*complex"),
        ({"values": _RUNS}, TypeError, "expected a tensor of shape .* got dict"),
        ("targets", TypeError, "targets: "),
    ],
)
def test_targets_are_checked(targets, kind, message):
    for call in (lds_ceiling, plan_lds):
        with pytest.raises(kind, match=message):
            call(targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "targets, reliability: expected exactly one of them, got neither"),
        ({"targets": _RUNS, "reliability": 0.5}, "got both"),
        ({"targets": _RUNS[:3]}, "at least 4 subsets, got 3"),
        ({"targets": torch.ones(10, 2, 3)}, "constant"),
        ({"reliability": 0.5}, "num_tests: expected the number of test samples"),
        ({"reliability": 0, "num_tests": 5}, r"reliability: expected a number in \(0, 1\]"),
        ({"reliability": 0.5, "num_tests": 5, "lds": 2.0}, r"lds: expected a number in \[-1, 1\]"),
        ({"reliability": 0.5, "num_tests": 5, "num_subsets": (2,)}, "num_subsets: expected an integer of at least 3"),
        ({"reliability": 0.5, "num_tests": 5, "num_subsets": 50}, "num_subsets: expected a sequence of integers"),
        ({"reliability": 0.5, "num_tests": 5, "num_runs": ()}, "num_runs: expected a sequence of integers"),
        ({"reliability": 0.5, "num_tests": 5, "num_runs": (0.5,)}, "num_runs: expected an integer of at least 1"),
        ({"reliability": 0.5, "num_tests": 5, "num_runs": (True,)}, "num_runs: expected an integer of at least 1"),
        ({"reliability": 0.5, "num_tests": 0}, "num_tests: expected an integer of at least 1, got 0"),
    ],
)
def test_plan_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        plan_lds(**options)


def test_plan_takes_what_lds_returns_and_integers_of_numpy():
    signal, mask = normal(3, 20, 6), np.random.default_rng(4).random((40, 20)) < 0.5
    runs = -(mask @ signal)[:, None] + 2 * normal(5, 40, 2, 6)
    targets = Targets(torch.tensor(runs), torch.tensor(mask))
    judged, interval = lds(signal, targets), lds_interval(signal, targets)
    options = {"num_subsets": (50, 100), "num_runs": (1, 2)}
    plan = plan_lds(targets, lds=judged.correlation, interval=interval, **options)
    assert plan_lds(targets, lds=judged, interval=interval, **options) == plan  # p-values are not correlations
    numpy = {name: np.array(counts) for name, counts in options.items()}
    assert plan_lds(targets, lds=judged, interval=interval, num_tests=np.int64(6), **numpy) == plan


def test_plan_says_that_it_is_rough_with_an_interval_without_ends():
    without = ConfidenceInterval(0.4, float("nan"), float("nan"))
    known = {"reliability": 0.5, "num_tests": 5}
    for options in ({"lds": without}, {"interval": without}, {"lds": 0.4, "interval": without}):
        plan = plan_lds(**known, **options)
        assert plan == plan_lds(**known, lds=0.4) and plan.rough
    with pytest.raises(TypeError, match=r"interval: expected the result of lds_interval, got tuple"):
        plan_lds(**known, interval=(0.4, 0.3, 0.5))


def test_share_needs_subsets():
    with pytest.raises(TypeError, match=r"expected an object with .values and .indices.*got Tensor"):
        ceiling_share(torch.ones(10, 3), _RUNS)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("levels", LEVELS)
def test_loo_comparison_is_a_loop_of_scipy(sizes, levels):
    x, y, z = (np.round(part * levels) if levels else part for part in normal(sum(sizes) + 1, 3, *sizes))
    found = compare_loo(torch.tensor(x), torch.tensor(z), (torch.tensor(y), torch.arange(len(x))), confidence=0.9)
    (a, plain_a), (b, plain_b) = (correlations(scipy.stats.pearsonr, part, y) for part in (x, z))
    known = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    mean, error, degrees = crossed((a - b)[known])
    width = scipy.stats.t.ppf(0.95, degrees) * error
    expected = [(plain_a - plain_b)[known].mean(), max(mean - width, -2), min(mean + width, 2)]
    np.testing.assert_allclose(found[:3], expected, atol=1e-7)


def test_loo_comparison_of_few_models_or_wrong_scores():
    x, y = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    few = compare_loo(x, y, (y[:3], torch.arange(3)))
    assert abs(few.difference) <= 2 and np.isnan(few[1:]).all()
    for wrong, message in (((x[:, :2], y), "^a: "), ((x, y * math.nan), "^b: ")):
        with pytest.raises(ValueError, match=message):
            compare_loo(*wrong, (y, torch.arange(6)))
    blocks = compare_loo(iter(x.split(2, dim=1)), y, (y.flip(0), torch.arange(6)))
    np.testing.assert_allclose(blocks, compare_loo(x, y, (y.flip(0), torch.arange(6))), atol=1e-12)


def placements(score, is_wrong):
    """Pair by pair: for each wrong sample the share of clean ones below, for each clean one of wrong ones above."""
    pairs = (np.sign(score[is_wrong][:, None] - score[~is_wrong]) + 1) / 2
    return pairs.mean(1), pairs.mean(0)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("counts", [(4, 9), (30, 70), (50, 12)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
def test_comparison_of_aucs_pair_by_pair(counts, levels, dtype):
    is_wrong = np.arange(sum(counts)) < counts[0]
    a, b = normal(sum(counts), 2, sum(counts)) + is_wrong
    a, b = (torch.tensor(np.round(part * levels) if levels else part * 100).to(dtype) for part in (a, b))
    found = compare_mislabel(a, b, torch.tensor(is_wrong))
    (v_a, w_a), (v_b, w_b) = (placements(part.numpy().astype(float), is_wrong) for part in (a, b))
    fewer = min(counts)
    v, w = ((fewer * part.mean() + 0.5) / (fewer + 1) for part in (v_a, v_b))
    alike = max(min(np.corrcoef(v_a, v_b)[0, 1], np.corrcoef(w_a, w_b)[0, 1]), 0)
    added = 0.5 * (v * (1 - v) + w * (1 - w) - 2 * alike * np.sqrt(v * (1 - v) * w * (1 - w)))
    parts = [((v_a - v_b).var() * counts[0] + added) / (counts[0] - 0.5) / counts[0],
             ((w_a - w_b).var() * counts[1] + added) / (counts[1] - 0.5) / counts[1]]  # fmt: skip
    degrees = sum(parts) ** 2 / sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    width = scipy.stats.t.ppf(0.975, degrees) * np.sqrt(sum(parts))
    difference = v_a.mean() - v_b.mean()
    expected = [difference, max(difference - width, -1), min(difference + width, 1)]
    np.testing.assert_allclose(found[:3], expected, atol=1e-9)
    auc = [mislabel_detection_auc(part, torch.tensor(is_wrong)).auc for part in (a, b)]
    assert math.isclose(found.difference, auc[0] - auc[1], abs_tol=1e-12)


def test_comparison_of_aucs_at_the_edges():
    score = torch.tensor([3.0, 1.0, 2.0, 5.0])
    assert compare_mislabel(score, 2 * score, [1, 0, 0, 1]) == Comparison(0, 0, 0, 1)
    single = compare_mislabel(score, -score, [0, 0, 0, 1])
    assert single.difference == 1 and np.isnan(single[1:]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isnan(compare_mislabel(score, score, [0, 0, 0, 0])).all()
    for wrong, message in (((score[:3], score), "a and ground_truth|^a"), ((score, score * math.nan), "^b: NaN")):
        with pytest.raises(ValueError, match=message):
            compare_mislabel(*wrong, [1, 0, 0, 1])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_interval_of_a_difference_of_targets_covers(share):
    """Runs and test samples are random and crossed; the share of the variance that test samples have is varied."""
    generator, held, repeats = np.random.default_rng(0), 0, 400
    for _ in range(repeats):
        runs, tests, both = (generator.standard_normal(shape) for shape in ((6, 1), (1, 40), (6, 40)))
        level = generator.standard_normal((6, 40))  # common to both, so that it cancels
        difference = 0.3 + (1 - share) ** 0.5 * 0.3 * runs + share**0.5 * tests + both
        found = compare_targets(level + difference, level)
        held += found.low <= 0.3 <= found.high
    assert 0.93 * repeats <= held <= 0.99 * repeats


@pytest.mark.parametrize("scale", [2.0**-1040, 2.0**-700, 2.0**700, 2.0**1020])
def test_comparing_targets_of_any_size(scale):
    first, second = torch.randn(2, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain, scaled = compare_targets(first, second), compare_targets(scale * first, scale * second)
    assert scaled.pvalue == pytest.approx(plain.pvalue)
    assert [each / scale for each in scaled[:3]] == pytest.approx(plain[:3], rel=1e-6)


def test_comparing_targets_of_any_kind():
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(5, 30, generator=generator)
    right = losses < 0.5
    there, back = compare_targets(losses, losses.flip(0)), compare_targets(losses.flip(0), losses)
    assert (there.low, there.high, there.pvalue) == (-back.high, -back.low, back.pvalue)
    assert compare_targets(right, ~right).difference == pytest.approx(2 * float(right.double().mean()) - 1)
    whole = compare_targets((100 * losses).round().int(), torch.zeros(5, 30))
    assert whole.low > 2  # not bounded as correlations are
    assert compare_targets(losses[:, :1], losses[:, 1:2]).pvalue > 0  # one test sample: runs alone
    one = compare_targets(losses + 1, losses)
    assert one.difference == pytest.approx(1) and one.high - one.low < 1e-6


def test_constant_scores_have_no_share_of_the_ceiling():
    generator = torch.Generator().manual_seed(0)
    subsets = torch.stack([torch.randperm(10, generator=generator)[:5] for _ in range(20)])
    targets = Targets(torch.randn(20, 2, 5, generator=generator), subsets)
    assert all(np.isnan(ceiling_share(torch.ones(10, 5), targets)))
    assert np.isfinite(ceiling_share(torch.rand(10, 5, generator=generator), targets).mean)


def pilot_pair(generator, num_subsets, num_runs, num_tests=20):
    """Two methods that see the truth with different noise, and targets of runs with a reliability of a half."""
    signal, other, rest = np.random.default_rng(9).standard_normal((3, 60, num_tests))
    mask = generator.permuted(np.tile(np.arange(60) < 30, (num_subsets, 1)), axis=1)
    noise = generator.standard_normal((num_subsets, num_runs, num_tests))
    values = -(mask @ signal)[:, None] + (60 / 4) ** 0.5 * noise
    methods = signal + 0.6 * other, signal + 0.6 * other + 0.5 * rest
    return *map(torch.tensor, methods), Targets(torch.tensor(values), torch.tensor(mask))


@pytest.mark.parametrize("sizes", [(12, 2, 20), (30, 3, 7), (25, 2, 1)])
def test_plan_of_a_comparison_has_the_interval_of_its_pilot(sizes):
    a, b, targets = pilot_pair(np.random.default_rng(sizes[0]), *sizes)
    (row,) = plan_comparison(a, b, targets, num_subsets=[sizes[0]], num_runs=[sizes[1]], confidence=0.9).rows
    found = compare_lds(a, b, targets, confidence=0.9)
    assert row.width == pytest.approx(found.high - found.low, rel=0.05)  # variances below 0 are 0 here
    assert row.difference == pytest.approx((found.high + found.low) / 2)
    (turned,) = plan_comparison(b, a, targets, num_subsets=[sizes[0]], num_runs=[sizes[1]], confidence=0.9).rows
    assert turned == pytest.approx(row._replace(difference=-row.difference))


def test_power_of_a_planned_comparison_counts_intervals_on_both_sides_of_zero():
    _, b, targets = pilot_pair(np.random.default_rng(3), 30, 2)
    noise = torch.tensor(np.random.default_rng(4).standard_normal((2, *b.shape)))
    lowest = []
    for amount in np.linspace(0.8, 1.2, 9):  # the mean LDS of one passes that of the other
        rows = plan_comparison(b + noise[0], b + amount * noise[1], targets, confidence=0.9).rows
        assert all(0.1 <= row.power <= 1 for row in rows)  # a difference of 0 is still excluded in one case of ten
        lowest.append(min(row.power for row in rows))
    assert min(lowest) < 0.12


def test_plan_of_a_comparison_says_what_comparisons_find():
    generator = np.random.default_rng(0)
    sizes = [(40, 1), (40, 3), (80, 1), (80, 2)]
    said, found, power = {size: [] for size in sizes}, {size: [] for size in sizes}, {size: [] for size in sizes}
    for _ in range(60):
        a, b, pilot = pilot_pair(generator, 40, 2)
        rows = {row[:2]: row for row in plan_comparison(a, b, pilot, num_subsets=(40, 80), num_runs=(1, 2, 3)).rows}
        for size in sizes:
            a, b, targets = pilot_pair(generator, *size)
            result = compare_lds(a, b, targets)
            found[size].append((result.high - result.low, result.difference, result.pvalue < 0.05))
            said[size].append(rows[size][4:2:-1])
            power[size].append(rows[size].power)
    for size in sizes:
        width, difference, excluded = np.mean(found[size], axis=0)
        assert np.mean(said[size], axis=0) == pytest.approx([width, difference], rel=0.15)
        assert abs(np.mean(power[size]) - excluded) < 0.2


def test_plan_of_a_comparison_knows_what_more_test_samples_bring():
    a, b, many = pilot_pair(np.random.default_rng(5), 40, 2, num_tests=200)
    few = many.select(tests=range(50))
    options = {"num_subsets": [40], "num_runs": [2]}
    (said,) = plan_comparison(a[:, :50], b[:, :50], few, num_tests=np.int64(200), **options).rows
    found = compare_lds(a, b, many)
    assert said.width == pytest.approx(found.high - found.low, rel=0.15)


def test_plan_of_a_comparison_leaves_out_what_is_undefined_and_takes_predictions():
    a, b, targets = pilot_pair(np.random.default_rng(6), 20, 2)
    options = {"num_subsets": [20, 50], "num_runs": [1, 2]}
    expected = plan_comparison(a[:, 3:], b[:, 3:], targets.select(tests=slice(3, None)), **options)
    constant = a.clone()
    constant[:, :3] = 1
    found = plan_comparison(constant, b, targets, **options)
    np.testing.assert_allclose(found.rows, expected.rows)
    said = [Predictions(targets.indices.double() @ scores) for scores in (a, b)]
    assert plan_comparison(*said, targets, **options) == plan_comparison(a, b, targets, **options)
    same = plan_comparison(a, 2 * a, targets, **options)
    assert all(row.difference == row.width == row.power == 0 for row in same.rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b, t: plan_comparison(a[:, :3], b, t), "^a: expected shape"),
        (lambda a, b, t: plan_comparison(a, b * torch.nan, t), "^b: NaN or infinity"),
        (lambda a, b, t: plan_comparison(a, b, t.select(subsets=range(4))), "targets: .*at least 5 subsets, got 4"),
        (lambda a, b, t: plan_comparison(a, b, Targets(t.values[:, :1], t.indices)), "two or more runs per subset"),
        (lambda a, b, t: plan_comparison(a * 0, b, t), "a, b: no test sample"),
        (lambda a, b, t: plan_comparison(a, b, t, num_subsets=[4]), "num_subsets: expected an integer of at least 5"),
        (lambda a, b, t: plan_comparison(a, b, t, num_tests=0), "num_tests: expected an integer of at least 1"),
        (lambda a, b, t: plan_comparison(a, b, t, confidence=95), "confidence: expected a number"),
    ],
)
def test_bad_input_of_a_plan_of_a_comparison_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        change(*pilot_pair(np.random.default_rng(7), 12, 2))
