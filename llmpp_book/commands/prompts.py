"""The commands ``prompts list|ask|export|import``, ``serve-offline`` and ``serve-model`` of ``llmpp``."""

from __future__ import annotations

import argparse
import contextlib
import errno
import math
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
    serve.set_defaults(command=_with_clear_errors(_serve))
    model = subparsers.add_parser("serve-model", help="serve a language model in a GGUF file on 127.0.0.1")
    model.add_argument("file", type=Path, metavar="FILE.gguf", help="the model; needs the extra 'local'")
    model.add_argument("--port", type=int, default=8080, help="port to listen on (default: that of llama-server, %(default)s)")
    model.set_defaults(command=_with_clear_errors(_serve_model))
    prompts = subparsers.add_parser("prompts", help="list, ask, export and import the prompts of experiments")
    commands = prompts.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="list the experiments and their recordings")
    listing.set_defaults(command=_with_clear_errors(_list))
    export = commands.add_parser("export", help="write the pending requests of an experiment in the Batch API's form")
    _add_model(export)
    export.add_argument("--out", type=Path, required=True, help="folder for the files")
    export.set_defaults(command=_with_clear_errors(_export))
    importing = commands.add_parser("import", help="read answers files into the recordings that were exported")
    importing.add_argument("files", nargs="+", type=Path, help="answers files, JSONL")
    importing.set_defaults(command=_with_clear_errors(_import))
    ask = commands.add_parser("ask", help="ask the pending requests of an experiment now, and record the answers")
    _add_model(ask, required=True)
    ask.add_argument("--local", metavar="SERVER", help="a server on this machine: llama-server, vllm, ollama, lm-studio or transformers")
    ask.add_argument("--base-url", help="OpenAI-compatible endpoint (default: OpenAI's, or the usual port of --local)")
    ask.add_argument("--key-variable", help="environment variable that holds the key (default: OPENAI_API_KEY, none with --local)")
    ask.add_argument("--price", nargs=3, metavar=("SENT", "RECEIVED", "DATE"), help="price of a million tokens and the date it was read")
    ask.add_argument("--budget", type=_positive, help="most to spend, in the currency of the price")
    ask.add_argument("--token-cap", type=_positive_integer, help="most tokens sent and received together; needed without a price")
    ask.add_argument("--concurrency", type=_positive_integer, help="requests in flight at once (default: 16)")
    ask.add_argument("--deadline", type=_positive, metavar="SECONDS", help="for one answer (default: 120, or 900 with --local)")
    ask.add_argument("--requests-per-minute", type=_positive, help="rate limit to keep")
    ask.add_argument("--tokens-per-minute", type=_positive, help="rate limit to keep")
    ask.add_argument("--dry-run", action="store_true", help="only say what would be sent and what it would cost")
    ask.set_defaults(command=_with_clear_errors(_ask))


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


def _positive_integer(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text}")
    return int(text)


def _add_model(parser: argparse.ArgumentParser, required: bool = False) -> None:
    parser.add_argument("name", help="experiment, see 'prompts list'")
    default: dict[str, Any] = {"required": True} if required else {"default": _UNNAMED}
    parser.add_argument("--model", help="model id" if required else "model id (default: %(default)s)", **default)
    parser.add_argument("--recording", help="name of the recording (default: the model id)")
    parser.add_argument("--endpoint", help="name that stands for the endpoint in recordings (default: its URL)")
    parser.add_argument("--temperature", type=float, help="default: the model's own")
    parser.add_argument("--reasoning-effort", help="default: the model's own")
    parser.add_argument("--answer-tokens", type=_positive_integer, help="most tokens per architecture asked about (default: 25)")
    parser.add_argument("--token-limit-field", help="name of that field (default: max_tokens)")
    parser.add_argument(
        "--log-probabilities",
        type=_positive_integer,
        nargs="?",
        const=20,
        metavar="N",
        help="ask for the log-probabilities of the N most likely tokens too (20 if N is left out)",
    )


def _with_clear_errors(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Return a command that prints one line and returns 2 for wrong input, 1 for what went wrong outside."""

    def run(arguments: argparse.Namespace) -> int:
        from llmpp_core.jobs.files import SourceError
        from llmpp_core.llm.cache import CacheError
        from llmpp_core.llm.client import LLMStopped

        try:
            return command(arguments)
        except (ValueError, LLMStopped, CacheError, SourceError, OSError, OverflowError) as error:
            print(_by_flags(" ".join(str(error).split())), file=sys.stderr)
            return 2 if isinstance(error, (ValueError, OverflowError)) else 1

    return run


def _by_flags(message: str) -> str:
    """Return a message about settings with the flags in place of the settings' names."""
    message = re.sub(r"^(model|endpoint|temperature|concurrency|deadline|budget|price):", r"--\1:", message)
    names = "answer_tokens|token_limit_field|key_variable|base_url|reasoning_effort|token_cap|requests_per_minute|tokens_per_minute"
    return re.sub(rf"\b(?:{names})\b", lambda match: "--" + match[0].replace("_", "-"), message)


def _settings(arguments: argparse.Namespace) -> Any:
    from llmpp_core.llm.local import DEADLINE
    from llmpp_core.llm.logprobs import with_log_probabilities
    from llmpp_core.llm.settings import LOCAL_SERVERS, Price, Settings

    given = {name: value for name, value in vars(arguments).items() if name in Settings.__dataclass_fields__ and value is not None}
    if price := given.get("price"):
        try:
            given["price"] = Price(float(price[0]), float(price[1]), price[2])
        except ValueError as error:
            raise ValueError(f"--price: {error}") from None
    server = getattr(arguments, "local", None)
    if server is not None and server not in LOCAL_SERVERS:
        raise ValueError(f"--local: unknown server {server!r}; allowed are {', '.join(LOCAL_SERVERS)}, and any other with --base-url")
    settings = Settings.local(server, given.pop("model"), **{"deadline": DEADLINE} | given) if server else Settings(**given)
    return with_log_probabilities(settings, arguments.log_probabilities) if arguments.log_probabilities else settings


def _serve(arguments: argparse.Namespace) -> int:
    from llmpp_core.llm.offline import MODEL, OfflineEndpoint

    with _clear_port(arguments.port):
        endpoint = OfflineEndpoint(arguments.port)
    print(f"{MODEL}, which is not a language model, answers at {endpoint.url}; stop with Ctrl-C", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        endpoint.serve_forever()
    return 0


def _serve_model(arguments: argparse.Namespace) -> int:
    from llmpp_core.llm.local import serve

    with _clear_port(arguments.port):
        server = serve(arguments.file, arguments.port)
    print(f"{arguments.file.name} answers at {server.listening_address}/v1; stop with Ctrl-C", flush=True)
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
    from llmpp_book.studies import questions as experiments

    for name, experiment in experiments.EXPERIMENTS.items():
        recorded = ", ".join(experiments.recordings(name, experiments.RESULTS)) or "nothing yet"
        print(f"{name:18}{experiment.description}; recorded: {recorded}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from llmpp_book.studies import questions as experiments
    from llmpp_core.llm.batches import write_batches
    from llmpp_core.llm.client import Client
    from llmpp_core.llm.recordings import load, read_recording, recording_path
    from llmpp_core.llm.run import Job

    if arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"--out: {arguments.out} is a file; expected a folder")
    settings = _settings(arguments)
    wanted = experiments.expected(arguments.name, settings)
    client = Client(settings, recordings=load(experiments.RESULTS, settings), mode="replay")
    path = recording_path(experiments.RESULTS, arguments.name, arguments.recording or settings.model)
    begun = not path.exists()
    # The recording is begun here, with what is known already, so that an import knows which answers are expected.
    experiments.record(arguments.name, client, arguments.recording, experiments.RESULTS)
    recorded = read_recording(path).rows
    pending = [Job(key, question.prompt, sample) for key, (question, sample) in wanted.items() if key not in recorded]
    try:
        files = write_batches(pending, settings, arguments.out, arguments.name)
    except OSError:
        if begun:
            path.unlink()
        raise
    for file in files:
        print(file)
    print(f"{len(pending)} of {len(wanted)} requests to {settings.model} are pending; answers will be recorded in {path}")
    if settings.model == _UNNAMED:
        print("the requests name no real model: give --model, or fill in the field 'model' and keep the ids")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from llmpp_book.studies import questions as experiments
    from llmpp_book.studies.imports import import_answers

    report = import_answers(arguments.files, experiments.RESULTS)
    print(report)
    return 1 if report.rejected else 0


def _ask(arguments: argparse.Namespace) -> int:
    from llmpp_book.studies import questions as experiments
    from llmpp_core.jobs.interruption import interruptible
    from llmpp_core.llm.client import Client
    from llmpp_core.llm.local import require_server
    from llmpp_core.llm.recordings import load, open_recording, recording_path

    settings = _settings(arguments)
    found = experiments.experiment(arguments.name)
    # Before anything is paid for: a recording of other settings cannot take the answers.
    open_recording(recording_path(experiments.RESULTS, found.name, arguments.recording or settings.model), found.name, settings)
    client = Client(settings, recordings=load(experiments.RESULTS, settings), progress=True)
    prompts = [question.prompt for question in found.questions()]
    estimate = client.estimate(prompts, found.samples)
    print(estimate, flush=True)
    if excess := _excess(estimate, settings):
        print(excess, flush=True)
    if arguments.dry_run:
        return 0
    try:
        settings.require_limit()
    except ValueError:
        limits = "give --token-cap, or --price and --budget, or --local for a server of your own"
        raise ValueError(f"nothing limits what {settings.model} may cost: {limits}") from None
    if arguments.local and estimate.answered < estimate.requests:
        require_server(settings, arguments.local)
    try:
        with interruptible("stopping: waiting for the requests in flight, whose answers are kept; once more to give them up"):
            answers = client.ask(prompts, found.samples)
    finally:
        if client.estimate(prompts, found.samples).answered:
            print(experiments.record(arguments.name, client, arguments.recording, experiments.RESULTS))
    failed = [answer.reason for row in answers for answer in row if answer.status == "failed"]
    if failed:
        print(f"{len(failed)} requests failed, the first: {_by_flags(failed[0])}; the same command asks them again", file=sys.stderr)
    return 1 if failed else 0


def _excess(estimate: Any, settings: Any) -> str:
    """Say by how much the worst case exceeds what may be spent, if it does."""
    tokens = estimate.prompt_tokens + estimate.answer_tokens
    found = []
    if settings.budget is not None and estimate.cost is not None and estimate.cost > settings.budget:
        found.append(f"--budget {settings.budget:g} by up to {estimate.cost - settings.budget:.2f} {estimate.currency}")
    if settings.token_cap is not None and tokens > settings.token_cap:
        found.append(f"--token-cap {settings.token_cap:,} by up to {tokens - settings.token_cap:,} tokens")
    ending = "the run stops before that, and with a larger limit the same command goes on"
    return f"this exceeds {' and '.join(found)}: {ending}" if found else ""
