"""Name a release everywhere, or take the names back: a version, and addresses by tag, not by main.

    python book/tools/release.py 1.0.0           # before the commit that is tagged v1.0.0
    python book/tools/release.py --main          # in the commit after it
    python book/tools/release.py --check v1.0.0  # whether all of it is as that tag needs it

A reader who opens a release on Colab, Kaggle or Binder then gets the package, the notebooks, the
results and the adapters of that release. Recorded outputs stay valid: a notebook's digest leaves
the tag out. On main the version stays that of the last release.
"""

import argparse
import re
import sys
from datetime import date
from pathlib import Path

from notebook_files import ROOT, notebooks, write_whole

MAIN = "main"
INSTALL = re.compile(r"(git\+https://github\.com/[\w.-]+/[\w-]+)(?:@v[\w.]+)?(?=\\?\")")
BLOB = re.compile(
    r"(colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/)[\w.]+(?=/notebooks/)"
)
FORM = re.compile(r"\d+\.\d+\.\d+(?:rc\d+)?")


def named(text, place, revision, version, day):
    """The text of a file of the repository as it is in a release, or on main."""
    if place.endswith(".ipynb"):
        tag = "" if revision == MAIN else f"@{revision}"
        return INSTALL.sub(rf"\g<1>{tag}", text)
    if place == "README.md":
        tag = "" if revision == MAIN else f"@{revision}"
        return INSTALL.sub(rf"\g<1>{tag}", BLOB.sub(rf"\g<1>{revision}", text))
    if place == "book/_config.yml":
        return re.sub(r"^(  branch: ).*$", rf"\g<1>{revision}", text, flags=re.M)
    if place == "xb_lite/files.py":
        return re.sub(r'^REVISION = "[^"]*"', f'REVISION = "{revision}"', text, flags=re.M)
    if version and place == "pyproject.toml":
        return re.sub(r'^version = "[^"]*"', f'version = "{version}"', text, count=1, flags=re.M)
    if version and place == "CITATION.cff":
        text = re.sub(r"^version: .*$", f"version: {version}", text, flags=re.M)
        return re.sub(r"^date-released: .*$", f'date-released: "{day}"', text, flags=re.M)
    return text


def places(root):
    """The files that name a version or a revision."""
    fixed = ("README.md", "book/_config.yml", "xb_lite/files.py", "pyproject.toml", "CITATION.cff")
    found = [path.relative_to(root).as_posix() for path in notebooks(Path(root) / "notebooks")]
    return [*fixed, *found]


def changed(root, revision, version, day):
    """Every file that would be another one, with its new text."""
    found = {}
    for place in places(root):
        text = (Path(root) / place).read_text(encoding="utf-8")
        new = named(text, place, revision, version, day)
        if new != text:
            found[place] = new
    return found


def main(arguments=None, root=ROOT):
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = options.add_mutually_exclusive_group(required=True)
    what.add_argument("version", nargs="?", help="as in 1.0.0")
    what.add_argument("--main", action="store_true", help="back to the newest of everything")
    what.add_argument("--check", metavar="TAG", help="as in v1.0.0; changes nothing")
    chosen = options.parse_args(arguments)
    version = chosen.version or (chosen.check or "").removeprefix("v") or None
    if version and not FORM.fullmatch(version):
        print(f"{version!r} is no version of the form 1.0.0 or 1.0.0rc1.", file=sys.stderr)
        return 1
    revision = f"v{version}" if version else MAIN
    day = date.today().isoformat()
    if chosen.check:  # whatever its day is
        citation = (Path(root) / "CITATION.cff").read_text(encoding="utf-8")
        day = re.search(r'^date-released: "(.*)"$', citation, re.M).group(1)
    found = changed(root, revision, version, day)
    if chosen.check:
        for place in found:
            print(f"{place} is not as {chosen.check} needs it", file=sys.stderr)
        return 1 if found else 0
    for place, text in found.items():
        write_whole(Path(root) / place, text)
        print(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
