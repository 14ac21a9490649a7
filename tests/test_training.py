"""How transformers are trained and judged: against loops written out, sums by hand and the losses of `transformers`."""

import copy
import math
import pickle
import re
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from dattri.benchmark.models import gpt2 as gpt2_module
from dattri.benchmark.models.gpt2 import gpt2, read_parquet_texts, wikitext_blocks
from dattri.benchmark.models.music_transformer import MusicTransformer
from dattri.benchmark.models.nanogpt import NanoGPT
from dattri.benchmark.training import (
    SingleModelTrainer,
    block_loss,
    cosine,
    decay_matrices,
    last_token_loss,
    next_token_loss,
)
from dattri.metric.ground_truth import calculate_lds_ground_truth
from dattri.model_util.checkpoint import load_checkpoint, to_bytes
from dattri.model_util.retrain import retrain_lds
from dattri.model_util.target import EnsembleTarget

transformers = pytest.importorskip("transformers")

TOKENS = torch.randint(12, (10, 9), generator=torch.Generator().manual_seed(0))
BLOCKS = TensorDataset(TOKENS[:, :-1].contiguous(), TOKENS[:, 1:].contiguous())
WHOLE = TensorDataset(TOKENS[:, :8].contiguous(), TOKENS[:, :8].contiguous())

tiny_nanogpt = partial(NanoGPT, 12, 8, num_heads=2, num_layers=1, max_length=8, dropout=0.0)
tiny_music = partial(MusicTransformer, 12, 8, num_heads=2, num_layers=1, inner=8, max_length=8, dropout=0.0)
tiny_gpt2 = partial(
    gpt2, pretrained=False, vocab_size=12, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
)
adamw = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)


def loader(dataset=BLOCKS, **options):
    """Batches of 4, 4 and 2 blocks in a random order that is the same for every loader."""
    options = {"shuffle": True, "generator": torch.Generator().manual_seed(5), **options}
    return DataLoader(dataset, batch_size=4, **options)


def new_model(model_fn, seed):
    """A model with the weights of a seed, without touching the random state."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model_fn().train()


def assert_same_weights(left, right):
    assert left.state_dict().keys() == right.state_dict().keys()
    for name, value in left.state_dict().items():
        assert torch.equal(value, right.state_dict()[name]), name


def test_epochs_are_those_of_a_plain_loop():
    model = new_model(tiny_nanogpt, 3)
    optimizer, batches = adamw(model.parameters()), loader()
    for _ in range(3):
        for inputs, targets in batches:
            optimizer.zero_grad()
            block_loss(model(inputs), targets).mean().backward()
            optimizer.step()
    trained = SingleModelTrainer(tiny_nanogpt, block_loss, optimizer=adamw, num_epochs=3)(loader(), seed=3)
    assert_same_weights(trained, model)
    assert trained.training
    with pytest.raises(AssertionError):
        assert_same_weights(trained, new_model(tiny_nanogpt, 3))


@pytest.mark.parametrize("num_steps", [2, 3, 8])
def test_steps_with_schedule_and_clipping_are_those_of_a_plain_loop(num_steps):
    """8 steps are two rounds of 3 batches and 2 batches more."""
    model = new_model(tiny_nanogpt, 3)
    groups = [[p for p in model.parameters() if p.ndim >= 2], [p for p in model.parameters() if p.ndim < 2]]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0}], lr=1e-2
    )
    batches = loader()
    rounds = [batch for _ in range(3) for batch in batches]
    for step, (inputs, targets) in enumerate(rounds[:num_steps]):
        for group in optimizer.param_groups:
            ratio = min(1.0, (step - 2) / 4)
            group["lr"] = 1e-2 * ((step + 1) / 3 if step < 2 else 0.1 + 0.9 * (1 + math.cos(math.pi * ratio)) / 2)
        optimizer.zero_grad()
        block_loss(model(inputs), targets).mean().backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        assert norm > 0.5, "the test clips"
        optimizer.step()
    trainer = SingleModelTrainer(
        tiny_nanogpt, block_loss, optimizer=partial(decay_matrices, weight_decay=0.1, lr=1e-2), num_steps=num_steps,
        schedule=cosine(2, 6, 0.1), clip_norm=0.5,
    )
    assert_same_weights(trainer(loader(), seed=3), model)


def test_the_best_epoch_is_kept():
    """With a large learning rate the last epoch is worse than the one before; with a larger one it is not a number."""
    large, larger = (partial(torch.optim.SGD, lr=lr) for lr in (3.0, 30.0))
    model = new_model(tiny_nanogpt, 1)
    optimizer, batches, means, states = large(model.parameters()), loader(), [], []
    for _ in range(5):
        losses = []
        for inputs, targets in batches:
            optimizer.zero_grad()
            values = block_loss(model(inputs), targets)
            values.mean().backward()
            optimizer.step()
            losses += values.tolist()
        means.append(sum(losses) / len(losses))
        states.append(copy.deepcopy(model))
    best = means.index(min(means))
    assert 0 < best < 4
    trainer = partial(SingleModelTrainer, tiny_nanogpt, block_loss, num_epochs=5)
    assert_same_weights(trainer(optimizer=large, keep_best=True)(loader(), seed=1), states[best])
    assert_same_weights(trainer(optimizer=large)(loader(), seed=1), states[4])
    with pytest.raises(AssertionError):
        assert_same_weights(states[best], states[4])
    assert trainer(optimizer=larger)(loader(), seed=1).lm_head.weight.isnan().any()
    assert trainer(optimizer=larger, keep_best=True)(loader(), seed=1).lm_head.weight.isfinite().all()


def test_retrain_lds_twice_gives_the_same_bytes(tmp_path):
    trainer = SingleModelTrainer(
        partial(tiny_nanogpt, dropout=0.2), block_loss, optimizer=partial(decay_matrices, weight_decay=0.1, lr=1e-2),
        num_steps=4, schedule=cosine(1, 4, 0.1), clip_norm=1.0,
    )
    files = []
    for name in ("first", "second"):
        path = tmp_path / name
        retrain_lds(trainer, loader(), path, num_subsets=2, subset_ratio=0.5, seed=7)
        written = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*.pt")}
        files.append({name: content for name, content in written.items() if "weights" in name})
    assert files[0] == files[1] and len(files[0]) == 2 and len(set(files[0].values())) == 2
    test = loader(shuffle=False)
    values, indices = calculate_lds_ground_truth(
        EnsembleTarget(tiny_nanogpt, block_loss, max_models=1), str(tmp_path / "first"), test
    )
    assert values.shape == (2, 10) and indices.shape == (2, 5) and values.isfinite().all()
    with pytest.raises(ValueError, match="num_steps"):
        other = SingleModelTrainer(partial(tiny_nanogpt, dropout=0.2), block_loss, optimizer=adamw, num_steps=5)
        retrain_lds(other, loader(), tmp_path / "first", num_subsets=2, subset_ratio=0.5, seed=7)


def test_trainers_and_schedules_can_be_pickled():
    trainer = SingleModelTrainer(tiny_nanogpt, block_loss, optimizer=adamw, num_steps=2, schedule=cosine(1, 2, 0.1))
    again = pickle.loads(pickle.dumps(trainer))
    assert_same_weights(again(loader(), seed=0), trainer(loader(), seed=0))
    assert again.schedule(0) == 0.5 and again.schedule(9) == pytest.approx(0.1)


def test_losses_per_sample():
    logits = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(1))
    targets = TOKENS[:3, 1:].clone()
    targets[1, -1] = 0
    by_hand = [[cross_entropy(logits[row, place], targets[row, place]) for place in range(8)] for row in range(3)]
    by_hand = torch.tensor(by_hand)
    torch.testing.assert_close(block_loss(logits, targets), by_hand.mean(1))
    torch.testing.assert_close(last_token_loss(logits, targets), by_hand[:, -1])
    torch.testing.assert_close(last_token_loss(logits, targets, pad=0), by_hand[:, -1] * torch.tensor([1.0, 0.0, 1.0]))


def test_next_token_loss_is_that_of_transformers():
    model = new_model(tiny_gpt2, 0).eval()
    ids = WHOLE.tensors[0]
    with torch.no_grad():
        losses = next_token_loss(model(ids), ids)
        expected = torch.stack([model(row[None], labels=row[None]).loss for row in ids])
        torch.testing.assert_close(losses, expected)
        torch.testing.assert_close(losses.mean(), model(ids, labels=ids).loss)


@pytest.mark.parametrize(
    ("model_fn", "loss_fn", "dataset"),
    [
        (tiny_gpt2, next_token_loss, WHOLE),
        (tiny_music, partial(last_token_loss, pad=0), BLOCKS),
        (tiny_nanogpt, block_loss, BLOCKS),
    ],
    ids=["gpt2", "music", "nanogpt"],
)
def test_transformers_as_functions_and_as_targets(model_fn, loss_fn, dataset):
    models = [new_model(model_fn, seed).eval() for seed in range(2)]
    inputs, targets = dataset.tensors
    values = {**dict(models[1].named_parameters()), **dict(models[1].named_buffers())}
    with torch.no_grad():
        expected = torch.stack([loss_fn(model(inputs), targets) for model in models])
        computed = loss_fn(functional_call(models[0], values, (inputs,)), targets)
    torch.testing.assert_close(computed, expected[1])
    batches = loader(dataset, shuffle=False)
    target_func = EnsembleTarget(model_fn, loss_fn, max_models=1)
    torch.testing.assert_close(target_func.evaluate_many(models, batches), expected)
    assert not torch.allclose(expected[0], expected[1])
    trainer = SingleModelTrainer(model_fn, loss_fn, optimizer=adamw, num_epochs=3)
    trained = trainer(loader(dataset), seed=0)
    assert target_func(trained, batches).mean() < expected[0].mean()


def test_gpt2_has_the_published_size_and_reads_safetensors(tmp_path, monkeypatch):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in gpt2(pretrained=False).parameters()) == 124_439_808
    saved = new_model(tiny_gpt2, 0)
    saved.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    monkeypatch.setattr(gpt2_module, "_CHECKPOINT", str(tmp_path))
    loaded = gpt2(resid_pdrop=0.3)
    assert_same_weights(loaded, saved)
    assert loaded.config.use_cache is False and loaded.config.resid_pdrop == 0.3
    assert loaded(WHOLE.tensors[0]).past_key_values is None
    torch.save(saved.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        gpt2()


def test_text_needs_its_extra(monkeypatch):
    for name in ("transformers", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"transformers .*pip install 'dattri\[text\]'"):
        gpt2(pretrained=False)
    with pytest.raises(ImportError, match=r"pyarrow.parquet .*pip install 'dattri\[text\]'"):
        read_parquet_texts("rows.parquet")


def test_wikitext_blocks_drop_the_rest_of_every_1000_rows(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    tokenizers = pytest.importorskip("tokenizers")
    words = [f"w{number}" for number in range(50)]
    vocabulary = {word: number for number, word in enumerate(["?", *words])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?")
    texts = [" ".join(words[(row + word) % 50] for word in range(row % 4)) for row in range(2300)]
    parquet.write_table(pyarrow.table({"text": texts, "other": texts}), tmp_path / "rows.parquet")
    assert read_parquet_texts(tmp_path / "rows.parquet") == texts and texts[0] == ""
    expected = []
    for portion in (texts[:1000], texts[1000:2000], texts[2000:]):
        tokens = [vocabulary[word] for text in portion for word in text.split()]
        assert len(tokens) % 7, "something is dropped"
        expected += [tokens[start : start + 7] for start in range(0, len(tokens) - 6, 7)]
    inputs, targets = wikitext_blocks(texts, tokenizer, length=7).tensors
    assert inputs.dtype == torch.int64 and inputs.tolist() == expected and torch.equal(inputs, targets)
    assert len(expected) == 1500 // 7 + 1500 // 7 + 450 // 7


def test_a_directory_from_before_the_trainer_was_renamed(tmp_path):
    trainer = SingleModelTrainer(tiny_nanogpt, block_loss, optimizer=adamw, num_epochs=1)
    retrain_lds(trainer, loader(), tmp_path, num_subsets=2, seed=0)
    file = tmp_path / "metadata.yml"
    before = file.read_text().replace("train_func: SingleModelTrainer", "train_func: SequenceTrainer")
    before = re.sub(r"digest: \w+\n", "", before.replace("format: 2", "format: 1"))  # edits were not recognised then
    assert "SequenceTrainer" in before
    assert "format: 1" in before
    file.write_text(before)
    for checkpoint in tmp_path.glob("*/*.pt"):  # which did not say whose they are
        checkpoint.write_bytes(to_bytes(load_checkpoint(checkpoint)))
    (tmp_path / "1" / "model_weights_0.pt").unlink()
    retrain_lds(trainer, loader(), tmp_path, num_subsets=2, seed=0)
    assert (tmp_path / "1" / "model_weights_0.pt").exists() and file.read_text() == before
