"""The supernet as a predictor: how good is a subnet with the weights it inherits?

`SupernetPredictor` gives the scores of the plain loop over candidates and batches, sooner: batches are made once and stay on the
device, a candidate is scored once, and candidates whose encoders begin alike share the work of what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import Tags
from torch import Tensor

from llmpp_core.jobs.progress import progress_bar
from llmpp_core.nets.decoding import translate
from llmpp_core.nets.distributed import gathered
from llmpp_core.nets.loss import chunked_loss
from llmpp_core.nets.supernet import SuperTransformer
from llmpp_core.nets.transformer import Memory, Transformer
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.inputs import as_list
from llmpp_core.text.batches import Batch, Pairs
from llmpp_core.text.vocabulary import PAD

if TYPE_CHECKING:
    from accelerate import PartialState


class SupernetPredictor(RegressorMixin, BaseEstimator):
    """Minus the validation loss that subnets have with inherited weights, or their BLEU; higher is better.

    Wrap it in `llmpp_core.predictors.baselines.CalibratedPredictor` for scores on the scale of BLEU.

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
    progress : bool
        Show a progress bar.
    bleu : callable, optional
        Takes the translations of `pairs`, rows of token identifiers, and returns a score, such as ``partial(task.bleu, side="valid")``.
        With it the score is that of greedy translations, which takes several times as long as the loss.
    place : accelerate.PartialState, optional
        Which of several processes this is: `llmpp_core.nets.distributed.processes()`. All ask for the same candidates at the same
        time, each scores a part of them, and all get all scores.

    Attributes
    ----------
    scores_ : dict of Architecture to float
        Every score so far.
    """

    def __init__(
        self,
        supernet: SuperTransformer,
        pairs: Pairs,
        label_smoothing: float = 0.1,
        batch_tokens: int = 1024,
        progress: bool = False,
        bleu: Callable[[list[list[int]]], float] | None = None,
        place: PartialState | None = None,
    ):
        self.supernet = supernet
        self.pairs = pairs
        self.label_smoothing = label_smoothing
        self.batch_tokens = batch_tokens
        self.progress = progress
        self.bleu = bleu
        self.place = place

    def fit(self, archs: Sequence[Architecture], scores: ArrayLike | None = None) -> Self:
        """Forget all scores; the supernet is trained elsewhere."""
        self.__dict__.pop("scores_", None)
        return self

    def predict(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return an array of shape (n,), in nats per token or BLEU; raises ValueError if an architecture is not in the space."""
        archs = as_list(archs)
        if not isinstance(self.supernet, SuperTransformer):
            raise ValueError(f"supernet: expected a SuperTransformer, got {type(self.supernet).__name__}")
        for arch in archs:
            self.supernet.space.validate(arch)
        known: dict[Architecture, float] = self.__dict__.setdefault("scores_", {})
        new = [arch for arch in dict.fromkeys(archs) if arch not in known]
        if new:
            known |= zip(new, self._scores(new), strict=True)
        return np.array([known[arch] for arch in archs], dtype=float)

    def _scores(self, archs: Sequence[Architecture]) -> list[float]:
        if self.supernet.training:
            raise ValueError("supernet: expected one in evaluation mode; call supernet.eval()")
        if not len(self.pairs):
            raise ValueError("pairs: expected at least one")
        batches = [self.pairs.batch(rows) for rows in self.pairs.batches(self.batch_tokens)]
        # Neighbours share the longest beginnings of their encoders.
        ordered = sorted(archs, key=_encoder_key)
        # On a CPU one candidate per core is faster than all cores on one candidate, whose matrices are small.
        cores = torch.get_num_threads() if self.pairs.src.device.type == "cpu" else 1
        rank, ranks = (self.place.process_index, self.place.num_processes) if self.place else (0, 1)
        mine = ordered[len(ordered) * rank // ranks : len(ordered) * (rank + 1) // ranks]
        shares = [mine[len(mine) * i // cores : len(mine) * (i + 1) // cores] for i in range(cores)]
        with progress_bar(total=len(mine), desc="supernet", disable=not self.progress or rank > 0) as bar, _one_thread_each(cores) as pool:
            found = [score for part in pool.map(lambda share: self._share(share, batches, bar), shares) for score in part]
        scores = dict(zip(ordered, gathered(found, self.place), strict=True))
        return [scores[arch] for arch in archs]

    @torch.inference_mode()
    def _share(self, archs: Sequence[Architecture], batches: Sequence[Batch], bar: Any) -> list[float]:
        """Score one core's share of the candidates."""
        tokens = sum(batch.tokens for batch in batches)
        encoders = _SharedEncoders(batches, shared=self.supernet.kind == "shared")
        scores = []
        for arch in archs:
            model = self.supernet.subnet(arch, copy=False).eval()
            if self.bleu is not None:
                scores.append(float(self.bleu(translate(model, self.pairs))))
                bar.update()
                continue
            losses = [
                chunked_loss(model, model.decode(batch.tgt, memory), batch.labels, self.label_smoothing)
                for batch, memory in zip(batches, encoders.memories(model), strict=True)
            ]
            scores.append(-float(torch.stack(losses).sum()) / tokens)
            bar.update()
        return scores

    def __sklearn_clone__(self) -> Self:
        """Share the supernet and the pairs, which nothing here changes; a copy would take as much memory again."""
        return type(self)(**self.get_params(deep=False))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True
        tags.input_tags.two_d_array = False
        return tags


class _SharedEncoders:
    """Encoder states of all batches, kept for the candidate at hand and reused by the next as far as their encoders are the same.

    Holds one tensor per batch and encoder layer: validation tokens x width x (layers + 1) numbers.
    """

    def __init__(self, batches: Sequence[Batch], shared: bool):
        self.batches = batches
        # In a mixture every weight depends on the whole architecture, so nothing is ever the same.
        self.shared = shared
        self.key: list[Any] = []
        self.states: list[list[Tensor]] = []

    def memories(self, model: Transformer) -> Iterator[Memory]:
        """Yield what the decoder reads of each batch."""
        key = list(_encoder_key(model.arch))
        same = next((i for i, (a, b) in enumerate(zip(self.key, key, strict=False)) if a != b), min(len(self.key), len(key)))
        if not self.shared:
            same = 0
        self.key, self.states = key, self.states[:same]
        masks = [batch.src != PAD for batch in self.batches]
        if not self.states:
            self.states.append([model.embed(batch.src, model.arch.encoder_embed_dim) for batch in self.batches])
        for layer in model.encoder[len(self.states) - 1 :]:
            self.states.append([layer(x, mask[:, None, None, :]) for x, mask in zip(self.states[-1], masks, strict=True)])
        for i, mask in enumerate(masks):
            yield Memory([states[i] for states in self.states[:-4:-1]], mask)


@contextmanager
def _one_thread_each(cores: int) -> Iterator[ThreadPoolExecutor]:
    """Give a pool of `cores` threads in which PyTorch uses one core each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def _encoder_key(arch: Architecture) -> tuple[tuple[int, ...], ...]:
    """Return the width, then what sets each layer: one entry per tensor that the encoder passes through."""
    return ((arch.encoder_embed_dim,), *zip(arch.encoder_ffn_dims, arch.encoder_heads, strict=True))
