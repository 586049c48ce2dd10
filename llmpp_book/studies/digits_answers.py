"""What a language model's recorded answers about networks that read digits are worth: as predictions, and as choices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from llmpp_book.studies import digits, digits_choices
from llmpp_book.studies.answers import answers
from llmpp_book.studies.paired import by_student as paired
from llmpp_core.metrics import kendall_tau, mean_absolute_error
from llmpp_core.predictors.distill import DistilledPredictor

#: Least and greatest accuracy, in percent.
RANGE = (0.0, 100.0)


def predictions(of: digits.Known, model: str, experiment: str = "digits-test") -> pd.DataFrame:
    """Return what the model and its rivals predict, one row per ten and network asked about.

    Columns: split, the ten; row, of the network among all; true, the mean of the seeds that nobody saw; "language model", "ridge
    regression" and "Gaussian process", all from the same ten; and "model and ridge", their mean.
    """
    asked = answers(experiment, model)
    tens = digits.splits(int(asked["split"].max()) + 1, np.random.default_rng(0), of)
    # A ten whose answers are not recorded is no ten.
    asked = asked[asked.groupby("split")["predicted"].transform("count") > 0].reset_index(drop=True)
    order = {network: row for row, network in enumerate(of.networks)}
    rows = asked["architecture"].map(order).to_numpy()
    frame = pd.DataFrame({"split": asked["split"], "row": rows, "true": of.held_out[rows], "language model": asked["predicted"]})
    for name, learner in (("ridge regression", digits_choices.ridge()), ("Gaussian process", digits_choices.process())):
        by_ten = [digits_choices.predicted(learner, of, ten) for ten in tens]
        frame[name] = [by_ten[split][row] for split, row in zip(frame["split"], frame["row"], strict=True)]
    within = frame["ridge regression"].clip(*RANGE)
    return frame.assign(**{"model and ridge": (frame["language model"] + within) / 2})


def agreement(frame: pd.DataFrame, than: str = "ridge regression") -> pd.DataFrame:
    """Return MAE and tau of each predictor of `predictions`, means over the tens, and paired differences from one of them.

    Columns MAE and tau hold numbers, "MAE difference" and "tau difference" an `Interval` each (`paired`), over the networks of which both
    predictors have a number: a model may fail at the hard ones.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name in frame.columns[3:]:
        own, common = _by_ten(frame.dropna(subset=[name]), name), frame.dropna(subset=[name, than])
        ours, theirs = _by_ten(common, name), _by_ten(common, than)
        rows[name] = {measure: float(np.mean(values)) for measure, values in own.items()}
        rows[name] |= {f"{measure} difference": paired(ours[measure], theirs[measure]) for measure in own}
    return pd.DataFrame.from_dict(rows, orient="index")


def _by_ten(frame: pd.DataFrame, name: str) -> dict[str, list[float]]:
    return {"MAE": errors(frame, name), "tau": [kendall_tau(part["true"], part[name]) for _, part in frame.groupby("split")]}


def errors(frame: pd.DataFrame, name: str) -> list[float]:
    """Return the mean absolute error of a predictor of `predictions` for each ten; what is out of range counts as its end."""
    pairs = [part[["true", name]].dropna() for _, part in frame.groupby("split")]
    return [mean_absolute_error(pair["true"], pair[name].clip(*RANGE)) for pair in pairs]


def choices(of: digits.Known, frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Return the row that each way chooses, one row per ten: among the networks asked about, and by a student of the answers among all."""
    chosen = []
    for _, part in frame.groupby("split"):
        best = {f"{name}, of those asked about": int(part["row"].to_numpy()[part[name].argmax()]) for name in frame.columns[3:]}
        known = part.dropna(subset=["language model"])
        learner = DistilledPredictor(space=digits.space(), random_state=seed)
        learner.fit([of.networks[row] for row in known["row"]], known["language model"].to_numpy())
        best["student of the language model, of all"] = of.best(learner.predict(of.networks))
        chosen.append(best)
    return pd.DataFrame(chosen)
