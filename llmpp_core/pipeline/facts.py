"""What a report says of a round, in JSON types and in the words and directions of the user."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmpp_core.pipeline import propose
from llmpp_core.pipeline.inputs import Inputs
from llmpp_core.search.pareto import pareto_front

# Small dots of a figure.
_DOTS = 400


def proposals(
    inputs: Inputs, chosen: Sequence[tuple[np.ndarray, str]], predictor: propose.Blend, left_out: Any, wider: float
) -> list[dict[str, Any]]:
    """Return what is said of each chosen row of genes, with the reason for it."""
    rows = np.array([row for row, _ in chosen], dtype=np.int8).reshape(len(chosen), len(inputs.genes))
    table, trained = inputs.genes.table(rows), propose.trained_rows(inputs)
    networks, found = list(table), []
    ends = propose.interval(inputs, predictor, table, left_out, wider) if networks else np.empty((0, 4))
    costs = {name: cost.value(table) for name, cost in inputs.costs.items()}
    near = propose.distances(inputs, rows, trained)
    for i, (network, (_, kind)) in enumerate(zip(networks, chosen, strict=True)):
        score, low, high, deviation = ends[i].tolist()
        row: dict[str, Any] = {"place": propose.place(i), "kind": kind, "score": score, "low": low, "high": high}
        row |= {"deviation": deviation, "widened": wider}
        row["network"] = propose.described(inputs, network)
        row["key"] = inputs.key(network)
        row["costs"] = [
            {"name": name, "value": float(costs[name][i]), "unit": cost.value.unit, "limit": cost.limit}
            for name, cost in inputs.costs.items()
        ]
        nearest = int(np.argmin(near[i]))
        row["nearest"] = {"where": inputs.trained.where[nearest], "distance": float(near[i, nearest])}
        row["beyond"] = propose.beyond(inputs, network)
        found.append(row)
    return found


def front(inputs: Inputs, records: Sequence[Any] | None, listed: Sequence[Mapping[str, Any]]) -> str:
    """Return CSV text: the networks of a search that no other beats in score and every cost; without a search, those proposed."""
    names = [limit.name for limit in inputs.limits]
    if records is not None and names:
        best = pareto_front(records, inputs.space)
        networks = [propose.described(inputs, network) for network in best.pop("architecture")]
        values = (best.to_numpy() * [inputs.sign, *[1] * len(names)]).tolist()
    else:
        networks = [row["network"] for row in listed]
        values = [[row["score"], *(cost["value"] for cost in row["costs"] if cost["name"] in names)] for row in listed]
    texts = [[f"{value:.6g}" for value in row] for row in values]
    return _csv([f"predicted {inputs.score_name}", *names], texts, networks)


def lines(inputs: Inputs, listed: Sequence[Mapping[str, Any]]) -> str:
    """Return the proposed networks as CSV, with a question mark where the score goes; in the user's order of columns if these will do."""
    columns = inputs.run["columns"]
    networks = [{columns.get(name, name): value for name, value in row["network"].items()} for row in listed]
    return _csv([inputs.run["score.column"]], [["?"]] * len(listed), networks, inputs.trained.head)


def _csv(head: list[str], rows: Sequence[list[str]], networks: Sequence[Mapping[str, Any]], order: Sequence[str] = ()) -> str:
    """Return CSV text of networks, in a form that can be read again, and other columns; in a given order of columns that has them all."""
    text, names = io.StringIO(), [*head, *dict.fromkeys(name for network in networks for name in network)]
    writer = csv.DictWriter(text, order if set(names) <= set(order) else names, restval="", lineterminator="\n")
    writer.writeheader()
    for row, network in zip(rows, networks, strict=True):
        writer.writerow(dict(zip(head, row, strict=True)) | {name: _cell(value) for name, value in network.items()})
    return text.getvalue()


def _cell(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    texts = ["-" if item is None else str(item) for item in value]
    return json.dumps(value) if "-" in value or any(re.search(r"[\s;,]", text) for text in texts) else " ".join(texts)


def fronts(inputs: Inputs, scored: tuple[np.ndarray, np.ndarray] | None, listed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the points of a figure for every cost."""
    found = []
    for name, cost in inputs.costs.items():
        points: list[tuple[float, float]] = []
        if scored is not None:
            few = np.unique(np.linspace(0, len(scored[0]) - 1, _DOTS).astype(int))
            costs = cost.value(inputs.genes.table(scored[0][few]))
            points = list(zip(costs.tolist(), (inputs.sign * scored[1][few]).tolist(), strict=True))
        trained = list(zip(cost.value(inputs.trained.networks).tolist(), inputs.trained.scores, strict=True))
        proposed = [(next(c["value"] for c in row["costs"] if c["name"] == name), row["score"]) for row in listed]
        found.append({"name": name, "unit": cost.value.unit, "seen": points, "trained": trained, "proposed": proposed})
    return found


def text_of(network: Mapping[str, Any]) -> str:
    """Return a network in one line."""
    return ", ".join(f"{name} {value}" for name, value in propose.in_words(dict(network)).items())


def seen(inputs: Inputs, records: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return genomes of all networks that the last predictor of a search scored, and their scores."""
    last = [record for record in records if record.predictor == records[-1].predictor]
    pairs = [pair for record in last for pair in zip(record.population, record.scores, strict=True) if pair[1] is not None]
    found = dict(pairs)
    return inputs.genes.from_text(list(found)), np.array(list(found.values()))


def gather(
    inputs: Inputs, evidence: Mapping[str, Any], records: Sequence[Any] | None, listed: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what `llmpp_core.pipeline.report.report` tells of a round, but for what is known of other rounds and of the model."""
    run, trained = inputs.run, inputs.trained
    found: dict[str, Any] = {"confident": evidence["confident"], "warnings": inputs.warnings, "evidence": evidence, "search": None}
    found["space"] = {"name": inputs.space.name, "size": inputs.space.size()}
    found["score"] = {"name": inputs.score_name, "better": run["score.better"], "decimals": inputs.decimals}
    limited = [(name, cost) for name, cost in inputs.costs.items() if cost.limit is not None]
    found["limits"] = [{"name": name, "limit": cost.limit, "unit": cost.value.unit, "note": cost.note} for name, cost in limited]
    rows = zip(trained.networks, trained.scores, trained.where, strict=True)
    texts = [(text_of(propose.described(inputs, network)), score, where) for network, score, where in rows]
    found["trained"] = [{"text": text, "score": score, "where": where} for text, score, where in texts]
    found |= {"files": run["trained"], "ignored": trained.ignored, "digests": inputs.digests}
    pairs = zip(trained.scores, evidence["left_out"][evidence["used"]], strict=True)
    found["left_out"] = [(score, inputs.sign * guess) for score, guess in pairs if guess is not None]
    if records is not None:
        best = [inputs.sign * record.score for record in records]
        changed = [i for i in range(len(best)) if i == 0 or best[i] != best[i - 1]]
        count = sum(sum(record.evaluations.values()) for record in records)
        found["search"] = {"best": best, "evaluations": count, "last_improvement": changed[-1] + 1}
    found["fronts"] = fronts(inputs, None if records is None else seen(inputs, records), listed)
    found["proposals"] = [{**row, "network": propose.in_words(row["network"]), "text": text_of(row["network"])} for row in listed]
    return found | {"widened": max((row["widened"] for row in listed), default=1.0), "lines": lines(inputs, listed)}
