"""What the package takes from its surroundings: another kernel, an editor's backend, long folders, no home, a launch that was none.

Each was reported of other programs. Those that concern the runner are in `test_runner`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_book import write_notebook

from llmpp_core import upstream
from llmpp_core.jobs import files
from llmpp_core.nets.distributed import processes
from llmpp_core.text.corpora import find_wmt

ROOT = Path(__file__).resolve().parents[1]


def test_notebook_tests_run_in_this_interpreter_below_a_long_folder(tmp_path: Path) -> None:
    """A site's kernel of the same name is in front of this one's, an editor's backend is set, and sockets are files with long paths."""
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/bin/false", "{connection_file}"], "display_name": "site", "language": "python"}))
    (long := tmp_path / ("x" * 90)).mkdir()
    notebook = write_notebook(tmp_path, "01_a", "import matplotlib.pyplot as plt\nfigure = plt.figure()\nNone")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "--confcutdir", str(ROOT)]
    words += ["-c", str(ROOT / "pyproject.toml"), "-p", "conftest", "--nbval-lax", str(notebook)]
    odd = {"JUPYTER_PATH": str(tmp_path / "jupyter"), "MPLBACKEND": "module://backend_interagg", "TMPDIR": str(long)}
    odd["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(words, cwd=ROOT, env=os.environ | odd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_user_without_a_home_needs_none_where_the_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(name: str) -> str:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr(files.platformdirs, "user_cache_path", homeless)
    monkeypatch.delenv("LLMPP_DATA_DIR", raising=False)
    name = upstream.names("tfs")[0]
    fetches = (lambda: upstream.fetch(name, download=False), lambda: upstream.fetch(name))
    for ask in (files.cache_dir, *fetches, lambda: find_wmt("wmt14.en-de", "train")):
        with pytest.raises(files.SourceError, match=r"no cache folder, .*; set HOME, XDG_CACHE_HOME or LLMPP_DATA_DIR"):
            ask()
    assert "set HOME" in (upstream.missing(["tfs"], download=False) or "")
    (tmp_path / "wmt14.en-de").mkdir()
    for language in ("en", "de"):
        (tmp_path / "wmt14.en-de" / f"train.{language}").write_text("a b\n")
    monkeypatch.setenv("LLMPP_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(upstream, "_check", lambda path, sha256: None)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("")
    assert upstream.fetch(name) == tmp_path / name
    assert find_wmt("wmt14.en-de", "train")


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "2", "RANK": "0"}, {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}])
def test_variables_of_a_launch_that_was_none_are_named(variables: dict[str, str], tmp_path: Path) -> None:
    words = ["train", "synthetic", "--supernet", "HAT", "--checkpoint", str(tmp_path / "c"), "--minutes", "0.01"]
    environment = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", "MASTER_ADDR")} | variables
    done = subprocess.run(
        [sys.executable, "-m", "llmpp_book", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(", ".join(f"{name}={value}" for name, value in variables.items()))
    assert "unset these variables, or start with: accelerate launch" in line


def test_without_such_variables_a_process_is_the_first_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert processes().num_processes == 1
