"""Interactive figures: data that a browser can read, a still picture beside it, and a script that takes it."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llmpp_book import interactive
from llmpp_core import HAT_WMT, count_flops, count_parameters
from llmpp_core.space.search_space import TINY

STATIC = Path(__file__).parents[1] / "book" / "_static"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    bundles: list[dict[str, str]] = []
    monkeypatch.setattr(interactive, "display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def parts(bundle: dict[str, str]) -> tuple[str, str, Any]:
    """Return name, still and data of a figure, as a browser finds them."""
    found = re.fullmatch(
        r'<div class="lab" data-lab="(\w+)" role="group" aria-label="[^"]+">\n<div class="lab-still">(.+)</div>\n'
        r'<script type="application/json" class="lab-data">([^<]+)</script>\n</div>',
        bundle["text/html"],
        flags=re.S,
    )
    assert found, bundle["text/html"]
    return found[1], found[2], json.loads(found[3])


def search(space: Any, costly_from: int, gain: float) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    steps = [
        {
            "predictor": "supernet" if i >= costly_from else "distilled",
            "score": 90 + i if i < costly_from else -1.0 + gain,
            "supernet_score": -1.1 + gain + i / 100,
            "evaluations": {"supernet": 5},
            "best": space.sample(1, rng)[0].to_hat_dict(),
        }
        for i in range(4)
    ]
    return {"iterations": steps, "limit_ms": 13.1, "supernet_score": steps[-1]["supernet_score"]}


def show_all() -> None:
    rng = np.random.default_rng(0)
    archs = HAT_WMT.sample(12, rng)
    frame = pd.DataFrame({"architecture": archs, "bleu": 24 + np.arange(12) / 7, "flops": [count_flops(a, qkv_dim=512) for a in archs]})
    interactive.show_cost(HAT_WMT, archs[:3], archs[3])
    interactive.show_guess(frame[:10], frame[10:].assign(model=[24.1, 24.2], count=[24.3, 24.4]), HAT_WMT)
    hybrid, alone = (pd.DataFrame([search(TINY, at, g) for g in (0.0, 0.02, 0.05)]) for at in (2, 0))
    interactive.show_search(hybrid, alone, TINY, "distilled")
    row = {"switch": 2, "seeds": 2, "evaluations": 0.5, "seconds": np.nan, "bleu": (0.1, np.nan, np.nan), "loss": (0.001, -0.1, 0.2)}
    interactive.show_switch({"one": [{**row, "switch": 0}, row], "two": [row]}, 4)


def test_every_figure_has_its_parts_and_a_script(shown: list[dict[str, str]]) -> None:
    show_all()
    names = []
    for bundle in shown:
        name, still, _ = parts(bundle)
        names.append(name)
        assert "<svg" in still
        assert all(html.unescape(label).strip() for label in re.findall('aria-label="([^"]*)"', still))
        # Where no style sheet is, such as in an editor, colours have a value of their own.
        assert not re.search(r"var\([^,)]*\)", still)
        assert re.fullmatch(rf"<interactive figure {name}, data [0-9a-f]{{12}}>", bundle["text/plain"])
        assert f".{name} = (live, data, lab)" in (STATIC / f"lab-{name}.js").read_text()
    assert sorted(f"lab-{name}.js" for name in names) == sorted(path.name for path in STATIC.glob("lab-*.js"))


def test_the_same_data_give_the_same_page_and_other_data_another_digest(shown: list[dict[str, str]]) -> None:
    show_all()
    show_all()
    assert shown[:4] == shown[4:]
    interactive.show_cost(HAT_WMT, [], replace(HAT_WMT.largest(), decoder_embed_dim=512))
    assert shown[-1]["text/plain"] != shown[0]["text/plain"]


def test_text_cannot_end_the_element_that_holds_it_and_nan_is_refused(shown: list[dict[str, str]]) -> None:
    interactive.show("x", {"text": "</script><b>"}, "<svg/>", 'A "label" & more')
    assert parts(shown[0])[2] == {"text": "</script><b>"}
    with pytest.raises(ValueError, match="JSON compliant"):
        interactive.show("x", {"value": float("nan")}, "<svg/>", "label")


def test_the_numbers_are_those_that_were_given(shown: list[dict[str, str]]) -> None:
    show_all()
    costs, guess, steps, switch = (parts(bundle)[2] for bundle in shown)
    largest = HAT_WMT.largest()
    assert costs["largest"] == {"p": count_parameters(largest, HAT_WMT.qkv_dim), "f": count_flops(largest, qkv_dim=HAT_WMT.qkv_dim)}
    assert [test["model"] for test in guess["tests"]] == [24.1, 24.2]
    assert guess["range"][0] < min(d["bleu"] for d in guess["demos"])
    assert guess["range"][1] > max(d["bleu"] for d in guess["demos"])
    # All differences between the searches are equal, so that the first seed is as near the mean as any.
    assert (steps["seed"], [step["by"] for step in steps["steps"]]) == (0, ["c", "c", "s", "s"])
    assert switch["rounds"][0]["rows"][1] == {
        "switch": 2, "seeds": 2, "evaluations": 0.5, "seconds": None, "bleu": [0.1, None, None], "loss": [0.001, -0.1, 0.2],
    }  # fmt: skip
