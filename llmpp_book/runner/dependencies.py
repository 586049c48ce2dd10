"""What the outputs of a notebook depend on: its cells, its parameters, the lock, and the code and files that its cells reach.

Imports are followed through the project's syntax trees, lazy ones and the public face included; nothing is imported. Code
counts without its docstrings and comments. A data file of a package, or a file below ``results/``, counts where code is
reached that puts its name, or that of its folder, into a path; one that no code names counts for every notebook.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from llmpp_book.runner.notebook import VOLATILE, Notebook, sha256, text
from llmpp_core import upstream

PACKAGES = ("llmpp_core", "llmpp_book")
#: What makes a page out of any notebook: it counts for all, and what it imports for none.
MAKERS = {"llmpp_book.runner.notebook", "llmpp_book.runner.worker"}
# Calls that put texts into paths, beside the operator.
_MAKE_PATHS = ("with_name", "joinpath", "Path")


class Source(NamedTuple):
    """A piece of code: the digest of its syntax tree, the dotted names that it imports, and the names that it puts into paths."""

    digest: str
    imports: frozenset[str]
    paths: frozenset[str]


@cache
def read_source(code: str, package: str = "") -> Source:
    """Parse code; relative imports start from `package`. Raises SyntaxError."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [line for line in body if not (isinstance(line, ast.Expr) and _strings(line.value))]  # type: ignore[attr-defined]
    strings = _strings(*ast.walk(tree))
    # Modules may be started by their names.
    started = {string for string in strings if string.startswith(tuple(f"{name}." for name in PACKAGES))}
    imports = {target for _, target in _imports(tree, package)} | started
    paths = {part for string in strings if "results/" in string for part in string.split("/")}
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            paths |= _parts(node.right)
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Div):
            paths |= _parts(node.value)
        elif isinstance(node, ast.Call) and (getattr(node.func, "attr", None) or getattr(node.func, "id", "")) in _MAKE_PATHS:
            paths |= _parts(*node.args)
    return Source(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), frozenset(imports), frozenset(paths))


def _imports(tree: ast.AST, package: str) -> list[tuple[str, str]]:
    """Return the names that imports give, each with the dotted name of what it stands for."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.asname or alias.name, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found += [(alias.asname or alias.name, base if alias.name == "*" else f"{base}.{alias.name}") for alias in node.names]
    return found


def _parts(*nodes: ast.AST) -> set[str]:
    """Return the parts of the paths that texts stand for, f-strings among them."""
    texts = _strings(*(part for node in nodes for part in (node.values if isinstance(node, ast.JoinedStr) else [node])))
    return {part for text in texts for part in text.split("/")}


def _strings(*nodes: ast.AST) -> set[str]:
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


class Project:
    """Code, data files and results below a repository's root, and the code of its notebooks by stem, as they are now."""

    def __init__(self, root: Path, notebooks: Mapping[str, Notebook]):
        folders = [*((root / package) for package in PACKAGES), root / "results"]
        files = [
            path
            for folder in folders
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name[0] != "." and path.parent.name != "__pycache__"
        ]
        self.sources: dict[str, Source] = {}
        self.face: dict[str, str] = {}  # where each public name of a package comes from
        for path in files:
            name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            if path.suffix == ".py":
                package = name if path.stem == "__init__" else name.rpartition(".")[0]
                try:
                    self.sources[name] = read_source(path.read_text(encoding="utf-8"), package)
                except (SyntaxError, ValueError):  # half-edited: whoever imports it fails, and says where
                    self.sources[name] = Source(sha256(path), frozenset(), frozenset())
            elif path.suffix == ".pyi":
                listed = _imports(ast.parse(path.read_text(encoding="utf-8")), name)
                self.face |= {f"{name}.{public}": origin for public, origin in listed}
        for stem, notebook in notebooks.items():
            try:
                code = [text(cell["source"]) for cell in notebook.content["cells"] if cell["cell_type"] == "code"]
                self.sources[f"{stem}.ipynb"] = read_source("\n".join(code))
            except SyntaxError:  # such as a magic: nobody knows what it reaches
                self.sources[f"{stem}.ipynb"] = Source("", frozenset(PACKAGES), frozenset())
        self.users: dict[str, set[str]] = {}  # of each file that is not code
        lock = root / "requirements.lock"
        self.digests = {"lock": sha256(lock) if lock.is_file() else ""}
        for path in files:
            if path.suffix not in (".py", ".pyi", ".md"):
                # Below its package, or below results/.
                base = next(folder for folder in path.parents if (folder / "__init__.py").exists() or folder in folders)
                keys = set(path.relative_to(base).parts)
                file = path.relative_to(root).as_posix()
                self.digests[file] = sha256(path)
                self.users[file] = {name for name, source in self.sources.items() if source.paths & keys} or {*self.sources}

    def reached(self, stem: str) -> dict[str, str]:
        """Return the digests of the lock and of all modules and files that a notebook reaches."""
        found, waiting = {f"{stem}.ipynb", *(self.sources.keys() & MAKERS)}, [*self.sources[f"{stem}.ipynb"].imports]
        while waiting:
            new = self._modules(waiting.pop()) - found
            found |= new
            waiting += [name for module in new for name in self.sources[module].imports]
        opaque = not self.sources[f"{stem}.ipynb"].digest
        files = ["lock", *(file for file, users in self.users.items() if users & found or opaque)]
        return {name: self.sources[name].digest for name in found} | {file: self.digests[file] for file in files}

    def _modules(self, name: str) -> set[str]:
        """Return the modules that importing a dotted name runs; of a package as a whole, all that its user can get at."""
        parts = name.split(".")
        prefixes = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
        found = prefixes & self.sources.keys()
        if name in found:
            return found | {module for module in self.sources if module.startswith(name + ".")}
        return found.union(*(self._modules(self.face[prefix]) for prefix in prefixes if prefix in self.face))


def content_hash(notebook: Notebook, project: Project, run: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """Return the sha256 of everything that a notebook's outputs depend on; its stored outputs are no part of it.

    `run` is what the page says of its run, with the installed versions; `parameters` are those that differ from their defaults.
    """
    cells = [
        [cell["cell_type"], cell["id"], text(cell["source"]), {k: v for k, v in cell["metadata"].items() if k not in VOLATILE}]
        for cell in notebook.content["cells"]
    ]
    data = {name: upstream.registry()[name] for group in notebook.needs for name in upstream.names(group)}
    parts = [cells, notebook.content["metadata"].get("kernelspec"), notebook.needs, data, project.reached(notebook.stem), run, parameters]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
