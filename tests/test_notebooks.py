"""Every notebook is a chapter: the same frame, figures that can be read, no typed results, nothing private, all outputs.

`problems` yields a line for each. The last part plants one fault at a time in a faultless notebook and asks that it is found.
"""

from __future__ import annotations

import ast
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from llmpp_core import upstream

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
MAX_LINES = 25
#: As many columns of code as fit beside two sidebars on a screen of 1280 pixels.
MAX_COLUMNS = 76
#: The style: words and numbers of the answer, numbers in a paragraph (an interval belongs to its value), tables that are not folded.
ANSWER_WORDS, ANSWER_NUMBERS, PARAGRAPH_NUMBERS, OPEN_TABLES = 60, 3, 4, 3
NUMBER = re.compile(r"\{glue:text\}`[^`]+`")
INTERVAL = re.compile(rf"\((?:95 % interval )?{NUMBER.pattern} to {NUMBER.pattern}[^()]*\)")
TERMS = re.findall(r"^(?! |`|#|$)(.+)$", (ROOT / "book" / "glossary.md").read_text(), flags=re.M)
#: A misspelt tag is ignored in silence, and one that allows errors would let a traceback into the book.
TAGS = {"parameters", "hide-input", "hide-output", "hide-cell", "nbval-check-output", "nbval-ignore-output"}
#: Functions that leave a picture, and all that leave something to see or to refer to.
INTERACTIVE = {"show_cost", "show_guess", "show_search", "show_switch"}
DISPLAYS = {"show", *INTERACTIVE, "show_table", "display", "print", "glue"}

SECRETS = re.compile(
    r"\b(?:sk-|gh[pousr]_|github_pat_|hf_|AKIA|AIza|xox[abpr]-)[\w-]{12,}|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|(?i:api_?key|token|secret|password)[\"']?\s*[=:]\s*[\"'][^\"'\s]{8,}"
)
PATHS = re.compile(
    r"(?<![\w.:/-])/(?:home|Users|root|tmp|var|mnt|opt|work|workspace|private|usr)/\w|\b[A-Z]:\\\w|"
    + "|".join(re.escape(str(path)) for path in (ROOT, Path.home(), tempfile.gettempdir()) if len(str(path)) > 5)
)


def cells(nb: NotebookNode, kind: str) -> list[NotebookNode]:
    return [cell for cell in nb.cells if cell.cell_type == kind]


def outputs(nb: NotebookNode) -> list[NotebookNode]:
    return [output for cell in cells(nb, "code") for output in cell.outputs]


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def calls(cell: NotebookNode) -> set[str]:
    """Return the names of all functions that a code cell calls, without what they belong to."""
    called = [node.func for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
    return {getattr(node, "attr", getattr(node, "id", "")) for node in called}


def figure(cell: NotebookNode) -> tuple[str, str, str]:
    """Return name, caption and alternative text of the figure that a cell declares, empty where there is none."""
    declared = cell.metadata.get("mystnb", {})
    caption = declared.get("figure", {})
    return caption.get("name", ""), caption.get("caption", "").strip(), declared.get("image", {}).get("alt", "").strip()


def tables(nb: NotebookNode) -> list[str]:
    """Return the MyST source of all tables shown."""
    return [output.data["text/markdown"] for output in outputs(nb) if "text/markdown" in output.get("data", {})]


def table_captions(cell: NotebookNode) -> list[str]:
    """Return what is typed of the captions given to `show_table`; the values in an f-string are computed, so not that."""
    shown = [
        node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "show_table"
    ]
    captions = [part for node in shown for part in (*node.args[1:2], *(k.value for k in node.keywords if k.arg == "caption"))]
    return [
        part.value for caption in captions for part in ast.walk(caption) if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]


def labels(markdown: str) -> list[str]:
    """Return what references can point to: names of directives and targets before headings."""
    return [a or b for a, b in re.findall(r"^:(?:name|label): (\S+)|^\((\S+?)\)=$", markdown, flags=re.M)]


def prose(markdown: str) -> str:
    """Return markdown without code, math, roles and the targets of links, which may hold numbers."""
    for pattern in (
        r"^(`{3,}|~{3,}).*?^\1|^:{3,}\{math\}.*?^:{3,}|\$\$.*?\$\$",
        r"(?:\{[\w:-]+\})?(`+)[^`].*?\1|\$[^$\n]+\$",
        r"\]\([^)]*\)|<https?:[^>]*>",
    ):
        markdown = re.sub(pattern, " ", markdown, flags=re.M | re.S)
    return markdown


def shown_text(output: NotebookNode) -> str:
    parts = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if not k.startswith("image/"))]
    return "\n".join(map(str, parts))


def problems(stem: str, nb: NotebookNode) -> Iterator[str]:
    """Yield what is wrong with a chapter."""
    yield from frame(nb)
    yield from style(nb)
    yield from figures_and_words(nb)
    yield from stored_outputs(stem, nb)


def frame(nb: NotebookNode) -> Iterator[str]:
    try:
        nbformat.validate(nb)
    except nbformat.ValidationError as error:
        yield f"not a valid notebook: {error}"
    if nb.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3"
    for metadata in (nb.metadata, *(cell.metadata for cell in nb.cells)):
        yield from (f"{key} of a run was left in" for key in ("papermill", "execution", "widgets") if key in metadata)
    declared = nb.metadata.get("llmpp", {})
    # The runner adds what is known of the run that the stored outputs come from.
    if set(declared) - {"run"} != {"needs"} or not set(declared.get("needs", [])) <= set(upstream.GROUPS):
        yield f"metadata.llmpp must be needs, of {', '.join(upstream.GROUPS)}; found {dict(declared)}"
    opener = nb.cells[0].source if nb.cells[0].cell_type == "markdown" else ""
    words = "".join(rf"\n\n\*\*{word}\.\*\* \S.*" for word in ("Question", "Answer", "Needs", "Time"))
    if not re.match(r"(?:\(\S+\)=\n)?# \S[^\n]*" + words, opener, flags=re.S):
        yield "the first cell is not a title and the paragraphs Question, Answer, Needs and Time"
    titles = [title for cell in cells(nb, "markdown") for title in re.findall(r"^# .*", prose(cell.source), flags=re.M)]
    if len(titles) != 1:
        yield f"there must be one title, not {titles}"
    last = "\n".join(cell.source for cell in cells(nb, "markdown")).split("\n## ")[-1]
    if not re.match(r"What was found\n+\S", last):
        yield "the last section is not What was found"
    found = [cell.source for cell in cells(nb, "code") if "parameters" in tags(cell)]
    try:
        (source,) = found
        values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body}  # type: ignore[attr-defined]
        if values["profile"] != "smoke" or type(values["seed"]) is not int:
            yield f'plain parameters: expected profile = "smoke" and an integer seed, got {values}'
    except (AttributeError, KeyError, ValueError):
        yield f"expected one cell of plain parameters with profile and seed, got {found}"
    for cell in cells(nb, "code"):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if not 0 < len(lines) <= MAX_LINES:
            yield f"{len(lines)} lines of code, at most {MAX_LINES}: {cell.source[:60]!r}"
        yield from (f"unknown tag {tag}; known are {', '.join(sorted(TAGS))}" for tag in tags(cell) if tag not in TAGS)


def style(nb: NotebookNode) -> Iterator[str]:
    """Yield what makes a chapter hard to finish."""
    yield from columns(nb)
    answer = re.search(r"\*\*Answer\.\*\*(.*?)\n\n", nb.cells[0].source + "\n\n", flags=re.S)
    told = answer[1] if answer else ""
    words, numbers = len(NUMBER.sub("1", told).split()), len(NUMBER.findall(INTERVAL.sub("", told)))
    if words > ANSWER_WORDS or numbers > ANSWER_NUMBERS:
        yield f"the answer has {words} words and {numbers} numbers; at most {ANSWER_WORDS} and {ANSWER_NUMBERS}"
    for paragraph in (part for cell in cells(nb, "markdown") for part in re.split(r"\n\s*\n|\n(?=- |\d\. )", cell.source)):
        if (count := len(NUMBER.findall(INTERVAL.sub("", paragraph)))) > PARAGRAPH_NUMBERS:
            yield f"{count} numbers in a paragraph, at most {PARAGRAPH_NUMBERS}: {paragraph[:60]!r}"
    text = "\n\n".join(cell.source for cell in cells(nb, "markdown"))
    for link in re.findall(r"\{doc\}`([^`]*)`", text):
        if (named := re.fullmatch(r"(?:(.*) <)?(?:\.\./notebooks/)?(\d\d)_\w+>?", link)) and named[1] != f"chapter {int(named[2])}":
            yield f"a chapter is not called by its number: {link}"
    first = next((i for i, cell in enumerate(nb.cells) if cell.cell_type == "code" and calls(cell) & {"show", *INTERACTIVE}), len(nb.cells))
    if any(cell.cell_type == "markdown" and "\n## " in f"\n{cell.source}" for cell in nb.cells[:first]):
        yield "there is no picture between the answer and the first section"
    open_tables = [c for c in cells(nb, "code") if "show_table" in calls(c) and not {"hide-output", "hide-cell"} & set(tags(c))]
    if len(open_tables) > OPEN_TABLES:
        yield f"{len(open_tables)} tables are not folded, at most {OPEN_TABLES}"
    if not re.search(r"^:{3,}\{admonition\} Exercise\n", text, flags=re.M) or not re.search(
        r"^:{3,}\{dropdown\} Solution\n", text, flags=re.M
    ):
        yield "there is no exercise with a folded solution"
    yield from unlinked(text)


def unlinked(text: str) -> Iterator[str]:
    """Yield the terms of the glossary that a chapter uses and does not link; links are {term}`…`."""
    linked = {link.rpartition("<")[2].rstrip(">").lower() for link in re.findall(r"\{term\}`([^`]*)`", text)}
    plain = re.sub(r"^#.*", "", prose(text), flags=re.M)
    for term in TERMS:
        if term.lower() not in linked and re.search(rf"\b{re.escape(term)}s?\b", plain, flags=re.I if term.islower() else 0):
            yield f"a term of the glossary is not linked where it is used first: {term}"


def columns(nb: NotebookNode) -> Iterator[str]:
    for cell in cells(nb, "code"):
        if not {"hide-input", "hide-cell"} & set(tags(cell)):
            lines = [line for line in cell.source.splitlines() if len(line) > MAX_COLUMNS]
            yield from (f"{len(line)} columns of code, at most {MAX_COLUMNS}: {line[:60]!r}" for line in lines)


def figures_and_words(nb: NotebookNode) -> Iterator[str]:
    typed = [cell.source for cell in cells(nb, "markdown")]
    for cell in cells(nb, "code"):
        kinds = [kind for output in cell.outputs for kind in ("image/png", "text/markdown") if kind in output.get("data", {})]
        if len(kinds) > 1:
            yield f"more than one figure or table in a cell: {cell.source[:60]!r}"
        name, caption, alt = figure(cell)
        # An interactive figure names itself to who cannot see it.
        described = alt or calls(cell) & INTERACTIVE
        drawn = "image/png" in kinds or calls(cell) & {"show", *INTERACTIVE}
        if drawn and not (name.startswith("fig-") and caption and described):
            yield f"a figure lacks its name fig-…, caption or alternative text: {cell.source[:60]!r}"
        typed += [caption, *table_captions(cell)]
    names = [label for table in tables(nb) for label in labels(table)]
    yield from (f"a table's name does not start with tbl-: {label}" for label in names if label[:4] != "tbl-")
    if any("![](" in cell.source for cell in cells(nb, "markdown")):
        yield "an image in the text lacks its alternative text"
    for source in map(prose, typed):
        for found in re.finditer(r"(?<![\w.])\d*\.\d+|\b(?i:chapter) \d", source):
            yield f"typed, not computed or referred to: {source[max(0, found.start() - 30) : found.end() + 10]!r}"


def stored_outputs(stem: str, nb: NotebookNode) -> Iterator[str]:
    keys = Counter(output.metadata.scrapbook.name for output in outputs(nb) if "scrapbook" in output.get("metadata", {}))
    yield from (f"{key} is glued {count} times" for key, count in keys.items() if count > 1)
    yield from (f"{key} does not start with ch{stem[:2]}_" for key in keys if not key.startswith(f"ch{stem[:2]}_"))
    counts = [cell.execution_count for cell in cells(nb, "code")]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}"
    yield from (f"an error was stored: {output.ename}" for output in outputs(nb) if output.output_type == "error")
    yield from (f"stderr was stored: {output.text[:80]!r}" for output in outputs(nb) if output.get("name") == "stderr")
    yield from (f"no output is stored of {cell.source[:60]!r}" for cell in cells(nb, "code") if calls(cell) & DISPLAYS and not cell.outputs)
    if tables(nb) and not any("nbval-check-output" in tags(cell) for cell in cells(nb, "code")):
        yield "no table is tagged nbval-check-output"
    for shown in (*(cell.source for cell in nb.cells), *map(shown_text, outputs(nb))):
        yield from (f"a path of one machine: {found[0]!r}" for found in PATHS.finditer(shown))
        yield from ("something that looks like a key" for _ in SECRETS.finditer(shown))


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_notebook(stem: str) -> None:
    assert list(problems(stem, nbformat.read(NOTEBOOKS[stem], as_version=4))) == []


def test_contents_list_every_notebook() -> None:
    parts = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())["parts"]
    listed = [chapter["file"] for part in parts for chapter in part["chapters"]]
    assert sorted(file for file in listed if file.startswith("notebooks/")) == [f"notebooks/{stem}" for stem in NOTEBOOKS]


def test_labels_are_unique_in_the_book() -> None:
    found: list[str] = []
    for path in NOTEBOOKS.values():
        nb = nbformat.read(path, as_version=4)
        found += [name for cell in cells(nb, "code") if (name := figure(cell)[0])]
        found += labels("\n".join([*tables(nb), *(cell.source for cell in cells(nb, "markdown"))]))
    found += [label for page in (ROOT / "book").glob("*.md") for label in labels(page.read_text())]
    assert [label for label, count in Counter(found).items() if count > 1] == []


# The checks themselves.


def faultless() -> NotebookNode:
    opener = "# Title\n\n**Question.** Why?\n\n**Answer.** {glue:text}`ch99_x:.2f`.\n\n**Needs.** Nothing.\n\n**Time.** Seconds."
    picture = new_output("display_data", {"image/png": "aGk=", "text/plain": "<figure, data 0>"})
    table = new_output("display_data", {"text/markdown": ":::{table} See it.\n:name: tbl-x\n\n| a |\n| --- |\n| 0.5 |\n:::"})
    glued = new_output("display_data", {"application/papermill.record/text/plain": "0.5"}, metadata={"scrapbook": {"name": "ch99_x"}})
    mystnb = {"figure": {"name": "fig-x", "caption": "See it."}, "image": {"alt": "A line."}}
    code: list[dict[str, Any]] = [
        {"source": "import math"},
        {"source": 'profile = "smoke"\nseed = 0', "metadata": {"tags": ["parameters"]}},
        {"source": "figures.show(fig)", "metadata": {"tags": ["hide-input"], "mystnb": mystnb}, "outputs": [picture]},
        {
            "source": "figures.show_table(t, f'See {0.5}.', 'tbl-x')",
            "metadata": {"tags": ["nbval-check-output"]},
            "outputs": [table, glued],
        },
    ]
    run = [new_code_cell(execution_count=i, **cell) for i, cell in enumerate(code, 1)]
    exercise = "::::{admonition} Exercise\n:class: exercise\nHow?\n\n:::{dropdown} Solution\nSo.\n:::\n::::"
    text = "Settings are `0.3`, $x = 0.1$, see {numref}`tbl-x`, {doc}`chapter 2 <02_x>` and [this](https://x.org/1.2)."
    text += f"\n\n{exercise}\n\n## What was found\n\nIt is so."
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "llmpp": {"needs": ["tfs"]}}
    return new_notebook(cells=[new_markdown_cell(opener), *run, new_markdown_cell(text)], metadata=metadata)


@pytest.mark.parametrize(
    ("report", "path", "value"),
    [
        ("kernel", "metadata.kernelspec.name", "julia"),
        ("execution of a run", "cells.1.metadata.execution", {}),
        ("must be needs", "metadata.llmpp.needs", ["tsf"]),
        ("must be needs", "metadata.llmpp.after", []),
        ("the first cell", "cells.0.source", "# Title\n\n**Question.** Why?"),
        ("one title", "cells.5.source+", "\n\n# Another title"),
        ("What was found", "cells.5.source+", "\n\n## More\n\nText."),
        ("plain parameters", "cells.1.metadata.tags", ["parameters"]),
        ("plain parameters", "cells.2.source+", "\nn = seed + 1"),
        ("plain parameters", "cells.2.source", 'profile = "full"\nseed = 0'),
        ("a figure lacks", "cells.3.metadata.mystnb.image.alt", " "),
        ("a figure lacks", "cells.3.metadata.mystnb.figure.caption", ""),
        ("more than one figure", "cells.4.outputs+", faultless().cells[3].outputs),
        ("alternative text", "cells.5.source+", "\n\n![](x.png)"),
        ("typed", "cells.5.source+", " The error is .18."),
        ("typed", "cells.5.source+", " See chapter 2."),
        ("typed", "cells.3.metadata.mystnb.figure.caption", "It falls to 0.18."),
        ("typed", "cells.4.source", "figures.show_table(t, f'The best is 0.18, not {x}.', 'tbl-x')"),
        ("does not start with ch99_", "cells.4.outputs.1.metadata.scrapbook.name", "ch98_x"),
        ("is glued 2 times", "cells.4.outputs+", faultless().cells[4].outputs[1:]),
        ("execution counts", "cells.4.execution_count", 7),
        ("no output is stored", "cells.3.outputs", []),
        ("an error was stored", "cells.1.outputs", [new_output("error", ename="ValueError", evalue="", traceback=[])]),
        ("stderr was stored", "cells.1.outputs", [new_output("stream", name="stderr", text="Warning")]),
        ("nbval-check-output", "cells.4.metadata.tags", []),
        ("unknown tag", "cells.1.metadata.tags", ["skip-execution"]),
        ("a path of one machine", "cells.1.source", f"open({str(ROOT / 'x')!r})"),
        ("a path of one machine", "cells.1.outputs", [new_output("stream", text="saved to /home/somebody/x")]),
        ("looks like a key", "cells.1.source", "key = 's" + "k-" + 20 * "a" + "'"),
        ("lines of code", "cells.1.source", "x = 1\n" * 26),
        ("columns of code", "cells.1.source", f"x = {'a' * 80!r}"),
        ("a figure lacks", "cells.3", new_code_cell("interactive.show_cost()", execution_count=3)),
        ("the answer has 67 words", "cells.0.source", faultless().cells[0].source.replace("Answer.**", "Answer.**" + 66 * " so")),
        ("and 5 numbers", "cells.0.source", faultless().cells[0].source.replace("Answer.**", "Answer.**" + 4 * " {glue:text}`ch99_x:.2f`")),
        (
            "5 numbers in a paragraph",
            "cells.5.source+",
            "\n\n- " + 5 * "{glue:text}`ch99_x:.2f` ({glue:text}`ch99_x` to {glue:text}`ch99_x`) ",
        ),
        ("called by its number", "cells.5.source+", "\n\nSee {doc}`02_x`."),
        ("called by its number", "cells.5.source+", "\n\nSee {doc}`chapter 3 <02_x>`."),
        ("no picture between", "cells.1", new_markdown_cell("## First")),
        ("5 tables are not folded", "cells+", [new_code_cell("figures.show_table()") for _ in range(4)]),
        ("no exercise", "cells.5.source", "## What was found\n\nIt is so."),
        ("not linked where it is used first: supernet", "cells.5.source+", "\n\nSupernets."),
        ("", "metadata.title", "nothing is wrong"),
    ],
)
def test_a_planted_fault_is_found_and_nothing_else(report: str, path: str, value: Any) -> None:
    """The value at a dotted path is replaced, or appended to where the path ends in "+"."""
    nb: Any = faultless()
    node = nb
    *way, last = [int(key) if key.isdigit() else key for key in path.rstrip("+").split(".")]
    for key in way:
        node = node[key]
    node[last] = node[last] + value if path.endswith("+") else value
    found = list(problems("99_x", nb))
    assert bool(found) == bool(report)
    assert not report or any(report in problem for problem in found), found
