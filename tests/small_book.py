"""A book of a few small notebooks in a temporary folder, for the tests of the runner."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmpp_book.runner.notebook import Paths

PARAMETERS = 'profile = "smoke"\nseed = 0\nrate = 0.5'

CLAIMS = """
sections:
  - title: Claims
    kind: claims
    intro: What is claimed.
    claims:
      - id: quarter
        claim: The value is a quarter.
        source: abstract
        chapter: 01_first
        criterion: exactly
        checks: [{value: ch01_quarter, equals: 0.25}]
        evidence: "{ch01_quarter:.2f}"
"""


def stdout(text: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stdout", "text": text}


def glue(name: str, plain: str) -> dict[str, Any]:
    prefix = "application/papermill.record/"
    metadata = {"scrapbook": {"name": name, "mime_prefix": prefix}}
    return {"output_type": "display_data", "data": {f"{prefix}text/plain": plain}, "metadata": metadata}


def write_notebook(
    folder: Path, stem: str, *cells: str, needs: Sequence[str] = (), outputs: Mapping[int, list[dict[str, Any]]] | None = None
) -> Path:
    """Write a notebook: a title, a cell of parameters, then the given code cells, with stored outputs by their position."""
    content = [
        {"cell_type": "markdown", "id": "title", "metadata": {}, "source": f"# {stem}"},
        {"cell_type": "code", "id": "parameters", "metadata": {"tags": ["parameters"]}, "source": PARAMETERS},
    ]
    content += [{"cell_type": "code", "id": f"cell-{i}", "metadata": {}, "source": cell} for i, cell in enumerate(cells)]
    for i, cell in enumerate(content[1:], -1):
        cell |= {"outputs": (outputs or {}).get(i, []), "execution_count": None}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "llmpp": {"needs": list(needs)}}
    path = folder / f"{stem}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": content, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    return path


def write_files(root: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def small_book(root: Path) -> Paths:
    """Return the paths of a book without notebooks, with a module, results and a lock file of its own."""
    module = {"llmpp_core/__init__.py": "", "llmpp_core/space.py": "x = 1\n"}
    write_files(root, {**module, "results/runs.csv": "a,b\n", "requirements.lock": "numpy==2.0\n", "book/claims.yml": CLAIMS})
    return Paths(root)


def files(folder: Path) -> dict[str, bytes]:
    """Return everything below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
