"""Everything that takes tensors gives the same on every device and for every floating dtype."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dattri.benchmark.baselines import (
    gradient_cosine,
    gradient_dot,
    influence_function,
    representation_similarity,
    tracin,
    trak,
)
from dattri.benchmark.datamodel import linear_datamodel
from dattri.metric import lds, lds_interval, loo_corr, mislabel_detection_auc
from dattri.metric.ceiling import ceiling_share, lds_ceiling, plan_lds
from dattri.metric.ground_truth import GroundTruth, calculate_targets
from dattri.metric.retrieval import class_share, detection_curve, retrieval_metrics, top_overlap
from dattri.metric.uncertainty import compare_lds, loo_interval, mislabel_interval
from dattri.model_util.ensemble import EnsembleTrainer
from dattri.model_util.retrain import retrain_subsets
from dattri.model_util.target import EnsembleTarget

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")),
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TRAIN, TESTS, SUBSETS = 40, 6, 12
SGD = partial(torch.optim.SGD, lr=0.1)


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SCORE, OTHER, VALUES, RUNS = (
    drawn(seed, *shape)
    for seed, shape in enumerate([(TRAIN, TESTS), (TRAIN, TESTS), (SUBSETS, TESTS), (SUBSETS, 3, TESTS)])
)
MASK = torch.stack([torch.randperm(TRAIN, generator=torch.Generator().manual_seed(s)) < 20 for s in range(SUBSETS)])
LABELS = torch.arange(TRAIN) % 3
ROWS = torch.arange(TRAIN)
CALLS = {
    "lds": lambda put: lds(put(SCORE), (put(VALUES), put(MASK))),
    "lds_interval": lambda put: lds_interval(put(SCORE), (put(VALUES), put(MASK))),
    "compare_lds": lambda put: compare_lds(put(SCORE), put(OTHER), (put(VALUES), put(MASK))),
    "lds_ceiling": lambda put: lds_ceiling(put(RUNS)),
    "ceiling_share": lambda put: ceiling_share(put(SCORE), GroundTruth(put(RUNS), put(MASK))),
    "plan_lds": lambda put: plan_lds(GroundTruth(put(RUNS), put(MASK)), num_subsets=(10, 20), num_runs=(1, 2)).rows[0],
    "loo_corr": lambda put: loo_corr(put(SCORE), (put(OTHER), put(ROWS))),
    "loo_interval": lambda put: loo_interval(put(SCORE), (put(OTHER), put(ROWS))),
    "mislabel_detection_auc": lambda put: mislabel_detection_auc(put(SCORE[:, 0]), put(LABELS == 0)),
    "mislabel_interval": lambda put: mislabel_interval(put(SCORE[:, 0]), put(LABELS == 0)),
    "retrieval_metrics": lambda put: retrieval_metrics(put(SCORE), put(OTHER > 1), k=5),
    "class_share": lambda put: class_share(put(SCORE), put(LABELS), put(LABELS[:TESTS]), k=5),
    "top_overlap": lambda put: top_overlap(put(SCORE), put(OTHER), k=5),
    "detection_curve": lambda put: detection_curve(put(SCORE[:, 0]), put(LABELS == 0)),
}


def rounded(dtype, tensor):
    """Floating values as the dtype holds them, in float64."""
    return tensor.to(dtype).double() if tensor.is_floating_point() else tensor


def placed(device, dtype, tensor):
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)


def numbers(result):
    """All numbers of a result, in float64 on the CPU."""
    parts = vars(result).values() if hasattr(result, "__dataclass_fields__") else result
    found = [torch.as_tensor(part).flatten() for part in parts if isinstance(part, (torch.Tensor, int, float))]
    return torch.cat([part.double().cpu() for part in found])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CALLS)
def test_the_same_numbers(name, device, dtype):
    found = CALLS[name](partial(placed, device, dtype))
    expected = CALLS[name](partial(rounded, dtype))
    assert len(numbers(found)) > 0
    torch.testing.assert_close(numbers(found), numbers(expected), rtol=1e-5, atol=1e-5, equal_nan=True)


def states(model):
    """Two state dicts near that of a model."""
    return [{name: part + drawn(9, *part.shape).to(part) / scale for name, part in model.state_dict().items()}
            for scale in (5, 10)]  # fmt: skip


BASELINES = {
    "gradient_dot": gradient_dot,
    "gradient_cosine": gradient_cosine,
    "influence_function": influence_function,
    "influence_function, few bytes": partial(influence_function, max_bytes=1000),
    "influence_function, conjugate gradients": partial(influence_function, solver="cg", tolerance=1e-7, damping=0.1),
    "influence_function, Hessian": partial(influence_function, curvature="hessian", damping=1.0),
    "tracin": lambda model, *data: tracin(model, states(model), *data, learning_rates=[0.5, 2]),
    "trak": lambda model, *data: trak(model, states(model), *data, dim=4),
    "representation_similarity": representation_similarity,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", BASELINES)
def test_baselines_stay_where_the_model_is(name, device, dtype):
    """Scores on the model's device, in its dtype, are those of the CPU in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    inputs, labels = drawn(5, 8, 3), torch.arange(8) % 2
    expected = BASELINES[name](model, TensorDataset(inputs, labels), TensorDataset(inputs[:5], labels[:5]))
    inputs = inputs.to(dtype)
    found = BASELINES[name](
        model.to(device, dtype), TensorDataset(inputs, labels), TensorDataset(inputs[:5], labels[:5])
    )
    assert found.device.type == device and found.dtype == dtype
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_datamodels_stay_where_the_targets_are(device):
    expected = linear_datamodel((VALUES, MASK)).scores
    found = linear_datamodel((VALUES.to(device), MASK.to(device))).scores
    assert found.device.type == device
    torch.testing.assert_close(found.cpu(), expected)


def errors(outputs, labels):
    """Squared error of each sample."""
    return (outputs - labels).square().mean(1)


def mean_error(outputs, labels):
    return errors(outputs, labels).mean()


@pytest.mark.parametrize("device", DEVICES)
def test_a_bank_of_named_subsets(device, tmp_path):
    """Trained and evaluated on a device, of unequal sizes, the models are those of the CPU to rounding."""
    inputs = drawn(6, 12, 3).float()
    loader = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=4, shuffle=True)
    make = partial(nn.Linear, 3, 1)
    subsets, values = [[0, 1, 2, 3, 4], [5, 6, 7], list(range(12)), [8, 2, 11]], {}
    for where in {"cpu", device}:
        trainer = EnsembleTrainer(make, mean_error, optimizer=SGD, num_epochs=3, device=where)
        retrain_subsets(trainer, loader, tmp_path / where, subsets, 2, seed=0, shared_seed=True)
        target = EnsembleTarget(make, errors, device=where)
        values[where] = calculate_targets(target, tmp_path / where, loader, cache="error").values
    assert values[device].shape == (4, 2, 12)
    torch.testing.assert_close(values[device], values["cpu"], rtol=1e-4, atol=1e-5)


class Attention(nn.Module):
    """One layer of attention over six places."""

    def __init__(self):
        super().__init__()
        self.mixed, self.out = nn.Linear(8, 24), nn.Linear(8, 1)

    def forward(self, x):
        parts = self.mixed(x.unflatten(1, (6, 8))).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in parts)
        mask = torch.ones(6, 6, dtype=torch.bool, device=x.device).tril()
        found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        causal = nn.functional.scaled_dot_product_attention(found, key, value, is_causal=True)
        return self.out(causal.transpose(1, 2).flatten(2)).mean(1)


@pytest.mark.parametrize("device", DEVICES)
def test_attention_trains_as_one(device):
    """Models of a stack are those that are trained alone."""
    inputs = drawn(7, 12, 48).float()
    dataset = TensorDataset(inputs, inputs.sum(1, keepdim=True))
    trainer = EnsembleTrainer(Attention, mean_error, optimizer=SGD, num_epochs=2, device=device)
    subsets = [list(range(8)), list(range(4, 12)), list(range(2, 10))]
    unit = next(iter(trainer.train_many(dataset, subsets, range(3), batch_size=4)))
    assert len(unit) == 3
    for row, found in unit:
        [[(_, expected)]] = trainer.train_many(dataset, subsets[row : row + 1], [row], batch_size=4)
        torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-5)


def dropping():
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1))


def normed():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


REPLAYED = {
    "SGD": (partial(nn.Linear, 3, 1), partial(torch.optim.SGD, lr=0.01), None, 1),
    "momentum": (partial(nn.Linear, 3, 1), partial(torch.optim.SGD, lr=0.01, momentum=0.9), None, 1),
    "Adam": (partial(nn.Linear, 3, 1), torch.optim.Adam, None, 1),
    "Adagrad": (partial(nn.Linear, 3, 1), partial(torch.optim.Adagrad, lr_decay=0.1), None, 0),
    "scheduler": (partial(nn.Linear, 3, 1), SGD, partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5), 4),
    "buffers": (normed, partial(torch.optim.SGD, lr=0.01), None, None),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", REPLAYED)
def test_replayed_steps_train_the_same(name, device, monkeypatch):
    """Models end where steps that are run one by one end; batches of 5 of 63 samples: twelve whole ones and a rest."""
    make, optimizer, scheduler, graphs = REPLAYED[name]
    inputs = drawn(8, 100, 3).float()
    dataset = TensorDataset(inputs, inputs.sum(1, keepdim=True))
    subsets = [torch.randperm(100, generator=torch.Generator().manual_seed(s))[:63].sort().values for s in range(4)]
    arrays, recorded, begin = [subset.numpy() for subset in subsets], [], torch.cuda.CUDAGraph.capture_begin

    def counted(graph, **options):
        recorded.append(graph)
        return begin(graph, **options)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", counted)
    models = {}
    for where in ("cpu", device):
        trainer = EnsembleTrainer(
            make, mean_error, optimizer=optimizer, scheduler=scheduler, num_epochs=4, device=where
        )
        [unit] = trainer.train_many(dataset, arrays, range(4), batch_size=5)
        models[where] = [model.cpu().state_dict() for _, model in unit]
    torch.testing.assert_close(models[device], models["cpu"], rtol=1e-3, atol=1e-4)
    if device != "cpu" and graphs is not None:
        assert len(recorded) == graphs


@pytest.mark.parametrize("device", DEVICES)
def test_replayed_dropout_draws_new_masks(device):
    """Models differ although only their masks do, and the same seeds give the same masks again."""
    inputs = drawn(8, 100, 3).float()
    dataset = TensorDataset(inputs, inputs.sum(1, keepdim=True))
    trainer = EnsembleTrainer(dropping, mean_error, optimizer=SGD, num_epochs=3, device=device)
    twice = [
        [model.state_dict()["0.weight"] for _, model in unit]
        for _ in range(2)
        for unit in trainer.train_many(dataset, [torch.arange(60).numpy()] * 3, [1, 1, 2], batch_size=5)
    ]
    assert torch.equal(torch.stack(twice[0]), torch.stack(twice[1]))
    assert not torch.equal(twice[0][0], twice[0][1])
