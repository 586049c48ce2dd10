"""Recordings: answers as text files that are committed.

A recording is ``results/llm/EXPERIMENT/NAME.jsonl``: a first line with the settings, then one line per answer with its key, labels and the
response as it came, sorted. It holds no prompts, since these hold upstream data; the experiment builds them again and the key tells whether
they are still the same.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from llmpp_core.jobs.files import replace_file
from llmpp_core.jobs.table import differences
from llmpp_core.llm.answers import ServerFailed, printable, read_reply
from llmpp_core.llm.cache import Stored
from llmpp_core.llm.settings import SCHEMA_VERSION, Settings
from llmpp_core.upstream import read_jsonl


class Row(NamedTuple):
    """One recorded answer."""

    labels: dict[str, Any]  #: What it answers, in JSON types.
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
    """Return where a recording of this name belongs; a model id serves as a name. Raises ValueError if it has no Latin letter or digit."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    if not stem:
        raise ValueError(f"recording {name!r}: nothing of it can be the name of a file; name the recording with Latin letters or digits")
    return folder / experiment / f"{stem}.jsonl"


def read_recording(path: Path) -> Recording:
    """Read a recording; raises ValueError naming file and line if one is damaged.

    A line that says that the server failed is no answer: it is left out with a warning, so that the request is sent again.
    """
    number, what = 1, ""
    try:
        lines = read_jsonl(path)
    except ValueError as error:
        raise ValueError(f"{error}; mend the line, or move the file away") from None
    try:
        head = lines[0]["recording"]
        if head["schema"] != SCHEMA_VERSION:
            raise ValueError(f"schema {head['schema']} is not supported; supported is {SCHEMA_VERSION}")
        recording = Recording(path, head["experiment"], Settings.from_identity(head["settings"]))
        for number, line in enumerate(lines[1:], 2):
            what = "not a recorded answer: "
            key, response = line["key"], to_json(line["response"])
            row = Row(dict(line["labels"]), int(line["sample"]), Stored(response, line["seconds"]))
            try:
                read_reply(response)
            except ServerFailed as error:
                warnings.warn(f"{path}, line {number}: {error}; left out, so that it is asked again", stacklevel=2)
                continue
            if key in recording.rows:
                raise ValueError(f"the key {key} is given twice")
            recording.rows[key] = row
    except (IndexError, KeyError, TypeError, ValueError) as error:
        said = error if number > 1 or type(error) is ValueError else "expected the head of a recording"
        raise ValueError(f"{path}, line {number}: {what}{said}; mend the line, or move the file away") from None
    return recording


def write_recording(recording: Recording) -> None:
    """Write a recording, sorted by labels and sample, in one step that cannot leave half a file."""
    head = {"experiment": recording.experiment, "schema": SCHEMA_VERSION, "settings": recording.settings.identity()}
    lines: list[dict[str, Any]] = [{"recording": head}]
    for key, row in sorted(recording.rows.items(), key=lambda item: (tuple(item[1].labels.values()), item[1].sample)):
        response = json.loads(row.stored.response)
        lines.append({"key": key, "labels": row.labels, "sample": row.sample, "seconds": row.stored.seconds, "response": response})
    replace_file(recording.path, "".join(to_json(line) + "\n" for line in lines).encode())


def to_json(value: Any) -> str:
    """Return JSON on one line that any file takes: as it reads, and escaped where it holds half a character, as in "\\ud83d"."""
    text = json.dumps(value, ensure_ascii=False)
    return text if printable(text) == text else json.dumps(value)


def read_recordings(paths: Iterable[Path], settings: Settings | None = None) -> list[Recording]:
    """Read recordings in the order of their paths; what is damaged or no recording is named in a warning and left out.

    One of the given settings must not be damaged: ValueError is raised, since its answers would be asked and paid for again.
    """
    found = []
    for path in sorted(paths):
        try:
            found.append(read_recording(path))
        except (ValueError, OSError) as error:
            if settings and _is_of(path, settings):
                raise
            warnings.warn(f"left out: {error}", stacklevel=3)
    return found


def open_recording(path: Path, experiment: str, settings: Settings) -> Recording:
    """Read a recording or begin one; raises ValueError if it holds answers to other settings."""
    if not path.exists():
        return Recording(path, experiment, settings)
    recording = read_recording(path)
    if recording.settings.identity() != settings.identity():
        different = differences(recording.settings.identity(), settings.identity())
        raise ValueError(f"{path} holds answers of other settings: {different}; choose another name for the recording")
    return recording


def load(folder: Path, settings: Settings) -> dict[str, Stored]:
    """Return all recorded answers of some settings by key, for `Client`, whatever experiment they were recorded for.

    A damaged file is named in a warning and left out, or refused if it is a recording of these settings; see `read_recordings`.
    """
    recordings = read_recordings(folder.glob("*/*.jsonl"), settings)
    same = [recording for recording in recordings if recording.settings.identity() == settings.identity()]
    return {key: row.stored for recording in same for key, row in recording.rows.items()}


def _is_of(path: Path, settings: Settings) -> bool:
    """Return whether the first line, or where that cannot be read the file's name, says that this is a recording of some settings."""
    try:
        with open(path, "rb") as file:
            head = json.loads(file.readline())
        return bool(head["recording"]["settings"] == settings.identity())
    except OSError:
        return False
    except (ValueError, KeyError, TypeError):
        return path.name == recording_path(path.parent, "", settings.model).name
