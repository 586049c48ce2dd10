"""The command ``llmpp search``: from trained networks of any declared space to the next ones to train."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

from llmpp_book.commands.work import add_command

#: Exit codes: what the user gave is wrong; the model's budget or endpoint gave out.
WRONG_INPUT, STOPPED = 2, 3


def add_commands(commands: Any) -> None:
    """Add the command to what `ArgumentParser.add_subparsers` returned."""
    add = add_command(commands, "search", _search).add_argument
    add("file", type=Path, metavar="run.yml", help="what is searched, from what, and within which limits; examples/ has one")
    add("--dry-run", action="store_true", help="only say what would be done, and what would be asked and cost at most")
    add("--folder", type=Path, metavar="DIR", help="where results go (default: what run.yml says, or beside it, its name and -out)")
    add("--restart", action="store_true", help="move the folder's earlier results away and begin anew")


def _search(args: argparse.Namespace) -> int:
    """Propose the networks to train next. They are of a space of your own, and learned from those that you have trained."""
    from llmpp_core.llm.client import LLMStopped
    from llmpp_core.pipeline.stages import plan, search_pipeline

    # Of the parts too, as lines like those of the run.
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        if args.dry_run:
            print("\n".join(plan(args.file, args.folder)))
            return 0
        found = search_pipeline(args.file, folder=args.folder, restart=args.restart, say=lambda line: print(line, file=sys.stderr))
    except ValueError as error:
        print(error, file=sys.stderr)
        return WRONG_INPUT
    except LLMStopped as error:
        print(f"{error}; run the same command again to go on", file=sys.stderr)
        return STOPPED
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(
        f"round {found.round}, predicted by the {found.predictor}"
        if found.confident
        else f"round {found.round}: no confident answer, a spread:"
    )
    for network, score, (low, high), kind in zip(found.networks, found.scores, found.intervals, found.kinds, strict=True):
        print(f"  {score:.4g} ({low:.4g} to {high:.4g})  {', '.join(network.to_prompt_lines())}  [{kind}]")
    print(found.report)
    return 0
