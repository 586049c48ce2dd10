"""Tables of latencies measured here: JSONL files that grow by a row per measurement, to stop and to go on at will."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from llmpp_core.jobs.files import alone, append_rows, need_writable, read_rows
from llmpp_core.jobs.provenance import commit
from llmpp_core.jobs.table import run_jobs
from llmpp_core.latency.profiler import LatencyMeasurement, LatencySettings, at_one_pace, device_name, measure, turns, warn_if_busy
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.features import HAT_FEATURE_NAMES, HATFeatures
from llmpp_core.space.inputs import as_list
from llmpp_core.space.search_space import SearchSpace

# What a row holds of a `LatencyMeasurement` beside its settings.
_MEASURED = tuple(field.name for field in fields(LatencyMeasurement) if field.name not in ("settings", "rounds", "repeatability"))


def build_latency_table(
    archs: Sequence[Architecture],
    space: SearchSpace,
    settings: LatencySettings,
    path: Path,
    rng: np.random.Generator,
    *,
    repeats: int = 3,
    progress: bool = False,
) -> pd.DataFrame:
    """Do as `extend_latency_table` to the end, and return the whole table, as `read_latency_table` gives it."""
    extend_latency_table(archs, space, settings, path, rng, repeats=repeats, progress=progress)
    return read_latency_table(path)


def extend_latency_table(
    archs: Sequence[Architecture],
    space: SearchSpace,
    settings: LatencySettings,
    path: Path,
    rng: np.random.Generator,
    *,
    repeats: int = 3,
    seconds: float = math.inf,
    progress: bool = False,
) -> bool:
    """Measure as `llmpp_core.latency.profiler.measure_many` does what a table lacks; rows hold plain times of one round.

    A call that was stopped, at any moment, is made again and goes on. Architectures and rounds can become more later.

    Parameters
    ----------
    archs, space, settings, rng, repeats, progress
        As for `measure_many`.
    path : path
        The JSONL file.
    seconds : float
        Stop after so long.

    Returns
    -------
    bool
        Whether the table is complete.

    Raises
    ------
    ValueError
        As `measure_many`; or if the file is damaged, or was measured in another space, with other settings, on another device or
        with another PyTorch.
    """
    stop = time.time() + seconds
    order = turns(archs, space, repeats, rng)
    origin = _origin(space, settings)
    _read_alike(path, origin)
    if seconds > 0:
        warn_if_busy(space, settings)

    def work(arch: Architecture) -> dict[str, Any] | None:
        if time.time() > stop:
            return None
        measured = asdict(measure(arch, space, settings))
        return {**{name: measured[name] for name in _MEASURED}, **origin, "commit": _commit()}

    jobs = [({"arch": arch.to_hat_dict(), "round": number}, (arch,)) for number, arch in order]
    return len(run_jobs(work, jobs, path, progress=path.stem if progress else None)) == len(jobs)


def read_latency_table(path: Path) -> pd.DataFrame:
    """Read a table, corrected for the machine's pace (see `llmpp_core.latency.profiler.at_one_pace`).

    Returns
    -------
    pandas.DataFrame
        One row per architecture, in the order of the file: architecture, the ten columns of `HAT_FEATURE_NAMES`, the numbers of a
        `LatencyMeasurement`, and latency_ms. So it serves as a table of `llmpp_core.upstream.latency_table` does.

    Raises
    ------
    ValueError
        If the file is absent, empty or damaged; names file and line.
    """
    found: dict[Architecture, list[LatencyMeasurement]] = {}
    for number, row in enumerate(read_rows(path), 1):
        try:
            arch = Architecture.from_hat_dict(row["arch"])
            measured = LatencyMeasurement(**{name: row[name] for name in _MEASURED}, settings=LatencySettings(**row["settings"]))
            if not all(0 < value < math.inf for value in (measured.encoder_ms, measured.decoder_ms, measured.calibration_ms)):
                raise ValueError("expected positive times")
        except KeyError as error:
            raise ValueError(f"{path}:{number}: the row has no {error}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        found.setdefault(arch, []).append(measured)
    if not found:
        raise ValueError(f"{path} is not there or empty; measure it with build_latency_table")
    table = pd.DataFrame([asdict(measured) for measured in at_one_pace(list(found.values()))]).drop(columns="settings")
    features = pd.DataFrame(HATFeatures().transform(list(found)), columns=list(HAT_FEATURE_NAMES))
    table = pd.concat([pd.DataFrame({"architecture": list(found)}), features, table], axis=1)
    return table.assign(latency_ms=table["encoder_ms"] + table["decoder_ms"])


class MeasuredLatency:
    """Latency as a cost of a search that measures its candidates: for `llmpp_core.search.limits.Limit`.

    Each architecture is measured once and remembered in a file, so a search that is run again, or goes on, sees the same numbers. Put
    a limit on the predicted latency, a little wider, before it: then only what may be within the limit is measured.

    Parameters
    ----------
    space, settings
        As for `build_latency_table`.
    path : path
        The JSONL file, one row per architecture.
    repeats : int
        Rounds per architecture, of which the median counts.

    Raises
    ------
    ValueError
        If the file is damaged or was measured otherwise, as `build_latency_table`; in a call, if another process is measuring into it.
    """

    def __init__(self, space: SearchSpace, settings: LatencySettings, path: Path, *, repeats: int = 3):
        if repeats < 1:
            raise ValueError(f"repeats: expected a positive number, got {repeats}")
        self.space, self.settings, self.path, self.repeats = space, settings, path, repeats
        self._origin = {**_origin(space, settings), "repeats": repeats}
        self._known: dict[Architecture, float] = {}
        # All times are as if the machine always had the pace of the first measurement.
        self._pace: float | None = None
        self._read()

    def _read(self) -> None:
        path = self.path
        for number, row in enumerate(_read_alike(path, self._origin), 1):
            try:
                self._known[Architecture.from_hat_dict(row["arch"])] = float(row["latency_ms"])
                self._pace = float(row["pace_ms"])
                if not all(0 < value < math.inf for value in (row["latency_ms"], row["pace_ms"])):
                    raise ValueError("expected positive times")
            except KeyError as error:
                raise ValueError(f"{path}:{number}: the row has no {error}") from None
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number}: {error}") from None

    def __call__(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return latencies in ms, shape (n,), measuring what is not known."""
        archs = as_list(archs)
        if any(arch not in self._known for arch in archs):
            need_writable(self.path)
            with alone(self.path):
                # What another process measured since; twice would be two answers to one question.
                self._read()
                for arch in archs:
                    if arch not in self._known:
                        self._measure(arch)
        return np.array([self._known[arch] for arch in archs], dtype=float)

    def _measure(self, arch: Architecture) -> None:
        rounds = [measure(arch, self.space, self.settings) for _ in range(self.repeats)]
        if self._pace is None:
            self._pace = float(np.median([m.calibration_ms for m in rounds]))
        latency = float(np.median([m.latency_ms / m.calibration_ms for m in rounds])) * self._pace
        row = {"arch": arch.to_hat_dict(), "latency_ms": latency, "pace_ms": self._pace, **self._origin, "commit": _commit()}
        append_rows(self.path, [row])
        self._known[arch] = latency


def _origin(space: SearchSpace, settings: LatencySettings) -> dict[str, Any]:
    """Return what the rows of one file have in common."""
    device, library = device_name(settings.device), str(torch.__version__)
    return {"space": space.name, "qkv_dim": space.qkv_dim, "settings": asdict(settings), "device_name": device, "torch": library}


def _read_alike(path: Path, origin: dict[str, Any]) -> list[dict[str, Any]]:
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        # Earlier rows do not say how wide attention is inside, which no architecture says either.
        row.setdefault("qkv_dim", origin["qkv_dim"])
        for name, value in origin.items():
            if row.get(name) != value:
                raise ValueError(f"{path}:{number}: measured with {name} {_difference(row.get(name), value)}; use another file")
    return rows


def _difference(had: Any, asked: Any) -> str:
    """Say how `had` differs from `asked`, for mappings only where they differ."""
    if isinstance(had, dict) and isinstance(asked, dict):
        differing = [name for name in asked if had.get(name) != asked[name]]
        had, asked = (", ".join(f"{name}={side.get(name)}" for name in differing) for side in (had, asked))
    return f"{had}, not {asked}"


@cache
def _commit() -> str:
    return commit(Path(__file__).resolve().parents[2])
