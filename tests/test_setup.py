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
from llmpp_core import upstream as sources

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# torch's own packages on a machine with a GPU; a CPU build asks for none of them.
GPU_PACKAGE = re.compile(r"^(nvidia-|cuda-|triton)")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def direct() -> list[Requirement]:
    return [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"])]


def locked() -> dict[str, str]:
    """Return the version of each package in the lock; every line must pin one."""
    pins = {}
    for line in read("requirements.lock").splitlines():
        requirement = Requirement(line)
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], f"not pinned: {line}"
        assert requirement.name not in pins, f"pinned twice: {line}"
        pins[canonicalize_name(requirement.name)] = next(iter(requirement.specifier)).version
    return pins


@pytest.mark.parametrize("requirement", direct(), ids=str)
def test_lock_pins_every_direct_dependency(requirement: Requirement) -> None:
    assert locked()[canonicalize_name(requirement.name)] in requirement.specifier


def test_torch_is_pinned_exactly_and_alike() -> None:
    torch = next(requirement for requirement in direct() if requirement.name == "torch")
    assert str(torch.specifier) == f"=={locked()['torch']}"


def test_lock_is_complete() -> None:
    """All that the installed packages ask for, step by step, is in the lock at the installed version."""
    pins, seen = locked(), set()
    todo = [(canonicalize_name(r.name), frozenset(r.extras)) for r in direct()]
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        assert name in pins, f"{name} is not in requirements.lock; run make lock"
        distribution = importlib.metadata.distribution(name)
        # A build's local label, such as +cpu, is no other version.
        assert distribution.version.partition("+")[0] == pins[name], f"{name} is installed at another version than the lock's; run make"
        for requirement in map(Requirement, distribution.requires or ()):
            wanted = any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in (*extras, ""))
            if wanted and not (name == "torch" and GPU_PACKAGE.match(requirement.name)):
                todo.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))


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


# Examples in the documents.


def python_blocks(document: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", read(document), flags=re.M | re.S)


PAGES = ("README.md", "book/how_to_run.md", "book/local_models.md")
EXAMPLES = [(document, i) for document in PAGES for i in range(len(python_blocks(document)))]


@pytest.mark.parametrize(("document", "number"), EXAMPLES)
def test_examples_run_as_they_stand(document: str, number: int, tmp_path: Path) -> None:
    code = python_blocks(document)[number]
    environment = dict(os.environ)
    if "sources." not in code:
        # Answers are kept in the user's cache.
        environment["XDG_CACHE_HOME"] = str(tmp_path)
    elif reason := sources.missing(["tfs"], download=False):
        pytest.skip(reason)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


# The set-up itself, in a copy of the project with a stand-in for Python.


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def stand_in(folder: Path, body: str) -> str:
    """Write a script that takes Python's place: `body` decides by the arguments in "$*", else the real one runs."""
    script = folder / "python-stand-in"
    script.write_text(f'#!/bin/bash\n{body}\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    return str(script)


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True)


def test_old_python_is_refused_in_one_clear_line(checkout: Path) -> None:
    old = stand_in(checkout, f'[ "$1" = -c ] && exec {sys.executable} -c "import sys; sys.version_info = (3, 9, 1); $2"')
    done = make(checkout, ".venv/.installed", f"PYTHON={old}")
    assert done.returncode
    assert f"Python 3.11 or newer is needed, and {old} is 3.9" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("exit_code", [0, 1])
def test_only_a_whole_set_up_leaves_its_stamp(checkout: Path, exit_code: int) -> None:
    pip = f"mkdir -p .venv/bin; printf '#!/bin/sh\\nexit {exit_code}\\n' > .venv/bin/pip; chmod +x .venv/bin/pip; exit 0"
    python = stand_in(checkout, f'[ "$*" = "-m venv .venv" ] && {{ {pip}; }}')
    done = make(checkout, ".venv/.installed", f"PYTHON={python}")
    assert bool(done.returncode) == bool(exit_code)
    assert (checkout / ".venv/.installed").exists() == (exit_code == 0)


def test_set_up_is_done_once_and_again_when_the_lock_changes(checkout: Path) -> None:
    stamp = checkout / ".venv/.installed"
    stamp.parent.mkdir()
    stamp.touch()
    assert make(checkout, "-q", ".venv/.installed").returncode == 0
    later = stamp.stat().st_mtime + 10
    os.utime(checkout / "requirements.lock", (later, later))
    assert make(checkout, "-q", ".venv/.installed").returncode == 1
