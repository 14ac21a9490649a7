"""The published rows of MNIST again, logistic regression and MLP: our numbers beside those, with the difference.

Run with `python perf/published.py`. With a network the images are MNIST's; `--images FILE` takes 5,500 or more images
of 28 x 28 pixels from a file of `numpy.savez` with `images` and `labels`, or from a folder with MNIST's IDX files;
without either, scikit-learn's digits are judged in the same way, and no difference is printed. The models are kept in
`--home`, so that a second run goes on with them. On 5,000 images the explicit influence function of the logistic
regression takes four minutes for each damping on one core; for the MLP use a GPU, `--device cuda`.
"""

import argparse
import gzip
import json
import math
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import DEVICE, RESULTS, machine
from torch import nn
from torch.utils.data import Subset, TensorDataset

from dattri import Datasets, Setting, evaluate, find_setting, gradient_cosine, gradient_dot, influence_function
from dattri.benchmark import datasets
from dattri.benchmark.baselines import tracin, trak

METHODS = "IF explicit", "IF CG", "TracIn", "Grad-Dot", "Grad-Cos", "TRAK-1", "TRAK-10", "TRAK-50"
PUBLISHED = {  # read off figures, +-0.005; the best of a small grid of options for each method
    ("lr", "loo"): (0.876, 0.879, 0.278, 0.278, 0.162, 0.477, 0.735, 0.779),
    ("lr", "lds"): (0.798, 0.798, 0.330, 0.328, 0.192, 0.414, 0.643, 0.682),
    ("lr", "mislabel"): (0.979, 0.979, 0.976, 0.976, 0.488, 0.979, 0.981, 0.981),
    ("mlp", "lds"): (None, 0.257, 0.145, 0.100, 0.123, 0.113, 0.332, 0.447),
}
SUBSETS = {"lr": 100, "mlp": 50}  # of random halves, with one model each
DAMPINGS = 1e-3, 1e-2, 1e-1
STEPS = 10  # of conjugate gradients
TRAINED = 50  # models for TRAK-50


@dataclass(frozen=True)
class Images:
    """Samples to train on and to test with, and whether published numbers speak of such ones."""

    name: str
    data: Datasets
    comparable: bool


@dataclass(frozen=True)
class Row:
    """One number of ours with its 95% interval, and the published one."""

    model: str
    metric: str
    method: str
    option: str
    value: float
    low: float
    high: float
    seconds: float
    published: float | None
    error: str = ""

    @property
    def difference(self) -> tuple[float, float, float]:
        """Ours minus the published number, and its interval; nan where there is none."""
        published = math.nan if self.published is None else self.published
        return self.value - published, self.low - published, self.high - published


def read_idx(file: Path) -> np.ndarray:
    """Array of bytes in an IDX file, compressed or not; `ValueError` if it is something else."""
    content = file.read_bytes()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    if content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{file}: expected an IDX file of bytes, which starts with 00 00 08")
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def read_images(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and labels of a file of `numpy.savez`, or of a folder with IDX files; test samples apart if it has any."""
    if path.is_dir():
        parts = [part for part in ("train", "t10k") if sorted(path.glob(f"{part}-*-ubyte*"))]
        if "train" not in parts:
            raise FileNotFoundError(f"--images {path}: no train-images-idx3-ubyte or train-images-idx3-ubyte.gz in it")
        return [(read_part(path, f"{part}-images-idx3"), read_part(path, f"{part}-labels-idx1")) for part in parts]
    if not path.is_file():
        raise FileNotFoundError(f"--images: no file or folder {path}")
    try:
        archive = np.load(path, allow_pickle=False)
        return [(archive["images"], archive["labels"])]
    except (ValueError, KeyError, IndexError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"--images {path}: expected arrays images and labels, as numpy.savez writes them ({error})"
        ) from error


def read_part(folder: Path, name: str) -> np.ndarray:
    """Array of an IDX file in a folder, compressed or not."""
    files = [file for file in (folder / f"{name}-ubyte", folder / f"{name}-ubyte.gz") if file.is_file()]
    if not files:
        raise FileNotFoundError(f"--images {folder}: no {name}-ubyte or {name}-ubyte.gz in it")
    return read_idx(files[0])


def as_tensors(images: np.ndarray, labels: np.ndarray) -> TensorDataset:
    """Samples normalised as MNIST is."""
    if images.ndim != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"--images: expected shape (num_images, 28, 28) and as many labels, got {images.shape} and {labels.shape}"
        )
    scale = 255 if images.max() > 1 else 1
    inputs = (torch.tensor(images, dtype=torch.float32)[:, None] / scale - 0.1307) / 0.3081
    return TensorDataset(inputs, torch.tensor(labels, dtype=torch.int64))


def first(samples: TensorDataset, count: int, begin: int = 0) -> TensorDataset:
    """As many samples, from one on; `ValueError` if there are fewer."""
    if len(samples) < begin + count:
        raise ValueError(f"--images: expected {begin + count:,} images or more, got {len(samples):,}")
    return TensorDataset(*(tensor[begin : begin + count] for tensor in samples.tensors))


def cut(parts: Sequence[TensorDataset], train_size: int, test_size: int) -> Datasets:
    """The first training samples, and the first test samples: of their own part, or those that follow."""
    train = first(parts[0], train_size)
    return Datasets(train, first(parts[1], test_size) if len(parts) == 2 else first(parts[0], test_size, train_size))


def find_images(file: Path | None, home: Path, train_size: int = 5000, test_size: int = 500) -> Images:
    """Images from a file, else MNIST from the network, else digits."""
    if file is not None:
        parts = [as_tensors(*part) for part in read_images(file)]
        return Images(f"images of {file.name}", cut(parts, train_size, test_size), True)
    try:
        parts = list(datasets.mnist(home / "datasets" / "mnist"))
    except OSError as error:
        print(f"MNIST could not be fetched, so digits are judged instead: {str(error)[:150]} ...")
        return Images("digits", datasets.digits(), False)
    return Images("MNIST", cut(parts, train_size, test_size), True)


def protocol(model: str, images: Images, **sizes: Any) -> Setting:
    """The published setting of a model, with one run per subset, on these images; on digits that of digits."""
    setting = find_setting(model, "mnist" if images.comparable else "digits")
    metrics = tuple(metric for metric in ("lds", "loo", "mislabel") if (model, metric) in PUBLISHED)
    train, test = images.data
    return replace(
        setting, repo_id=None, revision=None, create_datasets=lambda _: images.data, metrics=metrics, num_runs=1,
        **{
            "train_size": len(train), "test_size": len(test), "num_subsets": SUBSETS[model], "num_full": TRAINED,
            "num_half": 2, **sizes,
        },
    )  # fmt: skip


def samples(attributes: Mapping[str, Any], kind: str) -> Subset:
    """Training or test samples of a benchmark, as far as they are used."""
    return Subset(attributes[f"{kind}_dataset"], list(attributes[f"{kind}_sampler"].indices))


def of_one(function: Callable, attributes: Mapping[str, Any], metric: str, *, device: str = "cpu") -> torch.Tensor:
    """Scores from the first model that was trained on everything."""
    model = attributes["model"]
    model.load_state_dict(torch.load(attributes["models_full"][0], weights_only=True))
    tests = None if metric == "mislabel" else samples(attributes, "test")
    return function(model.to(device), samples(attributes, "train"), tests).cpu()


def of_many(
    function: Callable, count: int, attributes: Mapping[str, Any], metric: str, *, device: str = "cpu"
) -> torch.Tensor:
    """Scores from several of these models."""
    tests = None if metric == "mislabel" else samples(attributes, "test")
    files = attributes["models_full"][:count]
    return function(attributes["model"].to(device), files, samples(attributes, "train"), tests).cpu()


explicit = partial(influence_function, solver="explicit")


def conjugate(model: nn.Module, train: Any, test: Any, damping: float) -> torch.Tensor:
    """Influence function by few steps of conjugate gradients, as for models whose curvature cannot be written down."""
    if test is None:
        raise ValueError("a solution for each training sample costs too much; the explicit matrix gives the same")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "influence_function: after")  # that more steps would come nearer
        return influence_function(model, train, test, damping=damping, solver="cg", max_iterations=STEPS)


def methods(model: str, dampings: Sequence[float] = DAMPINGS, device: str = "cpu") -> dict[tuple[str, str], Callable]:
    """What is judged, by name and option."""
    solvers = {"IF CG": conjugate, **({"IF explicit": explicit} if model == "lr" else {})}
    influences = {
        (name, f"damping {damping:g}"): partial(of_one, partial(solver, damping=damping))
        for name, solver in solvers.items() for damping in dampings
    }  # fmt: skip
    others = {
        ("Grad-Dot", ""): partial(of_one, gradient_dot),
        ("Grad-Cos", ""): partial(of_one, gradient_cosine),
        ("TracIn", "10 models"): partial(of_many, tracin, 10),
        **{(f"TRAK-{count}", ""): partial(of_many, trak, count) for count in (1, 10, 50)},
    }
    return {name: partial(call, device=device) for name, call in {**influences, **others}.items()}


def rows_of(
    model: str, images: Images, home: Path, *, dampings: Sequence[float] = DAMPINGS, without: Sequence[str] = (),
    metrics: Sequence[str] | None = None, device: str = "cpu", **sizes: Any,
) -> list[Row]:
    """All published numbers of a model again: the best option of each method, as those were chosen."""
    judged = {key: call for key, call in methods(model, dampings, device).items() if key[0] not in without}
    names = {" ".join(key).strip(): key for key in judged}
    calls = {name: judged[key] for name, key in names.items()}
    placed = {"device": device} if device != "cpu" else {}
    setting = protocol(model, images, **sizes)
    board = evaluate(calls, setting, metrics=metrics, baselines=False, download_path=home, **placed)
    best: dict[tuple[str, str], Row] = {}
    for row in board.rows:  # the best first, those without a value last
        method, option = names[row.method]
        number = dict(zip(METHODS, PUBLISHED[model, row.metric], strict=True))[method]
        found = Row(model, row.metric, method, option, *row[2:5], row.seconds, number, row.error)
        best.setdefault((row.metric, method), found)
    order = {metric: [best[metric, method] for method in METHODS if (metric, method) in best]
             for metric in dict.fromkeys(row.metric for row in board.rows)}  # fmt: skip
    return [row for rows in order.values() for row in rows]


def cells(rows: Sequence[Row], comparable: bool) -> list[list[str]]:
    """Rows as text, the head first; with differences if the published numbers are of these images."""
    head = ["model", "metric", "method", "ours", "95% interval", "seconds", "published for MNIST"]
    table = [head + ["difference"] * comparable]
    for row in rows:
        gap, low, high = row.difference
        difference = "" if row.published is None else f"{gap:+.3f} [{low:+.3f}, {high:+.3f}]"
        published = "" if row.published is None else f"{row.published:.3f}"
        name = f"{row.method}, {row.option}" if row.option else row.method
        numbers = ["none", row.error[:60]] if row.error else [f"{row.value:.3f}", f"[{row.low:.3f}, {row.high:.3f}]"]
        line = [row.model, row.metric, name, *numbers, f"{row.seconds:.1f}", published]
        table.append(line + [difference] * comparable)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute, print and keep the rows."""
    options = parser().parse_args(arguments)
    options.home.mkdir(parents=True, exist_ok=True)
    images = find_images(options.images, options.home, options.train_size, options.test_size)
    sizes = {name: value for name in ("num_subsets", "num_full", "num_removed") if (value := getattr(options, name))}
    rows = []
    for model in options.model:
        rows += rows_of(model, images, options.home, device=options.device, dampings=options.damping, **sizes)
    lines = cells(rows, images.comparable)
    train, test = (len(part) for part in images.data)
    print(f"\n{images.name}: {train:,} training and {test:,} test samples, one run per subset")
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if options.out is not None:
        keep(options.out, images, rows)


def keep(file: Path, images: Images, rows: Sequence[Row]) -> None:
    """Write rows to a file, from where the page reads them."""
    train, test = (len(part) for part in images.data)
    values = [{name: None if value != value else value for name, value in asdict(row).items()} for row in rows]  # noqa: PLR0124
    record = {
        "machine": machine(), "images": images.name, "comparable": images.comparable, "train": train, "test": test,
        "rows": values,
    }  # fmt: skip
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--images", type=Path, help="a file of numpy.savez, or a folder with IDX files")
    home = Path("~/.dattri/published").expanduser()
    made.add_argument("--home", type=Path, default=home, help="where models are kept")
    made.add_argument("--model", nargs="+", choices=["lr", "mlp"], default=["lr", "mlp"])
    made.add_argument("--device", default=DEVICE)
    made.add_argument("--damping", nargs="+", type=float, default=list(DAMPINGS), help="of influence functions")
    made.add_argument("--train-size", type=int, default=5000)
    made.add_argument("--test-size", type=int, default=500)
    made.add_argument("--num-subsets", type=int, help="random halves; default: 100 for lr, 50 for mlp")
    made.add_argument("--num-full", type=int, help="models to attribute; default: 50")
    made.add_argument("--num-removed", type=int, default=500, help="samples left out, evenly spread")
    made.add_argument("--out", type=Path, help=f"a file such as {RESULTS.name}/published-mnist-cpu.json")
    return made


if __name__ == "__main__":
    main()
