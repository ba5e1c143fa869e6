"""What the checks of the rendered book found when somebody kept it: book/checked.json.

Each check that is run with ``--record`` replaces its own part, with the day, the revision of the
sources and the machine. The status page reads it, so that no figure there is typed in.
"""

import datetime
import json

from execute import hardware
from notebook_files import ROOT, write_whole
from site_files import git

FILE = "book/checked.json"


def record(name, found, root=ROOT):
    """Keep what the check ``name`` found, a dictionary."""
    known = recorded(root)
    known[name] = {
        "date": datetime.date.today().isoformat(),
        "revision": git(root, "rev-parse", "HEAD"),
        "hardware": hardware(),
        **found,
    }
    write_whole(root / FILE, json.dumps(known, indent=1, sort_keys=True) + "\n")


def recorded(root=ROOT):
    """All that was kept, by check; empty where nothing was."""
    path = root / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
