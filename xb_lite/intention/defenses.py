"""Defenses by prompt, by their names, and a backend behind one of them.

A defense is a function: it asks a backend about dialogues and gives the replies of all its stages,
the answer last. ``Defended`` makes a backend of it, so whatever takes a model takes a defended one.
Derived in 07_intention_analysis.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from xb_lite.corpora import SHORT_REFUSAL
from xb_lite.dialogues import Dialogue, as_dialogue, as_turns
from xb_lite.intention.ablations import made_up, random_words, secret
from xb_lite.intention.prompts import (
    CHECK,
    FENCE,
    VERDICT,
    fenced,
    in_context,
    neutral_reminder,
    one_pass,
    self_reminder,
)
from xb_lite.intention.stages import Defense, as_said, check_queries, two_stage
from xb_lite.intention.variants import by_beginning, by_examples, by_model, by_note
from xb_lite.models.loading import model_digest, without_place
from xb_lite.replies.subjects import Subject
from xb_lite.replies.types import Backend, Decoding, Reply, answer_of, check_scripts


@dataclass(frozen=True)
class Defended:
    """A backend behind a defense; itself a backend.

    A reply is the text of the last stage with the tokens of all stages: what a server would bill
    for, even where the key-value cache spares reading them again. A prefill begins the last stage:
    the attacker puts words into the answer that the user sees, not into what the defense asks.
    """

    backend: Backend
    defense: Defense

    @property
    def concurrency(self) -> int | None:
        """The backend's, if it has one."""
        return getattr(self.backend, "concurrency", None)

    def check(self, dialogues: Sequence[Dialogue], room: int, prefill: str = "") -> None:
        """The backend's, on what the defense would ask it for these; errors as there.

        Nothing is generated for it: an intention counts as long as it may be, an analyst's too.
        """
        if not hasattr(self.backend, "check"):
            return
        rehearsal = _Rehearsal()
        self._stages(rehearsal, dialogues, Decoding(), prefill)
        for asked, so_far, decoding, begun in rehearsal.asked:
            most = room if decoding.stage == "answer" else decoding.max_new_tokens
            self.backend.check(asked, so_far + most, begun)

    def reply(
        self, dialogues: Sequence[Dialogue], decoding: Decoding, prefill: str = ""
    ) -> list[Reply]:
        """One reply to each dialogue, in their order. Args and errors as in ``two_stage``."""
        return [
            _as_one(stages) for stages in self._stages(self.backend, dialogues, decoding, prefill)
        ]

    def _stages(
        self, backend: Backend, dialogues: Sequence[Dialogue], decoding: Decoding, prefill: str
    ) -> list[list[Reply]]:
        """What the defense gives.

        Raises:
            TypeError: it is something else than the replies of all stages to each dialogue.
        """
        found = self.defense(backend, dialogues, decoding, prefill)
        if not _are_stages(found) or len(found) != len(dialogues):
            raise TypeError(
                f"a defense gives a list for each of {len(dialogues)} dialogues, with a Reply of "
                f"each stage and the answer last; this one gave {found!r:.60}"
            )
        return found

    def play(self, scripts: Sequence[Sequence[str]], decoding: Decoding) -> list[list[Reply]]:
        """The replies to each script's user turns, every one of them defended. History is what the
        user said and saw.

        Raises:
            ValueError: a script is empty or has a turn that is not a string; its index is named,
                before anything is generated. And the errors of the backend.
        """
        check_scripts(scripts)
        played: list[list[Reply]] = [[] for _ in scripts]
        for turn in range(max(map(len, scripts), default=0)):
            live = [i for i, script in enumerate(scripts) if turn < len(script)]
            dialogues = [
                as_turns(scripts[i][: turn + 1], [answer_of(reply.text) for reply in played[i]])
                for i in live
            ]
            for i, reply in zip(live, self.reply(dialogues, decoding), strict=True):
                played[i].append(reply)
        return played


def by_prompt(rewrite: Callable[[Dialogue], Dialogue]) -> Defense:
    """The defense that asks once, a rewritten dialogue: ``by_prompt(one_pass)``.

    Its replies have one stage, the answer. Its errors are those of ``two_stage``.
    """

    @as_said
    def defense(
        backend: Backend, dialogues: Sequence[Dialogue], decoding: Decoding, prefill: str = ""
    ) -> list[list[Reply]]:
        check_queries(dialogues, prefill)
        replies = backend.reply([rewrite(d) for d in dialogues], decoding, prefill)
        return [[reply] for reply in replies]

    return defense


@as_said
def input_check(
    backend: Backend, dialogues: Sequence[Dialogue], decoding: Decoding, prefill: str = ""
) -> list[list[Reply]]:
    """A baseline of the paper's Table 1: the model says whether the query is harmful, and only to
    one that it does not call so is there an answer, else ``SHORT_REFUSAL``. Without a verdict, as
    where the model thinks for longer than that may be, there is none.

    The prompt is ours. A refusal is no model's: it has no tokens, and no prefill begins it.

    Args, errors: as in ``two_stage``.

    Returns:
        ``[verdict, answer]`` for each dialogue.
    """
    check_queries(dialogues, prefill)
    verdicts = backend.reply([fenced(d, CHECK + FENCE[0], FENCE[1]) for d in dialogues], VERDICT)
    said = [answer_of(verdict.text) for verdict in verdicts]
    harmful = [not text or re.match(r"\W*yes\b", text, re.IGNORECASE) for text in said]
    let_in = [dialogue for dialogue, refuse in zip(dialogues, harmful, strict=True) if not refuse]
    answers = iter(backend.reply(let_in, decoding, prefill))
    return [
        [verdict, made_up(SHORT_REFUSAL) if refuse else next(answers)]
        for verdict, refuse in zip(verdicts, harmful, strict=True)
    ]


@dataclass(frozen=True)
class _Rehearsal:
    """A backend that says nothing, and keeps what it was asked: dialogues, tokens that may have
    been said for them before, decoding and prefill."""

    asked: list[tuple[Sequence[Dialogue], int, Decoding, str]] = field(default_factory=list)
    said: list[int] = field(default_factory=list)  # tokens at most, by whomever

    def reply(
        self, dialogues: Sequence[Dialogue], decoding: Decoding, prefill: str = ""
    ) -> list[Reply]:
        self.asked.append((dialogues, sum(self.said), decoding, prefill))
        return self.stand_in(dialogues, decoding)

    def stand_in(self, dialogues: Sequence[Dialogue], decoding: Decoding) -> list[Reply]:
        """In place of an analyst, which may be another model."""
        self.said.append(decoding.max_new_tokens)
        return [Reply(".", 0, 0, True) for _ in dialogues]


def begins_answers(defense: Defense) -> bool:
    """Whether the defense puts first words into the model's mouth, as ``by_beginning`` does, which
    not every backend can continue. Nothing is generated to find out."""
    rehearsal = _Rehearsal()
    defense(rehearsal, [as_dialogue("Name a river.")], Decoding(), "")
    return any(begun for *_, begun in rehearsal.asked)


@dataclass(frozen=True)
class _Unsaid(Reply):
    """In place of an answer: what was asked for it."""

    asked: Dialogue = ()


@dataclass(frozen=True)
class _Listener:
    """A backend that says all but the answers."""

    backend: Backend

    def reply(
        self, dialogues: Sequence[Dialogue], decoding: Decoding, prefill: str = ""
    ) -> list[Reply]:
        if decoding.stage != "answer":
            return self.backend.reply(dialogues, decoding, prefill)
        return [_Unsaid("", 0, 0, True, asked=dialogue) for dialogue in dialogues]


def last_prompts(
    backend: Backend, dialogues: Sequence[Dialogue], defense: Defense
) -> list[Dialogue | None]:
    """What the model is asked last about each dialogue: after it a given answer's likelihood can be
    read off, as the model behind the defense has it. Intentions are generated, answers are not.

    Returns:
        Dialogues that wait for the answer; None where the defense refuses by itself.

    Raises:
        ValueError: as in ``two_stage``. And the errors of the backend.
    """
    answers = [stages[-1] for stages in defense(_Listener(backend), dialogues, Decoding(), "")]
    return [answer.asked if isinstance(answer, _Unsaid) else None for answer in answers]


def _are_stages(found: object) -> bool:
    return isinstance(found, list) and all(
        isinstance(stages, list) and stages and all(isinstance(stage, Reply) for stage in stages)
        for stages in found
    )


def _as_one(stages: Sequence[Reply]) -> Reply:
    return replace(
        stages[-1],
        prompt_tokens=sum(stage.prompt_tokens for stage in stages),
        new_tokens=sum(stage.new_tokens for stage in stages),
    )


# By the names that commands and results have for them. ``ia-secret``, ``ia-random-words`` and
# ``neutral-reminder`` are controls.
DEFENSES: dict[str, Defense] = {
    "ia": two_stage,
    "ia-one-pass": by_prompt(one_pass),
    "self-reminder": by_prompt(self_reminder),
    "in-context": by_prompt(in_context),
    "input-check": input_check,
    "ia-secret": partial(two_stage, analyst=secret),
    "ia-random-words": partial(two_stage, analyst=random_words),
    "neutral-reminder": by_prompt(neutral_reminder),
    "ia-examples": by_examples,
    "ia-examples-refused": partial(by_examples, harmless=2, harmful=1),
    "ia-note": by_note,
    "ia-begun": by_beginning,
}
BY_MODEL = "ia-by-"  # and the name of the model that states the intention
IN_SHORT = {
    "ia": "Intention Analysis in two stages",
    "ia-one-pass": "both stages in one prompt",
    "self-reminder": "the request between two reminders to be responsible",
    "in-context": "a refused request before it",
    "input-check": "the model first judges the request",
    "ia-secret": "control: the intention masked",
    "ia-random-words": "control: random words as the intention",
    "neutral-reminder": "control: as long as self-reminder, without safety",
    "ia-examples": "after worked examples of both stages",
    "ia-examples-refused": "the same, one of them refused",
    "ia-note": "the intention as a note to the system",
    "ia-begun": "the first words of the answer prescribed",
    f"{BY_MODEL}MODEL": "the intention by another model: a name, folder or hub id",
}


def defense_named(name: str) -> Defense:
    """One of ``DEFENSES``, or ``ia-by-MODEL``: two stages whose intention another model states.
    Raises ValueError when there is no such defense."""
    if name in DEFENSES:
        return DEFENSES[name]
    if name.startswith(BY_MODEL) and name != BY_MODEL:
        return partial(two_stage, analyst=by_model(name.removeprefix(BY_MODEL)))
    there = ", ".join([*DEFENSES, f"{BY_MODEL}MODEL"])
    raise ValueError(f"there is no defense {name!r}; there are {there}.")


def prompted(subject: Subject, name: str) -> Subject:
    """A subject behind a defense by its name, which is added to its defense's; in paths a slash
    would be a folder. If the defense has a ``source``, a text, replies behind another source of the
    same name are others.

    Raises:
        ValueError: there is no such defense, or the subject is behind one already.
    """
    if subject.prompt:
        raise ValueError(f"the subject is behind {subject.prompt} already: take one of the two.")
    defense, analyst = defense_named(name), subject.analyst
    if name not in DEFENSES:
        other = name.removeprefix(BY_MODEL)
        name, analyst = BY_MODEL + without_place(other), model_digest(other)
    in_paths = name.replace("/", "-")
    return replace(
        subject,
        backend=Defended(subject.backend, defense),
        defense=in_paths if subject.defense == "none" else f"{subject.defense}+{in_paths}",
        prompt=name,
        source=getattr(defense, "source", None),
        analyst=analyst,
    )
