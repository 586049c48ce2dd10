"""Architecture search with performance predictors: the frame that every method shares, and the evolutionary search of HAT.

A search goes in iterations. Each proposes candidates within the limits, has a predictor score those that it has not scored
before, and makes a `Record`, from which alone the next one goes on: so a search reads its file and continues as if it had
never been interrupted. Random numbers depend on the seed and the number of the iteration.

HS-NAS, the search of the paper, is the evolutionary search under the schedule ``[(distilled, 15), (supernet, 15)]``.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from llmpp_core.jobs.files import alone, append_rows, need_writable
from llmpp_core.jobs.progress import progress_bar
from llmpp_core.search.feasible import Feasible
from llmpp_core.search.limits import Limit, warn_if_idle
from llmpp_core.search.records import Population, Previous, Record, SearchResult, read_records
from llmpp_core.search.schedule import Adaptive, Candidates, Entry, default_names, predictors_of
from llmpp_core.search.scores import Ask, Scores, ranking, spread
from llmpp_core.space.choice import Space
from llmpp_core.space.genes import Genes


class Search(ABC):
    """What the searches share; a method adds `propose` and may change `select`.

    Parameters
    ----------
    space : Space
        Where to search.
    schedule : sequence of entries
        Pairs of predictor and number of iterations, or `llmpp_core.search.schedule.Adaptive`. Predictors are fitted regressors over
        networks of the space, higher is better.
    constraints : Limit or sequence of Limit
        What candidates may cost.
    seed : int
        Decides the search, together with its settings and predictors.
    names : sequence of str, optional
        Names of the distinct predictors in the order in which the schedule mentions them; their classes by default.
    """

    def __init__(
        self,
        space: Space,
        schedule: Sequence[Entry],
        constraints: Limit | Sequence[Limit] = (),
        seed: int = 0,
        names: Sequence[str] | None = None,
    ):
        self.space = space
        self.schedule = list(schedule)
        self.limits = tuple(constraints if isinstance(constraints, Iterable) else [constraints])
        if not all(isinstance(limit, Limit) for limit in self.limits):
            raise ValueError(f"constraints: expected a Limit, or several, got {constraints!r}")
        for entry in self.schedule:
            if not isinstance(entry, Adaptive) and not (isinstance(entry, tuple) and len(entry) == 2 and is_integer(entry[1])):
                raise ValueError(f"schedule: expected pairs of predictor and number of iterations, or Adaptive, got {entry!r}")
        predictors = predictors_of(self.schedule)
        for predictor in predictors:
            if not hasattr(predictor, "predict"):
                raise ValueError(f"schedule: expected predictors with a method predict, got {predictor!r}")
        self.seed = seed
        self.genes = Genes(space)
        counts = [entry.iterations if isinstance(entry, Adaptive) else entry[1] for entry in self.schedule]
        if not counts or min(counts) < 0 or not sum(counts):
            raise ValueError(f"schedule: expected entries of at least one iteration in all, got {counts} iterations")
        if not is_integer(seed) or seed < 0:
            raise ValueError(f"seed: expected an integer from 0, got {seed!r}")
        self.iterations = sum(counts)
        self.names = list(names or default_names(predictors))
        if len(self.names) != len(predictors) or len(set(self.names)) < len(predictors):
            raise ValueError(f"names: expected {len(predictors)} different ones, one per predictor, got {', '.join(self.names)}")
        self._name = {id(predictor): name for predictor, name in zip(predictors, self.names, strict=True)}
        # Refuses limits of the same name before anything is computed.
        Feasible(self.genes, self.limits)

    def settings(self) -> dict[str, Any]:
        """Return what the records' "search" holds: enough to tell whether a file is of this search."""
        entries = [
            {
                "cheap": self._name[id(e.cheap)],
                "costly": self._name[id(e.costly)],
                "iterations": e.iterations,
                "rule": repr(e.rule),
                "last": e.last,
            }
            if isinstance(e, Adaptive)
            else {"predictor": self._name[id(e[0])], "iterations": e[1]}
            for e in self.schedule
        ]
        # Infinity is no JSON.
        limits = [{"name": x.name, "limit": float(x.limit) if np.isfinite(x.limit) else None, "unit": x.unit} for x in self.limits]
        space = {"space": self.space.name, "choices_sha256": self.space.fingerprint()}
        return {"method": type(self).__name__, **space, "seed": int(self.seed), "schedule": entries, "limits": limits}

    def __iter__(self) -> Iterator[Record]:
        return self.iterate()

    def run(self, path: str | Path | None = None, progress: bool = False) -> SearchResult:
        """Search to the end; arguments and errors as of `iterate`."""
        return SearchResult(list(self.iterate(path, progress)))

    def iterate(self, path: str | Path | None = None, progress: bool = False) -> Iterator[Record]:
        """Yield one record per iteration.

        Parameters
        ----------
        path : path, optional
            A JSONL file. Records in it are yielded and not computed again; each new one is appended and on the disk before it is
            yielded, so a crash at any moment loses one iteration at most.
        progress : bool
            Show a progress bar.

        Raises
        ------
        llmpp_core.search.limits.InfeasibleError
            If nothing is within the limits.
        ValueError
            If the file is damaged, of another search or cannot be written, another process adds to it, or a predictor does not give one
            score per architecture.
        """
        settings, path = self.settings(), Path(path) if path else None
        done = read_records(path, self.genes, settings) if path else []
        if path is None or len(done) == self.iterations:
            # What is complete may be read by several, and from where nothing can be written.
            yield from self._iterate(done, settings, path, progress)
            return
        need_writable(path)
        with alone(path):
            yield from self._iterate(read_records(path, self.genes, settings), settings, path, progress)

    def _iterate(self, done: list[Record], settings: dict[str, Any], path: Path | None, progress: bool) -> Iterator[Record]:
        scores, feasible = Scores(self.genes), Feasible(self.genes, self.limits)
        if done:
            self._refuse_others(done[-1], path, scores)
        previous: Previous | None = None
        with progress_bar(total=self.iterations, desc=settings["method"], disable=not progress) as bar:
            for entry in self.schedule:
                cheap, iterations, rule, costly, last = (
                    (entry.cheap, entry.iterations, entry.rule, entry.costly, entry.last)
                    if isinstance(entry, Adaptive)
                    else (*entry, None, None, 0)
                )
                switched, history = False, list[Any]()
                for i in range(iterations):
                    left = iterations - last - i
                    predictor = costly if switched or left <= 0 else cheap
                    question = (rule, costly, history) if rule is not None and not switched and left > 1 else None
                    t = 0 if previous is None else previous.record.iteration + 1
                    if t < len(done):
                        record = done[t]
                        scores.recall(record, None if rule is None else self._name[id(costly)])
                        rows = self.genes.from_text(record.population)
                        costs = np.array([record.costs[limit.name] for limit in self.limits], dtype=float)
                        previous = Previous(record, rows, costs.reshape(len(self.limits), len(rows)).T)
                    else:
                        previous = self._step(t, predictor, previous, scores, feasible, question)
                        if t == 0:
                            warn_if_idle(self.limits, previous.costs)
                        record = previous.record
                        if path:
                            append_rows(path, [{"search": settings, **record.to_row()}])
                    switched = switched or record.switch
                    history.append(record.rule)
                    bar.update()
                    bar.set_postfix_str(f"score {record.score:.4g}")
                    yield record

    def _refuse_others(self, record: Record, path: str | Path | None, scores: Scores) -> None:
        """Ask predictor and costs about the best of a record; ValueError if they say something else than it does."""
        predictor = next(p for p in predictors_of(self.schedule) if self._name[id(p)] == record.predictor)
        said = {record.predictor: (record.score, scores.predict(record.predictor, predictor, self.genes.encode([record.best]))[0])}
        said |= {limit.name: (record.best_costs[limit.name], limit.costs([record.best])[0]) for limit in self.limits}
        for name, (before, now) in said.items():
            # Wider than what rounding does to networks, which depends on how many are asked about at once.
            if not np.isclose(before, now, rtol=1e-3):
                raise ValueError(
                    f"{path}: of another search: {name} of iteration {record.iteration} was {before:.6g} there and is {now:.6g} here"
                )

    @abstractmethod
    def propose(self, rng: np.random.Generator, previous: Previous | None, feasible: Feasible, ask: Ask) -> Population:
        """Return different candidates within the limits; may ask for scores on the way, and know those given so far."""

    def select(self, order: np.ndarray, scores: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """Return positions of the candidates that go on, best first; `order` is that of the scores."""
        return order

    def _step(
        self, t: int, predictor: Any, previous: Previous | None, scores: Scores, feasible: Feasible, question: tuple[Any, Any, Any] | None
    ) -> Previous:
        begin, scoring, constraints = time.perf_counter(), scores.seconds, feasible.seconds
        ask = Ask(self._name[id(predictor)], predictor, scores)
        population = self.propose(np.random.default_rng([self.seed, t]), previous, feasible, ask)
        found = ask(population.rows)
        if np.isnan(found).all():
            raise ValueError(f"{ask.name}: every one of the {len(found)} scores of iteration {t} is nan")
        order = ranking(found)
        parents = self.select(order, found, population.costs)
        seconds = {"constraints": feasible.seconds - constraints, "score": scores.seconds - scoring, "rule": 0.0}
        decision: dict[str, Any] = {}
        if question is not None:
            start = time.perf_counter()
            ranked = np.concatenate([parents, order[~np.isin(order, parents)]])
            decision = self._decide(*question, predictor, population.rows[ranked], found[ranked], len(parents), scores)
            seconds["rule"] = time.perf_counter() - start
        names, known = [limit.name for limit in self.limits], None if previous is None else previous.record
        first = int(order[0])
        score = float(found[first])
        # The earlier stays unless the later is better by more than the last digits.
        if known is not None and known.predictor == ask.name and score - known.score <= 1e-10 * abs(score):
            best, score, best_costs = known.best, known.score, known.best_costs
        else:
            best, best_costs = self.genes.table(population.rows)[first], dict(zip(names, population.costs[first].tolist(), strict=True))
        seconds["propose"] = time.perf_counter() - begin - sum(seconds.values())
        record = Record(
            iteration=t,
            predictor=ask.name,
            best=best,
            score=score,
            spread=spread(found),
            evaluations=scores.take(),
            seconds=seconds,
            population=self.genes.to_text(population.rows),
            scores=[score if score == score else None for score in found.tolist()],
            costs=dict(zip(names, population.costs.T.tolist(), strict=True)),
            parents=parents.tolist(),
            best_costs=best_costs,
            state=population.state,
            **decision,
        )
        return Previous(record, population.rows, population.costs)

    def _decide(
        self, rule: Any, costly: Any, history: list[Any], cheap: Any, rows: np.ndarray, found: np.ndarray, parents: int, scores: Scores
    ) -> dict[str, Any]:
        ask, genomes = Ask(self._name[id(costly)], costly, scores), self.genes.to_text(rows)
        known = np.array([ask.known.get(genome, np.nan) for genome in genomes])
        candidates = Candidates(self.genes.table(rows), found, parents, cheap, known, list(history), lambda _: None)
        probed: dict[str, float | None] = {}

        def probe(positions: Sequence[int]) -> None:
            wanted = list(positions)
            new = [genomes[i] for i in wanted if genomes[i] not in ask.known]
            candidates.costly[wanted] = ask(rows[wanted])
            probed.update((genome, None if np.isnan(ask.known[genome]) else ask.known[genome]) for genome in new)

        candidates.ask = probe
        switch, numbers = rule(candidates)
        finite = {name: value if np.isfinite(value) else None for name, value in numbers.items()}
        return {"switch": bool(switch), "rule": finite, "probe": probed}


def is_integer(number: Any) -> bool:
    """Return whether this is an integer, of Python or NumPy."""
    return isinstance(number, Integral) and not isinstance(number, bool)


class EvolutionarySearch(Search):
    """The evolutionary search of HAT, under a schedule of predictors.

    The first candidates are random. In each later iteration they are the parents, the best of the iteration before, and new ones:
    mutants of a random parent and uniform crossovers of two. All are different, and within the limits: what is not is drawn again.
    When another predictor takes over, it scores the parents too.

    Where fewer architectures than `population` are within the limits, all of them are the candidates of every iteration.

    Parameters
    ----------
    space, schedule, constraints, seed, names
        As in `Search`.
    population : int
        Number of candidates of the first iteration.
    parents, mutants, crossovers : int
        Numbers in each later one.
    mutation_probability : float
        Probability of each gene to be resampled in a mutant.
    """

    def __init__(
        self,
        space: Space,
        schedule: Sequence[Entry],
        constraints: Limit | Sequence[Limit] = (),
        population: int = 125,
        parents: int = 25,
        mutants: int = 50,
        crossovers: int = 50,
        mutation_probability: float = 0.3,
        seed: int = 0,
        names: Sequence[str] | None = None,
    ):
        super().__init__(space, schedule, constraints, seed, names)
        if not all(is_integer(n) for n in (population, parents, mutants, crossovers)):
            raise ValueError(
                f"expected whole numbers, got population={population}, parents={parents}, mutants={mutants}, crossovers={crossovers}"
            )
        if not 2 <= parents <= population or min(mutants, crossovers) < 0 or not mutants + crossovers:
            raise ValueError(
                "expected 2 <= parents <= population and at least one mutant or crossover, got "
                f"population={population}, parents={parents}, mutants={mutants}, crossovers={crossovers}"
            )
        if not 0 < mutation_probability <= 1:
            raise ValueError(f"mutation_probability: expected a number above 0 and at most 1, got {mutation_probability}")
        self.population, self.parents, self.mutants, self.crossovers = population, parents, mutants, crossovers
        self.mutation_probability = mutation_probability

    def settings(self) -> dict[str, Any]:
        """Return what the records' "search" holds."""
        names = ("population", "parents", "mutants", "crossovers", "mutation_probability")
        return {**super().settings(), **{name: getattr(self, name) for name in names}}

    def propose(self, rng: np.random.Generator, previous: Previous | None, feasible: Feasible, ask: Ask) -> Population:
        """Return random candidates, or the parents, mutants and crossovers."""
        if previous is None:
            rows, costs = feasible.initial(self.population, rng)
            return Population(rows, costs, {"complete": len(rows) < self.population, "acceptance": [1.0, 1.0]})
        state = previous.record.state
        if state["complete"]:
            return Population(previous.rows, previous.costs, state)
        parents, costs = previous.rows[previous.record.parents], previous.costs[previous.record.parents]

        def mutants(n: int) -> np.ndarray:
            return self.genes.mutate(parents[rng.integers(len(parents), size=n)], rng, self.mutation_probability)

        def crossovers(n: int) -> np.ndarray:
            first = rng.integers(len(parents), size=n)
            second = (first + 1 + rng.integers(len(parents) - 1, size=n)) % len(parents)
            return self.genes.crossover(parents[first], parents[second], rng)

        rates = state["acceptance"]
        kinds = [(mutants, self.mutants, rates[0]), (crossovers, self.crossovers, rates[1])]
        rows, new_costs, rates = feasible.children(kinds, parents, rng)
        return Population(np.vstack([parents, rows]), np.vstack([costs, new_costs]), {**state, "acceptance": rates})

    def select(self, order: np.ndarray, scores: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """Return the positions of the parents."""
        return order[: self.parents]
