"""A page of the API for each room of `llmpp_core`, written from its modules before the build reads its table of contents."""

import ast
import pkgutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import llmpp_core

HEAD = """# API

The methods are in rooms, one page each; what most people need comes from `llmpp_core` itself:

```{eval-rst}
.. currentmodule:: llmpp_core

%s
```
"""


def setup(app: Sphinx) -> dict[str, Any]:
    folder = Path(app.srcdir) / "generated" / "api"
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"index": HEAD % "\n".join(f"- {public}" for public in _public())}
    for room in pkgutil.iter_modules(llmpp_core.__path__):
        module = f"llmpp_core.{room.name}"
        files = [f"{module}.{file.name}" for file in pkgutil.iter_modules([str(Path(llmpp_core.__path__[0]) / room.name)])]
        parts = [f"\n## {name.rpartition('.')[2]}\n\n{_automodule(name)}" for name in files]
        pages[room.name] = f"# {room.name}\n\n{_automodule(module)}" + "".join(parts)
    for name, text in pages.items():
        path = folder / f"{name}.md"
        # An unchanged page is not read again.
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.glob("*.md"):
        if path.stem not in pages:
            path.unlink()
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _public() -> list[str]:
    """Return a line of reStructuredText for each name of the public face."""
    face = ast.parse((Path(llmpp_core.__path__[0]) / "__init__.pyi").read_text(encoding="utf-8"))
    found = [(node.module, alias.name) for node in face.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    return [f":py:obj:`{name} <llmpp_core.{module}.{name}>`" for module, name in sorted(found, key=lambda pair: pair[1].lower())]


def _automodule(name: str) -> str:
    return f"```{{eval-rst}}\n.. automodule:: {name}\n```\n"
