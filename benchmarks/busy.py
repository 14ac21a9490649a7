"""Another program that keeps the processor busy, for measuring beside it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PROGRAM = """
import torch
torch.set_num_threads({threads})
matrix = torch.randn(1000, 1000)
print("ready", flush=True)
while True:
    matrix @ matrix
"""


@contextmanager
def busy(threads: int = 2, programs: int = 1) -> Iterator[None]:
    """Run programs that multiply matrices on this many threads each, while the block runs."""
    command = [sys.executable, "-c", PROGRAM.format(threads=threads)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(programs)]
    try:
        for program in running:
            program.stdout.readline()
        yield
    finally:
        for program in running:
            program.kill()
            program.wait()
