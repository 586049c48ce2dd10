"""The command that trains every network of a small space."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from llmpp_book import repository
from llmpp_book.commands.work import add_command, add_minutes
from llmpp_book.errors import blame_input


def add_commands(commands: Any) -> None:
    """Add the command to what `ArgumentParser.add_subparsers` returned."""
    parser = add_command(commands, "digits", _digits)
    where = "where the tables are (default: this project's, in results/digits)"
    parser.add_argument("--results", type=Path, default=repository.RESULTS / "digits", metavar="DIR", help=where)
    add_minutes(parser)


@blame_input()
def _digits(args: argparse.Namespace) -> int:
    """Train every network of a small space on scikit-learn's handwritten digits. Then lets ways of choosing choose.

    Uses one core; goes on where it stopped.
    """
    import numpy as np

    from llmpp_book.studies import digits, digits_choices
    from llmpp_book.studies.digits_training import measure

    stop = time.monotonic() + 60 * args.minutes
    complete = measure(digits.networks(), args.results, seconds=60 * args.minutes, progress=True)
    if complete:
        for share, n in digits_choices.TENS.items():
            of = digits.known(digits.scores(args.results), share)
            tens = digits.splits(n, np.random.default_rng(0), of)
            complete &= digits_choices.record_choices(of, tens, args.results, stop - time.monotonic(), progress=True)
    print("complete" if complete else "not complete; the same command goes on")
    return 0
