"""Many models as one against JAX, a loop over index tensors, and one by one; alone and beside other programs.

Run with `python perf/ensembles.py`. Models and data have the size of digits and of MNIST; the numbers are random.
JAX is not a dependency: `pip install jax` for its rows.
"""

import importlib.util
import tempfile
from contextlib import nullcontext
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from busy import busy
from measure import DEVICE, Row, extra_memory, report, seconds
from torch import nn
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset

from dattri.metric import calculate_lds_ground_truth
from dattri.model_util.ensemble import EnsembleTrainer
from dattri.model_util.retrain import retrain_lds
from dattri.model_util.target import EnsembleTarget
from dattri.model_util.threads import single_thread

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


def trainer_of(model_fn, num_epochs, loss_fn=nn.functional.cross_entropy):
    """SGD with momentum, as the published settings use it."""
    optimizer = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
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


def jax_training(layers, samples, labels, batches):
    """A function that trains all models with `jit(vmap(scan))`, with the samples on the device."""
    import jax  # noqa: PLC0415
    from jax import numpy as jnp  # noqa: PLC0415

    def loss(parameters, inputs, targets):
        for number, (weight, bias) in enumerate(parameters):
            inputs = (jnp.maximum(inputs, 0) if number else inputs) @ weight + bias
        return -jnp.take_along_axis(jax.nn.log_softmax(inputs), targets[:, None], 1).mean()

    def step(state, chosen, samples, labels):
        parameters, moments = state
        gradients = jax.grad(loss)(parameters, samples[chosen], labels[chosen])
        moments = jax.tree.map(lambda moment, gradient: 0.9 * moment + gradient, moments, gradients)
        return (jax.tree.map(lambda value, moment: value - 0.01 * moment, parameters, moments), moments), None

    def train(parameters, batches, samples, labels):
        start = parameters, jax.tree.map(jnp.zeros_like, parameters)
        return jax.lax.scan(lambda state, chosen: step(state, chosen, samples, labels), start, batches)[0][0]

    generator = np.random.default_rng(0)
    shapes = [(len(batches), *shape) for shape in pairwise(layers)]
    weights = [generator.uniform(-1, 1, shape).astype("float32") / shape[1] ** 0.5 for shape in shapes]
    parameters = [(jnp.asarray(weight), jnp.zeros((len(batches), weight.shape[2]))) for weight in weights]
    arrays = [jnp.asarray(array.numpy()) for array in (batches, samples, labels)]
    many = jax.jit(jax.vmap(train, in_axes=(0, 0, None, None)))
    return lambda: jax.block_until_ready(many(parameters, *arrays))


LOOPED = 8  # the loop trains every eighth model, and its time is multiplied: beside other programs it takes minutes


def loop_training(model_fn, samples, labels, batches):
    """A function that trains every `LOOPED`th model, one by one, on batches read from tensors, without a loader."""
    samples, labels, batches = samples.to(DEVICE), labels.to(DEVICE), batches.to(DEVICE)

    def call():
        for own in batches[::LOOPED]:
            model = model_fn().to(DEVICE)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            for chosen in own:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(samples[chosen]), labels[chosen]).backward()
                optimizer.step()

    return call


def one_thread(call):
    """Call with one torch thread."""
    with single_thread():
        return call()


def opponents(name, model_fn, layers, *, num_models=32, num_epochs=2, num_samples=2496, repeats=5):
    """Rows against JAX and the loop, alone and beside other programs; and our time under each load."""
    samples, labels = torch.rand(5000, layers[0]), torch.randint(10, (5000,))
    dataset = TensorDataset(samples, labels)
    subsets = [np.sort(np.random.default_rng(seed).permutation(5000)[:num_samples]) for seed in range(num_models)]
    orders = [np.concatenate([np.random.permutation(subset) for _ in range(num_epochs)]) for subset in subsets]  # noqa: NPY002
    batches = torch.as_tensor(np.stack(orders)).view(num_models, -1, 64)
    trainer = trainer_of(model_fn, num_epochs)
    loop = loop_training(model_fn, samples, labels, batches)
    calls = [
        lambda: list(trainer.train_many(dataset, subsets, range(num_models), batch_size=64)),
        loop,
        lambda: one_thread(loop),
    ]
    if importlib.util.find_spec("jax"):
        calls.append(jax_training(layers, samples, labels, batches))
    else:
        print("jax is not installed: no rows against jit(vmap(scan))")
    loads = {"alone": nullcontext, "beside two threads": busy, "beside four threads": partial(busy, programs=2)}
    rows, times = [], {}
    for load, others in loads.items():
        with others():
            ours, *loops, jax = times[load] = [*seconds(*calls, repeats=repeats), *[None] * (4 - len(calls))]
        size = f"{name}, {num_models} models, {num_epochs} epochs, {load}"
        goals = ("1.2x", "5x" if len(layers) == 2 else "2.5x") if load == "alone" else ("", "")
        if jax:
            rows.append(Row("against JAX jit(vmap(scan))", size, ours, jax, goals[0]))
        for threads, loop_time in zip(("all threads", "one thread"), loops, strict=True):
            rows.append(Row(f"against a loop over index tensors, {threads}", size, ours, LOOPED * loop_time, goals[1]))
    return rows, {load: found[0] for load, found in times.items()}


class Block(nn.Module):
    """A layer of a small GPT."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.chance, self.dropout = heads, dropout, nn.Dropout(dropout)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        """The stream after attention and the inner layer."""
        parts = self.mixed(self.before(x)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        chance = self.chance if self.training else 0.0
        found = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=chance, is_causal=True)
        x = x + self.dropout(self.out(found.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.inner(self.between(x)))


class SmallGPT(nn.Module):
    """Layers over characters."""

    def __init__(self, width=64, layers=4, length=64, dropout=0.1):
        super().__init__()
        self.tokens, self.places = nn.Embedding(65, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, 4, dropout) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 65))

    def forward(self, x):
        """A score for each character, shape (batch_size, length, 65)."""
        return self.head(self.blocks(self.tokens(x) + self.places))


def token_loss(outputs, targets):
    """Mean loss of all tokens."""
    return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def conv_net():
    """A small network for pictures of MNIST's size."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 10),
    )


def kinds():
    """Rows for several kinds of models: `train_many` against the same trainer called for one model after the other."""
    rows = []
    pictures = TensorDataset(torch.rand(640, 1, 28, 28), torch.randint(10, (640,)))
    flat = TensorDataset(pictures.tensors[0].flatten(1), pictures.tensors[1])
    text = TensorDataset(*(torch.randint(65, (64, 64)) for _ in range(2)))
    small = TensorDataset(*(torch.randint(65, (64, 16)) for _ in range(2)))
    ce = nn.functional.cross_entropy
    tiny = partial(SmallGPT, 16, 2, 16)
    cases = [
        ("MNIST-size LR", mnist_lr, ce, flat, (16, 64, 256)),
        ("MNIST-size MLP", mnist_mlp, ce, flat, (16, 64, 256)),
        ("small convolutional", conv_net, ce, pictures, (16, 64)),
        ("tiny GPT", partial(tiny, dropout=0.0), token_loss, small, (16,)),
        ("tiny GPT with dropout", tiny, token_loss, small, (16,)),
        ("small GPT", partial(SmallGPT, dropout=0.0), token_loss, text, (16, 32)),
        ("small GPT with dropout", SmallGPT, token_loss, text, (16, 32)),
    ]
    for name, model_fn, loss_fn, dataset, batch_sizes in cases:
        for batch_size in batch_sizes:
            trainer = trainer_of(model_fn, 1, loss_fn)
            subsets = [np.arange(len(dataset))] * 8
            loader = DataLoader(dataset, batch_size=batch_size, shuffle=True)
            ways = [
                lambda: list(trainer.train_many(dataset, subsets, range(8), batch_size=batch_size)),  # noqa: B023
                lambda: [trainer(loader, seed=seed) for seed in range(8)],  # noqa: B023
            ]
            ours, theirs = seconds(*ways, repeats=3)
            rows.append(Row("8 models against one by one", f"{name}, batches of {batch_size}", ours, theirs, "1x"))
    return rows


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
    """Seconds per kind of work while a full unit is trained, by torch's own profiler; and of the products, GFLOP/s."""
    trainer = trainer_of(model_fn, num_epochs)
    unit = trainer.unit_size()
    size = len(dataloader.dataset) // 2
    subsets = [torch.randperm(len(dataloader.dataset))[:size].sort().values.numpy() for _ in range(unit)]
    call = lambda: list(trainer.train_many(dataloader.dataset, subsets, range(unit), batch_size=64))  # noqa: E731
    everywhere = _ExperimentalConfig(profile_all_threads=True)
    kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * GPU]
    with single_thread():  # which trains the blocks one after the other
        call()
        with profile(activities=kinds, experimental_config=everywhere) as found:
            call()
    clock = "self_device_time_total" if GPU else "self_cpu_time_total"
    times = {event.key.removeprefix("aten::"): getattr(event, clock) / 1e6 for event in found.key_averages()}
    parts = {part: sum(times.pop(name, 0.0) for name in names) for part, names in PARTS.items()}
    parts["everything else"] = sum(times.values())
    weights = sum(layer.weight.numel() for layer in model_fn().modules() if isinstance(layer, nn.Linear))
    first = next(layer for layer in model_fn().modules() if isinstance(layer, nn.Linear)).weight.numel()
    flops = unit * num_epochs * size * 2 * (3 * weights - first)  # no gradient for the inputs of the first layer
    return {"seconds": parts, "models": unit, "gflops": flops / parts["matrix products"] / 1e9}


def main():
    """Print the table; measure how time grows with the number of models, and where it goes."""
    torch.manual_seed(0)
    digits, mnist = data(1297, 64), data(5000, 784)
    small = {"num_subsets": 100, "num_epochs": 10 if GPU else 50, "repeats": 1 if GPU else 3}
    large = {"num_subsets": 100, "num_epochs": 5 if GPU else 2, "repeats": 1 if GPU else 3}
    lr_rows, lr_times = opponents("MNIST-size LR", mnist_lr, [784, 10])
    mlp_rows, mlp_times = opponents("MNIST-size MLP", mnist_mlp, [784, 128, 64, 10])
    rows = [
        *lr_rows,
        *mlp_rows,
        *kinds(),
        training_row("digits LR", digits_lr, digits, "10x", **small),
        training_row("MNIST-size LR", mnist_lr, mnist, "4x", **large),
        training_row("MNIST-size MLP", mnist_mlp, mnist, "100x" if GPU else "2x", **large),
        evaluation_row("digits LR", digits_lr, digits, data(500, 64)),
        evaluation_row("MNIST-size MLP", mnist_mlp, mnist, data(500, 784)),
    ]
    curves = {"digits LR, 5 epochs": growth(digits_lr, digits), "MNIST-size MLP, 1 epoch": growth(mnist_mlp, mnist, 1)}
    parts = {"digits LR": where_time_goes(digits_lr, digits), "MNIST-size MLP": where_time_goes(mnist_mlp, mnist)}
    beside = {"MNIST-size LR": lr_times, "MNIST-size MLP": mlp_times}
    report("ensembles", rows, growth=curves, profile=parts, beside=beside)


if __name__ == "__main__":
    main()
