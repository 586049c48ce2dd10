"""Notebooks as tests (nbval): run under the same conditions as by the runner, or skipped where their data is absent."""

from __future__ import annotations

import functools
import itertools
import os
from pathlib import Path

import nbval.kernel
import pytest
from jupyter_client.manager import KernelManager
from nbval.plugin import IPyNbCell

from llmpp_book.runner.worker import SURROUNDINGS, kernel_options, scratch_folder
from llmpp_core import upstream as sources


def pytest_configure(config: pytest.Config) -> None:
    """Give kernels the surroundings that the runner gives them."""
    if not (config.option.nbval or config.option.nbval_lax):
        return
    # The smoke profile is the same on every machine: on the CPU, its sums added up in one order.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.update(SURROUNDINGS)
    if os.environ.get("LLMPP_DATA_DIR"):
        # A kernel's working directory is that of its notebook.
        os.environ["LLMPP_DATA_DIR"] = str(Path(os.environ["LLMPP_DATA_DIR"]).resolve())
    # No start-up files of this user, no history that parallel kernels would lock.
    folder = scratch_folder()
    config.add_cleanup(folder.cleanup)
    os.environ["IPYTHONDIR"] = folder.name
    number = itertools.count()
    nbval.kernel.KernelManager = lambda kernel_name, **_: KernelManager(
        kernel_name=kernel_name, **kernel_options(folder.name, f"kernel-{next(number)}")
    )


@functools.cache
def _missing(needs: tuple[str, ...]) -> str | None:
    # Never a download: tests run without a network.
    return sources.missing(needs, download=False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a notebook's cells, before its kernel starts, where a group of files that it declares is absent."""
    if isinstance(item, IPyNbCell):
        reason = _missing(tuple(item.parent.nb.metadata.get("llmpp", {}).get("needs", ())))
        if reason:
            pytest.skip(f"{item.path.stem}: {reason}")
