"""The loss of a network is the mean over all tokens, however they are batched, and BLEU is that of its translations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from small_nets import MICRO, VOCAB, new_network, reversed_pairs, reversed_task

from llmpp_core.nets import loss as evaluation
from llmpp_core.nets.decoding import translate
from llmpp_core.nets.loss import validation_loss
from llmpp_core.nets.transformer import Transformer
from llmpp_core.tasks.evaluation import evaluate
from llmpp_core.tasks.task import Task
from llmpp_core.text.batches import Pairs

ARCHS = MICRO.sample(4, np.random.default_rng(0))


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return reversed_pairs(30, seed=0)


@pytest.fixture(scope="module")
def task() -> Task:
    return reversed_task()


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def sentence_by_sentence(model: Transformer, pairs: Pairs, label_smoothing: float) -> float:
    """Return the mean loss per token by the plain loop, without any padding."""
    total = tokens = 0.0
    for i in range(len(pairs)):
        batch = pairs.batch(np.array([i]))
        log_probabilities = model(batch.src, batch.tgt)[0].double().log_softmax(-1)
        wanted = -log_probabilities[torch.arange(batch.tokens), batch.labels[0]]
        total += float(((1 - label_smoothing) * wanted - label_smoothing * log_probabilities.mean(-1)).sum())
        tokens += batch.tokens
    return total / tokens


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_plain_loop(label_smoothing: float, pairs: Pairs) -> None:
    for arch in ARCHS:
        model = new_network(arch)
        expected = sentence_by_sentence(model, pairs, label_smoothing)
        for batch_tokens in (1, 50, 8192):
            found = validation_loss(model, pairs, label_smoothing=label_smoothing, batch_tokens=batch_tokens)
            assert found == pytest.approx(expected, rel=1e-6)


def test_few_logits_are_held_at_once_and_none_of_padding(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = new_network(ARCHS[0]), int(pairs.tgt_lengths.sum()) - len(pairs)
    expected = validation_loss(model, pairs)
    sizes: list[int] = []
    monkeypatch.setattr(model, "project", lambda x: sizes.append(len(x)) or Transformer.project(model, x))
    for limit in (1, 7 * VOCAB, 2**24):
        monkeypatch.setattr(evaluation, "_LOGITS", limit)
        sizes.clear()
        assert validation_loss(model, pairs) == pytest.approx(expected, rel=1e-6)
        assert max(sizes) == min(max(1, limit // VOCAB), tokens)
        assert sum(sizes) == tokens


def test_scores_are_those_of_both_sides(task: Task) -> None:
    model = Transformer(MICRO.smallest(), MICRO, len(task.vocabulary)).eval()
    model.initialise(torch.Generator().manual_seed(0))
    scores = evaluate(model, task)
    assert scores.valid_loss == validation_loss(model, task.pairs["valid"], label_smoothing=0.1)
    assert scores.valid_nll == validation_loss(model, task.pairs["valid"], label_smoothing=0.0)
    assert scores.valid_bleu == task.bleu(translate(model, task.pairs["valid"]), "valid")
    assert scores.test_bleu == task.bleu(translate(model, task.pairs["test"]), "test")
    assert evaluate(model, task, dict(task.pairs)) == scores
