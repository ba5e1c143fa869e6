"""A server of somebody else's, run for the tests that talk to it."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing, contextmanager


def free_port():
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def serving(command, port, health, log, **settings):
    """``python -m command`` until ``health`` answers at this port; ended afterwards."""
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--port", str(port)],
            env={**os.environ, **settings},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + 200
        while not is_up(f"http://127.0.0.1:{port}{health}"):
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
            time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


def is_up(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False
