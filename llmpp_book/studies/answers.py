"""Answers of language models as rows of tables: who is asked, who is recorded, and what answers are worth.

Chapters show three kinds of rows beside each other: the offline endpoint under its own name, recordings, and a model
that is asked while the notebook runs. None of them is ever filled in for another: what is not recorded is missing.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from llmpp_book.studies.questions import EXPERIMENTS, RESULTS, answers, ask, experiment, recordings
from llmpp_core import metrics
from llmpp_core.llm.client import Client
from llmpp_core.llm.offline import MODEL, OfflineEndpoint, offline_settings
from llmpp_core.llm.prompts import Prompt
from llmpp_core.llm.recordings import load, recording_path
from llmpp_core.llm.settings import Settings, estimate_tokens

#: What a row of a table is.
OFFLINE, RECORDED, LIVE = "offline endpoint (not an LLM)", "LLM, recorded", "LLM, live"
#: What stands where no language model has answered.
NOT_RECORDED = "LLMs: not recorded yet"
#: Counts of invalid answers by reading of the replies, and the columns that hold what is predicted under it.
INVALID = {"invalid, as asked": "predicted_as_asked", "invalid, tolerant": "predicted"}
_MEASURES = ("MAE", "tau", "tau within depth")
_IN_WORDS = {1: "one", 5: "five", 10: "ten", 20: "twenty"}


def ask_offline(names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Ask the offline endpoint, over HTTP on loopback, the questions of some experiments.

    Parameters
    ----------
    names : sequence of str
        Names of `llmpp_book.studies.questions.EXPERIMENTS`.

    Returns
    -------
    dict of str to pandas.DataFrame
        By experiment, the frame of `llmpp_book.studies.questions.tidy` with a column "kind". Nothing is kept between calls.
    """
    with tempfile.TemporaryDirectory() as folder, OfflineEndpoint() as url:
        client = Client(offline_settings(url), cache=Path(folder) / "llm.sqlite3")
        return {name: ask(name, client).assign(kind=OFFLINE) for name in names}


def ask_live(name: str, model: str, base_url: str, cache: Path | None = None, results: Path = RESULTS) -> pd.DataFrame:
    """Ask a model now, except for what is recorded or in the user's cache; returns `ask_offline`'s frame.

    No price is known here, so the run stops at twice the tokens it is estimated to take. The command ``prompts ask`` takes a
    price and a budget, and records the answers.
    """
    draft = Settings(model, base_url=base_url)
    prompts = [question.prompt for question in experiment(name).questions()]
    worst = sum(estimate_tokens(prompt) + draft.answer_tokens * prompt.n for prompt in prompts) * experiment(name).samples
    settings = Settings(model, base_url=base_url, token_cap=2 * worst)
    frame = ask(name, Client(settings, cache=cache, recordings=load(results, settings)))
    return frame.assign(kind=OFFLINE if model == MODEL else LIVE)


def recorded(name: str, results: Path = RESULTS) -> dict[str, pd.DataFrame]:
    """Return the recorded answers to an experiment by name of the model, or of the recording where that is another."""
    frames = {}
    for recording in recordings(name, results):
        frame = answers(name, recording, results)
        model = str(frame["model"].iloc[0])
        title = model if recording_path(results, name, model).stem == recording else f"{model} ({recording})"
        if model == MODEL:
            # It is also asked anew in the same table.
            frames[f"{title}, recorded"] = frame.assign(kind=OFFLINE)
        else:
            frames[title] = frame.assign(kind=RECORDED)
    return frames


def is_complete(frame: pd.DataFrame) -> bool:
    """Return whether a model answered every question, validly or not."""
    return bool(frame["status"].isin(["answered", "invalid"]).all())


def as_predictions(frame: pd.DataFrame) -> pd.DataFrame:
    """Return valid answers to one kind of prompt in the form of `llmpp_core.metrics.evaluate`; several samples count as their median."""
    one = frame.dropna(subset="predicted").groupby(["task", "split", "architecture"], sort=False)
    return one.agg({"decoder_layers": "first", "true": "first", "predicted": "median"}).reset_index()


def score(frame: pd.DataFrame) -> dict[str, float]:
    """Return MAE, tau and tau within depth by the paper's protocol, of the valid answers.

    Where answers are missing all three are nan, since a part of the test sets compares with nothing. Several samples of one
    architecture count as their median.
    """
    valid = as_predictions(frame)
    if not is_complete(frame) or len(valid[["task", "split"]].drop_duplicates()) < len(frame[["task", "split"]].drop_duplicates()):
        return dict.fromkeys(_MEASURES, math.nan)
    table = metrics.summarise(valid)
    return {measure: float(table[measure, "mean"]["mean"]) for measure in _MEASURES}


def count_invalid(frame: pd.DataFrame) -> dict[str, str]:
    """Return how many of the numbers asked for are invalid under either reading of the replies, and how many are missing."""
    missing = int((~frame["status"].isin(["answered", "invalid"])).sum())
    counts = {name: int(frame[column].isna().sum()) - missing for name, column in INVALID.items()}
    return {name: f"{count} of {len(frame)}" + (f", {missing} missing" if missing else "") for name, count in counts.items()}


def form(frame: pd.DataFrame) -> str:
    """Return how many architectures the requests of a frame's one form asked about: "one per request", "ten per request"."""
    n = int(frame["per_request"].max())
    return f"{_IN_WORDS.get(n, n)} per request" + (", JSON" if frame["form"].iloc[0] == "json" else "")


def by_form(frames: Mapping[str, pd.DataFrame], by: Mapping[str, Any] | None = None) -> dict[str, pd.DataFrame]:
    """Return the answers of each model to each form of prompt that it was asked in, under the names of `score_models`."""
    found: dict[str, pd.DataFrame] = {}
    for name, frame in frames.items():
        parts = [part for _, part in select(frame, by or {}).groupby("form", sort=False)]
        found |= {name if len(parts) == 1 else f"{name}, {form(part)}": part for part in parts}
    return found


def score_models(frames: Mapping[str, pd.DataFrame], by: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Return a table with one row per model and form: kind, form, MAE, tau, tau within depth, invalid answers under both readings.

    Parameters
    ----------
    frames : mapping of str to pandas.DataFrame
        By name of the model. If none is a language model's, a last row says that none is recorded.
    by : mapping of str to value, optional
        Labels that rows of the frames must have, such as ``{"form": "single"}``; a model without such rows was not asked and is
        left out.

    Returns
    -------
    pandas.DataFrame
        The index holds the names of the models, with the form where one was asked in several.
    """
    rows = {}
    for name, part in by_form(frames, by).items():
        rows[name] = {"kind": part["kind"].iloc[0], "form": form(part), **score(part), **count_invalid(part)}
    if not any(is_llm(frame) for frame in frames.values()):
        rows[NOT_RECORDED] = {"kind": "LLM", "form": "–", **dict.fromkeys(_MEASURES, math.nan), **dict.fromkeys(INVALID, "–")}
    return pd.DataFrame.from_dict(rows, orient="index")


def select(frame: pd.DataFrame, labels: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows of a frame with the given labels."""
    for column, value in labels.items():
        frame = frame[frame[column] == value]
    return frame


def is_llm(frame: pd.DataFrame) -> bool:
    """Return whether answers come from a language model."""
    return str(frame["kind"].iloc[0]) in (RECORDED, LIVE)


def best_llm(frames: Mapping[str, pd.DataFrame], by: Mapping[str, Any] | None = None) -> str | None:
    """Return the language model with the least MAE among those that answered everything, nine in ten validly; or None."""
    scores = {}
    for name, frame in frames.items():
        part = select(frame, by or {})
        # A model that answers few questions validly is scored on those alone, which may be the easy ones.
        if is_llm(frame) and part["predicted"].notna().mean() >= 0.9:
            scores[name] = score(part)["MAE"]
    known = {name: value for name, value in scores.items() if not math.isnan(value)}
    return min(known, key=known.__getitem__) if known else None


def repeatability(frame: pd.DataFrame) -> dict[str, float]:
    """Return how much the samples of one prompt differ.

    Returns
    -------
    dict
        "standard deviation": of one valid sample (with n - 1), pooled over architectures, in the score's unit; "all equal": share
        of architectures whose samples agree; "MAE of one sample", mean over samples; "MAE of the median".
    """
    valid = frame.dropna(subset="predicted")
    if not is_complete(frame):
        return dict.fromkeys(("standard deviation", "all equal", "MAE of one sample", "MAE of the median"), math.nan)
    samples = valid.groupby(["task", "split", "architecture"], sort=False)["predicted"]
    return {
        "standard deviation": math.sqrt(samples.var().mean()),
        "all equal": float((samples.nunique() == 1).mean()),
        "MAE of one sample": sum(score(part)["MAE"] for _, part in frame.groupby("sample")) / frame["sample"].nunique(),
        "MAE of the median": score(frame)["MAE"],
    }


def sizes(names: Iterable[str] = tuple(EXPERIMENTS)) -> pd.DataFrame:
    """Return what asking each experiment takes: requests, tokens sent (estimated) and the most tokens received."""
    rows = {}
    for name in names:
        prompts = dict.fromkeys(question.prompt for question in experiment(name).questions())
        samples = experiment(name).samples
        rows[name] = {
            "requests": len(prompts) * samples,
            "tokens sent": sum(map(estimate_tokens, prompts)) * samples,
            "tokens received, at most": sum(Settings("any").answer_tokens * prompt.n for prompt in prompts) * samples,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def count_tokens(prompt: Prompt, text: str) -> int:
    """Return about how many tokens a piece of a prompt or an answer makes."""
    return estimate_tokens(replace(prompt, prefix=text, query="")) - estimate_tokens(replace(prompt, prefix="", query=""))


def usage(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per request of an experiment's answers: form, per_request, sent, received, counted_by and seconds.

    Tokens are as the server counted them, or estimated where it counted none.
    """
    questions = experiment(name).questions()
    prompts = {tuple(question.labels.values()): question.prompt for question in questions}
    labels = [*questions[0].labels]
    rows = []
    for row in frame.drop_duplicates([*labels, "sample"]).to_dict("records"):
        prompt = prompts[tuple(row[label] for label in labels)]
        counted = bool(row["prompt_tokens"]) and not pd.isna(row["prompt_tokens"])
        rows.append(
            {
                "form": row["form"],
                "per_request": row["per_request"],
                "sent": row["prompt_tokens"] if counted else estimate_tokens(prompt),
                "received": row["answer_tokens"] if counted else count_tokens(prompt, row["text"]),
                "counted_by": "the server" if counted else "estimate",
                "seconds": row["seconds"],
            }
        )
    return pd.DataFrame(rows).astype({"seconds": float})
