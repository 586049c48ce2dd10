"""Tables of measured latency, JSONL files with a row per measurement: what is in a row, and how a table is read; without PyTorch.

`llmpp_core.latency.profiler` writes them. Its rows hold plain times; the machine's pace is taken out when a table is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd

from llmpp_core.jobs.files import read_rows, understood
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.features import HAT_FEATURE_NAMES, HATFeatures


@dataclass(frozen=True)
class LatencySettings:
    """How latency is measured; ValueError names a number that cannot be.

    Sizes are HAT's for WMT unless given; for IWSLT it takes lengths of 23.
    """

    #: Size V of the joint vocabulary; decides what the output projection takes.
    vocab_size: int
    #: "cpu", "cuda" or "cuda:N".
    device: str = "cpu"
    #: Tokens that the encoder reads, and steps that the decoder takes.
    source_length: int = 30
    target_length: int = 30
    #: Sentences at once, and hypotheses of each in the decoder.
    batch: int = 1
    beam: int = 5
    #: Translations before any is timed, and translations timed.
    warmup: int = 3
    runs: int = 20
    #: Processor threads.
    threads: int = 1

    def __post_init__(self) -> None:
        # A vocabulary holds four special tokens and a word.
        lowest = {"vocab_size": 5, "warmup": 0}
        for name, value in asdict(self).items():
            if name != "device" and (not isinstance(value, int) or value < lowest.get(name, 1)):
                raise ValueError(f"{name}: expected an integer from {lowest.get(name, 1)}, got {value!r}")


@dataclass(frozen=True)
class LatencyMeasurement:
    """What one architecture takes."""

    #: Means over runs without the fastest and the slowest tenth, in ms; medians over rounds where there are several.
    encoder_ms: float
    decoder_ms: float
    #: Standard deviations over the same runs.
    encoder_std_ms: float
    decoder_std_ms: float
    #: The same of the calibration, a small network that is always the same and ran between the runs.
    calibration_ms: float
    calibration_std_ms: float
    #: Processes that wanted to run on the machine, averaged over a minute.
    load: float
    #: Model of the processor or GPU.
    device_name: str
    settings: LatencySettings
    #: Number of rounds, and the standard deviation of `latency_ms` over them, relative to it; None after a single round.
    rounds: int = 1
    repeatability: float | None = None

    @property
    def latency_ms(self) -> float:
        """Return the sum of encoder and decoder."""
        return self.encoder_ms + self.decoder_ms


#: What a row holds of a `LatencyMeasurement` beside its settings.
MEASURED = tuple(field.name for field in fields(LatencyMeasurement) if field.name not in ("settings", "rounds", "repeatability"))


def normalise_pace(measured: Sequence[Sequence[LatencyMeasurement]]) -> list[LatencyMeasurement]:
    """Return the median over the rounds of each architecture, of times as if the machine always had the same pace.

    The pace is that of the fastest tenth of all calibrations, so where other work slows the machine down only at times, times are
    those of the machine undisturbed.
    """
    pace = np.quantile([m.calibration_ms for rounds in measured for m in rounds], 0.1)
    names = [name for name in MEASURED if name.endswith("_ms")]
    steady = []
    for rounds in measured:
        times = np.array([[getattr(m, name) * pace / m.calibration_ms for name in names] for m in rounds])
        total = times[:, :2].sum(axis=1)
        spread = float(total.std(ddof=1) / np.median(total)) if len(total) > 1 else None
        medians = dict(zip(names, np.median(times, axis=0).tolist(), strict=True))
        load = float(np.median([m.load for m in rounds]))
        steady.append(replace(rounds[0], **medians, load=load, rounds=len(rounds), repeatability=spread))
    return steady


def read_latency_table(path: str | Path) -> pd.DataFrame:
    """Read a table, corrected for the machine's pace (see `normalise_pace`).

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
    for number, row in enumerate(read_rows(Path(path)), 1):
        with understood(f"{path}:{number}"):
            arch = Architecture.from_hat_dict(row["arch"])
            measured = LatencyMeasurement(**{name: row[name] for name in MEASURED}, settings=LatencySettings(**row["settings"]))
            check_times(measured.encoder_ms, measured.decoder_ms, measured.calibration_ms)
            found.setdefault(arch, []).append(measured)
    if not found:
        raise ValueError(f"{path} is not there or empty; measure it with llmpp_core.latency.profiler.extend_latency_table")
    table = pd.DataFrame([asdict(measured) for measured in normalise_pace(list(found.values()))]).drop(columns="settings")
    features = pd.DataFrame(HATFeatures().transform(list(found)), columns=list(HAT_FEATURE_NAMES))
    table = pd.concat([pd.DataFrame({"architecture": list(found)}), features, table], axis=1)
    return table.assign(latency_ms=table["encoder_ms"] + table["decoder_ms"])


def check_times(*times: float) -> None:
    """Raise ValueError unless all are positive and finite."""
    if not all(0 < value < math.inf for value in times):
        raise ValueError(f"expected positive times, got {', '.join(map(str, times))}")
