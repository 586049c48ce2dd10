"""Point the repository and launch buttons at the GitHub repository that this checkout came from.

A fork's book then links to the fork. A checkout without a GitHub remote keeps the address in `_config.yml`.
"""

import re
import subprocess
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config


def setup(app: Sphinx) -> dict[str, Any]:
    # Early: the theme reads these options when it sets itself up.
    app.connect("config-inited", use_remote, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def use_remote(app: Sphinx, config: Config) -> None:
    try:
        command = ["git", "-C", str(app.srcdir), "remote", "get-url", "origin"]
        remote = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return
    address = github_address(remote)
    if address:
        config.html_theme_options["repository_url"] = address


def github_address(remote: str) -> str | None:
    """Return the web address of a GitHub remote in any of git's forms; None for another host."""
    found = re.fullmatch(r"(?:https://(?:[^@/]+@)?|ssh://git@|git@)github\.com[/:]([\w.-]+)/([\w.-]+?)(?:\.git)?/?", remote)
    return f"https://github.com/{found[1]}/{found[2]}" if found else None
