"""Training: it learns, it is a function of its seed alone, and stopping it in whatever way changes nothing.

Every kind of damage to a checkpoint is in test_files.py, a training that meets it in test_distributed.py.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import MICRO, VOCAB, reversed_pairs

from llmpp_core.nets import training
from llmpp_core.nets.checkpoints import load_network
from llmpp_core.nets.supernet import SuperTransformer
from llmpp_core.nets.training import POINTS, History, Recipe, sandwich, smoothed_loss, train, uniform
from llmpp_core.nets.transformer import Transformer
from llmpp_core.space.search_space import TINY
from llmpp_core.text.batches import Pairs, epochs
from llmpp_core.text.special_tokens import PAD

#: Long enough to resume several times, too short to learn anything.
QUICK = Recipe(updates=6, batch_tokens=150, learning_rate=0.01)
#: What can be trained: what it is and how subnets are drawn.
MODELS = {"single": ("plain", None), "sandwich": ("shared", sandwich), "neuron-wise": ("neuron-wise", uniform)}
PAIRS = reversed_pairs(200, seed=0, longest=4)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no training be given up."""
    monkeypatch.setattr(training, "_divergence", lambda *arguments: None)


def fresh(kind: str, dropout: float = 0.1) -> Any:
    if kind == "plain":
        return Transformer(MICRO.smallest(), MICRO, VOCAB, dropout)
    return SuperTransformer(MICRO, VOCAB, kind, dropout=dropout)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def without_clock(history: History) -> dict[str, Any]:
    return {**asdict(history), "seconds": None}


# --- learning ---------------------------------------------------------------------------------------------------------


def test_the_loss_falls_from_chance_to_below_what_the_frequencies_tell(capsys: pytest.CaptureFixture[str]) -> None:
    history = train(fresh("plain"), PAIRS, replace(QUICK, updates=100, batch_tokens=300), seed=0, progress="micro")
    assert (history.finished, history.diverged, history.updates, len(history.loss)) == (True, None, 100, POINTS)
    assert history.loss[0] > math.log(VOCAB) - 0.3
    assert history.loss[-1] < 2.0
    shown = capsys.readouterr().err
    assert "micro: 100%" in shown
    assert "tokens/s" in shown


@pytest.mark.parametrize("updates", [7, 120])
@pytest.mark.usefixtures("patient")
def test_the_curve_is_the_mean_over_each_fiftieth(updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # An update that reports its number in place of a loss.
    monkeypatch.setattr(training, "_update", lambda *arguments: torch.tensor(float(next(numbers)), dtype=torch.float64))
    numbers = iter(range(updates))
    history = train(fresh("plain"), PAIRS, replace(QUICK, updates=updates), seed=0)
    ends = sorted({math.ceil(updates * k / POINTS) for k in range(1, POINTS + 1)})
    expected = [np.mean(range(start, end)) for start, end in zip([0, *ends], ends, strict=False)]
    np.testing.assert_allclose(history.loss, expected)
    assert history.pending == 0


def test_an_update_follows_the_gradient_of_the_mean_loss_per_token() -> None:
    batch = PAIRS.batch(np.arange(8))
    archs = [MICRO.smallest(), MICRO.largest()]
    models = [fresh("shared", dropout=0.0) for _ in range(2)]
    for model in models:
        model.initialise(torch.Generator().manual_seed(0))
    recipe = replace(QUICK, clip=0.05)
    optimiser = torch.optim.SGD(models[0].parameters(), lr=1.0)
    found = training._update(models[0], optimiser, [batch], archs, recipe, rate=0.5, tokens=batch.tokens)
    expected = sum(smoothed_loss(models[1](batch.src, batch.tgt, arch), batch.labels, 0.1) for arch in archs) / (2 * batch.tokens)
    expected.backward()
    assert float(found) == pytest.approx(expected.item(), rel=1e-5)
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in models[1].parameters() if p.grad is not None))
    assert norm > recipe.clip
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours, theirs - 0.5 * recipe.clip / norm * theirs.grad, rtol=1e-4, atol=1e-6)


def test_dropout_is_that_of_the_recipe() -> None:
    made = []
    for network, recipe in ((0.1, 0.0), (0.5, 0.0), (0.1, 0.5)):
        model = fresh("shared", network)
        train(model, PAIRS, replace(QUICK, dropout=recipe), seed=0, sampling=uniform)
        assert model.subnet(MICRO.smallest()).dropout == recipe
        made.append(model)
    assert same(*made[:2])
    assert not same(made[0], made[2])


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    recipe = Recipe(updates=200, batch_tokens=100, learning_rate=2.0, warmup=0.1)
    rates = [recipe.rate(update) for update in range(200)]
    np.testing.assert_allclose(rates[:20], np.arange(1, 21) / 10)
    np.testing.assert_allclose(rates[20:], 1 + np.cos(np.pi * np.arange(180) / 180), atol=1e-12)
    assert Recipe(updates=10, batch_tokens=1, learning_rate=2.0, warmup=0.0).rate(0) == 2.0


@pytest.mark.usefixtures("patient")
def test_every_update_has_subnets_tokens_and_dropout_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[Any], float]] = []

    def update(model: Any, optimiser: Any, batches: Any, archs: Any, recipe: Recipe, rate: float, tokens: int, place: Any) -> torch.Tensor:
        (batch,) = batches
        assert tokens == batch.tokens == int((batch.labels != PAD).sum())
        seen.append((list(archs), float(torch.rand(()))))
        return torch.zeros((), dtype=torch.float64)

    monkeypatch.setattr(training, "_update", update)
    for sampling in (uniform, sandwich):
        history = train(fresh("shared"), PAIRS, replace(QUICK, updates=30), seed=3, sampling=sampling)
    batches = islice(epochs(PAIRS, QUICK.batch_tokens, 3), 30)
    assert history.tokens == sum(int(PAIRS.tgt_lengths[rows].sum()) - len(rows) for rows in batches)
    randoms, sandwiches = seen[:30], seen[30:]
    assert len({archs[0] for archs, _ in randoms}) > 20
    assert len({number for _, number in randoms}) == 30
    # The same random subnets, between which the largest and the smallest never fail.
    assert sandwiches == [([archs[0], MICRO.largest(), MICRO.smallest()], number) for archs, number in randoms]


# --- what cannot be, and divergence -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({name: -1}, f"{name}: expected a (positive )?number.*, got -1") for name in asdict(QUICK)),
        *(({name: 1.5}, f"{name}: expected an integer, got 1.5") for name in ("updates", "accumulate")),
        *(({name: "1"}, f"{name}: expected a number, got '1'") for name in asdict(QUICK)),
    ],
)
def test_recipes_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **change)


def test_numbers_may_be_numpys_and_whole_ones_written_as_floats(tmp_path: Path) -> None:
    recipe = Recipe(np.int64(2), 150.0, np.float32(0.5), accumulate=2.0)  # type: ignore[arg-type]
    assert [type(value) for value in asdict(recipe).values()] == [int, int, *[float] * 5, int]
    history = train(fresh("plain"), PAIRS, recipe, seed=np.int64(3), checkpoint=tmp_path / "c")  # type: ignore[arg-type]
    assert train(fresh("plain"), PAIRS, Recipe(2, 150, 0.5, accumulate=2), seed=3, checkpoint=tmp_path / "c") == history


@pytest.mark.parametrize(
    ("model", "pairs", "sampling", "message"),
    [
        (fresh("shared"), PAIRS, None, "sampling: a supernet needs one, a single architecture takes none"),
        (fresh("plain"), PAIRS, uniform, "sampling: a supernet needs one, a single architecture takes none"),
        (fresh("plain"), PAIRS.first(0), None, "pairs: there are none to train on"),
        (SuperTransformer(MICRO, VOCAB - 1), PAIRS, uniform, rf"token \d+ is none of the network's {VOCAB - 1}"),
    ],
)
def test_what_cannot_be_trained_is_refused(model: Any, pairs: Pairs, sampling: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(model, pairs, QUICK, seed=0, sampling=sampling)


def test_a_loss_that_becomes_infinite_ends_the_training(tmp_path: Path) -> None:
    recipe = replace(QUICK, updates=100, learning_rate=1e30)
    history, again = (train(fresh("plain"), PAIRS, recipe, seed=0, checkpoint=tmp_path / "c") for _ in range(2))
    assert history.diverged == f"the loss is nan at update {history.updates}"
    assert history.finished
    assert history.updates < 20
    assert str(again) == str(history)


def test_a_loss_that_never_falls_is_given_up_half_way() -> None:
    history = train(fresh("plain"), PAIRS, replace(QUICK, updates=100, learning_rate=1e-6), seed=0)
    assert history.updates == 50
    counts = np.bincount(PAIRS.tgt[:, 1:].flatten(), minlength=VOCAB).astype(float)
    counts[PAD] = 0
    shares = 0.9 * counts / counts.sum() + 0.1 / VOCAB
    entropy = -(shares * np.log(shares)).sum()
    assert history.diverged == f"the loss is {history.loss[-1]:.2f} at update 50; knowing the frequencies alone gives {entropy:.2f}"


# --- seeds, stopping and going on -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
def test_a_training_is_a_function_of_its_seed_alone() -> None:
    first, again, other = (fresh("neuron-wise") for _ in range(3))
    state = torch.get_rng_state()
    history = train(first, PAIRS, QUICK, seed=1, sampling=uniform)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    # A network that has learned something else begins anew.
    for net, seed in ((again, 2), (other, 2), (again, 1)):
        last = train(net, PAIRS, QUICK, seed=seed, sampling=uniform)
    assert without_clock(last) == without_clock(history)
    assert same(first, again)
    assert not same(first, other)
    assert not first.training


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("name", MODELS)
def test_stopping_after_every_update_changes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A point of the curve is then the mean over several updates.
    monkeypatch.setattr(training, "POINTS", 2)
    kind, sampling = MODELS[name]
    recipe = replace(QUICK, dropout=0.2)
    whole, checkpoint, seconds = fresh(kind), tmp_path / "c", 0.0
    expected = train(whole, PAIRS, recipe, seed=1, sampling=sampling)
    for update in range(1, recipe.updates + 1):
        pieces = fresh(kind)
        history = train(pieces, PAIRS, recipe, seed=1, sampling=sampling, checkpoint=checkpoint, seconds=0)
        assert (history.updates, history.finished) == (update, update == recipe.updates)
        # The time of all pieces is summed.
        assert history.seconds > seconds
        seconds = history.seconds
    assert without_clock(history) == without_clock(expected)
    assert same(whole, pieces)
    assert list(tmp_path.iterdir()) == [checkpoint]
    # What is finished is read, not trained again; and it holds the network alone.
    again = fresh(kind)
    assert train(again, PAIRS, recipe, seed=1, sampling=sampling, checkpoint=checkpoint) == history
    assert same(again, whole)
    assert not again.training
    loaded = load_network(checkpoint, MICRO)
    assert same(loaded, whole)
    assert (loaded.describe(), loaded.dropout, loaded.space, loaded.training) == (whole.describe(), 0.2, MICRO, False)
    assert checkpoint.stat().st_size < 1.5 * sum(4 * p.numel() for p in whole.parameters()) + 20_000


OTHER_SPACE = replace(MICRO, name="OTHER", decoder_ffn_dims=(36, 18, 9))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("plain", {"seed": 1}, "seed is 0 there and 1 here"),
        ("plain", {"recipe": replace(QUICK, learning_rate=0.5, clip=2.0)}, "recipe.clip is 1.0 there and 2.0 here; recipe.learning_rate"),
        ("plain", {"recipe": replace(QUICK, dropout=0.2)}, "network.dropout is 0.1 there and 0.2 here; recipe.dropout"),
        ("plain", {"model": Transformer(MICRO.largest(), MICRO, VOCAB)}, "network.arch is encoder-embed-dim-subtransformer: 12"),
        (
            "plain",
            {"model": Transformer(MICRO.smallest(), OTHER_SPACE, VOCAB)},
            "[36, 18] there and [36, 18, 9] here; space.name is",
        ),
        ("plain", {"pairs": replace(PAIRS, src=PAIRS.src.flip(0))}, "pairs is "),
        ("plain", {"pairs": replace(PAIRS, tgt=PAIRS.tgt.flip(0))}, "pairs is "),
        ("plain", {"model": fresh("layer-wise"), "sampling": uniform}, "network.kind is None there and layer-wise here"),
        ("layer-wise", {"sampling": sandwich}, "sampling is uniform there and sandwich here"),
        ("layer-wise", {"model": fresh("neuron-wise")}, "network.kind is layer-wise there and neuron-wise here"),
    ],
)
def test_a_checkpoint_of_another_training_says_what_differs(kind: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    sampling = None if kind == "plain" else uniform
    given: dict[str, Any] = {"model": fresh(kind), "pairs": PAIRS, "recipe": QUICK, "seed": 0, "sampling": sampling, "checkpoint": path}
    train(**given, seconds=0)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"c\.safetensors is of another training: .*; choose another file or remove it$") as caught:
        train(**{**given, **change})
    assert message in str(caught.value)
    assert path.read_bytes() == before
    refused = r"c\.safetensors is of another search space than TINY: name is MICRO there and TINY here; encoder_embed_dim is \[20, 12\]"
    with pytest.raises(ValueError, match=refused):
        load_network(path, TINY)
