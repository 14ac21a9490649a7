"""How often 95% intervals hold the truth: comparisons, leave-one-out, AUC, ceiling and share of the ceiling.

Run with `python perf/coverage_paired.py [repeats] [part ...]`; 400 repeats take about an hour on two cores. Cells
with many test samples have fewer. As in coverage.py, simulated values have a known truth, and test samples share
nothing, half of their variance, or everything. Parts are the functions, and "ceilings", "digits", "widths", "pairs"
(two methods on the digits) and "plans" (of comparisons); the others stay as they were measured before.
"""

import json
import sys
import tempfile
import warnings
from functools import lru_cache, partial
from itertools import product

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from coverage import NUM_TRAIN, SHARES, SPREAD, SUBSETS, TESTS, digits_population, shared_normal
from joblib import Parallel, delayed
from measure import DEVICE, RESULTS, machine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dattri.benchmark.datasets import digits
from dattri.demo import METHODS
from dattri.metric import lds, lds_interval
from dattri.metric.ceiling import ceiling_share, lds_ceiling, plan_comparison, plan_lds
from dattri.metric.correlation import Predictions
from dattri.metric.ground_truth import GroundTruth
from dattri.metric.uncertainty import compare_lds, compare_loo, compare_mislabel, loo_interval, mislabel_interval
from dattri.model_util.ensemble import EnsembleTrainer
from dattri.model_util.retrain import retrain_lds
from dattri.model_util.retrain_dir import RetrainDir
from dattri.model_util.target import EnsembleTarget

POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
RUNS, RELIABILITIES = (2, 3), (0.2, 0.5, 0.9)


def expected(function, z, share):
    """Mean of a function of tanh(z + SPREAD normal), without spread where all test samples are the same."""
    return float((WEIGHTS * function(np.tanh(z + SPREAD * POINTS * (share < 1)))).sum() / WEIGHTS.sum())


def level(function, value, share):
    """The z for which the mean of a function is a value."""
    return scipy.optimize.brentq(lambda z: expected(function, z, share) - value, -3, 6)


def spearman(pearson):
    """Spearman's correlation of normal values with this one of Pearson."""
    return 6 / np.pi * np.arcsin(pearson / 2)


def orthonormal(generator, num_tests, share, number):
    """Scores of some methods, (number, train, test), that sums over random halves do not correlate."""
    columns = [shared_normal(generator, NUM_TRAIN, num_tests, share) for _ in range(number)]
    made = []
    for values in columns:
        values = values - values.mean(0)  # noqa: PLW2901  (what was taken out is not needed again)
        for other in made:
            values = values - other * (other * values).sum(0)  # noqa: PLW2901
        made.append(values / np.linalg.norm(values, axis=0))
    return made


def halves(generator, num_subsets):
    """Random halves of the training samples, a mask."""
    return generator.permuted(np.tile(np.arange(NUM_TRAIN) % 2 == 0, (num_subsets, 1)), axis=1)


def sums_of(mask, score):
    """Standard sums over the halves of columns that are centred and of length 1."""
    return (mask @ score) / (0.25 * NUM_TRAIN / (NUM_TRAIN - 1)) ** 0.5


def draw_pair(generator, num_subsets, num_tests, z, share, parts):
    """Two methods that see these parts of what can be seen, and their ground truth."""
    common, *own = orthonormal(generator, num_tests, share, 3)
    pearson = np.tanh(z + SPREAD * generator.standard_normal(num_tests) * (share < 1))
    mask = halves(generator, num_subsets)
    noise = shared_normal(generator, num_subsets, num_tests, share)
    values = pearson * sums_of(mask, common) + (1 - pearson**2) ** 0.5 * noise
    a, b = (part * common + (1 - part**2) ** 0.5 * rest for part, rest in zip(parts, own, strict=True))
    return torch.from_numpy(a), torch.from_numpy(b), (torch.from_numpy(values), torch.from_numpy(mask))


def draw_loo(generator, num_models, num_tests, z, share):
    """Scores and changes of targets whose Pearson correlation is tanh(z + SPREAD normal)."""
    pearson = np.tanh(z + SPREAD * generator.standard_normal(num_tests) * (share < 1))
    score, noise = (shared_normal(generator, num_models, num_tests, share) for _ in range(2))
    values = pearson * score + (1 - pearson**2) ** 0.5 * noise
    return torch.from_numpy(score), (torch.from_numpy(values), torch.arange(num_models))


def draw_loo_pair(generator, num_models, num_tests, z, share, parts):
    """Two methods that see these parts of what can be seen of the changes of targets."""
    pearson = np.tanh(z + SPREAD * generator.standard_normal(num_tests) * (share < 1))
    common, noise, *own = (shared_normal(generator, num_models, num_tests, share) for _ in range(4))
    values = pearson * common + (1 - pearson**2) ** 0.5 * noise
    a, b = (part * common + (1 - part**2) ** 0.5 * rest for part, rest in zip(parts, own, strict=True))
    return torch.from_numpy(a), torch.from_numpy(b), (torch.from_numpy(values), torch.arange(num_models))


def draw_label_pair(generator, num_wrong, num_clean, shifts, alike, levels):
    """Scores of two methods whose normal parts are correlated; with levels, many are equal."""
    is_wrong = np.arange(num_wrong + num_clean) < num_wrong
    first, other = generator.standard_normal((2, len(is_wrong)))
    both = first + shifts[0] * is_wrong, alike * first + (1 - alike**2) ** 0.5 * other + shifts[1] * is_wrong
    return *(np.round(score * levels) if levels else score for score in both), is_wrong


def draw_labels(generator, num_wrong, num_clean, shift, levels):
    """Scores of mislabelled and clean samples; with levels, they are rounded and many are equal."""
    is_wrong = np.arange(num_wrong + num_clean) < num_wrong
    score = generator.standard_normal(len(is_wrong)) + shift * is_wrong
    return (np.round(score * levels) if levels else score), is_wrong


def true_auc(shift, levels):
    """Probability that a wrong one is above, half where equal."""
    if not levels:
        return float(scipy.special.ndtr(shift / 2**0.5))
    edges = (np.arange(-20 * levels, 20 * levels) + 0.5) / levels
    clean, wrong = (np.diff(scipy.special.ndtr(edges - mean)) for mean in (0, shift))
    below = np.cumsum(clean) - clean / 2
    return float((wrong * below).sum())


def draw_runs(generator, num_subsets, num_runs, num_tests, reliability, share, seen):
    """Scores that see a part of what subsets do, and targets of runs."""
    signal, other = orthonormal(generator, num_tests, share, 2)
    targets = runs_on(num_subsets, num_runs, generator, signal, reliability, share)
    return torch.from_numpy(seen * signal + (1 - seen**2) ** 0.5 * other), targets


def hits(seed, repeats, functions, draw, values):
    """How many intervals of each function hold its value; all functions see the same draws."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    generator = np.random.default_rng(seed)
    held = np.zeros(len(functions))
    for _ in range(repeats):
        drawn = draw(generator)
        found = [function(*drawn[-count:]) for function, count in functions]
        held += [one.low <= value <= one.high for one, value in zip(found, values, strict=True)]
    return held


def cells():
    """Of each cell: functions and how many of the drawn they take, setting, share of the repeats, draw, truths."""
    for (name, share), num_subsets, num_tests in product(SHARES.items(), SUBSETS, TESTS):
        for high, parts in ((0.3, (0.9, 0.9)), (0.6, (0.9, 0.6)), (0.9, (0.98, 0.9))):
            z = level(lambda pearson: spearman(parts[0] * pearson), min(high, 0.93 * parts[0]), share)  # noqa: B023
            truth = [expected(lambda pearson: spearman(part * pearson), z, share) for part in parts]  # noqa: B023
            draw = partial(draw_pair, num_subsets=num_subsets, num_tests=num_tests, z=z, share=share, parts=parts)
            setting = f"{name}, {num_subsets} x {num_tests}, LDS {truth[0]:.2f} and {truth[1]:.2f}"
            yield [(compare_lds, 3)], setting, 0.25 if num_tests > 100 else 1, draw, [truth[0] - truth[1]]
    for (name, share), num_models, num_tests, value in product(SHARES.items(), (20, 100, 1000), TESTS, (0.0, 0.3, 0.9)):
        if num_models * num_tests <= 50_000:
            draw = partial(draw_loo, num_models=num_models, num_tests=num_tests, share=share)
            z = level(lambda pearson: pearson, value, share)
            setting = f"{name}, {num_models} x {num_tests}, {value}"
            yield [(loo_interval, 2)], setting, 1, partial(draw, z=z), [value]
    for num_wrong, num_clean, shift, levels in product((5, 10, 20, 100), (50, 500), (0, 0.75, 1.8, 2.5), (0, 2)):
        draw = partial(draw_labels, num_wrong=num_wrong, num_clean=num_clean, shift=shift, levels=levels)
        value = true_auc(shift, levels)
        setting = f"{num_wrong} wrong, {num_clean} clean, AUC {value:.2f}{', ties' * bool(levels)}"
        yield [(mislabel_interval, 2)], setting, 2, draw, [value]
    for (name, share), num_models, num_tests, value in product(SHARES.items(), (20, 100), (5, 50), (0.0, 0.3, 0.9)):
        for parts in ((0.9, 0.9), (0.9, 0.6)):
            z = level(lambda pearson: parts[0] * pearson, 0.9 * value, share)  # noqa: B023
            truth = [expected(lambda pearson: part * pearson, z, share) for part in parts]  # noqa: B023
            draw = partial(draw_loo_pair, num_models=num_models, num_tests=num_tests, z=z, share=share, parts=parts)
            setting = f"{name}, {num_models} x {num_tests}, {truth[0]:.2f} and {truth[1]:.2f}"
            yield [(compare_loo, 3)], setting, 1, draw, [truth[0] - truth[1]]
    pairs = ((0, 0), (1.8, 1.8), (1.8, 0.75), (2.5, 1.8))
    for num_wrong, num_clean, shifts, alike, levels in product((5, 20, 100), (50, 500), pairs, (0, 0.6, 0.95), (0, 2)):
        options = {"num_wrong": num_wrong, "num_clean": num_clean, "shifts": shifts, "alike": alike, "levels": levels}
        values = [true_auc(shift, levels) for shift in shifts]
        setting = f"{num_wrong} wrong, {num_clean} clean, AUC {values[0]:.2f} and {values[1]:.2f}, alike {alike}"
        yield [(compare_mislabel, 3)], setting, 2, partial(draw_label_pair, **options), [values[0] - values[1]]
    for (name, share), num_runs, num_subsets, num_tests, single in product(
        SHARES.items(), RUNS, (20, 100), TESTS, RELIABILITIES
    ):
        if num_tests > 100 and (num_subsets < 100 or num_runs > 2):
            continue
        reliability = num_runs * single / (1 + (num_runs - 1) * single)
        sizes = {"num_subsets": num_subsets, "num_runs": num_runs, "num_tests": num_tests}
        draw = partial(draw_runs, **sizes, reliability=single, share=share, seen=0.6)
        values = [float(spearman(part * reliability**0.5)) for part in (1, 0.6)]
        setting = f"{name}, {num_subsets} x {num_runs} x {num_tests}, reliability of a run {single}"
        both = [(lds_ceiling, 1), (ceiling_share, 2)]
        yield both, setting, 0.25 if num_tests > 100 else 1, draw, [values[0], values[1] / values[0]]


KINDS = ("normal", "reliability differs", "noise with long tails", "lopsided truth")


def draw_kind(generator, kind, sizes, reliability):
    """Truth, and targets of runs; not all of it normal."""
    num_subsets, _, num_tests = sizes
    truth, noise = (generator.standard_normal(shape) for shape in ((num_subsets, num_tests), sizes))
    if kind == "reliability differs":
        reliability = generator.beta(6 * reliability, 6 * (1 - reliability), num_tests)
    elif kind == "noise with long tails":
        noise = generator.standard_t(3, sizes) / 3**0.5
    elif kind == "lopsided truth":
        truth = generator.exponential(size=truth.shape) - 1
    return truth, np.sqrt(reliability) * truth[:, None] + np.sqrt(1 - reliability) * noise


def error(truth, runs):
    """Mean ceiling, and mean LDS of the truth against the mean over the runs."""
    torch.set_num_threads(1)
    return lds_ceiling(runs).mean, float(np.nanmean(scores_of(truth, runs.mean(1))))


def scores_of(predicted, actual):
    """Spearman's correlation of the columns."""
    x, y = (scipy.stats.rankdata(part, axis=0) - (len(part) + 1) / 2 for part in (predicted, actual))
    return (x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0))


def simulated_ceiling(seed, kind, sizes, reliability):
    """Mean ceiling and mean LDS of the truth over some draws."""
    generator = np.random.default_rng(seed)
    repeats = max(2, 60 // sizes[2])
    return np.mean([error(*draw_kind(generator, kind, sizes, reliability)) for _ in range(repeats)], axis=0)


def ceilings(pool):
    """Of each cell of a grid: the ceiling and the LDS of the truth."""
    for kind in KINDS:
        grid = list(product((0.1, 0.3, 0.5, 0.8, 0.95), (2, 3, 5), (20, 50, 100), TESTS))
        jobs = (delayed(simulated_ceiling)(0, kind, (s, r, t), value) for value, r, s, t in grid)
        for (value, runs, subsets, tests), (found, truth) in zip(grid, pool(jobs), strict=True):
            sizes = {"num_subsets": subsets, "num_runs": runs, "num_tests": tests}
            yield {"kind": kind, **sizes, "reliability": value, "ceiling": found, "truth": truth}


def small_network():
    """A network that is trained for too short to forget its first weights."""
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


MODELS = {
    "logistic regressions": (partial(nn.Linear, 64, 10), 50, 1000, 8),
    "small networks": (small_network, 20, 300, 16),
}


def digits_runs(name):
    """Targets of runs on random halves of the digits, (num_subsets, num_runs, num_test), and the halves."""
    model_fn, num_epochs, num_subsets, num_runs = MODELS[name]
    train, test = digits()
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    trainer = EnsembleTrainer(model_fn, nn.functional.cross_entropy, optimizer=sgd, num_epochs=num_epochs)
    target = EnsembleTarget(model_fn, partial(nn.functional.cross_entropy, reduction="none"))
    loader = DataLoader(train, batch_size=64, shuffle=True)
    with tempfile.TemporaryDirectory() as folder:
        retrain_lds(trainer, loader, folder, num_subsets=num_subsets, num_runs_per_subset=num_runs, seed=0)
        directory = RetrainDir.open(folder, "lds")
        files = [str(directory.checkpoint(s, r)) for s in directory.subsets for r in range(num_runs)]
        found = target.evaluate_many(files, DataLoader(test, batch_size=500))
        values = torch.stack(list(found)).unflatten(0, (num_subsets, num_runs))
        indices = torch.stack([torch.from_numpy(directory.read_indices(subset)) for subset in directory.subsets])
    return GroundTruth(values, indices)


def digits_ceilings(name, targets, repeats=10):
    """The same on the digits: the truth is the mean over runs that were not looked at, and its noise is allowed for."""
    values = targets.values.double().numpy()
    total = values.shape[1]
    between, within = total * values.mean(1).var(0, ddof=1), values.var(1, ddof=1).mean(0)
    single = (between - within) / (between + (total - 1) * within)
    values, single = values[:, :, single > 0.1], single[single > 0.1]
    generator = np.random.default_rng(0)
    for num_runs, num_subsets, num_tests in product(RUNS, (20, 50, 100), TESTS):
        held = (total - num_runs) * single / (1 + (total - num_runs - 1) * single)
        found = []
        for _ in range(repeats):
            rows = generator.choice(len(values), num_subsets, replace=False)
            columns = generator.integers(values.shape[2], size=num_tests)
            order, drawn = generator.permutation(total), values[rows][:, :, columns]
            seen, rest = drawn[:, order[:num_runs]], drawn[:, order[num_runs:]].mean(1)
            truth = scores_of(rest, seen.mean(1)) / held[columns] ** 0.5
            found.append((lds_ceiling(seen).mean, float(truth.mean())))
        ceiling, truth = np.mean(found, axis=0)
        sizes = {"num_subsets": num_subsets, "num_runs": num_runs, "num_tests": num_tests}
        reliability = float(single.mean())
        yield {"kind": f"digits, {name}", **sizes, "reliability": reliability, "ceiling": ceiling, "truth": truth}


def truth_of(targets):
    """Minus the mean over the runs, and the subsets."""
    return -targets.values.mean(1), targets.indices


PILOTS = 40


def compared_widths(made):
    """Per row of a plan: widths said from pilots of 50 subsets and 2 runs each, and those that `lds_interval` has."""
    rows, found = {}, {}
    for _ in range(PILOTS):
        score, draw = made()
        pilot = draw(50, 2)
        known = {"lds": lds(score, truth_of(pilot)).correlation, "interval": lds_interval(score, truth_of(pilot))}
        plan = plan_lds(pilot, **known, num_subsets=(50, 100, 200), num_runs=(1, 2, 3))
        for row in plan.rows:
            interval = lds_interval(score, truth_of(draw(row.num_subsets, row.num_runs)))
            rows.setdefault(row[:2], []).append(row.width)
            found.setdefault(row[:2], []).append(interval.high - interval.low)
    for (num_subsets, num_runs), widths in rows.items():
        mean = float(np.mean(found[num_subsets, num_runs]))
        low, high = np.percentile(widths, [5, 95])
        sizes = {"num_subsets": num_subsets, "num_runs": num_runs, "pilots": PILOTS}
        yield {**sizes, "said": float(np.mean(widths)), "said_low": low, "said_high": high, "found": mean}


def runs_on(num_subsets, num_runs, generator, signal, reliability, share):
    """Targets of new subsets for the same training samples."""
    mask = halves(generator, num_subsets)
    noise = np.stack([shared_normal(generator, num_subsets, signal.shape[1], share) for _ in range(num_runs)], axis=1)
    values = -(reliability**0.5 * sums_of(mask, signal)[:, None] + (1 - reliability) ** 0.5 * noise)
    return GroundTruth(torch.from_numpy(values), torch.from_numpy(mask))


def some_runs(num_subsets, num_runs, generator, targets):
    """Some of the subsets and of their runs."""
    rows = torch.from_numpy(generator.choice(len(targets.values), num_subsets, replace=False))
    runs = torch.from_numpy(generator.permutation(targets.values.shape[1])[:num_runs])
    return GroundTruth(targets.values[rows][:, runs], targets.indices[rows])


def planned(population):
    """Widths in simulations and on the digits, said and found."""
    generator = np.random.default_rng(0)
    for (name, share), reliability, num_tests in product(SHARES.items(), (0.2, 0.9), (50, 200)):
        made = partial(some_method, generator, num_tests, reliability, share)
        for row in compared_widths(made):
            yield {"kind": f"{name}, reliability {reliability}", "num_tests": num_tests, **row}
    targets = population("logistic regressions")
    draw = partial(some_runs, generator=generator, targets=targets)
    for name, score in digits_scores().items():
        for row in compared_widths(lambda: (score, draw)):  # noqa: B023
            yield {"kind": f"digits, {name}", "num_tests": score.shape[1], **row}


def some_method(generator, num_tests, reliability, share):
    """Scores that see 0.6 of what subsets do, and a function that draws runs."""
    signal, other = orthonormal(generator, num_tests, share, 2)
    draw = partial(runs_on, generator=generator, signal=signal, reliability=reliability, share=share)
    return torch.from_numpy(0.6 * signal + 0.8 * other), draw


def digits_scores():
    """Scores of three methods for logistic regression on the digits."""
    train, test = digits()
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    model_fn, num_epochs, _, _ = MODELS["logistic regressions"]
    trainer = EnsembleTrainer(model_fn, nn.functional.cross_entropy, optimizer=sgd, num_epochs=num_epochs)
    model = trainer(DataLoader(train, batch_size=64, shuffle=True), seed=1)
    data = TensorDataset(*train.tensors), TensorDataset(*test.tensors)
    return {name: method(model, *data) for name, method in METHODS.items()}


def digits_pairs(scores, truth):
    """Predictions of two methods for each subset of the digits.

    The methods of the last two pairs have the same mean LDS: noise is added to one until they are equal.
    """
    mask = torch.zeros(len(truth.values), len(scores["random"]), dtype=torch.float64).scatter_(1, truth.indices, 1)
    influence, gradient, chance = (mask @ score.double() for score in scores.values())
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(2, *scores["random"].shape, generator=generator, dtype=torch.float64)
    noises = mask @ (normal * scores["influence function"].double().std(0))
    little, other = noises * 0.3
    return {
        "influence function, gradient dot product": (influence, gradient),
        "gradient dot product, random": (gradient, chance),
        "influence function, the same with noise": (influence, influence + little),
        "equal: influence function with noise, gradient dot product": (
            equal_to(gradient, influence, noises[0], truth), gradient,
        ),
        "equal: influence function with noise, with other noise": (
            influence + little, equal_to(influence + little, influence, other, truth),
        ),
    }  # fmt: skip


def mean_lds(predicted, truth):
    """Mean LDS of predictions over all subsets and test samples."""
    return float(lds(Predictions(predicted), truth).correlation.double().mean())


def equal_to(wanted, predicted, noise, truth):
    """Predictions with as much noise as gives them the mean LDS of those wanted."""
    value = mean_lds(wanted, truth)
    amount = scipy.optimize.brentq(lambda part: mean_lds(predicted + part * noise, truth) - value, 0, 100, xtol=1e-6)
    return predicted + amount * noise


def draw_predictions(generator, pair, truth, num_subsets, num_tests):
    """Some of the subsets and test samples, with replacement."""
    rows = generator.integers(len(truth.values), size=num_subsets)
    columns = generator.integers(truth.values.shape[1], size=num_tests)
    drawn = truth.values[rows][:, columns], truth.indices[rows]
    return *(Predictions(part[rows][:, columns]) for part in pair), drawn


def judged(seed, repeats, draw, value):
    """How many comparisons have an interval that holds the value, a p-value below 0.05, and one below 0.01."""
    warnings.simplefilter("ignore")  # a draw may hold a constant column
    torch.set_num_threads(1)
    generator = np.random.default_rng(seed)
    found = [compare_lds(*draw(generator)) for _ in range(repeats)]
    return np.array([(one.low <= value <= one.high, one.pvalue < 0.05, one.pvalue < 0.01) for one in found]).sum(0)


def compared_digits(pool, repeats):
    """Coverage and rejections of comparisons on the digits, for few and many subsets and test samples."""
    scores, truth = digits_population()
    pairs = digits_pairs(scores, truth)
    for (name, pair), num_subsets, num_tests in product(pairs.items(), SUBSETS, TESTS):
        piece = max(int(repeats * (0.5 if num_tests > 100 else 1)) // 4, 1)
        value = mean_lds(pair[0], truth) - mean_lds(pair[1], truth)
        draw = partial(draw_predictions, pair=pair, truth=truth, num_subsets=num_subsets, num_tests=num_tests)
        counts = sum(pool(delayed(judged)(seed, piece, draw, value) for seed in range(4)))
        shares = dict(zip(("coverage", "rejected", "rejected_1"), (counts / (4 * piece)).tolist(), strict=True))
        yield {"pair": name, "num_subsets": num_subsets, "num_tests": num_tests, "repeats": 4 * piece,
               "truth": value, **shares}  # fmt: skip


PLAN = {"num_subsets": (25, 100), "num_runs": (1, 2, 4)}
PLAN_TESTS = (20, 80)  # a pilot has as many as the first; a large one as the last
LARGE_PILOT, LARGE_PILOTS = 200, 3


def simulated_pair(generator, num_tests, reliability, share, parts):
    """A function that draws runs beside two methods, which see more of some test samples than of others."""
    signal, *own = orthonormal(generator, num_tests, share, 3)
    varied = SPREAD * (share < 1) * generator.standard_normal((2, num_tests))
    seen = np.tanh(np.arctanh(parts)[:, None] + varied)
    pair = [torch.from_numpy(part * signal + (1 - part**2) ** 0.5 * rest) for part, rest in zip(seen, own, strict=True)]
    return lambda *sizes: (*pair, runs_on(*sizes, generator, signal, reliability, share))


def simulated_difference(num_runs, reliability, share, parts):
    """Their true difference with so many runs."""
    noisy = (num_runs * reliability / (1 + (num_runs - 1) * reliability)) ** 0.5
    a, b = (expected(lambda pearson: spearman(noisy * pearson), np.arctanh(part), share) for part in parts)
    return a - b


def digits_pair(generator, num_tests, pair, targets):
    """A function that draws subsets and runs of the digits beside two methods, for some test samples."""
    columns = torch.from_numpy(generator.integers(targets.values.shape[2], size=num_tests))

    def draw(num_subsets, num_runs):
        rows = torch.from_numpy(generator.integers(len(targets.values), size=num_subsets))
        runs = torch.from_numpy(generator.permutation(targets.values.shape[1])[:num_runs])
        values = targets.values[rows][:, runs][:, :, columns]
        return *(Predictions(part[rows][:, columns]) for part in pair), GroundTruth(values, targets.indices[rows])

    return draw


def digits_difference(num_runs, pair, targets):
    """Difference of the methods over all subsets and test samples, for means over the first runs."""
    a, b = (mean_lds(part, (-targets.values[:, :num_runs].mean(1), targets.indices)) for part in pair)
    return a - b


def pilot_plans(made, num_subsets, num_tests, pilots):
    """Differences, widths and powers that the plans of some pilots tell, (pilots, 3), for each number of all."""
    said = {}
    for _ in range(pilots):
        pilot = made(num_tests)(num_subsets, 2)
        for planned_tests in PLAN_TESTS:
            for row in plan_comparison(*pilot, num_tests=planned_tests, **PLAN).rows:
                said.setdefault((*row[:2], planned_tests), []).append((row.difference, row.width, row.power))
    return {sizes: np.array(rows) for sizes, rows in said.items()}


def found_comparison(draw, num_subsets, num_runs):
    """Width of the interval of one comparison, and whether it excludes 0."""
    a, b, targets = draw(num_subsets, num_runs)
    one = compare_lds(a, b, truth_of(targets))
    return one.high - one.low, one.low > 0 or one.high < 0


def compared_plans(seed, make, difference, pilots, repeats):
    """Per row of a plan: what pilots of 40 subsets and large ones say, and what comparisons find."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    made = partial(make, np.random.default_rng(seed))
    said = pilot_plans(made, 40, PLAN_TESTS[0], pilots)
    large = pilot_plans(made, LARGE_PILOT, PLAN_TESTS[-1], LARGE_PILOTS)
    found = {sizes: [] for sizes in said}
    for num_tests, _ in product(PLAN_TESTS, range(repeats)):
        draw = made(num_tests)
        for num_subsets, num_runs in product(*PLAN.values()):
            found[num_subsets, num_runs, num_tests].append(found_comparison(draw, num_subsets, num_runs))
    rows = []
    for sizes, (told, told_large) in {sizes: (said[sizes], large[sizes]) for sizes in said}.items():
        width, power = np.mean(found[sizes], axis=0)
        low, high = np.percentile(told[:, 1:], [5, 95], axis=0)
        rows.append({
            **dict(zip(("num_subsets", "num_runs", "num_tests"), sizes, strict=True)),
            "pilots": pilots, "repeats": repeats,
            "truth": difference(sizes[1]), "difference": float(told[:, 0].mean()),
            "width": float(width), "width_said": float(told[:, 1].mean()), "width_low": float(low[0]),
            "width_high": float(high[0]), "width_large": float(told_large[:, 1].mean()),
            "power": float(power), "power_said": float(told[:, 2].mean()), "power_low": float(low[1]),
            "power_high": float(high[1]), "power_large": float(told_large[:, 2].mean()),
        })  # fmt: skip
    return rows


def planned_comparisons(pool, population, repeats):
    """Plans of comparisons in simulations and on the digits, said and found."""
    settings = {}
    for (name, share), reliability, parts in product(SHARES.items(), (0.2, 0.9), ((0.6, 0.6), (0.7, 0.5))):
        known = {"reliability": reliability, "share": share, "parts": parts}
        kind = f"{name}, reliability {reliability}, parts {parts[0]} and {parts[1]}"
        settings[kind] = partial(simulated_pair, **known), partial(simulated_difference, **known)
    targets = population("logistic regressions")
    for name, pair in digits_pairs(digits_scores(), GroundTruth(-targets.values[:, 0], targets.indices)).items():
        known = {"pair": pair, "targets": targets}
        settings[f"digits, {name}"] = partial(digits_pair, **known), partial(digits_difference, **known)
    counts = max(repeats // 24, 2), max(repeats // 8, 2)
    jobs = (delayed(compared_plans)(seed, *made, *counts) for seed, made in enumerate(settings.values()))
    for kind, rows in zip(settings, pool(jobs), strict=True):
        yield from ({"kind": kind, **row} for row in rows)


def all_digits(population):
    """Ceilings on the digits, of both models."""
    for name in MODELS:
        yield from digits_ceilings(name, population(name))


NAMES = (
    "compare_lds", "compare_loo", "compare_mislabel", "loo_interval", "mislabel_interval", "lds_ceiling",
    "ceiling_share",
)  # fmt: skip


def measured(pool, repeats, wanted):
    """Coverage in all cells of the functions that are wanted."""
    grid = [cell for cell in cells() if {function.__name__ for function, _ in cell[0]} & {*wanted}]
    pieces = [max(int(repeats * share) // 4, 1) for _, _, share, _, _ in grid]
    jobs = (
        delayed(hits)(seed, piece, functions, draw, values)
        for (functions, _, _, draw, values), piece in zip(grid, pieces, strict=True)
        for seed in range(4)
    )
    held = pool(jobs)
    for (functions, setting, _, _, values), piece in zip(grid, pieces, strict=True):
        counts = sum(next(held) for _ in range(4))
        for (function, _), value, count in zip(functions, values, counts, strict=True):
            cell = {"function": function.__name__, "setting": setting, "repeats": 4 * piece, "truth": value}
            print(*cell.values(), float(count) / (4 * piece), flush=True)
            yield {**cell, "coverage": float(count) / (4 * piece)}


def main():
    """Measure, print and keep."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    wanted = sys.argv[2:] or [*NAMES, "ceilings", "digits", "widths", "pairs", "plans"]
    file = RESULTS / f"coverage-paired-{DEVICE}.json"
    record = json.loads(file.read_text()) if file.exists() else {}
    with Parallel(n_jobs=-1, return_as="generator") as pool:
        kept = [cell for cell in record.get("cells", []) if cell["function"] not in wanted]
        record["cells"] = kept + list(measured(pool, repeats, wanted))
        keep(file, record)
        population = lru_cache(digits_runs)
        parts = {
            "ceilings": partial(ceilings, pool),
            "digits": partial(all_digits, population),
            "widths": partial(planned, population),
            "pairs": partial(compared_digits, pool, repeats),
            "plans": partial(planned_comparisons, pool, population, repeats),
        }
        for part, make in parts.items():
            if part in wanted:
                record[part] = []
                for row in make():
                    record[part].append(row)
                    print(*row.values(), flush=True)
                keep(file, record)


def keep(file, record):
    """Write what was found so far."""
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps({**record, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
