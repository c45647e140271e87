"""
The machine's limit: the largest rate at which it multiplies matrices, sustained.

Tried are the model's own four shapes and a large square, with few and many rows, in each form that the machine has. The quickest few of a short
trial are then measured for longer.

In:  a device, a precision, a model's shapes      Out: operations a second
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from nv_embed_sidecar.engines import kernels
from torch import Tensor
from torch.nn import functional

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROWS = {"cpu": (512, 2048), "cuda": (2048, 8192, 16384)}
SQUARE = {"cpu": 2048, "cuda": 8192}
TRIAL_S = 0.1
SUSTAINED_S = 0.5
FINALISTS = 3

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Gemm:
    """One product of matrices, [rows, width] by [width, height].

    Attributes:
        form: whose product it is.
    """

    form: str
    rows: int
    width: int
    height: int
    product: Product
    x: Tensor

    def __str__(self) -> str:
        return f"{self.form}, {self.rows} x {self.width} x {self.height}"

    @torch.inference_mode()
    def rate(self, seconds: float) -> float:
        """Operations a second, over that time at least."""
        self.product(self.x)
        done, lasted, at_once = 0, 0.0, 1
        while lasted < seconds:
            begun = _now(self.x.device)
            for _ in range(at_once):
                self.product(self.x)
            step = _now(self.x.device) - begun
            done, lasted = done + at_once, lasted + step
            at_once = min(2 * at_once, 64)
        return done * 2 * self.rows * self.width * self.height / lasted


def quickest(device: str, precision: str, matrices: Sequence[tuple[int, int]]) -> list[Gemm]:
    """The `FINALISTS` products with the largest rates in a short trial, the best first."""
    square = SQUARE[device]
    shapes = [(rows, *matrix) for rows in ROWS[device] for matrix in {*matrices, (square, square)}]
    tried = [(gemm.rate(TRIAL_S), gemm) for shape in shapes for gemm in _forms(device, precision, *shape)]
    return [gemm for _, gemm in sorted(tried, key=lambda each: -each[0])[:FINALISTS]]


def sustained(finalists: Sequence[Gemm]) -> float:
    """The largest rate that one of them keeps up."""
    return max(gemm.rate(SUSTAINED_S) for gemm in finalists)


@torch.inference_mode()
def _forms(device: str, precision: str, rows: int, width: int, height: int) -> Iterator[Gemm]:
    if precision == "int8":
        yield from _int8_forms(rows, width, height)
        return
    x = torch.randn(rows, width, device=device).to(TYPES[precision])
    weight = torch.randn(height, width, device=device).to(TYPES[precision])
    yield Gemm("PyTorch", rows, width, height, lambda x: functional.linear(x, weight), x)
    if device == "cpu" and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        yield Gemm("oneDNN, weight laid out", rows, width, height, lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""), x)
    if kernels.serve(x):
        yield Gemm("this engine", rows, width, height, partial(kernels.Weight(weight, None).product, finish=kernels.PLAIN), x)


def _int8_forms(rows: int, width: int, height: int) -> Iterator[Gemm]:
    """Products of unsigned with signed bytes, scaled to float32."""
    x = torch.randint(0, 128, (rows, width), dtype=torch.uint8)
    weight = torch.randint(-64, 64, (height, width), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, [rows, width])
    scales, zeros = torch.full((height,), 0.01), torch.zeros(height, dtype=torch.int32)

    def product(x: Tensor) -> Tensor:
        made: Tensor = torch.ops.onednn.qlinear_pointwise(x, 0.02, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")
        return made

    yield Gemm("oneDNN, weight laid out", rows, width, height, product, x)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
