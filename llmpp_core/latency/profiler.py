"""The latency profiler: what a translation with an architecture takes on the device at hand, by the procedure of HAT.

A slow spell of the machine must not fall on one architecture. So architectures take turns, in several rounds of random order, and
a small network that is always the same, the calibration, runs between all runs: where it is slow, the machine is. `measure` gives
plain times; `measure_many` and the tables of `llmpp_core.latency.tables` correct them for the machine's pace.
"""

from __future__ import annotations

import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache

import numpy as np
import torch
from scipy.stats import iqr, trimboth

from llmpp_core.jobs.progress import progress_bar
from llmpp_core.jobs.provenance import processor
from llmpp_core.nets.transformer import MAX_LENGTH, Cache, Transformer
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.inputs import as_list
from llmpp_core.space.search_space import SearchSpace, as_generator
from llmpp_core.text.vocabulary import UNK

# The calibration is the smallest architecture of the space, with this share of the decoder's steps.
_CALIBRATION_STEPS = 1 / 6
# On a quiet machine the middle half of so many calibrations lies within this share of their median.
_QUIET_SPREAD, _CHECKS = 0.05, 30


@dataclass(frozen=True)
class LatencySettings:
    """How latency is measured. Sizes are HAT's for WMT unless given; for IWSLT it takes lengths of 23.

    Parameters
    ----------
    vocab_size : int
        Size V of the joint vocabulary; decides what the output projection takes.
    device : str
        "cpu", "cuda" or "cuda:N".
    source_length, target_length : int
        Tokens that the encoder reads, and steps that the decoder takes.
    batch, beam : int
        Sentences at once, and hypotheses of each in the decoder.
    warmup, runs : int
        Translations before any is timed, and translations timed.
    threads : int
        Processor threads.

    Raises
    ------
    ValueError
        If a number is not a positive integer, or is one that the network has no room for.
    """

    vocab_size: int
    device: str = "cpu"
    source_length: int = 30
    target_length: int = 30
    batch: int = 1
    beam: int = 5
    warmup: int = 3
    runs: int = 20
    threads: int = 1

    def __post_init__(self) -> None:
        lowest = {"vocab_size": UNK + 2, "warmup": 0}
        highest = {"source_length": MAX_LENGTH, "target_length": MAX_LENGTH}
        for name, value in asdict(self).items():
            low, high = lowest.get(name, 1), highest.get(name, math.inf)
            if name != "device" and (not isinstance(value, int) or not low <= value <= high):
                raise ValueError(f"{name}: expected an integer from {low} to {high}, got {value!r}")


@dataclass(frozen=True)
class LatencyMeasurement:
    """What one architecture takes.

    Parameters
    ----------
    encoder_ms, decoder_ms : float
        Means over runs without the fastest and the slowest tenth; medians over rounds where there are several.
    encoder_std_ms, decoder_std_ms : float
        Standard deviations over the same runs.
    calibration_ms, calibration_std_ms : float
        Mean and standard deviation of the calibration, which took turns with the runs.
    load : float
        Processes that wanted to run on the machine, averaged over a minute.
    device_name : str
        Model of the processor or GPU.
    settings : LatencySettings
        How this was measured.
    rounds : int
        Number of rounds.
    repeatability : float, optional
        Standard deviation of `latency_ms` over rounds, relative to it; None after a single round.
    """

    encoder_ms: float
    decoder_ms: float
    encoder_std_ms: float
    decoder_std_ms: float
    calibration_ms: float
    calibration_std_ms: float
    load: float
    device_name: str
    settings: LatencySettings
    rounds: int = 1
    repeatability: float | None = None

    @property
    def latency_ms(self) -> float:
        """Return the sum of encoder and decoder."""
        return self.encoder_ms + self.decoder_ms


def measure(arch: Architecture, space: SearchSpace, settings: LatencySettings) -> LatencyMeasurement:
    """Measure one architecture in one round; `why_busy` says whether this is a good moment.

    A run is a translation: the encoder, then the decoder, which repeats what it reads of the source for all hypotheses and takes
    its steps with the output projection, but does not choose among hypotheses. Weights and tokens are random, since time does not
    depend on them.

    Raises
    ------
    ValueError
        If `arch` is not in `space`, or the device is not here.
    """
    with _measuring(settings):
        run, calibration = _translation(arch, space, settings, settings.target_length), _calibration(space, settings)
        times = [(*run(), sum(calibration())) for _ in range(settings.warmup + settings.runs)]
    kept = trimboth(times[settings.warmup :], 0.1, axis=0)
    (encoder, decoder, pace), spread = kept.mean(axis=0).tolist(), kept.std(axis=0).tolist()
    load, name = os.getloadavg()[0], device_name(settings.device)
    return LatencyMeasurement(encoder, decoder, spread[0], spread[1], pace, spread[2], load, name, settings)


def measure_many(
    archs: Sequence[Architecture],
    space: SearchSpace,
    settings: LatencySettings,
    rng: np.random.Generator,
    *,
    repeats: int = 3,
    progress: bool = False,
) -> list[LatencyMeasurement]:
    """Measure architectures in turn; warns if the machine is busy.

    Parameters
    ----------
    archs : sequence of Architecture
        The architectures; of equal ones, one is measured.
    space : SearchSpace
        Their space.
    settings : LatencySettings
        How to measure.
    rng : numpy.random.Generator
        Draws the order of each round.
    repeats : int
        Number of rounds.
    progress : bool
        Show a progress bar.

    Returns
    -------
    list of LatencyMeasurement
        One for each of `archs`, as `at_one_pace` gives it.

    Raises
    ------
    ValueError
        As `measure`, but before anything is measured.
    """
    archs = as_list(archs)
    order = turns(archs, space, repeats, rng)
    warn_if_busy(space, settings)
    found: dict[Architecture, list[LatencyMeasurement]] = {arch: [] for arch in archs}
    for _, arch in progress_bar(order, desc="latency", disable=not progress):
        found[arch].append(measure(arch, space, settings))
    steady = dict(zip(found, at_one_pace(list(found.values())), strict=True))
    return [steady[arch] for arch in archs]


def turns(archs: Sequence[Architecture], space: SearchSpace, repeats: int, rng: np.random.Generator) -> list[tuple[int, Architecture]]:
    """Return number of the round and architecture of each turn, random within rounds; raises ValueError unless all are in `space`."""
    distinct = list(dict.fromkeys(as_list(archs)))
    if not distinct or repeats < 1:
        raise ValueError(f"expected at least one architecture and one round, got {len(distinct)} and {repeats}")
    for arch in distinct:
        space.validate(arch)
    return [(number, distinct[i]) for number in range(repeats) for i in as_generator(rng).permutation(len(distinct))]


def at_one_pace(measured: Sequence[Sequence[LatencyMeasurement]]) -> list[LatencyMeasurement]:
    """Return the median over the rounds of each architecture, of times as if the machine always had the same pace.

    The pace is that of the fastest tenth of all calibrations, so where other work slows the machine down only at times, times are
    those of the machine undisturbed.
    """
    pace = np.quantile([m.calibration_ms for rounds in measured for m in rounds], 0.1)
    names = ("encoder_ms", "decoder_ms", "encoder_std_ms", "decoder_std_ms", "calibration_ms", "calibration_std_ms")
    steady = []
    for rounds in measured:
        times = np.array([[getattr(m, name) * pace / m.calibration_ms for name in names] for m in rounds])
        total = times[:, :2].sum(axis=1)
        spread = float(total.std(ddof=1) / np.median(total)) if len(total) > 1 else None
        medians = dict(zip(names, np.median(times, axis=0).tolist(), strict=True))
        load = float(np.median([m.load for m in rounds]))
        steady.append(replace(rounds[0], **medians, load=load, rounds=len(rounds), repeatability=spread))
    return steady


def why_busy(space: SearchSpace, settings: LatencySettings) -> str | None:
    """Return in one line why the machine is too busy to measure well, or None if it seems quiet."""
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
    return f"machine is busy: {'; '.join(reasons)}" if reasons else None


def warn_if_busy(space: SearchSpace, settings: LatencySettings) -> None:
    """Warn the caller's caller with what `why_busy` says."""
    if reason := why_busy(space, settings):
        warnings.warn(reason, RuntimeWarning, stacklevel=3)


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
