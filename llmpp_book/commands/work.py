"""Commands that take long: measuring tasks, searches, one training on several processes, and preparing corpora."""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpp_book import repository
from llmpp_book.errors import InputError, blame_input

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from llmpp_core.space.architecture import Architecture
    from llmpp_core.space.search_space import SearchSpace

TEACHER = "who taught the cheap predictor: offline (default), ridge, a recording of TASK-distill, or several of them, as A+B"
#: How numbers are written on the command line.
INTEGER = r"[-+]?(0|[1-9][0-9]*)"
NUMBER = r"((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"


def integer(least: int) -> Callable[[str], int]:
    """Return what reads an integer of at least `least` as people write it; not 010, which some read as 8, nor 1_0."""

    def read(text: str) -> int:
        if not re.fullmatch(INTEGER, text):
            raise argparse.ArgumentTypeError(f"expected an integer, got {text!r}")
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"expected {'a positive number' if least == 1 else f'a number from {least}'}, got {text}")
        return int(text)

    return read


def written(pattern: str, wanted: str, kind: Any = str) -> Callable[[str], Any]:
    """Return what reads text of a pattern."""

    def read(text: str) -> Any:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return kind(text)

    return read


def add_command(commands: Any, name: str, command: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    """Add a command to what `ArgumentParser.add_subparsers` returned, with the help that its docstring is, and return its parser."""
    summary, _, more = " ".join((command.__doc__ or name).split()).partition(". ")
    parser = commands.add_parser(name, help=summary[0].lower() + summary[1:].rstrip("."), description=f"{summary.rstrip('.')}. {more}")
    parser.set_defaults(command=command)
    return parser


def add_commands(commands: Any) -> None:
    """Add these commands to what `ArgumentParser.add_subparsers` returned."""
    number: dict[str, Any] = {"metavar": "N", "type": integer(1)}
    add = (parser := add_command(commands, "prepare", _prepare)).add_argument
    add("task", metavar="TASK", help="wmt14.en-de, wmt14.en-fr or wmt19.en-de")
    add("--out", type=Path, metavar="DIR", help="where it goes (default: prepared/TASK in the user's cache)")
    add("--corpus", type=Path, metavar="DIR", help="raw files (default: LLMPP_DATA_DIR, the cache or Hugging Face's hub)")
    add("--subwords", **number, help="most joint subwords (default: as in the paper's records)")
    add("--sample", **number, default=1_000_000, help="pairs that subwords are trained on (default 1,000,000)")
    add("--jobs", **number, default=1, help="processes that make tokens (default 1, on all cores)")

    add = (benchmark := add_command(commands, "benchmark", _benchmark)).add_argument
    add("--architectures", **number, default=48, help="how many architectures (default 48)")
    add("--seeds", **number, default=3, help="how many trainings of each (default 3)")

    add = (searches := add_command(commands, "searches", _searches)).add_argument
    add("--seeds", **number, default=5, help="how many searches per schedule (default 5)")
    add("--trainings", **number, default=3, help="how many trainings of each result (default 3)")
    add("--teacher", default="offline", metavar="NAME", help=TEACHER)

    add("--others", **number, default=2, help="how many of the schedules that are not the main ones (default 2)")

    add = (train := add_command(commands, "train", _train)).add_argument
    which = train.add_mutually_exclusive_group(required=True)
    which.add_argument("--supernet", metavar="NAME", help="HAT, 'Supernet (Sandwich)', 'Layer-wise MoS' or 'Neuron-wise MoS'")
    which.add_argument("--arch", type=Path, metavar="FILE.yml", help="an architecture in HAT's YAML form")
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="where the network goes; read first if it is there")
    add("--seed", **{**number, "type": integer(0)}, default=0, help="draws weights, batches, subnets and dropout (default 0)")

    for parser in (benchmark, searches, train):
        add_task(parser, jobs=parser is not train)


def add_minutes(parser: argparse.ArgumentParser) -> None:
    """Add what says how long a command may take."""
    minutes = written(r"\+?" + NUMBER, "a number from 0", float)
    parser.add_argument("--minutes", type=minutes, default=math.inf, metavar="M", help="stop after so long; nothing is lost")


def add_task(parser: argparse.ArgumentParser, jobs: bool = True) -> None:
    """Add the task of a command and what says how long it may take; with `jobs` also where jobs run and tables are."""
    add = parser.add_argument
    add("task", metavar="TASK", help="such as synthetic, multi30k.en-de or wmt14.en-de")
    add("--import", dest="module", metavar="MODULE", help="Python module that registers a task of yours, found from here")
    add_minutes(parser)
    if jobs:
        where = parser.add_mutually_exclusive_group()
        where.add_argument("--jobs", metavar="N", type=integer(1), default=1, help="how many jobs at a time, on a GPU too (default 1)")
        cluster = "run the jobs on a dask cluster: tcp://HOST:PORT of its scheduler, or local:N"
        where.add_argument("--cluster", metavar="ADDRESS", help=cluster)
        add("--device", type=written(r"cpu|cuda(:\d+)?", "cpu or cuda"), default="cpu", help="cpu (default) or cuda")
        add("--checkpoints", type=Path, metavar="DIR", help="where checkpoints go (default: the user's cache); shared on a cluster")
        tables = "where the tables are, in tfs and search (default: this project's)"
        add("--results", type=Path, default=repository.RESULTS, metavar="DIR", help=tables)


def read_architecture(file: Path, space: SearchSpace | None) -> Architecture:
    """Return the architecture of a file in HAT's YAML form; InputError if it is none, or not in `space`."""
    from llmpp_core.space.architecture import Architecture

    with blame_input(f"{file}: "):
        try:
            arch = Architecture.from_hat_yaml(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}") from None
        if space:
            space.validate(arch)
        return arch


def import_module(module: str | None) -> None:
    """Import the user's module, from the working directory too; InputError if that fails."""
    import importlib
    import os

    if module is None:
        return
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever the user's code raises
        raise InputError(f"--import {module}: {type(error).__name__}: {error}") from error


@blame_input()
def _benchmark(args: argparse.Namespace) -> int:
    """Train architectures and supernets on a task, and store the scores. Goes on where it stopped; tables are in results/tfs."""
    import_module(args.module)
    from llmpp_book.studies import measurements

    results, n = args.results / "tfs", {"n": args.architectures}
    return _measure(
        args,
        partial(measurements.measure, args.task, results=results, seeds=args.seeds, **n),
        partial(measurements.measure_latency, args.task, results=results, **n),
        [results / f"{args.task}{table}.jsonl" for table in ("", ".supernets")],
    )


@blame_input()
def _searches(args: argparse.Namespace) -> int:
    """Search with every schedule and train what was found.

    Needs the task's benchmark. Goes on where it stopped; tables are in results/search.
    """
    import_module(args.module)
    from llmpp_book.studies import searches

    results = args.results / "search"
    given = {"seeds": args.seeds, "others": args.others, "trainings": args.trainings, "teacher": args.teacher}
    return _measure(
        args,
        partial(searches.measure, args.task, results=results, ground_truth=args.results / "tfs", **given),
        partial(searches.measure_latency, args.task, results=results),
    )


def _measure(args: argparse.Namespace, measure: Any, measure_latency: Any, trained: Sequence[Path] = ()) -> int:
    """Fill tables by jobs, then time what was found, alone, so that nothing of ours disturbs it."""
    import torch

    from llmpp_book.studies.ground_truth import given_up
    from llmpp_core.jobs.files import cache_dir

    away = args.cluster is not None and not args.cluster.startswith("local:")
    stop, common = time.time() + 60 * args.minutes, {"device": args.device, "progress": True}
    with executor_of(args) as (executor, side_by_side):
        # A worker elsewhere knows best how many threads are its own.
        threads = None if away else max(1, torch.get_num_threads() // side_by_side)
        options = {"threads": threads, "seconds": stop - time.time(), "executor": executor, **common}
        complete = measure(args.checkpoints or cache_dir() / "checkpoints", **options)
    if complete and away:
        print("no latency is measured on a cluster: on the machine whose latency counts, the same command without --cluster does it")
    elif complete:
        complete = measure_latency(seconds=stop - time.time(), **common)
    for line in [line for table in trained for line in given_up(table)]:
        print(f"given up: {line}")
    print("complete" if complete else "not complete; the same command goes on")
    return 0


@contextmanager
def executor_of(args: argparse.Namespace) -> Iterator[tuple[Any, int]]:
    """Yield what runs the jobs, None for this process, and how many at a time, if that is known; InputError where they need a GPU."""
    import torch

    away = args.cluster is not None and not args.cluster.startswith("local:")
    if args.device.startswith("cuda") and not away and not torch.cuda.is_available():
        raise InputError("there is no CUDA device here; leave --device out to use the CPU")
    if args.cluster is not None:
        from llmpp_core.jobs.cluster import connect

        with connect(args.cluster, resources={"GPU": 1} if args.device.startswith("cuda") else None) as executor:
            kind, _, number = args.cluster.partition(":")
            yield executor, int(number) if kind == "local" else 1
    elif args.jobs == 1:
        yield None, 1
    else:
        with _pool(args.jobs, args.module) as pool:
            yield pool, args.jobs


@contextmanager
def _pool(jobs: int, module: str | None = None) -> Iterator[Executor]:
    """Yield processes that know the user's tasks and end with this one."""
    import threading
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import active_children, get_context

    # CUDA does not work in forked processes.
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start, (module,)) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            # The pool would first run, perhaps for minutes, what it has handed out; that resumes from its checkpoints.
            # In Python 3.11 the thread of the pool stumbles over jobs that were cancelled before; it has nothing more to do.
            hook, threading.excepthook = threading.excepthook, lambda arguments: None
            for process in active_children():
                process.kill()
            pool.shutdown()
            threading.excepthook = hook
            raise


def _start(module: str | None) -> None:
    import signal

    from llmpp_core.jobs.table import end_with_parent

    end_with_parent()
    # A terminal sends Ctrl-C to all processes; the one that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import_module(module)


@blame_input()
def _prepare(args: argparse.Namespace) -> int:
    """Prepare the corpus of a WMT task.

    Cleans it, trains its subwords and stores its tokens. Goes on where it stopped; checks what is finished.
    """
    from llmpp_core.tasks import registry
    from llmpp_core.text import wmt
    from llmpp_core.upstream import PAPER_TASKS

    if args.task not in PAPER_TASKS:
        raise InputError(f"unknown corpus {args.task!r}; known are {', '.join(PAPER_TASKS)}")
    folder = args.out or wmt.prepared_folder(args.task)
    with _pool(args.jobs) as pool:
        settings = wmt.Settings(PAPER_TASKS[args.task].subwords if args.subwords is None else args.subwords, sample=args.sample)
        executor = pool if args.jobs > 1 else None
        manifest = wmt.prepare(args.task, folder, settings, corpus=args.corpus, executor=executor, progress=sys.stderr.isatty())
        signature = registry.prepared_task(args.task, folder).bleu_signature()
    counts = manifest["counts"]
    reasons = {
        "empty": "with an empty side",
        "long": f"of more than {settings.words} words",
        "unequal": f"with more than {settings.word_ratio:g} times the words of the other side",
        "long_subwords": f"of more than {settings.longest} subwords",
        "unequal_subwords": f"with more than {settings.ratio:g} times the subwords of the other side",
    }
    print(f"{counts['kept']:,} of {counts['pairs']:,} training pairs kept; left out, each for the first reason that holds:")
    print("\n".join(f"  {counts[name]:,} {reason}" for name, reason in reasons.items()))
    print(f"{counts['valid']:,} validation and {counts['test']:,} test pairs; {manifest['vocabulary']:,} joint subwords")
    print(f"BLEU signature  {signature}")
    print(f"{folder} is complete and whole")
    return 0


@blame_input()
def _train(args: argparse.Namespace) -> int:
    """Train one network or supernet of a task, on one or several processes.

    On the GPU if there is one, or on several with: accelerate launch -m llmpp_book train ... Goes on where it stopped, on any number of
    processes.
    """
    import_module(args.module)
    from llmpp_book.studies.measurements import SUPERNET_KINDS, prepare
    from llmpp_core.nets.distributed import all_or_none, processes
    from llmpp_core.nets.supernet import SuperTransformer
    from llmpp_core.nets.training import train
    from llmpp_core.nets.transformer import Transformer
    from llmpp_core.tasks.evaluation import evaluate
    from llmpp_core.tasks.registry import load_task

    place = processes()
    first = place.is_main_process

    def network() -> tuple[Any, ...]:
        task, pairs = prepare(args.task, str(place.device), None)
        if args.arch:
            arch = read_architecture(args.arch, task.space)
            return Transformer(arch, task.space, len(task.vocabulary), task.recipe.dropout), None, task, task.recipe, pairs
        if args.supernet not in SUPERNET_KINDS:
            raise ValueError(f"unknown supernet {args.supernet!r}; known are {', '.join(SUPERNET_KINDS)}")
        kind, sampling = SUPERNET_KINDS[args.supernet]
        recipe = task.supernet_recipe
        return SuperTransformer(task.space, len(task.vocabulary), kind, dropout=recipe.dropout), sampling, task, recipe, pairs

    try:
        # The first process is alone at first: what it downloads and prepares is then there for the others.
        all_or_none(lambda: load_task(args.task) if first else None, place)
        model, sampling, task, recipe, pairs = all_or_none(network, place)
        model.to(place.device)
        if first:
            print(f"{place.num_processes} process(es), {place.device.type}", flush=True)
        settings = {"seed": args.seed, "checkpoint": args.checkpoint, "seconds": 60 * args.minutes, "progress": args.task}
        history = train(model, pairs["train"], recipe, sampling=sampling, place=place, **settings)
    except (ValueError, OSError):
        if not first:
            # The first says it for all, and the launcher then ends the others; this one is heard if it is alone in its trouble.
            time.sleep(5)
        raise
    if first:
        print(f"{history.updates:,} of {recipe.updates:,} updates, {history.tokens:,} target tokens, {history.seconds:.0f} s", end="")
        print(f", training loss {history.loss[-1]:.3f}" if history.loss else "")
        if not history.finished:
            print("not complete; the same command goes on")
        elif history.diverged:
            print(f"given up: {history.diverged}")
        elif args.arch:
            print(", ".join(f"{name} {value:.3f}" for name, value in evaluate(model, task, pairs)._asdict().items()))
    return 1 if history.diverged else 0
