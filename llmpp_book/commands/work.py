"""Commands that take long: measuring tasks, searches, one training on several processes, and preparing corpora."""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from llmpp_core.space.architecture import Architecture
    from llmpp_core.space.search_space import SearchSpace


#: How numbers are written on the command line.
INTEGER = r"[-+]?(0|[1-9][0-9]*)"
NUMBER = r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"


def add_commands(commands: Any) -> None:
    """Add the commands to what `ArgumentParser.add_subparsers` returned; each sets ``command``, a function that returns an exit code."""
    command = commands.add_parser(
        "prepare",
        help="prepare the corpus of a WMT task",
        description="Clean a WMT corpus, train its subwords and store its tokens. Goes on where it stopped; checks what is finished.",
    )
    command.add_argument("task", metavar="TASK", help="wmt14.en-de, wmt14.en-fr or wmt19.en-de")
    command.add_argument("--out", type=Path, metavar="DIR", help="where it goes (default: prepared/TASK in the user's cache)")
    command.add_argument("--corpus", type=Path, metavar="DIR", help="raw files (default: LLMPP_DATA_DIR, the cache or Hugging Face's hub)")
    command.add_argument("--subwords", type=integer, metavar="N", help="most joint subwords (default: as in the paper's records)")
    command.add_argument(
        "--sample", type=integer, default=1_000_000, metavar="N", help="pairs that subwords are trained on (default 1,000,000)"
    )
    command.add_argument("--jobs", type=integer, default=1, metavar="N", help="processes that make tokens (default 1, on all cores)")
    command.set_defaults(command=_prepare)

    command = commands.add_parser(
        "benchmark",
        help="train architectures and supernets on a task, and store the scores",
        description="Train a task's architectures from scratch and its supernets. Goes on where it stopped; tables are in results/tfs.",
    )
    command.add_argument("--architectures", type=integer, default=48, metavar="N", help="how many architectures (default 48)")
    command.add_argument("--seeds", type=integer, default=3, metavar="N", help="how many trainings of each (default 3)")
    _add_measuring(command, "benchmark")

    command = commands.add_parser(
        "searches",
        help="search with every schedule and train what was found",
        description="Search a task's space with every schedule, and train what was found. Needs the task's benchmark. Goes on where it "
        "stopped; tables are in results/search.",
    )
    command.add_argument("--seeds", type=integer, default=5, metavar="N", help="how many searches per schedule (default 5)")
    command.add_argument("--trainings", type=integer, default=3, metavar="N", help="how many trainings of each result (default 3)")
    command.add_argument(
        "--teacher",
        default="offline",
        metavar="NAME",
        help="who taught the cheap predictor: offline (default), the endpoint that is no language model, or a recording of TASK-distill",
    )
    _add_measuring(command, "searches")

    command = commands.add_parser(
        "train",
        help="train one network or supernet of a task, on one or several processes",
        description="Train one network of a task on the GPU if there is one, or on several with: accelerate launch -m llmpp_book train ... "
        "Goes on where it stopped, on any number of processes.",
    )
    _add_task(command, "synthetic or wmt14.en-de")
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--supernet", metavar="NAME", help="HAT, 'Supernet (Sandwich)', 'Layer-wise MoS' or 'Neuron-wise MoS'")
    which.add_argument("--arch", type=Path, metavar="FILE.yml", help="an architecture in HAT's YAML form")
    command.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="where the network goes; read first if it is there")
    command.add_argument("--seed", type=integer, default=0, metavar="N", help="draws weights, batches, subnets and dropout (default 0)")
    command.add_argument("--minutes", type=_minutes, default=math.inf, metavar="M", help="stop after so long; nothing is lost")
    command.set_defaults(command=_train)


def _add_measuring(command: argparse.ArgumentParser, measure: str) -> None:
    _add_task(command, "synthetic or multi30k.en-de")
    where = command.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=integer, default=1, metavar="N", help="how many jobs at a time, on a GPU too (default 1)")
    where.add_argument("--cluster", metavar="ADDRESS", help="run the jobs on a dask cluster: tcp://HOST:PORT of its scheduler, or local:N")
    command.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    command.add_argument("--minutes", type=_minutes, default=math.inf, metavar="M", help="stop after so long; nothing is lost")
    command.add_argument("--checkpoints", type=Path, metavar="FOLDER", help="where checkpoints go (default: the user's cache)")
    command.add_argument("--results", type=Path, metavar="FOLDER", help="where the tables are, in tfs and search (default: this project's)")
    command.set_defaults(command=_measure, measure=measure)


def _minutes(text: str) -> float:
    if not re.fullmatch(NUMBER, text) or float(text) < 0:
        raise argparse.ArgumentTypeError(f"expected a number from 0, got {text!r}")
    return float(text)


def integer(text: str) -> int:
    """Read an integer as people write it; not 010, which some read as 8, nor 1_0."""
    if not re.fullmatch(INTEGER, text):
        raise argparse.ArgumentTypeError(f"expected an integer, got {text!r}")
    return int(text)


def _add_task(command: argparse.ArgumentParser, examples: str) -> None:
    command.add_argument("task", metavar="TASK", help=f"such as {examples}")
    command.add_argument("--import", dest="module", metavar="MODULE", help="Python module that registers a task of yours, found from here")


def read_architecture(file: Path, space: SearchSpace | None) -> Architecture:
    """Return the architecture of a file in HAT's YAML form; InputError if it is none, or not in `space`."""
    from llmpp_book.errors import InputError
    from llmpp_core.space.architecture import Architecture

    try:
        arch = Architecture.from_hat_yaml(file.read_text(encoding="utf-8"))
        if space:
            space.validate(arch)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: {error}") from None
    return arch


def _import(module: str | None) -> None:
    """Import the user's module; InputError if that fails."""
    import importlib

    from llmpp_book.errors import InputError

    if module is None:
        return
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever the user's code raises
        said = " ".join(str(error).split())
        raise InputError(f"--import {module}: {type(error).__name__}: {said}") from error


def _measure(args: argparse.Namespace) -> int:
    """Run a long measurement of a task, whose module `args.measure` imports."""
    import torch

    from llmpp_book.errors import InputError
    from llmpp_book.studies import ground_truth as benchmark
    from llmpp_book.studies import measurements
    from llmpp_book.studies import searches as search_benchmark
    from llmpp_core import upstream as sources
    from llmpp_core.tasks import registry

    _import(args.module)
    if args.task not in registry.task_names():
        raise InputError(f"unknown task {args.task!r}; known are {', '.join(registry.task_names())}")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", args.device):
        raise InputError(f"--device: expected cpu or cuda, got {args.device!r}")
    away = args.cluster is not None and not args.cluster.startswith("local:")
    if args.device.startswith("cuda") and not away and not torch.cuda.is_available():
        raise InputError("there is no CUDA device here; leave --device out to use the CPU")
    for name in ("architectures", "seeds", "trainings", "jobs"):
        if getattr(args, name, 1) < 1:
            raise InputError(f"--{name}: expected a positive number, got {getattr(args, name)}")
    stop = time.time() + 60 * args.minutes
    folder = args.checkpoints or sources.cache_dir() / "checkpoints"
    tfs = args.results / "tfs" if args.results else benchmark.RESULTS
    search = args.results / "search" if args.results else search_benchmark.RESULTS
    try:
        with _executor(args) as (executor, side_by_side):
            common = {
                "device": args.device,
                # A worker elsewhere knows best how many threads are its own.
                "threads": None if away else max(1, torch.get_num_threads() // side_by_side),
                "seconds": stop - time.time(),
                "progress": True,
                "executor": executor,
            }
            if args.measure == "searches":
                where: dict[str, Any] = {"results": search, "ground_truth": tfs}
                numbers = {"seeds": args.seeds, "trainings": args.trainings}
                complete = search_benchmark.measure(args.task, folder, **where, **numbers, teacher=args.teacher, **common)
            else:
                complete = measurements.measure(args.task, folder, results=tfs, n=args.architectures, seeds=args.seeds, **common)
    except (ValueError, OSError) as error:
        # A table or checkpoint that is damaged or of something else; the message names it.
        raise InputError(str(error)) from error
    if complete and away:
        print("no latency is measured on a cluster: on the machine whose latency counts, the same command without --cluster does it")
    elif complete:
        # Alone, so that nothing of ours disturbs it.
        last = {"device": args.device, "seconds": stop - time.time(), "progress": True}
        if args.measure == "searches":
            complete = search_benchmark.measure_latency(args.task, results=search, **last)
        else:
            complete = measurements.measure_latency(args.task, results=tfs, n=args.architectures, **last)
    tables = [tfs / f"{args.task}{table}.jsonl" for table in ("", ".supernets")] if args.measure == "benchmark" else []
    for line in [line for table in tables for line in benchmark.given_up(table)]:
        print(f"given up: {line}")
    print("complete" if complete else "not complete; the same command goes on")
    return 0


@contextmanager
def _executor(args: argparse.Namespace) -> Iterator[tuple[Any, int]]:
    """Yield what runs the jobs, None for this process, and how many at a time, if that is known."""
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
    _import(module)


def _prepare(args: argparse.Namespace) -> int:
    """Prepare the corpus of a WMT task."""
    from llmpp_book.errors import InputError
    from llmpp_core.tasks import registry
    from llmpp_core.text import wmt
    from llmpp_core.upstream import PAPER_TASKS

    if args.task not in PAPER_TASKS:
        raise InputError(f"unknown corpus {args.task!r}; known are {', '.join(PAPER_TASKS)}")
    if args.jobs < 1:
        raise InputError(f"--jobs: expected a positive number, got {args.jobs}")
    folder = args.out or wmt.prepared_folder(args.task)
    with _pool(args.jobs) as pool:
        try:
            subwords = PAPER_TASKS[args.task].subwords if args.subwords is None else args.subwords
            settings = wmt.Settings(subwords, sample=args.sample)
            executor = pool if args.jobs > 1 else None
            manifest = wmt.prepare(args.task, folder, settings, corpus=args.corpus, executor=executor, progress=sys.stderr.isatty())
            signature = registry.prepared_task(args.task, folder).bleu_signature()
        except (ValueError, OSError) as error:
            raise InputError(str(error)) from error
    counts = manifest["counts"]
    print(f"{counts['kept']:,} of {counts['pairs']:,} training pairs kept; left out, each for the first reason that holds:")
    print(f"  {counts['empty']:,} with an empty side")
    print(f"  {counts['long']:,} of more than {settings.words} words")
    print(f"  {counts['unequal']:,} with more than {settings.word_ratio:g} times the words of the other side")
    print(f"  {counts['long_subwords']:,} of more than {settings.longest} subwords")
    print(f"  {counts['unequal_subwords']:,} with more than {settings.ratio:g} times the subwords of the other side")
    print(f"{counts['valid']:,} validation and {counts['test']:,} test pairs; {manifest['vocabulary']:,} joint subwords")
    print(f"BLEU signature  {signature}")
    print(f"{folder} is complete and whole")
    return 0


def _train(args: argparse.Namespace) -> int:
    """Train one network of a task, on as many processes as ``accelerate launch`` started."""
    from llmpp_book.errors import InputError
    from llmpp_book.studies.measurements import SUPERNET_KINDS, prepare
    from llmpp_core.nets.distributed import all_or_none, processes
    from llmpp_core.nets.supernet import SuperTransformer
    from llmpp_core.nets.training import train
    from llmpp_core.nets.transformer import Transformer
    from llmpp_core.tasks.evaluation import evaluate
    from llmpp_core.tasks.registry import load_task

    _import(args.module)
    if args.seed < 0:
        raise InputError(f"--seed: expected a number from 0, got {args.seed}")
    try:
        place = processes()
    except ValueError as error:
        raise InputError(str(error)) from None
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
    except (ValueError, OSError) as error:
        if not first:
            # The first says it for all, and the launcher then ends the others; this one is heard if it is alone in its trouble.
            time.sleep(5)
        raise InputError(str(error)) from error
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
