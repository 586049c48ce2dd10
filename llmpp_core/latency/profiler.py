"""The latency profiler: what a translation with an architecture takes on the device at hand, by the procedure of HAT.

A slow spell of the machine must not fall on one architecture. So tables are measured in several rounds of random order, and a small
network that is always the same, the calibration, runs between all runs: where it is slow, the machine is.
"""

from __future__ import annotations

import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import iqr, trimboth

from llmpp_core.jobs.files import understood
from llmpp_core.jobs.provenance import commit, processor
from llmpp_core.jobs.table import Table
from llmpp_core.latency.tables import MEASURED, LatencyMeasurement, LatencySettings, check_times
from llmpp_core.nets.transformer import Cache, Transformer
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.inputs import as_list
from llmpp_core.space.search_space import SearchSpace, as_generator
from llmpp_core.text.special_tokens import UNK

# The calibration is the smallest architecture of the space, with this share of the decoder's steps.
_CALIBRATION_STEPS = 1 / 6
# On a quiet machine the middle half of so many calibrations lies within this share of their median.
_QUIET_SPREAD, _CHECKS = 0.05, 30


def measure_latency(arch: Architecture, space: SearchSpace, settings: LatencySettings) -> LatencyMeasurement:
    """Measure one architecture in one round: plain times, not corrected for the machine's pace; see `warn_if_busy`.

    A run is a translation: the encoder, then the decoder, which repeats what it reads of the source for all hypotheses and takes
    its steps with the output projection, but does not choose among hypotheses. Weights and tokens are random, since time does not
    depend on them.

    Raises
    ------
    ValueError
        If `arch` is not in `space`, the device is not here, or a length is more than the network has room for.
    """
    with _measuring(settings):
        run, calibration = _translation(arch, space, settings, settings.target_length), _calibration(space, settings)
        times = [(*run(), sum(calibration())) for _ in range(settings.warmup + settings.runs)]
    kept = trimboth(times[settings.warmup :], 0.1, axis=0)
    (encoder, decoder, pace), spread = kept.mean(axis=0).tolist(), kept.std(axis=0).tolist()
    load, name = os.getloadavg()[0], device_name(settings.device)
    return LatencyMeasurement(encoder, decoder, spread[0], spread[1], pace, spread[2], load, name, settings)


def measurement_order(
    archs: Sequence[Architecture], space: SearchSpace, rounds: int, rng: np.random.Generator
) -> list[tuple[int, Architecture]]:
    """Return pairs of round and architecture, in random order within each round; ValueError unless all architectures are in `space`."""
    distinct = list(dict.fromkeys(as_list(archs)))
    if not distinct or rounds < 1:
        raise ValueError(f"expected at least one architecture and one round, got {len(distinct)} and {rounds}")
    for arch in distinct:
        space.validate(arch)
    return [(number, distinct[i]) for number in range(rounds) for i in as_generator(rng).permutation(len(distinct))]


def extend_latency_table(
    archs: Sequence[Architecture],
    space: SearchSpace,
    settings: LatencySettings,
    path: str | Path,
    rng: np.random.Generator,
    *,
    repeats: int = 3,
    seconds: float = math.inf,
    progress: bool = False,
) -> bool:
    """Measure what a table lacks, in `repeats` rounds, the order of each drawn by `rng`; return whether it is complete.

    A call that was stopped, at any moment or after so many `seconds`, is made again and goes on. Architectures, of which equal ones
    are measured once, and rounds can become more later. `llmpp_core.latency.tables.read_latency_table` reads the JSONL file.

    Raises
    ------
    ValueError
        As `measure_latency`; or if the file is damaged, or was measured in another space, with other settings, on another device or
        with another PyTorch.
    """
    stop = time.time() + seconds
    order = measurement_order(archs, space, repeats, rng)
    table = _table(space, settings, path)
    table.rows()
    if seconds > 0:
        warn_if_busy(space, settings)

    def work(arch: Architecture) -> dict[str, Any] | None:
        if time.time() > stop:
            return None
        measured = measure_latency(arch, space, settings)
        return {**{name: getattr(measured, name) for name in MEASURED}, "commit": _commit()}

    jobs = [({"arch": arch.to_hat_dict(), "round": number}, (arch,)) for number, arch in order]
    return len(table.run(work, jobs, progress=table.path.stem if progress else None)) == len(jobs)


class MeasuredLatency:
    """Latency as a cost of a search that measures its candidates: for `llmpp_core.search.limits.Limit`.

    Each architecture is measured once and remembered in a file, so a search that is run again, or goes on, sees the same numbers. Put
    a limit on the predicted latency, a little wider, before it: then only what may be within the limit is measured.

    Parameters
    ----------
    space, settings
        As for `extend_latency_table`.
    path : path
        The JSONL file, one row per architecture.
    repeats : int
        Rounds per architecture, of which the median counts.

    Raises
    ------
    ValueError
        If the file is damaged or was measured otherwise; in a call, if another process is measuring into it.
    """

    def __init__(self, space: SearchSpace, settings: LatencySettings, path: str | Path, *, repeats: int = 3):
        if repeats < 1:
            raise ValueError(f"repeats: expected a positive number, got {repeats}")
        self.space, self.settings, self.path, self.repeats = space, settings, Path(path), repeats
        self._table = _table(space, settings, path, repeats=repeats)
        self._known: dict[Architecture, float] = {}
        # All times are as if the machine always had the pace of the first measurement.
        self._pace: float | None = None
        self._read()

    def _read(self) -> None:
        for number, row in enumerate(self._table.rows(), 1):
            with understood(f"{self.path}:{number}"):
                check_times(row["latency_ms"], row["pace_ms"])
                self._known[Architecture.from_hat_dict(row["arch"])] = float(row["latency_ms"])
                self._pace = float(row["pace_ms"])

    def __call__(self, archs: Sequence[Architecture]) -> np.ndarray:
        """Return latencies in ms, shape (n,), measuring what is not known."""
        archs = as_list(archs)
        if any(arch not in self._known for arch in archs):
            with self._table.writing():
                # What another process measured since; twice would be two answers to one question.
                self._read()
                for arch in archs:
                    if arch not in self._known:
                        self._measure(arch)
        return np.array([self._known[arch] for arch in archs], dtype=float)

    def _measure(self, arch: Architecture) -> None:
        rounds = [measure_latency(arch, self.space, self.settings) for _ in range(self.repeats)]
        if self._pace is None:
            self._pace = float(np.median([m.calibration_ms for m in rounds]))
        latency = float(np.median([m.latency_ms / m.calibration_ms for m in rounds])) * self._pace
        self._table.append([{"arch": arch.to_hat_dict(), "latency_ms": latency, "pace_ms": self._pace, "commit": _commit()}])
        self._known[arch] = latency


def _table(space: SearchSpace, settings: LatencySettings, path: str | Path, **more: Any) -> Table:
    """Return a table whose rows were all measured alike."""
    device, library = device_name(settings.device), str(torch.__version__)
    origin = {"space": space.name, "qkv_dim": space.qkv_dim, "settings": asdict(settings), "device_name": device, "torch": library}
    # Earlier rows do not say how wide attention is inside, which no architecture says either.
    return Table(path, {**origin, **more}, {"qkv_dim": space.qkv_dim})


@cache
def _commit() -> str:
    return commit(Path(__file__).resolve().parents[2])


def warn_if_busy(space: SearchSpace, settings: LatencySettings) -> None:
    """Warn the caller's caller, in one line, if the machine is too busy to measure well."""
    load, processors, reasons = os.getloadavg()[0], os.cpu_count() or 1, []
    # Every machine has something running, so half a process is let pass.
    if load + settings.threads > processors + 0.5:
        reasons.append(f"a load of {load:.1f} leaves less than {settings.threads} of {processors} processors free")
    with _measuring(settings):
        calibration = _calibration(space, settings)
        times = [sum(calibration()) for _ in range(settings.warmup + _CHECKS)][settings.warmup :]
    spread = iqr(times) / np.median(times)
    if spread > _QUIET_SPREAD:
        reasons.append(f"times of equal work lie {spread:.0%} apart, more than {_QUIET_SPREAD:.0%}")
    if reasons:
        warnings.warn(f"machine is busy: {'; '.join(reasons)}", RuntimeWarning, stacklevel=3)


@cache
def device_name(device: str) -> str:
    """Return the model of the processor or GPU that PyTorch calls `device`; raises ValueError if there is none."""
    if device == "cpu":
        return processor()
    match, gpus = re.fullmatch(r"cuda(?::(\d+))?", device), torch.cuda.device_count()
    if match is None or int(match[1] or 0) >= gpus:
        raise ValueError(f"device: {device!r} is not here; allowed are {', '.join(['cpu', *(f'cuda:{i}' for i in range(gpus))])}")
    return str(torch.cuda.get_device_name(device))


@contextmanager
def _measuring(settings: LatencySettings) -> Iterator[None]:
    """Inference mode with the number of threads of `settings`; both are as before afterwards."""
    device_name(settings.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


def _calibration(space: SearchSpace, settings: LatencySettings) -> Callable[[], tuple[float, float]]:
    return _translation(space.smallest(), space, settings, max(1, round(settings.target_length * _CALIBRATION_STEPS)))


def _translation(arch: Architecture, space: SearchSpace, settings: LatencySettings, steps: int) -> Callable[[], tuple[float, float]]:
    """Return a function that translates one batch and returns what encoder and decoder took, in ms."""
    device, generator = torch.device(settings.device), torch.Generator().manual_seed(0)
    model = Transformer(arch, space, settings.vocab_size)
    model.initialise(generator)
    model.to(device).eval()

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(UNK + 1, settings.vocab_size, shape, generator=generator).to(device)

    source, target = words(settings.batch, settings.source_length), words(steps, settings.batch * settings.beam)

    def now() -> int:
        # Python runs ahead of a GPU; the clock is read when all that was asked for is done.
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter_ns()

    def run() -> tuple[float, float]:
        start = now()
        memory = model.encode(source)
        middle = now()
        caches = [Cache._make(_repeat(part, settings.beam) for part in cache) for cache in model.start(memory)]
        for position, tokens in enumerate(target):
            _, caches = model.step(tokens, position, caches)
        return (middle - start) / 1e6, (now() - middle) / 1e6

    return run


def _repeat(part: torch.Tensor | None, beam: int) -> torch.Tensor | None:
    return None if part is None else part.repeat_interleave(beam, dim=0)
