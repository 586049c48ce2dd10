"""The commands ``prompts list|ask|export|import``, ``serve-offline`` and ``serve-model`` of ``llmpp``."""

from __future__ import annotations

import argparse
import contextlib
import errno
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# What a request is made for when no model is named, for answers that are to come from anywhere.
_UNNAMED = "unnamed-llm"


def add_commands(subparsers: Any) -> None:
    """Add the commands to what `ArgumentParser.add_subparsers` returned; each sets ``command``, a function that returns an exit code."""
    serve = subparsers.add_parser("serve-offline", help="serve the endpoint that is not a language model on 127.0.0.1")
    serve.add_argument("--port", type=int, default=8123, help="port to listen on (default: %(default)s)")
    model = subparsers.add_parser("serve-model", help="serve a language model in a GGUF file on 127.0.0.1")
    model.add_argument("file", type=Path, metavar="FILE.gguf", help="the model; needs the extra 'local'")
    model.add_argument("--port", type=int, default=8080, help="port to listen on (default: that of llama-server, %(default)s)")
    prompts = subparsers.add_parser("prompts", help="list, ask, export and import the prompts of experiments")
    commands = prompts.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="list the experiments and their recordings")
    export = commands.add_parser("export", help="write the pending requests of an experiment in the Batch API's form")
    export.add_argument("--out", type=Path, required=True, help="folder for the files")
    export.add_argument("--model", default=_UNNAMED, help="model id (default: %(default)s)")
    importing = commands.add_parser("import", help="read answers files into the recordings that were exported")
    importing.add_argument("files", nargs="+", type=Path, help="answers files, JSONL")
    ask = commands.add_parser("ask", help="ask the pending requests of an experiment now, and record the answers")
    ask.add_argument("--model", required=True, help="model id")
    ask.add_argument("--local", metavar="SERVER", help="a server on this machine: llama-server, vllm, ollama, lm-studio or transformers")
    ask.add_argument("--base-url", help="OpenAI-compatible endpoint (default: OpenAI's, or the usual port of --local)")
    ask.add_argument("--key-variable", help="environment variable that holds the key (default: OPENAI_API_KEY, none with --local)")
    ask.add_argument("--price", nargs=3, metavar=("SENT", "RECEIVED", "DATE"), help="price of a million tokens and the date it was read")
    ask.add_argument("--budget", type=float, help="most to spend, in the currency of the price")
    ask.add_argument("--token-cap", type=int, help="most tokens sent and received together; needed without a price")
    ask.add_argument("--concurrency", type=int, help="requests in flight at once (default: 16)")
    ask.add_argument("--deadline", type=float, metavar="SECONDS", help="for one answer (default: 120, or 900 with --local)")
    ask.add_argument(
        "--max-invalid", type=float, metavar="SHARE", help="of answers, of 20 or more, above which the run stops (default: 0.5)"
    )
    ask.add_argument("--requests-per-minute", type=float, help="rate limit to keep")
    ask.add_argument("--tokens-per-minute", type=float, help="rate limit to keep")
    ask.add_argument("--dry-run", action="store_true", help="only say what would be sent and what it would cost")
    for parser in (export, ask):
        parser.add_argument("name", help="experiment, see 'prompts list'")
        parser.add_argument("--recording", help="name of the recording (default: the model id)")
        parser.add_argument("--endpoint", help="name that stands for the endpoint in recordings (default: its URL)")
        parser.add_argument("--temperature", type=float, help="default: the model's own")
        parser.add_argument("--reasoning-effort", help="default: the model's own")
        parser.add_argument("--answer-tokens", type=int, help="most tokens per architecture asked about (default: 25)")
        parser.add_argument("--token-limit-field", help="name of that field (default: max_tokens)")
        logprobs = "ask for the log-probabilities of the N most likely tokens too (20 if N is left out)"
        parser.add_argument("--log-probabilities", type=int, nargs="?", const=20, metavar="N", help=logprobs)
    for parser, command in {serve: _serve, model: _serve_model, listing: _list, export: _export, importing: _import, ask: _ask}.items():
        parser.set_defaults(command=_named_by_flags(command))


def _named_by_flags(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Return a command whose errors about settings name the flags; what is wrong with the input is an InputError."""

    def run(arguments: argparse.Namespace) -> int:
        from llmpp_book.commands.search import STOPPED
        from llmpp_book.errors import InputError
        from llmpp_core.llm.client import LLMStopped

        try:
            return command(arguments)
        except (ValueError, OverflowError) as error:
            raise InputError(_by_flags(str(error), arguments)) from None
        except LLMStopped as error:
            print(" ".join(_by_flags(str(error), arguments).split()), file=sys.stderr)
            return STOPPED

    return run


def _by_flags(message: str, arguments: argparse.Namespace) -> str:
    """Return a message with flags in place of the names of settings: where one stands for itself, or can be no other word."""
    names = "|".join(name if "_" in name else f"^{name}(?=:)" for name in vars(arguments))
    return re.sub(rf"\b(?:{names})\b", lambda name: "--" + name[0].replace("_", "-"), message)


def _settings(arguments: argparse.Namespace) -> Any:
    from llmpp_core.llm.local import DEADLINE
    from llmpp_core.llm.logprobs import with_log_probabilities
    from llmpp_core.llm.settings import Price, Settings

    given = {name: value for name, value in vars(arguments).items() if name in Settings.__dataclass_fields__ and value is not None}
    if price := given.get("price"):
        try:
            given["price"] = Price(float(price[0]), float(price[1]), price[2])
        except ValueError as error:
            raise ValueError(f"--price: {error}") from None
    server = getattr(arguments, "local", None)
    settings = Settings.local(server, given.pop("model"), **{"deadline": DEADLINE} | given) if server else Settings(**given)
    return settings if arguments.log_probabilities is None else with_log_probabilities(settings, arguments.log_probabilities)


def _serve(arguments: argparse.Namespace) -> int:
    from llmpp_core.llm.offline import MODEL, OfflineEndpoint

    with _clear_port(arguments.port):
        endpoint = OfflineEndpoint(arguments.port)
    with endpoint as url:
        return _until_interrupted(f"{MODEL}, which is not a language model, answers at {url}")


def _serve_model(arguments: argparse.Namespace) -> int:
    from llmpp_core.llm.local import serve

    with _clear_port(arguments.port):
        server = serve(arguments.file, arguments.port)
    return _until_interrupted(f"{arguments.file.name} answers at {server.listening_address}/v1")


def _until_interrupted(what: str) -> int:
    print(f"{what}; stop with Ctrl-C", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    return 0


@contextlib.contextmanager
def _clear_port(port: int) -> Iterator[None]:
    """Say which port is in use and which flag chooses another."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise OSError(f"port {port} of 127.0.0.1 is in use: choose another with --port") from None


def _list(arguments: argparse.Namespace) -> int:
    from llmpp_book.studies.answers import recordings
    from llmpp_book.studies.questions import EXPERIMENTS

    width = max(map(len, EXPERIMENTS))
    for name, experiment in EXPERIMENTS.items():
        print(f"{name:{width}}  {experiment.description}; recorded: {', '.join(recordings(name)) or 'nothing yet'}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from llmpp_book.studies.answers import Session
    from llmpp_core.llm.batches import write_batches

    if arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"--out: {arguments.out} is a file; expected a folder")
    settings = _settings(arguments)
    session = Session.open(arguments.name, settings, arguments.recording, mode="replay")
    path = session.recording.path
    begun = not path.exists()
    # The recording is begun here, with what is known already, so that an import knows which answers are expected.
    pending = session.record(begin=True)
    try:
        files = write_batches(pending, settings, arguments.out, arguments.name)
    except (OSError, ValueError):
        if begun:
            path.unlink()
        raise
    for file in files:
        print(file)
    print(f"{len(pending)} of {len(session.expected)} requests to {settings.model} are pending; answers will be recorded in {path}")
    if settings.model == _UNNAMED:
        print("the requests name no real model: give --model, or fill in the field 'model' and keep the ids")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from llmpp_book.studies.imports import import_answers

    report = import_answers(arguments.files)
    print(report)
    return 1 if report.rejected else 0


def _ask(arguments: argparse.Namespace) -> int:
    from llmpp_book.studies.answers import Session
    from llmpp_core.llm.local import require_server

    settings = _settings(arguments)
    session = Session.open(arguments.name, settings, arguments.recording)
    print(session.estimate, flush=True)
    if excess := _excess(session.estimate, settings):
        print(f"this exceeds {excess}: the run stops before that; the same command goes on, and may spend as much again", flush=True)
    if arguments.dry_run:
        return 0
    try:
        settings.require_limit()
    except ValueError:
        if settings.budget is not None:  # Without its price.
            raise
        limits = "give --token-cap, or --price and --budget, or --local for a server of your own"
        raise ValueError(f"nothing limits what {settings.model} may cost: {limits}") from None
    if arguments.local and session.estimate.answered < session.estimate.requests:
        require_server(settings, arguments.local)
    try:
        failed = session.ask()
    finally:
        if session.recording.rows:
            print(session.recording.path)
    if failed:
        first = _by_flags(failed[0], arguments)
        print(f"{len(failed)} requests failed, the first: {first}; the same command asks them again", file=sys.stderr)
    return 1 if failed else 0


def _excess(estimate: Any, settings: Any) -> str:
    """Say by how much the worst case exceeds what may be spent, if it does."""
    money, tokens = estimate.cost or 0.0, estimate.prompt_tokens + estimate.answer_tokens
    found = []
    if settings.budget is not None and money > settings.budget:
        found.append(f"--budget {settings.budget:g} by up to {money - settings.budget:.2f} {estimate.currency}")
    if settings.token_cap is not None and tokens > settings.token_cap:
        found.append(f"--token-cap {settings.token_cap:,} by up to {tokens - settings.token_cap:,} tokens")
    return " and ".join(found)
