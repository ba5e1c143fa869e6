"""Notebooks as files: reading, writing them whole or not at all, and digests of their sources."""

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]

# Outputs of these kinds are base64, where a few letters may look like a path by chance.
BINARY = ("image/png", "image/jpeg", "image/gif", "application/pdf")

# Where the paths of somebody's machine begin. A page that shows one was not cleaned.
MACHINE_PATH = re.compile(
    r"/(?:home|root|Users)/[\w.-]+|/(?:private/)?(?:tmp|var/folders)/[\w.-]+|[A-Z]:\\Users\\|/site-packages/"
)

# The package's own address with a tag, in the first cell of a notebook.
PINNED = re.compile(r"(git\+https://github\.com/[\w.-]+/[\w-]+)@v[\w.]+")


def chapters(folder=ROOT / "notebooks"):
    """The notebooks of a folder in reading order."""
    return sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))


def reports(folder=ROOT / "notebooks"):
    """The reproduction reports of a folder of notebooks, in reading order."""
    return sorted(Path(folder).glob("reports/[A-Z]_*.ipynb"))


def is_report(path):
    return Path(path).parent.name == "reports"


def notebooks(folder=ROOT / "notebooks"):
    """Chapters, then reports."""
    return [*chapters(folder), *reports(folder)]


def read(path):
    return nbformat.read(path, as_version=4)


def as_text(notebook):
    """The one way a notebook is written here, so that equal notebooks are equal files."""
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def write_whole(path, text):
    """Replace ``path`` in one step: a run that is killed leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(text if isinstance(text, bytes) else text.encode())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(parts):
    """sha256 over strings or bytes, with lengths, so that moving text between parts shows."""
    total = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode()
        total.update(b"%d:" % len(data))
        total.update(data)
    return total.hexdigest()


def code_digest(notebook):
    """What the outputs depend on: the sources of the code cells, in order, without the tag that a
    release gives to the line which installs the package."""
    return digest(PINNED.sub(r"\1", cell.source) for cell in code_cells(notebook))


def cell_digest(notebook):
    """Everything that is written in the notebook, outputs left out."""
    parts = []
    for cell in notebook.cells:
        metadata = {key: value for key, value in cell.metadata.items() if key != "execution"}
        parts += [cell.cell_type, cell.source, json.dumps(metadata, sort_keys=True)]
    return digest(parts)


def output_texts(cell):
    """Each textual piece of a code cell's outputs."""
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            yield output.text
        elif output.output_type == "error":
            yield "\n".join(output.traceback)
        else:
            for kind, data in output.get("data", {}).items():
                if kind not in BINARY:
                    yield data if isinstance(data, str) else json.dumps(data)


def image_kinds(cell):
    """The image types among a cell's outputs."""
    return [
        kind
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
        if kind.startswith("image/")
    ]


def machine_path(text):
    """The first path of a person's machine in ``text``, or None."""
    found = MACHINE_PATH.search(text)
    if found:
        return found.group(0)
    for folder in (str(ROOT), str(Path.home()), tempfile.gettempdir()):
        if len(folder) > 1 and folder + "/" in text:
            return folder
    return None
