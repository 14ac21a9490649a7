"""What the benchmark scripts share: timing two ways side by side, and a table."""

import os
import platform
import statistics
import time
from collections.abc import Callable

import torch


def seconds(*calls: Callable[[], object], repeats: int = 5) -> list[float]:
    """Median seconds of each call; the calls take turns, so that a drift of the machine hits all of them."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(repeats + 1):
        for call, seen in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:  # the first round warms up
                seen.append(time.perf_counter() - begin)
    return [statistics.median(seen) for seen in times]


def show(title: str, rows: list[tuple[str, ...]]) -> None:
    """Print a table; the first row is its head."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    print(f"\n{title}  ({platform.machine()}, {threads}, {device}, torch {torch.__version__})")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def milliseconds(value: float) -> str:
    """Seconds shown as milliseconds."""
    return f"{1000 * value:.1f} ms" if value < 1 else f"{value:.2f} s"
