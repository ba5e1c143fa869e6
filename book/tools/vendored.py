"""Files of other projects that pages load, so that no page asks another host for anything.

They come once from a wheel on the Python package index into the cache folder that the models use.
"""

import shutil
import tempfile
import zipfile
from pathlib import Path


def cached(name, version, wheel, inside, keep, drop=""):
    """The folder of the cache with these files of a wheel; fetched when it is not there yet.

    ``wheel`` has the fields of ``xb_lite.models.wheels.Wheel``. Of what lies under ``inside`` the
    files named in ``keep`` are kept, and what is in the folders named there (with a slash at their
    end), all without ``drop`` in front of their path. Raises ``FetchError`` where it cannot be had.
    """
    from xb_lite.files import cache_folder
    from xb_lite.models.wheels import Wheel, fetch_wheel

    folder = cache_folder() / f"{name.lower().removesuffix('.js')}-{version}"
    parts = [folder / part.removeprefix(drop) for part in keep]
    if all(part.exists() for part in parts):
        return folder
    print(f"fetching {name} {version} (once, {wheel['size'] / 1e6:.0f} MB)", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        fresh = Path(scratch) / name
        with zipfile.ZipFile(fetch_wheel(Wheel(**wheel), Path(scratch))) as archive:
            for member in archive.namelist():
                inner = member.removeprefix(inside)
                if inner == member or member.endswith("/") or not inner.startswith(keep):
                    continue
                target = fresh / inner.removeprefix(drop)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(member))
        # Whole or not at all; if another process was faster, its copy is as good.
        if not all(part.exists() for part in parts):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            fresh.rename(folder)
        except OSError:
            if not all(part.exists() for part in parts):
                raise
    return folder
