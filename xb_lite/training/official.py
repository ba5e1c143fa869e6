"""The official data path: the published files put together as the X-Boundary code does.

Facts are those of ``src/xb_train_dataset.py`` of the code published with the paper (arXiv
2502.09990), written anew. Where it is odd there is an option (``Official``); the defaults are the
official ones. What the numbers of a recipe say of data (``refusal_share``, ``multi_turn_share``,
``prefilled_share``) follows from the files here, but for ``boundary_share``, which says how many
boundary-safe prompts are taken, and ``max_tokens``, the official 1,024.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import count, cycle, islice
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from xb_lite.data.training import TRAINING, load_training
from xb_lite.dialogues import Encoding, as_dialogue, render
from xb_lite.files import digest
from xb_lite.losses.batch import Pair, Row
from xb_lite.models.loading import hub_name
from xb_lite.recipes import Baseline, Budget, RecipeError
from xb_lite.training.sets import REFUSAL

CONVERSATIONS = 10_001  # of UltraChat: it stops once there are more than 10,000
REFUSED = 2_000  # harmful requests with their refusals, each twice
COMPLIED = "1_full_compliance"
SEED_BLANKS, SEED_SHUFFLES, SEED_ORDER = 3333, 0, 42  # of numpy, of random, of the Trainer


class Tags(NamedTuple):
    """What stands before a request, between request and response, and, in what is retained, before
    the response once more."""

    user: str
    assistant: str
    separator: str = ""


# By a part of the model's name, in this order. Qwen's separator ends a turn that the assistant's
# tag ended already; that of Mistral and Gemma is a space.
FAMILIES = {
    "llama": Tags(
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "mistral": Tags("[INST] ", " [/INST]", " "),
    "qwen": Tags("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "gemma": Tags("<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n", " "),
}
REFUSALS = {"llama": "llama3_output", "qwen": "qwen_output", "gemma": "gemma_output"}


@dataclass(frozen=True, kw_only=True)
class Official:
    """Where the official data are odd, each with a way to do without.

    Attributes:
        tags: ``"by-name"`` takes the tags from the model's name, so that DeepSeek-R1-Distill-Llama
            is trained with Llama-3's, which it never sees in use; ``"template"`` takes them from
            the tokenizer's own chat template, a default system prompt included.
        blanked: of half of all prompts nothing is left but the tags (not of Mistral's, nor of
            boundary-safe ones). A response is then erased or kept whatever was asked; without it a
            defense may learn to look at the request alone.
        end_of_turn: True puts the template's end of turn behind every response. The official code
            has it behind whole UltraChat conversations alone, which the template renders.
        refusals: the harmful requests with the model's own refusals among what is retained; None:
            as officially, of all families but Mistral.
        order: ``"official"`` shuffles as the official code and its Trainer do from their own seeds;
            ``"seeded"`` adds the run's seed to each, so that seeds differ.
    """

    tags: str = "by-name"
    blanked: bool = True
    end_of_turn: bool = False
    refusals: bool | None = None
    order: str = "official"

    def __post_init__(self) -> None:
        for name, known in (("tags", ("by-name", "template")), ("order", ("official", "seeded"))):
            if getattr(self, name) not in known:
                raise RecipeError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}."
                )
        for name, known in (
            ("blanked", (True, False)),
            ("end_of_turn", (True, False)),
            ("refusals", (True, False, None)),
        ):
            if not any(getattr(self, name) is value for value in known):
                raise RecipeError(f"{name} is {getattr(self, name)!r}; it must be true or false.")


@dataclass(frozen=True)
class OfficialSets:
    """Rows of the four files of ``data.training``, and the options."""

    circuit_breakers: Sequence[Mapping]
    safemt: Sequence[Mapping]
    orbench_retain: Sequence[Mapping]
    ultrachat: Sequence[Mapping]
    options: Official = field(default_factory=Official)

    @property
    def digest(self) -> str:
        """SHA-256 of all rows and options."""
        rows = [getattr(self, name.replace("-", "_")) for name in TRAINING]
        used = [
            [{k: row.get(k) for k in _used(name)} for row in rows_]
            for name, rows_ in zip(TRAINING, rows, strict=True)
        ]
        return digest([used, asdict(self.options)])

    def draw(self, recipe: Budget, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> list[Pair]:
        """All pairs of a run, in the order of training: ``official_pairs``."""
        return official_pairs(recipe, self, tokenizer, seed)


def _used(name: str) -> Sequence[str]:
    more = REFUSALS.values() if name == "circuit-breakers" else ()
    return [*TRAINING[name].fields, *more]


def official_sets(
    options: Official | None = None, files: Mapping[str, str | os.PathLike[str]] | None = None
) -> OfficialSets:
    """The four files, fetched where they are not among ``files`` (your own, by name in
    ``TRAINING``), and the options of putting them together.

    Raises:
        BenchmarkError: a file cannot be had or is another, see ``load_training``.
        RecipeError: there is no such file.
    """
    if wrong := set(files or {}) - set(TRAINING):
        raise RecipeError(f"files are {', '.join(TRAINING)}, not {', '.join(sorted(wrong))}.")
    rows = [load_training(name, (files or {}).get(name)) for name in TRAINING]
    return OfficialSets(*rows, options or Official())


def parse_official(words: Sequence[str]) -> tuple[Official, dict[str, str]]:
    """Options and files from a command: ``official``, and behind it ``blanked=false`` or
    ``ultrachat=FILE``.

    Raises:
        RecipeError: the first word is another, or one behind it is neither.
    """
    kind, *entries = words
    if kind != "official":
        raise RecipeError(f"the data are {kind!r}; they can be official, with options behind.")
    known = {option.name for option in fields(Official)}
    options, files = {}, {}
    for entry in entries:
        name, _, value = entry.partition("=")
        if name in TRAINING and value:
            files[name] = value
        elif name in known and value:
            options[name] = {"true": True, "false": False}.get(value, value)
        else:
            raise RecipeError(
                f"{entry!r} is neither an option of the official data ({', '.join(sorted(known))}) "
                f"nor a file of it ({', '.join(TRAINING)}), as NAME=VALUE."
            )
    return Official(**options), files


class _Text(NamedTuple):
    """An item to change: request and response as texts, and of a boundary-safe one what is retained
    beside it."""

    request: str
    response: str
    retain: str | None = None


def official_pairs(
    recipe: Budget, sets: OfficialSets, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> list[Pair]:
    """All pairs of a run, ``recipe.pairs`` for each of its steps, in the order of training.

    A request and its response have half of ``recipe.max_tokens`` each and what is retained all of
    it; a longer text loses its end, be it the assistant's tag. Where a run has more pairs than
    there are items, they come again in another order (the official run ends before). Beside a
    boundary-safe item, circuit breakers and the separate term ``as_described`` erase a harmful one.

    Raises:
        RecipeError: the recipe is a baseline or has a control of the data, a set that it needs is
            empty or lacks the refusals, or the official code has no tags for the model.
    """
    if isinstance(recipe, Baseline):
        raise RecipeError(f"method is {recipe.method}; official data are for X-Boundary's alone.")
    if recipe.label_noise or recipe.boundary_style:
        field = "label_noise" if recipe.label_noise else "boundary_style"
        raise RecipeError(f"{field} is a control of the book's own prompts; these are official.")
    options = sets.options
    more = seed if options.order == "seeded" else 0
    changes, retained = _texts(recipe, sets, tokenizer, more)
    harmful = [change for change in changes if change.retain is None]
    length = min(len(changes), len(retained))
    if not length or not harmful:
        raise RecipeError("the official data have no items to erase, or none to retain.")
    rows = _Rows(recipe, tokenizer)
    instead = cycle(harmful)
    pairs = []
    for index in islice(_order(length, SEED_ORDER + more), recipe.steps * recipe.pairs):
        change, keep = changes[index], retained[index]
        boundary = change.retain is not None
        separates = boundary and recipe.separate in ("as_coded", "refusal")
        if boundary:
            keep = change.retain
            # Without a term for it, the refusal of a harmless prompt would be erased.
            change = change if separates else next(instead)
        pairs.append(Pair(rows.change(change), rows.retained(keep), boundary, separates))
    return pairs


def _order(length: int, seed: int):
    """Indices as accelerate's seedable sampler gives them, to our reading: a permutation of torch's
    from the seed, and from the next one for the next time round."""
    for epoch in count():
        generator = torch.Generator().manual_seed(seed + epoch)
        yield from torch.randperm(length, generator=generator).tolist()


def _texts(
    recipe: Budget, sets: OfficialSets, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[list[_Text], list[str]]:
    """What to change and what to retain, in the order of the official dataset."""
    options = sets.options
    known_as = hub_name(recipe.model)
    family = next((name for name in FAMILIES if name in known_as.lower()), None)
    tags = _tags(options, family, known_as, tokenizer)
    ending = _end_of_turn(tokenizer) if options.end_of_turn else ""
    blanks = np.random.RandomState(SEED_BLANKS + seed)
    dice = random.Random(SEED_SHUFFLES + seed)

    def request(prompt: str) -> str:
        return f"{tags.user}{prompt}{tags.assistant}"

    def blanked() -> bool:
        # Drawn even where it is not used, as there: what comes after depends on it.
        return bool(blanks.choice([0, 1])) and options.blanked and family != "mistral"

    changes = []
    for row in (*sets.circuit_breakers, *sets.safemt):
        prompt = "" if blanked() else row["prompt"]
        changes.append(_Text(request(prompt), row["output"] + ending))
    dice.shuffle(changes)

    retained = []
    for row in islice((r for r in sets.ultrachat if len(r["messages"]) >= 2), CONVERSATIONS):
        if blanked():
            retained.append(request("") + tags.separator + row["messages"][1]["content"] + ending)
        else:
            retained.append(_without_bos(render(tokenizer, row["messages"]), tokenizer))
    dice.shuffle(retained)

    answered = [row for row in sets.orbench_retain if row["status"] == COMPLIED]
    for row in answered[: _boundary_size(recipe, len(changes), len(answered))]:
        blanks.choice([0, 1])
        asked = request(row["prompt"])
        answer = asked + tags.separator + row["completion"] + ending
        changes.append(_Text(asked, REFUSAL + ending, answer))
        dice.shuffle(changes)

    if family != "mistral" if options.refusals is None else options.refusals:
        label = _label(family, sets.circuit_breakers)
        refused = list(sets.circuit_breakers)
        dice.shuffle(refused)
        for row in refused[:REFUSED] * 2:
            prompt = "" if blanked() else row["prompt"]
            retained.append(request(prompt) + tags.separator + row[label] + ending)
        dice.shuffle(retained)
    return changes, retained


def _boundary_size(recipe: Budget, harmful: int, there: int) -> int:
    """How many boundary-safe prompts the recipe's share means, beside all harmful items: the
    official 500 of 3,500, 100 of 3,100 and 400 of 3,400."""
    share = recipe.boundary_share
    if share >= 1:
        raise RecipeError("boundary_share is 1; the official data have harmful items besides.")
    wanted = round(harmful * share / (1 - share))
    if share and not there:
        raise RecipeError(f"boundary_share is {share}, but orbench-retain has no answered prompt.")
    return min(max(wanted, int(share > 0)), there)


def _label(family: str | None, rows: Sequence[Mapping]) -> str:
    """The field with the model's own refusals."""
    label = REFUSALS.get(family or "", "llama3_output")
    if not all(isinstance(row.get(label), str) for row in rows):
        raise RecipeError(
            f"circuit-breakers has rows without {label}, the model's refusals: give a file with "
            "them, or refusals=false."
        )
    return label


def _tags(
    options: Official, family: str | None, model: str, tokenizer: PreTrainedTokenizerBase
) -> Tags:
    if options.tags == "template":
        mark = "\ue000"
        text = _without_bos(render(tokenizer, as_dialogue(mark)), tokenizer)
        before, _, after = text.partition(mark)
        return Tags(before, after)
    if family is None:
        raise RecipeError(
            f"the official code has no tags for {model} (it knows {', '.join(FAMILIES)} by name): "
            "take its own template, tags=template."
        )
    return FAMILIES[family]


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    mark = "\ue000"
    return render(tokenizer, as_dialogue("x", mark)).partition(mark)[2].rstrip()


def _without_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    return text.replace(tokenizer.bos_token, "") if _adds_bos(tokenizer) else text


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it begins every text with its bos itself, as of Llama and Mistral. Of SmolLM2 and
    Qwen that token is one of the template's tags."""
    return tokenizer.bos_token_id is not None and tokenizer("x")["input_ids"][0] == (
        tokenizer.bos_token_id
    )


class _Rows:
    """Texts as rows, each with a number of its own."""

    def __init__(self, recipe: Budget, tokenizer: PreTrainedTokenizerBase) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer
        self.numbers = count()
        self.made: dict[object, Row] = {}

    def change(self, text: _Text) -> Row:
        half = self.recipe.max_tokens // 2
        request, cut = self._ids(text.request, half)
        response, more = self._ids(text.response, half, special=False)
        return self._row(text, request, response, cut + more)

    def retained(self, text: str) -> Row:
        ids, cut = self._ids(text, self.recipe.max_tokens)
        return self._row(text, ids, [], cut)

    def _ids(self, text: str, most: int, special: bool = True) -> tuple[list[int], int]:
        ids = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids[:most], max(0, len(ids) - most)

    def _row(self, text: object, prompt: list[int], response: list[int], cut: int) -> Row:
        if text not in self.made:
            is_response = torch.tensor([False] * len(prompt) + [True] * len(response))
            sink = torch.arange(len(is_response)) < self.recipe.sink_tokens
            encoding = Encoding(
                torch.tensor(prompt + response),
                ~is_response & ~sink,
                is_response & ~sink,
                sink,
                cut,
            )
            self.made[text] = Row(next(self.numbers), encoding)
        return self.made[text]
