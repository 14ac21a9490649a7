"""Scores however they lie: every metric gives what it gives for a tensor, and reads no more than it needs."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch

from dattri.metric import lds, loo_corr
from dattri.metric.scores import Block, Scores

NUM_TRAIN, NUM_TEST, NUM_SUBSETS = 1000, 150, 100
DRAW = torch.Generator().manual_seed(0)
SUBSETS = torch.stack([torch.randperm(NUM_TRAIN, generator=DRAW)[: NUM_TRAIN // 2] for _ in range(NUM_SUBSETS)])
TRUTH = torch.randn(NUM_TRAIN, NUM_TEST, generator=DRAW)
OUTCOMES = TRUTH[SUBSETS].sum(1) + 10 * torch.randn(NUM_SUBSETS, NUM_TEST, generator=DRAW)
INFORMED = TRUTH + torch.randn(NUM_TRAIN, NUM_TEST, generator=DRAW)
TIES = torch.cat([INFORMED[:, :50], INFORMED[:, 50:100].round(), torch.full((NUM_TRAIN, 50), 0.1)], 1)  # 50 constants
ORDER = torch.randperm(NUM_TRAIN, generator=DRAW)
DEFINED = TIES[:, :100]
QUESTIONS = {
    "lds": (lds, lambda width: (OUTCOMES[:, :width], SUBSETS)),
    "loo_corr in some order": (loo_corr, lambda width: (TRUTH[ORDER, :width], ORDER)),
    "loo_corr in place": (loo_corr, lambda width: (TRUTH[:, :width], torch.arange(NUM_TRAIN))),
}


class Stored:
    """Has a shape and gives slices; says how it lies, as HDF5 and Zarr arrays do, and counts what is read."""

    def __init__(self, values, *chunks):
        self.values, self.shape, self.dtype, self.read = values, values.shape, values.dtype, []
        if chunks:
            (self.chunks,) = chunks

    def __getitem__(self, part):
        values = self.values[part]
        self.read.append(values.shape)
        return values


class Columns(Stored):
    """Gives columns only."""

    def __getitem__(self, part):
        assert part[0] == slice(None) and isinstance(part[1], slice)
        return self.values[part]


class Ascending(Stored):
    """Takes ascending rows only, as HDF5 does."""

    def __getitem__(self, part):
        assert isinstance(part, slice) or (np.diff(part) > 0).all()
        return self.values[part]


class Endlessly:
    """Can be read again and again, as columns that are computed."""

    def __iter__(self):
        return iter(TIES.split(7, dim=1))


def mapped(values, path):
    np.save(path / "score.npy", values)
    return np.load(path / "score.npy", mmap_mode="r")


FORMS = {
    "array": lambda _: TIES.numpy(),
    "columns in memory": lambda _: TIES.T.contiguous().numpy().T,
    "memory map": lambda path: mapped(TIES.numpy(), path),
    "memory map by columns": lambda path: mapped(np.asfortranarray(TIES.numpy()), path),
    "stored": lambda _: Stored(TIES.numpy()),
    "stored without chunks": lambda _: Stored(TIES.numpy(), None),
    "stored in tall chunks": lambda _: Stored(TIES.numpy(), (1000, 8)),
    "stored in flat chunks": lambda _: Stored(TIES.numpy(), (4, 200)),
    "stored in chunks as in Dask": lambda _: Stored(TIES.numpy(), ((500, 500), (10,) * 15)),
    "columns only": lambda _: Columns(TIES.numpy()),
    "an iterable": lambda _: Endlessly(),
    "tensors": lambda _: TIES.split(64, dim=1),
    "a generator": lambda _: (block for block in TIES.split(7, dim=1)),
    "a list of one": lambda _: [TIES.numpy()],
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(form, question, tmp_path):
    metric, truth = QUESTIONS[question]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, computed = metric(TIES, truth(NUM_TEST)), metric(FORMS[form](tmp_path), truth(NUM_TEST))
    for left, right in zip(expected, computed, strict=True):
        torch.testing.assert_close(left, right, equal_nan=True)
    assert expected.correlation[100:].isnan().all()
    assert not expected.correlation[:100].isnan().any()


COUNTS = (100 * DEFINED).abs().round()
SAME = {
    "uint16 array": COUNTS.numpy().astype(np.uint16),
    "uint16 tensor": COUNTS.to(torch.uint16),
    "other byte order": COUNTS.numpy().astype(">f4"),
    "negative strides": COUNTS.numpy()[::-1].copy()[::-1],
    "blocks, some without columns": [COUNTS[:, :0], COUNTS[:, :40], COUNTS[:, 40:40], COUNTS[:, 40:]],
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("form", SAME)
def test_every_dtype_gives_the_same(form, question):
    metric, truth = QUESTIONS[question]
    expected, computed = metric(COUNTS, truth(100)), metric(SAME[form], truth(100))
    torch.testing.assert_close(computed.correlation, expected.correlation, check_dtype=False)


@pytest.mark.parametrize(
    ("make", "by_columns"),
    [
        (lambda path: mapped(np.asfortranarray(TIES.numpy()), path), True),
        (lambda path: mapped(TIES.numpy(), path).T, True),
        (lambda path: mapped(TIES.numpy(), path), False),
        (lambda path: TIES, False),
        (lambda path: Stored(TIES.numpy(), (1000, 8)), True),
        (lambda path: Stored(TIES.numpy(), (4, 200)), False),
        (lambda path: Stored(TIES.numpy(), None), False),
    ],
)
def test_a_matrix_is_read_in_the_direction_in_which_it_lies(make, by_columns, tmp_path, monkeypatch):
    monkeypatch.setattr("dattri.metric.scores._COLUMN_BYTES", 8 * 1000 * 10)
    matrix = make(tmp_path)
    assert (len(list(Scores(matrix).blocks(matrix.shape[1]))) > 1) == by_columns


def test_no_more_is_read_than_is_needed():
    tall, flat = Stored(TIES.numpy(), (1000, 8)), Stored(TIES.numpy(), (4, 200))
    untied = Stored(INFORMED.numpy()[:, :50], (4, 200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for stored in (tall, flat):
            lds(stored, (OUTCOMES, SUBSETS))
    lds(untied, (OUTCOMES[:, :50], SUBSETS))
    assert max(rows for rows, _ in tall.read) == NUM_TRAIN
    assert sum(map(np.prod, flat.read)) <= 4.1 * TIES.numel()
    assert sum(map(np.prod, untied.read)) <= 1.1 * 50 * NUM_TRAIN  # once: all sums are certain


def test_rows_in_any_order_are_read_from_what_takes_ascending_rows_only():
    rows = torch.tensor([7, 3, 900, 3, 12, 11, 500])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = loo_corr(Ascending(TIES.numpy(), None), (TRUTH[:7], rows)).correlation
        torch.testing.assert_close(stored, loo_corr(TIES, (TRUTH[:7], rows)).correlation, equal_nan=True)


@pytest.mark.parametrize("question", QUESTIONS)
def test_lists_are_not_rounded(question):
    """Numbers of Python are float64, which default to float32 in torch."""
    metric, truth = QUESTIONS[question]
    close = 1 + 1e-9 * COUNTS.double()
    expected, computed = metric(close, truth(100)), metric(close.tolist(), truth(100))
    torch.testing.assert_close(computed.correlation, expected.correlation)
    torch.testing.assert_close(metric(list(close), truth(100)).correlation, expected.correlation)


@pytest.mark.parametrize("wrong", [None, 3, "scores.npy"])
def test_what_is_no_matrix(wrong):
    with pytest.raises(TypeError, match="score: expected a matrix"):
        lds(wrong, (OUTCOMES[:, :100], SUBSETS))


def with_nan():
    broken = DEFINED.clone()
    broken[3, 40] = torch.nan
    return broken


WRONG = {
    "too few columns": (ValueError, "99 columns in total, expected 100", lambda: DEFINED[:, 1:].split(7, dim=1)),
    "too many": (ValueError, "at least 105 columns in total, expected 100", lambda: TIES.split(7, dim=1)),
    "unequal rows": (ValueError, "equally many rows", lambda: [DEFINED[:, :50], torch.cat([DEFINED, DEFINED])[:, 50:]]),
    "too few rows": (ValueError, "999 rows", lambda: [DEFINED[1:]]),
    "vectors": (ValueError, "real matrix", lambda: [DEFINED[:, 0]]),
    "objects": (ValueError, "real numbers.*object", lambda: [DEFINED.numpy().astype(object)]),
    "no columns": (ValueError, "0 columns in total", lambda: [DEFINED[:, :0]]),
    "text": (TypeError, "blocks of str", lambda: "ab"),
    "nan": (ValueError, "score: NaN.*train sample 3, test sample 40", lambda: with_nan().split(7, dim=1)),
}


@pytest.mark.parametrize("question", ["lds", "loo_corr in place"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_blocks(name, question):
    kind, message, make = WRONG[name]
    metric, truth = QUESTIONS[question]
    with pytest.raises(kind, match=message):
        metric(iter(list(make())), truth(100))


def blocks_of_width(*widths):
    return (torch.zeros(2, width) for width in widths)


def test_an_iterable_need_not_end():
    def nothing():
        while True:
            yield torch.zeros(2, 0)

    with pytest.raises(ValueError, match="0 columns in total"):
        list(Scores(nothing()).blocks(6))
    many = blocks_of_width(*[0] * 900, 3, *[0] * 900, 3)
    assert [block.columns for block in Scores(many).blocks(6)] == [slice(0, 3), slice(3, 6)]


@pytest.mark.parametrize(
    "make",
    [partial(torch.ones, 3, 2, dtype=torch.bool), lambda: np.ones((3, 2), ">i2")[::-1], lambda: np.ones((3, 2), "u4")],
)
def test_a_block_reads_real_numbers(make):
    assert torch.equal(Block(make()).read(slice(1, 3)).double(), torch.ones(2, 2, dtype=torch.float64))
