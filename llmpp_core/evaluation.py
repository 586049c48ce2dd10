"""How good a trained network is: validation loss and BLEU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llmpp_core.batches import Pairs
from llmpp_core.decoding import translate
from llmpp_core.tasks import Task
from llmpp_core.training import smoothed_loss
from llmpp_core.transformer import PAD, Transformer

# Logits held at once, in numbers: 64 MiB of float32.
_LOGITS = 2**24


class Scores(NamedTuple):
    """Validation loss in nats per token, label-smoothed and not, and BLEU on both sides."""

    valid_loss: float
    valid_nll: float
    valid_bleu: float
    test_bleu: float


def evaluate(model: Transformer, task: Task, pairs: dict[str, Pairs] | None = None) -> Scores:
    """Measure a trained network on the validation and test sides of its task.

    Parameters
    ----------
    model : Transformer
        In evaluation mode.
    task : Task
        The task.
    pairs : dict of str to Pairs, optional
        The task's sides on the device of the model, where that is not the CPU.
    """
    pairs = pairs or dict(task.pairs)
    smoothing = task.recipe.label_smoothing
    losses = (validation_loss(model, pairs["valid"], label_smoothing=s) for s in (smoothing, 0.0))
    return Scores(*losses, *(task.bleu(translate(model, pairs[side], beam=task.beam), side) for side in ("valid", "test")))


@torch.inference_mode()
def validation_loss(model: Transformer, pairs: Pairs, *, label_smoothing: float = 0.1, batch_tokens: int = 8192) -> float:
    """Return the label-smoothed loss of `pairs` in nats per token."""
    total = torch.zeros((), dtype=torch.float64, device=pairs.src.device)
    tokens = 0
    for rows in pairs.batches(batch_tokens):
        batch = pairs.batch(rows)
        total += chunked_loss(model, model.decode(batch.tgt, model.encode(batch.src)), batch.labels, label_smoothing)
        tokens += batch.tokens
    return float(total) / tokens


def chunked_loss(model: Transformer, states: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Return the summed loss (float64) of the decoder's output (batch, target, width), never holding all logits at once.

    Padding is left out before the projection onto the vocabulary, which is most of the work of a small network.
    """
    kept = labels != PAD
    rows, wanted = states[kept], labels[kept]
    total = torch.zeros((), dtype=torch.float64, device=states.device)
    step = max(1, _LOGITS // model.vocab_size)
    for start in range(0, len(rows), step):
        total += smoothed_loss(model.project(rows[start : start + step]).float(), wanted[start : start + step], label_smoothing)
    return total
