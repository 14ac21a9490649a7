"""The metrics against the best that a good user would write, alone and beside a busy program, and against loops.

Run with `python perf/metrics.py`. The opponent of `lds` is five lines of vectorised numpy, that of `loo_corr` is
`scipy.stats.pearsonr(axis=0)`, that of the AUC scikit-learn. Loops over scipy are timed on some columns and scaled up.
"""

from functools import partial

import numpy as np
import scipy.stats
import torch
from busy import busy
from measure import DEVICE, Row, extra_memory, readable, report, seconds
from sklearn.metrics import auc, roc_curve

from dattri.metric import lds, lds_interval, loo_corr, mislabel_detection_auc


def five_lines(score, targets, indices):
    """The LDS in vectorised numpy."""
    mask = np.zeros((len(indices), len(score)))
    np.put_along_axis(mask, indices, 1.0, 1)
    x, y = (scipy.stats.rankdata(values, axis=0) for values in (mask @ score, targets))
    x, y = x - x.mean(0), y - y.mean(0)
    return (x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0))


def scipy_lds(score, targets, indices, columns):
    """Sum the scores of each subset and call scipy, column by column."""
    for column in range(columns):
        predicted = np.array([score[subset, column].sum() for subset in indices])
        scipy.stats.spearmanr(predicted, targets[:, column])


def scipy_loo(score, targets, indices, columns):
    """Call scipy column by column."""
    for column in range(columns):
        scipy.stats.pearsonr(score[indices, column], targets[:, column])


def lds_input(num_train, num_test, num_subsets=100, kind="normal"):
    """Scores, targets and indices of random halves."""
    indices = torch.stack([torch.randperm(num_train)[: num_train // 2] for _ in range(num_subsets)])
    score = torch.randn(num_train, num_test)
    if kind in ("whole numbers", "tenths"):
        score = (score * 10).round()
    if kind in ("float64", "tenths"):
        score = score.double() / 10
    return score, torch.randn(num_subsets, num_test), indices


REPEATS = 3 if DEVICE == "cuda" else 9  # on a GPU ours is far from the opponents, which stay on the CPU


def compared(what, size, goal, ours, opponent, loop=None, repeats=REPEATS):
    """Two rows: our call and the opponent's in turns, alone and beside a program with two threads."""
    memory = extra_memory(ours)
    alone = seconds(ours, opponent, repeats=repeats)
    note = ""
    if loop:
        call, share = loop
        (time,) = seconds(call, repeats=min(repeats, 3), warm=repeats > 3)
        note = f"{time * share / alone[0]:,.0f}x faster than one call of scipy per column"
    with busy():
        beside = seconds(ours, opponent, repeats=repeats)
    yield Row(what, size, *alone, goal, memory, note)
    yield Row(what, f"{size}, beside two threads", *beside, "", None, f"{beside[0] / alone[0]:.1f}x as long as alone")


def lds_rows(num_train, num_test, num_subsets, columns=None, kind="normal"):
    """One size of `lds` against five lines of numpy."""
    score, targets, indices = lds_input(num_train, num_test, num_subsets, kind)
    arrays = score.numpy(), targets.numpy(), indices.numpy()
    on_device = score.to(DEVICE), (targets.to(DEVICE), indices.to(DEVICE))
    size = f"{num_train:,} x {num_test:,}, {num_subsets:,} subsets" + (f", {kind}" if kind != "normal" else "")
    loop = (lambda: scipy_lds(*arrays, columns), num_test / columns) if columns else None
    return compared("lds", size, "1.5x", lambda: lds(*on_device), lambda: five_lines(*arrays), loop)


def loo_rows(num_train, num_test, columns):
    """`loo_corr` against scipy on whole matrices."""
    score, targets = torch.randn(2, num_train, num_test)
    indices = torch.arange(num_train)
    on_device = score.to(DEVICE), (targets.to(DEVICE), indices.to(DEVICE))
    arrays = score.numpy(), targets.numpy(), indices.numpy()
    loop = lambda: scipy_loo(*arrays, columns), num_test / columns
    ours, opponent = lambda: loo_corr(*on_device), lambda: scipy.stats.pearsonr(*arrays[:2], axis=0)
    return compared("loo_corr", f"{num_train:,} x {num_test:,}", "4x", ours, opponent, loop)


def interval_row(num_train, num_test):
    """`lds_interval` in units of `lds`."""
    score, targets, indices = (part.to(DEVICE) for part in lds_input(num_train, num_test))
    truth = targets, indices
    ours, one = seconds(lambda: lds_interval(score, truth), lambda: lds(score, truth), repeats=9)
    size = f"{num_train:,} x {num_test:,}, 100 subsets"
    return Row("lds_interval", size, ours, None, "", None, f"{ours / one:.1f}x one call of lds ({readable(one)})")


def auc_rows(kind, score):
    """`mislabel_detection_auc` against scikit-learn."""
    truth = torch.rand(len(score)) < 0.1
    given, arrays = (score.to(DEVICE), truth.to(DEVICE)), (truth.numpy(), score.numpy())

    def sklearns():
        fpr, tpr, _ = roc_curve(*arrays, drop_intermediate=False)
        return auc(fpr, tpr)

    size = f"{len(score):,} {kind}"
    return compared("mislabel_detection_auc", size, "2x", lambda: mislabel_detection_auc(*given), sklearns)


def curve(sizes, make):
    """Seconds of `lds` and of five lines of numpy for inputs of growing size."""

    def point(size):
        score, targets, indices = make(size)
        on_device = score.to(DEVICE), (targets.to(DEVICE), indices.to(DEVICE))
        arrays = score.numpy(), targets.numpy(), indices.numpy()
        return size, *seconds(lambda: lds(*on_device), lambda: five_lines(*arrays), repeats=5)

    return [point(size) for size in sizes]


def main():
    """Print the table, and measure how time grows."""
    torch.manual_seed(0)
    values = torch.randn(10**6)
    rows = [
        *lds_rows(5000, 500, 100, columns=50),
        *lds_rows(50_000, 500, 100),
        *lds_rows(5000, 500, 1000),
        *lds_rows(5000, 500, 100, kind="float64"),
        *lds_rows(5000, 500, 100, kind="whole numbers"),
        *lds_rows(5000, 500, 100, kind="tenths"),
        interval_row(5000, 500),
        *loo_rows(5000, 500, columns=100),
        *auc_rows("float32", values),
        *auc_rows("float64", values.double()),
        *auc_rows("int64 of 200 values", (values * 20).long()),
        *auc_rows("int64", torch.randint(2**60, (10**6,))),
    ]
    curves = {
        "training samples (500 test samples, 100 subsets)": curve(
            (300, 1000, 3000, 10_000, 30_000), partial(lds_input, num_test=500)
        ),
        "subsets (5,000 training and 500 test samples)": curve(
            (10, 30, 100, 300, 1000), lambda size: lds_input(5000, 500, size)
        ),
    }
    report("metrics", rows, curves=curves)


if __name__ == "__main__":
    main()
