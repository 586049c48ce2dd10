"""One run from its inputs to its report, in stages that are done once: killed at any moment, the same command goes on.

A folder of a run holds what was asked (``run.lock.yml``, ``inputs/``) and a folder per round. A new round begins when trained networks
are added. Each stage leaves one file, whole, which says what it depends on; the answers of a language model are also in the client's cache.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import llmpp_core
from llmpp_core.jobs.files import alone, need_writable, replace_file
from llmpp_core.jobs.table import differences
from llmpp_core.pipeline import facts, propose
from llmpp_core.pipeline.asking import Asking
from llmpp_core.pipeline.evidence import Regression, compare
from llmpp_core.pipeline.inputs import Inputs, load_function, read_inputs
from llmpp_core.pipeline.report import report
from llmpp_core.pipeline.run_file import FREE, READING, read_run
from llmpp_core.predictors.distill import DistilledPredictor
from llmpp_core.search.evolution import EvolutionarySearch
from llmpp_core.search.feasible import Feasible
from llmpp_core.space.cost import Cost

# A student has five members, each of which holds out another part of the labels.
_FEWEST_LABELS = 5
_KEPT = ("best.yml", "front.csv", "report.html")


@dataclass(frozen=True)
class Proposal:
    """What a run proposes to train next, in this order."""

    networks: list[Any]
    scores: list[float]  #: Predicted, as the user has scores.
    intervals: list[tuple[float, float]]  #: Of 80 %.
    kinds: list[str]  #: Why each is proposed.
    confident: bool  #: False: the networks are a spread, since no predictor is surely better than a mean.
    predictor: str  #: "model", "regression" or "average".
    round: int
    folder: Path
    report: Path
    warnings: list[str] = field(default_factory=list)


def search_pipeline(
    run: Mapping[str, Any] | str | Path, *, folder: str | Path | None = None, restart: bool = False, say: Callable[[str], Any] | None = None
) -> Proposal:
    """Propose the networks to train next, from those trained so far.

    Parameters
    ----------
    run : path or mapping
        ``run.yml`` or what it would hold; see `llmpp_core.pipeline.run_file.FIELDS`. Paths begin where the file is.
    folder : path, optional
        Where everything goes; that of the run by default.
    restart : bool
        Move an earlier folder of that name away and begin anew.
    say : callable, optional
        Called with a line when a stage begins.

    Raises
    ------
    ValueError
        If something is wrong with the inputs, one line for each thing; nothing is written then.
    llmpp_core.llm.client.LLMStopped
        If the model's budget or endpoint gave out. What was answered is kept, and the same call goes on.
    """
    pipeline = Pipeline(read_inputs(read_run(run)), folder, say or (lambda line: None))
    return pipeline.run(restart)


def plan(run: Mapping[str, Any] | str | Path, folder: str | Path | None = None) -> list[str]:
    """Return what a run would do, and what it would ask at most, in lines; nothing is asked or written. Raises as `search_pipeline`."""
    inputs = read_inputs(read_run(run))
    fields, said = inputs.run, [*(f"warning: {warning}" for warning in inputs.warnings)]
    said.append(f"{len(inputs.trained.networks)} trained networks of {inputs.space.name}, {inputs.space.size():,} networks")
    asking = Pipeline(inputs, folder, said.append).asking
    if asking is None:
        said += ["model: none, so nothing is asked; a regression is fitted to the trained networks and tested on each in turn"]
    else:
        said += asking.estimate(label_networks(inputs))
    said.append(
        f"search: {fields['search.iterations']} iterations of {fields['search.population']} networks, then {fields['propose.n']} proposals"
    )
    return said


def label_networks(inputs: Inputs) -> list[Any]:
    """Return the networks that a language model is to label: random ones within the limits, at most half the space."""
    wanted = min(inputs.run["labels"], max(inputs.space.size() // 2, _FEWEST_LABELS))
    rows, _ = Feasible(inputs.genes, inputs.limits).initial(wanted, np.random.default_rng([inputs.run["search.seed"], 1]))
    return list(inputs.genes.table(rows))


class Pipeline:
    """The stages of one run; `run` goes through them.

    Parameters
    ----------
    inputs : Inputs
    folder : path, optional
    say : callable
        Called with a line when a stage begins.
    """

    def __init__(self, inputs: Inputs, folder: str | Path | None, say: Callable[[str], Any]):
        self.inputs, self.fields, self.say = inputs, inputs.run, say
        self.folder = Path(folder) if folder is not None else inputs.run.folder
        if self.folder.name in ("", ".."):
            self.folder = self.folder.resolve()
        # Wrong settings are told before anything is written.
        self.asking = Asking.of(inputs, sorted(self.folder.glob("round-*/answers.jsonl")))
        if self.asking is not None:
            self.asking.require_recorded()
        self.round = 1

    def run(self, restart: bool = False) -> Proposal:
        """Do what is left to be done, and return the proposal."""
        need_writable(self.folder / "run.lock.yml")
        with alone(self.folder):
            if restart and (self.folder / "run.lock.yml").exists():
                if self.fields.base.resolve().is_relative_to(self.folder.resolve()):
                    raise ValueError(f"{self.folder}: {self.fields.file} is in there and would be moved away too; use another folder")
                number = next(i for i in range(1, 10_000) if not self.folder.with_name(f"{self.folder.name}.old-{i}").exists())
                self.folder.rename(self.folder.with_name(f"{self.folder.name}.old-{number}"))
                self.asking = Asking.of(self.inputs, [])
            # What a killed process has left half-written.
            for partial in self.folder.rglob(".*.partial"):
                partial.unlink()
            self._begin()
            evidence = self._evidence()
            student = self._student() if evidence["confident"] and evidence["used"] != "regression" else None
            self.predictor = propose.Blend(None if evidence["used"] == "model" and student else self.regression, student)
            records = self._search() if evidence["confident"] else None
            rows = self._propose(evidence, records)
            return self._finish(evidence, student, records, rows)

    # What each stage leaves.

    @property
    def here(self) -> Path:
        """The folder of this round."""
        return self.folder / f"round-{self.round}"

    def _begin(self) -> None:
        """Check what is there against what is asked, find the round, and write down what is asked."""
        lock, inputs = self.folder / "run.lock.yml", self.inputs
        asked = {name: value for name, value in self.fields.fields.items() if name not in FREE}
        if self.asking is not None and self.fields["model.recording"]:
            # Of which model, whatever the file is called.
            asked["recording"] = self.asking.client.settings.identity()
        asked = json.loads(json.dumps({**asked, "space": inputs.space.to_record()}))
        if lock.exists():
            before = yaml.safe_load(lock.read_text(encoding="utf-8"))["fields"]
            # Earlier runs name the file in its place.
            if before.pop("model.recording", None):
                before.setdefault("recording", asked.get("recording"))
            asked |= {name: before[name] for name in READING if name in before}
            if different := differences(before, asked):
                raise ValueError(f"{self.folder}: made with other settings: {different}; use another folder or --restart")
        rounds = self._rounds()
        now = dict(zip(map(inputs.key, inputs.trained.networks), inputs.trained.scores, strict=True))
        was: dict[str, float] = rounds[-1]["trained"] if rounds else {}
        for network, score in was.items():
            # A further training of a network changes the mean.
            if now.get(network) != score and not (network in now and self.fields["repeats"] == "mean"):
                what = f"is {now[network]:g} now" if network in now else "is gone"
                said = f"the score {score:g} of the network {', '.join(network.splitlines())} of round {len(rounds)} {what}"
                raise ValueError(f"{self.folder}: {said}; use another folder or --restart")
        self.round = len(rounds) + (now != was)
        versions = {"llmpp": llmpp_core.__version__, "numpy": np.__version__}
        known = {"fields": asked, "versions": versions, "inputs": inputs.digests}
        for name, content in inputs.files.items():
            replace_file(self.folder / "inputs" / name, content)
        replace_file(lock, yaml.safe_dump(known, sort_keys=False, allow_unicode=True).encode())
        if self.asking is not None:
            self.asking.path = self.here / "answers.jsonl"
        self.depends = _digest([asked, now])
        self._write("check.json", {"depends": self.depends, "trained": now, "warnings": inputs.warnings})

    def _rounds(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while (path := self.folder / f"round-{len(found) + 1}" / "check.json").exists():
            found.append(json.loads(path.read_text(encoding="utf-8")))
        return found

    def _write(self, name: str, what: dict[str, Any]) -> dict[str, Any]:
        replace_file(self.here / name, (json.dumps(what, indent=1, ensure_ascii=False) + "\n").encode())
        return what

    def _known(self, name: str, depends: str) -> dict[str, Any] | None:
        path = self.here / name
        if not path.exists():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["depends"] != depends:
            raise ValueError(f"{path}: made from something else; use another folder or --restart")
        return dict(found)

    @cached_property
    def regression(self) -> Regression:
        """The regression on the trained networks."""
        return Regression(self.inputs.space).fit(self.inputs.trained.networks, self.inputs.scores)

    def _evidence(self) -> dict[str, Any]:
        if (known := self._known("evidence.json", self.depends)) is not None:
            return known
        left_out, answers = {"regression": self.regression.left_out_}, None
        if self.asking is not None:
            self.say(f"asking {self.asking.name} about each of {len(self.inputs.scores)} networks, shown the others")
            left_out["model"], answers = self.asking.left_out()
        self.say("comparing predictors on networks left out")
        found = compare(self.inputs.scores, left_out, noise=self.inputs.noise, wanted=self.fields["predictor"])
        return self._write("evidence.json", {"depends": self.depends, **found, "answers": answers})

    def _student(self) -> DistilledPredictor | None:
        assert self.asking is not None
        networks, path = label_networks(self.inputs), self.here / "student.safetensors"
        if len(networks) < _FEWEST_LABELS:
            said = f"{len(networks)} networks are within the limits, and a student of the model needs {_FEWEST_LABELS}"
            self.inputs.warnings.append(f"{said}: the regression proposes")
            return None
        if (known := self._known("labels.json", self.depends)) is None:
            self.say(f"asking {self.asking.name} for {len(networks)} labels")
            labels, answers = self.asking.labels(networks)
            listed = [value if np.isfinite(value) else None for value in labels.tolist()]
            about = {"depends": self.depends, "networks": [self.inputs.key(network) for network in networks]}
            known = self._write("labels.json", {**about, "labels": listed, "answers": answers})
        self.labels = known
        if path.exists():
            return DistilledPredictor.load(path)
        self.say("training a student on the labels")
        student = DistilledPredictor(space=self.inputs.space)
        student.fit(networks, np.array(known["labels"], dtype=float), teacher=self.asking.name).save(path)
        return student

    def _search(self) -> list[Any]:
        fields, inputs = self.fields, self.inputs
        entries, names = [(self.predictor, fields["search.iterations"])], ["cheap"]
        if fields["search.costly"]:
            asked = Cost("search.costly", load_function(fields["search.costly"], fields.base), inputs.space, kind="python")
            costly = propose.Costly(asked, inputs.sign)
            entries = [(self.predictor, fields["search.switch"]), (costly, fields["search.iterations"] - fields["search.switch"])]
            names.append("costly")
        size = fields["search.population"]
        parts = {"population": size, "parents": max(size // 5, 2), "mutants": 2 * size // 5, "crossovers": 2 * size // 5}
        search = EvolutionarySearch(inputs.space, entries, inputs.limits, **parts, seed=fields["search.seed"], names=names)
        self.say(f"searching {inputs.space.name}")
        return search.run(self.here / "search.jsonl").records

    def _propose(self, evidence: Mapping[str, Any], records: list[Any] | None) -> list[dict[str, Any]]:
        depends = _digest([self.depends, evidence["used"], None if records is None else [record.scores for record in records]])
        if (known := self._known("proposals.json", depends)) is None:
            rows = self._chosen(records)
            # Without a student, what a language model would say of new networks is not known.
            basis = evidence["used"] if self.predictor.student is not None else "regression"
            wider = propose.widening(self._promises())
            listed = facts.proposals(self.inputs, rows, self.predictor, evidence["left_out"][basis], wider)
            for row in listed:
                shown = {name: row[name] for name in ("place", "kind", "score", "low", "high", "network")}
                shown |= {"confidence": "80 % interval" if evidence["confident"] else "none"}
                shown |= {"costs": {cost["name"]: cost["value"] for cost in row["costs"]}}
                text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
                replace_file(self.here / "proposals" / f"{row['place']}.yml", text.encode())
            known = self._write("proposals.json", {"depends": depends, "proposals": listed})
        return list(known["proposals"])

    def _chosen(self, records: list[Any] | None) -> list[tuple[np.ndarray, str]]:
        if records is None:
            return [(row, "spread") for row in propose.spread_out(self.inputs)]
        rows, scores = facts.seen(self.inputs, records)
        # Neither trained nor so in another order of layers, where the regression cannot tell the two.
        seen = [self.regression.features(networks) for networks in (self.inputs.genes.table(rows), self.inputs.trained.networks)]
        alike = np.isclose(seen[0][:, None], seen[1]).all(axis=2)
        new = ~(alike & (propose.distances(self.inputs, rows, propose.trained_rows(self.inputs)) == 0)).any(axis=1)
        rows, scores = rows[new], scores[new]
        if not len(rows):
            raise ValueError(f"{self.folder}: every network that the search found within the limits is trained already")
        hopeful = scores + self.predictor.deviation(self.inputs.genes.table(rows))
        chosen = propose.choose(self.inputs, rows, *(np.argsort(-values, kind="stable") for values in (scores, hopeful)))
        return [(rows[i], why) for i, why in chosen]

    def _promises(self) -> list[dict[str, Any]]:
        """Return the proposals of earlier rounds, with what was measured of them since."""
        measured = dict(zip(map(self.inputs.key, self.inputs.trained.networks), self.inputs.trained.scores, strict=True))
        found = []
        for number in range(1, self.round):
            path = self.folder / f"round-{number}" / "proposals.json"
            if path.exists():
                for row in json.loads(path.read_text(encoding="utf-8"))["proposals"]:
                    found.append({**row, "round": number, "text": facts.text_of(row["network"]), "measured": measured.get(row["key"])})
        return found

    def _finish(
        self, evidence: Mapping[str, Any], student: DistilledPredictor | None, records: list[Any] | None, rows: list[dict[str, Any]]
    ) -> Proposal:
        inputs = self.inputs
        if len(rows) < self.fields["propose.n"]:
            inputs.warnings.append(f"{len(rows)} networks are proposed: no more were found that are within the limits and not trained")
        replace_file(self.here / "front.csv", facts.front(inputs, records, rows).encode())
        said = facts.gather(inputs, evidence, records, rows)
        words = ["llmpp", "search", self.fields.file, *(["--folder", str(self.folder)] if self.folder != self.fields.folder else [])]
        said |= {
            "command": shlex.join(words) if self.fields.tree else "search_pipeline(...)",
            "round": self.round,
            "rounds": self._promises(),
            "model": None,
            "student": None,
            "versions": f"llmpp {llmpp_core.__version__}",
        }
        if self.asking is not None:
            said["model"] = self.asking.described([evidence["answers"], *([self.labels["answers"]] if student else [])])
        if student is not None:
            about = {"labels": student.n_labels_, "dropped": student.n_dropped_, "features": student.features_}
            spread = float(np.nanstd(np.array(self.labels["labels"], dtype=float)))
            said["student"] = {**about, "rmse": student.held_out_rmse_[student.features_], "sd": spread}
        replace_file(self.here / "report.html", report(said).encode())
        for name in _KEPT:
            path = self.here / ("proposals" if name.endswith("yml") else "") / name
            if path.exists():
                replace_file(self.folder / name, path.read_bytes())
        return Proposal(
            networks=[inputs.space.read(row["key"].splitlines()) for row in rows],
            scores=[row["score"] for row in rows],
            intervals=[(row["low"], row["high"]) for row in rows],
            kinds=[row["kind"] for row in rows],
            confident=evidence["confident"],
            predictor=evidence["used"],
            round=self.round,
            folder=self.folder,
            report=self.folder / "report.html",
            warnings=inputs.warnings,
        )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
