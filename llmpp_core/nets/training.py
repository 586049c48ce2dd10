"""Training: one loop for a single architecture and for supernets, which stops and resumes without a trace.

Everything random in update t depends on the seed and on t alone, so a training resumed from a checkpoint goes through the same
updates as one that was never interrupted; nor does an update depend on how many processes share it (see `train`).
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from llmpp_core.jobs.files import need_writable
from llmpp_core.jobs.progress import progress_bar
from llmpp_core.nets.checkpoints import digest, read_checkpoint, space_record, write_checkpoint
from llmpp_core.nets.distributed import add_gradients, all_or_none, first_decides, refuse_different, share
from llmpp_core.nets.supernet import SuperTransformer
from llmpp_core.nets.transformer import Transformer
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.search_space import SearchSpace
from llmpp_core.text.batches import Batch, Pairs, epochs
from llmpp_core.text.special_tokens import PAD

if TYPE_CHECKING:
    from accelerate import PartialState

#: Number of points of a loss curve.
POINTS = 50
# Seconds between two checkpoints.
_CHECKPOINT_EVERY = 20


@dataclass(frozen=True)
class Recipe:
    """How to train; ValueError names a field that cannot be."""

    updates: int  #: Number of updates.
    batch_tokens: int  #: Padded tokens per batch, on the longer side.
    learning_rate: float  #: Peak; reached linearly in `warmup` of all updates, then down to zero along a cosine.
    warmup: float = 0.1  #: Share of the updates.
    dropout: float = 0.1  #: At the full width of the space.
    label_smoothing: float = 0.1  #: Share of the label spread over the vocabulary.
    clip: float = 1.0  #: Limit of the gradient's norm.
    accumulate: int = 1  #: Batches per update, whose gradients are added up; all processes together.

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            known = isinstance(value, Real) and not isinstance(value, bool)
            if not known:
                raise ValueError(f"{name}: expected a number, got {value!r}")
            whole = name in ("updates", "batch_tokens", "accumulate")
            if whole and value % 1:
                raise ValueError(f"{name}: expected an integer, got {value!r}")
            # Checkpoints hold them as JSON, which has none of NumPy's.
            object.__setattr__(self, name, int(value) if whole else value.item() if isinstance(value, np.generic) else value)
        for name in ("updates", "batch_tokens", "learning_rate", "clip", "accumulate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)!r}")
        for name in ("warmup", "dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number from 0 to below 1, got {getattr(self, name)!r}")

    def rate(self, update: int) -> float:
        """Return the learning rate of an update, counted from 0."""
        warmup = max(1, round(self.warmup * self.updates))
        if update < warmup:
            return self.learning_rate * (update + 1) / warmup
        return self.learning_rate * (1 + math.cos(math.pi * (update - warmup) / (self.updates - warmup))) / 2


@dataclass
class History:
    """What happened so far."""

    updates: int = 0  #: Updates done.
    tokens: int = 0  #: Target tokens seen.
    seconds: float = 0.0  #: Time spent, over all pieces.
    #: Label-smoothed training loss in nats per token, the mean over each fiftieth of the training.
    loss: list[float] = field(default_factory=list)
    pending: float = 0.0  #: Sum of the losses since the last of these means.
    diverged: str | None = None  #: What went wrong, if the training was given up.
    finished: bool = False  #: Whether the training is over.


#: Draws the subnets of an update.
Sampling = Callable[[SearchSpace, np.random.Generator], Sequence[Architecture]]


def uniform(space: SearchSpace, rng: np.random.Generator) -> Sequence[Architecture]:
    """Train one architecture per update, every choice drawn uniformly, as HAT does."""
    return space.sample(1, rng)


def sandwich(space: SearchSpace, rng: np.random.Generator) -> Sequence[Architecture]:
    """Train a random architecture, the largest and the smallest in every update."""
    return [*space.sample(1, rng), space.largest(), space.smallest()]


def train(
    model: Transformer | SuperTransformer,
    pairs: Pairs,
    recipe: Recipe,
    *,
    seed: int,
    sampling: Sampling | None = None,
    checkpoint: str | Path | None = None,
    seconds: float = math.inf,
    progress: str | None = None,
    place: PartialState | None = None,
) -> History:
    """Train in place, from scratch or from a checkpoint.

    Several processes that call this alike, each with a `place` of its own, share the batches of every update. The loss is that of one
    process to rounding, and a checkpoint goes on with any number of processes. With dropout, that of a mixture's routers included,
    this holds where the number of processes divides `recipe.accumulate`; otherwise they cut up batches, which draw dropout of their own.

    Parameters
    ----------
    model : Transformer or SuperTransformer
        The network, on the device of `pairs`; its weights are drawn anew from the seed.
    pairs, recipe : Pairs, Recipe
        What to train on, and how.
    seed : int
        Draws weights, order of batches, subnets and dropout.
    sampling : Sampling, optional
        `uniform` or `sandwich`; a supernet needs one.
    checkpoint : path, optional
        Written every 20 seconds and at the end; read first if it is there.
    seconds : float
        Stop after so long; with a checkpoint the next call goes on.
    progress : str, optional
        Title of a progress bar.
    place : accelerate.PartialState, optional
        Which of several processes this is: `llmpp_core.nets.distributed.processes()`. The first writes the checkpoint, which all must
        be able to read, shows the bar, and decides when time is over.

    Returns
    -------
    History
        `finished` is False if time ran out. `diverged` tells if the loss became infinite, or if from halfway on it was not below
        that of a model that knows only how frequent each token is; the training is then over.

    Raises
    ------
    ValueError
        If the checkpoint is damaged, of another training or cannot be written, or the arguments do not fit each other; on all
        processes, if on one.
    """
    checkpoint = None if checkpoint is None else Path(checkpoint)
    place = place if place and place.num_processes > 1 else None
    seed = operator.index(seed)
    first = place is None or place.is_main_process
    if isinstance(model, SuperTransformer) != (sampling is not None):
        raise ValueError("sampling: a supernet needs one, a single architecture takes none")
    if len(pairs) == 0:
        raise ValueError("pairs: there are none to train on")
    if isinstance(pairs.src, torch.Tensor) and (most := int(max(pairs.src.max(), pairs.tgt.max()))) >= model.vocab_size:
        raise ValueError(f"pairs: token {most} is none of the network's {model.vocab_size:,}; was another vocabulary used?")
    device = pairs.src.device
    model.set_dropout(recipe.dropout)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.9, 0.98), fused=True)
    model.initialise(torch.Generator(device).manual_seed(seed))
    # What a checkpoint must have been made with to be continued.
    identity = {
        "network": model.describe(),
        "space": space_record(model.space),
        "recipe": asdict(recipe),
        "sampling": None if sampling is None else sampling.__name__,
        "seed": seed,
        "pairs": digest(pairs),
    }
    history = all_or_none(lambda: _resume(checkpoint, identity, model, optimiser, first), place)
    refuse_different((identity, history.updates), place)
    if history.finished:
        model.eval()
        return history

    started, saved = time.monotonic() - history.seconds, time.monotonic()
    stop = time.monotonic() + seconds
    pending = torch.tensor(history.pending, dtype=torch.float64, device=device)

    def save() -> None:
        history.seconds, history.pending = time.monotonic() - started, float(pending)
        if checkpoint is not None and first:
            write_checkpoint(checkpoint, identity, model, optimiser, asdict(history))

    model.train()
    bar = progress_bar(total=recipe.updates, initial=history.updates, desc=progress, disable=progress is None or not first)
    groups = zip(*[epochs(pairs, recipe.batch_tokens, seed)] * recipe.accumulate, strict=True)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), bar:
        for group in islice(groups, history.updates, None):
            update, tokens = history.updates, sum(int(pairs.tgt_lengths[rows].sum()) - len(rows) for rows in group)
            archs = sampling(model.space, np.random.default_rng([seed, update])) if sampling else None
            batches = _seeded(share(pairs, group, place), seed * 1_000_003 + update)
            pending += _update(model, optimiser, batches, archs, recipe, recipe.rate(update), tokens, place)
            history.updates, history.tokens = update + 1, history.tokens + tokens
            before, after = (n * POINTS // recipe.updates for n in (update, update + 1))
            if after > before:
                # Reading the loss waits for the device, so it is read no oftener than this.
                history.loss.append(float(pending) / (update + 1 - math.ceil(before * recipe.updates / POINTS)))
                pending.zero_()
                history.diverged = _divergence(history, pairs, recipe)
                bar.set_postfix_str(f"loss {history.loss[-1]:.3f}, {history.tokens / (time.monotonic() - started):,.0f} tokens/s")
            bar.update()
            history.finished = history.updates == recipe.updates or history.diverged is not None
            if history.finished or first_decides(time.monotonic() > stop, place):
                break
            if time.monotonic() - saved > _CHECKPOINT_EVERY:
                save()
                saved = time.monotonic()
    save()
    if place is not None:
        place.wait_for_everyone()
    model.eval()
    return history


def _resume(checkpoint: Path | None, identity: dict[str, Any], model: nn.Module, optimiser: torch.optim.Optimizer, writes: bool) -> History:
    history = History()
    if checkpoint is not None and checkpoint.exists():
        history = History(**read_checkpoint(checkpoint, identity, model, optimiser))
    if checkpoint is not None and writes and not history.finished:
        need_writable(checkpoint)
    return history


def _seeded(numbered: Iterable[tuple[int, Batch]], seed: int) -> Iterator[Batch]:
    """Yield batches, each of which draws dropout by its number, whoever computes it."""
    for number, batch in numbered:
        # On a CPU only 32 bits of a seed count; multiples of this prime keep far from each other in them.
        torch.manual_seed(seed + 2_654_435_761 * number)
        yield batch


def _update(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[Batch],
    archs: Sequence[Architecture] | None,
    recipe: Recipe,
    rate: float,
    tokens: int,
    place: PartialState | None = None,
) -> torch.Tensor:
    """Make one update on batches of `tokens` labels over all processes and return its mean loss; several subnets add up their gradients."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    total = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
    extra: list[tuple[Architecture, ...]] = [()] if archs is None else [(arch,) for arch in archs]
    for batch in batches:
        for arguments in extra:
            with torch.autocast(total.device.type, torch.bfloat16, enabled=total.device.type == "cuda"):
                logits = model(batch.src, batch.tgt, *arguments)
                loss = smoothed_loss(logits, batch.labels, recipe.label_smoothing) / (tokens * len(extra))
            loss.backward()
            total += loss.detach()
    if place is not None:
        total = add_gradients(model.parameters(), total)
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimiser.step()
    return total


def smoothed_loss(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Return the label-smoothed cross-entropy summed over the labels (...) that are not padding, for logits (..., V)."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=PAD, label_smoothing=label_smoothing, reduction="sum")


def _divergence(history: History, pairs: Pairs, recipe: Recipe) -> str | None:
    if not math.isfinite(history.loss[-1]):
        return f"the loss is {history.loss[-1]} at update {history.updates}"
    if 2 * history.updates < recipe.updates:
        return None
    # The best that the frequencies alone can do against smoothed labels is the entropy of the smoothed frequencies.
    counts = pairs.label_counts()
    counts[PAD] = 0
    shares = (1 - recipe.label_smoothing) * counts / counts.sum() + recipe.label_smoothing / len(counts)
    entropy = float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
    if history.loss[-1] < entropy:
        return None
    return f"the loss is {history.loss[-1]:.2f} at update {history.updates}; knowing the frequencies alone gives {entropy:.2f}"
