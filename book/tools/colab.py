"""Install the book as Colab does, on top of what Colab has, and run every notebook there.

    python book/tools/colab.py [--torch 2.13.0] [--python python3.11] [--skip-notebooks]

Makes _build/colab, an environment with the versions of tests/colab.json (on Python 3.13 where it is
to be had), installs the package into it as the first cell of a notebook does, and ends with status
1 if that replaced anything that was there. Then every notebook runs in the smoke profile. Results
and adapters, which a notebook without the repository fetches from the public address, are put where
they are kept once fetched: those of this checkout need not be published yet.
``--torch``: another version than Colab's, where only that is to be had as a CPU build.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys

from notebook_files import ROOT
from progress import run

from xb_lite.files import cache_folder

HOME = ROOT / "_build" / "colab"
COLAB = json.loads((ROOT / "tests" / "colab.json").read_text())
OWN = ("results", "artifacts")  # as ``files.own_file`` names them
# Of Colab, too, but of no version that matters here: what a notebook runs in.
BESIDES = [
    *("ipykernel", "ipywidgets", "nbclient", "nbformat"),
    *("matplotlib", "scikit-learn", "pandas", "openai"),
]


def frozen(interpreter):
    """Every installed package and its version."""
    listed = subprocess.run(
        [interpreter, "-m", "pip", "list", "--format=json"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return {package["name"].lower(): package["version"] for package in json.loads(listed)}


def replaced(before, after):
    """What an installation changed of what was there, a line each."""
    return [
        f"{name} was {version} and is {after.get(name, 'gone')}"
        for name, version in sorted(before.items())
        if after.get(name) != version and name not in ("pip", "setuptools", "wheel")
    ]


def answers(python):
    """Whether there is such a Python, and not only a version manager's name for it."""
    if not shutil.which(python):
        return False
    return subprocess.run([python, "--version"], capture_output=True).returncode == 0


def cache_with_own_files(place):
    """A cache with the models of the usual one, and with this repository's results and adapters."""
    place.mkdir()
    if cache_folder().is_dir():
        for entry in cache_folder().iterdir():
            if entry.name not in OWN:
                (place / entry.name).symlink_to(entry)
    for name in OWN:
        shutil.copytree(ROOT / name, place / name)
    return place


def main(arguments=None):
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--torch", metavar="VERSION", default=COLAB["packages"]["torch"])
    options.add_argument("--python", metavar="NAME", default=f"python{COLAB['python']}")
    options.add_argument("--skip-notebooks", action="store_true")
    chosen = options.parse_args(arguments)
    wanted = {**COLAB["packages"], "torch": chosen.torch}
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.parent.mkdir(exist_ok=True)
    python = chosen.python if answers(chosen.python) else sys.executable
    if python != chosen.python:
        print(f"{chosen.python} cannot be started: {sys.executable} in its place.")
    subprocess.run([python, "-m", "venv", str(HOME)], check=True)
    interpreter = str(HOME / "bin" / "python")
    pins = [f"{name}=={version}" for name, version in wanted.items()]
    install = [interpreter, "-m", "pip", "install", "--quiet"]
    if status := run([*install, *pins, *BESIDES], "installing what Colab has"):
        return status
    before = frozen(interpreter)
    if status := run([*install, str(ROOT)], "installing the package, as a notebook does"):
        return status
    after = frozen(interpreter)
    lines = replaced(before, after)
    for line in lines:
        print(line)
    print(f"Colab of {COLAB['image']}, {python}, torch {wanted['torch']}: ", end="")
    print(f"{len(before)} packages there, {len(lines)} replaced, {len(after) - len(before)} added")
    if lines or chosen.skip_notebooks:
        return bool(lines)
    execute = [interpreter, str(ROOT / "book" / "tools" / "execute.py")]
    into = ["--into", "_build/colab_smoke", "--profile", "smoke"]
    kept = {**os.environ, "XB_LITE_CACHE": str(cache_with_own_files(HOME / "cache"))}
    return subprocess.run([*execute, *into], cwd=ROOT, env=kept).returncode


if __name__ == "__main__":
    sys.exit(main())
