"""Configs of accelerate for several GPUs, and a Slurm script that uses them."""

from pathlib import Path


def folder() -> Path:
    """Where they lie: ``ddp.yaml``, ``zero2.yaml``, ``zero3.yaml``, ``fsdp.yaml``,
    ``train.slurm``."""
    return Path(__file__).parent
