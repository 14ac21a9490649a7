"""Baselines against other people's implementations, Captum and traker, where these are installed."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dattri.benchmark.baselines import influence_function, tracin, trak

CAPTUM = "captum is not installed: it is a reference for TracIn and influence functions"


def data(num_samples, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_samples, 4, generator=generator)
    return TensorDataset(inputs, torch.randint(3, (num_samples,), generator=generator))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


def checkpoints(tmp_path, model):
    """Three files of weights."""
    generator = torch.Generator().manual_seed(1)
    files = [str(tmp_path / f"{number}.pt") for number in range(3)]
    for file in files:
        noise = {key: torch.randn(part.shape, generator=generator) for key, part in model.state_dict().items()}
        torch.save({key: part + 0.3 * noise[key] for key, part in model.state_dict().items()}, file)
    return files


def loader_of(rates):
    """How Captum loads a checkpoint: the learning rate of each is what it returns."""

    def load(model, path):
        model.load_state_dict(torch.load(path))
        return rates[path]

    return load


def test_tracin_of_captum(tmp_path):
    influence = pytest.importorskip("captum.influence", reason=CAPTUM)
    model, train, test = network(), data(30, 1), data(7, 2)
    files = checkpoints(tmp_path, model)
    rates = dict(zip(files, (0.1, 0.2, 0.5), strict=True))
    theirs = influence.TracInCP(
        model, train, files, checkpoints_load_func=loader_of(rates), loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        batch_size=10, sample_wise_grads_per_batch=True,
    )  # fmt: skip
    ours = tracin(model, files, train, test, learning_rates=list(rates.values()))
    assert torch.allclose(ours, theirs.influence(test.tensors, k=None).T, rtol=1e-4, atol=1e-6)
    own = theirs.self_influence(DataLoader(train, batch_size=10))
    assert torch.allclose(tracin(model, files, train, learning_rates=list(rates.values())), own, rtol=1e-4, atol=1e-6)


def test_tracin_of_captum_for_the_last_layer(tmp_path):
    """The fast one of Captum leaves the bias out."""
    influence = pytest.importorskip("captum.influence", reason=CAPTUM)
    model, train, test = network(), data(30, 1), data(7, 2)
    files = checkpoints(tmp_path, model)
    rates = dict.fromkeys(files, 1.0)
    theirs = influence.TracInCPFast(
        model, model[2], train, files, checkpoints_load_func=loader_of(rates),
        loss_fn=nn.CrossEntropyLoss(reduction="sum"), batch_size=10,
    ).influence(test.tensors, k=None)  # fmt: skip
    for frozen in (model[0], model[2].bias):
        frozen.requires_grad_(False)
    assert torch.allclose(tracin(model, files, train, test), theirs.T, rtol=1e-4, atol=1e-6)


def test_influence_function_of_captum(tmp_path):
    """Its naive one decomposes the Hessian and drops what is small; a linear model has no other curvature."""
    module = pytest.importorskip("captum.influence._core.influence_function", reason=CAPTUM)
    model, train, test = nn.Linear(4, 3), data(60, 1), data(7, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.reset_parameters()
    file = str(tmp_path / "model.pt")
    torch.save(model.state_dict(), file)
    theirs = module.NaiveInfluenceFunction(
        model, train, file, checkpoints_load_func=loader_of({file: 1.0}), batch_size=60,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"), projection_dim=15, hessian_reg=1e-2, hessian_inverse_tol=1e-6,
        sample_wise_grads_per_batch=True,
    ).influence(test.tensors, k=None).T  # fmt: skip
    ours = influence_function(model, train, test, damping=1e-2 / 60)
    both = torch.stack([ours.flatten(), theirs.flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.999
    assert torch.allclose(ours / 60, theirs, rtol=1e-2, atol=1e-3 * float(theirs.abs().max()))


def traker_scores(folder, model, states, train, test, ridge):
    """Scores of traker without projections. It divides features by the root of the number of parameters."""
    module = pytest.importorskip("trak", reason="traker is not installed: it is a reference for TRAK")
    projectors = pytest.importorskip("trak.projectors", reason="traker is not installed: it is a reference for TRAK")
    count = sum(part.numel() for part in model.parameters())
    theirs = module.TRAKer(
        model=model, task="image_classification", train_set_size=len(train), save_dir=folder, device="cpu",
        projector=projectors.NoOpProjector(device="cpu"), use_half_precision=False, logging_level=40,
        lambda_reg=len(train) * ridge / count,
    )  # fmt: skip
    for number, state in enumerate(states):
        theirs.load_checkpoint(state, model_id=number)
        for batch in DataLoader(train, batch_size=20):
            theirs.featurize(batch=batch, num_samples=len(batch[0]))
    theirs.finalize_features()
    for number, state in enumerate(states):
        theirs.start_scoring_checkpoint(exp_name="all", checkpoint=state, model_id=number, num_targets=len(test))
        for batch in DataLoader(test, batch_size=9):
            theirs.score(batch=batch, num_samples=len(batch[0]))
    return torch.tensor(theirs.finalize_scores(exp_name="all"))


def test_trak_of_traker(tmp_path):
    """Up to one factor: it scales the inverse of each model, so several models are weighted a little differently."""
    model, train, test = network(), data(80, 1), data(9, 2)
    states = [torch.load(file) for file in checkpoints(tmp_path, model)]
    for number, (chosen, least) in enumerate([(states[:1], 1 - 1e-6), (states[1:2], 1 - 1e-6), (states, 0.98)]):
        theirs = traker_scores(tmp_path / f"trak{number}", model, chosen, train, test, 1e-2).flatten().double()
        ours = trak(model, chosen, train, test, dim=1000, damping=1e-2).flatten().double()
        alike = float(ours @ theirs / ours.norm() / theirs.norm())
        assert alike > least, (number, alike)
