"""Translation: greedy and beam search, token by token, with the keys and values of earlier tokens kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llmpp_core.nets.transformer import MAX_LENGTH, Cache, Transformer
from llmpp_core.text.batches import Pairs
from llmpp_core.text.special_tokens import BOS, EOS, PAD


@torch.inference_mode()
def translate(model: Transformer, pairs: Pairs, *, beam: int = 1, batch_tokens: int = 4096) -> list[list[int]]:
    """Translate the source sides of `pairs` into token identifiers without markers, with a network in evaluation mode.

    A sentence is over when `beam` hypotheses have ended (1 is greedy), or at 20 tokens more than twice the length of the longest source
    of its batch. The winner has the highest log-probability per token. `batch_tokens` source tokens, times `beam`, go at once.
    """
    if model.training:
        raise ValueError("model: expected a network in evaluation mode; call model.eval()")
    found: dict[int, list[int]] = {}
    order = np.argsort(-pairs.src_lengths, kind="stable")  # the longest of a batch first
    start = 0
    while start < len(order):
        n = max(1, batch_tokens // (beam * int(pairs.src_lengths[order[start]])))
        rows = order[start : start + n]
        src = pairs.src[torch.from_numpy(rows).to(pairs.src.device), : int(pairs.src_lengths[rows].max())].long()
        found |= zip(rows.tolist(), _search(model, src, beam), strict=True)
        start += n
    return [found[i] for i in range(len(pairs))]


def _search(model: Transformer, src: Tensor, beam: int) -> list[list[int]]:
    """Translate one batch of source tokens (n, source)."""
    n, device = len(src), src.device
    longest = min(2 * src.shape[1] + 20, MAX_LENGTH) - 1
    caches = _select(model.start(model.encode(src)), torch.arange(n, device=device).repeat_interleave(beam))
    # Of each sentence still open (s) and hypothesis (k): which sentence it is, score and tokens so far.
    sentences = list(range(n))
    scores = torch.full((n, beam), -torch.inf, device=device)
    scores[:, 0] = 0  # all hypotheses are equal at first, so only one may grow
    tokens = torch.full((n, beam, 1), BOS, device=device)
    ended: list[list[tuple[float, list[int]]]] = [[] for _ in range(n)]
    for length in range(1, longest + 1):
        logits, caches = model.step(tokens[:, :, -1].flatten(), length - 1, caches)
        logits[:, PAD] = logits[:, BOS] = -torch.inf
        log_probabilities = logits.float().log_softmax(-1)
        if length == longest:
            # Nothing but the end is left, at its own probability.
            log_probabilities[:, torch.arange(logits.shape[1], device=device) != EOS] = -torch.inf
        total = scores[:, :, None] + log_probabilities.view(len(sentences), beam, -1)
        vocab = total.shape[-1]
        # Twice as many as needed: at most `beam` of them can be ends.
        best, flat = total.flatten(1).topk(2 * beam)
        parent, token = flat // vocab, flat % vocab
        ends = token == EOS
        for s, k in ends[:, :beam].nonzero().tolist():
            score = best[s, k].item()
            if score > -np.inf:
                ended[sentences[s]].append((score / length, tokens[s, parent[s, k], 1:].tolist()))
        # The best `beam` that go on, in order.
        going = (ends.long() * 2 * beam + torch.arange(2 * beam, device=device)).argsort(dim=1)[:, :beam]
        scores, parent, token = (x.gather(1, going) for x in (best, parent, token))
        scores = scores.masked_fill(ends.gather(1, going), -torch.inf)
        open_ = [s for s, sentence in enumerate(sentences) if len(ended[sentence]) < beam]
        if not open_ or length == longest:
            break
        keep = torch.tensor(open_, device=device)
        sentences = [sentences[s] for s in open_]
        scores, parent, token, tokens = scores[keep], parent[keep], token[keep], tokens[keep]
        tokens = torch.cat([tokens.gather(1, parent[:, :, None].expand(-1, -1, length)), token[:, :, None]], dim=2)
        caches = _select(caches, (keep[:, None] * beam + parent).flatten())
    return [max(hypotheses)[1] for hypotheses in ended]


def _select(caches: Sequence[Cache], rows: Tensor) -> list[Cache]:
    return [Cache._make(None if x is None else x.index_select(0, rows) for x in cache) for cache in caches]
