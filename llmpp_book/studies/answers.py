"""Answers of language models to experiments: asked now, recorded, and read back, all as the same tidy frame.

Chapters show three kinds beside each other: the offline endpoint under its own name, recordings, and a model that is asked while the
notebook runs. None of them is ever filled in for another: what is not recorded is missing.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from llmpp_book import repository
from llmpp_book.studies.questions import Question, experiment
from llmpp_core.jobs.interruption import interruptible
from llmpp_core.llm.answers import Answer, read_answer
from llmpp_core.llm.client import Client, Estimate
from llmpp_core.llm.offline import MODEL, OfflineEndpoint, offline_settings
from llmpp_core.llm.prompts import Prompt
from llmpp_core.llm.recordings import Recording, Row, load, open_recording, read_recording, read_recordings, recording_path, write_recording
from llmpp_core.llm.run import Job
from llmpp_core.llm.settings import Settings, estimate_tokens

#: Where recordings are kept.
RESULTS = repository.RESULTS / "llm"
#: What answers are.
OFFLINE, RECORDED, LIVE = "offline endpoint (not an LLM)", "LLM, recorded", "LLM, live"


def expected(name: str, settings: Settings) -> dict[str, tuple[Question, int]]:
    """Return the questions of an experiment, with the number of the sample, by the key of the answer."""
    found = experiment(name)
    pairs = [(question, sample) for question in found.questions() for sample in range(found.samples)]
    return {settings.key(question.prompt, sample): (question, sample) for question, sample in pairs}


@dataclass
class Session:
    """One model's answers to one experiment, being recorded."""

    client: Client
    recording: Recording
    expected: dict[str, tuple[Question, int]]  #: As of `expected`.
    samples: int  #: Answers per question.
    estimate: Estimate  #: What `ask` would take.

    @classmethod
    def open(cls, name: str, settings: Settings, recording: str | None = None, mode: str = "live") -> Session:
        """Begin a recording or go on with one, usually under the model's id; all that is recorded of these settings is known.

        Raises ValueError if the experiment is unknown, or the recording holds answers of other settings: before anything is paid for.
        """
        questions = expected(name, settings)
        target = open_recording(recording_path(RESULTS, name, recording or settings.model), name, settings)
        client = Client(settings, recordings=load(RESULTS, settings), mode=mode, progress=mode == "live")
        samples = experiment(name).samples
        return cls(client, target, questions, samples, client.estimate(_prompts(questions), samples))

    def ask(self) -> list[str]:
        """Ask what is not answered yet, and record what there is, also where the run ends early; returns why requests failed."""
        try:
            with interruptible("stopping: waiting for the requests in flight, whose answers are kept; once more to give them up"):
                replies = self.client.ask(_prompts(self.expected), self.samples)
        finally:
            self.record()
        return [answer.reason for row in replies for answer in row if answer.status == "failed"]

    def record(self, begin: bool = False) -> list[Job]:
        """Write what the client has of the answers, if it has any or to begin a recording; returns the requests that have none."""
        # Read again: others may have imported answers meanwhile.
        self.recording = open_recording(self.recording.path, self.recording.experiment, self.client.settings)
        for key, (question, sample) in self.expected.items():
            if key not in self.recording.rows and (stored := self.client.lookup(key)):
                self.recording.rows[key] = Row(question.labels, sample, stored)
        if begin or self.recording.rows:
            write_recording(self.recording)
        return [Job(key, question.prompt, i) for key, (question, i) in self.expected.items() if key not in self.recording.rows]


def _prompts(questions: Mapping[str, tuple[Question, int]]) -> list[Prompt]:
    return list(dict.fromkeys(question.prompt for question, _ in questions.values()))


def recordings(name: str) -> list[str]:
    """Return the names of the recordings of an experiment that hold answers; a file that is none is named in a warning."""
    return [found.path.stem for found in read_recordings((RESULTS / experiment(name).name).glob("*.jsonl")) if found.rows]


def answers(name: str, recording: str) -> pd.DataFrame:
    """Return the recorded answers of an experiment, by the name of a recording, as the frame of `tidy`, joined to the truth.

    What is not recorded, or was recorded for another version of the prompt, has status "missing". A form (one architecture per request,
    or several) of which nothing is recorded was not asked, and is left out. Warns if the recording holds answers that fit no question.
    """
    # As it is called, or by the name of a model.
    path = RESULTS / experiment(name).name / f"{recording}.jsonl"
    path = path if path.exists() else recording_path(RESULTS, experiment(name).name, recording)
    found = read_recording(path)
    samples = range(experiment(name).samples)
    keyed = [(question, [found.settings.key(question.prompt, sample) for sample in samples]) for question in experiment(name).questions()]
    if strange := sorted(found.rows.keys() - {key for _, keys in keyed for key in keys}):
        what = f"{len(strange)} of {len(found.rows)} recorded answers fit no question of {name}, the first: {strange[0]}"
        warnings.warn(f"{path}: {what}; they are kept, and left out here", stacklevel=2)
    asked = {question.labels["form"] for question, keys in keyed if found.rows.keys() & set(keys)}
    keyed = [(question, keys) for question, keys in keyed if question.labels["form"] in asked or not asked]
    replies = [[_recorded(question, key, found) for key in keys] for question, keys in keyed]
    return tidy([question for question, _ in keyed], replies, found.settings.model)


def _recorded(question: Question, key: str, recording: Recording) -> Answer:
    row = recording.rows.get(key)
    if row is None:
        return Answer(key, (math.nan,) * question.prompt.n, "missing", "not recorded")
    return read_answer(question.prompt, key, row.stored.response, row.stored.seconds)


def tidy(questions: Sequence[Question], replies: Sequence[Sequence[Answer]], model: str) -> pd.DataFrame:
    """Return one row per architecture and sample.

    Columns: model; the labels (task, split, level, form, anonymous, demonstrations, first); sample; architecture; decoder_layers; true;
    predicted (nan unless valid) and predicted_as_asked (nan too where only the tolerant reading takes the reply); status (answered,
    invalid, failed, missing), reason, text, prompt_tokens, answer_tokens and seconds of the request; per_request, how many share it.
    """
    rows = []
    for question, answers_ in zip(questions, replies, strict=True):
        for sample, answer in enumerate(answers_):
            shared = {name: getattr(answer, name) for name in ("status", "reason", "text", "prompt_tokens", "answer_tokens", "seconds")}
            values = zip(question.architectures, question.true, answer.values, answer.as_asked, strict=True)
            for arch, true, predicted, as_asked in values:
                own = {"architecture": arch, "decoder_layers": getattr(arch, "decoder_layers", None), "true": true}
                own |= {"predicted": predicted, "predicted_as_asked": as_asked}
                rows.append({"model": model, **question.labels, "sample": sample, **own, **shared, "per_request": question.prompt.n})
    return pd.DataFrame(rows)


def _ask(name: str, client: Client) -> pd.DataFrame:
    questions = experiment(name).questions()
    return tidy(questions, client.ask([question.prompt for question in questions], experiment(name).samples), client.settings.model)


def ask_offline(names: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Return by experiment the offline endpoint's answers, obtained over HTTP on loopback: the frame of `tidy` with a column "kind"."""
    with tempfile.TemporaryDirectory() as folder, OfflineEndpoint() as url:
        client = Client(offline_settings(url), cache=Path(folder) / "llm.sqlite3")
        return {name: _ask(name, client).assign(kind=OFFLINE) for name in names}


def ask_live(name: str, model: str, base_url: str) -> pd.DataFrame:
    """Ask a model now, except for what is recorded or in the user's cache; returns `ask_offline`'s frame.

    No price is known here, so the run stops at twice the tokens it is estimated to take; ``prompts ask`` takes a price and a budget.
    """
    draft = Settings(model, base_url=base_url)
    prompts = [question.prompt for question in experiment(name).questions()]
    worst = sum(estimate_tokens(prompt) + draft.answer_tokens * prompt.n for prompt in prompts) * experiment(name).samples
    settings = replace(draft, token_cap=2 * worst)
    return _ask(name, Client(settings, recordings=load(RESULTS, settings))).assign(kind=OFFLINE if model == MODEL else LIVE)


def recorded(name: str) -> dict[str, pd.DataFrame]:
    """Return the recorded answers to an experiment by name of the model, or of the recording where that is another."""
    frames = {}
    for recording in recordings(name):
        frame = answers(name, recording)
        model = str(frame["model"].iloc[0])
        title = model if recording_path(RESULTS, name, model).stem == recording else f"{model} ({recording})"
        # The offline endpoint is also asked anew in the same table.
        title, kind = (f"{title}, recorded", OFFLINE) if model == MODEL else (title, RECORDED)
        frames[title] = frame.assign(kind=kind)
    return frames


def count_tokens(prompt: Prompt, text: str) -> int:
    """Return about how many tokens a piece of a prompt or an answer makes."""
    return estimate_tokens(replace(prompt, prefix=text, query="")) - estimate_tokens(replace(prompt, prefix="", query=""))


def usage(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Return per_request, seconds and tokens sent of each request of an experiment's answers; estimated where no server counted tokens."""
    questions = experiment(name).questions()
    estimates = {tuple(question.labels.values()): estimate_tokens(question.prompt) for question in questions}
    labels = [*questions[0].labels]
    requests = frame[frame["status"] != "missing"].drop_duplicates([*labels, "sample"])
    estimated = [estimates[row] for row in requests[labels].itertuples(index=False, name=None)]
    # Some servers count 0.
    counted = requests["prompt_tokens"].astype(float)
    return requests[["per_request", "seconds"]].assign(sent=counted.where(counted > 0, estimated)).astype({"seconds": float})
