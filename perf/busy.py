"""A machine that others use too: another program that keeps threads busy while something is measured."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PROGRAM = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
left, right = torch.rand(2, 512, 512)
print("computing", flush=True)
while True:
    left @ right
"""


@contextmanager
def busy(*, programs: int = 1, threads: int = 2) -> Iterator[None]:
    """Let other programs multiply matrices inside the block.

    Parameters
    ----------
    programs : int
        How many.
    threads : int
        Threads of each.
    """
    command = [sys.executable, "-c", PROGRAM, str(threads)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(programs)]
    try:
        for program in started:
            program.stdout.readline()
        yield
    finally:
        for program in started:
            program.kill()
            program.communicate()
