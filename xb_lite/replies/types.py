"""A reply, how it is drawn, and what can reply: a model on this machine or behind a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from xb_lite.dialogues import Dialogue, check_dialogue


@dataclass(frozen=True)
class Decoding:
    """How replies are drawn: greedy at ``temperature`` 0, else sampled from ``seed``.

    ``max_new_tokens`` bounds one reply, a prefill not counted. A sampled reply depends on what else
    is asked in its batch: the same call with the same ``seed`` repeats it. ``stage`` is what of a
    defense it is for: ``"answer"``, which the user sees, or an earlier one by its name.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stage: str = "answer"

    def __post_init__(self) -> None:
        numbers = (self.temperature, self.top_p)
        if (
            not all(type(n) is int and abs(n) < 2**63 for n in (self.max_new_tokens, self.seed))
            or not all(type(n) in (int, float) and abs(n) < 1e9 for n in numbers)
            or self.max_new_tokens < 1
            or self.temperature < 0
            or not 0 < self.top_p <= 1
        ):
            raise ValueError(
                f"{self!r:.300}: max_new_tokens must be a whole number of at least 1, seed one of "
                "63 bits, temperature at least 0, and top_p above 0 and at most 1."
            )
        for name in ("temperature", "top_p"):  # transformers takes no whole numbers there
            object.__setattr__(self, name, float(getattr(self, name)))

    def settings(self) -> dict[str, int | float]:
        """What results and caches say of it: all but the stage, of which they hold the answer."""
        return {name: value for name, value in asdict(self).items() if name != "stage"}


@dataclass(frozen=True)
class Reply:
    """One reply. ``text`` begins with the prefill, if there was one; ``finished`` is False where
    ``max_new_tokens`` cut it short; token counts are the backend's own. ``missing`` is why there
    is no answer in it, where a server says that (``length``: it was all thought)."""

    text: str
    prompt_tokens: int
    new_tokens: int
    finished: bool
    missing: str = ""


def whole_characters(text: str) -> str:
    """With U+FFFD for each half of a character, which JSON can have and no tokenizer takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def answer_of(text: str) -> str:
    """What a reply says after the model's thought; empty where it does not come to an end. The
    official code of X-Boundary judges that part, too."""
    thought, end, answer = text.rpartition("</think>")
    if end:
        return answer.lstrip()
    return "" if text.lstrip().startswith("<think>") else text


class Backend(Protocol):
    """What can reply: a model on this machine, or one behind a server.

    One that has ``check(dialogues, room, prefill)`` is asked before all else whether it can reply
    to each of these with up to ``room`` tokens. One that has a ``concurrency`` does not batch: it
    is asked for so many replies side by side, and each is kept as it comes.
    """

    def reply(
        self, dialogues: Sequence[Dialogue], decoding: Decoding, prefill: str = ""
    ) -> list[Reply]:
        """One reply to each dialogue, in their order; all begin with ``prefill``."""
        ...

    def play(self, scripts: Sequence[Sequence[str]], decoding: Decoding) -> list[list[Reply]]:
        """The replies to each script's user turns, earlier turns and replies being history."""
        ...


def check_open(dialogues: Sequence[Dialogue]) -> None:
    """Raise a ValueError that names the first dialogue that does not wait for a reply."""
    for i, dialogue in enumerate(dialogues):
        try:
            check_dialogue(dialogue)
        except ValueError as error:
            raise ValueError(f"dialogue {i}: {error}") from error
        if dialogue[-1]["role"] == "assistant":
            raise ValueError(f"dialogue {i} ends with the assistant's turn; there is none to make.")


def check_scripts(scripts: Sequence[Sequence[str]]) -> None:
    """Raise a ValueError that names the first script that is not a list of user turns."""
    for i, script in enumerate(scripts):
        if isinstance(script, str) or not script:
            raise ValueError(f"script {i} is not a non-empty list of user turns: {script!r:.60}")
        for turn in script:
            if not isinstance(turn, str) or not turn.strip():
                raise ValueError(f"script {i} has a turn that is not a text: {turn!r:.60}")
