"""The command line: ``llmpp --help``.

Each command is a function that takes the parsed arguments and returns the exit code; it loads what it needs itself, so
that help comes at once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from llmpp_book.commands import decide, digits, prompts, search, work
from llmpp_book.errors import InputError, blame_input


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _run(args: argparse.Namespace) -> int:
    """Run notebooks, only what changed, several at a time. Pages go to book/notebooks."""
    from llmpp_book.runner.notebook import Paths
    from llmpp_book.runner.run import run

    options = {"profile": args.profile, "parameters": dict(args.parameters), "workers": args.jobs}
    return run(Paths(), args.notebooks, **options, force=args.force, update=args.update)


def _fetch(args: argparse.Namespace) -> int:
    """Download upstream files and check them. Those that LLMPP_DATA_DIR or the cache has are only checked."""
    from tqdm import tqdm

    from llmpp_core import upstream
    from llmpp_core.jobs.files import SourceError

    with blame_input():
        files = list(dict.fromkeys(name for group in args.names or upstream.GROUPS for name in upstream.names(group)))
    sizes = {name: upstream.registry()[name][1] for name in files}
    online: bool | None = None
    failures = 0
    with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        for name in files:
            bar.set_description(name.rsplit("/", 1)[-1])
            try:
                if upstream.missing([name], download=False):
                    # Asked once: without a network each file would wait for its own time-out.
                    online = upstream.online() if online is None else online
                    if not online:
                        raise SourceError(f"{name} is not here, and its public address does not answer")
                upstream.fetch(name)
            except SourceError as error:
                failures += 1
                tqdm.write(str(error), file=sys.stderr)
            bar.update(sizes[name])
    print(f"{len(files) - failures} of {len(files)} files are here and whole")
    return 1 if failures else 0


def _describe(args: argparse.Namespace) -> int:
    """Print costs and features of an architecture. It is read from HAT's YAML form; costs are parameters and GFLOPs."""
    from dataclasses import asdict

    from llmpp_core.space.cost import count_flops, count_parameters
    from llmpp_core.space.features import HAT_FEATURE_NAMES, HATFeatures
    from llmpp_core.space.search_space import HAT_WMT, SPACES

    if args.space is not None and args.space not in SPACES:
        raise InputError(f"unknown search space {args.space!r}; known are {', '.join(SPACES)}")
    space = SPACES[args.space] if args.space else None
    arch = work.read_architecture(args.file, space)
    qkv_dim = (space or HAT_WMT).qkv_dim
    for name, value in asdict(arch).items():
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if "heads" in name and qkv_dim % number:
                wrong = f"does not divide the inner width of attention, {qkv_dim}; --space names another"
                raise InputError(f"{args.file}: {name}: {number} {wrong}")
            if number > 2**20:
                raise InputError(f"{args.file}: {name}: {number} is more than {2**20:,}, so no network")
    print(f"inner width of attention  {qkv_dim}{'' if space else ', as in HAT_WMT; --space names another'}")
    print(f"parameters without embeddings  {count_parameters(arch, qkv_dim):,}")
    print(f"GFLOPs, 30 tokens, without output projection  {count_flops(arch, qkv_dim=qkv_dim) / 1e9:.3f}")
    for name, value in zip(HAT_FEATURE_NAMES, HATFeatures().transform([arch])[0], strict=True):
        print(f"{name}  {value:g}")
    return 0


def _parameter(given: str) -> tuple[str, Any]:
    name, equals, value = given.partition("=")
    # As people read them: no octal 010, no 1:30 of minutes and seconds; and a name may begin with any sign.
    if not (equals and name.isidentifier()) or re.fullmatch(r"[-+]?(0[0-9_]+|[0-9]+(:[0-9]+)+)", value):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE with a number, without zeros in front, text, true or false; got {given!r}")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    return name, int(value) if re.fullmatch(work.INTEGER, value) else float(value) if re.fullmatch("[-+]?" + work.NUMBER, value) else value


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = _Parser(prog="llmpp", description="Run the book's notebooks and handle its files.")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add = work.add_command(commands, "run", _run).add_argument
    add("notebooks", nargs="*", metavar="NN", help="notebook such as 03 or 03_baselines; all if none is given")
    add("--profile", default="smoke", help="smoke (default; minutes) or full (larger samples, longer training)")
    add("--jobs", type=work.integer(1), metavar="N", help="how many notebooks run at a time (default: one per CPU)")
    add("--force", action="store_true", help="run the named notebooks even if nothing changed")
    add(
        "-p", dest="parameters", action="append", default=[], type=_parameter, metavar="NAME=VALUE", help="set a parameter of the notebooks"
    )
    add("--update", action="store_true", help="store the executed notebooks in notebooks/, the ones to commit")
    add = work.add_command(commands, "fetch", _fetch).add_argument
    add("names", nargs="*", metavar="NAME", help="tfs, unlabelled, latency, multi30k or a file; all if none is given")
    add = work.add_command(commands, "describe", _describe).add_argument
    add("file", type=Path, metavar="FILE.yml", help="architecture to read")
    add("--space", metavar="NAME", help="search space that it must lie in: HAT_WMT, HAT_IWSLT, SMALL or TINY")
    work.add_commands(commands)
    decide.add_commands(commands)
    digits.add_commands(commands)
    search.add_commands(commands)
    prompts.add_commands(commands)
    return top


def extra_of(package: str) -> str | None:
    """Return the extra that brings a package, by what the installed project says of itself; None if none does."""
    name = re.escape(package.replace("_", "-"))
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for text in importlib.metadata.requires("llmpp") or ():
            if found := re.match(rf"""{name}(?![\w-])[^;]*; extra == ["'](\w+)""", text):
                return found[1]
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 for a failure, 2 for wrong input, 3 for a budget or endpoint that gave out.

    130, or 128 and the signal's number, if it was interrupted.
    """
    args = parser().parse_args(argv)
    try:
        return int(args.command(args))
    except KeyboardInterrupt as interruption:
        print("interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return getattr(interruption, "code", 130)
    except ModuleNotFoundError as error:
        lacking = (error.name or "").partition(".")[0]
        if (extra := extra_of(lacking)) is None:
            raise
        print(f"{lacking} is not installed, which this command needs: pip install 'llmpp[{extra}]'", file=sys.stderr)
        return 1
    except Exception as error:
        # What is wrong with the input, or outside: the library has errors of its own for it. Any other error is a fault of the program.
        if not (isinstance(error, OSError) or type(error).__module__.startswith(("llmpp_core.", "llmpp_book."))):
            raise
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1


if __name__ == "__main__":
    sys.exit(main())
