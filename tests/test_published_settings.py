"""Every published setting end to end, small and with no internet, and checkpoints as others write them."""

import pickle
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from benchmark_helpers import SIZES, plain_models
from data_files import cifar_archive, idx, numbered, write_midi, zip_bytes
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from dattri.benchmark.build import build_benchmark
from dattri.benchmark.hub import HUB, publish_benchmark
from dattri.benchmark.load import load_benchmark
from dattri.benchmark.models.gpt2 import _CHECKPOINT, gpt2
from dattri.benchmark.models.music_transformer import MusicTransformer
from dattri.benchmark.models.nanogpt import NanoGPT
from dattri.benchmark.models.resnet import ResNet9, _Block
from dattri.benchmark.music import read_midi
from dattri.benchmark.settings import find_setting, register_setting
from dattri.benchmark.training import cosine
from dattri.metric import lds
from dattri.model_util.checkpoint import to_bytes

pytestmark = pytest.mark.usefixtures("one_thread", "registry")


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
    notes = [(64, 40 + number % 12, number / 8, number / 8 + 0.1) for number in range(900)]
    midi = write_midi(folder / "a.midi", resolution=220, notes=notes, sustain_controls=[(100, 0.0), (0, 200.0)])
    index = b'[{"midi_filename": "2004/a.midi", "split": "train"}, {"midi_filename": "2006/b.midi", "split": "test"}]'
    members = {"maestro-v2.0.0/2004/a.midi": midi.read_bytes(), "maestro-v2.0.0/maestro-v2.0.0.json": index}
    serve("maestro", zip_bytes(members))
    tokens = read_midi(midi)
    pieces = {f"music/generated_{number}.pickle": pickle.dumps(tokens[:600]) for number in range(2)}
    hub.put(HUB, "maestro_musictransformer/generated_music.zip", zip_bytes(pieces))


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
        hub.put(_CHECKPOINT, file.name, file.read_bytes(), repo_type="model")
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
    "train_sampler", "test_sampler", "targets",
}


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
            values = attributes[function](checkpoint, loader)
            assert values.shape == (setting.test_size,)
            torch.testing.assert_close(values, losses, rtol=1e-4, atol=1e-5)
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


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float64])
def test_checkpoints_as_others_write_them(dtype, hub, serve, tmp_path):
    serve_shakespeare(serve[0], hub, tmp_path)
    setting = PUBLISHED["shakespeare_nanogpt"][2]()
    register_setting(setting, replace=True)
    states = [setting.create_model().state_dict() for _ in range(8)]
    named = [{f"_orig_mod.{name}": value for name, value in state.items()} for state in states]
    others = {"model_args": {"n_layer": 1, "bias": False}, "iter_num": 1}
    checkpoints = [to_bytes({"model": state, **others}) for state in named]
    for kind, part in (("full", checkpoints[:3]), ("half", checkpoints[3:])):
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
    meant = r"\('lr', 'mnits'\); did you mean \('lr', 'mnist'\)\? Expected one of \('lr', 'mnist'\), "
    with pytest.raises(ValueError, match=meant):
        load_benchmark("lr", "mnits", "lds", tmp_path)
    assert not hub.requests and not list(tmp_path.iterdir())
