"""Batch files: requests carried out in the Batch API's JSONL form, and answers carried back, from there or from anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llmpp_core.llm.answers import ReplyError, read_reply
from llmpp_core.llm.grammar import ADVICE
from llmpp_core.llm.recordings import to_json
from llmpp_core.llm.run import Job
from llmpp_core.llm.settings import Settings

#: Limits of one file of the Batch API.
BATCH_BYTES, BATCH_REQUESTS = 200_000_000, 50_000


def write_batches(jobs: Iterable[Job], settings: Settings, folder: Path, name: str) -> list[Path]:
    """Write requests in the Batch API's JSONL form, as many files as its limits ask for.

    Returns
    -------
    list of pathlib.Path
        ``NAME-001.jsonl`` and so on; none if there are no requests. Each line's ``custom_id`` is the key of the answer. They take the
        place of earlier requests to the same model; ValueError if there is anything else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    earlier = list(folder.glob(f"{name}-[0-9][0-9][0-9].jsonl"))
    for old in earlier:
        # At line feeds only: texts may hold other ends of lines.
        for there in old.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n"):
            if '"text"' in there or '"response"' in there or f'"model": {to_json(settings.model)}' not in there:
                raise ValueError(f"{old}: holds answers, or requests to another model; import it or move it away, or choose another folder")
    for old in earlier:
        old.unlink()
    paths: list[Path] = []
    size, count = BATCH_BYTES, BATCH_REQUESTS
    for job in jobs:
        request = {"custom_id": job.key, "method": "POST", "url": "/v1/chat/completions", "body": settings.body(job.prompt)}
        line = (to_json(request) + "\n").encode()
        if size + len(line) > BATCH_BYTES or count == BATCH_REQUESTS:
            paths.append(folder / f"{name}-{len(paths) + 1:03d}.jsonl")
            size = count = 0
        with open(paths[-1], "ab") as file:
            file.write(line)
        size, count = size + len(line), count + 1
    return paths


class BatchLine(NamedTuple):
    """One line of an answers file."""

    file: str
    number: int  #: From 1; 0 stands for the whole file.
    key: str = ""
    response: str = ""
    problem: str = ""  #: What is wrong with it, if it holds no answer; the same for all lines with the same fault.
    detail: str = ""  #: What tells them apart.

    @property
    def where(self) -> str:
        """File and line, for people."""
        return f"{self.file}, line {self.number}" if self.number else self.file


def read_batches(paths: Iterable[Path]) -> Iterator[BatchLine]:
    """Read answers files line by line.

    A line is either as the Batch API writes it, or ``{"custom_id": ..., "text": ...}`` with what a model wrote, so that answers can come
    from anywhere. Lines that are neither come with their problem, and so do files without any line and files that are no text. Text is
    UTF-8, UTF-16 or UTF-32, as some editors and shells write it.
    """
    for path in paths:
        with open(path, "rb") as file:
            start = file.read(1024)
        encoding = json.detect_encoding(start)
        if encoding == "utf-8" and b"\0" in start:
            yield BatchLine(path.name, 0, problem="no text file; expected JSON lines in UTF-8")
            continue
        empty = True
        # What is not in the encoding is found in its line, and the others are read.
        with open(path, encoding=encoding, errors="surrogateescape" if encoding.startswith("utf-8") else "replace") as lines:
            for number, text in enumerate(lines, 1):
                if text.strip():
                    empty = False
                    yield BatchLine(path.name, number, **_read_line(text.strip()))
        if empty:
            yield BatchLine(path.name, 0, problem="the file holds no line")


def _read_line(text: str) -> dict[str, str]:
    if any("\udc80" <= character <= "\udcff" for character in text):
        return {"problem": "no UTF-8; save the file in that encoding", "detail": f"got {text[:60]!r}"}
    try:
        line = json.loads(text)
        key = line["custom_id"]
        if not isinstance(key, str):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"problem": "expected a JSON object with a custom_id", "detail": f"got {text[:60]!r}"}
    if "text" in line:
        wrote = line["text"]
        if not isinstance(wrote, str):
            return {"key": key, "problem": "text is no string; expected what the model wrote, in quotes", "detail": f"got {wrote!r}"[:80]}
        body: Any = {"choices": [{"message": {"role": "assistant", "content": wrote}, "finish_reason": "stop"}]}
    elif "body" in line and "response" not in line:
        return {"problem": "a request as it was exported, not an answer; import the file that came back"}
    else:
        response = line.get("response")
        if not isinstance(response, Mapping) or response.get("status_code") != 200:
            return {"key": key, "problem": "no answer", "detail": repr(line.get("error") or response)[:120]}
        body = response.get("body")
    raw = to_json(body)
    try:
        if read_reply(raw).is_exhausted:
            return {"key": key, "problem": f"no answer, all tokens allowed went on reasoning: {ADVICE}"}
    except ReplyError as error:
        return {"key": key, "problem": "no answer", "detail": str(error)}
    return {"key": key, "response": raw}
