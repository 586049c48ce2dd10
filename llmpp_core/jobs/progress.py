"""Progress of long work: a bar in a terminal or notebook, lines in a log."""

from __future__ import annotations

import re
import sys
from typing import Any

from tqdm import tqdm

# Seconds between two lines of a log.
_SECONDS = 30.0
# What tqdm moves the cursor with.
_CURSOR = re.compile(r"\x1b\[[A-Z]")


class _Lines:
    """A file in which each state of a bar is a line of its own, rather than written over the one before it."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        """Write a line, unless it is empty or tells no more than the one before."""
        line = _CURSOR.sub("", text).replace("||", "|").strip()
        count = line.partition(" [")[0]
        if line and count != self._last:
            self._last = count
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Do nothing: every line is flushed."""


def progress_bar(*arguments: Any, **options: Any) -> tqdm:
    """Return a bar as `tqdm.tqdm` does; where stderr is a file it leaves a line every half minute, and one at its end."""
    # A notebook's stderr is no terminal either, but overwrites lines.
    if sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel"):
        return tqdm(*arguments, **options)
    lines: Any = _Lines()
    return tqdm(*arguments, **{"file": lines, "mininterval": _SECONDS, "maxinterval": _SECONDS, "bar_format": "{l_bar}{r_bar}"} | options)
