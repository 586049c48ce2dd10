"""From trained networks to the next ones: one command, stopped and gone on with at will, told in one page."""

from __future__ import annotations

import csv
import json
import multiprocessing
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_llm_server
import numpy as np
import pytest
import yaml
from killing import run_killed
from own_spaces import changed, digits, example, offline, perplexity
from playwright.sync_api import Browser

from llmpp_book.__main__ import main
from llmpp_core import OfflineEndpoint, read_space, search_pipeline

# What must not be in a report: nothing is asked of any other place.
ELSEWHERE = re.compile(r"http|src=|url\(|@import|<script", re.IGNORECASE)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def url() -> Iterator[str]:
    with OfflineEndpoint() as address:
        yield address


def files(folder: Path) -> dict[str, Any]:
    """Return what all files of a run hold, without how long things took."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content: Any = path.read_bytes()
            if path.suffix == ".jsonl":
                content = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in content.splitlines()]
            found[str(path.relative_to(folder))] = content
    return found


def test_the_example_in_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = example(tmp_path / "own")
    assert main(["search", str(run), "--dry-run"]) == 0
    assert "nothing is asked" in capsys.readouterr().out
    assert not (tmp_path / "own" / "run-out").exists()
    assert main(["search", str(run)]) == 0
    out = capsys.readouterr().out.splitlines()
    folder = tmp_path / "own" / "run-out"
    assert out[0] == "round 1, predicted by the regression"
    assert out[-1] == str(folder / "report.html")
    space = read_space(run.parent / "space.yml")
    trained = list(csv.DictReader((run.parent / "trained.csv").open()))
    known = {space.read({name: row[name] for name in ("layers", "width", "ffn", "heads")}): float(row["perplexity"]) for row in trained}
    # As the head of run.yml says.
    assert known == {network: perplexity(network) for network in known}
    found = search_pipeline(run)
    assert [len(set(found.networks)), found.round, found.confident] == [5, 1, True]
    assert not known.keys() & set(found.networks)
    assert (space.costs["parameters"](found.networks) <= 35).all()
    assert max(perplexity(network) for network in found.networks) < np.quantile(list(known.values()), 0.25)
    assert found.scores[0] == min(found.scores[:4])
    assert all(low <= score <= high for score, (low, high) in zip(found.scores, found.intervals, strict=True))
    assert sorted(path.name for path in folder.iterdir()) == ["best.yml", "front.csv", "inputs", "report.html", "round-1", "run.lock.yml"]
    best = yaml.safe_load((folder / "best.yml").read_text())
    assert space.read(best["network"]) == found.networks[0]
    report = (folder / "report.html").read_text()
    assert not ELSEWHERE.search(report)
    assert [int(number) for number in re.findall(r"<h2>(\d+)\.", report)] == list(range(1, 11))
    # What the report says to add is read as it stands.
    lines = report.partition("As lines of a table:</p><pre>")[2].partition("</pre>")[0].splitlines()
    assert lines[0] == "layers,width,ffn,heads,perplexity"
    rows = [row for row in csv.DictReader(lines) if row.pop("perplexity") == "?"]
    assert [space.read(row) for row in rows] == found.networks


def test_the_next_round(tmp_path: Path) -> None:
    run = example(tmp_path)
    first = search_pipeline(run)
    before = files(tmp_path / "run-out")
    search_pipeline(run)
    assert files(tmp_path / "run-out") == before
    # The order of lines decides nothing.
    head, *rest = (tmp_path / "trained.csv").read_text().splitlines(keepends=True)
    (tmp_path / "trained.csv").write_text("".join([head, *reversed(rest)]))
    again = search_pipeline(run)
    assert (again.round, again.networks, again.intervals) == (1, first.networks, first.intervals)
    reports = [
        re.sub(r"trained\.csv:\d+|\b[0-9a-f]{64}\b", "", text.decode())
        for text in (before["report.html"], (tmp_path / "run-out" / "report.html").read_bytes())
    ]
    assert reports[0] == reports[1]
    before = files(tmp_path / "run-out")
    lines = [",".join(cells(network)) + f",{perplexity(network)}\n" for network in first.networks]
    with (tmp_path / "trained.csv").open("a") as file:
        file.writelines(lines[:3])
    second = search_pipeline(run)
    assert second.round == 2
    assert not set(second.networks) & set(first.networks[:3])
    after = files(tmp_path / "run-out")
    assert {name: content for name, content in after.items() if name.startswith("round-1")} == {
        name: content for name, content in before.items() if name.startswith("round-1")
    }
    report = (tmp_path / "run-out" / "report.html").read_text()
    rounds = report.partition("9. Rounds so far")[2].partition("<h2>")[0]
    assert rounds.count("not trained yet") == 2
    assert all(f"{perplexity(network):.3f}"[:5] in rounds for network in first.networks[:3])
    # Promises that were missed by far make the next ones modest.
    proposals = json.loads((tmp_path / "run-out" / "round-1" / "proposals.json").read_text())
    for row in proposals["proposals"]:
        row["score"] += 10 * (row["high"] - row["low"])
    shutil.copytree(tmp_path, tmp_path.with_name("missed"))
    missed = tmp_path.with_name("missed")
    (missed / "run-out" / "round-1" / "proposals.json").write_text(json.dumps(proposals))
    shutil.rmtree(missed / "run-out" / "round-2")
    third = search_pipeline(missed / "run.yml")
    assert np.ptp(third.intervals[0]) > 5 * np.ptp(second.intervals[0])
    # What was said before cannot be taken back.
    (tmp_path / "trained.csv").write_text((tmp_path / "trained.csv").read_text().replace("32.20", "32.30"))
    with pytest.raises(ValueError, match=r"the score 32.2 of the network .* of round 2 is 32.3 now; use another folder or --restart"):
        search_pipeline(run)
    with pytest.raises(ValueError, match=r"made with other settings: labels is 400 there and 200 here; use another folder or --restart"):
        search_pipeline(changed(run, labels=200))
    assert search_pipeline(run, restart=True).round == 1
    assert (tmp_path / "run-out.old-1" / "round-2" / "report.html").exists()


def cells(network: Any) -> list[str]:
    return [" ".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in network.values()]


def test_a_model_and_a_recording_of_it(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = search_pipeline(digits(tmp_path / "asked", **offline(url), predictor="average"))
    assert asked.predictor == "average"
    assert len(set(asked.networks)) == 5
    folder = tmp_path / "asked" / "run-out" / "round-1"
    assert {"answers.jsonl", "evidence.json", "labels.json", "student.safetensors", "search.jsonl"} <= {p.name for p in folder.iterdir()}
    report = (folder / "report.html").read_text()
    assert not ELSEWHERE.search(report)
    assert "not-an-llm/incontext-ridge-v1" in report
    fields = offline("x") | {"model": {"recording": str(folder / "answers.jsonl"), "batch": 20}, "predictor": "average"}
    replayed = search_pipeline(digits(tmp_path / "replayed", **fields))
    assert replayed.networks == asked.networks
    assert replayed.intervals == asked.intervals
    with pytest.raises(ValueError, match=r"model.recording: \d+ answers of .* are not recorded"):
        search_pipeline(digits(tmp_path / "other", **fields, search={"seed": 1}))
    # What would fail from the start is told before anything is written.
    with pytest.raises(ValueError, match=r"answers.jsonl lacks 10 of 10 answers about these trained networks"):
        search_pipeline(digits(tmp_path / "nameless", **fields, score={"name": "hits"}))
    assert not (tmp_path / "nameless" / "run-out").exists()
    # An estimate asks nothing, wherever the model is said to be.
    monthly = offline("http://127.0.0.1:9/v1")
    monthly["model"] |= {"price": {"prompt": 1.0, "answer": 2.0, "date": "2026-11-01"}, "budget": 0.0001}
    run = digits(tmp_path / "dry", **monthly)
    assert main(["search", str(run), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "networks left out: 10 requests to send" in out
    assert "60 labels: 3 requests to send" in out
    assert "this exceeds model.budget 0.0001 by up to" in out
    assert not (tmp_path / "dry" / "run-out").exists()


def test_a_budget_that_ends_and_is_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(body: dict[str, Any], number: int) -> Any:
        text = body["messages"][0]["content"]
        costs = re.findall(r"^Test architecture (\d+)\n(?:.+\n)*?MACs: (\S+)", text, flags=re.MULTILINE)
        reply = json.dumps({key: 45 + 8 * np.log10(float(cost)) for key, cost in costs})
        return fake_llm_server.Act(body=fake_llm_server.completion(reply, prompt=text))

    with fake_llm_server.FakeLLM(answer) as server:
        fields = offline(server.url)
        fields["model"] |= {"name": "fake", "price": {"prompt": 1000.0, "answer": 1000.0, "date": "2026-11-01"}, "budget": 4.0}
        run = digits(tmp_path, **fields, predictor="model")
        assert main(["search", str(run)]) == 3
        assert "budget of 4 USD" in capsys.readouterr().err
        assert not (tmp_path / "run-out" / "report.html").exists()
        first = len(server.calls)
        # The budget is that of the folder, not of each call.
        assert main(["search", str(run)]) == 3
        assert len(server.calls) == first
        search_pipeline(changed(run, model={"budget": 1000.0}))
        assert len(server.calls) == 13
        assert 0 < first < 13
        for prompt in [
            prompt for prompt in server.prompts() if prompt.count("Test architecture 1\n") and "Test architecture 2\n" not in prompt
        ]:
            *shown, asked = re.findall(r"^(?:Example|Test architecture) \d+\n((?:(?!accuracy).+\n?)+)", prompt, flags=re.MULTILINE)
            assert len(shown) == 9
            assert asked.strip() not in {lines.strip() for lines in shown}
    assert (tmp_path / "run-out" / "report.html").exists()


@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_in_a_browser(width: int, browser: Browser, tmp_path: Path, url: str) -> None:
    """It asks for nothing, has no errors, and is nowhere wider than the screen; in light and in dark."""
    run = digits(tmp_path, **offline(url), predictor="average", limits={"MACs": 3e6}, search={"iterations": 5, "population": 20})
    search_pipeline(run)
    for scheme in ("light", "dark"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        asked, said = list[str](), list[str]()
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.goto((tmp_path / "run-out" / "report.html").as_uri())
        assert len(asked) == 1
        assert said == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("svg").count() == 3
        colours = page.evaluate("['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])")
        dark, light = (sum(map(int, re.findall(r"\d+", colour))) for colour in (colours if scheme == "light" else colours[::-1]))
        assert dark + 300 < light
        page.close()


@pytest.mark.parametrize("model", [False, True])
def test_killed_at_any_moment(model: bool, tmp_path: Path, url: str, rng: np.random.Generator) -> None:
    fields = offline(url) | {"predictor": "average"} if model else {}
    whole, broken = (digits(tmp_path / name, **fields, search={"iterations": 8, "population": 20}) for name in ("whole", "broken"))
    search_pipeline(whole)
    broken.parent.joinpath("run-out").mkdir()
    # Loaded once, not by each of the processes.
    multiprocessing.set_forkserver_preload(["llmpp_core.pipeline.stages", "llmpp_core.llm.run"])
    run_killed(search_pipeline, (broken,), broken.parent / "run-out", 6, rng, steps=2)
    assert files(broken.parent / "run-out") == files(whole.parent / "run-out")


def test_nothing_can_be_known(tmp_path: Path) -> None:
    """Scores that have nothing to do with the networks get a spread, which says so wherever it is read."""
    run = example(tmp_path)
    lines = (tmp_path / "trained.csv").read_text().splitlines()
    scores = np.random.default_rng(5).permutation(np.linspace(20, 30, 10))
    rows = [line.rpartition(",")[0] + f",{score:.2f}" for line, score in zip(lines[1:], scores, strict=True)]
    (tmp_path / "trained.csv").write_text("\n".join([lines[0], *rows]) + "\n")
    found = search_pipeline(run)
    assert not found.confident
    assert set(found.kinds) == {"spread"}
    assert len({network.layers for network in found.networks}) >= 3
    assert yaml.safe_load((tmp_path / "run-out" / "best.yml").read_text())["confidence"] == "none"
    report = (tmp_path / "run-out" / "report.html").read_text()
    assert "(no confident answer)" in report
    assert len(re.findall("<h2>", report)) == 10


def test_texts_of_users_stay_texts(tmp_path: Path) -> None:
    run = example(tmp_path, score={"name": "<script>alert(1)</script>"})
    text = (tmp_path / "space.yml").read_text().replace("small GPTs", "'$title <b>&'")
    (tmp_path / "space.yml").write_text(text)
    search_pipeline(run)
    report = (tmp_path / "run-out" / "report.html").read_text()
    assert not ELSEWHERE.search(report)
    assert "&lt;script&gt;" in report
    assert "$title &lt;b&gt;&amp;" in report
    assert "<b>" not in report


def test_own_functions_and_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cost from a column is fitted, one from Python is asked, and a costly predictor of one's own has the second half of the search."""
    run = example(tmp_path, costs={"ms": {"column": "ms", "unit": "ms"}, "flops": {"python": "own_costs:flops"}})
    changed(run, limits={"ms": "11 ms", "flops": 8}, search={"costly": "own_costs:score", "iterations": 6, "switch": 3})
    lines = (tmp_path / "trained.csv").read_text().splitlines()
    rows = [f"{line},{int(line.split(',')[0]) * 2 + 1}" for line in lines[1:]]
    (tmp_path / "trained.csv").write_text("\n".join([lines[0] + ",ms", *rows]) + "\n")
    (tmp_path / "own_costs.py").write_text(
        "def flops(networks):\n    return [net.layers * 1.0 for net in networks]\n\n\n"
        "def score(networks):\n    return [30.0 - net.layers for net in networks]\n"
    )
    found = search_pipeline(run)
    assert max(network.layers for network in found.networks) < 6
    assert found.networks[0].layers == 4
    report = (tmp_path / "run-out" / "report.html").read_text()
    assert re.search(r"ms at most 11 ms, fitted to 10 numbers and off by about \d+%", report)
    (tmp_path / "own_costs.py").write_text("def flops(networks):\n    return 1.0\n\n\nscore = flops\n")
    import sys

    monkeypatch.delitem(sys.modules, "own_costs")
    with pytest.raises(ValueError, match=r"cost 'flops': expected \d+ numbers, one per network, got shape \(\)"):
        search_pipeline(run, restart=True)


def test_a_built_in_space(tmp_path: Path) -> None:
    """HAT's spaces work too, by the names of their files."""
    from llmpp_core import TINY, count_parameters

    archs = TINY.sample(8, np.random.default_rng(0))
    rows = [{**arch.to_hat_dict(), "bleu": count_parameters(arch, TINY.qkv_dim) / 1e5} for arch in archs]
    (tmp_path / "trained.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"space": "TINY", "trained": str(tmp_path / "trained.jsonl"), "score": {"column": "bleu", "better": "higher"}}
    found = search_pipeline({**fields, "folder": str(tmp_path / "out"), "search": {"iterations": 4, "population": 20}})
    assert found.confident
    assert len(set(found.networks) - set(archs)) == 5
