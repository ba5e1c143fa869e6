"""What the book measures of every subject, alike: sets, attacks, judges, capability, one result.

A subject is a model with a defense. Its result and its log lie side by side in one folder; the log
has a line an item, so that two subjects can be compared item by item.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xb_lite.adapters import WEIGHTS, read_run
from xb_lite.attacks import ATTACKS, Item, attacked, load_items
from xb_lite.capability import passage_losses, quiz
from xb_lite.checks import check_fit, check_place
from xb_lite.classifiers import ChatJudge, harmbench, llama_guard
from xb_lite.corpora import load_passages, load_quiz, load_wrappers
from xb_lite.dialogues import Dialogue, as_dialogue
from xb_lite.evaluation import digest, evaluate, seconds_spent
from xb_lite.generation import Backend, Decoding, LocalBackend
from xb_lite.gibberish import Gibberish
from xb_lite.harness import check_tasks, harness_rows
from xb_lite.intention import Defended, defense_named, last_prompts
from xb_lite.judges import REFUSAL_JUDGES, Judge
from xb_lite.model_files import DEFAULT, cache_folder
from xb_lite.models import last_name, load_defended, load_model, model_digest, precision_of
from xb_lite.precision import Precision
from xb_lite.rates import Mean, mean, rate
from xb_lite.recipes import METHODS, Budget, changes_of, run_name
from xb_lite.remote import RemoteBackend
from xb_lite.results import (
    mean_row,
    provenance,
    rate_row,
    read_result,
    summarise,
    write_result,
)
from xb_lite.runs import check_same
from xb_lite.service import Service
from xb_lite.training import Trained, identity, train
from xb_lite.training_sets import Sets, reference_sets
from xb_lite.wheels import sha256_of

SETS = ("harmful", "multi-turn", "boundary-safe", "benign")
OWN_JUDGES = ("words", "service")  # these run on a laptop
JUDGES = (*OWN_JUDGES, "harmbench", "llama-guard", "rubric")
# The models that judges are published as; a rubric can be asked of any chat model, and has none.
JUDGE_MODELS = {
    "harmbench": "cais/HarmBench-Llama-2-13b-cls",
    "llama-guard": "meta-llama/Llama-Guard-3-8B",
    "rubric": None,
}


@dataclass(frozen=True)
class Subject:
    """What is evaluated: ``name`` in paths and tables, ``digest`` of its weights, and what replies.

    ``defense`` is its name in paths; ``adapter`` what was trained, as in the results. ``method``
    and ``strength`` are for a defense that neither an adapter nor a prompt is, as steering.
    ``model`` and ``tokenizer`` are None behind a server, where capability is not measured.
    """

    name: str
    digest: str
    backend: Backend
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    defense: str = "none"
    adapter: dict | None = None
    prompt: str | None = None
    method: str | None = None
    strength: float | None = None

    def identity(self, precision: Precision) -> dict[str, str]:
        """What its replies are cached under: all that decides them but the decoding.

        A server's precision is not known here.
        """
        weights = f" {self.adapter['digest']}" if self.adapter else ""
        return {
            "model": self.digest,
            "defense": f"{self.defense}{weights}",
            "precision": str(precision) if self.model else "the server's",
        }


def local_subject(
    name: str, precision: Precision, adapter: str | os.PathLike[str] | None = None
) -> Subject:
    """A model on this machine, with the adapter in a folder merged into it; the folder's name is
    then the defense's.

    Raises:
        ModelError, FetchError: see ``load_model``.
        AdapterError: there is no adapter of this model in the folder.
        ValueError: the folder is named ``none``.
    """
    defense = "none" if adapter is None else last_name(adapter)
    if adapter is not None and defense == "none":
        raise ValueError(
            f"the adapter's folder {adapter} is named none, as a model without a defense is in "
            "results: rename it."
        )
    model, tokenizer = load_defended(name, precision, adapter)
    found = None
    if adapter is not None:
        run = (read_run(adapter) or {}).get("run")
        found = {"recipe": run, "digest": sha256_of(Path(adapter) / WEIGHTS)}
    backend = LocalBackend(model, tokenizer, precision=precision)
    return Subject(last_name(name), model_digest(name), backend, model, tokenizer, defense, found)


def train_defense(
    recipe: Budget,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    on_step: Callable[[dict[str, float]], None] | None = None,
    resume: bool = True,
    sets: Sets | None = None,
) -> Trained:
    """Train by a recipe on the book's own prompts, answered by the recipe's model.

    With ``sets``, from ``reference_sets`` of that model, on those. Other args and errors as in
    ``train``, and those of ``load_model`` and ``reference_sets``.
    """
    exact, precision = precision_of(recipe.model, exact=True), precision_of(recipe.model)
    # All that can be known is checked before minutes of asking.
    check_place(recipe, Path(folder), resume)
    state = PartialState(cpu=exact.device == "cpu")  # it says which GPU is this process's
    subject = local_subject(recipe.model, exact)
    check_fit(recipe, subject.model)
    if resume:
        check_same(Path(folder), identity(recipe, seed, subject.digest, precision))
    # Of several processes one asks, and the others find its replies in the cache.
    if sets is None:
        with state.main_process_first():
            sets = reference_sets(subject.backend, Decoding(), subject.identity(exact))
    return train(
        recipe,
        subject.model,
        subject.tokenizer,
        sets,
        folder,
        precision,
        seed=seed,
        model_digest=subject.digest,
        on_step=on_step,
        resume=resume,
    )


def adapter_folder(recipe: str, seed: int, changes: Mapping[str, object] | None = None) -> Path:
    """Where ``python -m xb_lite train`` puts an adapter: in the cache, by recipe, changes of its
    fields and seed."""
    # Not its stem: names of recipes have dots in them. And hub ids have slashes.
    name = Path(recipe).name.removesuffix(".json")
    name = (run_name(name, changes, recipe) if changes else name).replace("/", "_")
    return cache_folder() / "adapters" / f"{name}-{seed}"


def remote_subject(server: str, name: str) -> Subject:
    """A model behind an OpenAI-compatible server, under the server's own ``name`` for it; its
    digest is that name with the address. Raises ValueError or RemoteError for a bad address or a
    missing key."""
    return Subject(Path(name).name, f"{name} at {server}", RemoteBackend(server, name))


def prompted(subject: Subject, name: str) -> Subject:
    """A subject behind one of ``intention.DEFENSES``, whose name is added to its defense's.

    Raises:
        ValueError: there is no such defense.
    """
    return replace(
        subject,
        backend=Defended(subject.backend, defense_named(name)),
        defense=name if subject.defense == "none" else f"{subject.defense}+{name}",
        prompt=name,
    )


def setting_of(
    subject: Subject,
    precision: Precision,
    decoding: Decoding,
    judged_by: Sequence[Judge],
    tasks: Sequence[str] = (),
) -> dict[str, object]:
    """What a result says was evaluated and how (``results.SETTING``), as JSON can hold it.

    ``changes`` are those of the recipe that comes with the package for the method and model;
    ``strength`` is 1 for an adapter as it was trained, None where nothing was.
    """
    run = (subject.adapter or {}).get("recipe") or {}
    recipe = run.get("recipe") or {}
    methods = [recipe.get("method") or subject.method, subject.prompt]
    return {
        "defense": subject.defense,
        "method": "+".join(filter(None, methods)) or "none",
        "changes": changes_of(METHODS[recipe["method"]](**recipe)) if recipe else {},
        "strength": run.get("strength", 1.0) if run else subject.strength,
        "training_seed": run.get("seed"),
        "decoding": asdict(decoding),
        "judges": {judge.name: judge.source for judge in judged_by},
        "precision": subject.identity(precision)["precision"],
        "tasks": list(tasks),
    }


def plan(
    sets: Sequence[str] = SETS,
    attacks: Sequence[str] = ATTACKS,
    limit: int | None = None,
    split: str = "test",
) -> list[Item]:
    """All items of an evaluation: every set as it is, and the plain harmful ones under attack.

    Args:
        sets: names for ``load_items``; ``NAME=FILE`` reads your copy of a benchmark, and
            ``NAME:KIND=FILE`` a file of your own, whose items are of that kind.
        attacks: of ``ATTACKS``.
        limit: at most so many items of each set, spread evenly over it, before they are wrapped.
        split: of the book's own sets and wrappers.

    Raises:
        ValueError: a set or an attack is not there, or the limit is below 1; a BenchmarkError is a
            ValueError.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"the limit is {limit}; it must be at least 1.")
    items: list[Item] = []
    for entry in sets:
        set_, _, path = entry.partition("=")
        name, _, kind = set_.partition(":")
        plain = spread(load_items(name, split, path=path or None, kind=kind or None), limit)
        items += plain
        if plain[0].kind == "harmful" and plain[0].attack == "direct":
            for attack in attacks:
                items += attacked(plain, attack, load_wrappers(split))
    return items


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most ``limit`` of the items, at even distances; None for all."""
    n = len(items) if limit is None else min(limit, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def judges() -> list[Judge]:
    """The judges that run on a laptop, with the default model as their reference, in the numbers
    that they were calibrated in, whatever the subject's."""
    return judges_named(OWN_JUDGES)


def judges_named(
    names: Sequence[str], models: Sequence[str] = (), server: str | None = None
) -> list[Judge]:
    """Judges by name, in this order; a model that several of them read with is loaded once.

    Args:
        names: of ``JUDGES``. ``words`` are the published lists of refusal strings, with the
            gibberish judge that corrects them.
        models: other ones than ``JUDGE_MODELS``, as a hub id or a folder. ``JUDGE=MODEL`` where
            more than one of the judges has a model to choose.
        server: an OpenAI-compatible one that has the model of ``rubric``, under its name there.

    Raises:
        ValueError: see ``judge_models``; before a model is loaded. Or a model is of another kind
            than its judge needs.
        ModelError, FetchError: see ``load_model``.
        RemoteError: the server may need a key.
    """
    chosen = judge_models(names, models, server)

    @cache
    def loaded(name: str, chat: bool) -> tuple:
        # In fp32 on a CPU: a verdict must not depend on what else is in its batch.
        precision = precision_of(name, exact=True)
        return *load_model(name, precision, chat=chat), precision

    @cache
    def gibberish() -> Gibberish:
        return Gibberish(*loaded(DEFAULT, True))

    found: list[Judge] = []
    for name in names:
        model = chosen.get(name)
        if name == "words":
            found += [*REFUSAL_JUDGES, gibberish()]
        elif name == "service":
            found.append(Service(gibberish()))
        elif name == "rubric" and server:
            asked = f"{model} at a server {digest(server)[:8]}"  # results hold no address
            found.append(_of(ChatJudge(RemoteBackend(server, model), Path(model).name), asked))
        elif name == "rubric":
            chat, tokenizer, precision = loaded(model, True)
            backend = LocalBackend(chat, tokenizer, precision=precision)
            found.append(_of(ChatJudge(backend, last_name(model)), model_digest(model)))
        else:
            # HarmBench's prompt is plain text, and its classifiers come without a chat template.
            make, chat = (harmbench, False) if name == "harmbench" else (llama_guard, True)
            found.append(_of(make(*loaded(model, chat)[:2]), model_digest(model)))
    return found


def _of(judge: Judge, model: str) -> Judge:
    """With its model in its source, so that no log is gone on with by another one."""
    return replace(judge, source=f"{judge.source}; {model}")


def judge_models(
    names: Sequence[str], models: Sequence[str] = (), server: str | None = None
) -> dict[str, str]:
    """The model of each judge that has one to choose, by the judge's name; nothing is loaded.

    Args as in ``judges_named``.

    Raises:
        ValueError: there is no such judge, or it is named twice; it is not clear whose model one
            is; a rubric has none; or the server is for none of these judges, or its URL is none.
        RemoteError: the server may need a key.
    """
    for name in names:
        if name not in JUDGES:
            raise ValueError(f"there is no judge {name!r}; there are {', '.join(JUDGES)}.")
    if not names:
        raise ValueError(f"name a judge: there are {', '.join(JUDGES)}.")
    name, often = Counter(names).most_common(1)[0]
    if often > 1:
        raise ValueError(f"the judge {name} is named {often} times: once is enough.")
    own = [name for name in names if name in JUDGE_MODELS]
    given: dict[str, str] = {}
    for entry in models:
        judge, has_judge, model = entry.partition("=")
        if not has_judge or judge not in JUDGE_MODELS:  # a folder may have such a sign in its name
            judge, model = own[0] if len(own) == 1 else "", entry
        if judge not in own:
            whose = f"of {', '.join(own)}, say whose, as JUDGE=MODEL" if own else "none has one"
            raise ValueError(f"{entry} is the model of none of these judges: {whose}.")
        if not model or judge in given:
            raise ValueError(f"{entry}: the judge {judge} has one model; name it once.")
        given[judge] = model
    if server and "rubric" not in own:
        raise ValueError(
            "a server can only be asked with rubric: harmbench and llama-guard need the very text "
            "of their prompt, which a chat server makes itself, and words and service run here."
        )
    found = {name: given.get(name) or JUDGE_MODELS[name] for name in own}
    if "rubric" in found and not found["rubric"]:
        raise ValueError("rubric asks any chat model: name one with --judge-model.")
    if server:
        RemoteBackend(server, found["rubric"])  # which checks the URL and asks nothing yet
    return found


def capability_rows(subject: Subject, split: str) -> list[dict]:
    """Quiz accuracy and perplexity on the passages of one split; none behind a server.

    Behind a defense by prompt both are read after its last prompt; passages that it refuses have no
    perplexity. Neither have those whose loss is not finite, as of a ruined model; n counts the
    others.
    """
    if subject.model is None:
        return []
    questions, passages = load_quiz(split), load_passages(split)
    right = quiz(
        subject.model,
        subject.tokenizer,
        questions,
        _asked(subject, [question.question for question in questions]),
    )
    rows = [rate_row(rate(right), "accuracy", "quiz", "direct", None)]
    losses = passage_losses(
        subject.model,
        subject.tokenizer,
        passages,
        _asked(subject, [passage.request for passage in passages]),
    )
    if losses := [loss for loss in losses if math.isfinite(loss)]:
        found = mean(losses)
        perplexity, low, high = (math.exp(x) for x in (found.value, found.low, found.high))
        shown = Mean(perplexity, found.n, low, high)
        rows.append(mean_row(shown, "perplexity", "passages", "direct"))
    return rows


def _asked(subject: Subject, queries: Sequence[str]) -> list[Dialogue | None]:
    """What the model itself is asked last, where a subject is asked these."""
    dialogues = [as_dialogue(query) for query in queries]
    if isinstance(subject.backend, Defended):
        return last_prompts(subject.backend.backend, dialogues, subject.backend.defense)
    return dialogues


def evaluate_subject(
    subject: Subject,
    items: Sequence[Item],
    precision: Precision,
    decoding: Decoding,
    folder: str | os.PathLike[str],
    *,
    split: str = "test",
    tasks: Sequence[str] = (),
    task_limit: int | None = None,
    judged_by: Sequence[Judge] | None = None,
    more_rows: Callable[[], list[dict]] = list,
    resume: bool = True,
) -> Path:
    """Evaluate a subject on all items and write ``<folder>/<subject>/<defense>.json``.

    The log lies beside it (``.jsonl``), of the same items. A run that was stopped goes on where it
    was; one of more items adds to it, one of fewer is refused. A finished result of the same
    setting on the same items is left as it is. ``seconds`` are of all attempts: asking, judging,
    and what is measured after them.

    Args:
        items: from ``plan``.
        precision: of the subject; that of one behind a server does not count.
        split: of ``items``, and of what capability is measured on.
        tasks: names of lm-evaluation-harness tasks, measured as well, on the first ``task_limit``
            items of each (see ``harness_rows``).
        judged_by: default: ``judges``.
        more_rows: what else the result holds; called once all items are judged.
        resume: False asks and judges these items anew, and writes the result again.

    Raises:
        ValueError: an item or a task cannot be asked.
        LogError: an earlier run of other settings or of other items is in the way, or the folder
            cannot be used.
    """
    started = datetime.now(UTC)
    if tasks and (subject.model is None or isinstance(subject.backend, Defended)):
        raise ValueError(
            "harness tasks need a model on this machine, not one behind a server or a prompt."
        )
    if tasks:
        check_tasks(tasks)
    path = Path(folder) / subject.name / f"{subject.defense}.json"
    judged_by = judges() if judged_by is None else judged_by
    same = {
        "model": {"name": subject.name, "digest": subject.digest},
        "adapter": subject.adapter,
        "data": {
            "set": ", ".join(dict.fromkeys(item.set for item in items)),
            "split": split,
            "digest": digest([(item.id, item.request, item.turns, item.prefill) for item in items]),
        },
        "seed": decoding.seed,
        "setting": setting_of(subject, precision, decoding, judged_by, tasks),
    }
    if resume and _is_finished(path, same):
        return path
    outcomes = evaluate(
        subject.backend,
        items,
        judged_by,
        decoding,
        subject=subject.identity(precision),
        log=path.with_suffix(".jsonl"),
        resume=resume,
        alone=True,
    )
    rows, measured = summarise(outcomes), time.monotonic()
    with precision.autocast():
        rows += capability_rows(subject, split)
        if tasks:
            rows += harness_rows(subject.model, subject.tokenizer, tasks, task_limit)
    rows += more_rows()
    spent = seconds_spent(path.with_suffix(".jsonl")) + time.monotonic() - measured
    run = provenance(started)
    if subject.model is None:
        run["hardware"] = f"behind a server; judged on {run['hardware']}"
    write_result(path, {**same, "rows": rows, **run, "seconds": round(spent)})
    return path


def _is_finished(path: Path, same: dict) -> bool:
    """Whether there is a result of all of this already; what is no result is made anew."""
    try:
        there = read_result(path)
    except ValueError:
        return False
    return all(there[name] == value for name, value in json.loads(json.dumps(same)).items())
