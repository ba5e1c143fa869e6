"""The parser of the package's commands."""

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
