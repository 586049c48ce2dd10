"""How good a trained network is: validation loss and BLEU."""

from __future__ import annotations

from typing import NamedTuple

from llmpp_core.nets.decoding import translate
from llmpp_core.nets.loss import validation_loss
from llmpp_core.nets.transformer import Transformer
from llmpp_core.tasks.task import Task
from llmpp_core.text.batches import Pairs


class Scores(NamedTuple):
    """Validation loss in nats per token, label-smoothed and not, and BLEU on both sides."""

    valid_loss: float
    valid_nll: float
    valid_bleu: float
    test_bleu: float


def evaluate(model: Transformer, task: Task, pairs: dict[str, Pairs] | None = None) -> Scores:
    """Measure a trained network, in evaluation mode, on the validation and test sides of its task.

    Where the network is not on the CPU, `pairs` are the task's sides on its device.
    """
    pairs = pairs or dict(task.pairs)
    smoothing = task.recipe.label_smoothing
    losses = (validation_loss(model, pairs["valid"], label_smoothing=s) for s in (smoothing, 0.0))
    return Scores(*losses, *(task.bleu(translate(model, pairs[side], beam=task.beam), side) for side in ("valid", "test")))
