"""One training on several processes: what ``accelerate launch`` started shares each update's batches and adds up the gradients.

There is no wrapper around the network. Every process goes through the same subnets, so the same parameters have a gradient
everywhere, and one sum over all of them does for a whole update. What is not in the subnets, most of a supernet, is not sent.
"""

from __future__ import annotations

import atexit
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from llmpp_core.jobs.files import SourceError
from llmpp_core.text.batches import Batch, Pairs
from llmpp_core.text.special_tokens import PAD

if TYPE_CHECKING:
    from accelerate import PartialState

Result = TypeVar("Result")
# By these a process learns that it is one of several.
_LAUNCHED = (
    *("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PMI_SIZE", "PMI_RANK"),
    *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
)


def processes() -> PartialState:
    """Return this process's place among those of ``accelerate launch``, and its device; without a launch, the first of one.

    Raises ValueError if variables, which it names, say that there are several processes, but not how to reach them.
    """
    # Before the group of processes is made: functions of this module keep the group of their moment as a default argument, and so
    # would keep its threads alive beyond the handler below.
    import torch.distributed.nn
    from accelerate import PartialState

    # Accelerate sets some of them itself.
    found = {name: os.environ[name] for name in _LAUNCHED if name in os.environ}
    try:
        place = PartialState(cpu=not torch.cuda.is_available())
    except (ValueError, RuntimeError, KeyError, ImportError) as error:
        PartialState._reset_state()
        for name in set(_LAUNCHED) - set(found):
            os.environ.pop(name, None)
        if not found:
            raise
        said, why = ", ".join(map("=".join, found.items())), " ".join(str(error).split())
        what = f"{said}: so this would be one of several processes, which cannot be reached ({why})"
        raise ValueError(f"{what}; unset these variables, or start with: accelerate launch -m llmpp_book ...") from None
    if place.num_processes > 1:
        # The threads of the connection must end before the process does, or it may abort after all its work is done.
        atexit.register(place.destroy_process_group)
    return place


def share(pairs: Pairs, batches: Sequence[np.ndarray], place: PartialState | None) -> Iterator[tuple[int, Batch]]:
    """Yield this process's part of the rows of an update's batches, each with its number in the update.

    Whole batches are dealt out where their number is a multiple of that of the processes; otherwise each batch is cut into as many
    parts of rows as it takes to give every process as many.
    """
    rank, ranks = (place.process_index, place.num_processes) if place else (0, 1)
    cut = ranks // math.gcd(len(batches), ranks)
    for number in range(rank, len(batches) * cut, ranks):
        rows = batches[number // cut]
        part = rows[number % cut :: cut]
        if len(part):
            yield number, pairs.batch(part)
        else:
            # Fewer sentences than parts. One whose labels count for nothing makes the gradients exist that the others have.
            blank = pairs.batch(rows[:1])
            yield number, blank._replace(labels=torch.full_like(blank.labels, PAD), tokens=0)


def add_gradients(parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
    """Put the sums over all processes in place of the gradients, and return that of the loss, a scalar."""
    from accelerate.utils import reduce

    used = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    # One message; many small ones would each wait for the slowest process.
    message = torch.cat([*(gradient.flatten() for _, gradient in used), loss.to(used[0][1].dtype).view(1)])
    sums = reduce(message, "sum").split([*(gradient.numel() for _, gradient in used), 1])
    for (parameter, gradient), summed in zip(used, sums[:-1], strict=True):
        parameter.grad = summed.view_as(gradient)
    return sums[-1][0].double()


def first_decides(answer: bool, place: PartialState | None) -> bool:
    """Return the first process's answer, on all."""
    if place is None:
        return answer
    from accelerate.utils import broadcast

    return bool(broadcast(torch.tensor([float(answer)], device=place.device)))


def gathered(values: list[Any], place: PartialState | None) -> list[Any]:
    """Return the values of all processes, those of the first at the beginning."""
    if place is None:
        return values
    from accelerate.utils import gather_object

    return gather_object(values)


def all_or_none(work: Callable[[], Result], place: PartialState | None) -> Result:
    """Do `work` on every process; if that fails on one, raise a ValueError on all, so that none waits for ever for the others."""
    if place is None:
        return work()
    result, error = None, None
    try:
        result = work()
    except (ValueError, OSError, SourceError) as problem:
        error = str(problem)
    errors = [text for text in gathered([error], place) if text is not None]
    if errors:
        raise ValueError(errors[0])
    return result  # type: ignore[return-value]


def refuse_different(value: object, place: PartialState | None) -> None:
    """Raise ValueError on all processes unless `value`, which JSON can hold, is the same on all."""
    if len(set(gathered([json.dumps(value, sort_keys=True)], place))) > 1:
        what = "the processes differ in network, data, recipe, seed or checkpoint"
        raise ValueError(f"{what}; start all with the same command, and keep the checkpoint where all can read it")
