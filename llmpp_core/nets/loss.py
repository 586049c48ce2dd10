"""How good a trained network is: validation loss and BLEU."""

from __future__ import annotations

import torch
from torch import Tensor

from llmpp_core.nets.training import smoothed_loss
from llmpp_core.nets.transformer import Transformer
from llmpp_core.text.batches import Pairs
from llmpp_core.text.special_tokens import PAD

# Logits held at once, in numbers: 64 MiB of float32.
_LOGITS = 2**24


@torch.inference_mode()
def validation_loss(model: Transformer, pairs: Pairs, *, label_smoothing: float = 0.1, batch_tokens: int = 8192) -> float:
    """Return the label-smoothed loss of `pairs` in nats per token; ValueError for a network in training mode, or no pairs."""
    if model.training:
        raise ValueError("model: expected a network in evaluation mode; call model.eval()")
    if not len(pairs):
        raise ValueError("pairs: there are none")
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
