"""How many of the answers are invalid, and when so many are that a run must not pay for more."""

from __future__ import annotations

from collections.abc import Sequence

from llmpp_core.llm.answers import Answer
from llmpp_core.llm.limits import Stop
from llmpp_core.llm.settings import Settings

#: Answers from which on their share is judged: of fewer, half may be invalid by chance.
ENOUGH = 20
_ADVICE = (
    "a reply is valid if it leaves no doubt which numbers are meant: try another form of request (single, batched, json), another level of "
    "the prompt or, where replies are cut off, more answer_tokens"
)


class Share:
    """Counts the answers to the prompts at hand.

    Parameters
    ----------
    settings : Settings
        Gives the largest share of invalid answers.
    known : sequence of Answer
        Answers that were there before the run.
    """

    def __init__(self, settings: Settings, known: Sequence[Answer]):
        self.settings = settings
        self.known, self._answered, self._invalid = bool(known), 0, 0
        self._last: Answer | None = None
        for answer in known:
            self.count(answer)

    def count(self, answer: Answer) -> None:
        """Count an answer."""
        self._answered += 1
        if answer.status == "invalid":
            self._invalid += 1
            self._last = answer

    def check_first(self) -> None:
        """Raise Stop if the first answer is invalid and others cost money.

        An answer that was there before the run was reported then; whoever runs again has decided to go on.
        """
        if self._last and not self.known and not self.settings.is_free and self.settings.max_invalid < 1:
            raise Stop(
                f"the first answer is invalid, {self._last.reason}; it is kept and nothing else was sent: {_ADVICE}. Run again to go on "
                f"until {ENOUGH} answers have come and more than {self.settings.max_invalid:.0%} of them are invalid"
            )

    def check(self) -> None:
        """Raise Stop if too many answers are invalid."""
        if found := self.complaint():
            raise Stop(f"{found}; they are kept: {_ADVICE}; or set max_invalid=1 to go on")

    def complaint(self) -> str:
        """Return one line about invalid answers if there are too many, else ""."""
        if not self._last or self._answered < ENOUGH or self._invalid <= self.settings.max_invalid * self._answered:
            return ""
        shown = f"{self._last.text[:80]!r} ({self._last.reason})"
        return f"{self._invalid} of {self._answered} answers are invalid, the last one {shown}"
