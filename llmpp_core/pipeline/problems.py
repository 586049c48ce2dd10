"""All that is wrong with an input, told at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# More would only be noise: they often have one cause.
_MOST = 10


class Problems:
    """Collects the lines of ValueErrors, to be raised together."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Add a line, unless it is there already."""
        if line not in self.lines:
            self.lines.append(line)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Go on after a ValueError, whose lines are added."""
        try:
            yield
        except ValueError as error:
            for line in str(error).splitlines():
                self.add(line)

    def check(self) -> None:
        """Raise ValueError, ten lines at most, if there is anything."""
        if self.lines:
            more = [f"and {len(self.lines) - _MOST} more"] if len(self.lines) > _MOST else []
            raise ValueError("\n".join([*self.lines[:_MOST], *more]))


@contextmanager
def named(where: str) -> Iterator[None]:
    """Put a place before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
