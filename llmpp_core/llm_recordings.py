"""Answers as text files: recordings that are committed, and batch files that carry requests out and answers back.

A recording is ``results/llm/EXPERIMENT/NAME.jsonl``: a first line with the settings, then one line per answer with its
key, labels and the response as it came, sorted. It holds no prompts, since these hold upstream data; the experiment
builds them again and the key tells whether they are still the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from llmpp_core.files import replace_file
from llmpp_core.llm_answers import ReplyError, read_reply
from llmpp_core.llm_cache import Stored
from llmpp_core.llm_run import Job
from llmpp_core.llm_settings import SCHEMA_VERSION, Settings
from llmpp_core.sources import read_jsonl

#: Limits of one file of the Batch API.
BATCH_BYTES, BATCH_REQUESTS = 200_000_000, 50_000
_URL = "/v1/chat/completions"


class Row(NamedTuple):
    """One recorded answer: what it answers, in JSON types, and the response."""

    labels: dict[str, Any]
    sample: int
    stored: Stored


@dataclass
class Recording:
    """The answers of one model to one experiment, by key."""

    path: Path
    experiment: str
    settings: Settings
    rows: dict[str, Row] = field(default_factory=dict)


def recording_path(folder: Path, experiment: str, name: str) -> Path:
    """Return where a recording of this name belongs; a model id serves as a name."""
    return folder / experiment / (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") + ".jsonl")


def read_recording(path: Path) -> Recording:
    """Read a recording; raises ValueError naming file and line if one is damaged."""
    lines = read_jsonl(path)
    try:
        head = lines[0]["recording"]
        if head["schema"] != SCHEMA_VERSION:
            raise ValueError(f"schema {head['schema']} is not supported; supported is {SCHEMA_VERSION}")
        recording = Recording(path, head["experiment"], Settings.from_identity(head["settings"]))
    except (IndexError, KeyError, TypeError):
        raise ValueError(f"{path}, line 1: expected the head of a recording") from None
    except ValueError as error:
        raise ValueError(f"{path}, line 1: {error}") from None
    for number, line in enumerate(lines[1:], 2):
        try:
            key, response = line["key"], json.dumps(line["response"], ensure_ascii=False)
            read_reply(response)
            row = Row(dict(line["labels"]), int(line["sample"]), Stored(response, line["seconds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: not a recorded answer: {error}") from None
        if key in recording.rows:
            raise ValueError(f"{path}, line {number}: the key {key} is given twice")
        recording.rows[key] = row
    return recording


def write_recording(recording: Recording) -> None:
    """Write a recording, sorted by labels and sample, in one step that cannot leave half a file."""
    head = {"experiment": recording.experiment, "schema": SCHEMA_VERSION, "settings": recording.settings.identity()}
    lines: list[dict[str, Any]] = [{"recording": head}]
    for key, row in sorted(recording.rows.items(), key=lambda item: (tuple(item[1].labels.values()), item[1].sample)):
        response = json.loads(row.stored.response)
        lines.append({"key": key, "labels": row.labels, "sample": row.sample, "seconds": row.stored.seconds, "response": response})
    replace_file(recording.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def open_recording(path: Path, experiment: str, settings: Settings) -> Recording:
    """Read a recording or begin one; raises ValueError if it holds answers to other settings."""
    if not path.exists():
        return Recording(path, experiment, settings)
    recording = read_recording(path)
    if recording.settings.identity() != settings.identity():
        raise ValueError(f"{path} holds answers of other settings: {recording.settings.identity()}; choose another name")
    return recording


def load(folder: Path, settings: Settings) -> dict[str, Stored]:
    """Return all recorded answers of some settings by key, for `Client`, whatever experiment they were recorded for."""
    recordings = [read_recording(path) for path in sorted(folder.glob("*/*.jsonl"))]
    same = [recording for recording in recordings if recording.settings.identity() == settings.identity()]
    return {key: row.stored for recording in same for key, row in recording.rows.items()}


def write_batches(
    jobs: Iterable[Job],
    settings: Settings,
    folder: Path,
    name: str,
    max_bytes: int = BATCH_BYTES,
    max_requests: int = BATCH_REQUESTS,
) -> list[Path]:
    """Write requests in the Batch API's JSONL form, as many files as its limits ask for.

    Returns
    -------
    list of pathlib.Path
        ``NAME-001.jsonl`` and so on; none if there are no requests. Each line's ``custom_id`` is the key of the answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}-[0-9][0-9][0-9].jsonl"):
        old.unlink()
    paths: list[Path] = []
    size, count = max_bytes + 1, 0
    for job in jobs:
        request = {"custom_id": job.key, "method": "POST", "url": _URL, "body": settings.body(job.prompt)}
        line = (json.dumps(request, ensure_ascii=False) + "\n").encode()
        if size + len(line) > max_bytes or count == max_requests:
            paths.append(folder / f"{name}-{len(paths) + 1:03d}.jsonl")
            size = count = 0
        with open(paths[-1], "ab") as file:
            file.write(line)
        size, count = size + len(line), count + 1
    return paths


class BatchLine(NamedTuple):
    """One line of an answers file: where it is, its id, and the response, or what is wrong with the line."""

    where: str
    key: str
    response: str
    problem: str


def read_batches(paths: Iterable[Path]) -> Iterator[BatchLine]:
    """Read answers files line by line.

    A line is either as the Batch API writes it, or ``{"custom_id": ..., "text": ...}`` with what a model wrote, so that
    answers can come from anywhere. Lines that are neither come with their problem.
    """
    for path in paths:
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield _batch_line(f"{path.name}, line {number}", text)


def _batch_line(where: str, text: str) -> BatchLine:
    try:
        line = json.loads(text)
        key = line["custom_id"]
        if not isinstance(key, str):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        return BatchLine(where, "", "", f"expected a JSON object with a custom_id, got {text.strip()[:60]!r}")
    if isinstance(line.get("text"), str):
        body: Any = {"choices": [{"message": {"role": "assistant", "content": line["text"]}, "finish_reason": "stop"}]}
    else:
        response = line.get("response")
        if not isinstance(response, Mapping) or response.get("status_code") != 200:
            return BatchLine(where, key, "", f"no answer: {str(line.get('error') or response)[:120]}")
        body = response.get("body")
    raw = json.dumps(body, ensure_ascii=False)
    try:
        read_reply(raw)
    except ReplyError as error:
        return BatchLine(where, key, "", str(error))
    return BatchLine(where, key, raw, "")
