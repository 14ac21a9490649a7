"""`lds` and `loo_corr` on a memory-mapped score matrix of 4 GB: seconds, against reading the file, and extra memory.

Run with `python benchmarks/larger_than_memory.py [folder]`; the folder must have room for the file.
"""

import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from measure import show

from dattri.metric import lds, loo_corr

NUM_TRAIN, NUM_TEST = 200_000, 5_000


def resident_bytes():
    """Memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def watched(call):
    """Seconds of a call, and the most memory it held beyond what was held before."""
    before, peak, done = resident_bytes(), [0], threading.Event()

    def watch():
        while not done.wait(0.01):
            peak[0] = max(peak[0], resident_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    call()
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    return seconds, peak[0]


def read(file):
    """Read the whole file, in blocks."""
    with file.open("rb", buffering=0) as opened:
        while opened.read(2**24):
            pass


def main():
    """Write the file, and print the table."""
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        file = Path(folder) / "score.bin"
        with file.open("wb") as opened:
            for _ in range(100):
                opened.write(generator.standard_normal((NUM_TRAIN // 100, NUM_TEST), dtype=np.float32).tobytes())
        score = np.memmap(file, dtype=np.float32, mode="r", shape=(NUM_TRAIN, NUM_TEST))
        indices = torch.stack([torch.randperm(NUM_TRAIN)[: NUM_TRAIN // 2] for _ in range(100)])
        subsets = torch.randn(100, NUM_TEST), indices
        removed = torch.randn(2_000, NUM_TEST), torch.randperm(NUM_TRAIN)[:2_000]
        calls = {
            "reading the file": lambda: read(file),
            "lds, 100 subsets": lambda: lds(score, subsets),
            "loo_corr, 2,000 removed": lambda: loo_corr(score, removed),
        }
        rows = [("what", "seconds", "extra memory")]
        for name, call in calls.items():
            seconds, extra = watched(call)
            rows.append((name, f"{seconds:.1f} s", f"{extra / 2**20:.0f} MB"))
    show(f"{NUM_TRAIN:,} x {NUM_TEST:,} float32 scores, memory-mapped", rows)


if __name__ == "__main__":
    main()
