"""Make or mend .venv, the environment that every make target runs in.

Standard library only, and readable by old Pythons, so that it can say what is missing. The
stamp .venv/.ready is written last. An environment without it was interrupted and is made anew;
one whose stamp is older than pyproject.toml or constraints.txt is brought up to date in place.
"""

import os
import shutil
import subprocess
import sys
import time

OLDEST, TOO_NEW = (3, 11), (3, 14)


def version():
    return "{}.{}".format(*sys.version_info[:2])


def missing():
    """One sentence for the first thing that is missing, or None."""
    if not OLDEST <= sys.version_info[:2] < TOO_NEW:
        return (
            f"This book needs Python 3.11, 3.12 or 3.13; {sys.executable} is {version()}: "
            "run make again with PYTHON=python3.11, for example."
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return (
            "This Python has no venv module: install it (on Debian and Ubuntu the package is "
            f"python{version()}-venv) and run make again."
        )
    if shutil.which("git") is None:
        return "The command git is missing: install it and run make again."
    return None


def is_fresh(stamp, inputs):
    return os.path.exists(stamp) and all(
        os.path.getmtime(stamp) >= os.path.getmtime(i) for i in inputs
    )


def works(python):
    """An interpreter that was upgraded or moved leaves links that no longer start."""
    return (
        os.path.exists(python)
        and subprocess.call([python, "-c", "import pip"], stderr=subprocess.DEVNULL) == 0
    )


def prepare(root, folder):
    from locks import lock
    from progress import run

    stamp = os.path.join(folder, ".ready")
    inputs = [os.path.join(root, name) for name in ("pyproject.toml", "constraints.txt")]
    python = os.path.join(folder, "bin", "python")
    start = time.monotonic()
    with lock(
        os.path.join(root, "_build", "environment.lock"), "installing packages into .venv"
    ) as held:
        if is_fresh(stamp, inputs) and works(python):
            print("environment: .venv is ready, nothing to install")
            return 0
        if os.path.exists(stamp) and works(python):
            print("environment: pyproject.toml or constraints.txt changed, updating .venv in place")
            os.remove(stamp)
        else:
            if os.path.exists(folder):
                print("environment: .venv is not complete, making it anew")
                shutil.rmtree(folder)
            else:
                print("environment: making .venv (once; several minutes, most of them downloads)")
            status = run([sys.executable, "-m", "venv", folder], "making .venv", pass_fds=(held,))
            if status:
                return status
        # A relative path with extras: pip takes it from the working folder.
        install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        install += ["--no-compile"]  # most files are never imported; the others are compiled then
        install += ["-c", "constraints.txt", "-e", ".[book,test,baselines]"]
        status = run(install, "installing packages", pass_fds=(held,))
        if status:
            print(f"environment: pip ended with status {status}; book/errors.md has usual causes")
            return status
        with open(stamp, "w") as file:
            file.write(f"made by Python {version()}\n")
        print(f"environment: ready after {time.monotonic() - start:.0f} s")
    return 0


def main():
    problem = missing()
    if problem:
        print(problem, file=sys.stderr)
        return 1
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    os.chdir(root)
    return prepare(root, os.path.join(root, ".venv"))


if __name__ == "__main__":
    sys.exit(main())
