"""Every published setting end to end with no internet, and all that can go wrong between a hub and a benchmark."""

import copy
import io
import os
import pickle
import re
import signal
import stat
import subprocess
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Evil, child_command, files
from huggingface_hub import constants
from test_datasets import cifar_archive, idx
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from dattri.benchmark import settings
from dattri.benchmark.archive import load_stored
from dattri.benchmark.build import build_benchmark
from dattri.benchmark.datasets import Datasets
from dattri.benchmark.hub import HUB, commit_of, fetch_file, publish_benchmark
from dattri.benchmark.load import load_benchmark
from dattri.benchmark.manifest import file_hash
from dattri.benchmark.models.gpt2 import CHECKPOINT, gpt2
from dattri.benchmark.models.linear import LogisticRegression
from dattri.benchmark.models.music_transformer import MusicTransformer
from dattri.benchmark.models.nanogpt import NanoGPT
from dattri.benchmark.models.resnet import ResNet9, _Block
from dattri.benchmark.settings import Setting, find_setting, register_setting
from dattri.benchmark.training import cosine
from dattri.metric import lds
from dattri.model_util.checkpoint import to_bytes
from dattri.model_util.ensemble import EnsembleTrainer
from dattri.model_util.target import EnsembleTarget

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {"num_full": 3, "num_half": 5, "num_subsets": 4, "num_runs": 1}


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """A registry of its own for each test."""
    monkeypatch.setattr(settings, "_REGISTRY", dict(settings._REGISTRY))


# --- the published settings, small ---


def small(model, dataset, *, architecture=None, training=None, **changes):
    """A published setting with few samples and models, and perhaps another architecture or a shorter training."""
    setting = find_setting(model, dataset)
    train_func, target_func = replace(setting.train_func, **training or {}), setting.target_func
    if architecture is not None:
        if model != "gpt2":  # which is trained from the weights on the hub
            train_func = replace(train_func, model_fn=architecture)
        target_func = replace(target_func, model_fn=architecture)
        changes["create_model"] = architecture
    return replace(setting, train_func=train_func, target_func=target_func, **SIZES | changes)


def serve_mnist(serve, hub, folder):
    """Ten kinds of images, each with its own bright rows."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 60), ("test", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = generator.integers(50, size=(count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 4] += 200
        serve(f"mnist_{part}_images", idx(images))
        serve(f"mnist_{part}_labels", idx(labels))


def serve_cifar(serve, hub, folder):
    """Bright dogs, dark cats, and others."""
    generator = np.random.default_rng(0)
    labels = [3, 5, 0, 5, 3, 9, 5, 3]
    brightness = np.array([180 if label == 5 else 0 for label in labels], dtype=np.uint8)[:, None, None, None]
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    noise = {name: generator.integers(70, size=(8, 3, 32, 32), dtype=np.uint8) for name in names}
    serve("cifar10", cifar_archive({name: (images + brightness, labels) for name, images in noise.items()}))


def serve_maestro(serve, hub, folder):
    """A piece in the MIDI archive, and what a model made of it on the hub."""
    music = pytest.importorskip("test_music")
    notes = [(64, 40 + number % 12, number / 8, number / 8 + 0.1) for number in range(900)]
    midi = music.write_midi(folder / "a.midi", resolution=220, notes=notes, sustain_controls=[(100, 0.0), (0, 200.0)])
    index = b'[{"midi_filename": "2004/a.midi", "split": "train"}, {"midi_filename": "2006/b.midi", "split": "test"}]'
    members = {"maestro-v2.0.0/2004/a.midi": midi.read_bytes(), "maestro-v2.0.0/maestro-v2.0.0.json": index}
    serve("maestro", music.zipped(folder / "midi.zip", members).read_bytes())
    tokens = music.music.read_midi(midi)
    pieces = {f"music/generated_{number}.pickle": pickle.dumps(tokens[:600]) for number in range(2)}
    generated = music.zipped(folder / "generated.zip", pieces).read_bytes()
    hub.put(HUB, "maestro_musictransformer/generated_music.zip", generated)


def serve_shakespeare(serve, hub, folder):
    """One line again and again."""
    serve("shakespeare", b"To be, or not to be, that is the question:\n" * 300)


TINY_GPT2 = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 8, "bos_token_id": 0, "eos_token_id": 0}


def serve_wikitext(serve, hub, folder):
    """Rows of a few words, a tokenizer that knows them, and weights to begin with."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    words = dict(zip(["to", "be", "or", "not", "that", "is", "question", "?"], range(8), strict=True))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(folder / "gpt2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**TINY_GPT2)).save_pretrained(folder / "gpt2")
    for file in (folder / "gpt2").iterdir():
        hub.put(CHECKPOINT, file.name, file.read_bytes(), repo_type="model")
    for part, count in (("train", 60), ("validation", 30)):
        parquet.write_table(pyarrow.table({"text": ["to be or not to be " * 20] * count}), folder / "text.parquet")
        name = f"wikitext-2-raw-v1/{part}-00000-of-00001.parquet"
        hub.put("Salesforce/wikitext", name, (folder / "text.parquet").read_bytes())


def narrow_resnet():
    """`ResNet9` with few channels."""
    model = ResNet9()
    model.conv1, model.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
    model.layer1, model.layer2, model.layer3 = _Block(4, 4, 1), _Block(4, 8, 2), _Block(8, 8, 2)
    model.linear = nn.Linear(8, 2)
    return model


def class_loss(model, inputs, labels):
    """Cross entropy per sample, by torch alone."""
    return cross_entropy(model(inputs), labels, reduction="none")


def last_loss(model, inputs, labels):
    """Cross entropy of the last token, by torch alone."""
    return cross_entropy(model(inputs)[:, -1], labels[:, -1], reduction="none")


def character_loss(model, inputs, labels):
    """Mean cross entropy of each block, by torch alone."""
    return cross_entropy(model(inputs).transpose(1, 2), labels, reduction="none").mean(1)


def transformers_loss(model, inputs, _):
    """What transformers says of each block."""
    return torch.stack([model(tokens[None], labels=tokens[None]).loss for tokens in inputs])


def faster(model, dataset, **options):
    """The optimizer of a setting with other options."""
    optimizer = find_setting(model, dataset).train_func.optimizer
    return partial(optimizer.func, **optimizer.keywords | options)


PUBLISHED = {
    "mnist_lr": (serve_mnist, class_loss, lambda: small("lr", "mnist", train_size=60, test_size=20)),
    "mnist_mlp": (serve_mnist, class_loss, lambda: small("mlp", "mnist", train_size=60, test_size=20)),
    "cifar2_resnet9": (
        serve_cifar, class_loss,
        lambda: small(
            "resnet9", "cifar2", train_size=24, test_size=5, batch_size=4,
            architecture=narrow_resnet, training={"num_epochs": 8},
        ),
    ),
    "maestro_musictransformer": (
        serve_maestro, last_loss,
        lambda: small(
            "musictransformer", "maestro", train_size=10, test_size=3, batch_size=2,
            architecture=partial(MusicTransformer, width=16, num_heads=2, num_layers=1, inner=16),
            training={"num_epochs": 3, "optimizer": faster("musictransformer", "maestro", lr=0.02)},
        ),
    ),
    "shakespeare_nanogpt": (
        serve_shakespeare, character_loss,
        lambda: small(
            "nanogpt", "shakespeare", train_size=16, test_size=3, batch_size=8,
            architecture=partial(NanoGPT, width=16, num_heads=2, num_layers=1),
            training={"num_steps": 6, "schedule": cosine(1, 6, 0.1)},
        ),
    ),
    "wikitext2_gpt2": (
        serve_wikitext, transformers_loss,
        lambda: small(
            "gpt2", "wikitext2", train_size=8, test_size=4, batch_size=4,
            architecture=partial(gpt2, pretrained=False, **TINY_GPT2),
            training={"num_epochs": 2, "optimizer": faster("gpt2", "wikitext2", lr=0.02)},
        ),
    ),
}
KEYS = {
    "model", "models_full", "models_half", "train_dataset", "test_dataset", "loss_func", "target_func", "train_func",
    "train_sampler", "test_sampler",
}


def plain_models(attributes, kind):
    """The models of a benchmark, loaded with torch alone."""
    found = []
    for path in attributes[f"models_{kind}"]:
        assert type(path) is str
        found.append(copy.deepcopy(attributes["model"]))
        found[-1].load_state_dict(torch.load(path), strict=True)
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_setting(name, hub, serve, tmp_path):
    serve_data, loss, shrink = PUBLISHED[name]
    (tmp_path / "made").mkdir()
    serve_data(serve[0], hub, tmp_path / "made")
    setting = shrink()
    register_setting(setting, replace=True)
    built = build_benchmark(setting, tmp_path / "built", metrics=["lds"])
    publish_benchmark(tmp_path / "built", HUB)
    attributes, truth = load_benchmark(setting.model, setting.dataset, "lds", tmp_path / "load")

    assert set(attributes) == KEYS
    for part in ("train", "test"):
        assert list(attributes[f"{part}_sampler"]) == list(range(getattr(setting, f"{part}_size")))
    expected = [torch.load(built / "lds" / f"{what}_lds.pt") for what in ("target_values", "indices")]
    assert all(torch.equal(*pair) for pair in zip(truth, expected, strict=True))
    assert truth.values.shape == (4, setting.test_size) and truth.indices.shape == (4, setting.train_size // 2)
    for kind, count in (("full", 3), ("half", 5)):
        for number, model in enumerate(plain_models(attributes, kind)):
            assert len(attributes[f"models_{kind}"]) == count
            trained = torch.load(built / f"models_{kind}" / str(number) / "model_weights_0.pt")
            assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items())

    loader = DataLoader(attributes["test_dataset"], batch_size=2, sampler=attributes["test_sampler"])
    path, model = attributes["models_full"][0], plain_models(attributes, "full")[0].eval()
    with torch.no_grad():
        losses = torch.cat([loss(model, *batch) for batch in loader])
    for function in ("target_func", "loss_func"):
        for checkpoint in (path, torch.load(path)):
            found = attributes[function](checkpoint, loader)
            assert found.shape == (setting.test_size,)
            torch.testing.assert_close(found, losses, rtol=1e-4, atol=1e-5)
    train_loader = DataLoader(attributes["train_dataset"], setting.batch_size, sampler=attributes["train_sampler"])
    attributes["model"].load_state_dict(attributes["train_func"](train_loader, seed=1).state_dict())
    score = torch.randn(setting.train_size, setting.test_size, generator=torch.Generator().manual_seed(0))
    assert lds(score, truth).correlation.shape == (setting.test_size,)

    hub.requests.clear()
    load_benchmark(setting.model, setting.dataset, "lds", tmp_path / "load")
    assert not [path for method, path, _ in hub.requests if method == "GET" and re.search("/cdn/|/resolve/", path)]
    asked = len(serve[1])
    hub.__exit__()
    again, same = load_benchmark(setting.model, setting.dataset, "lds", tmp_path / "load")
    assert torch.equal(same.values, truth.values) and again["models_half"] == attributes["models_half"]
    assert len(serve[1]) == asked, "the data were on this machine"


def zip_bytes(members, compression=zipfile.ZIP_DEFLATED):
    """A zip archive of bytes by name or `ZipInfo`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def numbered(checkpoints):
    """Members of an archive of models."""
    return {f"{number}/model_weights_0.pt": content for number, content in enumerate(checkpoints)}


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float64])
def test_checkpoints_as_others_write_them(dtype, hub, serve, tmp_path):
    serve_shakespeare(serve[0], hub, tmp_path)
    setting = PUBLISHED["shakespeare_nanogpt"][2]()
    register_setting(setting, replace=True)
    states = [setting.create_model().state_dict() for _ in range(8)]
    named = [{f"_orig_mod.{name}": value for name, value in state.items()} for state in states]
    given = [to_bytes({"model": state, "model_args": {"n_layer": 1, "bias": False}, "iter_num": 1}) for state in named]
    for kind, part in (("full", given[:3]), ("half", given[3:])):
        members = {f"{number}/": b"" for number in range(len(part))} | numbered(part)
        hub.put(HUB, f"shakespeare_nanogpt/shakespeare_nanogpt_{kind}.zip", zip_bytes(members))
    indices = torch.stack([torch.randperm(16)[:8] for _ in range(7)])
    values = torch.rand(7, 3, dtype=torch.float64)
    hub.put(HUB, "shakespeare_nanogpt/lds/indices_lds.pt", to_bytes(indices.to(dtype)))
    hub.put(HUB, "shakespeare_nanogpt/lds/target_values_lds.pt", to_bytes(values))
    if dtype.is_floating_point:
        with pytest.raises(ValueError, match=r"lds.*ground truth does not fit .* \(7, 8\) and torch.float64"):
            load_benchmark("nanogpt", "shakespeare", "lds", tmp_path / "load")
        return
    attributes, truth = load_benchmark("nanogpt", "shakespeare", "lds", tmp_path / "load")
    assert truth.indices.dtype == torch.int64
    assert torch.equal(truth.indices, indices) and torch.equal(truth.values, values)
    models = plain_models(attributes, "full") + plain_models(attributes, "half")
    for model, state in zip(models, states, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_what_there_is_not(hub, tmp_path):
    with pytest.raises(ValueError, match="mnist_lr has no ground truth for 'mislabel'; expected one of lds, loo"):
        load_benchmark("lr", "mnist", "mislabel", tmp_path)
    with pytest.raises(ValueError, match=r"\('lr', 'mnits'\); expected one of \('lr', 'mnist'\), "):
        load_benchmark("lr", "mnits", "lds", tmp_path)
    assert not hub.requests and not list(tmp_path.iterdir())


# --- a setting that is small enough to be broken in many ways ---

REPO = "someone/points"


def points(folder):
    """Three clouds of points; nothing is downloaded."""
    noise = torch.randn(17, 2, generator=torch.Generator().manual_seed(0)) / 10
    labels = torch.arange(17) % 3
    inputs = torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])[labels] + noise
    return Datasets(TensorDataset(inputs[:12], labels[:12]), TensorDataset(inputs[12:], labels[12:]))


classifier = partial(LogisticRegression, 2, 3)
SMALL = Setting(
    model="lr", dataset="points", create_model=classifier, create_datasets=points, repo_id=REPO, metrics=("lds", "loo"),
    train_func=EnsembleTrainer(classifier, cross_entropy, optimizer=partial(torch.optim.SGD, lr=0.5), num_epochs=5),
    target_func=EnsembleTarget(classifier, partial(cross_entropy, reduction="none")),
    train_size=12, test_size=5, batch_size=4, **SIZES,
)
FULL, HALF = (f"points_lr/points_lr_{kind}.zip" for kind in ("full", "half"))
INDICES, VALUES = (f"points_lr/lds/{what}_lds.pt" for what in ("indices", "target_values"))
WHOLE = ["lds", "manifest.json", "models_full", "models_half"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The small benchmark, built."""
    path = tmp_path_factory.mktemp("built")
    build_benchmark(SMALL, path)
    return path


@pytest.fixture
def good(hub, built):
    """Files of the small benchmark, which are on the hub; its setting is registered."""
    register_setting(SMALL)
    publish_benchmark(built, REPO)
    hub.requests.clear()
    return hub.files(REPO)


def load(path, metric="lds", **options):
    """Load the small benchmark."""
    return load_benchmark("lr", "points", metric, path / "load", **options)


def in_place(path):
    """Parts of the small benchmark that are there; the test fails if anything else was left anywhere."""
    assert {found.name for found in path.iterdir()} <= {"hub", "load"}
    assert {found.name for found in (path / "load").iterdir()} == {"benchmark"}
    assert {found.name for found in (path / "load" / "benchmark").iterdir()} <= {"points_lr", ".points_lr.lock"}
    return sorted(found.name for found in (path / "load" / "benchmark" / "points_lr").iterdir())


def bytes_in_place(path):
    """Hash of all that is in place."""
    return {name: data for name, data in files(path / "load" / "benchmark" / "points_lr").items() if name[-3:] == ".pt"}


def check_whole(path, **options):
    """Load the small benchmark; all of it is there."""
    attributes, truth = load(path, **options)
    assert [len(plain_models(attributes, kind)) for kind in ("full", "half")] == [3, 5]
    assert truth.values.shape == (4, 5) and in_place(path) == WHOLE


@pytest.mark.parametrize("name, before", [(FULL, []), (HALF, WHOLE[1:3]), (INDICES, WHOLE[1:]), (VALUES, WHOLE[1:])])
@pytest.mark.parametrize("fault, times", [("404", 1), ("500", 50), ("cut", 50), ("wrong", 1)])
def test_the_network_fails(good, hub, tmp_path, name, before, fault, times):
    hub.faults[name] = [fault] * times
    error = FileNotFoundError if fault == "404" else OSError
    remedy = {"404": "Check repo_id", "wrong": "other bytes than the hub names.*call again"}.get(fault, "call again")
    with pytest.raises(error, match=f"(?s){name} .*{hub.address}/datasets/{REPO}/resolve/.*{name}.*{remedy}"):
        load(tmp_path)
    assert in_place(tmp_path) == before
    hub.faults.clear()
    check_whole(tmp_path)


@pytest.mark.parametrize("name", [FULL, VALUES])
@pytest.mark.parametrize("faults", [["500"], ["cut"], ["cut", "cut", "cut"]])
def test_the_client_tries_again(good, hub, tmp_path, name, faults):
    hub.faults[name] = list(faults)
    check_whole(tmp_path)
    assert hub.faults[name] == []


def evil(path):
    """A checkpoint that would run code."""
    return to_bytes({"linear.weight": torch.zeros(3, 2), "linear.bias": Evil(path / "ran")})


def swelling(content):
    """The same checkpoint, compressed, as torch never writes it."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return zip_bytes({member: archive.read(member) for member in archive.namelist()})


def with_flag(members, offset, value):
    """A zip archive with another number in the directory entry of the first member."""
    content = bytearray(zip_bytes(members))
    place = content.index(b"PK\1\2") + offset
    content[place : place + len(value)] = value
    return bytes(content)


def special(name, kind):
    """A member that is not a plain file."""
    member = zipfile.ZipInfo(name)
    member.external_attr = (kind | 0o777) << 16
    return member


def broken_inside(members):
    """A zip archive whose first member cannot be decompressed."""
    content = bytearray(zip_bytes(members))
    content[60:90] = bytes(30)
    return bytes(content)


def with_first(models, content):
    """A zip archive of models, the first of which is another one."""
    return zip_bytes(models | numbered([content]))


UNUSABLE = "model 0 cannot be used: .*"
NAN = torch.full((3, 2), torch.nan)
BAD_ZIPS = {
    "leads out": (lambda good, path: zip_bytes(good | {"../../evil": b"x"}), "'../../evil' leads out of the folder"),
    "absolute": (lambda good, path: zip_bytes({str(path / "evil"): b"x"} | good), "evil' leads out of the folder"),
    "drive": (lambda good, path: zip_bytes(good | {"C:evil": b"x"}), "'C:evil' leads out of the folder"),
    "symlink": (lambda good, path: zip_bytes({special("3", stat.S_IFLNK): str(path)} | good), "'3' is no plain file"),
    "device": (lambda good, path: zip_bytes(good | {special("3", stat.S_IFCHR): b""}), "'3' is no plain file"),
    "bomb": (lambda good, path: zip_bytes(good | {"zeros": bytes(2**26)}), r"bytes would swell to 67,\d+,\d+"),
    "large": (lambda good, path: zip_bytes({"0/model_weights_0.pt": os.urandom(2**21)}), "is too large"),
    "lies": (lambda good, path: with_flag(good, 24, b"\1\0\0\0"), "is damaged"),
    "encrypted": (lambda good, path: with_flag(good, 8, b"\1"), "is encrypted"),
    "lzma": (lambda good, path: zip_bytes(good, zipfile.ZIP_LZMA), "is compressed in an unusual way"),
    "missing numbers": (lambda good, path: zip_bytes({name: good[name] for name in sorted(good)[::2]}), r"got \[0, 2"),
    "empty": (lambda good, path: zip_bytes({}), r"got \[\]"),
    "cut": (lambda good, path: zip_bytes(good)[:-30], "is damaged"),
    "broken inside": (lambda good, path: broken_inside(good), "is damaged"),
    "no zip": (lambda good, path: b"no zip", "is damaged"),
    "code": (lambda good, path: with_first(good, evil(path)), UNUSABLE + "names .*getattr"),
    "bomb inside": (
        lambda good, path: with_first(good, swelling(to_bytes({"a": torch.zeros(2**22)}))), UNUSABLE + "swell to 16,"
    ),
    "bytes": (lambda good, path: with_first(good, to_bytes(bytearray(8))), UNUSABLE + "names __builtin__ bytearray"),
    "nan": (
        lambda good, path: with_first(good, to_bytes({"linear.weight": NAN, "linear.bias": torch.ones(3)})),
        "model 0 has NaN or infinity in linear.weight",
    ),
    "cut inside": (lambda good, path: with_first(good, b"PK"), UNUSABLE + "is damaged"),
    "a list": (lambda good, path: with_first(good, to_bytes([1])), UNUSABLE + "holds list"),
    "other model": (
        lambda good, path: with_first(good, to_bytes(LogisticRegression(3, 3).state_dict())),
        "model 0 does not fit LogisticRegression",
    ),
    "a missing name": (
        lambda good, path: with_first(good, to_bytes({"linear.weight": torch.zeros(3, 2)})),
        "model 0 does not fit LogisticRegression",
    ),
}


@pytest.mark.parametrize("what, name", [*((what, HALF) for what in BAD_ZIPS), ("symlink", FULL), ("code", FULL)])
def test_a_zip_that_must_not_be_used(good, hub, tmp_path, what, name):
    before = WHOLE[1:3] if name == HALF else []
    spoil, problem = BAD_ZIPS[what]
    with zipfile.ZipFile(io.BytesIO(good[name])) as archive:
        models = {member: archive.read(member) for member in archive.namelist()}
    hub.put(REPO, name, spoil(models, tmp_path))
    with pytest.raises(ValueError, match=f"(?s){name}.*{problem}.*redownload=True"):
        load(tmp_path)
    assert in_place(tmp_path) == before
    hub.put(REPO, name, good[name])
    check_whole(tmp_path, redownload=bool(before))  # what is there is of the commit with the bad file


NO_FIT = "ground truth does not fit points_lr"
ROWS = torch.arange(24).view(4, 6) % 12
BAD_TENSORS = {
    "code": (INDICES, evil, "names .*getattr"),
    "dict": (VALUES, lambda _: to_bytes({"values": torch.rand(4, 5)}), "expected a tensor, got dict"),
    "sparse": (VALUES, lambda _: to_bytes(torch.rand(4, 5).to_sparse()), "names torch._utils _rebuild_sparse_tensor"),
    "bytes": (VALUES, lambda _: to_bytes({"values": bytearray(8)}), "names __builtin__ bytearray, and only tensors"),
    "cut": (VALUES, lambda _: to_bytes(torch.rand(4, 5))[:-10], "is damaged"),
    "text": (INDICES, lambda _: b"what is this", "is damaged"),
    "a zip": (VALUES, lambda _: zip_bytes({"a": b"b"}), "is not a checkpoint"),
    "bomb": (VALUES, lambda _: swelling(to_bytes(torch.zeros(2**22))), r"would swell to 16,\d+,\d+"),
    "expanded": (VALUES, lambda _: to_bytes(torch.zeros(1).expand(2**30, 2**30)), "is more than its .* bytes hold"),
    "models": (VALUES, lambda _: to_bytes(torch.rand(3, 5)), NO_FIT),
    "tests": (VALUES, lambda _: to_bytes(torch.rand(4, 6)), NO_FIT),
    "one axis": (VALUES, lambda _: to_bytes(torch.rand(5)), NO_FIT),
    "nan": (VALUES, lambda _: to_bytes(torch.full((4, 5), torch.nan)), NO_FIT),
    "number": (INDICES, lambda _: to_bytes(torch.tensor(3)), NO_FIT),
    "nothing": (INDICES, lambda _: to_bytes(torch.zeros(4, 0, dtype=torch.int64)), NO_FIT),
    "too large": (INDICES, lambda _: to_bytes(ROWS + 1), NO_FIT),
    "negative": (INDICES, lambda _: to_bytes(ROWS - 1), NO_FIT),
    "twice": (INDICES, lambda _: to_bytes(ROWS // 2), NO_FIT),
    "no whole numbers": (INDICES, lambda _: to_bytes(ROWS.double() * torch.inf), NO_FIT),
    "bool": (INDICES, lambda _: to_bytes(ROWS[:, :2] > 0), NO_FIT),
}


@pytest.mark.parametrize("what", BAD_TENSORS)
def test_a_ground_truth_that_must_not_be_used(good, hub, tmp_path, what):
    name, spoil, problem = BAD_TENSORS[what]
    hub.put(REPO, name, spoil(tmp_path))
    place = "points_lr/lds" if problem == NO_FIT else name
    with pytest.raises(ValueError, match=f"(?s){place}.*{problem}.*redownload=True"):
        load(tmp_path)
    assert in_place(tmp_path) == WHOLE[1:]
    hub.put(REPO, name, good[name])
    check_whole(tmp_path, redownload=True)


def test_two_members_of_one_name(tmp_path):
    """The reader may take either, so each is looked at."""
    pickles = []
    for content in (bytearray(8), torch.ones(1)):
        with zipfile.ZipFile(io.BytesIO(to_bytes(content))) as archive:
            pickles.append(archive.read("archive/data.pkl"))
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as both, pytest.warns(UserWarning, match="Duplicate name"):
        for pickled in pickles:
            both.writestr("archive/data.pkl", pickled)
    with pytest.raises(ValueError, match="names __builtin__ bytearray"):
        load_stored(tmp_path / "a.pt")


def test_the_code_would_have_run(tmp_path):
    torch.load(io.BytesIO(evil(tmp_path)), weights_only=False)
    assert (tmp_path / "ran").exists()


def test_a_part_that_is_missing(good, hub, tmp_path):
    loo = {name: None for name in good if "/loo/" in name}
    hub.change(("dataset", REPO), loo)
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match=rf"points_lr/loo/indices_loo\.pt .*{hub.address}.*redownload=True"):
            load(tmp_path, "loo")
        check_whole(tmp_path)
    hub.change(("dataset", REPO), {name: good[name] for name in loo})
    assert load(tmp_path, "loo", redownload=True)[1].indices.tolist() == list(range(12))


@pytest.mark.parametrize("part", ["models_full/1/model_weights_0.pt", "models_half/4/model_weights_0.pt", INDICES[10:]])
@pytest.mark.parametrize("change", ["other", "removed", "added"])
def test_a_file_that_changed_on_disk(good, hub, tmp_path, part, change):
    check_whole(tmp_path)
    whole = bytes_in_place(tmp_path)
    file = tmp_path / "load" / "benchmark" / "points_lr" / part
    if change == "other":
        file.write_bytes(bytes([*file.read_bytes()[:-1], 1]))
    elif change == "removed":
        file.unlink()
    else:
        file = file.with_name("extra.pt")
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{file} .*redownload=True"):
        load(tmp_path)
    check_whole(tmp_path, redownload=True)
    assert bytes_in_place(tmp_path) == whole


CHILD = """
import test_benchmarks as tests
from pathlib import Path
path = Path(path)
tests.register_setting(tests.SMALL)
def start(function, *arguments):  # a process of its own, which need not import all that again
    if (number := os.fork()) == 0:
        function(*arguments)
        os._exit(0)
    return number
def end(number):
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
"""


def child(code, path):
    """A process that knows this module as `tests` and is given a path."""
    return subprocess.Popen(child_command(CHILD + code, path), stdout=subprocess.PIPE, text=True)


def test_a_process_is_killed_while_it_downloads(good, hub, tmp_path):
    hub.faults.update({HALF: ["stall"], VALUES: ["stall"]})
    attempt = "number = start(tests.load, path); print(number, flush=True); assert end(number) == -signal.SIGKILL"
    with child(f"for _ in range(2): {attempt}", tmp_path) as process:
        for before in (WHOLE[1:3], WHOLE[1:]):
            assert hub.stalled.wait(60)
            hub.stalled.clear()
            os.kill(int(process.stdout.readline()), signal.SIGKILL)
            left = in_place(tmp_path)
            assert left[1:] == before and re.fullmatch(r"\.(lds|models_half)\.\w+\.part", left[0])
    assert process.returncode == 0
    check_whole(tmp_path)


@pytest.mark.parametrize("fatal", [1, 2])
def test_a_replacement_that_stops_half_way(good, tmp_path, monkeypatch, fatal):
    check_whole(tmp_path)
    rename, calls = Path.rename, []

    def interrupted(path, new):
        calls.append(path)
        if len(calls) == fatal:
            raise KeyboardInterrupt
        return rename(path, new)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", interrupted)
        load(tmp_path, redownload=True)
    assert in_place(tmp_path) == WHOLE
    check_whole(tmp_path)


def test_two_processes_at_once(good, hub, tmp_path):
    both = "[start(tests.check_whole, path) for _ in range(2)]"
    with child(f"print([end(number) for number in {both}])", tmp_path) as process:
        assert process.communicate(timeout=120)[0].strip() == "[0, 0]"
    stored = [path for method, path, _ in hub.requests if method == "GET" and path.startswith("/cdn/")]
    assert len(stored) == len(set(stored)) == 4, "each file was fetched once"
    check_whole(tmp_path)


def test_offline(good, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=f"(?s){FULL} .*{hub.address}.*could not be fetched.*HF_HUB_OFFLINE"):
        load(tmp_path)
    assert in_place(tmp_path) == [] and not hub.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    check_whole(tmp_path)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_whole(tmp_path)
    with pytest.raises(OSError, match=r"points_lr/loo/indices_loo\.pt"):
        load(tmp_path, "loo")
    assert in_place(tmp_path) == WHOLE and not hub.requests


def other_values(good):
    """Files of another build, whose targets differ."""
    changed = {VALUES: torch.rand(4, 5), VALUES.replace("lds", "loo"): torch.rand(12, 5)}
    return good | {name: to_bytes(tensor) for name, tensor in changed.items()} | {FULL: good[HALF], HALF: good[FULL]}


@pytest.mark.parametrize("revision", [None, "main"])
def test_all_files_come_from_the_commit_of_the_first(good, hub, tmp_path, revision):
    register_setting(replace(SMALL, revision=revision), replace=True)
    check_whole(tmp_path)
    other = other_values(good)
    new = hub.change(("dataset", REPO), other)
    values = VALUES.replace("lds", "loo")
    assert torch.equal(load(tmp_path, "loo")[1].values, torch.load(io.BytesIO(good[values])))
    attributes, truth = load(tmp_path, "loo", redownload=True)
    assert torch.equal(truth.values, torch.load(io.BytesIO(other[values]))) and len(attributes["models_full"]) == 5
    assert commit_of(fetch_file(REPO, values)) == new
    assert torch.equal(load(tmp_path)[1].values, torch.load(io.BytesIO(other[VALUES]))), "lds was of the old commit"


def test_a_replacement_that_fails_leaves_what_was_there(good, hub, tmp_path):
    check_whole(tmp_path)
    hub.change(("dataset", REPO), other_values(good))
    hub.faults[HALF] = ["500"] * 50
    before = bytes_in_place(tmp_path)
    with pytest.raises(OSError, match=HALF):
        load(tmp_path, redownload=True)
    assert bytes_in_place(tmp_path) == before
    check_whole(tmp_path)
    hub.faults.clear()
    attributes, _ = load(tmp_path, redownload=True)
    assert [len(attributes[f"models_{kind}"]) for kind in ("full", "half")] == [5, 3]


def test_data_that_are_fewer_than_the_setting_says(good, hub, tmp_path):
    register_setting(replace(SMALL, train_size=13), replace=True)
    with pytest.raises(ValueError, match="train_size: points_lr uses 13 samples, but its data set has 12"):
        load(tmp_path)
    assert not hub.requests


# --- publishing and building ---


@pytest.mark.parametrize("token", [None, "hf_other"])
def test_publishing_needs_the_token(built, hub, tmp_path, monkeypatch, token):
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(OSError, match=r"(?s)points_lr was not published to me/points: .*401.*HF_TOKEN"):
        publish_benchmark(built, "me/points")
    assert hub.files("me/points") == {}


def test_publishing_what_is_not_as_it_was_built(built, hub, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"path: nothing that was built in {tmp_path} or its folder"):
        publish_benchmark(tmp_path, "me/points")
    for name, content in files(built).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "benchmark" / VALUES).write_bytes(to_bytes(torch.rand(4, 5)))
    with pytest.raises(ValueError, match=r"lds/target_values_lds\.pt has changed; call build_benchmark"):
        publish_benchmark(tmp_path, "me/points")
    assert hub.files("me/points") == {}


def test_somebody_else_loads_what_was_published(built, hub, tmp_path):
    commit = publish_benchmark(built, "me/points")
    published = hub.files("me/points")
    small = ["points_lr/manifest.json", INDICES, VALUES, *(name.replace("lds", "loo") for name in (INDICES, VALUES))]
    assert {*published} == {"README.md", FULL, HALF, *small}
    assert all(published[name] == (built / "benchmark" / name).read_bytes() for name in small)
    assert publish_benchmark(built, "me/points") == commit, "nothing to do again"
    hub.change(("dataset", "me/points"), {name: b"newer" for name in published})
    register_setting(replace(SMALL, repo_id="me/points", revision=commit))
    check_whole(tmp_path)
    file = tmp_path / "load" / "benchmark" / "points_lr" / "lds" / "target_values_lds.pt"
    assert file_hash(file) == file_hash(built / "benchmark" / VALUES)
    first = Path("points_lr", "models_full", "0", "model_weights_0.pt")
    loaded, state = (torch.load(place / "benchmark" / first) for place in (tmp_path / "load", built))
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


TRAINED, FATAL = [], None


def train_until_killed(dataloader, seed=None):
    """Train one model, or kill the process if this is the fatal one."""
    TRAINED.append(seed)
    if len(TRAINED) == FATAL:
        os.kill(os.getpid(), signal.SIGKILL)
    return SMALL.train_func(dataloader, seed=seed)


PLAIN = replace(SMALL, train_func=train_until_killed, repo_id=None, metrics=("lds",))
BUILD = """
from dattri.benchmark import build
def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
def in_training():
    tests.FATAL = 10
    build.build_benchmark(tests.PLAIN, path)
def in_writing():
    build.Workspace.new_manifest = kill
    build.build_benchmark(tests.PLAIN, path)
for function in (in_training, in_writing):
    print(end(start(function)))
"""


def test_a_build_that_is_killed_twice(tmp_path):
    with child(BUILD, tmp_path / "killed") as process:
        assert process.communicate(timeout=120)[0].split() == ["-9", "-9"]
    assert not (tmp_path / "killed" / "benchmark" / "points_lr" / "manifest.json").exists()
    TRAINED.clear()
    build_benchmark(PLAIN, tmp_path / "killed")
    assert not TRAINED, "all models were there"
    build_benchmark(PLAIN, tmp_path / "quiet")
    assert len(TRAINED) == 12
    assert files(tmp_path / "killed") == files(tmp_path / "quiet")


def test_two_builds_are_the_same(tmp_path):
    setting = replace(find_setting("lr", "digits"), num_full=2, num_half=2, num_subsets=3, num_runs=1, num_removed=3)
    setting = replace(setting, train_func=replace(setting.train_func, num_epochs=8))
    one, two = (build_benchmark(setting, tmp_path / name) for name in ("one", "two"))
    assert files(one) == files(two) and (one / "manifest.json").exists()
