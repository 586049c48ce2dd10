"""What a page depends on: an edit runs the chapters that reach what changed, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from small_book import stdout, write_files, write_notebook

from llmpp_book.runner.dependencies import Project, content_hash, read_source
from llmpp_book.runner.notebook import Paths, read
from llmpp_book.runner.plan import read_notebooks

FILES = {
    "requirements.lock": "numpy==2.0\n",
    "llmpp_core/__init__.py": '"""The methods."""\n',
    "llmpp_core/__init__.pyi": "from .space.cost import count as count\nfrom .llm.client import Client as Client\n",
    "llmpp_core/registry.tsv": "path\n",
    "llmpp_core/upstream.py": 'REGISTRY = Path(__file__).with_name("registry.tsv")\n',
    "llmpp_core/space/__init__.py": "",
    "llmpp_core/space/cost.py": 'def count():\n    """Say how much."""\n    return 1  # one\n',
    "llmpp_core/space/genes.py": "from .cost import count\n",
    "llmpp_core/llm/__init__.py": "",
    "llmpp_core/llm/client.py": "class Client:\n    def ask(self):\n        from llmpp_core.llm import prompts\n",
    "llmpp_core/llm/prompts.py": 'TEXTS = Path(__file__).with_name("templates")\n',
    "llmpp_core/llm/templates/role.txt": "You predict.\n",
    "llmpp_core/tasks.py": "x = 1\n",
    "llmpp_book/__init__.py": "",
    "llmpp_book/figures.py": "import llmpp_core.upstream as sources\n",
    "llmpp_book/studies/__init__.py": "",
    "llmpp_book/studies/truth.py": 'RESULTS = repository.RESULTS / "tfs"\n',
    "llmpp_book/studies/questions.py": 'from llmpp_core import Client\nRESULTS = repository.RESULTS / "llm"\n',
    "llmpp_book/runner/notebook.py": "import llmpp_core.tasks\n",
    "results/tfs/a.jsonl": "{}\n",
    "results/llm/b/c.jsonl": "{}\n",
    "results/scaling/d.json": "{}\n",
    "results/loose.csv": "a\n",
    "results/tfs/README.md": "A card.\n",
}
CELLS = {
    "face": "from llmpp_core import count",
    "genes": "import llmpp_core.space.genes\nfrom llmpp_book import figures",
    "truth": "from llmpp_book.studies import truth",
    "asks": "def f():\n    from llmpp_book.studies.questions import RESULTS",
    "scaling": "table = RESULTS.parent / 'scaling' / 'd.json'",
    "magic": "%matplotlib inline",
    "star": "from llmpp_core.space import *",
    "whole": "import llmpp_core as core\ncore.tasks",
    "shell": "!python -m llmpp_core.tasks",
    "starts": "run(['-m', 'llmpp_core.tasks'])",
}
ALL = set(CELLS)
OPAQUE = {"magic", "shell"}


def hashes(root: Path) -> dict[str, str]:
    notebooks = {stem: read(root / "notebooks" / f"{stem}.ipynb") for stem in CELLS}
    project = Project(root, notebooks)
    return {stem: content_hash(notebook, project, {}, {}) for stem, notebook in notebooks.items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_files(tmp_path, FILES)
    for stem, cell in CELLS.items():
        write_notebook(tmp_path / "notebooks", stem, cell)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new", "chapters"),
    [
        # Docstrings, comments and data cards run nothing again, wherever they are.
        ("llmpp_core/space/cost.py", "Say how much.", "Tell how much.", set()),
        ("llmpp_core/space/cost.py", '    """Say how much."""\n', "", set()),
        ("llmpp_core/space/cost.py", "# one", "# the first", set()),
        ("llmpp_core/__init__.py", "The methods.", "Methods.", set()),
        ("results/tfs/README.md", "A card.", "Another.", set()),
        # Code: through the public face, modules of the book, relative and lazy imports, and packages on the way.
        ("llmpp_core/space/cost.py", "return 1", "return 2", {"face", "genes", "star", "whole", *OPAQUE}),
        ("llmpp_core/space/genes.py", "count", "count as n", {"genes", "star", "whole", *OPAQUE}),
        ("llmpp_core/upstream.py", "REGISTRY", "TABLE", {"genes", "whole", *OPAQUE}),
        ("llmpp_core/llm/client.py", "ask(self)", "ask(self, x)", {"asks", "whole", *OPAQUE}),
        ("llmpp_core/llm/prompts.py", "TEXTS", "FOLDER", {"asks", "whole", *OPAQUE}),
        ("llmpp_core/tasks.py", "1", "2", {"whole", "starts", *OPAQUE}),
        ("llmpp_book/figures.py", "sources", "upstream", {"genes", *OPAQUE}),
        ("llmpp_book/studies/__init__.py", "", "x = 1", {"truth", "asks", *OPAQUE}),
        ("llmpp_core/__init__.py", "", "x = 1\n", {"face", "genes", "asks", "star", "whole", "starts", *OPAQUE}),
        # The face itself: a name that comes from elsewhere.
        ("llmpp_core/__init__.pyi", ".space.cost", ".tasks", {"face"}),
        # Files beside the code that names them; what makes pages; what everything depends on.
        ("llmpp_core/registry.tsv", "path", "name", {"genes", "whole", *OPAQUE}),
        ("llmpp_core/llm/templates/role.txt", "predict", "guess", {"asks", "whole", *OPAQUE}),
        ("llmpp_book/runner/notebook.py", "import", "x = 1\nimport", ALL),
        ("requirements.lock", "2.0", "2.1", ALL),
        # Results, by the folder that a study reads; what nobody names may be read by anybody.
        ("results/tfs/a.jsonl", "{}", "{1}", {"truth", *OPAQUE}),
        ("results/llm/b/c.jsonl", "{}", "{1}", {"asks", *OPAQUE}),
        ("results/scaling/d.json", "{}", "{1}", {"scaling", *OPAQUE}),
        ("results/loose.csv", "a", "b", ALL),
    ],
)
def test_an_edit_runs_what_reaches_it_and_nothing_else(file: str, old: str, new: str, chapters: set[str], root: Path) -> None:
    before = hashes(root)
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1) if old else new + text)
    after = hashes(root)
    assert {stem for stem in CELLS if after[stem] != before[stem]} == chapters


@pytest.mark.parametrize(
    "code", ["R.joinpath('tfs')", "Path(root, 'results', 'tfs')", "R / f'tfs/{x}.jsonl'", "path /= 'tfs'", "R / 'tfs/a'"]
)
def test_a_folder_is_named_however_a_path_is_put_together(code: str) -> None:
    assert "tfs" in read_source(code).paths


def test_new_results_count(root: Path) -> None:
    before = hashes(root)
    write_files(root, {"results/tfs/new.jsonl": ""})
    assert {stem for stem, value in hashes(root).items() if value != before[stem]} == {"truth", *OPAQUE}


def fingerprint(root: Path, cell: dict[str, Any] | None = None, **given: Any) -> str:
    path = write_notebook(root / "notebooks", "01_a", "1 + 1", needs=given.pop("needs", ()), outputs={0: [stdout("2\n")]})
    content = json.loads(path.read_text())
    content["cells"][2] |= cell or {}
    path.write_text(json.dumps(content))
    notebook = read(path)
    return content_hash(notebook, Project(root, {"01_a": notebook}), given.get("run", {}), given.get("parameters", {}))


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ({"cell": {"source": "1 + 2"}}, True),
        ({"cell": {"metadata": {"tags": ["hide-input"]}}}, True),
        ({"cell": {"metadata": {"mystnb": {"figure": {"name": "fig-a"}}}}}, True),
        ({"needs": ["latency"]}, True),
        ({"run": {"profile": "full"}}, True),
        ({"parameters": {"seed": 1}}, True),
        ({}, False),
        ({"cell": {"outputs": []}}, False),
        ({"cell": {"metadata": {"execution": {"iopub.status.busy": "2024-01-01"}, "collapsed": True}}}, False),
    ],
)
def test_the_notebook_itself_counts_but_not_its_outputs(change: dict[str, Any], counts: bool, root: Path) -> None:
    assert (fingerprint(root, **change) != fingerprint(root)) == counts


# --- the book itself ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def book() -> Project:
    return Project(Paths().root, read_notebooks(Paths()))


def test_chapters_reach_what_they_use(book: Project) -> None:
    reached = {stem[:2]: set(book.reached(stem)) for stem in read_notebooks(Paths())}
    assert "llmpp_core.space.search_space" in reached["01"]
    assert "llmpp_core.nets.training" in reached["08"] - reached["01"] - reached["07"]
    assert "llmpp_core/llm/templates/role.txt" in reached["04"] - reached["03"]
    assert {"llmpp_book.studies.example", "llmpp_core/registry.tsv"} <= reached["01"]
    folders = {number: {name.split("/")[1] for name in names if name.startswith("results/")} for number, names in reached.items()}
    for number, names, others in (
        ("04", {"llm", "tfs"}, {"search"}),
        ("07", {"latency_predictors.csv"}, {"llm", "tfs"}),
        ("10", {"search"}, set()),
    ):
        assert names <= folders[number]
        assert not others & folders[number]


def test_every_file_beside_the_code_is_named_by_some_of_it(book: Project) -> None:
    assert not [file for file, users in book.users.items() if not file.startswith("results/") and len(users) == len(book.sources)]


def test_whoever_reads_results_names_what() -> None:
    """Code that used `RESULTS` without a name behind it would read what it is not known to read. No page reaches the commands."""
    root = Paths().root
    assert not any("llmpp_book.commands" in page.read_text() for page in (root / "notebooks").glob("*.ipynb"))
    for package in ("llmpp_core", "llmpp_book"):
        for path in (root / package).rglob("*.py"):
            assert path.parent.name == "commands" or not re.search(r"repository\.RESULTS\b(?! / \")", path.read_text()), path
