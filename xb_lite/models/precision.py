"""Which numbers a model computes in, on the machine at hand.

The residual stream of a small chat model is long (norms of hundreds, one token of 25,000), and what
the chapters measure are small changes of it. So on a CPU the weights and the residual stream stay
in fp32 and only the matrix products run in bf16; ``book/number_formats.md`` shows what goes wrong
otherwise.
"""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

BATCH = "so that a batch does not change a reply"
SWITCH = "XB_BF16"  # 0: a CPU with bf16 computes as one without


@dataclass(frozen=True)
class Precision:
    """Number formats of one run: printed by every notebook, recorded with every result.

    ``weights`` is the dtype of the parameters, ``products`` that of matrix products where it
    differs (through ``torch.autocast``), ``device`` where both live, ``reason`` one phrase for the
    reader.
    """

    device: str
    weights: torch.dtype
    products: torch.dtype | None
    reason: str

    def autocast(self) -> AbstractContextManager:
        """The context to run a model in: ``with precision.autocast(): model(...)``."""
        if self.products is None:
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=self.products)

    def __str__(self) -> str:
        def name(dtype: torch.dtype) -> str:
            return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[str(dtype)[6:]]

        products = f", matrix products in {name(self.products)}" if self.products else ""
        return f"{name(self.weights)} weights{products} on {self.device} ({self.reason})"


def choose_precision(
    device: str | None = None, exact: bool = False, parameters: int | None = None
) -> Precision:
    """The precision this book uses on ``device`` (default: the first GPU, else the CPU).

    fp32 weights under bf16 autocast on CPUs with bf16 instructions, fp32 on other CPUs; fp16 on
    GPUs before Ampere such as the T4, bf16 from Ampere on. With ``exact``, fp32 on a CPU: slower,
    but then what a model says to one prompt does not depend on the others in its batch. With
    ``XB_BF16=0`` in the environment every CPU computes in fp32, so that a machine with bf16 repeats
    what was run on one without.

    Args:
        parameters: of the model. One whose fp32 weights take no more than an eighth of a GPU's
            memory is computed in as on a CPU (before Ampere all in fp32), so that the numbers
            compare.

    Raises:
        ValueError: ``device`` is neither a CPU nor a CUDA device that is present, or ``XB_BF16`` is
            neither 0 nor 1.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if _is_gpu(device):
        return _on_gpu(device, exact, parameters)
    if exact:
        return Precision("cpu", torch.float32, None, BATCH)
    if not _bf16_wanted():
        return Precision("cpu", torch.float32, None, f"{SWITCH} is 0")
    instruction = _cpu_bf16_instruction()
    if instruction is None:
        return Precision("cpu", torch.float32, None, "no fast bf16 on this CPU")
    return Precision("cpu", torch.float32, torch.bfloat16, f"this CPU has {instruction}")


def _is_gpu(device: str) -> bool:
    """Whether it is a CUDA device that is present; raises ValueError if it is no CPU either."""
    try:
        kind, index = torch.device(device).type, torch.device(device).index or 0
    except RuntimeError:  # torch knows no device of this name
        kind, index = None, 0
    if kind == "cuda" and torch.cuda.is_available() and index < max(1, torch.cuda.device_count()):
        return True
    if kind != "cpu":
        raise ValueError(f"device {device!r} is not available here; use 'cpu' or a CUDA device.")
    return False


def _on_gpu(device: str, exact: bool, parameters: int | None) -> Precision:
    native = torch.cuda.get_device_capability(device) >= (8, 0)
    memory = torch.cuda.get_device_properties(device).total_memory
    if parameters is not None and 4 * parameters <= memory / 8:
        products = torch.bfloat16 if native and not exact else None
        return Precision(device, torch.float32, products, BATCH if exact else "the model is small")
    if native:
        return Precision(device, torch.bfloat16, None, "this GPU has native bf16")
    return Precision(device, torch.float16, None, "this GPU has fp16 but no native bf16")


def _bf16_wanted() -> bool:
    said = os.environ.get(SWITCH, "1")
    if said not in ("0", "1"):
        raise ValueError(f"{SWITCH} is {said!r}: set it to 0 for fp32, or to 1.")
    return said == "1"


def _cpu_bf16_instruction() -> str | None:
    if platform.system() == "Darwin":  # Apple's BLAS multiplies fp32 faster than bf16
        return None
    # Newer torch only; on an older one a CPU counts as one without bf16: slower, never wrong.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    known = ("amx_bf16", "avx512_bf16", "bf16")
    return next((name for name in known if capabilities.get(name)), None)
