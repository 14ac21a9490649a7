"""Every dtype and layout in which scores may come: exact, or refused by name."""

import numpy as np
import pytest
import scipy.sparse
import torch

from dattri.metric.inputs import as_real_tensor, check_real

EXACT = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
LAYOUTS = {
    "plain": lambda array: array,
    "read-only": lambda array: np.broadcast_to(array, array.shape),
    "reversed": lambda array: array[::-1],
    "transposed": lambda array: np.stack([array, array]).T,
    "column": lambda array: np.stack([array, array], 1)[:, 1],
    "stretched": lambda array: np.broadcast_to(array[:, None], (len(array), 3)),
    "field": lambda array: np.rec.fromarrays([np.zeros(len(array), "i1"), array], names="pad,values")["values"],
}
FLOAT8 = [getattr(torch, name) for name in dir(torch) if name.startswith(("float8_", "float4_"))]
REFUSED = {
    "masked": (np.ma.masked_array([1.0, 2.0], [True, False]), TypeError, "masked array"),
    "masked without mask": (np.ma.masked_array([1.0, 2.0]), TypeError, "masked array"),
    "complex array": (np.zeros(2, complex), ValueError, "dtype complex128, which is complex"),
    "complex tensor": (torch.zeros(2, dtype=torch.complex64), ValueError, "dtype torch.complex64, which is complex"),
    "object": (np.array([1, None]), ValueError, "dtype object"),
    "text": (np.array(["1"]), ValueError, "dtype <U1"),
    "bytes": (np.array([b"1"]), ValueError, r"dtype \|S1"),
    "structured": (np.zeros(2, "f4,i8"), ValueError, r"is structured; .*values\['f0'\]"),
    "void": (np.zeros(2, "V4"), ValueError, r"dtype \|V4"),
    "date": (np.zeros(2, "M8[s]"), ValueError, r"dtype datetime64\[s\]"),
    "duration": (np.zeros(2, "m8[s]"), ValueError, r"dtype timedelta64\[s\]"),
    "sparse": (torch.eye(2).to_sparse(), ValueError, "to_dense"),
    "sparse matrix": (scipy.sparse.csr_matrix(np.eye(2)), ValueError, "is sparse; pass values.toarray"),
    "sparse array": (scipy.sparse.coo_array(np.eye(2)), ValueError, "is sparse; pass values.toarray"),
    "meta": (torch.ones(2, device="meta"), ValueError, "meta device"),
    "text itself": ("scores.npy", TypeError, "got str"),
    "nothing": (None, TypeError, "got NoneType"),
    "number": (1.0, TypeError, "got float"),
    **{str(dtype): (torch.empty(2, dtype=dtype), ValueError, str(dtype)) for dtype in FLOAT8},
}
RARE = {  # torch warns that these kinds of tensors may change
    "csr": (lambda: torch.eye(2).to_sparse_csr(), "to_dense"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "is nested"),
    "jagged": (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged), "is nested"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), "is quantised; .*dequantize"),
}
DTYPES = [torch.bfloat16, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.int64]
if np.dtype(np.longdouble).itemsize > 8:
    REFUSED["longdouble"] = (np.zeros(2, np.longdouble), ValueError, "dtype float128, which has more digits")
    REFUSED["complex longdouble"] = (np.zeros(2, np.clongdouble), ValueError, "is complex")


def extremes(kind: str) -> np.ndarray:
    """Numbers of a dtype that every rounding would change."""
    if kind == "?":
        return np.array([True, False, True])
    if kind.startswith("f"):
        limits = np.finfo(kind)
        return np.array([limits.min, -limits.tiny, 0, limits.eps, 1 + limits.eps, limits.max], kind)
    limits = np.iinfo(kind)
    largest = min(limits.max, 2**63 - 1)
    return np.array([limits.min, limits.min + 1, 0, 1, largest - 1, largest], kind)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", EXACT)
def test_arrays_keep_every_value(kind, order, layout):
    array = LAYOUTS[layout](extremes(kind).astype(np.dtype(kind).newbyteorder(order)))
    before = array.copy()
    tensor = as_real_tensor("score", array)
    assert tensor.tolist() == before.tolist() == array.tolist()
    assert tensor.dtype not in (torch.uint16, torch.uint32, torch.uint64)
    tensor.sort(0)  # what it is for


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_keep_every_value(dtype):
    numbers = torch.tensor([0, 1, 2, 200]).to(dtype)
    for tensor in (numbers, numbers.expand(3, 4).T, numbers[::2]):
        converted = as_real_tensor("score", tensor)
        assert converted.tolist() == tensor.tolist()
        converted.sort(0)


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case):
    values, kind, match = REFUSED[case]
    for function in (check_real, as_real_tensor):
        with pytest.raises(kind, match=f"^ground_truth: .*{match}"):
            function("ground_truth", values)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", RARE)
def test_rare_tensors_are_refused(case):
    make, match = RARE[case]
    for function in (check_real, as_real_tensor):
        with pytest.raises(ValueError, match=f"^score: .*{match}"):
            function("score", make())


@pytest.mark.parametrize("make", [np.asarray, lambda numbers: torch.from_numpy(np.asarray(numbers))])
def test_uint64_beyond_int64(make):
    numbers = make(np.array([0, 2**63], np.uint64))
    check_real("score", numbers)
    with pytest.raises(ValueError, match="score: its dtype uint64 holds numbers above"):
        as_real_tensor("score", numbers)


def test_the_check_reads_nothing():
    class OnDisk:
        shape, dtype = (10**9, 10**9), np.dtype(">f4")

        def __getattr__(self, name):
            raise AssertionError(f"{name} was asked for")

    check_real("score", OnDisk())


@pytest.mark.parametrize("numbers", [[2**53 + 1, 0.5], [[0.5], [-(2**62) - 1]], [2**64]], ids=str)
def test_lists_that_would_be_rounded(numbers):
    with pytest.raises(ValueError, match=r"^score: "):
        as_real_tensor("score", numbers)
