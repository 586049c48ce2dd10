"""What each notebook's latest run recorded, and the page of the book that shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmpp_book.runner.notebook import Paths, write_atomically

DONE = "done"
STORED = "stored outputs"
NOT_RUN = "not run"
FAILED = "failed"


@dataclass
class Record:
    """How the page of a notebook came about.

    Parameters
    ----------
    state : str
        `DONE`: executed here; `STORED`: its data could not be had, the committed outputs are shown; `NOT_RUN`: not part of any
        run yet, the committed outputs are shown, or what it needs failed; `FAILED`.
    content : str
        Content hash of what was executed.
    page : str
        sha256 of the page that was written.
    seconds : float
        Time of the run.
    slowest : dict
        Number, seconds and first line of the slowest cell.
    data : dict
        Where each group of upstream files came from.
    reason : str
        Why, where the state is not `DONE`.
    run : dict
        What the page itself says: profile, seed, device, versions.
    machine : dict
        What `machine` returned.
    commit : str
        What `commit` returned.
    """

    state: str
    content: str = ""
    page: str = ""
    seconds: float = 0.0
    slowest: dict[str, Any] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    run: dict[str, Any] = field(default_factory=dict)
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
    return f"{{doc}}`/notebooks/{stem}`" if shown else stem


def list_table(caption: str, name: str, widths: Iterable[int], rows: Iterable[Iterable[str]]) -> str:
    """Return a MyST table whose first row is its header and whose cells are markdown on one line."""
    lines = [f":::{{list-table}} {caption}", f":name: {name}", ":header-rows: 1", f":widths: {' '.join(map(str, widths))}", ""]
    for row in rows:
        # Every other space, such as a no-break space, is meant.
        cells = [re.sub("[ \\n]+", " ", cell).strip(" ") or "–" for cell in row]
        lines += [f"{'  ' if i else '* '}- {cell}" for i, cell in enumerate(cells)]
    return "\n".join([*lines, ":::", ""])


def status_page(paths: Paths, records: Mapping[str, Record | None]) -> str:
    """Return the page that says how each notebook of the book was run.

    Parameters
    ----------
    paths : Paths
        The repository.
    records : mapping
        The latest record of every notebook, by stem.
    """
    rows = [["Chapter", "State", "Time", "Slowest cell", "Upstream data", "Profile, seed"]]
    for stem, record in records.items():
        known = record or Record(NOT_RUN)
        slowest = known.slowest
        rows.append(
            [
                link(paths, stem),
                known.state,
                duration(known.seconds).replace(" ", "\N{NO-BREAK SPACE}") if known.state == DONE else "",
                f"[{slowest['cell']}] {duration(slowest['seconds'])}: ``{slowest['line']}``" if slowest else "",
                ", ".join(f"{group} ({origin})" for group, origin in known.data.items()) or "none",
                ", ".join(str(known.run[name]) for name in ("profile", "seed") if name in known.run),
            ]
        )
    ran = {stem: record for stem, record in records.items() if record and record.state == DONE}
    lines = [
        "# How this book was computed",
        "",
        "Every chapter is a notebook. This page lists the latest run of each: where its time went, which upstream files it read",
        "and where they came from, and on what machine and from which state of the code it ran. A chapter marked *stored outputs*",
        "or *not run* shows the outputs that are stored with the project.",
        "",
        list_table("Latest run of each chapter.", "tbl-status", (24, 10, 10, 30, 26, 12), rows),
        f"One after the other, the runs made here took {duration(sum(record.seconds for record in ran.values()))}.",
        "",
        "## Machine, versions and commit",
        "",
    ]
    facts = {stem: {**r.machine, **r.run.get("versions", {}), "commit": r.commit} for stem, r in ran.items()}
    for key in dict.fromkeys(key for fact in facts.values() for key in fact):
        chapters: dict[str, list[str]] = {}
        for stem, fact in facts.items():
            chapters.setdefault(str(fact.get(key, "unknown")), []).append(stem)
        values = chapters if len(chapters) == 1 else {f"{value} ({', '.join(stems)})": stems for value, stems in chapters.items()}
        lines.append(f"- {key}: {'; '.join(values)}")
    if not facts:
        lines.append("No notebook ran here yet.")
    return "\n".join(lines) + "\n"
