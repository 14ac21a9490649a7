"""The leaderboards of the digits benchmarks with all baselines, from an empty cache, for the docs page.

Run with `python perf/leaderboards.py [model ...]`; each takes less than a minute on two idle cores.
"""

import json
import sys
import tempfile
import time

import torch
from measure import DEVICE, RESULTS, machine

from dattri import evaluate


def main(models: list[str]) -> None:
    """Build each benchmark, judge all baselines, and write the table to the results."""
    for model in models:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            jobs = torch.get_num_threads()
            board = evaluate(
                {}, (model, "digits"), baselines="all", download_path=folder, device=DEVICE, n_jobs=jobs
            )
        file = RESULTS / f"leaderboard-{model}-digits.json"
        board.save(file)
        taken = {"seconds": round(time.perf_counter() - begin, 1), "machine": machine()}
        file.write_text(json.dumps({**json.loads(file.read_text()), **taken}, indent=1) + "\n")
        print(board, f"\n{taken['seconds']} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["lr", "mlp"])
