"""The profiler: what it runs is the procedure of HAT, and a slow spell of the machine does not change what comes out."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from llmpp_core.latency import profiler
from llmpp_core.latency.profiler import LatencyMeasurement, LatencySettings, at_one_pace, measure, measure_many, turns, why_busy
from llmpp_core.nets.transformer import Transformer
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.search_space import SMALL, TINY

QUICK = LatencySettings(vocab_size=50, source_length=7, target_length=6, batch=2, beam=3, warmup=1, runs=2)
ARCHS = TINY.sample_balanced(6, np.random.default_rng(0))


def measurement(seconds: float, pace: float = 1.0) -> LatencyMeasurement:
    """Return what a machine that is slower by a factor, `pace`, measures of an architecture."""
    return LatencyMeasurement(pace * seconds, 2 * pace * seconds, 0.0, 0.0, pace, 0.0, 1.0, "a processor", QUICK)


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


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the clock by one that only the calibration moves, and the load by one of our own."""
    state: dict[str, Any] = {"load": 0.0, "times": [1.0]}
    count = iter(range(10**6))
    monkeypatch.setattr(os, "getloadavg", lambda: (state["load"], 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(profiler, "_calibration", lambda *_: lambda: (0.0, state["times"][next(count) % len(state["times"])]))
    return state


def test_each_run_encodes_once_and_decodes_all_hypotheses_token_by_token(watched: list[tuple[Any, ...]]) -> None:
    arch = ARCHS[2]
    measure(arch, TINY, QUICK)
    mine = [call for call in watched if call[1] == arch]
    each = [("encode", (2, 7), None)] + [("step", (6,), position) for position in range(6)]
    assert [(name, shape, position) for name, _, shape, position, _ in mine] == each * (QUICK.warmup + QUICK.runs)
    logits, caches = mine[6][-1]
    assert logits.shape == (6, 50)
    assert {cache.keys.shape[2] for cache in caches} == {6}
    assert all(cache.source_keys.shape[0] == 6 for cache in caches)


def test_hypotheses_of_a_sentence_read_that_sentence(watched: list[tuple[Any, ...]]) -> None:
    measure(ARCHS[0], TINY, QUICK)
    cache = next(result for name, *_, result in watched if name == "step")[1][0]
    keys = cache.source_keys.view(2, 3, *cache.source_keys.shape[1:])
    assert torch.equal(keys[:, 0], keys[:, 2])
    assert not torch.equal(keys[0, 0], keys[1, 0])


def test_the_calibration_takes_turns_with_the_runs_and_is_the_same_for_all(watched: list[tuple[Any, ...]]) -> None:
    measure(ARCHS[2], TINY, QUICK)
    encoded = [call[1] for call in watched if call[0] == "encode"]
    assert encoded == [ARCHS[2], TINY.smallest()] * (QUICK.warmup + QUICK.runs)


def test_the_number_of_threads_comes_back(watched: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measure(ARCHS[0], TINY, QUICK)
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(Transformer, "step", None)
        with pytest.raises(TypeError):
            measure(ARCHS[0], TINY, QUICK)
        assert torch.get_num_threads() == 2
        assert not torch.is_inference_mode_enabled()
    finally:
        torch.set_num_threads(before)


def test_the_slowest_and_fastest_tenth_and_the_warm_up_do_not_count(machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9e9, 9e9, 1000.0, *range(1, 9), -1000.0])
    monkeypatch.setattr(profiler, "_translation", lambda *_: lambda: (2 * (now := next(times)), now))
    found = measure(ARCHS[0], TINY, replace(QUICK, warmup=2, runs=10))
    assert (found.encoder_ms, found.decoder_ms, found.latency_ms) == (9.0, 4.5, 13.5)
    assert found.decoder_std_ms == pytest.approx(np.std(range(1, 9)))
    assert found.calibration_ms == 1.0


def test_deeper_decoders_take_longer_and_encoders_are_measured_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    # The thread's own time, which other processes leave alone.
    monkeypatch.setattr(time, "perf_counter_ns", time.thread_time_ns)
    settings = LatencySettings(vocab_size=300, source_length=23, target_length=23, runs=10)
    shallow = replace_decoder(TINY.largest(), 1)
    few, many = measure(shallow, TINY, settings), measure(TINY.largest(), TINY, settings)
    # Six times the layers; a factor of two leaves room for caches that other processes have emptied.
    assert many.decoder_ms > 2 * few.decoder_ms
    assert few.decoder_ms > few.encoder_ms > 0


def replace_decoder(arch: Architecture, layers: int) -> Architecture:
    names = ("decoder_ffn_dims", "decoder_self_heads", "decoder_cross_heads", "decoder_cross_spans")
    return replace(arch, **{name: getattr(arch, name)[:layers] for name in names})


def test_turns_are_rounds_of_all_architectures_each_in_an_order_of_its_own(rng: np.random.Generator) -> None:
    order = turns([*ARCHS, ARCHS[0]], TINY, 4, rng)
    assert Counter(order) == Counter((number, arch) for number in range(4) for arch in ARCHS)
    assert [number for number, _ in order] == sorted(number for number, _ in order)
    assert len({tuple(arch for number, arch in order if number == n) for n in range(4)}) > 1
    assert order == turns([*ARCHS, ARCHS[0]], TINY, 4, np.random.default_rng(0))


def test_a_slow_spell_leaves_no_trace() -> None:
    # Three of the nine turns, two of one architecture, see a machine of half the pace.
    measured = [[measurement(t, pace) for pace in paces] for t, paces in ((1.0, (1, 2, 2)), (3.0, (1, 1, 1)), (2.0, (2, 1, 1)))]
    steady = at_one_pace(measured)
    assert [m.encoder_ms for m in steady] == pytest.approx([1, 3, 2])
    assert [m.latency_ms for m in steady] == pytest.approx([3, 9, 6])
    assert all(m.repeatability == pytest.approx(0) and m.rounds == 3 for m in steady)


def test_one_round_that_calibration_does_not_explain_is_outvoted() -> None:
    (found,) = at_one_pace([[measurement(1.0), measurement(7.0), measurement(1.1)]])
    assert found.encoder_ms == pytest.approx(1.1)
    assert found.repeatability == pytest.approx(np.std([3, 21, 3.3], ddof=1) / 3.3)


def test_many_are_returned_in_the_order_asked_for(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "measure", lambda arch, *_: measurement(float(ARCHS.index(arch) + 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = measure_many([*ARCHS[::-1], ARCHS[0]], TINY, QUICK, rng, repeats=2)
    assert [m.encoder_ms for m in found] == pytest.approx([6, 5, 4, 3, 2, 1, 1])
    assert {m.rounds for m in found} == {2}


def test_a_single_round_has_no_repeatability() -> None:
    assert at_one_pace([[measurement(1.0)]])[0].repeatability is None


def test_a_quiet_machine_is_not_called_busy(machine: dict[str, Any], rng: np.random.Generator) -> None:
    machine.update(load=2.0, times=[1.0, 1.01])
    assert why_busy(TINY, QUICK) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure_many(ARCHS[:1], TINY, QUICK, rng, repeats=1)


@pytest.mark.parametrize(
    ("state", "reason"), [({"load": 3.9}, r"load of 3\.9 leaves less than 1 of 4"), ({"times": [1, 1.1, 1.3]}, "equal work")]
)
def test_a_busy_machine_is_named(machine: dict[str, Any], state: dict[str, Any], reason: str, rng: np.random.Generator) -> None:
    machine.update(state)
    with pytest.warns(RuntimeWarning, match=f"^machine is busy: .*{reason}"):
        found = measure_many(ARCHS[:1], TINY, QUICK, rng, repeats=1)
    assert found[0].load == machine["load"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source_length", 0),
        ("target_length", 513),
        ("batch", -1),
        ("beam", 0),
        ("warmup", -1),
        ("runs", 0),
        ("threads", 0),
        ("vocab_size", 4),
        ("beam", 2.5),
    ],
)
def test_settings_that_cannot_be_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected an integer from .*, got {value}$"):
        replace(QUICK, **{field: value})


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:x", ""])
def test_a_device_that_is_not_here_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=f"^device: '{device}' is not here; allowed are cpu"):
        measure(ARCHS[0], TINY, replace(QUICK, device=device))


def test_an_architecture_outside_the_space_is_refused_before_anything_is_measured(
    watched: list[tuple[Any, ...]], rng: np.random.Generator
) -> None:
    with pytest.raises(ValueError, match=r"^not in search space TINY: encoder_embed_dim is 256; allowed are 64, 48$"):
        measure_many([*ARCHS, SMALL.largest()], TINY, QUICK, rng)
    with pytest.raises(ValueError, match=r"^not in search space TINY"):
        measure(SMALL.largest(), TINY, QUICK)
    with pytest.raises(ValueError, match="at least one architecture"):
        measure_many([], TINY, QUICK, rng)
    assert not watched
