"""The metrics against the obvious way: one call of scipy per test sample, and the curve of scikit-learn.

Run with `python benchmarks/metrics.py`. The obvious way is timed on a share of the columns and scaled up.
"""

import numpy as np
import scipy.stats
import sklearn.metrics
import torch
from measure import DEVICE, Row, extra_memory, readable, report, seconds

from dattri.metric import lds, loo_corr, mislabel_detection_auc


def scipy_lds(score, targets, indices, columns):
    """Sum the scores of each subset and call scipy, column by column."""
    for column in range(columns):
        predicted = np.array([score[subset, column].sum() for subset in indices])
        scipy.stats.spearmanr(predicted, targets[:, column])


def scipy_loo(score, targets, indices, columns):
    """Call scipy column by column."""
    for column in range(columns):
        scipy.stats.pearsonr(score[indices, column], targets[:, column])


def lds_input(num_train, num_test, num_subsets=100):
    """Scores, targets and indices of random halves."""
    indices = torch.stack([torch.randperm(num_train)[: num_train // 2] for _ in range(num_subsets)])
    return torch.randn(num_train, num_test), torch.randn(num_subsets, num_test), indices


def lds_row(num_train, num_test, columns, goal):
    """One size of `lds` against scipy and against the arithmetic that cannot be avoided."""
    score, targets, indices = lds_input(num_train, num_test)
    members = torch.zeros(100, num_train, dtype=torch.float64).scatter_(1, indices, 1.0).to(DEVICE)
    wide, sums = score.to(DEVICE, torch.float64), torch.randn(100, num_test, dtype=torch.float64, device=DEVICE)
    arrays = score.numpy(), targets.numpy(), indices.numpy()
    on_device = score.to(DEVICE), (targets.to(DEVICE), indices.to(DEVICE))
    memory = extra_memory(lambda: lds(*on_device))
    ours, floor, theirs = seconds(
        lambda: lds(*on_device), lambda: (members @ wide, sums.sort(0)), lambda: scipy_lds(*arrays, columns), repeats=5
    )
    size = f"{num_train:,} x {num_test:,}, 100 subsets"
    note = f"{ours / floor:.1f}x one float64 product and sort ({readable(floor)})"
    return Row("lds", size, ours, theirs * num_test / columns, goal, memory, note)


def loo_row(num_train, num_test, columns):
    """`loo_corr` against scipy and against widening both matrices."""
    score, targets = torch.randn(2, num_train, num_test)
    indices = torch.arange(num_train)
    on_device = score.to(DEVICE), (targets.to(DEVICE), indices.to(DEVICE))
    arrays = score.numpy(), targets.numpy(), indices.numpy()
    memory = extra_memory(lambda: loo_corr(*on_device))
    ours, floor, theirs = seconds(
        lambda: loo_corr(*on_device),
        lambda: (on_device[0].double().square(), on_device[1][0].double().square()),
        lambda: scipy_loo(*arrays, columns), repeats=9,
    )
    note = f"{ours / floor:.1f}x squaring both in float64 ({readable(floor)})"
    return Row("loo_corr", f"{num_train:,} x {num_test:,}", ours, theirs * num_test / columns, "50x", memory, note)


def sklearn_auc(score, truth):
    """The curve and the area of scikit-learn."""
    fpr, tpr, _ = sklearn.metrics.roc_curve(truth, score, drop_intermediate=False)
    return sklearn.metrics.auc(fpr, tpr)


def auc_rows():
    """`mislabel_detection_auc` against scikit-learn: dtypes, ties, and how many labels are wrong."""
    kinds = {
        "float32": torch.randn,
        "float64": lambda size: torch.randn(size, dtype=torch.float64),
        "float32, 1,000 levels": lambda size: torch.randint(1000, (size,)).float(),
        "int64, 1,000 levels": lambda size: torch.randint(1000, (size,)),
        "int64": lambda size: torch.randint(2**60, (size,)),
    }
    large = [(10**6, share, kind) for share in (0.1, 0.5) for kind in kinds]
    for size, share, kind in [(1000, 0.1, "float32"), *large]:
        score, truth = kinds[kind](size), (torch.rand(size) < share).long()
        on_device, arrays = (score.to(DEVICE), truth.to(DEVICE)), (score.numpy(), truth.numpy())
        memory = extra_memory(lambda given=on_device: mislabel_detection_auc(*given))
        ours, theirs = seconds(
            lambda given=on_device: mislabel_detection_auc(*given), lambda given=arrays: sklearn_auc(*given), repeats=9
        )
        what = f"{size:,} {kind}, {share:.0%} wrong"
        yield Row("mislabel_detection_auc", what, ours, theirs, "2x", memory, "against scikit-learn")


def curve(sizes, make, columns=10):
    """Seconds of `lds` and of scipy (scaled up from some columns) for inputs of growing size."""
    def point(size):
        score, targets, indices = make(size)
        on_device = score.to(DEVICE), (targets.to(DEVICE), indices.to(DEVICE))
        arrays = score.numpy(), targets.numpy(), indices.numpy()
        ours, theirs = seconds(lambda: lds(*on_device), lambda: scipy_lds(*arrays, columns), repeats=3)
        return size, ours, theirs * score.shape[1] / columns

    return [point(size) for size in sizes]


def main():
    """Print the table, and measure how time grows."""
    torch.manual_seed(0)
    rows = [lds_row(5000, 500, 50, "50x"), lds_row(50_000, 2000, 5, "150x"), loo_row(5000, 500, 100), *auc_rows()]
    curves = {
        "training samples (500 test samples, 100 subsets)": curve(
            (300, 1000, 3000, 10_000, 30_000), lambda size: lds_input(size, 500)
        ),
        "subsets (5,000 training and 500 test samples)": curve(
            (10, 30, 100, 300, 1000), lambda size: lds_input(5000, 500, size)
        ),
    }
    report("metrics", rows, curves=curves)


if __name__ == "__main__":
    main()
