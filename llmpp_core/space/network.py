"""One network of a declared space."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


class Network(Mapping[str, Any]):
    """The choices of one network by name, those that it makes only; what is made per layer is a tuple.

    Frozen and hashable; equal to any other that says the same, in whatever order. ``network.width`` is ``network["width"]``.

    Parameters
    ----------
    values : mapping of str to values
        As `llmpp_core.space.declared.DeclaredSpace.read` gives them, which is how networks are made.
    """

    __slots__ = ("_hash", "_values")

    def __init__(self, values: Mapping[str, Any]):
        object.__setattr__(self, "_values", dict(values))
        object.__setattr__(self, "_hash", hash(tuple(sorted(self._values.items(), key=lambda item: item[0]))))

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        # Copying looks for methods before there are values.
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"this network has no {name!r}; it has {', '.join(self._values) if name[0] != '_' else 'choices'}")
        return self._values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name}: networks do not change")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return int(self._hash)

    def __eq__(self, other: object) -> bool:
        return self._values == other._values if isinstance(other, Network) else NotImplemented

    def __reduce__(self) -> Any:
        return Network, (self._values,)

    def __repr__(self) -> str:
        return f"Network({', '.join(self.to_prompt_lines())})"

    def to_prompt_lines(self) -> list[str]:
        """Return one line ``name: value`` per choice, the value as JSON."""
        return [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in self._values.items()]
