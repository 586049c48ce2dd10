"""LLM-PP: a language model as a scikit-learn regressor over architectures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from llmpp_core.llm.client import Client
from llmpp_core.llm.logprobs import Distribution, read_distribution
from llmpp_core.llm.prompts import FULL, Prompt, PromptTask, build_prompt, check_choices, choose_demonstrations, networks_of
from llmpp_core.space.architecture import Architecture
from llmpp_core.space.inputs import as_scores, warn_if_weak
from llmpp_core.space.regressor import ArchitectureRegressor


class LLMPredictor(ArchitectureRegressor):
    """Predicts scores by asking a language model that is shown trained architectures.

    Parameters
    ----------
    client : Client
        Who is asked; clones share it, and with it cache and budget.
    task : PromptTask
        What is predicted.
    level, form : str
        Prompt template, and form of request and answer: names of `LEVELS` and `FORMS` in `llmpp_core.llm.prompts`.
    batch_size, samples : int
        Architectures per request, for forms other than "single"; and answers per architecture, whose medians are predicted.
    demonstrations : int, optional
        How many of the fitted architectures to show; all by default.
    choice, seed : str, int
        Which ones: "first", "random" or "spread", see `llmpp_core.llm.prompts.choose_demonstrations`.

    Attributes
    ----------
    demonstrations_ : list of (Architecture, float)
        What is shown, in order.
    answers_ : list of tuple of Answer
        What was answered to the last `predict`, per request.
    covered_ : numpy.ndarray of shape (n,)
        Where requests ask for log-probabilities: the probability that the last `predict` accounts for, see `llmpp_core.llm.logprobs`.
    """

    def __init__(
        self,
        client: Client,
        task: PromptTask,
        level: str = FULL,
        form: str = "single",
        batch_size: int = 10,
        samples: int = 1,
        demonstrations: int | None = None,
        choice: str = "first",
        seed: int = 0,
    ):
        self.client = client
        self.task = task
        self.level = level
        self.form = form
        self.batch_size = batch_size
        self.samples = samples
        self.demonstrations = demonstrations
        self.choice = choice
        self.seed = seed

    def fit(self, archs: Sequence[Architecture], scores: ArrayLike) -> Self:
        """Keep the demonstrations, n architectures and their scores of shape (n,), higher being better; nothing is asked.

        Raises ValueError if a setting is not allowed, or a score is not finite or outside the range of the task; names its row.
        """
        self._check_settings()
        archs = networks_of(self.task.space, archs)
        y = as_scores(scores, len(archs))
        self.task.check_scores(y)
        n = len(archs) if self.demonstrations is None else self.demonstrations
        chosen = choose_demonstrations(archs, n, self.choice, np.random.default_rng(self.seed), space=self.task.space)
        self.demonstrations_ = [(archs[i], float(y[i])) for i in chosen]
        warn_if_weak([archs[i] for i in chosen], y[chosen])
        decimals = self.task.decimals
        shown, finer = ({f"{score:.{digits}f}" for score in y[chosen]} for digits in (decimals, decimals + 2))
        # Of many scores far apart, two may well be alike.
        if len(shown) < len(finer) and 10.0**-decimals > 0.05 * np.ptp(y[chosen]):
            reason = f"{len(finer)} different scores are shown as {len(shown)}, since the task has decimals={decimals}; raise it"
            warnings.warn(reason, UserWarning, stacklevel=2)
        return self

    def _check_settings(self) -> None:
        check_choices(self.level, self.form)
        for name in ("batch_size", "samples"):
            if not isinstance(value := getattr(self, name), Integral) or value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")

    def predict(self, archs: Sequence[Architecture], return_std: bool = False) -> Any:
        """Ask for the scores.

        Returns
        -------
        numpy.ndarray of shape (n,), or a pair of them with `return_std`
            The median of the valid answers, nan where there is none; and their population standard deviation, nan of fewer than two.
            Where the client's requests ask for log-probabilities, one answer is enough: the expected number under the model's own
            distribution, and its standard deviation. Where these do not come, a warning says so, and the number is taken as written,
            with a spread of nan.
        """
        check_is_fitted(self)
        self._check_settings()
        archs = networks_of(self.task.space, archs)
        expected = bool(self.client.settings.extra.get("logprobs"))
        size = 1 if self.form == "single" else self.batch_size
        if expected and (self.samples, size) != (1, 1):
            got = f"got samples={self.samples}, form={self.form!r} and batch_size={self.batch_size}"
            raise ValueError(
                f"log-probabilities are read from one answer about one architecture: expected samples=1 and form='single', {got}"
            )
        if return_std and self.samples < 2 and not expected:
            raise ValueError(f"return_std needs samples of at least 2, got {self.samples}, or requests that ask for log-probabilities")
        groups = [list(archs[i : i + size]) for i in range(0, len(archs), size)]
        prompts = [build_prompt(self.task, self.demonstrations_, group, self.level, self.form) for group in groups]
        self.answers_ = self.client.ask(prompts, self.samples)
        if expected:
            mean, std = self._distributions(prompts)
        else:
            columns = [np.array([answer.values for answer in answers]) for answers in self.answers_]
            values = np.ma.masked_invalid(np.concatenate(columns, axis=1) if columns else np.empty((self.samples, 0)))
            mean, std = (found.filled(np.nan) for found in (np.ma.median(values, axis=0), values.std(axis=0)))
            # One valid answer of several says nothing of their spread.
            std[values.count(axis=0) < 2] = np.nan
        return (mean, std) if return_std else mean

    def _distributions(self, prompts: list[Prompt]) -> tuple[np.ndarray, np.ndarray]:
        """Return the expected number and the spread of each answer to the last `predict`."""
        rows, lacking = [], 0
        for prompt, (answer,) in zip(prompts, self.answers_, strict=True):
            stored = self.client.lookup(answer.key)
            found = read_distribution(prompt, stored.response) if stored else None
            lacking += found is None and answer.status == "answered"
            rows.append(found or Distribution(answer.values[0], np.nan, np.nan))
        if lacking:
            what = f"{lacking} of {len(rows)} answers came without the log-probabilities of their number, which not every server gives"
            warnings.warn(f"{what}: it is taken as written, with a spread of nan", stacklevel=3)
        mean, std, self.covered_ = np.array(rows, dtype=float).reshape(len(rows), 3).T
        return mean, std
