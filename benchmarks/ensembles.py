"""Many models as one against one by one: training (`EnsembleTrainer`), evaluation (`EnsembleTarget`), their limits.

Run with `python benchmarks/ensembles.py`. Models and data have the size of digits and of MNIST; the numbers are random.
"""

import tempfile
from functools import partial

import torch
from measure import DEVICE, Row, extra_memory, report, seconds
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset

from dattri.metric import calculate_lds_ground_truth
from dattri.model_util.ensemble import EnsembleTrainer
from dattri.model_util.retrain import retrain_lds
from dattri.model_util.target import EnsembleTarget

GPU = DEVICE == "cuda"
EACH = partial(nn.functional.cross_entropy, reduction="none")


def digits_lr():
    """650 parameters."""
    return nn.Linear(64, 10)


def mnist_lr():
    """7,850 parameters."""
    return nn.Linear(784, 10)


def mnist_mlp():
    """109,386 parameters."""
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def data(num_samples, num_inputs):
    """A loader like the one of a user, over random numbers."""
    inputs, labels = torch.rand(num_samples, num_inputs), torch.randint(10, (num_samples,))
    return DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)


def trainer_of(model_fn, num_epochs):
    """SGD with momentum, as the published settings use it."""
    optimizer = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    loss_fn = nn.functional.cross_entropy
    return EnsembleTrainer(model_fn, loss_fn, optimizer=optimizer, num_epochs=num_epochs, device=DEVICE)


def plain(dataloader, seed, trainer):
    """The same training as a plain function: one model at a time."""
    return trainer(dataloader, seed=seed)


@torch.no_grad()
def plain_target(path, dataloader, model_fn):
    """The target as a function of one checkpoint."""
    model = model_fn().to(DEVICE)
    model.load_state_dict(torch.load(path, map_location=DEVICE))
    return torch.cat([EACH(model(x.to(DEVICE)), y.to(DEVICE)) for x, y in dataloader])


def training_row(name, model_fn, dataloader, goal, *, num_subsets, num_epochs, repeats):
    """100 models (or the given number) into a directory, as one and one by one."""
    trainer = trainer_of(model_fn, num_epochs)
    with tempfile.TemporaryDirectory() as folder:
        names = (f"{folder}/{number}" for number in range(100))
        call = lambda way: retrain_lds(way, dataloader, next(names), num_subsets=num_subsets, seed=0)  # noqa: E731
        memory = extra_memory(lambda: call(trainer))
        ways = trainer, partial(plain, trainer=trainer)
        ours, theirs = seconds(*(partial(call, way) for way in ways), repeats=repeats, warm=False)
    size = f"{name}, {num_subsets} subsets, {num_epochs} epochs"
    return Row("EnsembleTrainer", size, ours, theirs, goal, memory)


def evaluation_row(name, model_fn, train_loader, test_loader, num_subsets=100):
    """Ground truth of untrained models: as one and one by one."""
    target = EnsembleTarget(model_fn, EACH, device=DEVICE)
    with tempfile.TemporaryDirectory() as folder:
        retrain_lds(trainer_of(model_fn, 0), train_loader, folder, num_subsets=num_subsets, seed=0)
        call = lambda way: calculate_lds_ground_truth(way, folder, test_loader)  # noqa: E731
        memory = extra_memory(lambda: call(target))
        ways = target, partial(plain_target, model_fn=model_fn)
        ours, theirs = seconds(*(partial(call, way) for way in ways), repeats=5)
    return Row("EnsembleTarget", f"{name}, {num_subsets} models, 500 test samples", ours, theirs, "", memory)


def growth(model_fn, dataloader, num_epochs=5, counts=(1, 4, 16, 64, 256)):
    """Seconds to train a growing number of models, as one and one by one."""
    trainer = trainer_of(model_fn, num_epochs)

    def retrain(way, count):
        with tempfile.TemporaryDirectory() as folder:
            retrain_lds(way, dataloader, folder, num_subsets=count, seed=0)

    def point(count):
        ways = trainer, partial(plain, trainer=trainer)
        return count, *seconds(*(partial(retrain, way, count) for way in ways), repeats=1, warm=False)

    return [point(count) for count in counts]


PARTS = {
    "matrix products": ("bmm", "mm", "addmm", "baddbmm"),
    "gathering batches": ("index_select", "index"),
    "orders of samples": ("randperm", "nonzero", "gather", "scatter_"),
    "loss": (
        "_log_softmax", "_log_softmax_backward_data", "nll_loss_forward", "where", "ne", "scatter_add_", "sum", "div",
    ),
    "optimizer": ("Optimizer.step#SGD.step", "Optimizer.zero_grad#SGD.zero_grad", "add_", "mul_"),
}


def where_time_goes(model_fn, dataloader, num_epochs=3):
    """Seconds per kind of work while a full group is trained, by torch's own profiler; and of the products, GFLOP/s."""
    trainer = trainer_of(model_fn, num_epochs)
    group = trainer.group_size()
    size = len(dataloader.dataset) // 2
    subsets = [torch.randperm(len(dataloader.dataset))[:size].sort().values.numpy() for _ in range(group)]
    call = lambda: list(trainer.train_many(dataloader.dataset, subsets, range(group), batch_size=64))  # noqa: E731
    call()
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * GPU]) as found:
        call()
    clock = "self_device_time_total" if GPU else "self_cpu_time_total"
    times = {event.key.removeprefix("aten::"): getattr(event, clock) / 1e6 for event in found.key_averages()}
    parts = {part: sum(times.pop(name, 0.0) for name in names) for part, names in PARTS.items()}
    parts["everything else"] = sum(times.values())
    weights = sum(layer.weight.numel() for layer in model_fn().modules() if isinstance(layer, nn.Linear))
    first = next(layer for layer in model_fn().modules() if isinstance(layer, nn.Linear)).weight.numel()
    flops = group * num_epochs * size * 2 * (3 * weights - first)  # no gradient for the inputs of the first layer
    return {"seconds": parts, "models": group, "gflops": flops / parts["matrix products"] / 1e9}


def main():
    """Print the table; measure how time grows with the number of models, and where it goes."""
    torch.manual_seed(0)
    digits, mnist = data(1297, 64), data(5000, 784)
    large = {"num_subsets": 100, "num_epochs": 50 if GPU else 2, "repeats": 1 if GPU else 3}
    rows = [
        training_row("digits LR", digits_lr, digits, "10x", num_subsets=100, num_epochs=50, repeats=1 if GPU else 3),
        training_row("MNIST-size LR", mnist_lr, mnist, "4x", **large),
        training_row("MNIST-size MLP", mnist_mlp, mnist, "100x" if GPU else "2x", **large),
        evaluation_row("digits LR", digits_lr, digits, data(500, 64)),
        evaluation_row("MNIST-size MLP", mnist_mlp, mnist, data(500, 784)),
    ]
    curves = {"digits LR, 5 epochs": growth(digits_lr, digits), "MNIST-size MLP, 1 epoch": growth(mnist_mlp, mnist, 1)}
    parts = {"digits LR": where_time_goes(digits_lr, digits), "MNIST-size MLP": where_time_goes(mnist_mlp, mnist)}
    report("ensembles", rows, growth=curves, profile=parts)


if __name__ == "__main__":
    main()
