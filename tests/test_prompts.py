from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

import llmpp_core.llm.prompts
from llmpp_book.studies.questions import WMT_TASKS
from llmpp_core.llm.prompts import FORMS, FULL, LEVELS, Efficiency, Prompt, PromptTask, build_prompt, choose_demonstrations, example_pairs
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.cost import count_flops, count_parameters
from llmpp_core.space.search_space import HAT_WMT, TINY

SNAPSHOTS = Path(__file__).with_name("snapshots")
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
    efficiency=Efficiency("parameters", "their number in thousands", lambda arch: count_parameters(arch, TINY.qkv_dim) / 1e3, 0),
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


def test_the_module_is_not_shadowed_by_the_folder_of_texts() -> None:
    assert Path(llmpp_core.llm.prompts.__file__ or "").name == "prompts.py"


def test_levels_are_cumulative_and_each_adds_text() -> None:
    parts = [set(level) for level in LEVELS.values()]
    assert all(len(more - less) == 1 and less < more for less, more in itertools.pairwise(parts))
    sections = [set(CASES[f"level-{level}"].text.split("\n\n")) for level in LEVELS]
    assert all(less < more for less, more in itertools.pairwise(sections))
    assert len(LEVELS) == 8


def test_the_anonymous_variant_tells_nothing_about_the_task() -> None:
    text = CASES["anonymous"].text.lower()
    for word in ("wmt", "translation", "english", "german", "bleu", "vaswani", "küste", "transformer of"):
        assert word in CASES[f"level-{FULL}"].text.lower()
        assert word not in text


def test_the_demonstrations_are_those_given_and_the_query_ends_with_the_metric() -> None:
    prompt = CASES[f"level-{FULL}"]
    examples = [section for section in prompt.text.split("\n\n") if section.startswith("Example ")]
    assert [Architecture.from_prompt_lines(section.splitlines()[1:11]) for section in examples] == [a for a, _ in DEMONSTRATIONS]
    assert [section.splitlines()[-1] for section in examples] == ["BLEU: 24.00", "BLEU: 26.55"]
    assert prompt.query.endswith(f"GFLOPS: {count_flops(TEST, 32768) / 1e9:.1f}\nBLEU:")


def test_prompts_of_one_split_share_their_prefix() -> None:
    one, two = (build_prompt(TASK, DEMONSTRATIONS, [arch]) for arch in (TEST, HAT_WMT.largest()))
    assert one.prefix == two.prefix
    assert len(one.query) < len(one.text) / 3


def test_a_metric_where_lower_is_better_is_shown_as_it_is_known() -> None:
    text = CASES["other-task"].text
    assert "perplexity: 80.0" in text
    assert "lower is better" in text
    assert CASES["other-task"].sign == -1


def test_only_the_json_form_has_a_schema_and_it_names_every_architecture() -> None:
    formats = {form: build_prompt(TASK, DEMONSTRATIONS, [TEST], form=form).response_format() for form in FORMS}
    assert formats["single"] is formats["batched"] is None
    schema = CASES["json"].response_format()["json_schema"]["schema"]
    assert schema["required"] == list(schema["properties"]) == ["1", "2"]
    assert schema["additionalProperties"] is False


def test_example_sentences_are_five_pairs() -> None:
    for name in ("en-de", "en-fr"):
        assert len(example_pairs(name)) == 5
        assert all(left and right for left, right in example_pairs(name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": "everything"}, "unknown level 'everything'; allowed are demonstrations, role"),
        ({"form": "haiku"}, "unknown form 'haiku'; allowed are single, batched, json"),
        ({"demonstrations": []}, "demonstrations: expected at least one"),
        ({"archs": []}, "archs: expected exactly one for the form 'single', got 0"),
        ({"archs": [TEST, TEST]}, "archs: expected exactly one for the form 'single', got 2"),
        ({"archs": [], "form": "batched"}, "archs: expected at least one for the form 'batched', got 0"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_prompt(**{"task": TASK, "demonstrations": DEMONSTRATIONS, "archs": [TEST], **change})  # type: ignore[arg-type]


def test_a_range_must_be_finite() -> None:
    with pytest.raises(ValueError, match="expected a finite range"):
        dataclasses.replace(TASK, high=float("inf"))


def test_prompts_are_values() -> None:
    assert build_prompt(TASK, DEMONSTRATIONS, [TEST]) == build_prompt(TASK, DEMONSTRATIONS, [TEST])
    assert hash(Prompt("a", "b", "single", 1, 0, 1)) == hash(Prompt("a", "b", "single", 1, 0, 1))


def test_spread_demonstrations_cover_depth_and_cost(rng: np.random.Generator) -> None:
    archs = HAT_WMT.sample(100, rng)
    chosen = [archs[i] for i in choose_demonstrations(archs, 10, "spread")]
    costs = [count_flops(arch) for arch in archs]
    assert len(set(chosen)) == 10
    assert {arch.decoder_layers for arch in chosen} == set(HAT_WMT.decoder_layers)
    covered = np.ptp(np.log([count_flops(arch) for arch in chosen])) / np.ptp(np.log(costs))
    assert covered > 0.95
    assert choose_demonstrations(archs, 4, "spread") == choose_demonstrations(archs, 10, "spread")[:4]


def test_given_and_random_demonstrations(rng: np.random.Generator) -> None:
    archs = HAT_WMT.sample(10, rng)
    assert choose_demonstrations(archs, 3) == [0, 1, 2]
    one, two = (choose_demonstrations(archs, 5, "random", np.random.default_rng(1)) for _ in range(2))
    assert one == two
    assert len(set(one)) == 5
    assert choose_demonstrations(archs[:1] * 4, 4, "spread") == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"random demonstrations need a numpy\.random\.Generator"):
        choose_demonstrations(archs, 3, "random")
    with pytest.raises(ValueError, match="expected 1 to 10, got 11"):
        choose_demonstrations(archs, 11)
    with pytest.raises(ValueError, match="allowed are first, random, spread"):
        choose_demonstrations(archs, 3, "best")
