"""What a guard reads replies with: the gibberish judge on their newest part, and a probe of hidden
states.

Both read with a reference model, not with the one that speaks: a defense may have changed what its
states mean, and the model may be a server's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xb_lite.dialogues import as_dialogue
from xb_lite.guard.plane import Plane
from xb_lite.hidden import hidden_states
from xb_lite.judges.gibberish import Gibberish, plain_reason
from xb_lite.models.precision import Precision

LOOPS = 1000  # characters; a unit of 200 four times, the longest loop that the judge knows
REQUEST = 800  # characters of a request that the probe reads, its last ones
BLANK = "-"  # in place of a request that says nothing, which templates may leave out


@dataclass(frozen=True)
class GibberishDetector:
    """The gibberish judge on the last ``window`` characters: in a longer text the newest tokens
    would be a small part, and junk after a long readable opening would pass. Loops, which can have
    long units, are looked for in the last ``LOOPS``. What has no letter or number yet, as a rule
    above a table, is no gibberish unless it goes on for more than ``window``.

    It inherits a blind spot from the judge: a text of fewer than 16 tokens is looked at for loops
    and odd characters alone, so a salad of words that short passes, and the first tokens of a
    longer one are shown before it is seen.
    """

    judge: Gibberish
    window: int = 200
    name: str = "gibberish"

    def __call__(self, request: str, said: str) -> str | None:
        long, new = tail(said, LOOPS), tail(said, self.window)
        if not any(map(str.isalnum, long)):
            return self.name if len(said) > self.window else None
        reasons = [plain_reason(long)]
        if any(map(str.isalnum, new)):  # else it is within a wide rule
            # A judge of its own: the other keeps all that it read, which a server must not.
            reasons += replace(self.judge).reasons([new])
        return self.name if any(reasons) else None


@dataclass(frozen=True)
class ProbeDetector:
    """A plane between states of replies that give what a harmful request asks for and of other
    replies (see ``fitting.probe_detector``): the mean over the last ``window`` characters of the
    reply, read after the request."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    precision: Precision
    plane: Plane
    window: int = 400
    name: str = "probe"

    def __call__(self, request: str, said: str) -> str | None:
        if not said.strip():
            return None
        return self.name if self.score(request, said) > self.plane.threshold else None

    def score(self, request: str, said: str) -> float:
        """The signed distance to the plane; harmful replies lie above its threshold."""
        return float(self.plane.scores(self.states([(request, said)]))[0])

    def states(self, pairs: Sequence[tuple[str, str]]) -> Float[np.ndarray, "pair dim"]:
        """What it reads of requests and replies."""
        dialogues = [
            as_dialogue(request[-REQUEST:] if request.strip() else BLANK, tail(said, self.window))
            for request, said in pairs
        ]
        with self.precision.autocast():
            return hidden_states(
                self.model, self.tokenizer, dialogues, [self.plane.layer], "mean", "response"
            )[:, 0].numpy()


def tail(text: str, characters: int) -> str:
    """At most so many characters of the end, without half a word in front where that is short."""
    if len(text) <= characters:
        return text
    end = text[-characters:]
    words = end.split(maxsplit=1)
    return words[1] if len(words) == 2 and len(words[0]) <= 20 and end[:1].strip() else end
