"""The commands ``prompts list|ask|export|import`` and ``serve-offline`` of ``python -m llmpp_core``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What a request is made for when no model is named, for answers that are to come from anywhere.
_UNNAMED = "unnamed-llm"


def add_commands(subparsers: Any) -> None:
    """Add the commands to what `ArgumentParser.add_subparsers` returned; each sets ``command``, a function that returns an exit code."""
    serve = subparsers.add_parser("serve-offline", help="serve the endpoint that is not a language model on 127.0.0.1")
    serve.add_argument("--port", type=int, default=8123, help="port to listen on (default: %(default)s)")
    serve.set_defaults(command=_with_clear_errors(_serve))
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
    _add_model(ask)
    ask.add_argument("--base-url", default="https://api.openai.com/v1", help="OpenAI-compatible endpoint (default: %(default)s)")
    ask.add_argument("--key-variable", default="OPENAI_API_KEY", help="environment variable that holds the key (default: %(default)s)")
    ask.add_argument("--price", nargs=3, metavar=("SENT", "RECEIVED", "DATE"), help="price of a million tokens and the date it was read")
    ask.add_argument("--budget", type=float, help="most to spend, in the currency of the price")
    ask.add_argument("--token-cap", type=int, help="most tokens sent and received together; needed without a price")
    ask.add_argument("--concurrency", type=int, default=16, help="requests in flight at once (default: %(default)s)")
    ask.add_argument("--requests-per-minute", type=float, help="rate limit to keep")
    ask.add_argument("--tokens-per-minute", type=float, help="rate limit to keep")
    ask.add_argument("--dry-run", action="store_true", help="only say what would be sent and what it would cost")
    ask.set_defaults(command=_with_clear_errors(_ask))


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="experiment, see 'prompts list'")
    parser.add_argument("--model", default=_UNNAMED, help="model id (default: %(default)s)")
    parser.add_argument("--recording", help="name of the recording (default: the model id)")
    parser.add_argument("--endpoint", help="name that stands for the endpoint in recordings (default: its URL)")
    parser.add_argument("--temperature", type=float, help="default: the model's own")
    parser.add_argument("--reasoning-effort", help="default: the model's own")
    parser.add_argument("--answer-tokens", type=int, default=25, help="most tokens per architecture asked about (default: %(default)s)")
    parser.add_argument("--token-limit-field", default="max_tokens", help="name of that field (default: %(default)s)")


def _with_clear_errors(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Return a command that prints one line and returns 2 for wrong input, 1 for what went wrong outside."""

    def run(arguments: argparse.Namespace) -> int:
        from llmpp_core.llm import LLMStopped
        from llmpp_core.llm_cache import CacheError
        from llmpp_core.sources import SourceError

        try:
            return command(arguments)
        except (ValueError, LLMStopped, CacheError, SourceError, OSError, OverflowError) as error:
            print(" ".join(str(error).split()), file=sys.stderr)
            return 2 if isinstance(error, (ValueError, OverflowError)) else 1

    return run


def _settings(arguments: argparse.Namespace) -> Any:
    from llmpp_core.llm_settings import Price, Settings

    values = {name: value for name, value in vars(arguments).items() if name in Settings.__dataclass_fields__}
    if price := values.get("price"):
        try:
            values["price"] = Price(float(price[0]), float(price[1]), price[2])
        except ValueError as error:
            raise ValueError(f"--price: {error}") from None
    return Settings(**values)


def _serve(arguments: argparse.Namespace) -> int:
    from llmpp_core.offline_llm import MODEL, OfflineEndpoint

    endpoint = OfflineEndpoint(arguments.port)
    print(f"{MODEL}, which is not a language model, answers at {endpoint.url}; stop with Ctrl-C", flush=True)
    try:
        endpoint.serve_forever()
    except KeyboardInterrupt:
        return 0
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from llmpp_core import experiments

    for name, experiment in experiments.EXPERIMENTS.items():
        recorded = ", ".join(experiments.recordings(name, experiments.RESULTS)) or "nothing yet"
        print(f"{name:18}{experiment.description}; recorded: {recorded}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from llmpp_core import experiments
    from llmpp_core.llm import Client
    from llmpp_core.llm_batches import write_batches
    from llmpp_core.llm_recordings import load, read_recording
    from llmpp_core.llm_run import Job

    settings = _settings(arguments)
    wanted = experiments.expected(arguments.name, settings)
    client = Client(settings, recordings=load(experiments.RESULTS, settings), mode="replay")
    # The recording is begun here, with what is known already, so that an import knows which answers are expected.
    path = experiments.record(arguments.name, client, arguments.recording, experiments.RESULTS)
    recorded = read_recording(path).rows
    pending = [Job(key, question.prompt, sample) for key, (question, sample) in wanted.items() if key not in recorded]
    files = write_batches(pending, settings, arguments.out, arguments.name)
    for file in files:
        print(file)
    print(f"{len(pending)} of {len(wanted)} requests to {settings.model} are pending; answers will be recorded in {path}")
    if settings.model == _UNNAMED:
        print("the requests name no real model: give --model, or fill in the field 'model' and keep the ids")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from llmpp_core import experiments
    from llmpp_core.llm_import import import_answers

    report = import_answers(arguments.files, experiments.RESULTS)
    print(report)
    return 1 if report.rejected else 0


def _ask(arguments: argparse.Namespace) -> int:
    from llmpp_core import experiments
    from llmpp_core.llm import Client
    from llmpp_core.llm_recordings import load

    settings = _settings(arguments)
    client = Client(settings, recordings=load(experiments.RESULTS, settings), progress=True)
    found = experiments.experiment(arguments.name)
    prompts = [question.prompt for question in found.questions()]
    print(client.estimate(prompts, found.samples))
    if arguments.dry_run:
        return 0
    try:
        client.ask(prompts, found.samples)
    finally:
        if client.estimate(prompts, found.samples).answered:
            print(experiments.record(arguments.name, client, arguments.recording, experiments.RESULTS))
    return 0
