"""Named lists of questions whose answers are worth recording, and tables of the answers.

An `Experiment` builds the same questions every time, so answers recorded on one machine fit on every other. Chapters read
recordings with `answers` or ask with `ask`; both return the same tidy frame.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from llmpp_book import repository
from llmpp_core.llm.answers import Answer, read_answer
from llmpp_core.llm.client import Client
from llmpp_core.llm.prompts import FULL, LEVELS, Efficiency, Prompt, PromptTask, build_prompt, example_pairs
from llmpp_core.llm.recordings import Recording, Row, open_recording, read_recording, read_recordings, recording_path, write_recording
from llmpp_core.llm.settings import Settings
from llmpp_core.metrics import random_splits
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.cost import count_flops
from llmpp_core.space.search_space import HAT_WMT, SearchSpace
from llmpp_core.upstream import PAPER_TASKS, TFS_SPLITS, PaperTask, TFSSplit, tfs_splits

#: Where recordings are kept.
RESULTS = repository.RESULTS / "llm"
#: Architectures per request of the batched form.
BATCH = 10
#: Splits of the synthetic benchmark.
SYNTHETIC_SPLITS = 3


def _wmt_task(corpus: str, task: PaperTask) -> PromptTask:
    return PromptTask(
        task.title,
        description=f"machine translation from English to {task.target} on {task.title.split()[0]}",
        metric="BLEU",
        metric_description="a percentage, on the validation set",
        low=0.0,
        high=100.0,
        examples=example_pairs(corpus.partition(".")[2]),
        # As in the official prompts: with the output projection, whose size is the vocabulary of the upstream records.
        efficiency=Efficiency(
            description="the billions of floating-point operations of one forward pass over a sentence pair",
            value=lambda arch: count_flops(arch, task.subwords) / 1e9,
        ),
    )


#: The paper's tasks as prompts describe them.
WMT_TASKS = {task.records: _wmt_task(corpus, task) for corpus, task in PAPER_TASKS.items()}


class Question(NamedTuple):
    """One prompt, the architectures it asks about, and their true scores (nan where unknown); labels are in JSON types."""

    labels: dict[str, Any]
    prompt: Prompt
    architectures: tuple[Architecture, ...]
    true: tuple[float, ...]


@dataclass(frozen=True)
class Experiment:
    """Questions worth recording.

    Parameters
    ----------
    name, description : str
        For the command line.
    questions : callable
        Builds the list of `Question`, the same each time.
    samples : int
        Answers per question.
    """

    name: str
    description: str
    questions: Callable[[], list[Question]]
    samples: int = 1


def ask_test_sets(
    splits: Iterable[TFSSplit],
    tasks: Mapping[str, PromptTask],
    level: str = FULL,
    form: str = "single",
    anonymous: bool = False,
    demonstrations: int | None = None,
    score: str = "bleu",
    shuffled: bool = False,
) -> list[Question]:
    """Return questions about the test architectures of some splits, given their demonstrations.

    Parameters
    ----------
    splits : iterable of TFSSplit
        The paper's, or any of the same shape.
    tasks : mapping of str to PromptTask
        How prompts describe the splits' tasks.
    level, form : str
        Template and form of `llmpp_core.llm.prompts`; forms other than "single" ask for `BATCH` architectures at once.
    anonymous : bool
        Leave out what would tell which task it is.
    demonstrations : int, optional
        Show only the first so many demonstrations.
    score : str
        Column that holds the score, higher is better.
    shuffled : bool
        Permute the scores of the demonstrations (see `shuffle`): a model that reads them is misled, one that remembers is not.
    """
    questions = []
    for split in splits:
        task = tasks[split.task].anonymous() if anonymous else tasks[split.task]
        shown = split.demonstrations.iloc[:demonstrations]
        scores = shuffle(shown[score].tolist(), split.seed) if shuffled else shown[score].tolist()
        pairs = list(zip(shown["architecture"], scores, strict=True))
        labels = {
            "task": split.task,
            "split": split.seed,
            "level": level,
            "form": form,
            "anonymous": anonymous,
            "demonstrations": len(shown),
            **({"shuffled": True} if shuffled else {}),
        }
        archs, true = list(split.test["architecture"]), split.test[score].tolist()
        questions += _ask(task, pairs, archs, true, level, form, labels)
    return questions


def shuffle(scores: ArrayLike, seed: int) -> list[float]:
    """Return the scores of a split's demonstrations in the order in which the experiments show them shuffled."""
    return np.random.default_rng(seed).permutation(np.asarray(scores, dtype=float)).tolist()


def _ask(
    task: PromptTask,
    demonstrations: list[tuple[Architecture, float]],
    archs: Sequence[Architecture],
    true: Sequence[float],
    level: str,
    form: str,
    labels: dict[str, Any],
) -> list[Question]:
    size = 1 if form == "single" else BATCH
    questions = []
    for first in range(0, len(archs), size):
        group = tuple(archs[first : first + size])
        prompt = build_prompt(task, demonstrations, group, level, form)
        questions.append(Question({**labels, "first": first}, prompt, group, tuple(true[first : first + size])))
    return questions


def _distill(splits: Iterable[TFSSplit], tasks: Mapping[str, PromptTask], space: SearchSpace, n: int) -> list[Question]:
    """Return questions about `n` architectures of a space without known scores, ten per request."""
    archs = space.sample_balanced(n, np.random.default_rng(2024))
    unlabelled = pd.DataFrame({"architecture": archs, "bleu": math.nan})
    return ask_test_sets([split._replace(test=unlabelled) for split in splits], tasks, form="batched")


def _wmt(**changes: Any) -> list[Question]:
    return ask_test_sets(tfs_splits(), WMT_TASKS, **changes)


def _wmt_first() -> list[TFSSplit]:
    return [split for split in tfs_splits() if split.seed == TFS_SPLITS[0]]


def _wmt_distill(n: int) -> list[Question]:
    return _distill(_wmt_first(), WMT_TASKS, HAT_WMT, n)


def synthetic_splits(n: int = SYNTHETIC_SPLITS) -> list[TFSSplit]:
    """Return random splits of this project's synthetic benchmark: ten demonstrations each, and 38 test architectures."""
    # Loads torch, which most experiments do without.
    from llmpp_book.studies import ground_truth as benchmark

    return random_splits({"synthetic": benchmark.records("synthetic")}, np.random.default_rng(0), n)


def _synthetic(**changes: Any) -> list[Question]:
    from llmpp_core.tasks.registry import load_task

    return ask_test_sets(synthetic_splits(), {"synthetic": load_task("synthetic").prompt_task()}, form="batched", **changes)


def _synthetic_distill(n: int) -> list[Question]:
    from llmpp_core.tasks.registry import load_task

    task = load_task("synthetic")
    return _distill(synthetic_splits(1), {"synthetic": task.prompt_task()}, task.space, n)


_NAMES = (False, True)
_ALL = [
    Experiment("wmt-test", "the nine test sets, one architecture per request and ten", lambda: _wmt() + _wmt(form="batched")),
    Experiment("wmt-repeat", "two answers to every question about the nine test sets, ten per request", lambda: _wmt(form="batched"), 2),
    Experiment("wmt-samples", "five answers to every question about the nine test sets, one per request", _wmt, samples=5),
    Experiment("wmt-ablation", "the nine test sets at every level of the prompt", lambda: [q for lv in LEVELS for q in _wmt(level=lv)]),
    Experiment(
        "wmt-ablation-batched",
        "the first test set of each task at every level of the prompt but the full one, ten per request",
        lambda: [q for lv in LEVELS if lv != FULL for q in ask_test_sets(_wmt_first(), WMT_TASKS, level=lv, form="batched")],
    ),
    Experiment(
        "wmt-demos", "the nine test sets with 1 to 10 demonstrations", lambda: [q for n in range(1, 11) for q in _wmt(demonstrations=n)]
    ),
    Experiment(
        "wmt-demos-batched",
        "the first test set of each task with 1, 3, 5 and 8 demonstrations, ten per request",
        lambda: [q for n in (1, 3, 5, 8) for q in ask_test_sets(_wmt_first(), WMT_TASKS, form="batched", demonstrations=n)],
    ),
    Experiment("wmt-anonymous", "the nine test sets without the names of task, data set and paper", lambda: _wmt(anonymous=True)),
    Experiment("wmt-anonymous-batched", "the same, ten per request", lambda: _wmt(form="batched", anonymous=True)),
    Experiment(
        "wmt-shuffled-batched",
        "the nine test sets with the demonstrations' scores permuted, with and without names, ten per request",
        lambda: [q for hidden in _NAMES for q in _wmt(form="batched", anonymous=hidden, shuffled=True)],
    ),
    Experiment("wmt-distill", "labels of 500 architectures per task, ten per request", lambda: _wmt_distill(500)),
    Experiment("wmt-distill-3000", "labels of 3,000 architectures per task, those of wmt-distill first", lambda: _wmt_distill(3000)),
    Experiment("synthetic-test", "three test sets of the synthetic task, which no model has seen, ten per request", _synthetic),
    Experiment("synthetic-repeat", "two answers to every question of synthetic-test", _synthetic, 2),
    Experiment("synthetic-anonymous", "those of synthetic-test without names", lambda: _synthetic(anonymous=True)),
    Experiment("synthetic-shuffled", "those of synthetic-test with the demonstrations' scores permuted", lambda: _synthetic(shuffled=True)),
    Experiment("synthetic-distill", "labels of 500 architectures of the synthetic task, ten per request", lambda: _synthetic_distill(500)),
]
#: The experiments by name.
EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}


def experiment(name: str) -> Experiment:
    """Return an experiment by name."""
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}; allowed are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def recordings(name: str, results: Path = RESULTS) -> list[str]:
    """Return the names of the recordings of an experiment that hold answers; a file that is none is named in a warning."""
    return [found.path.stem for found in read_recordings((results / experiment(name).name).glob("*.jsonl")) if found.rows]


def answers(name: str, recording: str, results: Path = RESULTS) -> pd.DataFrame:
    """Return the recorded answers of an experiment, joined to the truth.

    Parameters
    ----------
    name : str
        A name of `EXPERIMENTS`.
    recording : str
        A name of `recordings`, usually the model id.

    Returns
    -------
    pandas.DataFrame
        See `tidy`. What is not recorded, or was recorded for another version of the prompt, has status "missing". A form
        (one architecture per request, or several) of which nothing is recorded was not asked, and is left out.

    Warns
    -----
    UserWarning
        If the recording holds answers that fit no question.
    """
    path = recording_path(results, experiment(name).name, recording)
    found = read_recording(path)
    questions = experiment(name).questions()
    samples = range(experiment(name).samples)
    keys = [[found.settings.key(question.prompt, sample) for sample in samples] for question in questions]
    if strange := sorted(found.rows.keys() - {key for row in keys for key in row}):
        what = f"{len(strange)} of {len(found.rows)} recorded answers fit no question of {name}, the first: {strange[0]}"
        warnings.warn(f"{path}: {what}; they are kept, and left out here", stacklevel=2)
    asked = {question.labels["form"] for question, row in zip(questions, keys, strict=True) if found.rows.keys() & set(row)}
    pairs = [(question, row) for question, row in zip(questions, keys, strict=True) if question.labels["form"] in asked or not asked]
    replies = [tuple(_recorded(question, key, found) for key in row) for question, row in pairs]
    return tidy([question for question, _ in pairs], replies, found.settings.model)


def _recorded(question: Question, key: str, recording: Recording) -> Answer:
    row = recording.rows.get(key)
    if row is None:
        return Answer(key, (math.nan,) * question.prompt.n, "missing", "not recorded")
    return read_answer(question.prompt, key, row.stored.response, row.stored.seconds)


def ask(name: str, client: Client) -> pd.DataFrame:
    """Ask the questions of an experiment, as far as they are not answered yet; returns the frame of `tidy`."""
    questions = experiment(name).questions()
    return tidy(questions, client.ask([question.prompt for question in questions], experiment(name).samples), client.settings.model)


def tidy(questions: Sequence[Question], replies: Sequence[Sequence[Answer]], model: str) -> pd.DataFrame:
    """Return one row per architecture and sample.

    Returns
    -------
    pandas.DataFrame
        model; the labels (task, split, level, form, anonymous, demonstrations, first); sample; architecture;
        decoder_layers; true; predicted (nan unless valid) and predicted_as_asked (nan too where the reply was read only
        tolerantly); status of the request (answered, invalid, failed, missing) and reason; text, prompt_tokens,
        answer_tokens and seconds of the request; per_request, the architectures that share it.
    """
    rows = []
    for question, answers_ in zip(questions, replies, strict=True):
        for sample, answer in enumerate(answers_):
            shared = {
                "status": answer.status,
                "reason": answer.reason,
                "text": answer.text,
                "prompt_tokens": answer.prompt_tokens,
                "answer_tokens": answer.answer_tokens,
                "seconds": answer.seconds,
                "per_request": question.prompt.n,
            }
            values = zip(question.architectures, question.true, answer.values, answer.as_asked, strict=True)
            for arch, true, predicted, as_asked in values:
                own = {"architecture": arch, "decoder_layers": arch.decoder_layers, "true": true}
                own |= {"predicted": predicted, "predicted_as_asked": as_asked}
                rows.append({"model": model, **question.labels, "sample": sample, **own, **shared})
    return pd.DataFrame(rows)


def expected(name: str, settings: Settings) -> dict[str, tuple[Question, int]]:
    """Return the questions of an experiment, with the number of the sample, by the key of the answer."""
    found = experiment(name)
    pairs = [(question, sample) for question in found.questions() for sample in range(found.samples)]
    return {settings.key(question.prompt, sample): (question, sample) for question, sample in pairs}


def record(name: str, client: Client, recording: str | None = None, results: Path = RESULTS) -> Path:
    """Write what the client has of an experiment's answers, asking nothing, to its recording; returns the file."""
    path = recording_path(results, name, recording or client.settings.model)
    target = open_recording(path, name, client.settings)
    for key, (question, sample) in expected(name, client.settings).items():
        if key not in target.rows and (stored := client.lookup(key)):
            target.rows[key] = Row(question.labels, sample, stored)
    write_recording(target)
    return path
