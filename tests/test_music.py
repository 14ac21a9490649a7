"""Music as tokens: the published reference numbers, through real MIDI files, and archives in the real formats."""

import json
import math
import pickle
import sys
from pathlib import Path

import pytest
from data_files import write_midi, zipped
from helpers import Evil

from dattri.benchmark import music

pretty_midi = pytest.importorskip("pretty_midi")
CASES = json.loads(Path(__file__).with_name("maestro_tokens.json").read_text())


@pytest.fixture
def maestro(tmp_path):
    """The reference cases as an archive of MAESTRO; gives the archive and its members."""
    names = {"2018/b.midi": "train", "2004/z.midi": "train", "2018/a.midi": "test", "2011/c.midi": "validation"}
    members = {
        f"maestro-v2.0.0/{name}": write_midi(tmp_path / "piece.midi", **case).read_bytes()
        for name, case in zip(names, CASES, strict=True)
    }
    records = [{"midi_filename": name, "split": split, "year": 2018} for name, split in names.items()]
    members["maestro-v2.0.0/maestro-v2.0.0.json"] = json.dumps(records).encode()
    return zipped(tmp_path / "maestro-v2.0.0-midi.zip", members), members


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_reference_tokens(tmp_path, case):
    file = write_midi(tmp_path / "piece.midi", **case)
    assert music.read_midi(file) == case["tokens"]
    with file.open("rb") as opened:
        assert music.read_midi(opened) == case["tokens"]
    piano = pretty_midi.PrettyMIDI(str(file)).instruments[0]
    controls = [control for control in piano.control_changes if control.number == 64]
    assert music.encode(music.sustained(piano.notes, music.pedals(controls))) == case["tokens"]


@pytest.mark.parametrize("damage", [lambda content: content[:-10], lambda content: content[:9], lambda _: b"no music"])
def test_a_damaged_file_is_named(tmp_path, damage):
    file = write_midi(tmp_path / "piece.midi", **CASES[1])
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"piece\.midi: expected a complete MIDI file, got \d+ bytes"):
        music.read_midi(file)


def test_without_pretty_midi_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pretty_midi", None)
    with pytest.raises(ImportError, match=r"pip install 'dattri\[music\]'"):
        music.read_midi("piece.midi")


@pytest.mark.parametrize("limit", [None, 1, 5, 100])
def test_windows_by_hand(limit):
    pieces = [list(range(first, first + count)) for first, count in enumerate((256, 257, 512, 513, 900, 0))]
    inputs, later = [], []
    for piece in pieces:
        for number in range(max(0, math.ceil((len(piece) - 256) / 256))):
            offset = 256 * number
            inputs.append(piece[offset : offset + 256])
            later.append(piece[offset + 1 : offset + 257])
    assert len(inputs) == 7
    tensors = music.windows(iter(pieces), limit=limit).tensors
    assert [tensor.tolist() for tensor in tensors] == [inputs[:limit], later[:limit]]
    assert [str(tensor.dtype) for tensor in tensors] == ["torch.int64"] * 2


def test_no_piece_is_read_beyond_the_limit():
    pieces = iter([list(range(513)), list(range(300)), list(range(400))])
    assert len(music.windows(pieces, limit=2)) == 2
    assert len(next(pieces)) == 300, "the second piece was left where it is"


def test_maestro_pieces(maestro):
    archive, _ = maestro
    tokens = [case["tokens"] for case in CASES]
    assert list(music.maestro_pieces(archive, "train")) == tokens[:2], "by name, not by folder"
    assert list(music.maestro_pieces(archive, "test")) == [tokens[2]]
    assert list(music.maestro_pieces(archive, "validation")) == [tokens[3]]
    with pytest.raises(ValueError, match="split: got 'valid', expected one of test, train, validation"):
        music.maestro_pieces(archive, "valid")


def test_maestro_pieces_are_read_when_it_is_their_turn(maestro, tmp_path):
    _, members = maestro
    members["maestro-v2.0.0/2004/z.midi"] = b"damaged"
    pieces = music.maestro_pieces(zipped(tmp_path / "b.zip", members), "train")
    assert next(pieces) == CASES[0]["tokens"]
    with pytest.raises(ValueError, match=r"2004/z\.midi: expected a complete MIDI file"):
        next(pieces)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "nothing was unpacked"


def test_generated_pieces(tmp_path):
    pieces = {f"music/generated_{number}.pickle": [number, 389, 0] for number in (10, 2, 1, 100, 20)}
    members = {name: pickle.dumps(piece, protocol=number % 6) for number, (name, piece) in enumerate(pieces.items())}
    leftovers = {"music/": b"", "__MACOSX/music/._generated_1.pickle": b"x", "music/.DS_Store": b"x"}
    generated = music.generated_pieces(zipped(tmp_path / "generated_music.zip", leftovers | members))
    assert [piece[0] for piece in generated] == [1, 10, 100, 2, 20]
    assert generated[1] == [10, 389, 0]


def test_a_pickle_runs_nothing(tmp_path):
    bad = pickle.dumps([1, Evil(tmp_path / "ran")])
    with pytest.raises(ValueError, match=r"piece_1: expected a pickled list of tokens.*it names"):
        music.generated_pieces(zipped(tmp_path / "a.zip", {"piece_0": pickle.dumps([1]), "piece_1": bad}))
    assert not (tmp_path / "ran").exists()
    pickle.loads(bad)
    assert (tmp_path / "ran").exists(), "the pickle was dangerous"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (pickle.dumps((1, 2)), "got a tuple"),
        (pickle.dumps({1: 2}), "got a dict"),
        (pickle.dumps([1, 390]), "got 390 at position 1"),
        (pickle.dumps([-1]), "got -1 at position 0"),
        (pickle.dumps([1, True]), "got True at position 1"),
        (pickle.dumps([1, 2.0]), "got 2.0 at position 1"),
        (pickle.dumps([1, [2]]), r"got \[2\] at position 1"),
        (pickle.dumps([1, 2])[:-1], "cannot be read"),
        (b"\x80\x02]r\x00\x00\xff\x7fK\x01a.", "it asks for 2147418112 memo slots"),
        (b"read me", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_what_is_no_list_of_tokens_is_named(tmp_path, content, problem):
    archive = zipped(tmp_path / "a.zip", {"piece_0": pickle.dumps([1]), "piece_1": content})
    with pytest.raises(ValueError, match=f"^piece_1: expected a pickled list of tokens.*{problem}"):
        music.generated_pieces(archive)


def test_a_member_too_large_is_not_read(tmp_path):
    large = pickle.dumps([1] * (music.LARGEST_PIECE // 2 + 1))
    with pytest.raises(ValueError, match=rf"piece_0: .* got {len(large)} bytes, which is more than 16777216"):
        music.generated_pieces(zipped(tmp_path / "a.zip", {"piece_0": large}))


def test_pieces_too_large_together_are_not_read(tmp_path):
    large = pickle.dumps([1] * (music.LARGEST_PIECE // 2 - 100_000))
    with pytest.raises(ValueError, match=r"a\.zip: .* got \d+ bytes, which is more than 67108864"):
        music.generated_pieces(zipped(tmp_path / "a.zip", {f"piece_{number}": large for number in range(5)}))


def test_a_damaged_archive_is_named(tmp_path):
    archive = zipped(tmp_path / "a.zip", {"piece_0": pickle.dumps([1])})
    archive.write_bytes(archive.read_bytes()[:-10])
    for read in (music.generated_pieces, lambda file: music.maestro_pieces(file, "train")):
        with pytest.raises(ValueError, match=r"a\.zip: expected a complete zip archive"):
            read(archive)
