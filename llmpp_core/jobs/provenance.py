"""Where a measurement comes from: machine, processor, device and state of the code."""

from __future__ import annotations

import contextlib
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import joblib


@cache
def gpu() -> str | None:
    """Return the name of the device that torch would use beside the CPU, if there is one."""
    if not (shutil.which("nvidia-smi") or shutil.which("rocm-smi") or sys.platform == "darwin"):
        return None
    # Asked in a process of its own: torch takes seconds to load and keeps memory of the device.
    ask = (
        "import torch; cuda = torch.cuda.is_available(); "
        "print(torch.cuda.get_device_name() if cuda else 'Apple GPU' if torch.backends.mps.is_available() else '')"
    )
    answer = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def machine() -> dict[str, Any]:
    """Describe this machine by kind, without its name."""
    system = f"{platform.system()} {platform.mac_ver()[0]}".strip()
    with contextlib.suppress(OSError):
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    return {"system": system, "architecture": platform.machine(), "CPUs": joblib.cpu_count(), "GPU": gpu() or "none"}


def processor() -> str:
    """Return the name of the processor."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def commit(root: Path) -> str:
    """Return the commit of the checkout at `root`, and whether files differ from it; "unknown" outside a git checkout.

    Tables below results/ do not count: they are what a long measurement writes.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return "unknown"
        return git("rev-parse", "HEAD") + (" + uncommitted changes" if git("status", "--porcelain", "--", ".", ":!results") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
