"""Small files in the formats in which the data sets and the benchmarks are published."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile

import pytest


def idx(array):
    """A compressed IDX file."""
    head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(head + array.tobytes())


def cifar_archive(batches):
    """A CIFAR-10 archive: one pickle per batch, with bytes as keys."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, (images, labels) in batches.items():
            content = pickle.dumps({b"data": images.reshape(len(images), -1), b"labels": labels}, protocol=2)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_midi(file, *, resolution, notes, sustain_controls, **_):
    """A MIDI file of one piano, with another controller that means nothing here."""
    pretty_midi = pytest.importorskip("pretty_midi")
    piano = pretty_midi.Instrument(program=0)
    piano.notes = [pretty_midi.Note(*note) for note in notes]
    piano.control_changes = [pretty_midi.ControlChange(64, *control) for control in sustain_controls]
    piano.control_changes.append(pretty_midi.ControlChange(67, 127, 0.02))
    midi = pretty_midi.PrettyMIDI(resolution=resolution)
    midi.instruments.append(piano)
    midi.write(str(file))
    return file


def zip_bytes(members, compression=zipfile.ZIP_DEFLATED):
    """A zip archive of bytes by name or `ZipInfo`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zipped(file, members):
    """A zip archive of bytes by name, in a file."""
    file.write_bytes(zip_bytes(members))
    return file


def numbered(checkpoints):
    """Members of an archive of models."""
    return {f"{number}/model_weights_0.pt": content for number, content in enumerate(checkpoints)}
