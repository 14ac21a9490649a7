"""Baselines against autograd sample by sample, against closed forms of linear models, and in any blocks."""

import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import TensorDataset

from dattri import GroundTruth, Targets, gradient_cosine, gradient_dot, influence_function, lds
from dattri.benchmark.baselines import bm25, choose_damping, representation_similarity, tracin, trak
from dattri.benchmark.datamodel import linear_datamodel
from dattri.benchmark.gradients import FlatModel, curvature_products
from dattri.benchmark.models.nanogpt import NanoGPT
from dattri.benchmark.training import block_loss


def states(model, count=2):
    """State dicts near that of a model."""
    generator = torch.Generator().manual_seed(3)
    return [
        {name: part + 0.1 * torch.randn(part.shape, generator=generator, dtype=part.dtype)
         for name, part in model.state_dict().items()} for _ in range(count)
    ]  # fmt: skip


def of_checkpoints(method, model, train, test=None, **options):
    """A method of several checkpoints, called like one of a single model."""
    return method(model, states(model), train, test, **options)


METHODS = {
    "dot": gradient_dot, "cosine": gradient_cosine, "influence": influence_function,
    "influence by steps": partial(influence_function, solver="cg", tolerance=1e-6, damping=0.1),
    "hessian": partial(influence_function, curvature="hessian", damping=1.0),
    "tracin": partial(of_checkpoints, tracin, learning_rates=[0.5, 2]), "trak": partial(of_checkpoints, trak, dim=8),
    "likeness": representation_similarity,
}  # fmt: skip
GRADIENTS = [name for name in METHODS if name != "likeness"]


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


@pytest.mark.parametrize("damping", [-1, True, "much", math.nan])
def test_damping_is_a_number(damping):
    with pytest.raises(ValueError, match="damping: expected a number of 0 or larger"):
        influence_function(network(), data(5, 1), damping=damping)


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("tests", [True, False])
def test_blocks_change_nothing(name, tests):
    model, train, test = network(), data(20, 1), data(7, 2) if tests else None
    whole = METHODS[name](model, train, test)
    assert whole.shape == ((20, 7) if tests else (20,))
    sizes = (43 * 8 * 12 * 3, 43 * 8 * 4 * 9)  # of a few samples, and of more
    for max_bytes in sizes if "steps" in name else (1, *sizes):
        part = METHODS[name](model, train, test, max_bytes=max_bytes)
        scale = float(whole.abs().max())
        assert torch.allclose(part, whole, rtol=0, atol=(1e-5 if "steps" in name else 1e-10) * scale), max_bytes


@pytest.mark.parametrize("name", METHODS)
def test_self_attribution_is_the_diagonal(name):
    model, train = network(), data(30, 1)
    assert torch.allclose(METHODS[name](model, train), METHODS[name](model, train, train).diagonal(), atol=1e-7)


@pytest.mark.parametrize("name", METHODS)
def test_nothing_of_the_users_is_touched(name):
    model, train = network().train(), data(20, 1)
    before = {key: part.clone() for key, part in model.state_dict().items()}
    state, drawn = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = METHODS[name](model, train, data(5, 2))
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(part, before[key]) for key, part in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state()) and (np.random.get_state()[1] == drawn).all()  # noqa: NPY002
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert torch.equal(first, METHODS[name](model, train, data(5, 2))), "the same again"


@pytest.mark.parametrize("name", GRADIENTS)
def test_frozen_parameters_play_no_part(name):
    model, train, test = network(), data(40, 1), data(5, 2)
    model[0].requires_grad_(False)
    hidden = [TensorDataset(model[0](part.tensors[0]).tanh(), part.tensors[1]) for part in (train, test)]
    last = nn.Linear(5, 3).double()
    last.load_state_dict(model[3].state_dict())
    if name in ("tracin", "trak"):
        moved = states(last)
        whole = [{**model.state_dict(), **{f"3.{key}": part for key, part in state.items()}} for state in moved]
        method = METHODS[name].args[0]
        options = METHODS[name].keywords
        assert torch.allclose(method(model, whole, train, test, **options), method(last, moved, *hidden, **options))
    else:
        assert torch.allclose(METHODS[name](model, train, test), METHODS[name](last, *hidden), atol=1e-5)


def test_influence_follows_real_removal():
    """Ridge regression without each sample in turn, fitted again, against one Newton step."""
    generator = torch.Generator().manual_seed(0)
    inputs, tests = (torch.randn(count, 4, generator=generator).double() for count in (80, 6))
    labels, ridge = inputs @ torch.ones(4, 1).double() + torch.randn(80, 1, generator=generator), 0.1

    def fit(rows):
        x, y = inputs[rows], labels[rows]
        return torch.linalg.solve(x.T @ x / 80 + ridge * torch.eye(4).double(), x.T @ y / 80)

    model, half = nn.Linear(4, 1, bias=False).double(), lambda out, y: (out - y).square().mean() / 2
    model.weight.data = fit(torch.arange(80)).T
    goals = torch.randn(6, 1, generator=generator).double()
    scores = influence_function(
        model, TensorDataset(inputs, labels), TensorDataset(tests, goals), damping=ridge, loss_func=half
    )
    rows = torch.arange(80)
    moved = torch.stack([
        ((tests @ fit(rows[rows != out]) - goals) ** 2 / 2 - (tests @ fit(rows) - goals) ** 2 / 2)[:, 0] for out in rows
    ])
    bend = inputs.T @ inputs / 80 + ridge * torch.eye(4)
    leverage = torch.einsum("ni,ij,nj->n", inputs, torch.linalg.inv(bend), inputs)
    exact = scores / 80 / (1 - leverage / 80)[:, None]  # the step without the sample, to first order in the test loss
    assert torch.corrcoef(torch.stack([exact.flatten(), moved.flatten()]))[0, 1] > 0.995
    step = torch.linalg.solve(bend, (inputs * (inputs @ fit(rows) - labels)).T)
    change = (tests @ step).T / 80 / (1 - leverage / 80)[:, None]  # of the outputs: exact for ridge regression
    again = torch.stack([(tests @ (fit(rows[rows != out]) - fit(rows)))[:, 0] for out in rows])
    assert torch.allclose(change, again, rtol=1e-6)


@pytest.mark.parametrize("curvature", ["gauss-newton", "hessian"])
def test_steps_give_what_the_matrix_gives(curvature):
    model, train, test = network(), data(300, 1), data(9, 2)
    options = {"damping": 0.5, "curvature": curvature}
    explicit = influence_function(model, train, test, solver="explicit", **options)
    steps = influence_function(model, train, test, solver="cg", tolerance=1e-12, **options)
    assert torch.allclose(explicit, steps, rtol=1e-9, atol=1e-12)


def test_large_models_are_solved_by_steps():
    model = nn.Linear(100, 300, bias=False)
    train = TensorDataset(torch.randn(20, 100, generator=torch.Generator().manual_seed(0)), torch.arange(20))
    assert influence_function(model, train, damping=0.1).shape == (20,)
    with pytest.raises(ValueError, match=r"solver: the model has 30,000 parameters.*at most 20,000. Use \"cg\""):
        influence_function(model, train, solver="explicit")


def test_what_cannot_be_inverted_says_so():
    nothing = TensorDataset(torch.zeros(5, 4).double(), torch.zeros(5).long())
    with pytest.raises(ValueError, match="damping: the curvature plus the damping is not positive definite"):
        influence_function(nn.Linear(4, 3).double(), nothing, damping=0)
    for solver in ("explicit", "cg"):
        with pytest.raises(ValueError, match="use a larger damping, or curvature=\"gauss-newton\""):
            influence_function(network(), data(50, 1), data(5, 2), damping=1e-4, curvature="hessian", solver=solver)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory, self.head = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, inputs):
        return self.head(self.memory(inputs[:, None].expand(-1, 3, -1))[0][:, -1])


def test_models_that_vmap_cannot_run_are_run_one_by_one():
    torch.manual_seed(0)
    model, train, test = Recurrent().double(), data(6, 1), data(3, 2)
    left, right = one_by_one(model, train), one_by_one(model, test)
    assert torch.allclose(gradient_dot(model, train, test), left @ right.T)
    far = influence_function(model, train, test, damping=1e6)
    assert torch.allclose(1e6 * far, left @ right.T, atol=1e-4)
    assert trak(model, [model.state_dict()], train, test).shape == (6, 3)


class Mixed(nn.Module):
    def __init__(self, low):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3).to(low)

    def forward(self, inputs):
        return self.last(torch.tanh(self.first(inputs)).to(self.last.weight.dtype))


@pytest.mark.parametrize("low", [torch.float64, torch.bfloat16], ids=str)
def test_parameters_of_several_dtypes(low):
    torch.manual_seed(0)
    model, train, test = Mixed(low), data(6, 1, torch.float32), data(3, 2, torch.float32)
    expected = one_by_one(model, train).double() @ one_by_one(model, test).double().T
    found = gradient_dot(model, train, test)
    assert found.dtype == torch.promote_types(low, torch.float32)
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_data_sets_have_samples(name):
    nothing = TensorDataset(torch.zeros(0, 4).double(), torch.zeros(0).long())
    for train, test in ((nothing, data(3, 1)), (data(3, 1), nothing)):
        with pytest.raises(ValueError, match="train_dataset, test_dataset: expected at least one sample"):
            METHODS[name](network(), train, test)


class Spoiling(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, inputs):
        return self.last(input=self.act(self.first(inputs)))


def test_representations_are_the_inputs_even_if_changed_in_place_or_named():
    torch.manual_seed(0)
    model, train, test = Spoiling().double(), data(6, 1), data(3, 2)
    own, other = model.first(train.tensors[0]), model.first(test.tensors[0])
    found = representation_similarity(model, train, test, layer="act", kind="dot")
    assert torch.allclose(found, own @ other.T)
    found = representation_similarity(model, train, test, kind="dot")
    assert torch.allclose(found, own.relu() @ other.relu().T)


def test_what_is_not_solved_says_so():
    with pytest.warns(UserWarning, match=r"after 2 conjugate gradient steps the largest relative residual is \d"):
        influence_function(network(), data(50, 1), data(5, 2), solver="cg", max_iterations=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        influence_function(network(), data(50, 1), data(5, 2), solver="cg")


def test_tracin_is_a_sum_of_dot_products(tmp_path):
    model, train, test = network(), data(30, 1), data(5, 2)
    files = [tmp_path / f"{number}.pt" for number in range(2)]
    for file, state in zip(files, states(model), strict=True):
        torch.save(state, file)
    total = 0
    for rate, state in zip((0.1, 0.5), states(model), strict=True):
        model.load_state_dict(state)
        total = total + rate * gradient_dot(model, train, test)
    assert torch.allclose(tracin(model, files, train, test, learning_rates=[0.1, 0.5]), total)
    assert torch.allclose(tracin(model, [str(file) for file in files], train, test, learning_rates=(0.1, 0.5)), total)


@pytest.mark.parametrize("name", METHODS)
def test_samples_that_are_not_pairs_are_refused(name):
    dicts = [{"input": inputs, "label": label} for inputs, label in data(5, 1)]
    triples = [(inputs, label, label) for inputs, label in data(5, 1)]
    for wrong, kind in ((dicts, "a dict"), (triples, "a list of Tensor, Tensor, Tensor")):
        for train, test in ((wrong, None), (data(40, 1), wrong)):
            if test is None and name == "likeness":
                continue
            with pytest.raises(TypeError, match=f"^train_dataset, test_dataset: expected .* a batch is {kind}; pass"):
                METHODS[name](network(), train, test)


def test_labels_that_are_ignored_may_be_anything():
    texts = [(inputs, "a text") for inputs, _ in data(5, 1)]
    assert torch.equal(
        representation_similarity(network(), texts, texts), representation_similarity(network(), *[data(5, 1)] * 2)
    )
    with pytest.raises(TypeError, match=r"a batch is a list of Tensor, (tuple|list)"):
        gradient_dot(network(), texts)


@pytest.mark.parametrize("method", [tracin, trak])
def test_checkpoints_are_files_or_state_dicts(method, tmp_path):
    (tmp_path / "other.pt").write_bytes(b"cposix\nsystem\n(S'touch here'\ntR.")
    torch.save([1, 2], tmp_path / "list.pt")
    for wrong, error, message in (
        (str(tmp_path / "a.pt"), TypeError, "expected a list of files or state dicts, got str"),
        (network().state_dict(), TypeError, "expected a list of files"), ([], ValueError, "at least one"),
        ([tmp_path / "absent.pt"], FileNotFoundError, "absent.pt"), ([tmp_path / "other.pt"], ValueError, "other.pt"),
        ([tmp_path / "list.pt"], TypeError, "number 0 is list"),
        ([network().state_dict(), {}], ValueError, "number 1 does not fit the model"),
    ):
        with pytest.raises(error, match=message):
            method(network(), wrong, data(5, 1))
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("rates", [[1], [1, 2, 3], [1, -1], [1, math.nan]])
def test_learning_rates_are_one_for_each(rates):
    with pytest.raises(ValueError, match="learning_rates: expected a number of 0 or larger for each of 2"):
        tracin(network(), states(network()), data(5, 1), learning_rates=rates)


def test_trak_of_a_linear_model_in_closed_form():
    """Gradients of the log-odds of logistic regression by hand, and both factors averaged before the product."""
    model, train, test = nn.Linear(4, 3).double(), data(60, 1), data(7, 2)
    inner, doubt = 0, 0
    for state in states(model):
        features = []
        for part in (train, test):
            inputs, labels = part.tensors
            logits = inputs @ state["weight"].T + state["bias"]
            others = logits.scatter(1, labels[:, None], -math.inf).softmax(1)
            slope = nn.functional.one_hot(labels, 3) - others
            features.append(torch.cat([(slope[:, :, None] * inputs[:, None]).flatten(1), slope], 1))
            if part is train:
                doubt = doubt + (1 - logits.softmax(1).gather(1, labels[:, None])) / 2
        left, right = features
        inner = inner + left @ torch.linalg.pinv(left.T @ left, rtol=1e-9, hermitian=True) @ right.T / 2
    assert torch.allclose(trak(model, states(model), train, test, dim=15), inner * doubt)
    assert not torch.allclose(trak(model, states(model), train, test, dim=9), inner * doubt), "of rank 10"


def test_projections_depend_on_the_seed_alone():
    model, train, test = network(), data(60, 1), data(7, 2)
    first, same, other = (trak(model, states(model), train, test, dim=8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.allclose(first, other)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"dim": 0}, "dim: expected an integer of at least 1"), ({"damping": -1}, "damping: expected"),
     ({"seed": -1}, "seed: expected"), ({"max_bytes": 0}, "max_bytes: expected")],
)  # fmt: skip
def test_options_of_trak(wrong, message):
    with pytest.raises(ValueError, match=message):
        trak(network(), states(network()), data(20, 1), **wrong)


def test_trak_is_for_classifiers():
    line = nn.Linear(4, 1).double()
    with pytest.raises(ValueError, match=r"model: TRAK is for classifiers.*got outputs of shape"):
        trak(line, [line.state_dict()], data(20, 1))


@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean"])
def test_similarity_of_representations(kind):
    model, train, test = network().eval(), data(300, 1), data(7, 2)
    left, right = (model[:3](part.tensors[0]).detach() for part in (train, test))
    by_hand = {
        "dot": left @ right.T, "euclidean": -(left[:, None] - right).norm(dim=2),
        "cosine": nn.functional.cosine_similarity(left[:, None], right, dim=2),
    }  # fmt: skip
    assert torch.allclose(representation_similarity(model, train, test, kind=kind), by_hand[kind])
    assert torch.allclose(representation_similarity(model, train, test, kind=kind, layer="3"), by_hand[kind])
    inputs = train.tensors[0] @ test.tensors[0].T
    assert torch.allclose(representation_similarity(model, train, test, kind="dot", layer="0"), inputs)
    assert torch.allclose(representation_similarity(nn.Linear(4, 3).double(), train, test, kind="dot"), inputs)


def test_the_layer_has_to_be_there():
    with pytest.raises(ValueError, match=r"layer: there is no module 'head'; expected one of 0, 1, 2, 3"):
        representation_similarity(network(), data(5, 1), layer="head")
    with pytest.raises(ValueError, match=r"the model has no torch.nn.Linear; name the module"):
        representation_similarity(nn.Flatten(), data(5, 1))


def slow_bm25(train, test, k1, b):
    """Robertson and Zaragoza, word by word."""
    mean = sum(map(len, train)) / len(train)
    scores = np.zeros((len(train), len(test)))
    for row, text in enumerate(train):
        for column, query in enumerate(test):
            for word in query:
                holding, often = sum(word in other for other in train), text.count(word)
                rarity = math.log(1 + (len(train) - holding + 0.5) / (holding + 0.5))
                scores[row, column] += rarity * often / (often + k1 * (1 - b + b * len(text) / mean)) if often else 0
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0, 0.5), (2, 0), (1.2, 1)])
def test_bm25_word_by_word(k1, b):
    generator = np.random.default_rng(0)
    train, test = ([generator.integers(12, size=generator.integers(0, 9)).tolist() for _ in range(n)] for n in (20, 6))
    np.testing.assert_allclose(bm25(train, test, k1=k1, b=b), slow_bm25(train, test, k1, b), rtol=1e-5)
    words = [[" ".join(f"w{token}" for token in text) for text in texts] for texts in (train, test)]
    np.testing.assert_allclose(bm25(*words, k1=k1, b=b), slow_bm25(train, test, k1, b), rtol=1e-5)


def test_texts_are_texts():
    tokens = torch.tensor([[1, 2, 2], [3, 1, 4]])
    assert torch.equal(bm25(tokens, tokens), bm25(tokens.tolist(), [row.numpy() for row in tokens]))
    assert bm25(["", "a"], ["a b", ""]).tolist()[0] == [0, 0] and bm25([""], ["a"]).tolist() == [[0]]
    for wrong, error, message in (
        (("a text", ["a"]), TypeError, "train_texts: expected a list of texts"),
        (([], ["a"]), ValueError, "train_texts: expected at least one"),
        ((["a"], []), ValueError, "test_texts: expected at least one"), ((["a"], [3]), TypeError, "got int for one"),
        ((["a"], torch.zeros(2, 2, 2)), TypeError, r"Tensor of shape \(2, 2\)"),
        ((TensorDataset(tokens, tokens), ["a"]), TypeError, "got tuple .* tensors .* pass the inputs"),
        ((["a"], [[tokens[0].numpy()]]), TypeError, "test_texts: .*got list .* arrays"),
    ):
        with pytest.raises(error, match=message):
            bm25(*wrong)
    for wrong in ({"k1": -1}, {"b": 1.5}, {"b": True}):
        with pytest.raises(ValueError, match="k1, b: expected"):
            bm25(["a"], ["a"], **wrong)


def test_damping_is_chosen_on_subsets_that_are_not_reported():
    generator = torch.Generator().manual_seed(0)
    signal, mask = torch.randn(30, 8, generator=generator), torch.rand(40, 30, generator=generator) < 0.5
    truth, asked = GroundTruth(mask.float() @ signal, mask), []

    def method(damping):
        asked.append(damping)
        return signal + damping * torch.randn(30, 8, generator=generator)

    choice = choose_damping(method, truth, [1.0, 0.1, 10.0], fraction=0.25, seed=3)
    tuning, reported = truth.split(0.25, seed=3)
    assert asked == [1.0, 0.1, 10.0] and choice.damping == 0.1
    assert torch.equal(choice.to_report.values, reported.values) and len(tuning.values) == 10
    assert choice.tuned[0.1] == float(lds(choice.scores, tuning).correlation.double().mean())
    runs = Targets(-truth.values[:, None], mask)
    assert isinstance(choose_damping(method, runs, [0.1]).to_report, Targets)
    for wrong, error, message in (
        ((method, tuple(truth)), TypeError, "ground_truth: expected a GroundTruth or Targets, got tuple"),
        ((method, GroundTruth(truth.values[:3], mask[:3])), ValueError, "two to report on, got 3"),
        ((method, truth, []), ValueError, "none of"),
        ((lambda _: torch.zeros(30, 8), truth, [1.0]), ValueError, "none of"),
    ):
        with warnings.catch_warnings(), pytest.raises(error, match=message):
            warnings.simplefilter("ignore")
            choose_damping(*wrong)


def slow_folds(mask, values, penalty, folds, seed):
    """Out-of-fold predictions of ridge regression in its primal form, without the mean target of the others."""
    order = np.random.default_rng(seed).permutation(len(mask))
    said = torch.zeros_like(values)
    for fold in range(folds):
        rows = order[fold::folds]
        rest = np.setdiff1d(order, rows)
        centre = mask[rest].mean(0)
        known = mask[rest] - centre
        bend = known.T @ known + penalty * torch.eye(mask.shape[1]).double()
        slope = torch.linalg.solve(bend, known.T @ (values[rest] - values[rest].mean(0)))
        said[rows] = (mask[rows] - centre) @ slope
    return said


@pytest.mark.parametrize(("num_subsets", "num_train"), [(20, 50), (60, 12), (7, 7)])
@pytest.mark.parametrize("form", ["mask", "positions", "list"])
def test_datamodel_is_ridge_regression(num_subsets, num_train, form):
    generator = torch.Generator().manual_seed(num_subsets)
    mask = torch.stack([torch.randperm(num_train, generator=generator) < num_train // 2 for _ in range(num_subsets)])
    values = torch.randn(num_subsets, 5, generator=generator).double()
    rows = [row.nonzero()[:, 0] for row in mask]
    subsets = {"mask": mask, "positions": torch.stack(rows), "list": [*rows[:-1], rows[-1][:-1]]}[form]
    if form == "list":
        mask = mask.clone()
        mask[-1, rows[-1][-1]] = False
    found = linear_datamodel((values, subsets), num_train=num_train, penalties=[3.0], num_folds=6, seed=1)
    expected = slow_folds(mask.double(), values, 3.0, 6, 1)
    assert torch.allclose(found.predictions.values, expected, atol=1e-8)
    known = mask.double() - mask.double().mean(0)
    right = known.T @ (values - values.mean(0))
    scores = torch.linalg.solve(known.T @ known + 3 * torch.eye(num_train).double(), right)
    assert torch.allclose(found.scores, scores, atol=1e-12) and found.penalty == 3  # in float64, like the targets


def test_datamodel_takes_runs_and_keeps_dtypes():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(20, 10, generator=generator) < 0.5
    runs = Targets(torch.randn(20, 3, 4, generator=generator), mask)
    first, second = linear_datamodel(runs), linear_datamodel(runs.ground_truth())
    assert torch.equal(first.scores, second.scores) and first.scores.dtype == torch.float32
    with pytest.raises(ValueError, match="NaN or infinity"):
        linear_datamodel(GroundTruth(torch.full((20, 4), math.nan), mask))


def test_noise_is_not_predicted_out_of_fold():
    """Over many draws the mean LDS of the predictions is 0: not below, as it would be with the others' mean target."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(5):
        mask = torch.stack([torch.randperm(40, generator=generator) < 20 for _ in range(50)])
        truth = GroundTruth(torch.randn(50, 400, generator=generator), mask)
        found.append(float(lds(linear_datamodel(truth).predictions, truth).correlation.mean()))
    assert abs(np.mean(found)) < 0.03, found


@pytest.mark.parametrize("curvature", ["gauss-newton", "hessian"])
def test_squared_errors_of_torch(curvature):
    """`mse_loss`, whose gradient has no forward mode, against the closed form of least squares."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(12, 3, generator=generator), torch.randn(12, 1, generator=generator)
    model, data = nn.Linear(3, 1, bias=False), TensorDataset(inputs, labels)
    found = influence_function(model, data, data, damping=0.1, curvature=curvature, loss_func=nn.functional.mse_loss)
    gradients = 2 * (model(inputs) - labels).detach() * inputs
    expected = gradients @ torch.linalg.solve(2 * inputs.T @ inputs / 12 + 0.1 * torch.eye(3), gradients.T)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_language_model_with_attention():
    """Torch's fused attention has neither a forward nor a second derivative, and warns under `vmap`."""
    torch.manual_seed(0)
    model = NanoGPT(5, 4, num_heads=2, num_layers=1, max_length=3, dropout=0.0).double()
    for part in model.parameters():
        nn.init.uniform_(part, -1, 1)  # larger than at first, so that the Hessian is not huge
    tokens = torch.randint(5, (6, 4), generator=torch.Generator().manual_seed(1))
    train = TensorDataset(tokens[:, :-1], tokens[:, 1:])
    options = {"loss_func": lambda logits, targets: block_loss(logits, targets).mean()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        dots = gradient_dot(model, train, train, **options)
        found = {
            kind: influence_function(model, train, train, damping=5.0, curvature=kind, **options)
            for kind in ("gauss-newton", "hessian")
        }
    with sdpa_kernel(SDPBackend.MATH):
        losses, logits = block_loss(model(tokens[:, :-1]), tokens[:, 1:]), model(tokens[:, :-1]).flatten(0, 1)
    rows = partial(jacobian, list(model.parameters()))
    gradients, bends = rows(losses), rows(logits.flatten()).view(18, 5, -1)
    torch.testing.assert_close(dots, gradients @ gradients.T)
    chances = logits.softmax(1).detach()
    middle = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None]
    curvatures = {"gauss-newton": (bends.mT @ middle @ bends).mean(0), "hessian": rows(rows(losses.mean()[None])[0])}
    for kind, matrix in curvatures.items():
        expected = gradients @ torch.linalg.solve(matrix + 5.0 * torch.eye(len(matrix)), gradients.T)
        torch.testing.assert_close(found[kind], expected.detach(), msg=kind)


def test_losses_and_samples_of_the_wrong_kind_are_named():
    model, tokens = NanoGPT(5, 4, num_heads=2, num_layers=1, max_length=3), torch.randint(5, (6, 4))
    blocks = TensorDataset(tokens[:, :-1], tokens[:, 1:])
    named = [{"input_ids": row[:-1], "labels": row[1:]} for row in tokens]
    for method in (gradient_dot, influence_function):
        with pytest.raises(ValueError, match=r"loss_func: the default.* \(., 3, 5\) and labels \(., 3\).*block_loss"):
            method(model, blocks, blocks)
        with pytest.raises(ValueError, match=r"loss_func: expected the mean.*got shape \(.,\)"):
            method(model, blocks, blocks, loss_func=block_loss)
        with pytest.raises(ValueError, match=r"loss_func: expected the mean.*got float"):
            method(model, blocks, blocks, loss_func=lambda outputs, labels: 1.0)
    wrong = [(named, "dict"), ([(row,) for row in tokens], "Tensor"), ([(0.5, "a")], "tuple")]
    for method, cases in ((gradient_dot, wrong), (representation_similarity, wrong[:2])):  # its labels may be anything
        for samples, got in cases:
            with pytest.raises(TypeError, match=f"train_dataset, test_dataset: expected .* pairs .*{got}"):
                method(model, samples)


def jacobian(parameters, values):
    """Gradients of each value with respect to all parameters, one per row."""
    rows = (torch.autograd.grad(value, parameters, create_graph=True) for value in values)
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


@pytest.mark.parametrize("curvature", ["gauss-newton", "hessian"])
def test_threads_change_neither_results_nor_settings(curvature, with_threads):
    model = NanoGPT(5, 4, num_heads=2, num_layers=1, max_length=3)  # attention, whose kernel is a global setting
    tokens = torch.randint(5, (40, 4), generator=torch.Generator().manual_seed(0))
    blocks = TensorDataset(tokens[:, :-1], tokens[:, 1:])

    def products():
        flat = FlatModel(model, lambda outputs, labels: block_loss(outputs, labels).mean(), 2**30)
        return curvature_products(flat, blocks, curvature)(torch.eye(len(flat.vector)))

    flags = (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.mem_efficient_sdp_enabled)
    before = [flag() for flag in flags]
    one, four = (with_threads(count, products) for count in (1, 4))
    assert len(one) > 64, "several blocks"
    assert torch.equal(one, four)
    assert [flag() for flag in flags] == before
