"""Walls of Linux round the files: a tree in which nothing of yours is there and nothing is written.

What runs in them, compiled code and other programs included, can neither leave nor undo them.
Python has no ``mount``, so that the calls go to the C library. This file runs without the package.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from collections.abc import Iterable

# Of the system, with files or sockets of others: what they hold is not there either.
SHARED = ("/tmp", "/var/tmp", "/run", "/dev")
# What stays of a machine where "/" itself is to be covered.
SYSTEM = ("bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "nix", "opt", "proc")
SYSTEM += ("run", "sbin", "sys", "usr", "var")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
ROOM = "256m"  # of memory, for what a submission writes

# From <sys/mount.h>, <linux/mount.h>, <linux/prctl.h> and <linux/capability.h>.
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC = 2, 4, 1 << 12, 1 << 14
MOUNT_SETATTR = 442  # the same number on every architecture; since Linux 5.12
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
ATTR_RDONLY, ATTR_NOSUID = 1, 2
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
CAPABILITY_VERSION = 0x20080522


def enclose(*, scratch: str, readable: Iterable[str], denied: Iterable[str]) -> None:
    """Close this process in, for good, with all that it starts.

    It must be the first process of a process namespace, in a mount and, unless it is root, a user
    namespace of its own (``unshare``). Afterwards all is read-only; ``denied``, temporary folders,
    sockets and devices are covered by empty folders; processes outside are not to be seen; every
    privilege over the namespaces is gone. All paths are absolute, with symbolic links resolved.

    Args:
        scratch: becomes an empty folder in memory, the only one that can be written.
        readable: stays, even inside ``denied``.
        denied: folders that are covered.

    Raises:
        OSError: the system does not grant all of this; then nothing is to be run.
    """
    if os.getpid() != 1:  # as root it would cover the folders of the whole machine
        raise OSError(errno.EPERM, "walls need namespaces of their own (unshare)")
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
        texts = [os.fsencode(text) for text in (source, target, kind, data)]
        _done(libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]), target)

    kept = sorted(path for path in {*readable, *DEVICES} if os.path.exists(path))
    opened = {path: os.open(path, os.O_PATH) for path in kept}
    covered = sorted({*_below_root(denied), *map(os.path.realpath, SHARED)})
    for folder in filter(os.path.isdir, covered):  # one in another is gone with it
        mount("tmpfs", folder, "tmpfs", MS_NOSUID, "mode=755,size=1m")
    for path, there in opened.items():
        if any(_inside(path, folder) for folder in covered):
            _place(path, os.path.isdir(f"/proc/self/fd/{there}"))
            mount(f"/proc/self/fd/{there}", path, flags=MS_BIND | MS_REC)
    os.makedirs(scratch, exist_ok=True)
    for there in opened.values():
        os.close(there)  # each would be a way out
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV)
    _no_user_namespaces()
    _read_only(libc)
    mount("tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=700,size={ROOM}")
    os.chdir(scratch)
    _powerless(libc)


def _below_root(folders: Iterable[str]) -> set[str]:
    """These folders; in place of ``/`` those in it which do not belong to the system."""
    found = set(folders)
    if "/" in found:
        found |= {f"/{name}" for name in os.listdir("/") if name not in SYSTEM}
    return found - {"/"}


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _place(path: str, is_folder: bool) -> None:
    """Something to mount on."""
    os.makedirs(path if is_folder else os.path.dirname(path), exist_ok=True)
    if not is_folder and not os.path.exists(path):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


def _no_user_namespaces() -> None:
    """In another one there would be privileges again, over new mounts (control groups) at least.

    The number is that of the namespace made for this process, which has one user.
    """
    with open("/proc/self/uid_map") as file:
        users = file.read().split()[2]
    if users == "1":
        with open("/proc/sys/user/max_user_namespaces", "w") as file:
            file.write("0")


def _read_only(libc: ctypes.CDLL) -> None:
    changes = (ctypes.c_uint64 * 4)(ATTR_RDONLY | ATTR_NOSUID)  # set, clear, propagation, user
    size = ctypes.c_size_t(ctypes.sizeof(changes))
    _done(libc.syscall(MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, changes, size), "/")


def _powerless(libc: ctypes.CDLL) -> None:
    """No privilege over the namespaces, now or after starting another program."""
    _done(libc.prctl(PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))), "privileges")
    capability = 0
    while libc.prctl(PR_CAPBSET_DROP, *map(ctypes.c_ulong, (capability, 0, 0, 0))) == 0:
        capability += 1  # until there is none of this number
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    none = (ctypes.c_uint32 * 6)()
    _done(libc.capset(header, none), "capabilities")


def _done(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


if __name__ == "__main__":  # whether it can be done here
    enclose(**json.load(sys.stdin))
