"""The parts of pages that are computed: the status tables and the counts of the corpora.

A page holds a comment line such as ``<!-- generated: runs -->``; rendering puts the table after
it. So no number on these pages is typed in by hand.
"""

import json
import re
from collections import Counter
from pathlib import Path

import budgets
from notebook_files import code_cells, is_report, output_texts, read
from recorded import recorded

MACHINES = ("CPU with bf16", "CPU without bf16", "GPU")
SPLITS = ("train", "validation", "test")
ROOM = re.compile(r"^\| (\S+) \| `(\w+)` \| (.*) \|$", re.M)
COMMENT = re.compile(r"^<!-- generated: ([a-z_]+) -->$", re.M)


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def title(notebook):
    for cell in notebook.cells:
        found = re.search(r"^# (.+)$", cell.source, re.M) if cell.cell_type == "markdown" else None
        if found:
            return found.group(1).strip()
    return "untitled"


def place(path):
    """Where a notebook lies in the repository, and in the sources of the book."""
    return f"notebooks/{'reports/' if is_report(path) else ''}{path.name}"


def duration(seconds):
    return f"{seconds} s" if seconds < 100 else f"{seconds // 60} min {seconds % 60:02d} s"


def machine(notebook):
    """The kind of machine a notebook ran on, of ``MACHINES``, by what its first cell printed."""
    said = "\n".join(text for cell in code_cells(notebook)[:1] for text in output_texts(cell))
    if " on cuda" in said:
        return "GPU"
    if "bf16 on cpu" in said:
        return "CPU with bf16"
    return "CPU without bf16" if " on cpu" in said else "-"


def runs(root, notebooks):
    """One row for each notebook: how long it ran, where and when; then what no run is of."""
    rows, kinds = [], set()
    for path in notebooks:
        notebook = read(path)
        record = notebook.metadata.get("xb_lite", {})
        seconds = record.get("seconds")
        kinds.add(kind := machine(notebook))
        rows.append(
            (
                f"[{title(notebook)}](../{place(path)})",
                "not run" if seconds is None else duration(seconds),
                record.get("profile", "-"),
                kind,
                record.get("hardware", "-"),
                record.get("date", "-"),
            )
        )
    found = table(("Notebook", "Run time", "Profile", "Machine", "Hardware", "Date"), rows)
    missing = " or ".join(f"a {kind}" for kind in MACHINES if kind not in kinds)
    return found + (f"\n\nNo run on {missing} is on record." if missing else "")


def reading(root, notebooks):
    """One row for each chapter: how long it is for its reader, and what is over its budget."""
    rows = []
    for path in [path for path in notebooks if not is_report(path)]:
        found = budgets.counts(read(path))
        too_long = "; ".join(budgets.over(path, found)) or "within its budget"
        rows.append((f"[{title(read(path))}](../{place(path)})", *found, too_long))
    head = ("Chapter", "Words", "Lines of code", "Figures", "Minutes to read", "Budget")
    return table(head, rows)


def versions(root, notebooks):
    """The package versions of each run; equal runs share a column."""
    columns = {}
    for path in notebooks:
        found = read(path).metadata.get("xb_lite", {}).get("versions", {})
        number = path.stem.partition("_")[0]
        columns.setdefault(tuple(sorted(found.items())), []).append(number)
    packages = sorted({name for column in columns for name, _ in column})
    head = ["Package", *(f"Notebooks {', '.join(numbers)}" for numbers in columns.values())]
    return table(
        head, [[name, *(dict(column).get(name, "-") for column in columns)] for name in packages]
    )


def rows_of(root, name):
    path = root / "xb_lite" / "corpora" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def count_table(items, field, by):
    """How many items have each value of ``field``, a column for each value of ``by``."""
    counts = Counter((item[field], item[by]) for item in items if item.get(field))
    columns = [value for value in dict.fromkeys(item[by] for item in items)]
    columns = [value for value in columns if any(found == value for _, found in counts)]
    values = sorted({value for value, _ in counts})
    # Values that share their columns stand together.
    values.sort(key=lambda value: [counts[value, column] == 0 for column in columns])
    rows = [[v.replace("_", " "), *(counts[v, c] or "-" for c in columns)] for v in values]
    return table((field.capitalize(), *columns), rows)


def corpora(root, notebooks):
    """How many prompts of each kind there are in each split, category and type."""
    items = [row for kind in ("harmful", "boundary_safe", "benign") for row in rows_of(root, kind)]
    total = Counter(item["kind"] for item in items)
    parts = [f"{len(items)} prompts: " + ", ".join(f"{total[k]} {k}" for k in total) + "."]
    for field in ("split", "category", "type"):
        parts.append(f"### By {field}\n\n" + count_table(items, field, "kind"))
    return "\n\n".join(parts)


def carriers(root, notebooks):
    """How many of all but prompts there are: by style, family, subject or label, and split."""
    parts = []
    for title, name, field in (
        ("Multi-turn scripts", "multi_turn", "style"),
        ("Wrappers", "wrappers", "family"),
        ("Questions", "quiz", "subject"),
        ("Passages", "passages", "subject"),
        ("Labelled responses", "labelled", "label"),
    ):
        items = sorted(rows_of(root, name), key=lambda item: SPLITS.index(item["split"]))
        parts.append(f"### {title}: {len(items)}\n\n" + count_table(items, field, "split"))
    return "\n\n".join(parts)


def findings(root, notebooks):
    """What the book finds: the output of the cell of chapter 0 that reads it from the results."""
    for path in notebooks:
        for cell in code_cells(read(path)):
            if "findings" in cell.metadata.get("tags", []):
                (html,) = (o.data["text/html"] for o in cell.outputs if "text/html" in o.data)
                chapters = {each.stem[:2]: each for each in notebooks if not is_report(each)}

                def linked(found, chapters=chapters):
                    number = found.group(1)
                    target = chapters[f"{int(number):02d}"].stem
                    return f'(<a href="../notebooks/{target}.html">chapter {number}</a>)'

                return re.sub(r"\(chapter (\d)\)", linked, html)
    raise ValueError("no notebook has a cell tagged findings, which the landing page shows.")


JUDGES = ("service", "xstest", "x-boundary", "intention-analysis", "length alone")
STATES = ("done", "stale", "missing")
LABELS = ("complied", "refused", "evaded", "gibberish")


def judged(root):
    """The rows of ``results/judges/service.json`` by metric, group and judge, and where from."""
    path = root / "results" / "judges" / "service.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    return {(row["metric"], row["attack"], row["judge"]): row for row in result["rows"]}, result


def share(row):
    if row is None:
        return "-"
    low, high = (f"{100 * row[end]:.0f}" for end in ("low", "high"))
    return f"{row['k'] / row['n']:.0%} [{low}, {high}], {row['k']} of {row['n']}".replace("%", " %")


def judge_errors(root, notebooks):
    """How often each judge errs on all labelled replies of the test split."""
    rows, result = judged(root)
    found, recalls = (
        [(name, *(share(rows[metric, "all", name]) for metric in metrics)) for name in JUDGES]
        for metrics in (
            ("sensitivity", "specificity", "agreement"),
            tuple(f"recall-{label}" for label in LABELS[1:]),
        )
    )
    source = (
        f"Source: `results/judges/service.json`, started {result['started'][:10]} on "
        f"{result['hardware']}; made by `python -m xb_lite.reproduce.service_judge`."
    )
    return "\n\n".join(
        [
            table(("judge", "sensitivity", "specificity", "right label"), found),
            table(("judge", *(f"{label} found" for label in LABELS[1:])), recalls),
            source,
        ]
    )


def gibberish_found(root, notebooks):
    """What the gibberish judge and a limit on nats a byte find, and what they call so wrongly."""
    result = json.loads((root / "results" / "judges" / "gibberish.json").read_text())
    rows = {(row["judge"], row["metric"], row["set"]): row for row in result["rows"]}
    of = {
        "validation": "labelled replies, validation split",
        "test": "labelled replies, test split",
        "prompts": "prompts that people wrote",
        "look-alikes": "tables, code, rules, numbers, refrains, languages",
    }
    found = [
        (
            words,
            *(
                share(rows.get((judge, metric, name)))
                for judge in ("gibberish", "nats-a-byte")
                for metric in ("found", "false-alarm")
            ),
        )
        for name, words in of.items()
    ]
    head = ("texts", "judge: found", "false alarms", "limit: found", "false alarms")
    (limit,) = (row["mean"] for row in result["rows"] if row["metric"] == "nats-a-byte")
    source = (
        f"The limit is {limit:.2f} nats a byte. Source: `results/judges/gibberish.json`, started "
        f"{result['started'][:10]}; made by `python -m xb_lite.reproduce.gibberish_limits`."
    )
    return "\n\n".join([table(head, found), source])


def judge_groups(root, notebooks):
    """The same by group of replies, for the service judge; beside it one list of words."""
    rows, _ = judged(root)
    groups = [group for metric, group, judge in rows if (metric, judge) == ("agreement", "service")]
    metrics = ("sensitivity", "specificity", "agreement")
    found = [
        (
            group,
            *(share(rows.get((metric, group, "service"))) for metric in metrics),
            share(rows.get(("agreement", group, "x-boundary"))),
        )
        for group in groups
        if group != "all"
    ]
    head = ("replies", "sensitivity", "specificity", "right label", "right label, x-boundary")
    return table(head, found)


SCREEN = (
    ("smollm2-135m/none", "before"),
    ("smollm2-135m-aligned/none", "first alignment"),
    ("smollm2-135m-aligned-360/none", "the subject"),
    ("qwen2.5-coder-0.5b/none", "Qwen2.5-Coder-0.5B"),
    ("qwen2.5-coder-0.5b/alignment-0", "the same, aligned"),
    ("qwen2.5-coder-1.5b/none", "Qwen2.5-Coder-1.5B"),
)


def screen(root, notebooks):
    """What each subject refuses and answers before any defense, from ``results/cpu/screen``."""
    wanted = (
        ("harmful, answered", "asr", "harmful", "direct"),
        ("harmful with the prefill, answered", "asr", "harmful", "prefill"),
        ("harmful in wrappers, answered", "asr", "harmful", "wrapper"),
        ("last turn of a script, answered", "asr-last-turn", "multi-turn", "multi-turn"),
        ("boundary-safe, refused", "orr", "boundary-safe", "direct"),
        ("XSTest, refused", "orr", "xstest", "direct"),
        ("OR-Bench, refused", "orr", "orbench", "direct"),
        ("benign, refused", "orr", "benign", "direct"),
    )
    columns = []
    for name, said in SCREEN:
        path = root / "results" / "cpu" / "screen" / f"{name}.json"
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        by = {(r["metric"], r["set"], r["attack"], r["judge"]): r for r in rows}
        cells = [share(by.get((*what, "service"))) for _, *what in wanted]
        accuracy, perplexity = (
            next(row for row in rows if row["metric"] == metric)
            for metric in ("accuracy", "perplexity")
        )
        cells += [share(accuracy), f"{perplexity['mean']:.3g}"]
        columns.append((said, cells))
    names = [*(name for name, *_ in wanted), "quiz, right", "perplexity"]
    body = [(name, *(cells[i] for _, cells in columns)) for i, name in enumerate(names)]
    return table(("by the service judge", *(said for said, _ in columns)), body)


def learning_curve(root, notebooks):
    """The AUC of the probe by the number of pairs, on its own prompts and on public ones."""
    path = root / "results" / "cpu" / "learning-curve" / "smollm2-135m.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    found = {}  # by set, then by number of pairs
    for row in rows:
        if pairs := re.fullmatch(r"AUC, (\d+) pairs", row["metric"]):
            ends = "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**row)
            found.setdefault(row["set"], {})[int(pairs[1])] = ends
    numbers = sorted(next(iter(found.values())))
    body = [(name, *(by[pairs] for pairs in numbers)) for name, by in found.items()]
    return table(("AUC", *(f"{pairs} pairs" for pairs in numbers)), body)


def results_state(root, notebooks):
    """How many results of each plan lie in ``results/``, and whether they are what is asked for."""
    from xb_lite.reproduce.manifest import load_manifest
    from xb_lite.reproduce.status import tasks_of

    rows, stale = [], []
    for name, file in (("", "manifest.json"), ("together", "together.json")):
        book = load_manifest(root / "xb_lite" / "reproduce" / file)
        tasks = tasks_of(book, root / "results")
        plans = {}
        for task in tasks:
            plan = task.plan.name if task.plan else name or "other scripts"
            plans.setdefault(plan, Counter())[task.state] += 1
        rows += [(plan, *(found[s] for s in STATES)) for plan, found in plans.items()]
        stale += [f"- `{task.path}`: {task.why}" for task in tasks if task.state == "stale"]
    total = tuple(sum(row[i] for row in rows) for i in range(1, 4))
    return "\n\n".join([table(("Plan", *STATES), [*rows, ("all", *total)]), "\n".join(stale)])


def checks(root, notebooks):
    """What the checks of the rendered pages found when they were last kept."""
    known, parts = recorded(root), []
    for name, of in (("links", "Links and anchors"), ("pages", "Pages in a browser")):
        if name in known:
            found = known[name]
            numbers = ", ".join(f"{found[key]} {key.replace('_', ' ')}" for key in found["counts"])
            parts.append(f"**{of}**, {when(found)}: {numbers}.")
        else:
            parts.append(f"**{of}**: not on record.")
    if "measured" not in known:
        return "\n\n".join([*parts, "**On a slow line**: not on record."])
    found = known["measured"]
    head = ("Page", "Theme", "Width", "KB", "Requests", "Largest paint", "By Tab", "Axe", "Faults")
    rows = [
        (
            v["page"].removesuffix(".html"),
            *(v["theme"], v["width"], v["kilobytes"], v["requests"], f"{v['seconds']:.2f} s"),
            *(f"{v['reached']} of {v['of']}", f"{v['rules']} rules", v["faults"]),
        )
        for v in found["visits"]
    ]
    line = found["line"]
    return "\n\n".join(
        [
            *parts,
            f"**On a slow line**, {when(found)}: {line['download'] / 1024:.1f} Mbit/s down, "
            f"{line['latency']} ms a round trip.",
            table(head, rows),
        ]
    )


def when(found):
    """Day, machine and revision of a check."""
    revision = f", revision `{found['revision'][:10]}`" if found["revision"] else ""
    return f"{found['date']} on {found['hardware']}{revision}"


def api(root, notebooks):
    """The public names of each room, by the table of CONTRIBUTING.md, for autodoc."""
    text = (Path(root) / "CONTRIBUTING.md").read_text(encoding="utf-8")
    parts = []
    for chapter, room, names in ROOM.findall(text):
        listed = ", ".join(re.findall(r"`(\w+)`", names))
        where = f"Chapter {chapter}." if chapter.isdigit() else ""
        parts.append(
            f"## {room}\n\n{where}\n\n```{{eval-rst}}\n"
            f".. automodule:: xb_lite.{room}\n   :members: {listed}\n```"
        )
    return "\n\n".join(parts)


GENERATED = {
    "screen": screen,
    "learning_curve": learning_curve,
    "judge_errors": judge_errors,
    "gibberish_found": gibberish_found,
    "judge_groups": judge_groups,
    "api": api,
    "findings": findings,
    "runs": runs,
    "results_state": results_state,
    "checks": checks,
    "reading": reading,
    "versions": versions,
    "corpora": corpora,
    "carriers": carriers,
}


def fill(text, root, notebooks):
    """``text`` with a table after each comment that asks for one."""
    return COMMENT.sub(
        lambda found: found.group(0) + "\n\n" + GENERATED[found.group(1)](Path(root), notebooks),
        text,
    )
