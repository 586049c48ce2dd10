"""Reads answers files back into recordings, line by line, and says what was wrong or is still missing."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llmpp_book.studies import answers
from llmpp_book.studies.answers import expected
from llmpp_book.studies.questions import Question
from llmpp_core.llm.answers import read_answer
from llmpp_core.llm.batches import BatchLine, read_batches
from llmpp_core.llm.cache import Stored
from llmpp_core.llm.recordings import Recording, Row, read_recordings, write_recording

# Lines with the same fault that are named one by one.
_SHOWN = 5


@dataclass
class ImportReport:
    """What an import did."""

    added: int = 0  #: Answers recorded now.
    known: int = 0  #: Lines whose answer was recorded before; the earlier answer stays.
    invalid: list[str] = field(default_factory=list)  #: Where, and why, no valid number could be read of answers that were recorded.
    rejected: list[BatchLine] = field(default_factory=list)  #: Lines that were not recorded: where and why.
    missing: list[str] = field(default_factory=list)  #: What each recording still lacks.

    def __str__(self) -> str:
        done = (
            f"{self.added} answers recorded, {len(self.invalid)} of them invalid; {self.known} known; {len(self.rejected)} lines rejected"
        )
        return "\n".join(
            [*(f"rejected  {line}" for line in self._rejections()), *(f"invalid   {line}" for line in self.invalid), done, *self.missing]
        )

    def _rejections(self) -> Iterator[str]:
        """Name the first lines of a file with the same fault, and count the others: a wrong file is wrong in every line."""
        groups: dict[tuple[str, str], list[BatchLine]] = defaultdict(list)
        for line in self.rejected:
            groups[line.file, line.problem].append(line)
        for (file, problem), lines in groups.items():
            shown = lines[: _SHOWN if any(line.detail for line in lines) else 1]
            more = f"{len(lines) - len(shown):,} more such lines" if len(lines) > len(shown) else ""
            for line in shown:
                ending = f", and {more}" if more and len(shown) == 1 else ""
                yield f"{line.where}: {problem}" + (f": {line.detail}" if line.detail else "") + ending
            if more and len(shown) > 1:
                yield f"{file}: {more}"


def import_answers(paths: Iterable[Path]) -> ImportReport:
    """Add the answers in some files, as `llmpp_core.llm.batches.read_batches` describes them, to the recordings that expect their ids.

    Warns
    -----
    UserWarning
        If a file among the recordings is damaged, is none, or answers an unknown experiment; it is left as it is.
    """
    # A file that is not there is told before the questions are made, which takes a while.
    for path in (paths := list(paths)):
        open(path, "rb").close()
    found: list[tuple[Recording, dict[str, tuple[Question, int]]]] = []
    for recording in read_recordings(answers.RESULTS.glob("*/*.jsonl")):
        try:
            found.append((recording, expected(recording.experiment, recording.settings)))
        except ValueError as error:
            warnings.warn(f"left out: {recording.path}: {error}", stacklevel=2)
    report = ImportReport()
    seen: set[str] = set()
    changed: dict[Path, Recording] = {}
    for line in read_batches(paths):
        wanted = [(recording, *questions[line.key]) for recording, questions in found if line.key in questions]
        if line.key and not wanted:
            line = line._replace(problem="unknown id: no exported request has it", detail=repr(line.key[:80]))
        elif line.key in seen:
            line = line._replace(problem="an id that was given before; the first answer counts", detail=line.key)
        if line.problem:
            report.rejected.append(line)
            continue
        seen.add(line.key)
        places = [place for place in wanted if line.key not in place[0].rows]
        if not places:
            report.known += 1
            continue
        report.added += 1
        answer = read_answer(places[0][1].prompt, line.key, line.response)
        if answer.status == "invalid":
            report.invalid.append(f"{line.where}: {answer.reason}")
        for recording, question, sample in places:
            recording.rows[line.key] = Row(question.labels, sample, Stored(line.response, None))
            changed[recording.path] = recording
    for recording in changed.values():
        write_recording(recording)
    for recording, questions in found:
        name, missing = f"{recording.experiment}/{recording.path.stem}", len(questions.keys() - recording.rows.keys())
        report.missing.append(f"{name}: {missing} of {len(questions)} answers missing")
    return report
