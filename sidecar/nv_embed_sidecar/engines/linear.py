"""
Weights times activations, by whatever is quickest on this device in this precision.

In:  a weight and a bias as the checkpoint has them      Out: a `Linear` that holds them as its kernel wants them
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Linear(Protocol):
    """x @ weight.T + bias, and what the models do right behind it, so that a kernel can do both at once. x: [rows, in], results: [rows, out]."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def gelu(self, x: Tensor) -> Tensor: ...

    def silu(self, x: Tensor) -> Tensor: ...

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The product plus `other`, [rows, out]."""
        ...

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The product times `other`, [rows, out], component by component."""
        ...


class PlainLinear:
    """PyTorch's own product."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight, self._bias)

    def gelu(self, x: Tensor) -> Tensor:
        return functional.gelu(self(x))

    def silu(self, x: Tensor) -> Tensor:
        return functional.silu(self(x))

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x) + other

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return self(x) * other


class OneDnnLinear:
    """oneDNN's product for the CPU, with the weight laid out once for its kernel.

    A row of its result does not depend on the other rows, to the last bit, as long as there are two: a single row is another kernel's work.
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
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, activation, [], algorithm)
        return product

    def _binary(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self._bias, operation)
        return product


def has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
