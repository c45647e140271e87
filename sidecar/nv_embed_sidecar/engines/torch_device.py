"""
Where tensors live, how wide their numbers are, and which kernel multiplies them.

On the CPU half precision is used where it is quicker, which is measured: processors without instructions for it are slower with it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nv_embed.errors import InvalidInput
from nv_embed_sidecar.engines import fused, kernels
from nv_embed_sidecar.engines.linear import CompiledLinear, Fp8Linear, FusedGated, Gated, Int8Linear, Linear, OneDnnLinear, PlainLinear, has_onednn
from nv_embed_sidecar.engines.packing import Packed, pack
from nv_embed_sidecar.pooling import MEAN, POOLINGS

Pooling = Callable[[Tensor, Tensor], Tensor]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
QUANTIZED = {"int8": "cpu", "fp8": "cuda"}
"""Precisions of the products alone, and the device whose units they are for; all else is in half precision."""
ROWS_ON_CPU = 16
"""Rows of a packed batch are filled up to a multiple of it: oneDNN makes a kernel for each number of rows, and a single row is another's work."""

LEAST_ROWS_ON_CUDA = 256
"""Of a packed batch: cuBLAS computes fewer by kernels that add up in another order, which changes the last digits and gains next to nothing."""

TRIAL_WIDTH = 512
TRIAL_ROWS = 64
TRIAL_ROUNDS = 5
TRIAL_ERROR = 0.05


@dataclass(frozen=True)
class TorchDevice:
    """A device, the numbers on it, and the cores for arithmetic that runs on the CPU."""

    device: torch.device
    precision: str
    threads: int

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES.get(self.precision, torch.bfloat16)

    @property
    def compiled(self) -> bool:
        """Whether products are our own kernels'."""
        return self.device.type == "cpu" and self.precision == "bf16" and kernels.level() != kernels.NONE

    @property
    def fused(self) -> bool:
        """Whether what lies between products is our own kernels'."""
        return fused.serve(self.device, self.dtype)

    @property
    def recordable(self) -> bool:
        """Whether all that a model does depends on what a batch holds by what lies on the device, so that it can be recorded and played."""
        return self.device.type == "cuda" and self.dtype == torch.bfloat16

    def rows(self, tokens: int) -> int:
        """As many as this device's products want for so many tokens."""
        if self.device.type == "cuda":
            return max(tokens, LEAST_ROWS_ON_CUDA)
        return tokens if self.compiled else -(-tokens // ROWS_ON_CPU) * ROWS_ON_CPU

    def pack(self, batch: Sequence[Sequence[int]]) -> Packed:
        return pack(batch, self.device, self.rows(sum(map(len, batch))))

    def tensor(self, stored: Tensor) -> Tensor:
        """A tensor of a checkpoint, copied here: one mapped from a file is not aligned, which is slower and changes the last digits."""
        return stored.to(self.device, self.dtype, copy=True)

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """The product with a weight of a checkpoint, [out, in], and a bias, [out]."""
        moved = None if bias is None else self.tensor(bias)
        if self.precision == "int8":
            return Int8Linear(weight.to(self.device), moved)
        if self.precision == "fp8":
            return Fp8Linear(weight.to(self.device), moved, self.fused)
        unquantized = CompiledLinear if self.compiled else OneDnnLinear if self.device.type == "cpu" and has_onednn() else PlainLinear
        return unquantized(self.tensor(weight), moved)

    def gated(self, gate: Tensor, up: Tensor) -> Gated | FusedGated:
        """silu of the product with one weight of a checkpoint, times the product with another, each [out, in]."""
        return FusedGated(self.linear(torch.cat((gate, up)))) if self.fused else Gated(self.linear(gate), self.linear(up))

    def pooling(self, name: str) -> Pooling:
        """The way from hidden states to vectors that `pooling.py` calls so."""
        if name == MEAN and self.fused:
            mean: Pooling = fused.kernels().mean
            return mean
        return POOLINGS[name]


def has_gpu() -> bool:
    return torch.cuda.is_available()


def choose(device: str, precision: str, threads: int) -> TorchDevice:
    """The device and precision that were asked for; `auto` is the GPU where there is one, and half precision where it is quicker.

    Raises:
        InvalidInput: a GPU was asked for and there is none, or it cannot compute so.
    """
    torch.set_num_threads(threads)
    cuda = has_gpu()
    if device == "cuda" and not cuda:
        raise InvalidInput("there is no CUDA device", hint="use --device cpu, or check the driver with nvidia-smi")
    chosen = torch.device("cuda" if cuda and device != "cpu" else "cpu")
    if QUANTIZED.get(precision, chosen.type) != chosen.type:
        raise InvalidInput(
            f"there is no {precision} on {chosen.type}, but on {QUANTIZED[precision]}", hint="leave --precision out to have it chosen by the device"
        )
    if precision == "auto":
        precision = "bf16" if _prefers_bf16(chosen, threads) else "fp32"
    here = TorchDevice(chosen, precision, threads)
    if not can_compute(here):
        raise InvalidInput(f"this {chosen.type} cannot compute in {precision}", hint="leave --precision out to have it chosen by the device")
    # Half precision may be wanted for its memory; 8-bit products cost recall, and are for speed alone.
    if precision == "int8" and not _is_quicker("int8", "fp32", threads, TRIAL_ROWS):
        raise InvalidInput("int8 is slower than fp32 on this processor", hint="leave --precision out to have it chosen by the device")
    return here


def _prefers_bf16(device: torch.device, threads: int) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _is_quicker("bf16", "fp32", threads)


@torch.inference_mode()
def can_compute(here: TorchDevice) -> bool:
    """Whether products come out right: some processors have no instructions for a precision, and some overflow in it without a word."""
    weight = torch.linspace(1.0, 0.7, TRIAL_WIDTH**2).view(TRIAL_WIDTH, -1)
    x = torch.linspace(0.7, 1.0, TRIAL_ROWS * TRIAL_WIDTH).view(TRIAL_ROWS, -1)
    expected = x @ weight.t()
    try:
        found = here.linear(weight)(here.tensor(x)).float().cpu()
    except RuntimeError:
        return False
    return float((found - expected).norm()) < TRIAL_ERROR * float(expected.norm())


@torch.inference_mode()
def _is_quicker(one: str, other: str, threads: int, rows: int = TRIAL_WIDTH) -> bool:
    """Whether a core multiplies in one precision more quickly than in another: of a batch, each core has texts of its own."""
    seconds = {}
    for precision in (one, other):
        here = TorchDevice(torch.device("cpu"), precision, threads)
        if not can_compute(here):
            return precision == other
        product, x = here.linear(torch.ones(TRIAL_WIDTH, TRIAL_WIDTH)), here.tensor(torch.ones(rows, TRIAL_WIDTH))
        seconds[precision] = min(_seconds(product, x) for _ in range(TRIAL_ROUNDS))
    return seconds[one] < seconds[other]


def _seconds(product: Linear, x: Tensor) -> float:
    """What one core takes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    product(x)
    seconds = time.perf_counter() - begun
    torch.set_num_threads(threads)
    return seconds
