"""The parser of the package's commands, and what can be named in them."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Callable, Iterable, Sequence


class Parser(argparse.ArgumentParser):
    """With what can be named, by what it is, below the help; looked up only there, for it loads
    torch. A misspelt option is answered with the usage of its own command, and one for what is
    given by itself, as a model is, with how to give it."""

    listed: Callable[[], dict[str, Iterable[str]]] = dict

    def format_help(self) -> str:
        """With a paragraph for each entry of ``listed``."""
        style = {"subsequent_indent": "  ", "break_on_hyphens": False}
        lines = [
            textwrap.fill(f"{what}: {', '.join(names)}", 79, **style)
            for what, names in self.listed().items()
        ]
        return "\n".join([super().format_help(), *lines, ""]) if lines else super().format_help()

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As of argparse, but what is unknown ends it here, where the command's options are."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            hints = {
                f"--{action.dest}": f"; give the {action.dest} by itself, without an option"
                for action in self._actions
                if not action.option_strings
            }
            options = [name for action in self._actions for name in action.option_strings]
            hints |= {name: f"; did you mean {name}?" for name in options}
            near = difflib.get_close_matches(unknown[0].partition("=")[0], hints, 1)
            hint = hints[near[0]] if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown


def positive(text: str) -> int:
    """A ``type`` of argparse, so that what is below 1 is refused before a model is loaded."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def defenses() -> dict[str, Iterable[str]]:
    """For ``Parser.listed``: the defenses by prompt, each in a few words."""
    from xb_lite.intention.defenses import IN_SHORT

    return {"defenses by prompt": [f"{name} ({what})" for name, what in IN_SHORT.items()]}


def plans() -> dict[str, Iterable[str]]:
    """For ``Parser.listed``: what ``reproduce`` can make."""
    from xb_lite.reproduce.manifest import load_manifest

    return {"plans": load_manifest().plans}


def asked() -> dict[str, Iterable[str]]:
    """For ``Parser.listed``: what ``evaluate`` can ask, and who judges it."""
    from xb_lite.corpora import KINDS
    from xb_lite.data.items import ATTACKS
    from xb_lite.data.public import BENCHMARKS
    from xb_lite.judges.blind import BLIND
    from xb_lite.judges.named import JUDGE_MODELS, JUDGES
    from xb_lite.models.cached import SPECS
    from xb_lite.models.loading import ALIGNED, ALIGNED_360

    own = (*KINDS, "multi-turn")
    judges = (f"{j} ({JUDGE_MODELS[j]})" if JUDGE_MODELS.get(j) else j for j in JUDGES)
    return {
        "models of the book": [*SPECS, ALIGNED, ALIGNED_360],
        "the book's own sets": own,
        "benchmarks": BENCHMARKS,
        "attacks": ATTACKS,
        "judges": judges,
        **{f"what {name} cannot see": [what] for name, what in BLIND.items()},
        **defenses(),
    }
