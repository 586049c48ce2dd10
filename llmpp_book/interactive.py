"""Interactive figures: a chapter's numbers as JSON, a still picture of them, and a script of the book that brings them to life.

Each function shows one figure as HTML. The scripts and the style are `lab*.js` and `lab.css` in ``book/_static``; where they do not
run (scripts off, on paper, in an editor) the still picture and its text are what is seen. Floats are rounded, so that two machines
write the same page.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import display

from llmpp_core.space.architecture import SPAN_LAYERS, Architecture
from llmpp_core.space.cost import count_flops, count_parameters
from llmpp_core.space.search_space import SearchSpace

#: Colours of the stills where no style sheet is: encoder and supernet, decoder and cheap predictor, what is soft.
BLUE, ORANGE, SOFT = "var(--blue,#0173b2)", "var(--orange,#c85200)", "var(--soft,#555)"


def show(name: str, data: Mapping[str, Any], still: str, label: str) -> None:
    """Display an interactive figure with the digest of its data as its plain text.

    Parameters
    ----------
    name : str
        What the figure's script is registered as, such as ``guess`` of ``lab-guess.js``.
    data : mapping
        What the script gets, of JSON's types. Raises ValueError where a number is nan or infinite.
    still : str
        HTML shown where the script does not run.
    label : str
        What the figure is, for readers who hear it.
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    # "<" must not end the element that holds the data.
    fragment = (
        f'<div class="lab" data-lab="{name}" role="group" aria-label="{html.escape(label)}">\n<div class="lab-still">{still}</div>\n'
        f'<script type="application/json" class="lab-data">{text.replace("<", chr(92) + "u003c")}</script>\n</div>'
    )
    plain = f"<interactive figure {name}, data {hashlib.sha256(text.encode()).hexdigest()[:12]}>"
    display({"text/html": fragment, "text/plain": plain}, raw=True)


def show_cost(space: SearchSpace, archs: Sequence[Architecture], start: Architecture, length: int = 30) -> None:
    """Show sliders for the choices of an architecture, and what they cost.

    Parameters
    ----------
    space : SearchSpace
        What may be chosen.
    archs : sequence of Architecture
        The script computes their costs by its own formula first, and stays off where one differs from `count_parameters` or `count_flops`.
    start : Architecture
        Where the sliders stand at first.
    length : int
        Number of source and of target tokens.
    """
    ends = {"smallest": space.smallest(), "largest": space.largest()}

    def costs(arch: Architecture) -> tuple[int, int]:
        return count_parameters(arch, space.qkv_dim), count_flops(arch, length=length, qkv_dim=space.qkv_dim)

    counts = {name: dict(zip("pf", costs(arch), strict=True)) for name, arch in ends.items()}
    checks = [[_short(a), *costs(a)] for a in (*ends.values(), start, *archs)]
    data = {"space": _space(space), "qkv": space.qkv_dim, "length": length, "start": _short(start), "checks": checks, **counts}
    rows = []
    for i, (name, arch) in enumerate(
        {"smallest of the space": ends["smallest"], "where the sliders start": start, "largest": ends["largest"]}.items()
    ):
        (parameters, flops), y = costs(arch), 14 + 36 * i
        width = 210 * parameters / counts["largest"]["p"]
        told = f"{parameters / 1e6:.1f} M, {flops / 1e9:.2f} GFLOPs"
        rows += [_text(0, y, name), _bar(0, y + 5, width, 11, BLUE), _text(width + 6, y + 15, told)]
    label = "What costs what: parameters and GFLOPs of an architecture"
    show("cost", data, _svg(360, 110, "Parameters of three architectures", *rows), label)


def show_guess(demonstrations: pd.DataFrame, tests: pd.DataFrame, space: SearchSpace) -> None:
    """Let readers guess the BLEU of architectures before they see what a language model said and what is true.

    Parameters
    ----------
    demonstrations : pandas.DataFrame
        What the model was shown: columns architecture, bleu and flops.
    tests : pandas.DataFrame
        What it was asked, in this order, with columns model and count, the answers of the model and of a regression that counts.
    space : SearchSpace
        The space of both.
    """

    def told(row: Any) -> dict[str, Any]:
        return {"arch": _short(row.architecture), "bleu": round(float(row.bleu), 2), "gflops": round(row.flops / 1e9, 2)}

    demos = [told(row) for row in demonstrations.itertuples()]
    answers = zip(tests["model"].round(2).tolist(), tests["count"].round(2).tolist(), strict=True)
    asked = [{**told(row), "model": m, "count": c} for row, (m, c) in zip(tests.itertuples(), answers, strict=True)]
    scores = [d["bleu"] for d in demos]
    # The scale leaves room on both sides, so that its ends tell nothing.
    scale = [float(np.floor(2 * min(scores) - 1) / 2), float(np.ceil(2 * max(scores) + 1) / 2)]
    data: dict[str, Any] = {
        "space": _space(space),
        "rounds": 5,
        "mean": round(float(np.mean(scores)), 2),
        "range": scale,
        "demos": demos,
        "tests": asked,
    }
    cards = []
    for i, d in enumerate(demos):
        x, y = 4 + i % 5 * 72, 4 + i // 5 * 84
        cards += [_drawing(d["arch"], data["space"], x, y), _text(x + 32, y + 70, f"{d['bleu']:.2f}", "middle")]
    still = _svg(360, 170, "Ten architectures and their BLEU", *cards)
    # Without scripts the game goes on: guess, then open.
    still += "".join(_question(i, test) for i, test in enumerate(asked[: data["rounds"]], 1))
    show("guess", data, still, "Guess the BLEU of an architecture")


def show_search(hybrid: pd.DataFrame, alone: pd.DataFrame, space: SearchSpace, cheap: str) -> None:
    """Show one recorded search with a cheap predictor and a supernet, iteration by iteration, beside one with the supernet alone.

    Of the seeds that both have, that one is shown whose difference in the supernet's score is nearest the mean difference.

    Parameters
    ----------
    hybrid, alone : pandas.DataFrame
        Searches under one limit by seed, as `llmpp_book.studies.search_tables.by_schedule` returns them.
    space : SearchSpace
        The space that they search.
    cheap : str
        What the cheap predictor is called in the rows.
    """
    gaps = (hybrid["supernet_score"] - alone["supernet_score"]).dropna().sort_index().round(5)
    seed: Any = (gaps - gaps.mean()).abs().round(7).idxmin()
    rows: list[Any] = [hybrid.loc[seed], alone.loc[seed]]
    steps, other = ([_step(step, cheap) for step in row["iterations"]] for row in rows)
    drawn = _space(space)
    drawn["depth"] = max(len(step["arch"][key]) for step in steps for key in ("ef", "df"))
    reference = [{"sup": step["sup"], "ev": step["ev"]} for step in other]
    data = {"space": drawn, "seed": int(seed), "limit": float(rows[0]["limit_ms"]), "steps": steps, "alone": reference}
    turn = next(i for i, step in enumerate(steps) if step["by"] == "s")
    pace = 308 / len(steps)

    def line(values: Sequence[float], top: float, height: float, colour: str, digits: int) -> str:
        low, high = min(values), max(values)
        points = " ".join(f"{44 + i * pace:.1f},{top + height * (high - v) / (high - low or 1):.1f}" for i, v in enumerate(values))
        ends = _text(40, top + 4, f"{high:.{digits}f}", "end") + _text(40, top + height + 4, f"{low:.{digits}f}", "end")
        return f'{ends}<polyline fill="none" style="stroke:{colour}" stroke-width="1.8" points="{points}"/>'

    switch = 44 + (turn - 0.5) * pace
    still = _svg(
        360,
        262,
        "Best score by iteration, of the cheap predictor before the switch and of the supernet throughout",
        _text(0, 12, "Cheap predictor: predicted BLEU of the best"),
        line([step["score"] for step in steps[:turn]], 24, 80, ORANGE, 1),
        _text(0, 132, "Supernet: minus its loss, nats per token"),
        line([step["sup"] for step in steps], 146, 90, BLUE, 3),
        f'<line x1="{switch:.1f}" x2="{switch:.1f}" y1="18" y2="240" style="stroke:{SOFT}" stroke-dasharray="4 3"/>',
        *(_text(44 + i * pace, 256, str(i + 1), "middle") for i in (0, turn, len(steps) - 1)),
    )
    show("search", data, still, "One search, iteration by iteration")


def show_switch(rounds: Mapping[str, Sequence[Mapping[str, Any]]], iterations: int) -> None:
    """Let readers move the iteration at which the costly predictor takes over.

    Parameters
    ----------
    rounds : mapping
        By title, rounds of searches, each a row per switch: switch (iterations with the cheap predictor), seeds (number), evaluations and
        seconds (shares of the search with the supernet alone), bleu and loss (differences from that: value, low and high of an interval).
    iterations : int
        Length of a search.
    """
    names = ("evaluations", "seconds", "bleu", "loss")
    table: list[dict[str, Any]] = [
        {
            "title": title,
            "rows": [{**{key: row[key] for key in ("switch", "seeds")}, **{n: _rounded(row[n]) for n in names}} for row in rows],
        }
        for title, rows in rounds.items()
    ]
    parts = [_text(0, 12, f"Share of the supernet's evaluations: {table[0]['title']}")]
    for i, row in enumerate(table[0]["rows"]):
        y, share = 34 + 22 * i, row["evaluations"]
        parts += [
            _text(0, y, f"{row['switch']} + {iterations - row['switch']}"),
            _bar(60, y - 10, 230 * share, 11, BLUE),
            _text(66 + 230 * share, y, f"{share:.2f}"),
        ]
    still = _svg(360, 30 + 22 * len(table[0]["rows"]), "Share of evaluations by switch", *parts)
    show("switch", {"iterations": iterations, "rounds": table}, still, "Move the switch from the cheap predictor to the supernet")


def _question(number: int, test: Mapping[str, Any]) -> str:
    arch = test["arch"]
    decoder = (
        f"{len(arch['df'])} decoder layer{'s' * (len(arch['df']) > 1)} of width {arch['d']}, feed-forward {', '.join(map(str, arch['df']))}"
    )
    encoder = f"encoder width {arch['e']}, feed-forward {', '.join(map(str, arch['ef']))}"
    answers = f"True {test['bleu']:.2f}. Language model {test['model']:.2f}. Counting depth and parameters {test['count']:.2f}."
    asked = f"Test architecture {number}: {decoder}; {encoder}; {test['gflops']:.2f} GFLOPs. Guess, then open."
    return f"<details><summary>{asked}</summary><p>{answers}</p></details>"


def _short(a: Architecture) -> dict[str, Any]:
    """Return an architecture as the scripts read it: widths, feed-forward widths, heads, and how many encoder layers are read."""
    return {
        **{"e": a.encoder_embed_dim, "d": a.decoder_embed_dim, "ef": list(a.encoder_ffn_dims), "df": list(a.decoder_ffn_dims)},
        **{"eh": list(a.encoder_heads), "dh": list(a.decoder_self_heads), "ch": list(a.decoder_cross_heads)},
        "sp": [SPAN_LAYERS[span] for span in a.decoder_cross_spans],
    }


def _space(space: SearchSpace) -> dict[str, Any]:
    return {
        **{"width": sorted(space.encoder_embed_dim), "ffn": sorted({*space.encoder_ffn_dims, *space.decoder_ffn_dims})},
        **{"heads": sorted(space.encoder_heads), "layers": sorted(space.decoder_layers)},
        "depth": max(*space.encoder_layers, *space.decoder_layers),
    }


def _step(step: Mapping[str, Any], cheap: str) -> dict[str, Any]:
    scores = {"score": round(step["score"], 5), "sup": round(step["supernet_score"], 5)}
    by = "c" if step["predictor"] == cheap else "s"
    return {"by": by, **scores, "ev": sum(step["evaluations"].values()), "arch": _short(Architecture.from_hat_dict(step["best"]))}


def _rounded(value: Any) -> Any:
    """Return a number or several to four decimals, None for one that is not finite."""
    if np.ndim(value):
        return [_rounded(v) for v in value]
    return round(float(value), 4) if np.isfinite(value) else None


# Parts of stills. They are 360 units wide, so that their text can be read on a phone and is not blown up elsewhere.


def _svg(width: int, height: int, label: str, *parts: str) -> str:
    style = f"width:100%;max-width:{width * 1.3:g}px;font:12px system-ui,sans-serif"
    return f'<svg viewBox="0 0 {width} {height}" style="{style}" role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg>'


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.4g}" y="{y:.4g}" text-anchor="{anchor}" style="fill:var(--ink,#222)">{html.escape(words)}</text>'


def _bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.4g}" y="{y:.4g}" width="{width:.4g}" height="{height:.4g}" style="fill:{colour}"/>'


def _drawing(arch: Mapping[str, Any], space: Mapping[str, Any], left: float, top: float) -> str:
    """Return both stacks, a bar per layer as wide as its feed-forward part, in 64 by 55 units."""
    unit, depth = 28 / max(space["ffn"]), space["depth"]
    bars = []
    for x, key, colour in ((15, "ef", BLUE), (49, "df", ORANGE)):
        bars += [_bar(left + x - f * unit / 2, top + (depth - 1 - i) * 9, f * unit, 7, colour) for i, f in enumerate(arch[key])]
    return "".join(bars)
