"""Batch files: requests carried out in the Batch API's JSONL form, and answers carried back, from there or from anywhere."""

from __future__ import annotations

import codecs
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
_URL = "/v1/chat/completions"


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
        line = (to_json(request) + "\n").encode()
        if size + len(line) > max_bytes or count == max_requests:
            paths.append(folder / f"{name}-{len(paths) + 1:03d}.jsonl")
            size = count = 0
        with open(paths[-1], "ab") as file:
            file.write(line)
        size, count = size + len(line), count + 1
    return paths


class BatchLine(NamedTuple):
    """One line of an answers file: file and number, the id, and the response, or what is wrong with the line.

    `problem` is the same for all lines with the same fault, `detail` tells them apart. Line 0 stands for the whole file.
    """

    file: str
    number: int
    key: str = ""
    response: str = ""
    problem: str = ""
    detail: str = ""

    @property
    def where(self) -> str:
        """File and line, for people."""
        return f"{self.file}, line {self.number}" if self.number else self.file


# The longest marks first: that of UTF-32 begins like that of UTF-16.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_batches(paths: Iterable[Path]) -> Iterator[BatchLine]:
    """Read answers files line by line.

    A line is either as the Batch API writes it, or ``{"custom_id": ..., "text": ...}`` with what a model wrote, so that
    answers can come from anywhere; other fields do not matter. Lines that are neither come with their problem, and so do files
    without any line and files that are no text. Text is UTF-8, or UTF-16 or UTF-32 with a byte order mark, as some editors and
    shells write it.
    """
    for path in paths:
        with open(path, "rb") as file:
            start = file.read(1024)
        encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8")
        if encoding == "utf-8" and b"\0" in start:
            yield BatchLine(path.name, 0, problem="no text file; expected JSON lines in UTF-8, or in UTF-16 with a byte order mark")
            continue
        empty = True
        # What is not in the encoding is found in its line, and the others are read.
        with open(path, encoding=encoding, errors="surrogateescape" if encoding.startswith("utf-8") else "replace") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    empty = False
                    yield _batch_line(BatchLine(path.name, number), text.strip())
        if empty:
            yield BatchLine(path.name, 0, problem="the file holds no line")


def _batch_line(place: BatchLine, text: str) -> BatchLine:
    if any("\udc80" <= character <= "\udcff" for character in text):
        return place._replace(problem="no UTF-8; save the file in that encoding", detail=f"got {_shown(text)}")
    try:
        line = json.loads(text)
        key = line["custom_id"]
        if not isinstance(key, str):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        return place._replace(problem="expected a JSON object with a custom_id", detail=f"got {_shown(text)}")
    if isinstance(line.get("text"), str):
        body: Any = {"choices": [{"message": {"role": "assistant", "content": line["text"]}, "finish_reason": "stop"}]}
    elif "body" in line and "response" not in line:
        return place._replace(problem="a request as it was exported, not an answer; import the file that came back")
    else:
        response = line.get("response")
        if not isinstance(response, Mapping) or response.get("status_code") != 200:
            return place._replace(key=key, problem="no answer", detail=_shown(line.get("error") or response, 120))
        body = response.get("body")
    raw = to_json(body)
    try:
        if read_reply(raw).is_exhausted:
            return place._replace(key=key, problem=f"no answer, all tokens allowed went on reasoning: {ADVICE}")
    except ReplyError as error:
        return place._replace(key=key, problem="no answer", detail=str(error))
    return place._replace(key=key, response=raw)


def _shown(value: Any, length: int = 60) -> str:
    """Return the beginning of a value, quoted if it is a text, without anything that a terminal cannot show."""
    return repr(value[:length]) if isinstance(value, str) else repr(value)[:length]
