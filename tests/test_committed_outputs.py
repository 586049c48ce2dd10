"""The committed tables are those of the pages that `make book` computed, but for the last digits.

Committed outputs come from one processor; another adds up in another order. Whether a page comes out the same twice is for nbval to see.
"""

from __future__ import annotations

import json
import math
import re
from itertools import zip_longest
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output

from llmpp_book.runner.notebook import NOTICE

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)")


def checked(notebook: NotebookNode) -> list[str]:
    """Return the lines of the outputs that have to stay, those of the cells that are tagged so."""
    cells = [cell for cell in notebook.cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    return [line for cell in cells for line in json.dumps([cell.id, cell.outputs], indent=1, sort_keys=True).splitlines()]


def alike(one: str, other: str) -> bool:
    """Whether two lines are the same but for the last of many digits."""
    pairs = list(zip_longest(NUMBER.split(one), NUMBER.split(other)))
    texts, numbers = pairs[::2], pairs[1::2]
    return all(a == b for a, b in texts) and all(a and b and math.isclose(float(a), float(b), rel_tol=1e-9) for a, b in numbers)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_tables_are_those_of_the_page(path: Path) -> None:
    file = ROOT / "book" / "notebooks" / path.name
    if not file.exists():
        pytest.skip("there is no page yet; make book runs the notebooks")
    page = nbformat.read(file, as_version=4)
    if any(cell.get("id") == NOTICE for cell in page.cells):
        pytest.skip("the page shows stored outputs, since this notebook's files are absent or it was not run")
    lines = list(zip_longest(checked(nbformat.read(path, as_version=4)), checked(page), fillvalue=""))
    assert lines
    different = "\n".join(f"- {stored}\n+ {computed}" for stored, computed in lines if not alike(stored, computed))
    assert not different, f"{path.stem}: if the page is current and this is meant, make notebooks stores it\n{different}"


def test_a_digit_that_counts_is_seen_and_one_that_does_not_is_not() -> None:
    def notebook(number: str, tag: str = "nbval-check-output") -> NotebookNode:
        output = new_output("display_data", {"text/plain": number})
        return new_notebook(cells=[new_code_cell(id="a", outputs=[output], metadata={"tags": [tag]})])

    assert checked(notebook("1")) == checked(notebook("1"))
    assert checked(notebook("1")) != checked(notebook("2"))
    assert checked(notebook("1", "hide-cell")) == []
    for one, other in (("| 0.2 |", "| 0.19999999999999998 |"), ("123456.1234567890", "123456.1234567891"), ("a1.0", "a1")):
        assert alike(one, other)
    for one, other in (("| 0.12 |", "| 0.13 |"), ("0.12", "-0.12"), ("3e-10", "4e-10"), ("1 2", "1"), ("1", ""), ("a", "b")):
        assert not alike(one, other)
