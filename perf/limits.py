"""What the machine can do at best, measured with torch alone: matrix products, small batched ones, copying memory.

Run with `python perf/limits.py`.
"""

import torch
from measure import DEVICE, Row, report, seconds


def rate(call, work, repeats=5):
    """Seconds of a call, and work per second in units of 10^9."""
    (time,) = seconds(call, repeats=repeats)
    return time, work / time / 1e9


def product(size, dtype):
    """One large product."""
    left, right = torch.randn(2, size, size, device=DEVICE, dtype=dtype)
    return rate(lambda: left @ right, 2 * size**3)


def batched(models, batch, inputs, outputs, *, samples_last):
    """The products of an ensemble's layer, one small one per model."""
    samples = torch.randn(models, batch, inputs, device=DEVICE)
    weights = torch.randn(models, outputs, inputs, device=DEVICE)
    call = (lambda: weights @ samples.mT) if samples_last else (lambda: samples @ weights.mT)
    return rate(call, 2 * models * batch * inputs * outputs, repeats=50)


def copying(num_bytes):
    """Read and write memory that is far larger than the caches."""
    source = torch.zeros(num_bytes // 4, device=DEVICE)
    target = torch.empty_like(source)
    return rate(lambda: target.copy_(source), 2 * num_bytes)


def main():
    """Print the table."""
    size = 8192 if DEVICE == "cuda" else 2048
    small = {"digits LR": (64, 64, 64, 10), "MNIST-size LR": (64, 64, 784, 10), "MNIST-size MLP": (38, 64, 784, 128)}
    found = [
        ("product, float32", f"{size:,} x {size:,}", product(size, torch.float32), "GFLOP/s"),
        ("product, float64", f"{size:,} x {size:,}", product(size, torch.float64), "GFLOP/s"),
        *(
            (
                f"{shape[0]} products, samples {'last' if last else 'first'}",
                f"{name}: {' x '.join(map(str, shape[1:]))}",
                batched(*shape, samples_last=last),
                "GFLOP/s",
            )
            for name, shape in small.items()
            for last in (False, True)
        ),
        ("copying memory", "1 GB", copying(2**30), "GB/s"),
    ]
    rows = [Row(what, size, time, note=f"{speed:,.0f} {unit}") for what, size, (time, speed), unit in found]
    report("limits", rows)


if __name__ == "__main__":
    main()
