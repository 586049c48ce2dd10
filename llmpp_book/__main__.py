"""The command line: ``llmpp --help``.

Each command is a function that takes the parsed arguments and returns the exit code; it loads what it needs itself, so
that help comes at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

#: No layer is as wide.
_WIDEST = 2**20


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _run(args: argparse.Namespace) -> int:
    from llmpp_book.runner.notebook import Paths
    from llmpp_book.runner.run import run

    return run(
        Paths(),
        args.notebooks,
        profile=args.profile,
        parameters=dict(args.parameters),
        workers=args.jobs,
        force=args.force,
        update=args.update,
    )


def _fetch(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from llmpp_book.errors import InputError
    from llmpp_core import upstream as sources
    from llmpp_core.jobs.files import SourceError

    try:
        files = list(dict.fromkeys(name for group in args.names or sources.GROUPS for name in sources.names(group)))
    except ValueError as error:
        raise InputError(str(error)) from None
    sizes = {name: sources.registry()[name][1] for name in files}
    online: bool | None = None
    failures = []
    with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        for name in files:
            bar.set_description(name.rsplit("/", 1)[-1])
            try:
                if sources.missing([name], download=False):
                    # Asked once: without a network each file would wait for its own time-out.
                    online = sources.online() if online is None else online
                    if not online:
                        raise SourceError(f"{name} is not here, and its public address does not answer")
                sources.fetch(name)
            except SourceError as error:
                failures.append(name)
                tqdm.write(str(error), file=sys.stderr)
            bar.update(sizes[name])
    print(f"{len(files) - len(failures)} of {len(files)} files are here and whole")
    return 1 if failures else 0


def _describe(args: argparse.Namespace) -> int:
    from llmpp_book.commands.work import read_architecture
    from llmpp_book.errors import InputError
    from llmpp_core.space.cost import count_flops, count_parameters
    from llmpp_core.space.features import HAT_FEATURE_NAMES, HATFeatures
    from llmpp_core.space.search_space import HAT_WMT, SPACES

    if args.space is not None and args.space not in SPACES:
        raise InputError(f"unknown search space {args.space!r}; known are {', '.join(SPACES)}")
    space = SPACES[args.space] if args.space else None
    arch = read_architecture(args.file, space)
    qkv_dim = (space or HAT_WMT).qkv_dim
    _refuse_absurd(args.file, arch, qkv_dim)
    print(f"inner width of attention  {qkv_dim}{'' if space else ', as in HAT_WMT; --space names another'}")
    print(f"parameters without embeddings  {count_parameters(arch, qkv_dim):,}")
    print(f"GFLOPs, 30 tokens, without output projection  {count_flops(arch, qkv_dim=qkv_dim) / 1e9:.3f}")
    for name, value in zip(HAT_FEATURE_NAMES, HATFeatures().transform([arch])[0], strict=True):
        print(f"{name}  {value:g}")
    return 0


def _refuse_absurd(file: Path, arch: Any, qkv_dim: int) -> None:
    """Raise InputError for what no network can be: heads that do not divide attention, widths beyond any memory."""
    from dataclasses import asdict

    from llmpp_book.errors import InputError

    for name, value in asdict(arch).items():
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if "heads" in name and qkv_dim % number:
                raise InputError(f"{file}: {name}: {number} does not divide the inner width of attention, {qkv_dim}; --space names another")
            if number > _WIDEST:
                raise InputError(f"{file}: {name}: {number} is more than {_WIDEST:,}, so no network")


def _parameter(given: str) -> tuple[str, Any]:
    import re

    from llmpp_book.commands.work import INTEGER, NUMBER

    name, equals, value = given.partition("=")
    # As people read them: no octal 010, no 1:30 of minutes and seconds; and a name may begin with any sign.
    if not (equals and name.isidentifier()) or re.fullmatch(r"[-+]?(0[0-9_]+|[0-9]+(:[0-9]+)+)", value):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE with a number, without zeros in front, text, true or false; got {given!r}")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    return name, int(value) if re.fullmatch(INTEGER, value) else float(value) if re.fullmatch(NUMBER, value) else value


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    from llmpp_book.commands import prompts as llm_commands
    from llmpp_book.commands import work as long_commands

    top = _Parser(prog="llmpp", description="Run the book's notebooks and handle its files.")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser(
        "run",
        help="run notebooks, only what changed, several at a time",
        description="Run notebooks, several at a time, and only what changed. Pages go to book/notebooks.",
    )
    command.add_argument("notebooks", nargs="*", metavar="NN", help="notebook such as 03 or 03_baselines; all if none is given")
    command.add_argument("--profile", default="smoke", help="smoke (default; minutes) or full (larger samples, longer training)")
    command.add_argument("--jobs", type=long_commands.integer, metavar="N", help="how many notebooks run at a time (default: one per CPU)")
    command.add_argument("--force", action="store_true", help="run the named notebooks even if nothing changed")
    command.add_argument(
        "-p", dest="parameters", action="append", default=[], type=_parameter, metavar="NAME=VALUE", help="set a parameter of the notebooks"
    )
    command.add_argument("--update", action="store_true", help="store the executed notebooks in notebooks/, the ones to commit")
    command.set_defaults(command=_run)

    command = commands.add_parser(
        "fetch",
        help="download upstream files and check them",
        description="Download upstream files into the cache, unless LLMPP_DATA_DIR or the cache has them, and check them all.",
    )
    command.add_argument("names", nargs="*", metavar="NAME", help="tfs, unlabelled, latency, multi30k or a file; all if none is given")
    command.set_defaults(command=_fetch)

    command = commands.add_parser(
        "describe",
        help="print costs and features of an architecture",
        description="Read an architecture in HAT's YAML form and print its parameters, GFLOPs and HAT features.",
    )
    command.add_argument("file", type=Path, metavar="FILE.yml", help="architecture to read")
    command.add_argument("--space", metavar="NAME", help="search space that it must lie in: HAT_WMT, HAT_IWSLT, SMALL or TINY")
    command.set_defaults(command=_describe)

    long_commands.add_commands(commands)
    llm_commands.add_commands(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 for a failure, 2 for wrong input, 130 or 128 and the signal's number if interrupted."""
    args = parser().parse_args(argv)
    from llmpp_book.errors import InputError

    try:
        return int(args.command(args))
    except InputError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print("interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return getattr(interruption, "code", 130)
    except (RuntimeError, OSError) as error:
        from llmpp_core.jobs.files import SourceError
        from llmpp_core.jobs.table import JobsLost
        from llmpp_core.llm.cache import CacheError
        from llmpp_core.llm.client import LLMStopped

        if not isinstance(error, (SourceError, JobsLost, CacheError, LLMStopped, OSError)):
            raise
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
