"""The supernet as a predictor: how good is a subnet with the weights it inherits?

Batches are made once and stay on the device, and candidates whose encoders begin alike share the work of what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from llmpp_core.nets.decoding import translate
from llmpp_core.nets.distributed import gathered
from llmpp_core.nets.loss import chunked_loss
from llmpp_core.nets.supernet import SuperTransformer
from llmpp_core.nets.transformer import Memory, Transformer
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.regressor import ArchitectureScorer
from llmpp_core.text.batches import Batch, Pairs
from llmpp_core.text.special_tokens import PAD

if TYPE_CHECKING:
    from accelerate import PartialState


class SupernetPredictor(ArchitectureScorer):
    """Minus the validation loss that subnets have with inherited weights, in nats per token, or their BLEU; higher is better.

    Scores are remembered in the dict `scores_`, until `fit` forgets them. Wrap it in
    `llmpp_core.predictors.baselines.CalibratedPredictor` for scores on the scale of BLEU.

    Parameters
    ----------
    supernet : SuperTransformer
        A trained supernet, in evaluation mode.
    pairs : Pairs
        Validation pairs on the device of the supernet.
    label_smoothing : float
        As in training.
    batch_tokens : int
        Padded tokens per batch.
    bleu : callable, optional
        Takes the translations of `pairs`, rows of token identifiers, and returns a score, such as ``partial(task.bleu, side="valid")``.
        The score is then that of greedy translations, which takes several times as long as the loss.
    place : accelerate.PartialState, optional
        Which of several processes this is: `llmpp_core.nets.distributed.processes()`. All ask for the same candidates at the same
        time, each scores a part of them, and all get all scores.
    """

    def __init__(
        self,
        supernet: SuperTransformer,
        pairs: Pairs,
        label_smoothing: float = 0.1,
        batch_tokens: int = 1024,
        bleu: Callable[[list[list[int]]], float] | None = None,
        place: PartialState | None = None,
    ):
        self.supernet = supernet
        self.pairs = pairs
        self.label_smoothing = label_smoothing
        self.batch_tokens = batch_tokens
        self.bleu = bleu
        self.place = place

    def _check(self, archs: Sequence[Architecture]) -> None:
        if not isinstance(self.supernet, SuperTransformer):
            raise ValueError(f"supernet: expected a SuperTransformer, got {type(self.supernet).__name__}")
        if self.supernet.training:
            raise ValueError("supernet: expected one in evaluation mode; call supernet.eval()")
        if not len(self.pairs):
            raise ValueError("pairs: expected at least one")
        for arch in archs:
            self.supernet.space.validate(arch)

    def _scores(self, archs: Sequence[Architecture]) -> list[float]:
        batches = [self.pairs.batch(rows) for rows in self.pairs.batches(self.batch_tokens)]
        # Neighbours share the longest beginnings of their encoders.
        ordered = sorted(archs, key=_encoder_key)
        # On a CPU one candidate per core is faster than all cores on one candidate, whose matrices are small.
        cores = torch.get_num_threads() if self.pairs.src.device.type == "cpu" else 1
        rank, ranks = (self.place.process_index, self.place.num_processes) if self.place else (0, 1)
        mine = ordered[len(ordered) * rank // ranks : len(ordered) * (rank + 1) // ranks]
        shares = [mine[len(mine) * i // cores : len(mine) * (i + 1) // cores] for i in range(cores)]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                found = [score for part in pool.map(lambda share: self._share(share, batches), shares) for score in part]
        finally:
            torch.set_num_threads(threads)
        scores = dict(zip(ordered, gathered(found, self.place), strict=True))
        return [scores[arch] for arch in archs]

    @torch.inference_mode()
    def _share(self, archs: Sequence[Architecture], batches: Sequence[Batch]) -> list[float]:
        """Score one core's share of the candidates."""
        models = (self.supernet.subnet(arch, copy=False).eval() for arch in archs)
        if self.bleu is not None:
            return [float(self.bleu(translate(model, self.pairs))) for model in models]
        tokens = sum(batch.tokens for batch in batches)
        scores = []
        # In a mixture every weight depends on the whole architecture, so nothing is ever the same.
        for model, memories in _encoded(models, batches, shared=self.supernet.kind == "shared"):
            losses = [
                chunked_loss(model, model.decode(batch.tgt, memory), batch.labels, self.label_smoothing)
                for batch, memory in zip(batches, memories, strict=True)
            ]
            scores.append(-float(torch.stack(losses).sum()) / tokens)
        return scores

    def __sklearn_clone__(self) -> Self:
        """Share the supernet and the pairs, which nothing here changes; a copy would take as much memory again."""
        return type(self)(**self.get_params(deep=False))


def _encoded(models: Iterable[Transformer], batches: Sequence[Batch], shared: bool) -> Iterator[tuple[Transformer, list[Memory]]]:
    """Yield networks with what they read of each batch, reusing the states of layers at which an encoder is that of the one before."""
    masks = [batch.src != PAD for batch in batches]
    before: tuple[Any, ...] = ()
    states: list[list[Tensor]] = []
    for model in models:
        key = _encoder_key(model.arch)
        same = list(takewhile(lambda pair: pair[0] == pair[1], zip(before, key, strict=False))) if shared else []
        before, states = key, states[: len(same)]
        if not states:
            states.append([model.embed(batch.src, model.arch.encoder_embed_dim) for batch in batches])
        for layer in model.encoder[len(states) - 1 :]:
            states.append([layer(x, mask[:, None, None, :]) for x, mask in zip(states[-1], masks, strict=True)])
        yield model, [Memory(last, mask) for *last, mask in zip(*states[:-4:-1], masks, strict=True)]


def _encoder_key(arch: Architecture) -> tuple[tuple[int, ...], ...]:
    """Return the width, then what sets each layer: one entry per tensor that the encoder passes through."""
    return ((arch.encoder_embed_dim,), *zip(arch.encoder_ffn_dims, arch.encoder_heads, strict=True))
