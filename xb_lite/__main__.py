"""Commands of the book: fetch a model, train a defense, evaluate it, serve it, make all results.

python -m xb_lite fetch      have a model on this machine before it is needed
python -m xb_lite estimate   say what a recipe takes, before anything is fetched
python -m xb_lite train      train a defense by a recipe
python -m xb_lite scale      turn a trained defense down, or up
python -m xb_lite evaluate   ask a model prompts, have its replies judged, print and keep the rates
python -m xb_lite serve      put a prompt defense in front of a model, for any OpenAI client
python -m xb_lite grade      run the exercises of submitted notebooks, kept from your files
python -m xb_lite reproduce  make the book's results that are missing, or say which are there

`python -m xb_lite COMMAND --help` lists a command's options. The installed command xb-lite is the
same as python -m xb_lite.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from xb_lite.commands import Parser, asked, defenses, plans, positive
from xb_lite.corpora import SPLITS
from xb_lite.grading.command import add_grade
from xb_lite.models.cached import DEFAULT, SPECS, ModelError, cached_model, gguf_file
from xb_lite.models.wheels import FetchError
from xb_lite.scaling.command import add_estimate
from xb_lite.training.command import add_train

if TYPE_CHECKING:
    from xb_lite.serve.upstreams import Upstream


# Of several commands.
MODEL_HELP = (
    f"name, folder or hub id of the model (default: {DEFAULT}); with --server, the name that the "
    "server gives it"
)
SERVER_HELP = "an OpenAI-compatible server that runs the model (…/v1)"


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except (ModelError, FetchError, ValueError, RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        anew = getattr(args, "begins_anew", False) or not getattr(args, "resume", True)
        goes_on = "begins anew" if anew else "goes on from here"
        print(f"stopped; the same command {goes_on}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="xb-lite" if Path(sys.argv[0]).stem == "xb-lite" else "python -m xb_lite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    fetch = commands.add_parser(
        "fetch",
        help="download a model into the cache folder",
        description="Downloads a model into the cache folder, for use without a network later.",
    )
    fetch.add_argument(
        "model", nargs="?", default=DEFAULT, choices=sorted(SPECS), help=f"default: {DEFAULT}"
    )
    fetch.add_argument("--gguf", action="store_true", help="the 4-bit file itself, for llama.cpp")
    fetch.set_defaults(run=_fetch, begins_anew=True)
    add_estimate(commands)
    add_train(commands)
    several = {"action": "extend", "nargs": "+"}  # once with many, or many times
    resumable = {"action": argparse.BooleanOptionalAction, "default": True}
    scale = commands.add_parser(
        "scale",
        help="turn a trained defense down or up",
        description="Writes a copy of the adapter whose change of the model is multiplied by the "
        "strength.",
    )
    scale.add_argument("adapter", metavar="FOLDER", help="a defense from `train`")
    scale.add_argument("strength", type=float, help="0: the undefended model, 1: as trained")
    scale.add_argument("--into", metavar="FOLDER", required=True, help="folder of the new adapter")
    scale.set_defaults(run=_scale)
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a model's attack success, over-refusal, service and capability",
        description="Asks a model every prompt of the chosen sets, has the replies judged, prints "
        "the rates with 95 % intervals, and keeps them in the folder of --results. The full sets "
        "take long on a CPU: begin with --limit 5. After the replies capability is measured, which "
        "takes minutes on a CPU whatever the limit. A run that was stopped goes on where it was. "
        "Replies stay in the cache folder.",
    )
    evaluate.listed = asked
    evaluate.add_argument("model", nargs="?", help=MODEL_HELP)
    evaluate.add_argument("--adapter", metavar="FOLDER", help="a defense from `train`")
    evaluate.add_argument("--defense", help="a prompt defense by name (list below)")
    evaluate.add_argument(
        "--split",
        default="test",
        choices=SPLITS,
        help="which part of the book's own sets (default: test)",
    )
    evaluate.add_argument("--server", metavar="URL", help=SERVER_HELP)
    evaluate.add_argument(
        "--sets",
        **several,
        metavar="SET",
        help="what is asked (default: the book's own sets): names from the list below; NAME=FILE: "
        "your copy of a benchmark; NAME:KIND=FILE: prompts of your own, with a name that you give "
        "them and KIND harmful, boundary-safe or benign; FILE is CSV or JSON lines with a field "
        "called prompt",
    )
    evaluate.add_argument(
        "--attacks",
        **{**several, "nargs": "*"},
        metavar="ATTACK",
        help="attacks on plain harmful requests (default: all; --attacks without a name: none)",
    )
    evaluate.add_argument(
        "--judge",
        **several,
        metavar="NAME",
        dest="judges",
        help="what labels the replies: words, service (default: these two), harmbench, "
        "llama-guard, rubric; harmbench and llama-guard label replies to harmful requests alone",
    )
    evaluate.add_argument(
        "--judge-model",
        **several,
        default=[],
        metavar="MODEL",
        dest="judge_models",
        help="the model of the judge harmbench, llama-guard or rubric, as a hub id or a folder; "
        "with several judges JUDGE=MODEL for each",
    )
    evaluate.add_argument(
        "--judge-server",
        metavar="URL",
        help="an OpenAI-compatible server for the judge rubric (…/v1); OPENAI_API_KEY is sent to "
        "it",
    )
    evaluate.add_argument("--limit", type=int, metavar="N", help="at most N items of each set")
    evaluate.add_argument(
        "--max-new-tokens",
        type=int,
        default=64,
        metavar="N",
        help="tokens of a reply at most (default: 64)",
    )
    evaluate.add_argument(
        "--tasks",
        **several,
        default=[],
        help="tasks of lm-evaluation-harness, by name (pip install 'xb-lite[harness]')",
    )
    evaluate.add_argument(
        "--results", metavar="FOLDER", default="my_results", help="default: my_results"
    )
    evaluate.add_argument(
        "--resume", **resumable, help="go on with an earlier run (default), or begin anew"
    )
    evaluate.set_defaults(run=_evaluate)
    serve = commands.add_parser(
        "serve",
        help="put a model behind a prompt defense, as an OpenAI-compatible server",
        description="Starts a server that clients use by changing their base_url. In front of "
        "another server (--server) each client's own key is passed on, unless OPENAI_API_KEY is "
        "set: then that one is used for whoever can reach this port.",
    )
    serve.listed = defenses
    serve.add_argument(
        "model",
        nargs="?",
        help=MODEL_HELP,
    )
    serve.add_argument("--model", metavar="NAME", dest="named", help="the same, as an option")
    serve.add_argument("--adapter", metavar="FOLDER", help="a defense from `train`")
    serve.add_argument(
        "--defense",
        default="ia",
        help="a name from the list below (default: ia); none: no prompt defense",
    )
    serve.add_argument(
        "--guard",
        **several,
        default=[],
        metavar="DETECTOR",
        help="read answers before they are shown, with the default model: gibberish, probe "
        "(fitted first: minutes)",
    )
    serve.add_argument(
        "--hold", type=positive, default=16, help="tokens that the guard holds back (default: 16)"
    )
    serve.add_argument("--server", metavar="URL", help=SERVER_HELP)
    serve.add_argument(
        "--timeout", type=float, default=120.0, help="seconds to wait for --server (default: 120)"
    )
    serve.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    serve.add_argument("--port", type=int, default=8001, help="default: 8001; 0: any free one")
    serve.set_defaults(run=_serve)
    add_grade(commands)
    reproduce = commands.add_parser(
        "reproduce",
        help="make those of the book's results that are missing, or say which are there",
        description="Makes the results that are missing. Several of these commands can run side by "
        "side, each on a CPU core with OMP_NUM_THREADS=1. A file that is deleted is made again; a "
        "result of older code or prompts is left as it is.",
    )
    reproduce.listed = plans
    reproduce.add_argument("--status", action="store_true", help="say what is there, make nothing")
    reproduce.add_argument(
        "--only",
        **several,
        default=[],
        metavar="PLAN",
        help="plans (list below), or a pattern of paths such as 'cpu/test/*'",
    )
    reproduce.add_argument(
        "--tier",
        choices=("cpu", "gpu", "a100", "multi"),
        help="hardware: a100 is one card with 80 GB, multi several (default: cpu and gpu, the two "
        "that the book's results are from)",
    )
    reproduce.add_argument(
        "--sets", **several, default=[], metavar="NAME=FILE", help="your copies of public sets"
    )
    reproduce.add_argument("--results", default="results", help="folder (default: results)")
    reproduce.add_argument("--manifest", metavar="FILE", help="default: the book's")
    reproduce.set_defaults(run=_reproduce)
    return parser


def _fetch(args: argparse.Namespace) -> None:
    spec = SPECS[args.model]
    place = gguf_file(spec) if args.gguf else cached_model(spec)
    print(f"{spec.title} ({spec.licence}) is in {place}")


def _scale(args: argparse.Namespace) -> None:
    from xb_lite.models.adapters import scale_adapter

    print(scale_adapter(args.adapter, args.strength, args.into))


def _evaluate(args: argparse.Namespace) -> None:
    # Imported here: fetching needs nothing heavy.
    from xb_lite.data.items import ATTACKS, SETS, plan
    from xb_lite.evaluation.runs import evaluate_subject
    from xb_lite.intention.defenses import defense_named, prompted
    from xb_lite.judges.named import OWN_JUDGES, judge_models, judges_named
    from xb_lite.models.loading import precision_of
    from xb_lite.replies.shares import join_processes
    from xb_lite.replies.subjects import local_subject, remote_subject
    from xb_lite.replies.types import Decoding
    from xb_lite.results.tables import print_result
    from xb_lite.session import tier

    items = plan(
        SETS if args.sets is None else args.sets,
        ATTACKS if args.attacks is None else args.attacks,
        args.limit,
        args.split,
    )
    decoding = Decoding(args.max_new_tokens)
    name = args.model or DEFAULT
    precision = precision_of(name, exact=True)
    join_processes(cpu=precision.device == "cpu")
    print(f"{len(items)} items" + ("" if args.server else f", {precision}"))
    if args.defense:
        defense_named(args.defense)  # before a model is loaded
    judged_by = args.judges or OWN_JUDGES, args.judge_models, args.judge_server
    judge_models(*judged_by)  # likewise
    if {"harmbench", "llama-guard"}.issuperset(judged_by[0]) and not any(
        item.kind == "harmful" for item in items
    ):
        raise ValueError(
            f"{' and '.join(judged_by[0])}: only replies to harmful requests are labelled, and no "
            "such request is asked: name another judge or set."
        )
    _check_server(args, args.model)
    if args.server:
        subject = remote_subject(args.server, args.model)
    else:
        subject = local_subject(name, precision, args.adapter)
    if args.defense:
        subject = prompted(subject, args.defense)
    path = evaluate_subject(
        subject,
        items,
        precision,
        decoding,
        Path(args.results) / ("server" if args.server else tier()),
        split=args.split,
        tasks=args.tasks,
        task_limit=args.limit,
        judged_by=judges_named(*judged_by) if args.judges else None,
        resume=args.resume,
    )
    if int(os.environ.get("RANK", 0)) == 0:
        print_result(path)


def _serve(args: argparse.Namespace) -> None:
    try:
        from xb_lite.serve.proxy import application, check_not_begun, listen, serve, url_of
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: pip install 'xb-lite[serve]' brings it.") from error
    from xb_lite.guard.fitting import detectors_named
    from xb_lite.guard.stream import Guard
    from xb_lite.intention.defenses import by_prompt, defense_named

    defense = by_prompt(list) if args.defense == "none" else defense_named(args.defense)
    if args.server:
        check_not_begun(defense)
    with listen(args.host, args.port) as listening:
        upstream = _upstream(args)  # first: what is wrong there is found at once
        guard = Guard(detectors_named(args.guard), args.hold) if args.guard else None
        where = f"{url_of(listening)} (Ctrl-C ends it)"
        print(f"{upstream.name} behind {args.defense} is at {where}", flush=True)
        with suppress(KeyboardInterrupt):
            serve(application(upstream, defense, ("localhost", args.host), guard), listening)


def _reproduce(args: argparse.Namespace) -> None:
    from xb_lite.reproduce.manifest import MANIFEST, load_manifest
    from xb_lite.reproduce.runner import progress, reproduce
    from xb_lite.reproduce.status import tasks_of

    manifest = args.manifest or MANIFEST
    if wrong := next((entry for entry in args.sets if "=" not in entry), None):
        raise ValueError(f"--sets {wrong}: give your copy of a public set as NAME=FILE.")
    meant = {"only": args.only, "tier": args.tier}
    if args.status:
        if not Path(args.results).is_dir():
            raise ValueError(f"--results {args.results}: there is no such folder.")
        tasks = tasks_of(load_manifest(manifest), args.results, **meant)
    else:
        files = dict(entry.split("=", 1) for entry in args.sets)
        tasks = reproduce(args.results, files=files, manifest=manifest, **meant)
    for task in (task for task in tasks if task.state != "done"):
        print(f"{task.state:<8}{task.path}" + (f" ({task.why})" if task.why else ""))
    print(progress(tasks))


def _upstream(args: argparse.Namespace) -> Upstream:
    from xb_lite.models.loading import last_name, load_defended, precision_of
    from xb_lite.serve.local import LocalModel
    from xb_lite.serve.upstreams import RemoteModel

    name = args.named or args.model
    if args.named and args.model:
        raise ValueError(f"{args.model} and {args.named}: name one model.")
    _check_server(args, name)
    if args.server:
        return RemoteModel(args.server, name, os.environ.get("OPENAI_API_KEY"), args.timeout)
    precision = precision_of(name or DEFAULT, exact=True)
    model, tokenizer = load_defended(name or DEFAULT, precision, args.adapter)
    return LocalModel(last_name(name or DEFAULT), model, tokenizer, precision)


def _check_server(args: argparse.Namespace, name: str | None) -> None:
    if args.server and args.adapter:
        raise ValueError("an adapter cannot be put on a model behind a server.")
    if args.server and not name:
        raise ValueError("a server may have several models: name one of them.")


if __name__ == "__main__":
    sys.exit(main())
