"""What a submission may do: limits that the system keeps, and an audit hook that ends the process.

The hook hears what Python itself does (files, sockets, processes, native code) before it happens.
It writes down what was tried and ends the process at once, so that nothing can be caught, retried
or taken apart. It says what an honest answer ran into, and stops what is tried in plain Python.

Compiled code that opens a file or starts a program by itself is not heard, and needs no fault for
that: ``torch.save``, ``torch.from_file`` and ``_posixsubprocess.fork_exec`` are such. Against that
stand the limits, and the walls of Linux where they are granted (``walls.py``).
"""

from __future__ import annotations

import os
import posix
import resource
import sys
from pathlib import Path

# Beginnings of the names of Python's audit events.
NETWORK = ("socket.", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.")
PROCESSES = (
    *("subprocess.", "pty.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn"),
    *("os.kill", "signal.pthread_kill"),
)
NATIVE = ("ctypes.dlopen", "ctypes.dlsym", "ctypes.call_function", "ctypes.string_at", "code.")
LOOSENED = ("resource.setrlimit", "resource.prlimit", "sys.addaudithook", "gc.get_")
READS = ("os.listdir", "os.scandir")
WRITES = (
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.link"),
    *("os.truncate", "os.utime", "os.setxattr", "os.removexattr"),
)
# What makes a path lead elsewhere than it says, and what opens files by itself.
ELSEWHERE = {
    "os.symlink": "makes a link",
    "os.chdir": "leaves its folder",
    "sqlite3.connect": "opens a database",
}
DEVICES = ("/dev/null", "/dev/urandom")
OF_THE_SYSTEM = ("/proc/cpuinfo", "/proc/meminfo", "/proc/self/status", "/proc/self/maps")


def limit(seconds: int, memory: int, file_size: int = 1 << 24) -> None:
    """Bound this process for good: CPU seconds, and bytes of memory on top of what it has now.

    Linux alone counts memory this way; elsewhere only time and the size of files are bounded.
    """
    bounds = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_FSIZE: file_size}
    bounds[resource.RLIMIT_CORE] = 0
    status = Path("/proc/self/statm")
    if status.exists():
        now = int(status.read_text().split()[0]) * resource.getpagesize()
        bounds[resource.RLIMIT_AS] = now + memory
    for what, most in bounds.items():
        # At the hard limit of time Linux kills at once; a second below it comes a signal.
        resource.setrlimit(what, (most, most + (what == resource.RLIMIT_CPU)))


def guard(
    channel: int, *, scratch: str, readable: tuple[str, ...], denied: tuple[str, ...]
) -> None:
    """Listen from here on; what is not allowed is written to ``channel`` and ends this process.

    Args:
        channel: a file descriptor; a line ``hostile: …`` says what was tried.
        scratch: the working folder, and the one in which files may be written.
        readable: folders that may be read although they lie in one of ``denied``.
        denied: folders that may not be read. All are absolute, with symbolic links resolved.
    """
    sys.addaudithook(_hook(channel, scratch, readable, denied))


def _hook(channel, scratch, readable, denied):
    # All names below are local: a submission can replace those of modules and of builtins.
    text, raw, whole, is_a = str, bytes, int, isinstance
    end, send, stat, readlink = posix._exit, posix.write, posix.stat, posix.readlink
    begins, split, join = str.startswith, str.split, str.join
    encode, decode, swap = str.encode, bytes.decode, str.replace
    network, processes, native, loosened = NETWORK, PROCESSES, NATIVE, LOOSENED
    reads, writes, elsewhere, fails = READS, WRITES, dict(ELSEWHERE), OSError
    always = (scratch, *DEVICES, *map(os.path.realpath, OF_THE_SYSTEM), *readable)
    devices, newline = DEVICES, "\n"
    changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def stop(what):
        send(channel, encode(f"hostile: {swap(what, newline, ' ')}\n", "utf-8", "backslashreplace"))
        end(3)

    def plain(path):
        """A plain string, whatever class it had."""
        if is_a(path, raw):
            path = decode(path, "utf-8", "surrogateescape")
        return join("", (path, ""))

    def absolute(path):
        path = plain(path)
        return path if begins(path, "/") else f"{scratch}/{path}"

    def real(path):
        """Where an absolute path leads: ``/dev/fd/..`` is not ``/dev``."""
        waiting, found, links = split(path, "/"), [], 0
        while waiting:
            part, *waiting = waiting
            if part == "..":
                found = found[:-1]
            elif part not in ("", "."):
                step = [*found, part]
                try:
                    target = readlink("/" + join("/", step))
                except fails:  # no link
                    found = step
                    continue
                links += 1
                if links > 40:  # as Linux
                    stop("follows links without end")
                waiting = [*split(target, "/"), *waiting]
                if begins(target, "/"):
                    found = []
        return "/" + join("/", found)

    def inside(path, folders):
        for folder in folders:
            if path == folder or begins(path, folder if folder == "/" else f"{folder}/"):
                return True
        return False

    def read(path):
        if is_a(path, (text, raw)):
            path = absolute(path)
            if inside(path, readable) and ".." not in split(path, "/"):
                return  # links there were not made by the submission
            path = real(path)
            if not inside(path, always) and inside(path, (*denied, "/proc")):
                stop(f"reads {path}")

    def write(path):
        if is_a(path, (text, raw)):
            path = real(absolute(path))
            if not inside(path, (scratch, *devices)):
                stop(f"writes {path}")

    def start_there(path):
        """``os.open``: a folder outside can be where a later path starts (``dir_fd``), and the
        event of that path does not name it."""
        if is_a(path, (text, raw)) and not inside(real(absolute(path)), (scratch,)):
            try:
                is_folder = stat(absolute(path)).st_mode & 0o170000 == 0o040000
            except fails:  # it cannot be opened either
                is_folder = False
            if is_folder or not begins(plain(path), "/"):
                stop(f"reads {real(absolute(path))}")

    def hook(event, arguments):
        if event == "open":
            path, mode, flags = arguments
            if not is_a(path, (text, raw, whole)):  # it may say another path each time it is asked
                stop("opens a path that is not text")
            writing = is_a(flags, whole) and flags & changing
            writing = writing or (is_a(mode, text) and ("w" in mode or "a" in mode or "+" in mode))
            (write if writing else read)(path)
            if mode is None:
                start_there(path)
        elif begins(event, reads):
            read(scratch if not arguments or arguments[0] is None else arguments[0])
        elif event in elsewhere:
            stop(elsewhere[event])
        elif begins(event, writes):
            for path in arguments:
                write(path)
        elif event == "import":
            if is_a(arguments[1], text) and inside(real(absolute(arguments[1])), (scratch,)):
                stop("loads native code of its own")
        elif begins(event, network):
            if event != "socket.gethostname":
                stop(f"uses the network ({event})")
        elif begins(event, processes):
            stop(f"starts or ends a process ({event})")
        elif begins(event, native):
            stop(f"calls native code ({event})")
        elif begins(event, loosened):
            stop(f"loosens its limits ({event})")

    return hook
