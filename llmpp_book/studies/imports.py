"""Reads answers files back into recordings, line by line, and says what was wrong or is still missing."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llmpp_book.studies.questions import RESULTS, Question, expected
from llmpp_core.llm.answers import read_answer
from llmpp_core.llm.batches import BatchLine, read_batches
from llmpp_core.llm.cache import Stored
from llmpp_core.llm.recordings import Recording, Row, read_recordings, write_recording

# Lines with the same fault that are named one by one.
_SHOWN = 5


@dataclass
class ImportReport:
    """What an import did.

    Attributes
    ----------
    added, known : int
        Answers recorded now, and lines whose answer was recorded before; the earlier answer stays.
    invalid : list of str
        Answers that were recorded although no valid number could be read: where and why.
    rejected : list of BatchLine
        Lines that were not recorded: where and why.
    missing : dict
        How many answers each recording still lacks, and out of how many.
    """

    added: int = 0
    known: int = 0
    invalid: list[str] = field(default_factory=list)
    rejected: list[BatchLine] = field(default_factory=list)
    missing: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"rejected  {line}" for line in self._rejections()] + [f"invalid   {line}" for line in self.invalid]
        lines.append(
            f"{self.added} answers recorded, {len(self.invalid)} of them invalid; {self.known} known; {len(self.rejected)} lines rejected"
        )
        lines += [f"{name}: {missing} of {total} answers missing" for name, (missing, total) in self.missing.items()]
        return "\n".join(lines)

    def _rejections(self) -> Iterator[str]:
        """Name the first lines of a file with the same fault, and count the others: a wrong file is wrong in every line."""
        groups: dict[tuple[str, str], list[BatchLine]] = {}
        for line in self.rejected:
            groups.setdefault((line.file, line.problem), []).append(line)
        for (file, problem), lines in groups.items():
            shown = lines[: _SHOWN if any(line.detail for line in lines) else 1]
            for line in shown:
                more = f", and {len(lines) - 1:,} more such lines" if len(shown) == 1 < len(lines) else ""
                yield f"{line.where}: {problem}" + (f": {line.detail}" if line.detail else "") + more
            if 1 < len(shown) < len(lines):
                yield f"{file}: {len(lines) - len(shown):,} more such lines"


def import_answers(paths: Iterable[Path], results: Path = RESULTS) -> ImportReport:
    """Add the answers in some files to the recordings that were exported.

    Parameters
    ----------
    paths : iterable of pathlib.Path
        Files as `llm_batches.read_batches` describes them.
    results : pathlib.Path
        Folder of the recordings; each one that was begun by an export takes the answers whose ids it expects.

    Warns
    -----
    UserWarning
        If a file among the recordings is damaged, is none, or answers an unknown experiment; it is left as it is.
    """
    recordings = []
    wanted: dict[str, list[tuple[Recording, Question, int]]] = {}
    totals: Counter[str] = Counter()
    for recording in read_recordings(results.glob("*/*.jsonl")):
        try:
            questions = expected(recording.experiment, recording.settings)
        except ValueError as error:
            warnings.warn(f"left out: {recording.path}: {error}", stacklevel=2)
            continue
        recordings.append(recording)
        for key, (question, sample) in questions.items():
            wanted.setdefault(key, []).append((recording, question, sample))
            totals[_name(recording)] += 1
    report = ImportReport()
    seen: set[str] = set()
    changed: dict[str, Recording] = {}
    for line in read_batches(paths):
        if line.key and line.key not in wanted:
            line = line._replace(problem="unknown id: no exported request has it", detail=repr(line.key[:80]))
        elif line.key in seen:
            line = line._replace(problem="an id that was given before; the first answer counts", detail=line.key)
        if line.problem:
            report.rejected.append(line)
            continue
        seen.add(line.key)
        places = [place for place in wanted[line.key] if line.key not in place[0].rows]
        if not places:
            report.known += 1
            continue
        question = places[0][1]
        answer = read_answer(question.prompt, line.key, line.response)
        if answer.status == "invalid":
            report.invalid.append(f"{line.where}: {answer.reason}")
        report.added += 1
        for recording, question, sample in places:
            recording.rows[line.key] = Row(question.labels, sample, Stored(line.response, None))
            changed[_name(recording)] = recording
    for recording in changed.values():
        write_recording(recording)
    for recording in recordings:
        name = _name(recording)
        missing = sum(key not in recording.rows for key, places in wanted.items() if any(place[0] is recording for place in places))
        report.missing[name] = (missing, totals[name])
    return report


def _name(recording: Recording) -> str:
    return f"{recording.experiment}/{recording.path.stem}"
