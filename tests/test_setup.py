"""The lock, the environment, the Makefile and the documents say the same thing, and a set-up is either done or not."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import llmpp_core

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# torch's own packages on a machine with a GPU; a CPU build asks for none of them.
GPU_PACKAGE = re.compile(r"^(nvidia-|cuda-|triton)")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def direct() -> list[Requirement]:
    extras, found, todo = PROJECT["optional-dependencies"], [Requirement(text) for text in PROJECT["dependencies"]], ["test", "lab"]
    while todo:
        for requirement in map(Requirement, extras[todo.pop()]):
            if requirement.name == PROJECT["name"]:
                todo += requirement.extras
            else:
                found.append(requirement)
    return found


def locked() -> dict[str, str]:
    """Return the version of each package in the lock; every line must pin one."""
    pins = {}
    for line in read("requirements.lock").splitlines():
        requirement = Requirement(line)
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], f"not pinned: {line}"
        assert requirement.name not in pins, f"pinned twice: {line}"
        pins[canonicalize_name(requirement.name)] = next(iter(requirement.specifier)).version
    return pins


def test_lock_is_complete() -> None:
    """All that the installed packages ask for, step by step, is in the lock at the installed version."""
    pins, seen = locked(), set()
    todo = direct()
    while todo:
        asked = todo.pop()
        name, extras = canonicalize_name(asked.name), frozenset(asked.extras)
        assert pins.get(name, "none") in asked.specifier, f"{asked} is not in requirements.lock; run make lock"
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        distribution = importlib.metadata.distribution(name)
        # A build's local label, such as +cpu, is no other version.
        assert distribution.version.partition("+")[0] == pins[name], f"{name} is installed at another version than the lock's; run make"
        for requirement in map(Requirement, distribution.requires or ()):
            wanted = any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in (*extras, ""))
            if wanted and not (name == "torch" and GPU_PACKAGE.match(requirement.name)):
                todo.append(requirement)


def test_lock_suits_a_machine_without_a_gpu_and_any_index() -> None:
    assert not [name for name in locked() if GPU_PACKAGE.match(name)]
    assert "://" not in read("requirements.lock")
    assert "--" not in read("requirements.lock")


def test_environment_installs_the_lock() -> None:
    environment = yaml.safe_load(read("environment.yml"))
    assert environment["name"] == "llmpp"
    *conda, pip = environment["dependencies"]
    assert pip["pip"] == ["-r requirements.lock", "-e ."]
    # Nothing from conda but the interpreter, so no version can differ from the lock's.
    assert [re.split("[=<>]", package)[0] for package in conda] == ["python", "pip"]
    version = conda[0].partition("=")[2]
    assert version in Requirement(f"python{PROJECT['requires-python']}").specifier
    assert "-r requirements.lock" in read("Makefile")


def test_citation_names_the_software_and_the_paper() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["title"]
    assert citation["authors"] == [{"name": "The llmpp developers"}]
    assert citation["version"] == PROJECT["version"] == llmpp_core.__version__
    assert citation["license"] == PROJECT["license"] == "MIT"
    assert read("LICENSE").startswith("MIT License")
    (paper,) = citation["references"]
    assert paper["title"] in " ".join(read("README.md").split())
    assert [author["family-names"] for author in paper["authors"]] == ["Jawahar", "Abdul-Mageed", "Lakshmanan", "Ding"]


@pytest.mark.parametrize("document", ["README.md", "book/how_to_run.md", ".ci/run"])
def test_documents_name_only_targets_that_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), flags=re.M))
    named = set(re.findall(r"(?:`|\$ |exec |, | run )make (?:[A-Z]+=\S+ )*([a-z]+)", read(document)))
    assert named
    assert named <= targets


def test_readme_links_and_pictures_exist() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", read("README.md"))
    assert "book/figures/pipeline.svg" in targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_ci_runs_the_readme_test_command() -> None:
    assert "$ make test" in read("README.md")
    assert read(".ci/run").rstrip().endswith("exec make test")
    assert os.access(ROOT / ".ci/run", os.X_OK)


# One process for a page: what takes time is loading torch.
RUN = """import sys, re
for code in re.findall(r"^```python\\n(.*?)^```", sys.stdin.read(), flags=re.M | re.S):
    exec(compile(code, "the example that begins " + code.strip().splitlines()[-1], "exec"), {"__name__": "__main__"})
    print("ran")
"""


@pytest.mark.needs_data("tfs")
@pytest.mark.parametrize("document", ["README.md", "book/own_networks.md", "book/language_models.md", "book/questions.md"])
def test_examples_run_as_they_stand(document: str, tmp_path: Path) -> None:
    # Answers are kept in the user's cache.
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", RUN], input=read(document), capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ran\n") == len(re.findall(r"^```python$", read(document), flags=re.M)) > 0


# The set-up itself, in a copy of the project with a stand-in for Python.


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_only_a_whole_set_up_leaves_its_stamp_and_it_is_done_once(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    stamp, python = tmp_path / ".venv/.installed", tmp_path / "python-stand-in"

    def make(body: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run make with a stand-in for Python: `body` decides by the arguments in "$*", else the real one runs."""
        python.write_text(f'#!/bin/bash\n{body}\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        return subprocess.run(
            ["make", *words, ".venv/.installed", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    old = make(f'[ "$1" = -c ] && exec {sys.executable} -c "import sys; sys.version_info = (3, 9, 1); $2"')
    assert old.returncode
    assert f"Python 3.11 or newer is needed, and {python} is 3.9" in old.stderr
    assert not stamp.parent.exists()
    for code in (1, 0):
        pip = f"mkdir -p .venv/bin; printf '#!/bin/sh\\nexit {code}\\n' > .venv/bin/pip; chmod +x .venv/bin/pip; exit 0"
        done = make(f'[ "$*" = "-m venv .venv" ] && {{ {pip}; }}')
        assert (bool(done.returncode), stamp.exists()) == (bool(code), not code)
    assert make("", "-q").returncode == 0
    later = stamp.stat().st_mtime + 10
    os.utime(tmp_path / "requirements.lock", (later, later))
    assert make("", "-q").returncode == 1
