"""What a run will do: which notebooks, in what order, with which parameters and data, all checked before anything starts."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from llmpp_book.errors import InputError
from llmpp_book.runner.console import Console
from llmpp_book.runner.notebook import Notebook, Paths, content_hash, project_state, read, sha256, versions
from llmpp_book.runner.status import DONE, STORED, read_record
from llmpp_core import upstream as sources
from llmpp_core.jobs import provenance

#: Profiles that `run` accepts; see the notebooks' parameters.
PROFILES = ("smoke", "full")


@dataclass(frozen=True)
class Job:
    """One notebook of a run.

    Parameters
    ----------
    notebook : Notebook
        What to run.
    parameters : dict
        Parameters that differ from the notebook's defaults.
    run : dict
        What its page says of the run.
    data : dict
        Where each group of upstream files is.
    missing : str
        Why its data cannot be had, or nothing.
    content : str
        Content hash.
    current : bool
        Whether its page already is what a run would give.
    """

    notebook: Notebook
    parameters: dict[str, Any]
    run: dict[str, Any]
    data: dict[str, str]
    missing: str
    content: str
    current: bool

    def command(self) -> str:
        """Return the command that runs this notebook again."""
        words = ["llmpp", "run", self.notebook.stem]
        for name, value in self.parameters.items():
            words += ["--profile", value] if name == "profile" else ["-p", f"{name}={value}"]
        return shlex.join(words)


def read_notebooks(paths: Paths) -> dict[str, Notebook]:
    """Read all committed notebooks, by stem in order; raises InputError where one declares what does not exist."""
    notebooks = {path.stem: read(path) for path in sorted(paths.notebooks.glob("*.ipynb"))}
    if not notebooks:
        raise InputError(f"there are no notebooks in {paths.notebooks}; install the repository with: pip install -e .")
    for stem, notebook in notebooks.items():
        for declared, allowed in ((notebook.needs, sources.GROUPS), (notebook.after, notebooks)):
            for name in declared:
                if name not in allowed:
                    raise InputError(f"{stem} needs {name!r}, which is unknown; known are {', '.join(allowed)}")
    try:
        TopologicalSorter({stem: notebook.after for stem, notebook in notebooks.items()}).prepare()
    except CycleError as error:
        raise InputError(f"notebooks wait for each other: {' after '.join(error.args[1])}") from None
    return notebooks


def select(notebooks: Mapping[str, Notebook], names: Sequence[str]) -> list[str]:
    """Return the stems that names such as "03" or "03_baselines" mean, all for no names; raises InputError for an unknown one."""
    chosen = []
    for name in names:
        found = [stem for stem in notebooks if name in (stem, stem.split("_")[0])]
        if not found:
            raise InputError(f"unknown notebook {name!r}; known are {', '.join(notebooks)}")
        chosen += found
    return [stem for stem in notebooks if stem in chosen or not names]


def check_parameters(notebooks: Iterable[Notebook], profile: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with the types of their defaults; raises InputError where a notebook lacks one or it does not fit."""
    if profile not in PROFILES:
        raise InputError(f"unknown profile {profile!r}; allowed are {', '.join(PROFILES)}")
    if "profile" in given:
        raise InputError("the profile is not set with -p but with --profile")
    checked = dict(given)
    for notebook in notebooks:
        for name in [*given, *(["profile"] if profile != "smoke" else [])]:
            if name not in notebook.defaults:
                allowed = ", ".join(notebook.defaults) or "none"
                raise InputError(f"{notebook.stem} has no parameter {name!r}; its parameters are {allowed}")
        for name, value in given.items():
            checked[name] = _fit(notebook, name, value)
    return checked


def _fit(notebook: Notebook, name: str, value: Any) -> Any:
    default = notebook.defaults[name]
    if isinstance(default, float) and not isinstance(value, bool):
        # YAML reads 1e-3 as text.
        with contextlib.suppress(TypeError, ValueError):
            return float(value)
    if default is None or type(value) is type(default):
        return value
    raise InputError(f"{notebook.stem}: parameter {name} is {value!r}; expected {type(default).__name__} as in its default {default!r}")


def find_data(groups: set[str], console: Console) -> tuple[dict[str, str], dict[str, str]]:
    """Say where each group of upstream files is, and why those that cannot be had cannot; downloads what it can.

    Raises
    ------
    DamagedFileError
        If a file is here but damaged.
    """
    folder = os.environ.get("LLMPP_DATA_DIR")
    found: dict[str, str] = {}
    absent: dict[str, str] = {}
    for group in sorted(groups):
        if sources.missing([group], download=False):
            absent[group] = f"{group} is neither in LLMPP_DATA_DIR nor in the cache, and its public address does not answer"
    # Asked once: without a network each file would wait for its own time-out.
    online = bool(absent) and sources.online()
    for group in list(absent) if online else []:
        console.line(f"downloading {group}")
        absent[group] = sources.missing([group]) or ""
    for group in sorted(groups - {group for group, reason in absent.items() if reason}):
        files = [sources.fetch(name, download=False) for name in sources.names(group)]
        here = [bool(folder) and path.is_relative_to(str(folder)) for path in files]
        found[group] = "LLMPP_DATA_DIR" if all(here) else "LLMPP_DATA_DIR and cache" if any(here) else "cache"
    return found, {group: reason for group, reason in absent.items() if reason}


def plan(
    paths: Paths,
    notebooks: Mapping[str, Notebook],
    chosen: Sequence[str],
    profile: str,
    given: Mapping[str, Any],
    *,
    force: bool,
    console: Console,
) -> dict[str, Job]:
    """Return the jobs of the chosen notebooks and of those that must run before them, in an order that can be run.

    See `runner.run` for the parameters.
    """
    needed: dict[str, Notebook] = {}
    waiting = list(chosen)
    while waiting:
        stem = waiting.pop()
        needed[stem] = notebooks[stem]
        waiting += [before for before in notebooks[stem].after if before not in needed]
    given = check_parameters([notebooks[stem] for stem in chosen], profile, given)
    check_parameters(needed.values(), profile, {})
    found, absent = find_data({group for notebook in needed.values() for group in notebook.needs}, console)
    state = project_state(paths)
    device = "cpu" if profile == "smoke" else provenance.gpu() or "cpu"
    jobs: dict[str, Job] = {}
    for stem in TopologicalSorter({stem: notebook.after for stem, notebook in sorted(needed.items())}).static_order():
        notebook = needed[stem]
        values = {**notebook.defaults, "profile": profile, **(given if stem in chosen else {})}
        parameters = {k: v for k, v in values.items() if k in notebook.defaults and v != notebook.defaults[k]}
        run = {"profile": profile, "seed": values.get("seed"), "device": device, "versions": versions()}
        reason = next((absent[group] for group in notebook.needs if group in absent), "")
        # A notebook that shows stored outputs did not run, so what comes after it may change once it does.
        after = {before: [jobs[before].content, jobs[before].current or not jobs[before].missing] for before in notebook.after}
        checksums = {name: sources.registry()[name] for group in notebook.needs for name in sources.names(group)}
        content = content_hash(notebook, state, run, parameters, checksums, after)
        data = {group: found.get(group, STORED) for group in notebook.needs}
        current = _is_current(paths, stem, content) and not (force and stem in chosen)
        jobs[stem] = Job(notebook, parameters, run, data, reason, content, current)
    return jobs


def _is_current(paths: Paths, stem: str, content: str) -> bool:
    record, page = read_record(paths.record(stem)), paths.page(stem)
    return bool(record and record.state == DONE and record.content == content and page.is_file() and record.page == sha256(page))
