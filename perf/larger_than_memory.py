"""`lds` and `loo_corr` on score matrices of 4 GB on disk: seconds, against reading the file, and extra memory.

Run with `python perf/larger_than_memory.py [folder]`; the folder must have room for two such files.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from measure import Row, extra_memory, readable, report, seconds

from dattri.metric import lds, loo_corr

NUM_TRAIN, NUM_TEST = 200_000, 5_000


def read(file):
    """Read the whole file, in blocks."""
    with file.open("rb", buffering=0) as opened:
        while opened.read(2**24):
            pass


def write(file, generator):
    """4 GB of random numbers."""
    with file.open("wb") as opened:
        for _ in range(100):
            opened.write(generator.standard_normal((NUM_TRAIN // 100, NUM_TEST), dtype=np.float32).tobytes())


def blocks(file, width=50):
    """The file as columns, some at a time."""
    for start in range(0, NUM_TEST, width):
        values = np.fromfile(file, np.float32, NUM_TRAIN * width, offset=4 * NUM_TRAIN * start)
        yield values.reshape(width, NUM_TRAIN).T


def product_seconds(indices, height=400):
    """Seconds of the float64 product of subsets and scores alone, from the time of one block of rows."""
    members = torch.zeros(len(indices), NUM_TRAIN, dtype=torch.float64).scatter_(1, indices, 1.0)
    block = torch.randn(height, NUM_TEST, dtype=torch.float64)
    (one,) = seconds(lambda: members[:, :height] @ block)
    return one * NUM_TRAIN / height


def main():
    """Write the files, and print the table."""
    size = f"{NUM_TRAIN:,} x {NUM_TEST:,} float32"
    indices = torch.stack([torch.randperm(NUM_TRAIN)[: NUM_TRAIN // 2] for _ in range(100)])
    subsets = torch.randn(100, NUM_TEST), indices
    removed = torch.randn(2_000, NUM_TEST), torch.randperm(NUM_TRAIN)[:2_000]
    product = readable(product_seconds(indices))
    rows = []
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        file = Path(folder) / "score.bin"
        write(file, np.random.default_rng(0))
        by_rows = np.memmap(file, dtype=np.float32, mode="r", shape=(NUM_TRAIN, NUM_TEST))
        by_columns = np.memmap(file, dtype=np.float32, mode="r", shape=(NUM_TRAIN, NUM_TEST), order="F")
        calls = {
            "lds, 100 subsets, memory map": lambda: lds(by_rows, subsets),
            "lds, the same, column after column": lambda: lds(by_columns, subsets),
            "lds, the same, a generator of blocks": lambda: lds(blocks(file), subsets),
            "loo_corr, 2,000 removed, memory map": lambda: loo_corr(by_rows, removed),
        }
        for name, call in calls.items():
            memory = extra_memory(call)
            ours, reading = seconds(call, lambda: read(file), repeats=3, warm=False)
            note = f"reading the file {readable(reading)}; for lds, the product alone {product}"
            rows.append(Row(name, size, ours, None, "1 GB, disk speed", memory, note))
    report("larger-than-memory", rows)


if __name__ == "__main__":
    main()
