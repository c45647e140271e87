"""
Whether our own kernels for a GPU can be had.

Triton comes with PyTorch for GPUs and for no other device, and wants a C compiler. Without either, PyTorch's own operations do the same, more slowly.

In:  a device      Out: the module `triton_kernels`
"""

import logging
from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from nv_embed_sidecar.engines.packing import pack

log = logging.getLogger(__name__)

WIDTHS = (16, 32, 64, 128)
"""Of a head, for the attention."""


@cache
def kernels() -> ModuleType:
    """The kernels.

    Raises:
        ImportError: there is no Triton.
    """
    return import_module("nv_embed_sidecar.engines.triton_kernels")


@cache
def serve(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels compute on this device in this precision."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return False
    try:
        _try_out(device)
    except Exception:
        log.exception("slower than this GPU could be, because kernels for it cannot be made")
        return False
    return True


def _try_out(device: torch.device) -> None:
    """Make the kernels that a model cannot do without.

    Raises:
        Exception: it cannot be done here.
    """
    packed = pack([[0, 0]], device)
    x = torch.ones(2, 3, 16, dtype=torch.bfloat16, device=device)
    angles = torch.ones(2, 8, device=device)
    kernels().rotate(x, packed.positions, angles, angles, 1, 1)
    attended = kernels().attend(x[:, :1], x[:, 1:2], x[:, 2:], packed)
    if not torch.isfinite(kernels().swiglu(attended)).all():
        raise FloatingPointError("its results are not finite")
