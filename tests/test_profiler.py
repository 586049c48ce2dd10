"""The profiler: what it runs is the procedure of HAT, and a slow spell of the machine does not change what comes out."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmpp_core.latency import profiler
from llmpp_core.latency.profiler import extend_latency_table, measure_latency, measurement_order, warn_if_busy
from llmpp_core.latency.tables import LatencyMeasurement, LatencySettings, normalise_pace, read_latency_table
from llmpp_core.nets.transformer import Transformer
from llmpp_core.space.search_space import SMALL, TINY

QUICK = LatencySettings(vocab_size=50, source_length=7, target_length=6, batch=2, beam=3, warmup=1, runs=2)
ARCHS = TINY.sample_balanced(6, np.random.default_rng(0))


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Record what networks are asked for: name of the method, architecture, shape of the tokens, position."""
    calls: list[tuple[Any, ...]] = []

    def watch(name: str) -> None:
        original = getattr(Transformer, name)

        def method(self: Transformer, tokens: torch.Tensor, *rest: Any) -> Any:
            assert torch.is_inference_mode_enabled()
            assert not self.training
            assert torch.get_num_threads() == QUICK.threads
            result = original(self, tokens, *rest)
            calls.append((name, self.arch, tuple(tokens.shape), rest[0] if rest else None, result))
            return result

        monkeypatch.setattr(Transformer, name, method)

    watch("encode")
    watch("step")
    return calls


def test_each_run_encodes_once_and_decodes_all_hypotheses_token_by_token(watched: list[tuple[Any, ...]]) -> None:
    arch = ARCHS[2]
    measure_latency(arch, TINY, QUICK)
    mine = [call for call in watched if call[1] == arch]
    each = [("encode", (2, 7), None)] + [("step", (6,), position) for position in range(6)]
    assert [(name, shape, position) for name, _, shape, position, _ in mine] == each * (QUICK.warmup + QUICK.runs)
    logits, caches = mine[6][-1]
    assert logits.shape == (6, 50)
    assert {cache.keys.shape[2] for cache in caches} == {6}
    # Hypotheses of a sentence read that sentence.
    keys = caches[0].source_keys.unflatten(0, (2, 3))
    assert torch.equal(keys[:, 0], keys[:, 2])
    assert not torch.equal(keys[0, 0], keys[1, 0])
    # The calibration takes turns with the runs and is the same for all.
    encoded = [call[1] for call in watched if call[0] == "encode"]
    assert encoded == [arch, TINY.smallest()] * (QUICK.warmup + QUICK.runs)


def test_the_number_of_threads_comes_back(watched: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measure_latency(ARCHS[0], TINY, QUICK)
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(Transformer, "step", None)
        with pytest.raises(TypeError):
            measure_latency(ARCHS[0], TINY, QUICK)
        assert torch.get_num_threads() == 2
        assert not torch.is_inference_mode_enabled()
    finally:
        torch.set_num_threads(before)


def test_the_slowest_and_fastest_tenth_and_the_warm_up_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9e9, 9e9, 1000.0, *range(1, 9), -1000.0])
    monkeypatch.setattr(profiler, "_translation", lambda *_: lambda: (2 * (now := next(times)), now))
    monkeypatch.setattr(profiler, "_calibration", lambda *_: lambda: (0.25, 0.75))
    found = measure_latency(ARCHS[0], TINY, replace(QUICK, warmup=2, runs=10))
    assert (found.encoder_ms, found.decoder_ms, found.latency_ms, found.calibration_ms) == (9.0, 4.5, 13.5, 1.0)
    assert found.decoder_std_ms == pytest.approx(np.std(range(1, 9)))


def test_real_measurements_tell_deep_decoders_from_shallow_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The thread's own time, which other processes leave alone.
    monkeypatch.setattr(time, "perf_counter_ns", time.thread_time_ns)
    monkeypatch.setattr(profiler, "warn_if_busy", lambda *_: None)
    deep = TINY.largest()
    names = ("decoder_ffn_dims", "decoder_self_heads", "decoder_cross_heads", "decoder_cross_spans")
    shallow = replace(deep, **{name: getattr(deep, name)[:1] for name in names})
    settings = LatencySettings(vocab_size=300, source_length=23, target_length=23, runs=5, warmup=1)
    assert extend_latency_table([shallow, deep], TINY, settings, tmp_path / "t.jsonl", np.random.default_rng(0), repeats=2)
    table = read_latency_table(tmp_path / "t.jsonl").set_index("architecture")
    few, many = table.loc[shallow], table.loc[deep]
    # Six times the layers; a factor of two leaves room for caches that other processes have emptied.
    assert many["decoder_ms"] > 2 * few["decoder_ms"]
    assert few["decoder_ms"] > few["encoder_ms"] > 0
    assert table["repeatability"].notna().all()


def test_the_order_is_of_rounds_each_in_an_order_of_its_own(rng: np.random.Generator) -> None:
    order = measurement_order([*ARCHS, ARCHS[0]], TINY, 4, rng)
    assert Counter(order) == Counter((number, arch) for number in range(4) for arch in ARCHS)
    assert [number for number, _ in order] == sorted(number for number, _ in order)
    assert len({tuple(arch for number, arch in order if number == n) for n in range(4)}) > 1
    assert order == measurement_order([*ARCHS, ARCHS[0]], TINY, 4, np.random.default_rng(0))


def measurement(seconds: float, pace: float = 1.0) -> LatencyMeasurement:
    """Return what a machine that is slower by a factor, `pace`, measures of an architecture."""
    return LatencyMeasurement(pace * seconds, 2 * pace * seconds, 0.0, 0.0, pace, 0.0, 1.0, "a processor", QUICK)


def test_a_slow_spell_leaves_no_trace() -> None:
    # Three of the nine turns, two of one architecture, see a machine of half the pace.
    measured = [[measurement(t, pace) for pace in paces] for t, paces in ((1.0, (1, 2, 2)), (3.0, (1, 1, 1)), (2.0, (2, 1, 1)))]
    steady = normalise_pace(measured)
    assert [m.encoder_ms for m in steady] == pytest.approx([1, 3, 2])
    assert [m.latency_ms for m in steady] == pytest.approx([3, 9, 6])
    assert all(m.repeatability == pytest.approx(0) and m.rounds == 3 for m in steady)
    # The pace of the fastest tenth counts, even where most of the time the machine was slow.
    assert normalise_pace([[measurement(1.0, pace) for pace in (2, 2, 2, 1)]])[0].encoder_ms == pytest.approx(1.3)
    # One round that the calibration does not explain is outvoted; a single round has no repeatability.
    (found,) = normalise_pace([[measurement(1.0), measurement(7.0), measurement(1.1)]])
    assert found.encoder_ms == pytest.approx(1.1)
    assert found.repeatability == pytest.approx(np.std([3, 21, 3.3], ddof=1) / 3.3)
    assert normalise_pace([[measurement(1.0)]])[0].repeatability is None


@pytest.mark.parametrize(
    ("load", "times", "reason"),
    [
        (3.5, [1.0, 1.01], None),
        (3.9, [1.0, 1.01], r"a load of 3\.9 leaves less than 1 of 4 processors free"),
        (0.0, [1, 1.1, 1.3], "times of equal work lie .*% apart, more than 5%"),
    ],
)
def test_a_busy_machine_is_named_and_a_quiet_one_not(
    load: float, times: list[float], reason: str | None, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    count = iter(range(1000))
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(profiler, "_calibration", lambda *_: lambda: (0.0, times[next(count) % len(times)]))
    if reason is None:
        warn_if_busy(TINY, QUICK)
        assert not recwarn
    else:
        with pytest.warns(RuntimeWarning, match=f"^machine is busy: {reason}$"):
            warn_if_busy(TINY, QUICK)


def test_sizes_are_hats_for_wmt_unless_given() -> None:
    usual = LatencySettings(vocab_size=300)
    assert (usual.source_length, usual.target_length, usual.batch, usual.beam, usual.threads) == (30, 30, 1, 5, 1)


@pytest.mark.parametrize(
    ("field", "value"), [("source_length", 0), ("batch", -1), ("warmup", -1), ("runs", 0), ("threads", 0), ("vocab_size", 4), ("beam", 2.5)]
)
def test_settings_that_cannot_be_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected an integer from .*, got {value}$"):
        replace(QUICK, **{field: value})


@pytest.mark.parametrize(
    ("archs", "settings", "message"),
    [
        ([*ARCHS, SMALL.largest()], {}, "not in search space TINY: encoder_embed_dim is 256; allowed are 64, 48"),
        ([], {}, "expected at least one architecture and one round, got 0 and 3"),
        (ARCHS, {"device": "gpu"}, "device: 'gpu' is not here; allowed are cpu"),
        (ARCHS, {"device": "cuda:99"}, "device: 'cuda:99' is not here; allowed are cpu"),
        (ARCHS, {"source_length": 513}, "a sequence of 513 tokens is too long; at most 512 are allowed"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(
    archs: Any, settings: Any, message: str, watched: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        extend_latency_table(archs, TINY, replace(QUICK, **settings), tmp_path / "table.jsonl", rng)
    assert not watched
    assert not list(tmp_path.iterdir())
