"""All that a run is given, read and checked together before anything is asked or written."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from llmpp_core.pipeline.evidence import FEWEST, Regression
from llmpp_core.pipeline.problems import Problems, named
from llmpp_core.pipeline.run_file import Run, listed
from llmpp_core.pipeline.trained import Trained, names_of, read_trained
from llmpp_core.search.limits import Limit, feasible_row
from llmpp_core.space.choice import meant
from llmpp_core.space.configspace import from_configspace
from llmpp_core.space.cost import Cost
from llmpp_core.space.genes import Genes
from llmpp_core.space.grammar import read_space
from llmpp_core.space.search_space import SPACES

# Drawn to see whether a limit forbids anything.
_DRAWN = 1000


@dataclass
class Priced:
    """A cost and what is asked of it."""

    value: Cost
    limit: float | None = None
    note: str = ""  #: How well it is known, if it was fitted.


@dataclass
class Inputs:
    """What a run is given."""

    run: Run
    space: Any
    genes: Genes
    trained: Trained
    costs: dict[str, Priced]
    files: dict[str, bytes]  #: What the files hold, by name.
    warnings: list[str] = field(default_factory=list)

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the files, by name."""
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}

    @property
    def sign(self) -> int:
        """What to multiply scores by so that higher is better."""
        return 1 if self.run["score.better"] == "higher" else -1

    @property
    def scores(self) -> np.ndarray:
        """Higher is better, shape (n,)."""
        return self.sign * np.array(self.trained.scores)

    @property
    def noise(self) -> float | None:
        """Standard deviation between two trainings of one network, if known."""
        return self.trained.noise if self.run["score.noise"] is None else float(self.run["score.noise"])

    @property
    def limits(self) -> list[Limit]:
        """The limits, and every cost of the space itself, to be recorded."""
        kept = [cost for cost in self.costs.values() if cost.limit is not None or cost.value.kind == "formula"]
        return [Limit(cost.value, np.inf if cost.limit is None else cost.limit, cost.value.name, cost.value.unit) for cost in kept]

    @property
    def score_name(self) -> str:
        """What the score is called."""
        return str(self.run["score.name"] or self.run["score.column"])

    @property
    def decimals(self) -> int:
        """Digits of scores after the point."""
        return self.trained.decimals if self.run["score.decimals"] is None else int(self.run["score.decimals"])

    def key(self, network: Any) -> str:
        """Return what is equal for equal networks, for files."""
        return "\n".join(self.space.lines(network))


def read_inputs(run: Run) -> Inputs:
    """Read space, trained networks, costs and limits; raises ValueError with all that is wrong."""
    problems, files = Problems(), [run.path(path) for path in run["trained"]]
    space = _space(run)
    columns = {column for cost in run["costs"].values() if (column := cost.get("column"))}
    options = {name: run[name] for name in ("columns", "repeats", "inactive", "longer_lists")}
    names = names_of(space)
    if unknown := [name for name in run["columns"] if name not in names]:
        near = meant(unknown[0], names)
        raise ValueError(f"{run.at('columns')}: columns: no choice {unknown[0]!r}{near}; choices are {listed(names)}")
    trained = read_trained(files, space, run["score.column"], costs=sorted(columns), **options)
    # By what they are: the order of lines in files decides nothing.
    trained.sort(space.lines)
    _check_range(run, trained, problems)
    costs = {name: Priced(cost) for name, cost in space.costs.items()}
    for name, given in run["costs"].items():
        with problems.collect(), named(f"{run.at(f'costs.{name}')}: cost {name!r}"):
            if "column" in given:
                costs[name] = _fitted(name, given, space, trained)
            else:
                costs[name] = Priced(Cost(name, load_function(given["python"], run.base), space, given.get("unit", ""), "python"))
    for name, known in costs.items():
        # Also of what nothing limits: a function would fail in the report, when all is asked and paid, and a regression has no log of 0.
        with problems.collect():
            spent = known.value(trained.networks)
            if known.value.kind == "formula" and len(bad := np.flatnonzero(~(np.isfinite(spent) & (spent > 0)))):
                raise ValueError(f"{trained.where[bad[0]]}: cost {name!r} is {spent[bad[0]]:g}; expected a positive number")
    for name, (limit, unit) in run["limits"].items():
        at = run.at(f"limits.{name}")
        if name not in costs:
            problems.add(f"{at}: limit {name!r}: no such cost; costs are {listed(costs)}")
        elif unit not in (None, costs[name].value.unit):
            problems.add(f"{at}: limit {name!r}: {limit:g} {unit}, but the cost is in {costs[name].value.unit or 'no unit'}")
        else:
            costs[name].limit = limit
    if run["told"] is not None and run["told"] not in costs:
        problems.add(f"{run.at('told')}: told {run['told']!r}: no such cost; costs are {listed(costs)}")
    if run["search.costly"]:
        with problems.collect(), named(f"{run.at('search.costly')}: search.costly"):
            load_function(run["search.costly"], run.base)
    problems.check()
    files += ([run.path(run["space"])] if _is_file(run) else []) + [run.path(run.file)] * (run.tree is not None)
    # Files of different folders may have one name.
    contents = {
        f"{i}-{path.name}" if path.name in {p.name for p in files[:i]} else path.name: path.read_bytes() for i, path in enumerate(files)
    }
    found = Inputs(run, space, Genes(space), trained, costs, contents, list(trained.notes))
    # Raises InfeasibleError, which says what is cheapest, where nothing is within the limits.
    feasible_row(found.genes, found.limits)
    found.warnings += _warnings(found)
    return found


def _is_file(run: Run) -> bool:
    return isinstance(run["space"], str) and run.path(run["space"]).is_file()


def _space(run: Run) -> Any:
    if _is_file(run):
        return read_space(run.path(run["space"]))
    with named(run.at("space")):
        given = run["space"]
        if given in list(SPACES):
            return SPACES[given]
        if isinstance(given, str):
            if ":" not in given:
                raise ValueError(f"no file {given!r} and no space {given!r}; built in are {listed(SPACES)}")
            given = load(given, run.base)
        if hasattr(given, "genes"):
            return given
        return from_configspace(given) if hasattr(given, "conditional_hyperparameters") else read_space(given)


def load(location: str, base: Path) -> Any:
    """Return the object MODULE:NAME, the module found from where the run is."""
    module, _, name = location.partition(":")
    folder = base.resolve()
    own = {path.stem: path.resolve() for path in folder.glob("*.py") if path.stem not in sys.stdlib_module_names}
    # Modules of the same names that another run has loaded would be found first.
    others = {key: sys.modules[key] for key in own.keys() & sys.modules if _file_of(sys.modules[key]) != own[key]}
    for key in others:
        del sys.modules[key]
    sys.path.insert(0, str(folder))
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{location}: {error}") from None
    except Exception as error:
        raise ValueError(f"{location}: it raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(folder))
        sys.modules.update(others)


def _file_of(module: Any) -> Path:
    return Path(getattr(module, "__file__", None) or "").resolve()


def load_function(location: str, base: Path) -> Any:
    """Return `load`, which must be what can be called."""
    found = load(location, base)
    if not callable(found):
        raise ValueError(f"{location}: expected a function, got {found!r}")
    return found


def _check_range(run: Run, trained: Trained, problems: Problems) -> None:
    low, high = (run[f"score.{end}"] for end in ("low", "high"))
    for where, score in zip(trained.where, trained.scores, strict=True):
        if (low is not None and score < low) or (high is not None and score > high):
            span = f"{'...' if low is None else f'{low:g}'}..{'...' if high is None else f'{high:g}'}"
            problems.add(f"{where}: {run['score.column']} {score:g} is outside {span}")


def _fitted(name: str, given: Mapping[str, str], space: Any, trained: Trained) -> Priced:
    """Return a cost fitted to a column: a ridge of its logarithm."""
    column, measured = given["column"], trained.columns[given["column"]]
    known = [i for i, value in enumerate(measured) if value is not None]
    if len(known) < FEWEST:
        raise ValueError(f"column {column!r} has {len(known)} numbers, {FEWEST} are needed to fit it")
    values = np.array([measured[i] for i in known], dtype=float)
    if (values <= 0).any():
        raise ValueError(f"column {column!r} has {values.min():g}; expected positive numbers")
    fit = Regression(space).fit([trained.networks[i] for i in known], np.log(values))
    off = float(np.sqrt(np.mean((fit.left_out_ - np.log(values)) ** 2)))
    note = f", fitted to {len(known)} numbers and off by about {np.expm1(off):.0%} on networks left out"

    def cost(networks: Any) -> np.ndarray:
        return np.exp(fit.predict(networks))

    cost.table = True  # type: ignore[attr-defined]
    return Priced(Cost(name, cost, space, given.get("unit", ""), "fitted"), note=note)


def _warnings(found: Inputs) -> list[str]:
    run, trained, said = found.run, found.trained, list[str]()
    drawn = found.genes.table(found.genes.sample(_DRAWN, np.random.default_rng(0)))
    for name, cost in found.costs.items():
        if cost.limit is not None and (cost.value(drawn) <= cost.limit).all():
            said.append(f"{run.at(f'limits.{name}')}: limit {name!r}: no network of {_DRAWN:,} exceeds it")
    if len(trained.networks) < FEWEST:
        said.append(f"{len(trained.networks)} trained networks are few: no answer can be confident before there are {FEWEST}")
    if found.noise is not None and np.std(trained.scores, ddof=1) <= found.noise:
        said.append("the scores differ less than two trainings of one network do")
    fixed = [cost for cost in found.costs.values() if cost.value.kind == "formula"]
    if fixed and len(trained.networks) >= FEWEST:
        told = [values for cost in fixed if np.ptp(values := cost.value(trained.networks))]
        taus = [spearmanr(values, found.scores)[0] for values in told] or [0.0]
        other = "lower" if found.sign > 0 else "higher"
        if max(taus) < -0.8:
            said.append(f"the score gets worse as every cost grows (rank correlation {max(taus):.1f}): is better: {other} meant?")
    if run.asks and run["labels"] < 50:
        said.append(f"{run.at('labels')}: {run['labels']} labels are few for a student; 50 or more are better")
    return said
