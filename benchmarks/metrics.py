"""The metrics against the obvious way: one call of scipy per test sample, one comparison per pair.

Run with `python benchmarks/metrics.py`. The obvious way is timed on a share of the columns and scaled up.
"""

import numpy as np
import scipy.stats
import torch
from measure import milliseconds, seconds, show

from dattri.metric import lds, loo_corr, mislabel_detection_auc

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def scipy_lds(score, targets, indices, columns):
    """Sum the scores of each subset and call scipy, column by column."""
    for column in range(columns):
        predicted = np.array([score[subset, column].sum() for subset in indices])
        scipy.stats.spearmanr(predicted, targets[:, column])


def scipy_loo(score, targets, indices, columns):
    """Call scipy column by column."""
    for column in range(columns):
        scipy.stats.pearsonr(score[indices, column], targets[:, column])


def pair_loop(score, truth):
    """The share of pairs in the right order, one pair at a time."""
    wins = 0.0
    clean = score[truth == 0].tolist()
    for wrong in score[truth == 1].tolist():
        for value in clean:
            wins += (wrong > value) + 0.5 * (wrong == value)
    return wins


def lds_row(num_train, num_test, columns):
    """One size of `lds` against scipy and against the arithmetic that cannot be avoided."""
    score = torch.randn(num_train, num_test)
    targets = torch.randn(100, num_test)
    indices = torch.stack([torch.randperm(num_train)[: num_train // 2] for _ in range(100)])
    members = torch.zeros(100, num_train, dtype=torch.float64).scatter_(1, indices, 1.0).to(DEVICE)
    wide, sums = score.to(DEVICE, torch.float64), torch.randn(100, num_test, dtype=torch.float64, device=DEVICE)
    arrays = score.numpy(), targets.numpy(), indices.numpy()
    on_device = score.to(DEVICE), (targets.to(DEVICE), indices.to(DEVICE))
    ours, floor, theirs = seconds(
        lambda: lds(*on_device), lambda: (members @ wide, sums.sort(0)), lambda: scipy_lds(*arrays, columns), repeats=5
    )
    theirs *= num_test / columns
    size = f"{num_train:,} x {num_test:,}, 100 subsets"
    limit = f"{ours / floor:.1f}x one float64 product and sort ({milliseconds(floor)})"
    return "lds", size, milliseconds(ours), milliseconds(theirs), f"{theirs / ours:,.0f}x", limit


def loo_row(num_train, num_test, columns):
    """`loo_corr` against scipy and against reading both matrices once."""
    score, targets = torch.randn(2, num_train, num_test)
    indices = torch.arange(num_train)
    on_device = score.to(DEVICE), (targets.to(DEVICE), indices.to(DEVICE))
    arrays = score.numpy(), targets.numpy(), indices.numpy()
    ours, floor, theirs = seconds(
        lambda: loo_corr(*on_device),
        lambda: (on_device[0].double().square(), on_device[1][0].double().square()),
        lambda: scipy_loo(*arrays, columns), repeats=9,
    )
    theirs *= num_test / columns
    limit = f"{ours / floor:.1f}x squaring both in float64 ({milliseconds(floor)})"
    size = f"{num_train:,} x {num_test:,}"
    return "loo_corr", size, milliseconds(ours), milliseconds(theirs), f"{theirs / ours:,.0f}x", limit


def auc_rows():
    """`mislabel_detection_auc` against a loop over pairs, and on a million samples."""
    score, truth = torch.randn(20_000), torch.zeros(20_000)
    truth[:2000] = 1
    ours, theirs = seconds(
        lambda: mislabel_detection_auc(score.to(DEVICE), truth.to(DEVICE)), lambda: pair_loop(score, truth), repeats=3
    )
    million = torch.randn(10**6, device=DEVICE), (torch.rand(10**6, device=DEVICE) < 0.1).float()
    (large,) = seconds(lambda: mislabel_detection_auc(*million), repeats=3)
    name = "mislabel_detection_auc"
    yield name, "20,000 (2,000 wrong)", milliseconds(ours), milliseconds(theirs), f"{theirs / ours:,.0f}x", ""
    yield name, "1,000,000", milliseconds(large), "", "", ""


def main():
    """Print the table."""
    torch.manual_seed(0)
    head = ("what", "size", "dattri", "obvious way", "ratio", "against the limit")
    rows = [lds_row(5000, 500, columns=50), lds_row(50_000, 2000, columns=5), loo_row(5000, 500, columns=100)]
    rows += auc_rows()
    show("metrics", [head, *rows])


if __name__ == "__main__":
    main()
