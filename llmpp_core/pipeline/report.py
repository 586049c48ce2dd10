"""The report of a round: one HTML file that asks for nothing elsewhere. No section is left out; an empty one says why."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from llmpp_core.pipeline.drawing import definitions, element, items, plot, table

_NAMES = {"mean": "mean of the other networks", "model": "language model", "regression": "regression", "average": "average of both"}


def report(facts: Mapping[str, Any]) -> str:
    """Return the whole HTML text; `facts` holds JSON types, see `llmpp_core.pipeline.stages`, with scores as the user has them."""
    titles = {
        "What was asked": _asked,
        "How well can it be known": _evidence,
        "What the language model adds": _model,
        "The student and its teacher": _student,
        "The search": _search,
        "Score against cost": _front,
        "The networks proposed": _proposals,
        "What to train next": _next,
        "Rounds so far": _rounds,
        "How to do it again": _again,
    }
    doubt = "" if facts["confident"] else " (no confident answer)"
    title = f"{facts['space']['name']}: what to train next, round {facts['round']}{doubt}"
    parts = [element("h1", title), _verdict(facts)]
    if facts["warnings"]:
        parts.append('<div class="warn">' + element("h3", "Warnings") + items(facts["warnings"]) + "</div>")
    for number, (heading, section) in enumerate(titles.items(), 1):
        parts += [element("h2", f"{number}. {heading}"), section(facts)]
    template = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(parts))


def _verdict(facts: Mapping[str, Any]) -> str:
    if not facts["confident"]:
        doubts = "; ".join(facts["evidence"]["doubts"])
        said = f"No confident answer: {doubts}. The networks below are a spread within the limits, to learn the most from."
        return '<div class="verdict none">' + element("p", said) + "</div>"
    best = facts["proposals"][0]
    said = f"Train first: {best['text']}. Predicted {facts['score']['name']} {_score(facts, best['score'])}, {_span(facts, best)}."
    return '<div class="verdict">' + element("p", said) + element("p", f"{facts['evidence']['why']}.".capitalize(), "soft") + "</div>"


def _score(facts: Mapping[str, Any], value: float | None) -> str:
    return "-" if value is None else f"{value:.{facts['score']['decimals']}f}"


def _span(facts: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    return f"80 % interval {_score(facts, row['low'])} to {_score(facts, row['high'])}"


def _digits(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 9999.5 else f"{value:,.0f}"


def _cost(cost: Mapping[str, Any]) -> str:
    shown = f"{_digits(cost['value'])} {cost['unit']}".strip()
    return shown if cost.get("limit") is None else f"{shown} (limit {_digits(cost['limit'])})"


def _asked(facts: Mapping[str, Any]) -> str:
    score, space, limits = facts["score"], facts["space"], facts["limits"]
    told = [f"{limit['name']} at most {_digits(limit['limit'])} {limit['unit']}".strip() + limit["note"] for limit in limits]
    pairs = [
        ("space", f"{space['name']}, {space['size']:,} networks"),
        ("score", f"{score['name']}, {score['better']} is better"),
        ("limits", "; ".join(told) or "none"),
        ("trained", f"{len(facts['trained'])} networks from {', '.join(facts['files'])}"),
        ("columns not used", ", ".join(facts["ignored"]) or "none"),
    ]
    best_first = sorted(facts["trained"], key=lambda row: row["score"], reverse=score["better"] == "higher")
    rows = [(row["where"], row["text"], _score(facts, row["score"])) for row in best_first]
    return definitions(pairs) + table(["where", "network", score["name"]], rows, [2])


def _evidence(facts: Mapping[str, Any]) -> str:
    found = facts["evidence"]
    rows = []
    for row in found["table"]:
        span = f"{row['low']:.2f} to {row['high']:.2f}"
        rows.append((_NAMES[row["predictor"]], f"{row['rmse']:.3g}", f"{row['relative']:.2f}", span, f"{row['mae']:.3g}", row["n"]))
    used = next(i for i, row in enumerate(found["table"]) if row["predictor"] == found["used"])
    head = ["left out, predicted by", "RMSE", "relative to the mean", "80 % interval", "MAE", "networks"]
    name = facts["score"]["name"]
    said = "Each dot is a network predicted without knowing it."
    drawn = plot([("one", facts["left_out"])], [], f"{name}, measured", f"{name}, predicted", said, square=True)
    parts = [element("p", f"{found['why'].capitalize()}."), table(head, rows, range(1, 6), used), drawn]
    if found["doubts"]:
        parts.append(element("p", "Reasons for doubt:") + items(found["doubts"]))
    return "".join(parts)


def _model(facts: Mapping[str, Any]) -> str:
    model, adds = facts["model"], facts["evidence"]["model_adds"]
    if model is None:
        return element("p", "Nothing: no language model was asked (model: none), so the answer rests on the regression alone.")
    said = "No comparison: it gave too few numbers for networks left out."
    if adds is not None:
        span = f"{adds['low']:.3g} to {adds['high']:.3g}"
        said = f"The RMSE of the regression minus that of {model['name']}: {adds['difference']:.3g}, 80 % interval {span}: {adds['said']}."
    pairs = [("asked", f"{model['name']} at {model['endpoint']}"), ("answers", f"{model['answers']}, {model['invalid']} of them invalid")]
    return element("p", said) + definitions([*pairs, ("tokens", model["tokens"]), ("money", model["money"])])


def _student(facts: Mapping[str, Any]) -> str:
    student = facts["student"]
    if student is None:
        return element("p", "There is none: no language model's answers steer the search, and a regression is cheap enough to search with.")
    pairs = [
        ("labels", f"{student['labels']}, {student['dropped']} more were not readable"),
        ("held-out RMSE", f"{student['rmse']:.3g}, against a spread (sd) of the labels of {student['sd']:.3g}"),
        ("features", student["features"]),
    ]
    return definitions(pairs)


def _search(facts: Mapping[str, Any]) -> str:
    search = facts["search"]
    if search is None:
        return element("p", "None was made: without a predictor to trust there is nothing to search by.")
    last = f"the best was found in iteration {search['last_improvement']} of {len(search['best'])}"
    line = list(enumerate(search["best"], 1))
    drawn = plot([], [("one", line)], "iteration", f"best {facts['score']['name']}, predicted", "The best so far.")
    return element("p", f"{search['evaluations']:,} networks were scored; {last}.") + drawn


def _front(facts: Mapping[str, Any]) -> str:
    if not facts["fronts"]:
        return element("p", "The space declares no cost, so there is nothing to trade the score for.")
    name, parts = facts["score"]["name"], []
    for front in facts["fronts"]:
        kinds = [("soft", front["seen"]), ("two", front["trained"]), ("one", front["proposed"])]
        caption = f"{front['name']}: small dots were seen in the search, orange ones are trained, blue ones proposed (predicted scores)."
        parts.append(plot(kinds, [], f"{front['name']} {front['unit']}".strip(), name, caption))
    return "".join(parts)


def _proposals(facts: Mapping[str, Any]) -> str:
    cards = []
    for number, row in enumerate(facts["proposals"], 1):
        pairs = [*row["network"].items(), *((cost["name"], _cost(cost)) for cost in row["costs"])]
        pairs.append(("nearest", f"{row['nearest']['where']}, {row['nearest']['distance']:.0%} of the choices differ"))
        if row["beyond"]:
            pairs.append(("beyond trained", ", ".join(row["beyond"])))
        head = element("h3", f"{number}. {row['kind']}") + element("div", _score(facts, row["score"]), "score")
        head += element("div", _span(facts, row), "soft")
        cards.append(f'<div class="card">{head}{definitions(pairs)}</div>')
    said = "Intervals are jackknife+ ones"
    if facts["widened"] > 1:
        said += f", {facts['widened']:.2f} times as wide as they would be, since earlier promises missed by more"
    return '<div class="cards">' + "".join(cards) + "</div>" + element("p", f"{said}.", "soft")


def _next(facts: Mapping[str, Any]) -> str:
    where, number = facts["files"][-1], facts["round"] + 1
    said = f"Train them in this order, add their scores to {where}, and run the same command again: it makes round {number}."
    return element("p", said) + element("pre", facts["command"]) + element("p", "As lines of a table:") + element("pre", facts["lines"])


def _rounds(facts: Mapping[str, Any]) -> str:
    if not facts["rounds"]:
        return element("p", "This is the first round: nothing was promised before.")
    rows = []
    for row in facts["rounds"]:
        measured = "not trained yet" if row["measured"] is None else _score(facts, row["measured"])
        inside = "" if row["measured"] is None else "yes" if row["low"] <= row["measured"] <= row["high"] else "no"
        rows.append((row["round"], row["place"], row["text"], _score(facts, row["score"]), _span(facts, row)[14:], measured, inside))
    return table(["round", "place", "network", "promised", "interval", "measured", "inside"], rows, [0, 3, 5])


def _again(facts: Mapping[str, Any]) -> str:
    said = "run.lock.yml holds every setting, inputs/ the files as they were. Without a model the same inputs give the same networks."
    rows = list(facts["digests"].items())
    return element("p", said) + table(["input", "sha256"], rows) + element("p", f"Made with {facts['versions']}.", "soft")
