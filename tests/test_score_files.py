"""Files of scores and ground truth that users hand in: what is read, and what is refused in our own words."""

import io
import json
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from helpers import Evil
from safetensors import safe_open
from safetensors.torch import save_file

from dattri.metric import GroundTruth, lds
from dattri.metric.files import read_ground_truth, read_scores
from dattri.metric.report import judge
from dattri.model_util.checkpoint import load_checkpoint, to_bytes

NPY = io.BytesIO()
np.save(NPY, np.arange(6.0).reshape(2, 3))
HEADERS = [
    "", "{", "}", "{'descr': '<f8'}", "'\\", "\x00" * 20,
    "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }}",
    "{'descr': '<f8', 'fortran_order': 0, 'shape': (2, 3)}",
    "{'descr': 'f99', 'fortran_order': False, 'shape': (2, 3)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2, 3)}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (2, -3)}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': '23'}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (10**30,)}",
    f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**30},)}}",
    "[" * 3000, "(" * 300 + ")" * 300, "{'descr': '<f8'" + " " * 20_000 + "}",
    "__import__('os').system('true')",
]
OTHERS = [np.zeros((2, 2), complex), np.zeros(2, "f4,f4"), np.array(["a"]), torch.eye(2).to_sparse()]


def npy(header):
    """A file of numpy.save with this header before the numbers."""
    content = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content + np.arange(6.0).tobytes()


def refused(file, match=".", name=None):
    """The message, which must be one of ours: no advice to run code, one line."""
    with pytest.raises(ValueError, match=match) as error:
        read_scores(file, name)
    message = str(error.value)
    assert message.startswith("scores: ")
    assert str(file) in message
    assert "\n" not in message
    assert "allow_pickle" not in message
    assert "weights_only" not in message


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_headers_that_numpy_cannot_parse(tmp_path, number):
    (tmp_path / "bad.npy").write_bytes(npy(HEADERS[number]))
    refused(tmp_path / "bad.npy", "header or its length is damaged|Python objects")


def test_every_changed_byte_of_a_header_is_read_or_refused(tmp_path):
    file, whole, generator = tmp_path / "changed.npy", NPY.getvalue(), np.random.default_rng(0)
    outcomes = []
    for place in range(128):
        for byte in (0, 255, *generator.integers(0, 256, 2).tolist()):
            file.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            try:
                outcomes.append(read_scores(file).size)
            except ValueError as error:
                outcomes.append(None)
                assert str(error).startswith("scores")
                assert "allow_pickle" not in str(error)
    assert 10 < outcomes.count(None) < len(outcomes)


@pytest.mark.parametrize("content", ["0.5,0.25\n", "", "pickle", "torch", "zip", "cut"])
def test_other_files_named_npy(tmp_path, content):
    file = tmp_path / "scores.npy"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("scores.npy", NPY.getvalue())
    stored = io.BytesIO()
    torch.save(torch.ones(2, 2), stored)
    others = {"torch": stored.getvalue(), "zip": archive.getvalue(), "cut": NPY.getvalue()[:-1]}
    others["pickle"] = pickle.dumps([0.5])
    file.write_bytes(others.get(content, content.encode()))
    other = "does not start like a file of numpy.save" if content else "it is empty"
    refused(file, "length is damaged" if content == "cut" else other)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes in folders are of POSIX")
@pytest.mark.parametrize("name", ["scores.npy", "scores.pt", "scores.safetensors", "scores/a.mmap", "0.pt"])
def test_pipes_are_not_waited_for(tmp_path, name):
    (tmp_path / "of").mkdir()
    file = tmp_path / "of" / name
    file.parent.mkdir(exist_ok=True)
    os.mkfifo(file)
    refused(file, "is a pipe or device")
    if file.suffix != ".npy":
        refused(tmp_path / "of", "pipe or device|no known score format")


def test_folders_named_like_arrays(tmp_path):
    (tmp_path / "scores.npy").mkdir()
    refused(tmp_path / "scores.npy", "is a folder, pipe or device")


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_nothing_in_a_file_is_run(tmp_path, suffix):
    file, witness = tmp_path / f"scores{suffix}", tmp_path / "ran"
    if suffix == ".pt":
        torch.save(Evil(witness), file)
    else:
        np.save(file, np.array([Evil(witness)], dtype=object), allow_pickle=True)
    refused(file, "could run code")
    with pytest.raises(ValueError, match=r"^ground truth: .*could run code"):
        read_ground_truth(file)
    assert not witness.exists()


@pytest.mark.parametrize("values", OTHERS, ids=lambda values: str(values.dtype))
def test_arrays_of_something_else(tmp_path, values):
    file = tmp_path / ("scores.pt" if isinstance(values, torch.Tensor) else "scores.npy")
    torch.save(values, file) if isinstance(values, torch.Tensor) else np.save(file, values)
    with pytest.raises(ValueError, match=f"^scores {file}: expected real numbers"):
        read_scores(file)


@pytest.mark.parametrize("content", [(), [], {}, (None, None), ([[1, 2], [3]], [[0], [1]]), ("a", "b")], ids=str)
def test_ground_truth_that_is_no_pair_of_tensors(tmp_path, content):
    torch.save(content, tmp_path / "truth.pt")
    with pytest.raises((TypeError, ValueError), match=r"^ground truth .*truth\.pt"):
        read_ground_truth(tmp_path / "truth.pt")


def test_ground_truth_of_every_metric(tmp_path):
    values, score = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    pairs = {
        "loo": [torch.tensor([3, 1, 2, 0])],
        "lds": [torch.tensor([[0, 1], [1, 2], [2, 3], [0, 3]]), list(torch.arange(4)[:, None]), torch.eye(4).bool()],
    }
    for metric, several in pairs.items():
        for indices in several:
            GroundTruth(values, indices).save(tmp_path / "truth.pt")
            truth = read_ground_truth(tmp_path / "truth.pt")
            assert judge(score, truth).metric == judge(score, truth, metric).metric == metric
            with pytest.raises(ValueError, match=f"^metric: 'mislabel' does not fit.*as for '{metric}'"):
                judge(score, truth, "mislabel")
    for labels in (torch.tensor([1, 0]), torch.tensor([True, False])):
        torch.save(labels, tmp_path / "labels.pt")
        np.save(tmp_path / "labels.npy", labels.numpy())
        for name in ("labels.pt", "labels.npy"):
            truth = read_ground_truth(tmp_path / name)
            assert truth.tolist() == labels.tolist()
            assert judge(torch.tensor([0.5, 0.1]), truth).metric == "mislabel"
    np.save(tmp_path / "matrix.npy", values.numpy())
    with pytest.raises(ValueError, match=r"^ground truth: .* one array of shape \(4, 3\); expected a pair"):
        read_ground_truth(tmp_path / "matrix.npy")


@pytest.mark.parametrize("kind", ["?", "i1", ">i2", ">i8", "u1", "u2", ">u4", "u8", "f2", ">f4", "f8"])
def test_report_reads_self_attribution_of_every_dtype(tmp_path, kind):
    labels = np.array([0, 1, 1, 0, 0, 1])
    score = np.array([0, 1, 1, 1, 0, 1]).astype(kind)
    np.save(tmp_path / "own.npy", score)
    np.save(tmp_path / "square.npy", np.diag(score))
    for form in (score, score[::-1].copy()[::-1], np.diag(score), *map(read_scores, tmp_path.glob("*.npy"))):
        assert judge(form, labels.astype(kind)).value == pytest.approx(1 - 0.5 / 3)


def test_what_a_file_holds(tmp_path):
    score = torch.ones(3, 2)
    for content in ({"score": score.tolist()}, [score], 0.5):
        torch.save(content, tmp_path / "other.pt")
        refused(tmp_path / "other.pt", f"holds {type(content).__name__}; expected one tensor, or tensors by name")
    torch.save({"one": score}, tmp_path / "dict.pt")
    assert torch.equal(read_scores(tmp_path / "dict.pt"), score)
    torch.save({"one": score, 2: score + 1, "three": "text"}, tmp_path / "dict.pt")
    assert torch.equal(read_scores(tmp_path / "dict.pt", "2"), score + 1)
    refused(tmp_path / "dict.pt", "holds 2 arrays; pass the name of one: 'one', '2'$")
    refused(tmp_path / "dict.pt", "holds no array 'three'; expected one of 'one', '2'$", "three")
    torch.save(score, tmp_path / "single.pt")
    refused(tmp_path / "single.pt", "one unnamed array; omit name", "score")
    torch.save(score[None], tmp_path / "cube.pt")
    refused(tmp_path / "cube.pt", r"shape \(1, 3, 2\); expected one number for each pair")
    known = "has no known score format; known formats are numpy.save: a file .npy; text: .*torch.save: .*kronf.*quanda"
    (tmp_path / "bad.txt").write_text("1,2")
    refused(tmp_path / "bad.txt", known)
    torch.save(torch.nn.Parameter(score), tmp_path / "parameter.pt")
    assert not read_scores(tmp_path / "parameter.pt").requires_grad
    with pytest.raises(FileNotFoundError, match="file not found"):
        read_scores(tmp_path / "missing.pt")


STRANGE = {  # a file's bytes, what is said of it as .pt, and what to do
    "empty": (b"", r"is empty \(0 bytes\)", "Save the scores again, with torch.save"),
    "text": (b"train,test", r"was not written by torch\.save \(it starts with b'train,test'\)", "Save the scores"),
    "old": (b"\x80\x02\x8a\nl", r"is a bare pickle, .* before torch 1\.6", "Save it again with"),
    "cut": (to_bytes(torch.ones(3))[:-30], "is damaged", "Save the scores"),
    "numpy": (b"\x93NUMPY\x01\x00v", "was written by numpy.save, not by torch.save", "Rename it to end in .npy"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_files_that_are_empty_or_of_another_program_are_told_apart(name, tmp_path):
    content, problem, remedy = STRANGE[name]
    file = tmp_path / "scores.pt"
    file.write_bytes(content)
    refused(file, rf"scores\.pt {problem}.*{remedy}")
    with pytest.raises(ValueError, match=rf"ground truth: .*scores\.pt {problem}.*(Expected a file of|Rename|Save it)"):
        read_ground_truth(file)
    with pytest.raises(ValueError, match=rf"scores\.pt {problem}.*(Delete this file|Rename|Save it)"):
        load_checkpoint(file)
    for other in (".npy", ".safetensors"):
        if not content:
            (tmp_path / f"scores{other}").touch()
            refused(tmp_path / f"scores{other}", "it is empty.*Save the scores again")


DRAW = torch.Generator().manual_seed(0)
SCORE = torch.randn(12, 5, generator=DRAW)  # (num_train, num_test)
SUBSETS = torch.stack([torch.randperm(12, generator=DRAW)[:6] for _ in range(9)])
TRUTH = (SCORE[SUBSETS].sum(1) + torch.randn(9, 5, generator=DRAW), SUBSETS)


def as_tensor(read):
    """What was read, as a tensor."""
    return read if isinstance(read, torch.Tensor) else torch.from_numpy(np.array(read))


def write_trak(save_dir, finished=1, **experiments):
    """As traker's MmapSaver leaves it."""
    (save_dir / "scores").mkdir(parents=True)
    entries = {}
    for name, score in experiments.items():
        np.lib.format.open_memmap(save_dir / f"scores/{name}.mmap", "w+", np.float32, tuple(score.shape))[:] = score
        path = f"/elsewhere/scores/{name}.mmap"
        entries[name] = {"num_targets": score.shape[1], "scores_path": path, "scores_finalized": finished}
    (save_dir / "experiments.json").write_text(json.dumps(entries))
    (save_dir / "metadata.json").write_text(json.dumps({"JL dimension": 8, "train set size": 12}))
    return save_dir


ARGUMENTS = {"compute_per_module_scores": "False", "data_partitions": "1"}


def write_kronfluence(folder, stem="pairwise_scores", **modules):
    """As kronfluence's save_pairwise_scores or save_self_scores leaves it."""
    folder.mkdir(exist_ok=True)
    whole = {name: values.contiguous() for name, values in modules.items()}
    save_file(whole, folder / f"{stem}.safetensors", ARGUMENTS)
    (folder / "score_arguments.json").write_text(json.dumps({"strategy": "ekfac"}))
    return folder


NUMPY_DTYPES = {"float16": "f2", "bfloat16": "u2", "float32": "f4", "float64": "f8"}


def write_bergson(folder, score):
    """As bergson's MemmapSequenceScoreWriter leaves it."""
    folder.mkdir(exist_ok=True)
    dtype, count = str(score.dtype).removeprefix("torch."), score.shape[1]
    number = np.dtype(NUMPY_DTYPES[dtype])
    pair = 1 << number.itemsize.bit_length()
    layout = {"names": [], "formats": [], "offsets": [], "itemsize": -(-count * pair // 8) * 8}
    for query in range(count):
        layout["names"] += [f"score_{query}", f"written_{query}"]
        layout["formats"] += [dtype, "bool"]
        layout["offsets"] += [query * pair, query * pair + number.itemsize]
    formats = [form if form == "bool" else number for form in layout["formats"]]
    records = np.zeros(len(score), np.dtype({**layout, "formats": formats}))
    values = score.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else score.numpy()
    for query in range(count):
        records[f"score_{query}"], records[f"written_{query}"] = values[:, query], True
    records.tofile(folder / "scores.bin")
    rows = {"num_items": len(score), "num_rows": len(score), "num_scores": count}
    (folder / "info.json").write_text(json.dumps({"attribute_tokens": False, **rows, "dtype": layout}, indent=2))
    return folder


def write_quanda(folder, explanations, batch_size=2):
    """As quanda's ExplanationsCache leaves it."""
    folder.mkdir(exist_ok=True)
    for number, part in enumerate(explanations.split(batch_size)):
        torch.save(part.clone(), folder / f"{number}.pt")
    (folder / "explanations_config.yaml").write_text("n_batches: 3\n")
    return folder


def files_of_all_kinds(folder):
    """By name: a path with SCORE, and whether it stays a memory map."""
    np.save(folder / "score.npy", SCORE.numpy())
    torch.save(SCORE, folder / "score.pt")
    save_file({"any": SCORE}, folder / "score.safetensors")
    np.savetxt(folder / "score.csv", SCORE.numpy(), delimiter=",", fmt="%.9g")
    trak, kronfluence = write_trak(folder / "trak", test=SCORE), folder / "scores_ekfac"
    write_kronfluence(kronfluence, all_modules=SCORE.T)
    bergson, quanda = write_bergson(folder / "bergson", SCORE), write_quanda(folder / "quanda", SCORE.T)
    return {
        "numpy": (folder / "score.npy", True), "torch": (folder / "score.pt", False),
        "csv": (folder / "score.csv", False),
        "safetensors": (folder / "score.safetensors", False), "traker": (trak, True),
        "traker's scores": (trak / "scores", True), "traker's file": (trak / "scores/test.mmap", True),
        "kronfluence": (kronfluence, False), "bergson": (bergson, True), "quanda": (quanda, False),
        "kronfluence's file": (kronfluence / "pairwise_scores.safetensors", False),
        "bergson's file": (bergson / "scores.bin", True), "bergson's info": (bergson / "info.json", True),
    }  # fmt: skip


@pytest.mark.filterwarnings("error")
def test_every_format_gives_the_same_matrix(tmp_path):
    for name, (path, is_map) in files_of_all_kinds(tmp_path).items():
        read = read_scores(path)
        assert isinstance(read, np.memmap) == is_map, name
        assert torch.equal(as_tensor(read).float(), SCORE), name
        assert torch.equal(lds(read, TRUTH).correlation.float(), lds(SCORE, TRUTH).correlation), name
        assert judge(read, TRUTH).value == judge(SCORE, TRUTH).value, name


TABLES = {
    "numbers": ("1,2.5\n-3e-2, 4\n", [[1, 2.5], [-0.03, 4]]),
    "no last line end": ("1,2\n3,4", [[1, 2], [3, 4]]),
    "of Windows": ("\ufeff1,2\r\n3,4\r\n", [[1, 2], [3, 4]]),
    "names": ("a,b\n1,2\n3,4\n", [[1, 2], [3, 4]]),
    "numbers as names of some": ("0,b\n1,2\n", [[1, 2]]),
    "pandas": (",0,1\n0,1,2\n1,3,4\n", [[1, 2], [3, 4]]),
    "R": ('"","V1","V2"\n1,1,2\n2,3,4\n', [[1, 2], [3, 4]]),
    "one column": ("1\n2\n3\n", [1, 2, 3]),
    "one named column": (",score\n0,5\n1,6\n", [5, 6]),
    "one line": ("1,2,3", [[1, 2, 3]]),
    "not a number": ("nan,inf\n1,2\n", [[torch.nan, torch.inf], [1, 2]]),
}
NO_TABLES = {
    "empty": ("", "holds no numbers"),
    "only names": ("a,b\n", "holds no numbers"),
    "semicolons": ("1;2\n3;4\n", "is not a table of numbers separated by commas"),
    "a hole": ("1,2\n3,\n", "is not a table of numbers separated by commas .*row 2|could not convert"),
    "ragged": ("1,2\n3\n", "number of columns changed"),
    "counted columns": ("0,1,2\n5,6,7\n", "begins with a line that counts the columns; remove it"),
    "names of lines": (",a\nfirst,1\nsecond,2\n", "could not convert string 'first'"),
    "other line numbers": (",a\n7,1\n3,2\n", "a first column without a name that does not count the lines"),
    "line numbers alone": (",\n0,\n", "could not convert"),
    "bytes": (b"\xff\xfe1\x00", "is not a table of numbers"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", TABLES)
def test_tables(name, tmp_path):
    text, numbers = TABLES[name]
    (tmp_path / "scores.csv").write_bytes(text.encode())
    expected = torch.tensor(numbers, dtype=torch.float64)
    torch.testing.assert_close(as_tensor(read_scores(tmp_path / "scores.csv")), expected, equal_nan=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NO_TABLES)
def test_no_tables(name, tmp_path):
    text, problem = NO_TABLES[name]
    (tmp_path / "scores.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(tmp_path / "scores.csv", problem)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("num_test", [1, 2, 3, 5])
def test_bergson_of_every_dtype_and_width(tmp_path, dtype, num_test):
    score = SCORE[:, :num_test].to(dtype)
    read = read_scores(write_bergson(tmp_path, score))
    assert isinstance(read, torch.Tensor) == (dtype == torch.bfloat16)
    assert as_tensor(read).dtype == dtype and torch.equal(as_tensor(read), score)


def test_several_arrays_are_picked_by_name(tmp_path):
    trak = write_trak(tmp_path / "trak", first=SCORE, second=SCORE + 1)
    both = write_kronfluence(tmp_path / "scores_both", layer1=SCORE.T, layer2=SCORE.T + 1)
    write_kronfluence(both, "self_scores", all_modules=SCORE[:, 0])
    quanda = write_quanda(tmp_path / "quanda", SCORE.T)
    torch.save(SCORE[:, 0], quanda / "self_influence.pt")
    expected = {
        (trak, "second"): SCORE + 1, (trak / "scores", "first"): SCORE, (both, "pairwise_scores/layer1"): SCORE,
        (both / "pairwise_scores.safetensors", "layer2"): SCORE + 1, (both, "self_scores"): SCORE[:, 0],
        (both / "self_scores.safetensors", None): SCORE[:, 0], (quanda, "explanations"): SCORE,
        (quanda, "self_influence"): SCORE[:, 0],
    }  # fmt: skip
    for (path, name), values in expected.items():
        assert torch.equal(as_tensor(read_scores(path, name)), values), (path, name)
    refused(trak, "holds 2 arrays; pass the name of one: 'first', 'second'$")
    refused(both, "3 arrays; .*'pairwise_scores/layer1', 'pairwise_scores/layer2', 'self_scores'$")
    refused(both, "holds no array 'layer1'; expected one of 'pairwise_scores/layer1'", "layer1")
    refused(quanda, "pass the name of one: 'explanations', 'self_influence'$")
    save_file({f"layer{number}": SCORE.clone() for number in range(30)}, tmp_path / "many.safetensors")
    refused(tmp_path / "many.safetensors", "'layer[0-9]+' and 10 more$")


def test_a_file_of_kronfluence_is_known_by_its_header_not_its_name(tmp_path):
    folder = write_kronfluence(tmp_path / "scores", all_modules=SCORE.T)
    renamed = (folder / "pairwise_scores.safetensors").rename(tmp_path / "ekfac.safetensors")
    assert torch.equal(read_scores(renamed), SCORE)
    save_file({"any": SCORE}, folder / "pairwise_scores.safetensors")  # somebody has turned it already
    assert torch.equal(read_scores(folder / "pairwise_scores.safetensors"), SCORE)
    refused(folder, "no finished scores of kronfluence")


def edited(path, **changes):
    """A JSON file with other values."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def spoil_layout(path, **changes):
    """An info.json of bergson whose dtype has other values."""
    edited(path, dtype={**json.loads(path.read_text())["dtype"], **changes})


SPOILED = {
    "tokens": ("attribute_tokens=False", lambda info: edited(info, attribute_tokens=True)),
    "rows": ("info.json says", lambda info: edited(info, num_rows=13)),
    "negative rows": ("is damaged", lambda info: edited(info, num_rows=-12)),
    "no rows": ("is damaged", lambda info: edited(info, num_rows=0)),
    "endless rows": ("info.json says", lambda info: edited(info, num_rows=10**30)),
    "more queries": ("is damaged", lambda info: edited(info, num_scores=6)),
    "fewer queries": ("is damaged", lambda info: edited(info, num_scores=4)),
    "endless queries": ("is damaged", lambda info: edited(info, num_scores=10**7)),
    "text": ("is damaged", lambda info: edited(info, num_scores="many")),
    "objects": ("is damaged", lambda info: spoil_layout(info, formats=["O", "bool"] * 5)),
    "a nested dtype": ("is damaged", lambda info: spoil_layout(info, formats=[["a", "O"], "bool"] * 5)),
    "mixed dtypes": ("is damaged", lambda info: spoil_layout(info, formats=["float32", "bool"] * 4 + ["O", "bool"])),
    "overlap": ("is damaged", lambda info: spoil_layout(info, offsets=[0] * 10)),
    "unequal gaps": (
        "is damaged", lambda info: spoil_layout(info, offsets=[0, 4, 8, 12, 16, 20, 28, 24, 32, 36]),
    ),
    "outside": ("is damaged", lambda info: spoil_layout(info, itemsize=32)),
    "odd rows": ("is damaged", lambda info: spoil_layout(info, itemsize=41)),
    "other names": ("is damaged", lambda info: spoil_layout(info, names=list("abcdefghij"))),
    "no dtype": ("is damaged", lambda info: edited(info, dtype=None)),
    "a list": ("expected a dictionary", lambda info: info.write_text("[]")),
    "deep": ("is damaged", lambda info: info.write_text("[" * 100_000)),
    "no json": ("is damaged", lambda info: info.write_bytes(b"\xff\x00")),
    "candidates": ("only some training samples", lambda info: np.save(info.parent / "candidates.npy", np.arange(3))),
    "cut": ("has 479 bytes", lambda info: (info.parent / "scores.bin").write_bytes(bytes(479))),
    "unfinished": ("sample 0 for query 0 was never written", lambda info: (info.parent / "scores.bin").write_bytes(
        bytes(480))),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILED)
def test_scores_of_bergson_that_are_not_what_they_say(tmp_path, kind):
    message, spoil = SPOILED[kind]
    spoil(write_bergson(tmp_path, SCORE) / "info.json")
    refused(tmp_path, message)


def test_json_that_is_too_large_is_not_read(tmp_path):
    with (write_bergson(tmp_path, SCORE) / "info.json").open("ab") as file:
        file.truncate(2**26 + 1)
    refused(tmp_path, "expected at most 67,108,864")


def test_scores_of_traker_that_are_not_what_they_say(tmp_path):
    folder = write_trak(tmp_path / "trak", finished=0, test=SCORE)
    refused(folder, r"is not finished; call TRAKer.finalize_scores\(exp_name='test'\)")
    edited(folder / "experiments.json", test={"num_targets": 7, "scores_finalized": 1})
    refused(folder, r"shape \(12, 5\), but experiments.json beside it has 7 targets")
    (folder / "experiments.json").write_text("{")
    refused(folder, "experiments.json is damaged: not valid JSON")
    (folder / "experiments.json").unlink()
    assert np.array_equal(read_scores(folder), SCORE)
    np.save(tmp_path / "grads.npy", SCORE)
    for name in ("grads", "test_grads", "features"):
        refused((tmp_path / "grads.npy").rename(tmp_path / f"{name}.mmap"), "pass its save_dir")
        (tmp_path / f"{name}.mmap").rename(tmp_path / "grads.npy")
    (folder / "scores/test.mmap").write_bytes(b"text")
    refused(folder, "does not start like a file of numpy.save")
    witness = tmp_path / "ran"
    with (folder / "scores/test.mmap").open("wb") as file:
        np.save(file, np.array([Evil(witness)], dtype=object), allow_pickle=True)
    refused(folder, "could run code")
    assert not witness.exists()


def test_scores_of_quanda_that_are_not_what_they_say(tmp_path):
    folder, witness = write_quanda(tmp_path, SCORE.T), tmp_path / "ran"
    torch.save(SCORE[:3].T, folder / "1.pt")
    refused(folder, r"1.pt has shape \(5, 3\); expected explanations of shape .*first batch, which has shape \(2, 12\)")
    torch.save([SCORE.T], folder / "1.pt")
    refused(folder, "1.pt holds list; expected one tensor")
    torch.save(Evil(witness), folder / "1.pt")
    refused(folder, "could run code")
    (folder / "1.pt").unlink()
    refused(folder, "lacks batch 1.pt; expected all from 0.pt to 2.pt")
    torch.save(SCORE, folder / "999999999.pt")
    refused(folder, "lacks batch 1.pt")
    assert not witness.exists()


def test_quanda_counts_its_batches(tmp_path):
    explanations = torch.randn(23, 12, generator=DRAW)
    assert torch.equal(read_scores(write_quanda(tmp_path, explanations)), explanations.T)  # 10.pt comes after 9.pt


def test_scores_of_kronfluence_that_are_not_what_they_say(tmp_path):
    part = "pairwise_scores_data_partition0_module_partition1"
    folder = write_kronfluence(tmp_path / "scores", part, all_modules=SCORE.T)
    refused(folder, "no finished scores of kronfluence")
    refused(folder / f"{part}.safetensors", "scores of one partition; aggregate them with kronfluence")
    write_kronfluence(folder, all_modules=torch.randn(5, 12, 3))
    refused(folder, r"shape \(5, 12, 3\); expected one number for each pair")
    file = folder / "pairwise_scores.safetensors"
    for content in (b"", b"text", bytes(100), b"\xff" * 100, file.read_bytes()[:-1], file.read_bytes() + b"\0"):
        file.write_bytes(content)
        refused(file, "could not be read as .safetensors")
        refused(folder, "could not be read as .safetensors")


def test_every_changed_byte_of_a_header_of_safetensors_is_read_or_refused(tmp_path):
    save_file({"any": SCORE}, tmp_path / "whole.safetensors", ARGUMENTS)
    whole, file = (tmp_path / "whole.safetensors").read_bytes(), tmp_path / "changed.safetensors"
    generator, refusals = np.random.default_rng(0), 0
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in range(header):
        for byte in (0, 255, *generator.integers(0, 256, 2).tolist()):
            file.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            try:
                read_scores(file)
            except ValueError as error:
                refusals += 1
                assert str(error).startswith("scores")
    assert header < refusals < 4 * header


def test_dtypes_that_are_no_real_numbers_are_refused(tmp_path):
    for dtype in (torch.complex64, torch.float8_e4m3fn):
        save_file({"any": torch.zeros(3, 2).to(dtype)}, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match=r"^scores .*expected real numbers"):
            read_scores(tmp_path / "other.safetensors")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(bytes(10))
    refused(tmp_path, "has no known score format")
    (tmp_path / "folder.pt").mkdir()
    refused(tmp_path / "folder.pt", "has no known score format")
    with pytest.raises(FileNotFoundError, match="file not found"):
        read_scores(tmp_path / "missing")


def test_without_the_package_safetensors(tmp_path, monkeypatch):
    save_file({"any": SCORE}, tmp_path / "score.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"score.safetensors: .* pip install safetensors"):
        read_scores(tmp_path / "score.safetensors")


def linear_task():
    """A small linear model, its training samples and its test samples."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(17, 4, generator=DRAW), torch.randint(3, (17,), generator=DRAW)
    train, test = (torch.utils.data.TensorDataset(inputs[part], labels[part]) for part in (slice(12), slice(12, None)))
    return torch.nn.Sequential(torch.nn.Linear(4, 3)), train, test


def test_files_that_traker_writes(tmp_path):
    trak = pytest.importorskip("trak")
    model, train, test = linear_task()
    trained = model.state_dict()
    traker = trak.TRAKer(
        model=model, task="image_classification", train_set_size=12, save_dir=tmp_path, device="cpu", proj_dim=8,
        use_half_precision=False, logging_level=50,
    )  # fmt: skip
    for number in (0, 1):
        traker.load_checkpoint(trained, model_id=number)
        traker.featurize(train[:], num_samples=12)
    traker.finalize_features()
    for number in (0, 1):
        traker.start_scoring_checkpoint("test", trained, model_id=number, num_targets=5)
        traker.score(test[:], num_samples=5)
    refused(tmp_path, "is not finished")
    expected, read = traker.finalize_scores("test"), read_scores(tmp_path)
    assert isinstance(read, np.memmap) and read.shape == (12, 5) and np.array_equal(read, expected)
    assert np.array_equal(read_scores(tmp_path / "scores" / "test.mmap"), expected) and np.abs(read).max() > 0
    written = write_trak(tmp_path / "again", test=torch.as_tensor(np.array(read)))
    assert {path.name for path in written.rglob("*")} <= {path.name for path in tmp_path.glob("**/*")}
    entries = [json.loads((folder / "experiments.json").read_text())["test"] for folder in (tmp_path, written)]
    assert entries[0].keys() == entries[1].keys() and entries[0]["scores_finalized"] == 1


@pytest.mark.parametrize("options", [{}, {"data_partitions": 2, "module_partitions": 1}, {"per_module": True}], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_files_that_kronfluence_writes(tmp_path, options):
    pytest.importorskip("kronfluence")
    from kronfluence.analyzer import Analyzer, prepare_model  # noqa: PLC0415
    from kronfluence.arguments import ScoreArguments  # noqa: PLC0415
    from kronfluence.task import Task  # noqa: PLC0415

    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        compute_measurement = compute_train_loss

    options = {"compute_per_module_scores" if name == "per_module" else name: value for name, value in options.items()}
    arguments = ScoreArguments(**options)
    (model, train, test), task = linear_task(), Classification()
    model.append(torch.nn.Linear(3, 3))
    analyzer = Analyzer("all", prepare_model(model, task), task, cpu=True, output_dir=tmp_path, disable_tqdm=True)
    analyzer.fit_all_factors("diagonal", train, per_device_batch_size=12)
    sizes = {"per_device_query_batch_size": 5, "per_device_train_batch_size": 6}
    analyzer.compute_pairwise_scores("one", "diagonal", test, train, score_args=arguments, **sizes)
    folder = tmp_path / "all" / "scores_one"
    for name, expected in analyzer.load_pairwise_scores("one").items():
        asked = f"pairwise_scores/{name}" if "compute_per_module_scores" in options else None
        assert expected.shape == (5, 12) and torch.equal(read_scores(folder, asked), expected.T)
    parts = sorted(folder.glob("*partition*.safetensors"))
    assert len(parts) == (2 if "data_partitions" in options else 0)
    for part in parts:
        refused(part, "scores of one partition")
    with safe_open(folder / "pairwise_scores.safetensors", "pt") as file:
        assert ARGUMENTS.keys() <= file.metadata().keys()
    if not options:
        analyzer.compute_self_scores("one", "diagonal", train, per_device_train_batch_size=6)
        own = analyzer.load_self_scores("one")["all_modules"]
        assert own.shape == (12,) and torch.equal(read_scores(folder, "self_scores"), own)


def test_scores_of_captum_are_test_first():
    influence = pytest.importorskip("captum.influence")
    model, train, test = linear_task()
    loss = torch.nn.CrossEntropyLoss(reduction="sum")
    method = influence.TracInCPFast(model, model[0], train, ["only"], lambda *_: 1.0, loss, batch_size=12)
    weight = model[0].weight  # TracInCPFast leaves the bias out
    gradients = [torch.autograd.grad(loss(model(x[None]), y[None]), weight)[0] for x, y in (*train, *test)]
    rows = torch.stack([gradient.flatten() for gradient in gradients])
    assert torch.allclose(method.influence(tuple(test[:])).T, rows[:12] @ rows[12:].T, atol=1e-5)


def test_files_that_bergson_writes(tmp_path):
    writer = pytest.importorskip("bergson.score.score_writer").MemmapSequenceScoreWriter
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        score, theirs = SCORE.to(dtype), tmp_path / f"theirs {dtype}"
        opened = writer(theirs, 12, 5, dtype=dtype, distributed=False)
        opened([3, 4], score[3:5])
        opened.flush()
        refused(theirs, "training sample 0 for query 0 was never written")
        opened(list(range(12)), score)
        opened.flush()
        read = read_scores(theirs)
        assert torch.equal(as_tensor(read), score)
        ours = write_bergson(tmp_path / f"ours {dtype}", score)
        for name in ("info.json", "scores.bin"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_files_that_quanda_writes(tmp_path):
    cache = pytest.importorskip("quanda.utils.cache").ExplanationsCache
    explanations = torch.randn(23, 12, generator=DRAW)
    for number, part in enumerate(explanations.split(2)):
        cache.save(str(tmp_path), part, number)
    assert torch.equal(read_scores(tmp_path), explanations.T)
