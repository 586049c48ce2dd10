"""All networks of a small space, trained on scikit-learn's handwritten digits: the best is known, and so is every choice's regret."""

from __future__ import annotations

from itertools import product
from typing import Any

from llmpp_book import repository

#: Where the tables are, in a checkout of this project.
RESULTS = repository.RESULTS / "digits"


def networks() -> list[dict[str, Any]]:
    """Return all networks of the space."""
    return [
        {"blocks": n, "channels": channels, "kernel": kernel, "norm": norm, "activation": activation}
        for n in (1, 2, 3)
        for channels in product((4, 12), repeat=n)
        for kernel in product((1, 3, 5), repeat=n)
        for norm in ("batch", "none")
        for activation in ("relu", "tanh")
    ]
