"""What the runner prints: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm


class Console:
    """Prints lines, and on a terminal one bar for each notebook that is running.

    Parameters
    ----------
    bars : bool, optional
        Whether to draw bars; by default where standard output and error are a terminal.
    """

    def __init__(self, bars: bool | None = None):
        self.bars = sys.stdout.isatty() and sys.stderr.isatty() if bars is None else bars
        self.begin = time.monotonic()
        self._running: dict[str, tqdm] = {}
        self._slots: dict[str, int] = {}

    def line(self, message: str) -> None:
        """Print one line, above the bars if there are any."""
        tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()

    def error(self, message: str) -> None:
        """Print to standard error, above the bars if there are any."""
        sys.stdout.flush()
        tqdm.write(message, file=sys.stderr)

    def start(self, stem: str, cells: int) -> None:
        """Say that a notebook of so many code cells started."""
        if not self.bars:
            self.line(f"{stem}  started")
            return
        self._slots[stem] = min(set(range(len(self._slots) + 1)) - set(self._slots.values()))
        form = "{desc}  {bar}  {n_fmt}/{total_fmt} cells, {elapsed}"
        self._running[stem] = tqdm(total=cells, desc=stem, bar_format=form, position=self._slots[stem], leave=False, dynamic_ncols=True)

    def cell(self, stem: str, number: int) -> None:
        """Say that a notebook's code cell of this number (from 1) started."""
        if stem in self._running:
            self._running[stem].update(number - 1 - self._running[stem].n)

    def tick(self) -> None:
        """Let the bars show the time that passed."""
        for bar in self._running.values():
            bar.refresh()

    def finish(self, stem: str, message: str) -> None:
        """Say how a notebook ended."""
        if stem in self._running:
            self._running.pop(stem).close()
            del self._slots[stem]
        self.line(f"{stem}  {message}")

    def close(self) -> None:
        """Take the bars away."""
        for bar in self._running.values():
            bar.close()

    def elapsed(self) -> float:
        """Return the seconds since this console was made."""
        return time.monotonic() - self.begin
