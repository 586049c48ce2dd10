"""What the command line says in one line."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """What the user asked for, or a file the user wrote, is wrong; the message is one line."""


@contextmanager
def blame_input(prefix: str = "") -> Iterator[None]:
    """Turn a ValueError of the library, which names what was wrong, into an InputError; for commands on a task or file of the user's."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{prefix}{error}") from error
