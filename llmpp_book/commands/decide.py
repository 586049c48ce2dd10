"""The command that decides between two ways of searching."""

from __future__ import annotations

import argparse
from typing import Any

from llmpp_book.commands.work import NUMBER, TEACHER, add_command, add_task, executor_of, import_module, integer, written
from llmpp_book.errors import blame_input


def add_commands(commands: Any) -> None:
    """Add the command to what `ArgumentParser.add_subparsers` returned."""
    add = (parser := add_command(commands, "decide", _decide)).add_argument
    schedule = 'a schedule, such as HS-NAS, costly, "verified climb" or "stopped like HS-NAS"'
    add("--ours", default="HS-NAS", metavar="SCHEDULE", help=f"{schedule} (default HS-NAS)")
    add("--theirs", default="costly", metavar="SCHEDULE", help="what it is compared with (default costly, the supernet alone)")
    add("--measure", default="loss", metavar="NAME", help="what quality is measured by: loss (default) or bleu")
    margin = "what would not matter (default .005 nats per token or .5 BLEU)"
    add("--margin", type=written(NUMBER, "a number", float), metavar="M", help=margin)
    compared = "how many comparisons are made in all, for each of which the level is corrected (default 1)"
    add("--compared", metavar="N", type=integer(1), default=1, help=compared)
    budget = "core-minutes in all, those of the tables included (default 200)"
    add("--budget", type=written(NUMBER, "a number of minutes", float), default=200.0, metavar="M", help=budget)
    add("--teacher", default="offline", metavar="NAME", help=TEACHER)
    add_task(parser)


@blame_input()
def _decide(args: argparse.Namespace) -> int:
    """Decide whether two schedules find equally good architectures. Buys the trainings and searches that say most for their price.

    Needs the task's benchmark. Goes on where it stopped; looks are in results/search/TASK.decisions.jsonl.
    """
    import_module(args.module)
    from llmpp_book.studies import decide
    from llmpp_core.jobs.files import cache_dir

    with executor_of(args) as (executor, side_by_side):
        place = {"executor": executor, "threads": 1, "device": args.device, "seconds": 60 * args.minutes, "progress": True}
        found = decide.decide(
            args.task,
            args.checkpoints or cache_dir() / "checkpoints",
            ours=args.ours,
            theirs=args.theirs,
            measure=args.measure,
            margin=args.margin,
            compared_with=args.compared,
            budget=args.budget,
            results=args.results / "search",
            ground_truth=args.results / "tfs",
            teacher=args.teacher,
            jobs=side_by_side,
            **place,
        )
    print(found)
    return 0
