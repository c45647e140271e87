"""
Where tensors live and how wide their numbers are.
"""

from dataclasses import dataclass

import torch

from nv_embed.errors import InvalidInput

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TorchDevice:
    """A device, the numbers on it, and the cores for arithmetic that runs on the CPU."""

    device: torch.device
    precision: str
    threads: int

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]


def has_gpu() -> bool:
    return torch.cuda.is_available()


def choose(device: str, precision: str, threads: int) -> TorchDevice:
    """The device that was asked for; `auto` is the GPU where there is one, and half precision only there.

    Raises:
        InvalidInput: a GPU was asked for and there is none.
    """
    torch.set_num_threads(threads)
    cuda = has_gpu()
    if device == "cuda" and not cuda:
        raise InvalidInput("there is no CUDA device", hint="use --device cpu, or check the driver with nvidia-smi")
    chosen = "cuda" if cuda and device != "cpu" else "cpu"
    return TorchDevice(torch.device(chosen), ("bf16" if chosen == "cuda" else "fp32") if precision == "auto" else precision, threads)
