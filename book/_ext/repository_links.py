"""Point the repository and launch buttons at the GitHub repository that this checkout came from.

A fork's book then links to the fork. A checkout without a GitHub remote has the address in `_config.yml`, and without any
address it has no such buttons.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config


def setup(app: Sphinx) -> dict[str, Any]:
    # Early: the theme reads these options when it sets itself up.
    app.connect("config-inited", set_buttons, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def set_buttons(app: Sphinx, config: Config) -> None:
    options = config.html_theme_options
    options["repository_url"] = address = remote_address(Path(app.srcdir)) or options.get("repository_url", "")
    options["use_repository_button"] = options["use_issues_button"] = bool(address)
    if not address:
        options["launch_buttons"] = {}


def remote_address(folder: Path) -> str | None:
    """Return the web address of the GitHub repository that a folder's checkout came from, if any."""
    command = ["git", "-C", str(folder), "remote", "get-url", "origin"]
    try:
        return github_address(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        return None


def github_address(remote: str) -> str | None:
    """Return the web address of a GitHub remote in any of git's forms; None for another host."""
    host = r"(?:(?:https?|git|ssh)://(?:[^@/]+@)?github\.com(?::\d+)?/|(?:[\w-]+@)?github\.com:/?)"
    found = re.fullmatch(host + r"([\w.-]+)/([\w.-]+?)(?:\.git)?/?", remote)
    return f"https://github.com/{found[1]}/{found[2]}" if found else None
