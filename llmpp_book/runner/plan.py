"""What a run will do: which notebooks, with which parameters and data, all checked before anything starts."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmpp_book.errors import InputError
from llmpp_book.runner.dependencies import Project, content_hash
from llmpp_book.runner.notebook import Notebook, Paths, read, sha256, versions
from llmpp_book.runner.status import DONE, STORED, read_record
from llmpp_core import upstream
from llmpp_core.jobs import provenance

#: Profiles that `run` accepts; see the notebooks' parameters.
PROFILES = ("smoke", "full")


@dataclass(frozen=True)
class Job:
    """One notebook of a run."""

    notebook: Notebook
    #: Parameters that differ from the notebook's defaults, and what its page says of the run.
    parameters: dict[str, Any]
    run: dict[str, Any]
    #: Where each group of upstream files is, and why one cannot be had, or nothing.
    data: dict[str, str]
    missing: str
    #: Content hash, and whether its page already is what a run would give.
    content: str
    current: bool

    def command(self) -> str:
        """Return the command that runs this notebook again."""
        words = ["llmpp", "run", self.notebook.stem]
        for name, value in self.parameters.items():
            words += ["--profile", value] if name == "profile" else ["-p", f"{name}={value}"]
        return shlex.join(words)


def read_notebooks(paths: Paths) -> dict[str, Notebook]:
    """Read all committed notebooks, by stem in order; raises InputError where one needs what does not exist."""
    notebooks = {path.stem: read(path) for path in sorted(paths.notebooks.glob("*.ipynb"))}
    if not notebooks:
        raise InputError(f"there are no notebooks in {paths.notebooks}; install the repository with: pip install -e .")
    for stem, notebook in notebooks.items():
        for name in set(notebook.needs) - upstream.GROUPS.keys():
            raise InputError(f"{stem} needs {name!r}, which is unknown; known are {', '.join(upstream.GROUPS)}")
    return notebooks


def select(notebooks: Mapping[str, Notebook], names: Sequence[str]) -> list[str]:
    """Return the stems that names such as "03" or "03_baselines" mean, all for no names; raises InputError for an unknown one."""
    for name in names:
        if not any(name in (stem, stem.split("_")[0]) for stem in notebooks):
            raise InputError(f"unknown notebook {name!r}; known are {', '.join(notebooks)}")
    return [stem for stem in notebooks if not names or {stem, stem.split("_")[0]} & {*names}]


def check_parameters(notebooks: Iterable[Notebook], profile: str, given: Mapping[str, Any]) -> None:
    """Raise InputError where a notebook lacks a parameter or its value is not of the kind of its default; integers are floats too."""
    if profile not in PROFILES:
        raise InputError(f"unknown profile {profile!r}; allowed are {', '.join(PROFILES)}")
    if "profile" in given:
        raise InputError("the profile is not set with -p but with --profile")
    for notebook in notebooks:
        for name in [*given, *(["profile"] if profile != "smoke" else [])]:
            if name not in notebook.defaults:
                allowed = ", ".join(notebook.defaults) or "none"
                raise InputError(f"{notebook.stem} has no parameter {name!r}; its parameters are {allowed}")
        for name, value in given.items():
            default = notebook.defaults[name]
            if default is not None and type(value) is not type(default) and not (isinstance(default, float) and type(value) is int):
                kind = type(default).__name__
                raise InputError(f"{notebook.stem}: parameter {name} is {value!r}; expected {kind} as in its default {default!r}")


def find_data(groups: Iterable[str], say: Callable[[str], None]) -> tuple[dict[str, str], dict[str, str]]:
    """Return where each group of upstream files is, and why each that cannot be had cannot; downloads what it can.

    Raises DamagedFileError if a file is here but damaged.
    """
    found, absent = {}, {}
    unasked = "{} is neither in LLMPP_DATA_DIR nor in the cache, and its public address does not answer"
    lacking = [group for group in sorted(groups) if upstream.missing([group], download=False)]
    # Asked once: without a network each file would wait for its own time-out.
    online = bool(lacking) and upstream.online()
    for group in sorted(groups):
        if group in lacking and online:
            say(f"downloading {group}")
        reason = (upstream.missing([group]) if online else unasked.format(group)) if group in lacking else None
        if reason:
            absent[group] = reason
            continue
        folder = os.environ.get("LLMPP_DATA_DIR")
        files = [upstream.fetch(name, download=False) for name in upstream.names(group)]
        places = {"LLMPP_DATA_DIR" if folder and path.is_relative_to(folder) else "cache" for path in files}
        found[group] = " and ".join(sorted(places))
    return found, absent


def plan(
    paths: Paths, names: Sequence[str], profile: str, given: Mapping[str, Any], *, force: bool, say: Callable[[str], None]
) -> tuple[dict[str, Notebook], dict[str, Job]]:
    """Return all notebooks, and the jobs of the named ones; see `runner.run` for the parameters."""
    notebooks = read_notebooks(paths)
    chosen = [notebooks[stem] for stem in select(notebooks, names)]
    check_parameters(chosen, profile, given)
    found, absent = find_data({group for notebook in chosen for group in notebook.needs}, say)
    project = Project(paths.root, notebooks)
    device = "cpu" if profile == "smoke" or given.get("device") == "cpu" else provenance.gpu() or "cpu"
    jobs: dict[str, Job] = {}
    for notebook in chosen:
        as_floats = {name: float(value) for name, value in given.items() if isinstance(notebook.defaults[name], float)}
        values = {**notebook.defaults, "profile": profile, **given, **as_floats}
        parameters = {k: v for k, v in values.items() if k in notebook.defaults and v != notebook.defaults[k]}
        run = {"profile": profile, "seed": values.get("seed"), "device": device, "versions": versions()}
        content = content_hash(notebook, project, run, parameters)
        data = {group: found.get(group, STORED) for group in notebook.needs}
        missing = next((absent[group] for group in notebook.needs if group in absent), "")
        current = not force and is_current(paths, notebook.stem, content)
        jobs[notebook.stem] = Job(notebook, parameters, run, data, missing, content, current)
    return notebooks, jobs


def is_current(paths: Paths, stem: str, content: str) -> bool:
    """Return whether the page of a notebook is whole and of this content hash."""
    record, page = read_record(paths.record(stem)), paths.page(stem)
    return bool(record and record.state == DONE and record.content == content and page.is_file() and record.page == sha256(page))
