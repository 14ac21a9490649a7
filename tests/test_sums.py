"""Sums of scores against fractions: exact, rounded once, whatever the size of the numbers."""

from fractions import Fraction

import pytest
import torch

from dattri.metric.scores import Block
from dattri.metric.sums import _have_rest, exact_sums, plain_sums, uncertain_columns

SPANS = [(-5, 5), (-20, 20), (-100, 100), (-300, 300)]


def random_members(num_subsets, num_train, draw):
    return (torch.rand(num_subsets, num_train, generator=draw) < 0.5).to(torch.uint8)


def rounded_sums(score, members):
    """Exact sums with fractions, each rounded once."""
    columns = [[Fraction(value) for value in column] for column in score.T.tolist()]
    chosen = [subset.nonzero().flatten().tolist() for subset in members]
    sums = [[float(sum((column[row] for row in rows), Fraction(0))) for rows in chosen] for column in columns]
    return torch.tensor(sums, dtype=torch.float64)


def columns_of_all_sizes(num_train, draw):
    """Normal numbers of very different size, numbers whose size varies within the column, tenths, and zeros."""
    shape, exact = (num_train, 1), torch.float64
    powers = (-320, -307, -160, 0, 30, 290)
    columns = [torch.randn(shape, generator=draw, dtype=exact) * 10.0**power for power in powers]
    for low, high in SPANS:
        sizes = 10.0 ** torch.empty(shape, dtype=exact).uniform_(low, high, generator=draw)
        columns.append(sizes * torch.randn(shape, generator=draw).sign())
    columns += [torch.randint(-9, 9, shape, generator=draw).double() / 10, torch.zeros(shape, dtype=exact)]
    return torch.cat(columns, 1)


@pytest.mark.parametrize("num_train", [1, 2, 7, 60])
def test_sums_are_exact(num_train):
    draw = torch.Generator().manual_seed(num_train)
    members, values = random_members(9, num_train, draw), columns_of_all_sizes(num_train, draw)
    every, expected = torch.arange(values.shape[1]), rounded_sums(values, members)
    assert torch.equal(exact_sums(members, Block(values), every, values.abs().amax(0)), expected)
    certain = 0
    for column in every:  # alone, as one grid for all is too coarse for most
        alone = Block(values[:, column : column + 1])
        if not _have_rest(alone, torch.tensor([0]), float(values[:, column].abs().max())):
            assert torch.equal(plain_sums(members, alone).values[0], expected[column])
            certain += 1
    assert certain > 0


def test_sums_of_integers_beyond_float64_are_exact():
    draw = torch.Generator().manual_seed(0)
    integers = torch.randint(-(2**63), 2**63 - 1, (40, 3), generator=draw)
    integers[:, 1] //= 2**8
    integers[::2, 2], integers[1::2, 2] = 2**53, 1
    members = random_members(12, 40, draw)
    sums = exact_sums(members, Block(integers), torch.arange(3), integers.double().abs().amax(0))
    assert torch.equal(sums, rounded_sums(integers, members))


def test_sums_beyond_float64_keep_their_order():
    large = torch.tensor([[1.7e308], [1.6e308], [-1e308], [3.0]], dtype=torch.float64)
    pairs = torch.zeros(6, 4, dtype=torch.uint8).scatter_(1, torch.combinations(torch.arange(4), 2), 1)
    (sums,) = exact_sums(pairs, Block(large), torch.tensor([0]), large.abs().amax(0))
    exactly = [sum(Fraction(large[row, 0].item()) for row in pair.nonzero().flatten()) for pair in pairs]
    assert sorted(range(6), key=lambda row: sums[row]) == sorted(range(6), key=lambda row: exactly[row])
    mixed = large.index_put((torch.tensor(2), torch.tensor(0)), torch.tensor(5e-324, dtype=torch.float64))
    with pytest.raises(ValueError, match="test sample 7 has both scores near"):
        exact_sums(pairs, Block(mixed, 7), torch.tensor([0]), large.abs().amax(0))


def test_only_uncertain_columns_are_added_again():
    draw = torch.Generator().manual_seed(0)
    members = random_members(5, 50, draw)
    normal = torch.randn(50, generator=draw, dtype=torch.float64)
    several = torch.stack([torch.arange(50.0).double(), normal, torch.full((50,), 0.5).double()], 1)

    def uncertain(score, gaps=None):
        gaps = torch.zeros(score.shape[1]) if gaps is None else gaps
        return uncertain_columns(gaps, Block(score), plain_sums(members, Block(score)))[0].tolist()

    assert uncertain(several) == [1]
    assert uncertain(several / 10) == uncertain(several * 2.0**1018) == [0, 1, 2]
    assert uncertain(several.long()) == uncertain(several * 0) == []
    assert uncertain(several.long() + 2**60) == [0, 1]
    assert uncertain(several / 10, torch.tensor([1e-20, 1.0, 1e-20])) == [0, 2]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (500, 3, 4), (3000, 70, 100)])
def test_plain_sums(sizes, with_threads):
    num_train, num_test, num_subsets = sizes
    draw = torch.Generator().manual_seed(0)
    values, members = torch.randn(num_train, num_test, generator=draw), random_members(num_subsets, num_train, draw)
    sums, magnitude, depth = plain_sums(members, Block(values))
    assert torch.allclose(sums, (members.double() @ values.double()).T, atol=1e-9)
    assert values.double().abs().sum(0).max() <= magnitude <= 1.01 * (num_train * values.double().square().sum()).sqrt()
    assert depth <= num_train + 2
    for threads in (1, 2, 3):
        assert torch.equal(with_threads(threads, lambda: plain_sums(members, Block(values)).values), sums)


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e-150, 1e-120, 1.0, 1e150, 1e200, 1e300])
def test_squares_that_underflow_or_overflow_hide_no_uncertain_column(size):
    """Sums of normal scores of any size that are equal but for rounding are added again."""
    draw = torch.Generator().manual_seed(0)
    members = random_members(5, 50, draw)
    score = torch.randn(50, 3, generator=draw, dtype=torch.float64) * size
    sums = plain_sums(members, Block(score))
    assert sums.magnitude >= float(score.abs().sum(0).max())
    close = sums.values.abs().amax(1) * 2.0**-52
    assert uncertain_columns(close, Block(score), sums)[0].tolist() == [0, 1, 2]
    assert uncertain_columns(close * 2.0**20, Block(score), sums)[0].tolist() == []
