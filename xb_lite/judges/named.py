"""Judges by their names, as commands and recipes of results have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from xb_lite.files import digest
from xb_lite.judges.classifiers import ChatJudge, harmbench, llama_guard
from xb_lite.judges.gibberish import Gibberish
from xb_lite.judges.service import Service
from xb_lite.judges.strings import REFUSAL_JUDGES, Judge
from xb_lite.models.cached import DEFAULT, ModelError
from xb_lite.models.loading import last_name, load_model, model_digest, precision_of
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.server import RemoteBackend

OWN_JUDGES = ("words", "service")  # these run on a laptop
JUDGES = (*OWN_JUDGES, "harmbench", "llama-guard", "rubric")

OTHERWISE = f"; {DEFAULT!r} is ungated and loads everywhere."  # no advice for a judge

# The models that judges are published as; a rubric can be asked of any chat model, and has none.
JUDGE_MODELS = {
    "harmbench": "cais/HarmBench-Llama-2-13b-cls",
    "llama-guard": "meta-llama/Llama-Guard-3-8B",
    "rubric": None,
}
IN_RESULTS = {"harmbench": "harmbench-llama"}  # results name it after its type of model


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
        try:
            return *load_model(name, precision, chat=chat), precision
        except ModelError as error:
            if name == DEFAULT:
                raise
            raise ModelError(
                f"a judge's model: {str(error).removesuffix(OTHERWISE)}; without a network, fetch "
                "it before (hf download) or name a folder with --judge-model; the judges words and "
                "service need neither."
            ) from error

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
            asked = (
                f"{model} at a server {digest(server.rstrip('/'))[:8]}"  # results hold no address
            )
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
