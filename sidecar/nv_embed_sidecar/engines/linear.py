"""
Weights times activations, by whatever is quickest on this device in this precision.

In:  a weight and a bias as the checkpoint has them      Out: a `Linear` that holds them as its kernel wants them
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from nv_embed_sidecar.engines import fused, kernels

ROWS = 256
"""Of a product that is computed at a time."""

SMALLEST = 1e-12
"""The least range that is scaled up: a row of zeros has none."""


class Linear(Protocol):
    """x @ weight.T + bias, and what the models do right behind it, so that a kernel can do both at once. x: [rows, in], results: [rows, out]."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def gelu(self, x: Tensor) -> Tensor: ...

    def silu(self, x: Tensor) -> Tensor: ...

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The product plus `other`, [rows, out], which may be overwritten with it."""
        ...

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The product times `other`, [rows, out], component by component."""
        ...


class Unfused:
    """A product, with what follows it as operations of their own."""

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def gelu(self, x: Tensor) -> Tensor:
        return functional.gelu(self(x))

    def silu(self, x: Tensor) -> Tensor:
        return functional.silu(self(x))

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x) + other

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x) * other


class PlainLinear(Unfused):
    """PyTorch's own product."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight, self._bias)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return super().plus(x, other) if self._bias is not None else other.addmm_(x, self._weight.t())


class CompiledLinear:
    """Our own kernels' product, for the CPU in half precision."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = kernels.Weight(weight, bias)

    def __call__(self, x: Tensor) -> Tensor:
        return self.weight.product(x, kernels.PLAIN)

    def gelu(self, x: Tensor) -> Tensor:
        return self.weight.product(x, kernels.GELU)

    def silu(self, x: Tensor) -> Tensor:
        return self.weight.product(x, kernels.SILU)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self.weight.product(x, kernels.PLUS, other)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return self.weight.product(x, kernels.TIMES, other)


class OneDnnLinear:
    """oneDNN's product for the CPU, with the weight laid out once for its kernel.

    A row of its result does not depend on the other rows, to the last bit, as long as there are two: a single row is another kernel's work. Rows go
    through it in blocks, because each number of rows that it meets costs some half a megabyte for good.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x, "none")

    def gelu(self, x: Tensor) -> Tensor:
        return self._product(x, "gelu", "none")

    def silu(self, x: Tensor) -> Tensor:
        return self._product(x, "swish")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self._binary(x, other, "add")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return self._binary(x, other, "mul")

    def _product(self, x: Tensor, activation: str, algorithm: str = "") -> Tensor:
        return in_blocks(lambda part: torch.ops.mkldnn._linear_pointwise(part, self._weight, self._bias, activation, [], algorithm), x)

    def _binary(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        return in_blocks(lambda part, beside: torch.ops.mkldnn._linear_pointwise.binary(part, beside, self._weight, self._bias, operation), x, other)


class Gated:
    """silu(x @ gate.T) * (x @ up.T)."""

    def __init__(self, gate: Linear, up: Linear) -> None:
        self._gate = gate
        self._up = up

    def __call__(self, x: Tensor) -> Tensor:
        return self._up.times(x, self._gate.silu(x))


class FusedGated:
    """The same by one product, and one pass over what it gives.

    Args:
        both: the product with both weights, the gate's first.
    """

    def __init__(self, both: Linear) -> None:
        self._both = both

    def __call__(self, x: Tensor) -> Tensor:
        gated: Tensor = fused.kernels().swiglu(self._both(x))
        return gated


class QuantizedLinear(Unfused):
    """A product of 8-bit numbers. Weights have a scale for each output, activations one for each row, so rows stay independent of each other."""

    def __init__(self, weight: Tensor, bias: Tensor | None, most: float) -> None:
        self._scale = weight.float().abs().amax(dim=1).clamp_min(SMALLEST) / most
        self._weight = self._stored(weight.float() / self._scale.unsqueeze(1))
        self._bias = bias
        self._most = most

    def __call__(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(dim=-1, keepdim=True).float().clamp_min_(SMALLEST) / self._most
        return self._product(x.float() / scale, scale, x.dtype)

    def _stored(self, weight: Tensor) -> Tensor:
        """A scaled weight, [out, in] float32, as the kernel wants it."""
        raise NotImplementedError

    def _product(self, x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """The product of scaled activations, [rows, in] float32, with their scales, [rows, 1] float32, undone."""
        raise NotImplementedError


class Int8Linear(QuantizedLinear):
    """oneDNN's product of 8-bit integers, for the CPU."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias, most=127)
        self._no_shift = torch.zeros(len(weight), dtype=torch.int64)

    def _stored(self, weight: Tensor) -> Tensor:
        packed: Tensor = torch.ops.onednn.qlinear_prepack(weight.round_().to(torch.int8), None)
        return packed

    def _product(self, x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        # The kernel wants activations without a sign: flipping the highest bit adds 128, which it is told to take off.
        unsigned = x.round_().to(torch.int8).view(torch.uint8).bitwise_xor_(128)
        product = in_blocks(lambda part: self._integers(part, dtype), unsigned)
        scale = scale.to(dtype)
        return product * scale if self._bias is None else torch.addcmul(self._bias, product, scale)

    def _integers(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 128, self._weight, self._scale, self._no_shift, None, 1.0, 0, dtype, "none", [], ""
        )
        return product


class Fp8Linear(QuantizedLinear):
    """The product of 8-bit floating-point numbers that recent GPUs have units for.

    Args:
        in_one_pass: whether activations are scaled by our own kernel.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, in_one_pass: bool) -> None:
        super().__init__(weight, bias, most=torch.finfo(torch.float8_e4m3fn).max)
        self._in_one_pass = in_one_pass

    def __call__(self, x: Tensor) -> Tensor:
        if not self._in_one_pass:
            return super().__call__(x)
        quantized, scale = fused.kernels().quantize(x, self._most, SMALLEST)
        return self._product(quantized, scale, x.dtype)

    def _stored(self, weight: Tensor) -> Tensor:
        return weight.to(torch.float8_e4m3fn)

    def _product(self, x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        product = torch._scaled_mm(
            x.to(torch.float8_e4m3fn),
            self._weight.t(),
            scale_a=scale,
            scale_b=self._scale.unsqueeze(0),
            bias=self._bias,
            out_dtype=dtype,
            use_fast_accum=True,
        )
        assert isinstance(product, Tensor)
        return product


def in_blocks(product: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """What a product gives for some rows, computed in blocks of at most `ROWS`."""
    if len(rows[0]) <= ROWS:
        return product(*rows)
    return torch.cat([product(*parts) for parts in zip(*(torch.split(part, ROWS) for part in rows), strict=True)])


def has_onednn() -> bool:
    return torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
