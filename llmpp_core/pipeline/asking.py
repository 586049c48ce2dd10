"""Asking a language model, or a recording of one, about networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from llmpp_core.llm.answers import Answer, read_reply
from llmpp_core.llm.client import Client, MissingAnswers
from llmpp_core.llm.prompts import Efficiency, Prompt, PromptTask, build_prompt
from llmpp_core.llm.recordings import Recording, Row, read_recording, write_recording
from llmpp_core.llm.settings import Price, Settings
from llmpp_core.pipeline.inputs import Inputs
from llmpp_core.pipeline.problems import named
from llmpp_core.pipeline.run_file import FIELDS

# Of more trained networks, so many of the best and so many others are shown.
_BEST, _OTHERS = 5, 5


class Asking:
    """A language model, what it is asked, and what it has answered.

    Parameters
    ----------
    inputs : Inputs
    client : Client
    """

    def __init__(self, inputs: Inputs, client: Client):
        self.inputs, self.client, self.name = inputs, client, client.settings.model
        self.task = self._task()
        self.path: Path | None = None  #: Where answers are recorded.

    @classmethod
    def of(cls, inputs: Inputs, recordings: Sequence[Path]) -> Self | None:
        """Return what the run asks, None if nothing; `recordings` are of earlier rounds. Raises ValueError for wrong settings."""
        run = inputs.run
        if run["model.recording"]:
            with named(run.at("model.recording")):
                try:
                    recording = read_recording(run.path(run["model.recording"]))
                except OSError as error:
                    raise ValueError(f"model.recording: {run['model.recording']}: {error.strerror or error}") from None
            known = {key: row.stored for key, row in recording.rows.items()}
            return cls(inputs, Client(recording.settings, recordings=known, mode="replay"))
        if not run["model.name"]:
            return None
        at = f"{run.at('model')}: model"
        try:
            price = Price(**run["model.price"]) if run["model.price"] else None
            names = ("base_url", "endpoint", "key_variable", "temperature", "reasoning_effort", "answer_tokens", "token_cap")
            given = {name: run[f"model.{name}"] for name in names}
            settings = Settings(
                run["model.name"], price=price, budget=run["model.budget"] if price or run["model.budget"] else None, **given
            )
            if not settings.is_loopback and settings.key_variable is None:
                settings = replace(settings, key_variable="OPENAI_API_KEY")
            settings.require_limit()
        except ValueError as error:
            # Most begin with the name of a field.
            field = "model." + str(error).partition(":")[0]
            raise ValueError(f"{at}{'.' if field in FIELDS else ': '}{error}") from None
        if not settings.is_free and settings.budget == 0:
            raise ValueError(f"{at}.budget is 0, so nothing may be asked; give the most to spend, or write model: none")
        known = {key: row.stored for path in recordings for key, row in read_recording(path).rows.items()}
        client = Client(settings, recordings=known)
        # The budget is that of the folder, however often the command is called.
        for reply in (read_reply(stored.response) for stored in known.values()):
            client.budget.settle((0, 0), (reply.prompt_tokens or 0, reply.answer_tokens or 0))
        return cls(inputs, client)

    def _task(self) -> PromptTask:
        """What the prompts say."""
        run, space = self.inputs.run, self.inputs.space
        told = run["told"] or next(iter(space.costs), None)
        efficiency = Efficiency.of(self.inputs.costs[told].value) if told else None
        low, high = run["score.low"], run["score.high"]
        text = run["score.text"] or f"a number between {low:g} and {high:g}"
        task = PromptTask(
            space.name,
            run["task.description"],
            self.inputs.score_name,
            text,
            low,
            high,
            higher_is_better=self.inputs.sign > 0,
            decimals=self.inputs.decimals,
            examples=tuple((left, right) for left, right in run["task.examples"]),
            space=space,
            efficiency=efficiency,
        )
        return task.anonymous() if run["model.nameless"] else task

    def _shown(self, without: int | None = None) -> list[tuple[Any, float]]:
        """Return the networks that are shown, with their scores: all up to ten, else the best and others spread over the scores."""
        scores = self.inputs.scores
        order = [int(i) for i in np.argsort(-scores, kind="stable") if i != without]
        if len(order) > _BEST + _OTHERS:
            rest = order[_BEST:]
            order = order[:_BEST] + [rest[round(i)] for i in np.linspace(0, len(rest) - 1, _OTHERS)]
        return [(self.inputs.trained.networks[i], float(scores[i])) for i in sorted(order)]

    def _left_out_prompts(self) -> list[Prompt]:
        networks, form = self.inputs.trained.networks, self.inputs.run["model.form"]
        return [build_prompt(self.task, self._shown(i), [network], form=form) for i, network in enumerate(networks)]

    def _label_prompts(self, networks: Sequence[Any]) -> list[Prompt]:
        form, size = self.inputs.run["model.form"], self.inputs.run["model.batch"]
        size = 1 if form == "single" else size
        groups = [networks[i : i + size] for i in range(0, len(networks), size)]
        return [build_prompt(self.task, self._shown(), group, form=form) for group in groups]

    def estimate(self, networks: Sequence[Any]) -> list[str]:
        """Return lines on what asking takes, for networks left out and for labels."""
        samples, said, money, tokens = self.inputs.run["model.samples"], [], 0.0, 0
        parts = {"networks left out": self._left_out_prompts(), f"{len(networks)} labels": self._label_prompts(networks)}
        for what, prompts in parts.items():
            found = self.client.estimate(prompts, samples)
            money, tokens = money + (found.cost or 0.0), tokens + found.prompt_tokens + found.answer_tokens
            said.append(f"{self.name}, {what}: {found}")
        settings = self.client.settings
        if settings.price and settings.budget is not None and money > settings.budget and not settings.is_free:
            more = f"{math.ceil(100 * (money - settings.budget)) / 100:.2f} {settings.price.currency}"
            said.append(f"this exceeds model.budget {settings.budget:g} by up to {more}")
        if settings.token_cap is not None and tokens > settings.token_cap:
            said.append(f"this exceeds model.token_cap {settings.token_cap:,} by up to {tokens - settings.token_cap:,} tokens")
        return said

    def require_recorded(self) -> None:
        """Raise ValueError if a recording lacks answers that every run needs, those about networks left out."""
        if self.client.mode == "replay" and (lacking := self.client.pending(self._left_out_prompts(), self.inputs.run["model.samples"])):
            where = f"{self.inputs.run.at('model.recording')}: model.recording: {self.inputs.run['model.recording']}"
            n = len(self.inputs.trained.networks) * self.inputs.run["model.samples"]
            raise ValueError(f"{where} lacks {len(lacking)} of {n} answers about these trained networks, or was asked in another way")

    def left_out(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Ask about each trained network, shown the others.

        Returns scores of shape (n,), higher is better, nan where there is no valid number; and counts of answers and tokens.
        """
        return self._ask(self._left_out_prompts())

    def labels(self, networks: Sequence[Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """Ask about new networks; returns as `left_out`."""
        return self._ask(self._label_prompts(networks))

    def _ask(self, prompts: Sequence[Prompt]) -> tuple[np.ndarray, dict[str, Any]]:
        samples = self.inputs.run["model.samples"]
        try:
            answers = self.client.ask(prompts, samples)
        except MissingAnswers as error:
            raise ValueError(f"{self.inputs.run.at('model.recording')}: model.recording: {error}") from None
        finally:
            self._record(prompts, samples)
        medians = [np.ma.median(np.ma.masked_invalid([answer.values for answer in given]), axis=0).filled(np.nan) for given in answers]
        return np.concatenate(medians), _counts([answer for given in answers for answer in given])

    def _record(self, prompts: Sequence[Prompt], samples: int) -> None:
        """Write the answers that are there into a recording, which a run can name in place of the model."""
        assert self.path is not None
        known = self.path.exists()
        found = read_recording(self.path) if known else Recording(self.path, self.inputs.space.name, self.client.settings)
        for prompt in prompts:
            for job in (self.client.job(prompt, sample) for sample in range(samples)):
                if (stored := self.client.lookup(job.key)) is not None:
                    found.rows[job.key] = Row({"key": job.key}, job.sample, stored)
        write_recording(found)

    def described(self, counts: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """Return what a report says of the model, given counts of several askings."""
        total = {name: sum(count[name] for count in counts) for name in counts[0]}
        settings = self.client.settings
        price, endpoint = settings.price, settings.identity()["endpoint"]
        paid = "free" if settings.is_free else "of unknown price"
        if price is not None and not settings.is_free:
            paid = f"{price.of(total['sent'], total['received']):.2f} {price.currency}"
        about = {"name": self.name, "endpoint": endpoint.rpartition("://")[2], "money": paid}
        return {**about, **total, "tokens": f"{total['sent']:,} sent, {total['received']:,} received"}


def _counts(answers: Sequence[Answer]) -> dict[str, int]:
    """Return how many answers there are, how many without a number, and their tokens as the server counts them."""
    sent, received = (sum(getattr(answer, f"{kind}_tokens") or 0 for answer in answers) for kind in ("prompt", "answer"))
    return {"answers": len(answers), "invalid": sum(answer.status != "answered" for answer in answers), "sent": sent, "received": received}
