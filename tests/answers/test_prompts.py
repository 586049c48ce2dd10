from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hat_costs import count_flops, count_parameters, prompt_task

from llmpp_book.studies.questions import WMT_TASKS
from llmpp_core.llm.prompts import FORMS, FULL, LEVELS, Efficiency, PromptTask, build_prompt, choose_demonstrations, example_pairs
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.search_space import HAT_WMT, TINY

SNAPSHOTS = Path(__file__).parents[1] / "snapshots"
TASK = WMT_TASKS["wmt14ende"]
DEMONSTRATIONS = [(HAT_WMT.smallest(), 24.0), (HAT_WMT.largest(), 26.549)]
TEST = Architecture(640, 512, (3072, 2048, 1024) * 2, (8, 4) * 3, (1024, 3072), (4, 8), (8, 4), (-1, 2))
# A task that is neither translation nor scored by a number that grows with quality.
OTHER = PromptTask(
    "modelling",
    description="next-word prediction on short stories",
    metric="perplexity",
    metric_description="on held-out stories",
    low=1.0,
    high=10_000.0,
    higher_is_better=False,
    decimals=1,
    examples=(("Once upon a", "time"),),
    backbone="the Transformer of Vaswani et al. (2017)",
    space=TINY,
    efficiency=Efficiency("parameters", "their number in thousands", lambda arch: count_parameters(arch, qkv_dim=TINY.qkv_dim) / 1e3, 0),
)
CASES = {
    **{f"level-{level}": build_prompt(TASK, DEMONSTRATIONS, [TEST], level) for level in LEVELS},
    "batched": build_prompt(TASK, DEMONSTRATIONS, [TEST, HAT_WMT.largest()], form="batched"),
    "json": build_prompt(TASK, DEMONSTRATIONS, [TEST, HAT_WMT.largest()], form="json"),
    "anonymous": build_prompt(TASK.anonymous(), DEMONSTRATIONS, [TEST]),
    "other-task": build_prompt(OTHER, [(TINY.smallest(), -80.0), (TINY.largest(), -21.26)], [TINY.smallest()]),
}


@pytest.mark.parametrize("name", CASES)
def test_whole_prompts_are_as_reviewed(name: str) -> None:
    """A changed prompt needs new answers from every model: look at the difference, then set UPDATE_SNAPSHOTS=1."""
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(CASES[name].text, encoding="utf-8")
    assert CASES[name].text == path.read_text(encoding="utf-8")


def test_levels_are_cumulative_and_each_adds_text() -> None:
    sections = [set(CASES[f"level-{level}"].text.split("\n\n")) for level in LEVELS]
    for parts in ([set(level) for level in LEVELS.values()], sections):
        assert all(less < more for less, more in itertools.pairwise(parts))
    assert len(LEVELS) == 8
    assert [*LEVELS][-1] == FULL


def test_the_anonymous_variant_tells_nothing_about_the_task() -> None:
    text = CASES["anonymous"].text.lower()
    for word in ("wmt", "translation", "english", "german", "bleu", "vaswani", "küste", "transformer of"):
        assert word in CASES[f"level-{FULL}"].text.lower()
        assert word not in text


def test_a_prompt_shows_what_was_given_and_shares_its_prefix() -> None:
    prompt = CASES[f"level-{FULL}"]
    examples = [section.splitlines() for section in prompt.text.split("\n\n") if section.startswith("Example ")]
    assert [Architecture.from_prompt_lines(lines[1:11]) for lines in examples] == [arch for arch, _ in DEMONSTRATIONS]
    assert [lines[-1] for lines in examples] == ["BLEU: 24.00", "BLEU: 26.55"]
    assert prompt.query.endswith(f"GFLOPS: {count_flops(TEST, 32768) / 1e9:.1f}\nBLEU:")
    other = build_prompt(TASK, DEMONSTRATIONS, [HAT_WMT.largest()])
    assert (other.prefix, hash(prompt)) == (prompt.prefix, hash(build_prompt(TASK, DEMONSTRATIONS, [TEST])))
    # A metric where lower is better is shown as it is known.
    assert "perplexity: 80.0" in CASES["other-task"].text
    assert CASES["other-task"].sign == -1


def test_only_the_json_form_has_a_schema_and_it_names_every_architecture() -> None:
    formats = {form: build_prompt(TASK, DEMONSTRATIONS, [TEST], form=form).response_format() for form in FORMS}
    assert formats["single"] is formats["batched"] is None
    schema = CASES["json"].response_format()["json_schema"]["schema"]
    assert schema["required"] == list(schema["properties"]) == ["1", "2"]
    assert schema["additionalProperties"] is False
    assert {len(pair) for name in ("en-de", "en-fr") for pair in example_pairs(name) if all(pair)} == {2}


def make_task(**change: Any) -> Any:
    return prompt_task(**{"name": "t", "description": "d", "metric": "m", "metric_description": "n", "low": 0.0, "high": 1.0} | change)


def build(**change: Any) -> Any:
    return build_prompt(**{"task": TASK, "demonstrations": DEMONSTRATIONS, "archs": [TEST]} | change)


def spread(archs: Any, n: int, how: str = "spread") -> Any:
    return choose_demonstrations(archs, n, how, space=HAT_WMT)


def choose(*how: Any) -> Any:
    return choose_demonstrations([TEST] * 10, *how, space=HAT_WMT)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(level="everything"), "unknown level 'everything'; allowed are demonstrations, role"),
        (lambda: build(form="haiku"), "unknown form 'haiku'; allowed are single, batched, json"),
        (lambda: build(demonstrations=[]), "demonstrations: expected at least one"),
        (lambda: build(archs=[TEST, TEST]), "archs: expected exactly one for the form 'single', got 2"),
        (lambda: build(archs=[], form="batched"), "archs: expected at least one for the form 'batched', got 0"),
        (lambda: make_task(high=float("inf")), "expected a finite range"),
        (lambda: make_task(low=1.0), "expected a finite range"),
        (lambda: make_task(metric="BL\nEU"), "metric: expected one line of text"),
        (lambda: make_task(backbone=" "), "backbone: expected one line of text"),
        (lambda: make_task(decimals=-1), "decimals: expected an integer from 0 to 15, got -1"),
        (lambda: Efficiency("n", "d", len, decimals=1.5), "decimals: expected an integer"),  # type: ignore[arg-type]
        (lambda: Efficiency("", "d", len), "name: expected one line"),
        (lambda: choose(3, "random"), r"random demonstrations need a numpy\.random\.Generator"),
        (lambda: choose(11), "expected an integer from 1 to 10, got 11"),
        (lambda: choose(0), "expected an integer from 1 to 10, got 0"),
        (lambda: choose(3, "best"), "allowed are first, random, spread"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_demonstrations_are_the_first_or_random_or_cover_depth_and_cost(rng: np.random.Generator) -> None:
    archs = HAT_WMT.sample(100, rng)
    assert spread(archs[:10], 10, "first") == list(range(10))
    one, two = (choose_demonstrations(archs, 5, "random", np.random.default_rng(1), space=HAT_WMT) for _ in range(2))
    assert one == two != choose_demonstrations(archs, 5, "random", np.random.default_rng(2), space=HAT_WMT)
    assert len(set(one)) == 5
    assert spread(archs[:1] * 4, 4) == [0, 1, 2, 3]
    chosen = [archs[i] for i in spread(archs, 10)]
    assert len(set(chosen)) == 10
    assert {arch.decoder_layers for arch in chosen} == set(HAT_WMT.decoder_layers)
    spans = [np.ptp(np.log([count_flops(arch) for arch in some])) for some in (chosen, archs)]
    assert spans[0] > 0.95 * spans[1]
    assert spread(archs, 4) == spread(archs, 10)[:4]
