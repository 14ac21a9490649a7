"""Baselines against autograd sample by sample, and against what a linear model says in closed form."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dattri import gradient_cosine, gradient_dot, influence_function

METHODS = {"dot": gradient_dot, "cosine": gradient_cosine, "influence": influence_function}


def data(num_samples, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_samples, 4, generator=generator, dtype=dtype)
    return TensorDataset(inputs, torch.randint(3, (num_samples,), generator=generator))


def network(dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def one_by_one(model, dataset):
    model.eval()
    rows = []
    for inputs, label in dataset:
        loss = nn.functional.cross_entropy(model(inputs[None]), label[None])
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, model.parameters())]))
    return torch.stack(rows)


def test_gradients_are_those_of_autograd_in_evaluation_mode():
    model, train, test = network(), data(300, 1), data(7, 2)  # more than one batch
    model.train()
    dots, cosines = gradient_dot(model, train, test), gradient_cosine(model, train, test)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    left, right = one_by_one(model, train), one_by_one(model, test)
    assert torch.allclose(dots, left @ right.T, rtol=1e-10)
    assert torch.allclose(cosines, nn.functional.normalize(left) @ nn.functional.normalize(right).T, rtol=1e-10)
    assert torch.allclose(gradient_dot(model, train), left.square().sum(1))


def test_influence_is_the_newton_step_of_least_squares():
    """Of a quadratic loss, one sample up-weighted moves the minimum by the inverse Hessian times its gradient."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    labels = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    model, ridge = nn.Linear(4, 1, bias=False).double(), 0.1
    matrix = inputs.T @ inputs / 50 + ridge * torch.eye(4, dtype=torch.float64)
    model.weight.data = torch.linalg.solve(matrix, inputs.T @ labels / 50).T
    train = TensorDataset(inputs, labels)
    half = lambda outputs, labels: (outputs - labels).square().mean() / 2  # noqa: E731
    scores = influence_function(model, train, train, damping=ridge, loss_func=half)
    errors = inputs @ model.weight.data.T - labels
    gradients = errors * inputs
    assert torch.allclose(scores, gradients @ torch.linalg.inv(matrix) @ gradients.T)
    own = influence_function(model, train, damping=ridge, loss_func=half)
    assert torch.allclose(own, scores.diagonal())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_that_of_the_model(name, dtype):
    score = METHODS[name](network(dtype), data(20, 1, dtype), data(5, 2, dtype))
    assert score.dtype == dtype and score.shape == (20, 5) and not score.requires_grad


@pytest.mark.parametrize("damping", [-1, True, "much", float("nan")])
def test_damping_is_a_number(damping):
    with pytest.raises(ValueError, match="damping: expected a number of 0 or larger"):
        influence_function(network(), data(5, 1), damping=damping)


def test_what_cannot_be_inverted_says_so():
    with pytest.raises(ValueError, match="damping: the Hessian plus 0 cannot be inverted; use a larger one"):
        nothing = TensorDataset(torch.zeros(5, 4).double(), torch.zeros(5).long())
        influence_function(nn.Linear(4, 3).double(), nothing, damping=0)
    with pytest.raises(ValueError, match=r"model: it has 30,000 parameters.*20,000 at most.*kronfluence or TRAK"):
        influence_function(nn.Linear(100, 300, bias=False), data(5, 1))
