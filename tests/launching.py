"""Several processes of this machine that work together, as a launcher starts them."""

import os
import socket
import subprocess
import sys


def launch(words, processes=2, timeout=240, **environment):
    """Run ``python WORDS`` in so many processes at once. Started by what `accelerate launch` itself
    runs, whose --cpu starts one process whatever else it is told."""
    command = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command += ["--master_port", str(port)]
    return subprocess.run(
        [*command, *map(str, words)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
