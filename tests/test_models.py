"""The models agree with the published checkpoints: names, shapes and numbers, from facts gathered in models.json."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.func import functional_call

from dattri.benchmark.models.linear import MLP, LogisticRegression
from dattri.benchmark.models.music_transformer import MusicTransformer
from dattri.benchmark.models.nanogpt import NanoGPT
from dattri.benchmark.models.resnet import ResNet9

FACTS = json.loads((Path(__file__).parent / "models.json").read_text())
MODELS = {
    "mnist_lr": LogisticRegression,
    "mnist_mlp": MLP,
    "cifar2_resnet9": ResNet9,
    "maestro_musictransformer": MusicTransformer,
    "shakespeare_nanogpt": NanoGPT,
}
VOCABULARY = {"maestro_musictransformer": 388, "shakespeare_nanogpt": 65}


def fill(state, names):
    """Numbers that both sides can compute: sines of the place in the list of names and in the tensor."""
    for place, name in enumerate(names):
        if not state[name].is_floating_point() or name == "positional_encoding.pe":
            continue
        wave = torch.sin(0.1 * place + 0.7 * torch.arange(state[name].numel(), dtype=torch.float64))
        values = 1 + 0.5 * wave * wave if name.endswith("running_var") else 0.05 * wave
        state[name].copy_(values.view_as(state[name]))


def sample_input(name, shape):
    """Sines for images, counting for tokens."""
    count = torch.arange(math.prod(shape))
    values = 7 * count % VOCABULARY[name] if name in VOCABULARY else torch.sin(0.01 * count.double()).float()
    return values.view(shape)


@pytest.mark.parametrize("name", MODELS)
def test_model_agrees_with_the_published_one(name):
    facts, model = FACTS[name], MODELS[name]().eval()
    state = model.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == facts["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == facts["parameters"]
    fill(state, facts["state_dict"])
    inputs = sample_input(name, facts["input_shape"])
    with torch.no_grad():
        outputs = model(inputs)
        values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        torch.testing.assert_close(functional_call(MODELS[name]().eval(), values, (inputs,)), outputs)
    assert list(outputs.shape) == facts["output_shape"]
    for part, expected in ((outputs.flatten()[:8], "output_first8"), (outputs.flatten()[-8:], "output_last8")):
        torch.testing.assert_close(part[: len(facts[expected])], torch.tensor(facts[expected]), rtol=1e-4, atol=1e-6)
    assert float(outputs.norm()) == pytest.approx(facts["output_l2"], rel=1e-4)
