"""What is wrong with a run is told in lines that name file, line and what is allowed, before anything is written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from own_spaces import EXAMPLE, changed, digits, example

from llmpp_book.__main__ import main
from llmpp_core import TINY, read_space, search_pipeline
from llmpp_core.jobs.files import alone
from llmpp_core.pipeline.evidence import Regression
from llmpp_core.pipeline.facts import _cell
from llmpp_core.pipeline.inputs import read_inputs
from llmpp_core.pipeline.propose import Blend, distances, interval, widening
from llmpp_core.pipeline.run_file import FIELDS, REQUIRED, read_run
from llmpp_core.pipeline.trained import read_trained

LINES = (EXAMPLE / "trained.csv").read_text().splitlines()


def table(*lines: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "trained.csv").write_text("\n".join(lines) + "\n") and None


def edit(old: str, new: str, file: str = "trained.csv") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return change


# A model whose address nobody answers at, and what it is told.
MODEL: dict[str, Any] = {"name": "m", "base_url": "http://127.0.0.1:9/v1"}
ASKED: dict[str, Any] = {"model": MODEL, "task": {"description": "x"}}
RUN: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"lables": 3}, "run.yml:10: unknown field 'lables'; did you mean 'labels'?"),
    "unknown field of a group": ({"search": {"iteration": 3}}, "run.yml:11: unknown field 'search.iteration'; did you mean 'iterations'?"),
    "direction": ({"score": {"better": "min"}}, "run.yml:5: score.better: expected higher or lower, got 'min'"),
    "no such space": ({"space": "x.yml"}, "run.yml:1: no file 'x.yml' and no space 'x.yml'; built in are HAT_WMT, HAT_IWSLT, SMALL, TINY"),
    "space that is a number": ({"space": 3}, "run.yml:1: space: expected a file, a name or MODULE:NAME, got 3"),
    "no such table": ({"trained": "no.csv"}, "no.csv: no such file"),
    "decimals": ({"score": {"decimals": -1}}, "run.yml:8: score.decimals: expected a whole number from 0 to 6, got -1"),
    "noise": ({"score": {"noise": -0.1}}, "run.yml:8: score.noise: expected a number from 0, got -0.1"),
    "name": ({"score": {"name": "a\nb"}}, "run.yml:8: score.name: expected one line of text, got 'a\\nb'"),
    "limit of what": ({"limits": {"latency": 3}}, "limit 'latency': no such cost; costs are parameters, FLOPs"),
    "limit in what": ({"limits": {"parameters": "3 s"}}, "limit 'parameters': 3 s, but the cost is in M"),
    "limit without a number": ({"limits": {"parameters": "few"}}, "expected a number, or one with a unit such as '150 ms', got 'few'"),
    "nothing within": ({"limits": {"parameters": 1}}, "small GPTs has no architecture within 1 M; the cheapest found costs"),
    "told": ({"told": "speed"}, "told 'speed': no such cost; costs are parameters, FLOPs"),
    "cost without numbers": ({"costs": {"x": {"column": "time"}}}, "trained.csv:1: no column 'time'; columns are layers"),
    "cost of no module": ({"costs": {"ms": {"python": ".m:f"}}}, "run.yml:11: cost 'ms': .m:f: it raised TypeError: "),
    "cost from nowhere": ({"costs": {"ms": {"python": "nowhere_at_all:f"}}}, "cost 'ms': nowhere_at_all:f: No module named"),
    "model without address": ({"model": {"name": "m"}}, "model.base_url is missing: where does m answer?"),
    "model without words": ({"model": MODEL}, "a model needs task.description, which completes 'The networks are trained for ...'"),
    "model without limit": (
        ASKED | {"model": MODEL | {"base_url": "https://example.org/v1"}},
        "run.yml:10: model: the price of m is not given: set token_cap, or price and budget",
    ),
    "budget without a price": (ASKED | {"model": MODEL | {"budget": 2}}, "model.budget: expected a price with it, by which it is counted"),
    "predictor without model": ({"predictor": "model"}, "predictor 'model' needs a model"),
    "outside the range": ({"score": {"high": 30}}, "trained.csv:2: perplexity 32.2 is outside 1..30"),
    "folder in a file": ({"folder": "trained.csv/out"}, "trained.csv/out/run.lock.yml: cannot be written: its folder is a file"),
    "group that is none": ({"search": 3}, "run.yml:10: search: expected iterations, population, seed, costly, switch below it, got 3"),
    "columns": ({"columns": ["ffn"]}, "columns: expected names and what they are, got ['ffn']"),
    "cost of both": ({"costs": {"ms": {"column": "ms", "python": "m:f"}}}, "costs: expected {column: NAME, unit: TEXT} or {python: "),
    "range": ({"score": {"low": 5, "high": 5}}, "score.low is 5, not below score.high, 5"),
    "model twice": (ASKED | {"model": MODEL | {"recording": "no.jsonl"}}, "model: give a name or a recording, not both"),
    "model without name": ({"model": {"samples": 3}}, "model.name is missing"),
    "price": ({"model": {"price": 3}}, "model.price: expected {prompt: P, answer: A, date: 'YYYY-MM-DD'}, the prices of a million tokens"),
    "model without range": (ASKED | {"score": {"high": None}}, "a model needs score.low and score.high, the range of possible scores"),
    "examples": ({"task": {"examples": ["a"]}}, "task.examples: expected pairs of texts, [[input, output], ...], got ['a']"),
    "costly from nowhere": ({"search": {"costly": "nowhere_at_all:f"}}, "search.costly: nowhere_at_all:f: No module named"),
    "costly that cannot be called": ({"search": {"costly": "os:name"}}, "search.costly: os:name: expected a function, got 'posix'"),
    "cost that cannot be called": ({"costs": {"ms": {"python": "os:name"}}}, "cost 'ms': os:name: expected a function, got 'posix'"),
    "score named as a choice": (ASKED | {"score": {"name": "width"}}, "'width' is a choice of small GPTs"),
    "score of another name": ({"score": {"column": "perplex"}}, "trained.csv:1: no column 'perplex'; columns are"),
    "costly too late": ({"search": {"costly": "m:f", "iterations": 9}}, "search.switch: expected less than iterations, 9"),
    "no such recording": (ASKED | {"model": {"recording": "no.jsonl"}}, "model.recording: no.jsonl: No such file"),
}
TABLES = {
    "value outside": (edit("2048 2048,8 4", "2048 4096,8 4"), "trained.csv:4: ffn[3] is 4096"),
    "list too short": (edit("2,256,1024 1024", "4,256,1024 1024"), "trained.csv:2: ffn has 2 entries, layers is 4"),
    "score no number": (edit("32.20", "nan"), "trained.csv:2: score 'perplexity' is 'nan'; expected a finite number"),
    "score left out": (edit("32.20", ""), "trained.csv:2: score 'perplexity' is ''; expected a finite number"),
    "twice": (table(*LINES, LINES[1].replace("32.20", "32.30")), "trained.csv:12: the network of line 2, with another score (32.2, 32.3)"),
    "too few": (table(*LINES[:3]), "2 networks, at least 3 different ones are needed"),
    "all alike": (table(LINES[0], *(line.rpartition(",")[0] + ",25" for line in LINES[1:])), "all 10 scores are 25: nothing can be"),
    "no column": (edit("width", "breadth"), "trained.csv:1: no column 'width' (choice of small GPTs); columns are layers, breadth"),
    "no score": (edit("perplexity", "loss"), "trained.csv:1: no column 'perplexity'; columns are layers, width, ffn, heads, loss"),
    "semicolons": (table(*(line.replace(",", ";") for line in LINES)), "trained.csv:1: the columns are not separated by commas"),
    "cells": (edit("32.20", "32.20,1"), "trained.csv:2: 6 cells, but 5 columns"),
    "empty": (table(""), "trained.csv:1: the file is empty"),
    "not UTF-8": (lambda folder: (folder / "trained.csv").write_bytes(b"\xff\xfe"), "trained.csv: not UTF-8 text"),
    "space": (edit("per: layers", "per: layer", "space.yml"), "space.yml:7: choice 'ffn': per 'layer' is no choice; did you mean 'layers'"),
    "cost": (edit("vocab*width", "vocab*widht", "space.yml"), "unknown name 'widht'; choices and constants are"),
    "no YAML": (lambda folder: (folder / "run.yml").write_text("space: [\n"), "run.yml:"),
    "no fields": (lambda folder: (folder / "run.yml").write_text("3\n"), "run.yml:1: expected fields such as space, trained and score"),
    "three at once": (
        lambda folder: (folder / "run.yml").write_text("space: space.yml\nscore: {better: up}\n"),
        "run.yml:2: score.better: expected higher or lower, got 'up'",
    ),
}


def refused(run: Path, said: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    before = sorted(run.parent.rglob("*"))
    assert main(["search", str(run)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any(said in line for line in lines), lines
    assert len(lines) <= 11
    assert sorted(run.parent.rglob("*")) == before
    return lines


@pytest.mark.parametrize(("fields", "said"), RUN.values(), ids=RUN)
def test_fields(fields: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(example(tmp_path / "own", **fields), said, capsys)


@pytest.mark.parametrize(("change", "said"), TABLES.values(), ids=TABLES)
def test_files(change: Callable[[Path], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = example(tmp_path / "own")
    change(run.parent)
    refused(run, said, capsys)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = example(tmp_path / "own")
    table(LINES[0], *(line.replace(",1024", ",999").replace(",2048", ",999") for line in LINES[1:]), *LINES[1:])(run.parent)
    lines = refused(run, "trained.csv:2: ffn[0] is 999", capsys)
    assert len(lines) == 10


def test_what_looks_wrong_is_told_and_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = example(tmp_path, score={"better": "higher"}, limits={"FLOPs": 1000, "parameters": 36}, search={"iterations": 2})
    with alone(tmp_path / "run-out"):
        refused(run, "another process is adding to it", capsys)
    assert main(["search", str(run)]) == 0
    told = capsys.readouterr().err
    assert "run.yml:10: limit 'FLOPs': no network of 1,000 exceeds it" in told
    assert "the score gets worse as every cost grows (rank correlation -0.9): is better: lower meant?" in told
    report = (tmp_path / "run-out" / "report.html").read_text()
    assert report.index("no network of 1,000 exceeds it") < report.index("1. What was asked")


def test_every_field_is_documented_in_a_form_that_is_read(tmp_path: Path) -> None:
    page = (EXAMPLE.parents[1] / "book" / "own_networks.md").read_text()
    section = page.partition("## Your own networks\n")[2].partition("\n## ")[0]
    first, model = re.findall(r"```yaml\n(.*?)```", section, flags=re.S)
    (tmp_path / "run.yml").write_text(first)
    (tmp_path / "model.yml").write_text(re.sub("(?m)^model: .*\n", model, first))
    run, asked = read_run(tmp_path / "run.yml"), read_run(tmp_path / "model.yml")
    for name, (default, _) in FIELDS.items():
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", section), name
        # What is shown as a default is one.
        if not name.startswith(("model.", "score.", "columns", "costs", "limits", "task", "told", "folder")) and default is not REQUIRED:
            assert run[name] == default, name
        if name.startswith("model.") and default not in (None, 0.0):
            assert asked[name] == default, name


def test_forms_of_tables(tmp_path: Path) -> None:
    """The same networks as lists, lists in cells, numbered columns, JSONL and YAML; with other names, doubles and what is switched off."""
    digits(tmp_path)
    space = read_space(tmp_path / "space.yml")
    expected = read_trained([tmp_path / "trained.csv"], space, "accuracy")
    assert len(expected.networks) == 10
    assert expected.decimals == 2
    head = "blocks,channels_0,channels_1,channels_2,kernel_0,kernel_1,kernel_2,pool,hidden,hidden_width,accuracy,note"
    rows, flat = [], [head]
    for network, score in zip(expected.networks, expected.scores, strict=True):
        cells = {name: list(value) if isinstance(value, tuple) else value for name, value in network.items()}
        rows.append(cells | {"accuracy": score})
        lists = [*([*network.channels, "", ""][:3]), *([*network.kernel, "", ""][:3])]
        flat.append(",".join(map(str, [network.blocks, *lists, network.pool, network.hidden, network.get("hidden_width", ""), score, "x"])))
    (tmp_path / "flat.csv").write_text("\ufeff" + "\n".join(flat) + "\n", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.yml").write_text(yaml.safe_dump(rows))
    for name in ("flat.csv", "rows.jsonl", "rows.yml"):
        found = read_trained([tmp_path / name], space, "accuracy")
        assert (found.networks, found.scores) == (expected.networks, expected.scores), name
        assert found.ignored == (["note"] if name == "flat.csv" else [])
    twice = read_trained([tmp_path / "trained.csv", tmp_path / "rows.jsonl"], space, "accuracy")
    assert len(twice.networks) == 10
    assert len(twice.notes) == 10
    (tmp_path / "more.jsonl").write_text(json.dumps(rows[0] | {"accuracy": 80.1}) + "\n" + json.dumps(rows[1] | {"hidden": "no"}) + "\n")
    mean = read_trained([tmp_path / "trained.csv", tmp_path / "more.jsonl"], space, "accuracy", repeats="mean", inactive="drop")
    assert mean.scores[0] == pytest.approx(79.1)
    assert mean.noise == pytest.approx(2**0.5)
    assert len(mean.networks) == 11
    # A row that is no line of a table leaves out what would be an empty cell.
    few = [{{"hidden_width": "hw"}.get(name, name): value for name, value in row.items()} for row in rows]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row | ({"ms": 3} if i else {})) + "\n" for i, row in enumerate(few)))
    found = read_trained([tmp_path / "few.jsonl"], space, "accuracy", columns={"hidden_width": "hw"}, costs=["ms"])
    assert found.networks == expected.networks
    assert found.columns == {"ms": [None, *[3.0] * 9]}
    with pytest.raises(ValueError, match=r"more.jsonl:2: hidden_width is 32 but hidden == 'yes' does not hold"):
        read_trained([tmp_path / "trained.csv", tmp_path / "more.jsonl"], space, "accuracy", repeats="mean")
    with pytest.raises(ValueError, match=r"run.yml:\d+: columns: no choice 'widht'; did you mean 'width'"):
        search_pipeline(example(tmp_path / "a", columns={"widht": "x"}))


def test_what_is_shown_is_read_as_it_stands() -> None:
    space = read_space("""
space: knotty
choices:
  depth: {values: [1, 2, 3]}
  kind: {values: [conv, pool], per: depth}
  kernel: {values: [3, 5], per: depth, when: kind == 'conv'}
  pad: {values: ['1,3', 'a;b'], per: depth}
  mark: {values: ['-', '+'], per: depth}
""")
    network = space.read({"depth": 2, "kind": ["conv", "pool"], "kernel": [3, None], "pad": ["1,3", "a;b"], "mark": ["-", "+"]})
    cells = {name: _cell(list(value) if isinstance(value, tuple) else value) for name, value in network.items()}
    assert space.read(cells) == network
    layers = {"kind_0": "conv", "kind_1": "pool", "kernel_0": "3", "kernel_1": ""}
    assert space.read({"depth": 2, **layers, "pad": cells["pad"], "mark": cells["mark"]}) == network


def test_modules_are_those_of_the_run_and_what_they_raise_is_told(tmp_path: Path) -> None:
    """Also where an earlier run of the same process had others of the same names."""
    for number in (1.0, 2.0):
        run = example(tmp_path / str(number), costs={"x": {"python": "own_cost:f"}})
        (run.parent / "own_number.py").write_text(f"NUMBER = {number}\n")
        (run.parent / "own_cost.py").write_text(
            "from own_number import NUMBER\n\n\ndef f(networks):\n    return [NUMBER] * len(networks)\n"
        )
        inputs = read_inputs(read_run(run))
        assert inputs.costs["x"].value(inputs.trained.networks[:1]) == [number]
    (run.parent / "own_cost.py").write_text("def f(networks):\n    return missing\n")
    (run.parent / "own_mistake.py").write_text("def f(networks:\n")
    with pytest.raises(ValueError, match=r"cost 'y': own_mistake:f: it raised SyntaxError: "):
        read_inputs(read_run(changed(run, costs={"y": {"python": "own_mistake:f"}})))
    run = example(tmp_path / "3", costs={"x": {"python": "own_cost:f"}})
    shutil.copy(tmp_path / "2.0" / "own_cost.py", run.parent)
    with pytest.raises(ValueError, match=r"cost 'x': it raised NameError: name 'missing' is not defined"):
        read_inputs(read_run(run))


def test_a_cost_of_nothing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = example(tmp_path)
    for change in (edit("[256, 384, 512],", "[256, 384, 512], bounds: [0, 512],", "space.yml"), edit("2,256,1024 1024", "2,0,1024 1024")):
        change(tmp_path)
    refused(run, "trained.csv:2: cost 'parameters' is 0; expected a positive number", capsys)


def test_a_limit_may_be_in_quotes(tmp_path: Path) -> None:
    limits = read_run(example(tmp_path, limits={"parameters": "35", "FLOPs": "3.5e1 1/s"}))["limits"]
    assert limits == {"parameters": [35.0, None], "FLOPs": [35.0, "1/s"]}


def test_built_in_spaces_have_tables_too(tmp_path: Path) -> None:
    """In which a spreadsheet may have written whole numbers with a point."""
    archs = TINY.sample(4, np.random.default_rng(0))
    cells = [[_cell(v) if isinstance(v, list) else f"{v}.0" for v in arch.to_hat_dict().values()] for arch in archs]
    lines = [",".join([*line, str(i)]) for i, line in enumerate(cells)]
    (tmp_path / "t.csv").write_text("\n".join([",".join([*archs[0].to_hat_dict(), "bleu"]), *lines]) + "\n")
    assert read_trained([tmp_path / "t.csv"], TINY, "bleu").networks == archs
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text().replace(",3.0,", ",three,", 1))
    with pytest.raises(ValueError, match=r"t.csv:2: encoder-layer-num-subtransformer: expected an integer, got 'three'"):
        read_trained([tmp_path / "t.csv"], TINY, "bleu")


def test_the_order_of_layers_counts_as_one_change_for_each_value(tmp_path: Path) -> None:
    inputs = read_inputs(read_run(digits(tmp_path)))
    several = ([8, 16, 32], [32, 16, 8], [8, 16, 16])
    nets = [{"blocks": 3, "channels": channels, "kernel": 3, "pool": "max", "hidden": "no"} for channels in several]
    rows = inputs.genes.encode([inputs.space.read(net) for net in nets])
    near = distances(inputs, rows, rows)
    assert near[0, 1] == 0
    assert near[0, 2] == pytest.approx(1 / 9)


def test_a_second_training_begins_a_round_and_a_folder_is_named_again(tmp_path: Path) -> None:
    run = example(tmp_path, search={"iterations": 2, "population": 20})
    assert search_pipeline(run).round == 1
    with (tmp_path / "trained.csv").open("a") as file:
        file.write(LINES[1].replace("32.20", "32.40") + "\n")
    with pytest.raises(ValueError, match=r"keep one or set repeats: mean"):
        search_pipeline(run)
    assert search_pipeline(changed(run, repeats="mean")).round == 2
    found = search_pipeline(run, folder=tmp_path / "else where")
    assert f"llmpp search run.yml --folder '{tmp_path / 'else where'}'" in unescape(found.report.read_text())
    given = yaml.safe_load(run.read_text()) | {"space": yaml.safe_load((tmp_path / "space.yml").read_text()), "folder": "third"}
    run.write_text(yaml.safe_dump(given))
    assert search_pipeline(run).networks
    # What would go with the folder is not moved away.
    assert search_pipeline(changed(run, folder=".")).networks
    with pytest.raises(ValueError, match=r"run.yml is in there and would be moved away too; use another folder"):
        search_pipeline(run, restart=True)
    assert run.exists()


def test_what_the_range_cuts_off_does_not_widen_the_next_intervals(tmp_path: Path) -> None:
    """An interval that the range of scores cut to nothing says nothing of how wrong it was."""
    inputs = read_inputs(read_run(example(tmp_path, score={"low": 25.7, "high": 60})))
    regression = Regression(inputs.space).fit(inputs.trained.networks, inputs.scores)
    networks = [inputs.space.largest(), *inputs.space.sample(5, np.random.default_rng(0))]
    ends = interval(inputs, Blend(regression, None), networks, regression.left_out_.tolist(), 1.0)
    assert ends[0, 1] == 25.7
    assert (ends[:, 3] > 0).all()
    promises = [{"score": s, "low": lo, "high": hi, "deviation": sd, "widened": 1.0, "measured": s + sd} for s, lo, hi, sd in ends.tolist()]
    assert widening(promises) == pytest.approx(1.0)
