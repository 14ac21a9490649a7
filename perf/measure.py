"""What the benchmark scripts share: timing several ways side by side, extra memory, and one kind of row."""

import json
import os
import platform
import resource
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAUSE = 0.3  # seconds; threads of OpenBLAS, which numpy uses, spin for up to 0.1 s after a call
RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    """One comparison: median seconds of our way and of the obvious one, and extra memory of ours."""

    what: str
    size: str
    ours: float
    obvious: float | None = None
    goal: str = ""
    memory: int | None = None
    note: str = ""


def seconds(*calls: Callable[[], object], repeats: int = 5, warm: bool = True) -> list[float]:
    """Median seconds of each call, after a round that warms up.

    Calls take turns, so that a drift hits all, with pauses, so that none runs beside the idle threads of another.
    """
    times: list[list[float]] = [[] for _ in calls]
    for number in range(repeats + warm):
        for call, seen in zip(calls, times, strict=True):
            time.sleep(PAUSE)
            begin = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warm:
                seen.append(time.perf_counter() - begin)
    return [statistics.median(seen) for seen in times]


def extra_memory(call: Callable[[], object]) -> int:
    """The most bytes that a call held beyond what was held before: on the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    before, peak, done = _resident_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], _resident_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return peak[0]


def _resident_bytes() -> int:
    """Memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    return {
        "processor": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
    }


def readable(value: float | None) -> str:
    """Seconds in the unit that suits them."""
    if value is None:
        return ""
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def table(rows: list[Row]) -> list[tuple[str, ...]]:
    """Rows as text, the first one is the head."""
    head = ("what", "size", "dattri", "obvious way", "ratio", "goal", "extra memory", "note")
    body = [
        (
            row.what, row.size, readable(row.ours), readable(row.obvious),
            f"{row.obvious / row.ours:,.3g}x" if row.obvious else "", row.goal,
            "" if row.memory is None else f"{row.memory / 2**20:,.0f} MB", row.note,
        )
        for row in rows
    ]
    return [head, *body]


def report(name: str, rows: list[Row], **more: object) -> None:
    """Print rows as a table, and keep them in results/ for the page that shows them."""
    found = machine()
    print(f"\n{name}  ({', '.join(f'{key}: {value}' for key, value in found.items())})")
    lines = table(rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    file = RESULTS / f"{name}-{DEVICE}.json"
    RESULTS.mkdir(exist_ok=True)
    record = {"machine": found, "rows": [asdict(row) for row in rows], **more}
    file.write_text(json.dumps(record, indent=1) + "\n")
