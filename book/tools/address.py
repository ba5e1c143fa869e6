"""Give the repository another public address, everywhere it is named: `make address URL=…`.

The address until now is the one in pyproject.toml, and what is rewritten are the text files that
git tracks: the repository's own address, those of Colab and of raw files, and that of the pages,
https://OWNER.github.io/REPO/. Of a notebook only the sources of its cells change, as text in the
JSON; its outputs stay. A notebook whose code changed must be run again, with `make notebooks`:
its recorded outputs belong to the code as it was. The old address gives back the same bytes, if
no file named the new one before.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FORM = re.compile(r"https://github\.com/([A-Za-z0-9]+(?:-[A-Za-z0-9]+)*)/([\w.-]+)", re.ASCII)
# An escaped quote has a backslash before it, so this finds keys only.
SOURCE = re.compile(r'(?<!\\)"source"\s*:\s*')


def owner_and_name(url):
    """The two parts of an address.

    Raises:
        ValueError: it has another form, or its pages would lie elsewhere.
    """
    found = FORM.fullmatch(url)
    if not found or found[2].endswith(".git") or not found[2].strip("."):
        raise ValueError(f"{url!r} is not of the form https://github.com/NAME/REPO.")
    if found[2].lower().endswith(".github.io"):
        raise ValueError(f"{url} would have its pages at another address: give another name.")
    return found.groups()


def replaced(text, old, new):
    """``text`` with the addresses of ``new`` for those of ``old``; each is (owner, name)."""
    owner, name = map(re.escape, old)
    end = r"(?![\w-]|\.(?!git\b)\w)"  # not the beginning of a longer name
    # git clones into a folder of the repository's name
    clone = rf"(git clone https://github\.com/){owner}/{name}( && cd ){name}{end}"
    text = re.sub(clone, lambda m: f"{m[1]}{'/'.join(new)}{m[2]}{new[1]}", text)
    place = rf"(\bgithub(?:usercontent)?\.com[/:](?:repos/)?|/github/){owner}/{name}{end}"
    text = re.sub(place, lambda m: m[1] + "/".join(new), text)
    pages = rf"(?<![\w.-]){owner}\.github\.io/{name}{end}"
    return re.sub(pages, lambda m: f"{new[0]}.github.io/{new[1]}", text)


def in_sources(text, old, new):
    """A notebook's text with other addresses in its sources; and whether in those of code."""
    parts, done = [], 0
    for key in SOURCE.finditer(text):
        _, end = json.JSONDecoder().raw_decode(text, key.end())
        parts += [text[done : key.end()], replaced(text[key.end() : end], old, new)]
        done = end
    after = "".join([*parts, text[done:]])
    cells = zip(json.loads(text)["cells"], json.loads(after)["cells"], strict=True)
    return after, any(a != b for a, b in cells if a["cell_type"] == "code")


def readdress(url, root=ROOT):
    """Rewrite the tree; returns the changed files and the notebooks to run again, by name.

    Raises:
        ValueError: the address is not of the right form, or the folder is no checkout of git.
    """
    root = Path(root)
    new = owner_and_name(url)
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    old = owner_and_name(project["urls"]["Repository"])
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True)
    if listed.returncode:
        raise ValueError("git does not list the files here: clone the repository with git.")
    changed, stale = [], []
    # pyproject.toml comes last: until then it says what to look for, if a run is stopped.
    names = filter(None, listed.stdout.decode().split("\0"))
    for name in sorted(names, key=lambda name: (name == "pyproject.toml", name)):
        path = root / name
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        if old[0].encode() not in data:
            continue
        try:
            text = data.decode()
        except UnicodeDecodeError:
            continue  # weights of a model
        if path.suffix == ".ipynb":
            after, code = in_sources(text, old, new)
            stale += [name] if code else []
        else:
            after = replaced(text, old, new)
        if after != text:
            path.write_bytes(after.encode())  # in place: the file keeps its mode
            changed.append(name)
    return changed, stale


def main(arguments):
    if len(arguments) != 1 or not arguments[0]:
        print("Say which address: make address URL=https://github.com/NAME/REPO", file=sys.stderr)
        return 2
    try:
        changed, stale = readdress(arguments[0])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(*changed or ["Nothing to change."], sep="\n")
    if stale:
        print(f"The code of {len(stale)} notebooks changed: run make notebooks.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
