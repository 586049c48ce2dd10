"""What each notebook's latest run recorded, and the page of the book that shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmpp_book.runner.notebook import Paths, write_atomically

#: States of a page: executed here; its data could not be had, so the committed outputs are shown; not part of any run yet.
DONE, STORED, NOT_RUN, FAILED = "done", "stored outputs", "not run", "failed"


@dataclass
class Record:
    """How the page of a notebook came about."""

    state: str
    #: Content hash of what was executed, and sha256 of the page that was written.
    content: str = ""
    page: str = ""
    #: Time of the run; number, seconds and first line of its slowest cell.
    seconds: float = 0.0
    slowest: dict[str, Any] = field(default_factory=dict)
    #: Where each group of upstream files came from.
    data: dict[str, str] = field(default_factory=dict)
    #: Why, where the state is not `DONE`.
    reason: str = ""
    #: What the page itself says: profile, seed, device, versions.
    run: dict[str, Any] = field(default_factory=dict)
    #: What `provenance.machine` and `provenance.commit` returned.
    machine: dict[str, Any] = field(default_factory=dict)
    commit: str = ""


def read_record(path: Path) -> Record | None:
    """Read a record; None if there is none or it cannot be read, so that its notebook runs again."""
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_record(path: Path, record: Record) -> None:
    """Write a record."""
    write_atomically(path, json.dumps(asdict(record), indent=1) + "\n")


def duration(seconds: float) -> str:
    """Write a time for readers."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def link(paths: Paths, stem: str) -> str:
    """Return a link to a chapter if the book shows it, else its name."""
    contents = paths.root / "book" / "_toc.yml"
    shown = paths.page(stem).is_file() and contents.is_file() and f"notebooks/{stem}\n" in contents.read_text(encoding="utf-8") + "\n"
    title = f"chapter {int(stem[:2])}" if stem[:2].isdigit() else stem
    return f"{{doc}}`{title} </notebooks/{stem}>`" if shown else stem


def list_table(caption: str, name: str, widths: Iterable[int], rows: Iterable[Iterable[str]]) -> str:
    """Return a MyST table whose first row is its header and whose cells are markdown on one line."""
    lines = [f":::{{list-table}} {caption}", f":name: {name}", ":header-rows: 1", f":widths: {' '.join(map(str, widths))}", ""]
    for row in rows:
        # Every other space, such as a no-break space, is meant.
        cells = [re.sub("[ \\n]+", " ", cell).strip(" ") or "–" for cell in row]
        lines += [f"{'  ' if i else '* '}- {cell}" for i, cell in enumerate(cells)]
    return "\n".join([*lines, ":::", ""])


_STATUS = """# How this book was computed

Every chapter is a notebook. This page lists the latest run of each: where its time went, which upstream files it read
and where they came from, and on what machine and from which state of the code it ran. A chapter marked *stored outputs*
or *not run* shows the outputs that are stored with the project.

{table}
One after the other, the runs made here took {total}.

## Machine, versions and commit

{facts}
"""


def status_page(paths: Paths, records: Mapping[str, Record | None]) -> str:
    """Return the page that says how each notebook was run, from the latest record of every notebook, by stem."""
    rows = [["Chapter", "State", "Time", "Slowest cell", "Upstream data", "Profile, seed"]]
    for stem, found in records.items():
        record = found or Record(NOT_RUN)
        time = duration(record.seconds).replace(" ", "\N{NO-BREAK SPACE}") if record.state == DONE else ""
        slow = record.slowest
        slowest = f"[{slow['cell']}] {duration(slow['seconds'])}: ``{slow['line']}``" if slow else ""
        data = ", ".join(f"{group} ({origin})" for group, origin in record.data.items()) or "none"
        run = ", ".join(str(record.run[name]) for name in ("profile", "seed") if name in record.run)
        rows.append([link(paths, stem), record.state, time, slowest, data, run])
    ran = {stem: record for stem, record in records.items() if record and record.state == DONE}
    facts = {stem: {**r.machine, **r.run.get("versions", {}), "commit": r.commit} for stem, r in ran.items()}
    lines = []
    for key in dict.fromkeys(key for fact in facts.values() for key in fact):
        chapters: dict[str, list[str]] = {}
        for stem, fact in facts.items():
            chapters.setdefault(str(fact.get(key, "unknown")), []).append(stem)
        values = [value if len(chapters) == 1 else f"{value} ({', '.join(stems)})" for value, stems in chapters.items()]
        lines.append(f"- {key}: {'; '.join(values)}")
    return _STATUS.format(
        table=list_table("Latest run of each chapter.", "tbl-status", (24, 10, 10, 30, 26, 12), rows),
        total=duration(sum(record.seconds for record in ran.values())),
        facts="\n".join(lines) or "No notebook ran here yet.",
    )
