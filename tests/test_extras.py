"""The methods need few packages; every other package that something imports is in an extra, and a command names the extra it lacks."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import llmpp_core
from llmpp_book.__main__ import extra_of

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Of the public names, those that need text or a supernet's text.
NEED_TASKS = {"Task", "load_task", "register", "evaluate"}


def imported(package: str) -> set[str]:
    """Return the names of foreign packages that a package imports anywhere."""
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return {name for name in found if name not in sys.stdlib_module_names and name not in ("llmpp_core", "llmpp_book")}


def declared(texts: list[str]) -> set[str]:
    """Return what importing the distributions named in requirements is called."""
    names = {re.sub(r"[-_.]+", "-", Requirement(text).name).lower() for text in texts}
    return {
        module
        for module, distributions in importlib.metadata.packages_distributions().items()
        if names & {re.sub(r"[-_.]+", "-", name).lower() for name in distributions}
    }


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("package", ["llmpp_core", "llmpp_book"])
def test_every_package_that_is_imported_is_declared(package: str) -> None:
    extras = PROJECT["optional-dependencies"]
    known = declared([text for texts in (PROJECT["dependencies"], *extras.values()) for text in texts])
    assert imported(package) - known - {"xllamacpp"} == set()


def test_the_methods_need_no_extra() -> None:
    foreign = sorted(imported("llmpp_core") | imported("llmpp_book"))
    blocked = [name for name in foreign if name not in declared(PROJECT["dependencies"])]
    assert {"openai", "tokenizers", "pooch", "distributed"} <= set(blocked)
    names = [name for name in llmpp_core.__all__ if name not in NEED_TASKS]
    code = f"import sys\nsys.modules |= dict.fromkeys({blocked})\nfrom llmpp_core import {', '.join(names)}"
    assert python(code).stderr == ""


def test_importing_the_package_loads_nothing_heavy() -> None:
    done = python("import sys, llmpp_core; llmpp_core.TINY; print({'torch', 'pandas', 'sklearn'} & set(sys.modules))")
    assert done.stdout == "set()\n"


def test_a_command_names_the_extra_that_it_lacks() -> None:
    brought = {"openai": "llm", "tokenizers": "tasks", "pooch": "tasks", "datasets": "wmt", "dask": "scale", "jupyter_client": "book"}
    assert {package: extra_of(package) for package in brought} == brought
    assert [extra_of(package) for package in ("numpy", "my_tasks", "llmpp_core")] == [None] * 3
    done = python("import sys; sys.modules['pydantic'] = None; from llmpp_book.__main__ import main; sys.exit(main(['run']))")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "pydantic is not installed, which this command needs: pip install 'llmpp[book]'\n"
