"""The architecture that the book carries from chapter to chapter: drawn, priced, asked about, predicted, timed."""

from __future__ import annotations

from typing import NamedTuple

from llmpp_core.space.architecture import Architecture
from llmpp_core.upstream import tfs_splits


class Example(NamedTuple):
    """The first test architecture of the paper's first split of WMT'14 En-De: the one that chapter 4 shows the prompt of."""

    architecture: Architecture
    bleu: float  #: What the record says, in per cent, on the validation set.
    task: str  #: By the name of its records.


def example() -> Example:
    """Return the example; reads the paper's records, so it needs the upstream group ``tfs``."""
    split = next(iter(tfs_splits()))
    row = split.test.iloc[0]
    return Example(row["architecture"], float(row["bleu"]), split.task)
