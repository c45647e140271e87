"""
The compiled kernels of `sidecar/native/`: half precision on the CPU, by AMX or by AVX-512 BF16.

They are there where a compiler was when the sidecar was installed, and used where the processor has the instructions. A row of a result depends on no
other row, to the last bit. A thread that may use several cores has rows, or heads, computed by several.

In:  tensors of bfloat16 in rows      Out: tensors of bfloat16 in rows
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from nv_embed.errors import InvalidInput

NONE, AVX512, AMX = range(3)
LEVELS = ("none", "avx512", "amx")
NAMES = ("none", "AVX-512 BF16", "AMX")
PLAIN, GELU, SILU, PLUS, TIMES = range(5)

BLOCK = 32
"""Rows that the kernels compute together."""


@cache
def _library() -> ctypes.CDLL | None:
    names = (Path(__file__).with_name(f"_kernels{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next((_declared(ctypes.CDLL(str(name))) for name in names if name.exists()), None)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    integer, pointer, number = ctypes.c_long, ctypes.c_void_p, ctypes.c_float
    library.nv_embed_level.argtypes = []
    if library.nv_embed_level() == NONE:
        return library
    library.nv_embed_packed_size.restype = integer
    library.nv_embed_packed_size.argtypes = [integer, integer]
    library.nv_embed_pack.argtypes = [pointer, integer, integer, pointer]
    library.nv_embed_linear.argtypes = [ctypes.c_int, pointer, pointer, integer, integer, pointer, integer, integer, ctypes.c_int, pointer, pointer]
    library.nv_embed_attend.argtypes = [ctypes.c_int, *(pointer, integer) * 3, *(integer,) * 3, *(pointer, integer) * 2]
    library.nv_embed_stack.argtypes = [ctypes.c_int, pointer, integer, integer, integer, pointer, integer, pointer, integer]
    library.nv_embed_layer_norm.argtypes = [pointer, integer, integer, pointer, pointer, number, pointer]
    return library


@cache
def level() -> int:
    """Which instructions are used: `AMX`, `AVX512` or `NONE`; no better ones than the environment's `NV_EMBED_KERNELS` names.

    Raises:
        InvalidInput: it names none of them.
    """
    most = os.environ.get("NV_EMBED_KERNELS", LEVELS[-1])
    if most not in LEVELS:
        raise InvalidInput(
            f"NV_EMBED_KERNELS is {most!r}", hint=f"it is one of {', '.join(LEVELS)}; leave it out for the best that the processor has"
        )
    library = _library()
    return NONE if library is None else min(int(library.nv_embed_level()), LEVELS.index(most))


def serve(x: Tensor) -> bool:
    """Whether there are kernels for this tensor's device and precision."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and level() != NONE


class _Weight(ctypes.Structure):
    _fields_ = (("packed", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("width", ctypes.c_long), ("columns", ctypes.c_long))


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_float))


class _Layer(ctypes.Structure):
    _fields_ = (*((name, _Weight) for name in ("qkv", "out", "up", "down")), *((name, _Norm) for name in ("after_attention", "after_mlp")))

    @classmethod
    def of(cls, layer: "Layer") -> "_Layer":
        return cls(*(getattr(layer, field.name).described() for field in fields(layer)))


class Weight:
    """A weight, [out, in] bfloat16, and its bias, as the kernels read them."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        library = _built()
        weight = weight.contiguous()
        self.columns, self.width = weight.shape
        self._packed = torch.empty(library.nv_embed_packed_size(self.columns, self.width), dtype=torch.bfloat16)
        library.nv_embed_pack(weight.data_ptr(), self.columns, self.width, self._packed.data_ptr())
        self._bias = torch.zeros(-(-self.columns // BLOCK) * BLOCK)
        if bias is not None:
            self._bias[: self.columns] = bias

    def described(self) -> _Weight:
        return _Weight(self._packed.data_ptr(), self._bias.data_ptr(), self.width, self.columns)

    def product(self, x: Tensor, finish: int, other: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias, [rows, out], and what `finish` says of it.

        Args:
            x: [rows, in].
            other: [rows, out], for `PLUS` and `TIMES`.
        """
        x = _side_by_side(x)
        result = x.new_empty(len(x), self.columns)
        beside = result if other is None else other.contiguous()

        def rows(first: int, end: int) -> int:
            at = [each.data_ptr() + first * each.stride(0) * each.element_size() for each in (x, beside, result)]
            return int(
                _built().nv_embed_linear(
                    level(),
                    self._packed.data_ptr(),
                    self._bias.data_ptr(),
                    self.columns,
                    self.width,
                    at[0],
                    x.stride(0),
                    end - first,
                    finish,
                    at[1],
                    at[2],
                )
            )

        _in_parts(rows, len(x), BLOCK)
        return result


def attend(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor) -> Tensor:
    """Attention of every token of a text to every token of it.

    Args:
        query: [rows, query heads, width], scaled already.
        key, value: [rows, key/value heads, width].
        bounds: [texts + 1] int32, where texts begin; rows beyond the last belong to no text.
    Returns:
        [rows, query heads * width]; rows of no text hold zeros.
    """
    rows, heads, width = query.shape
    shared = key.shape[1]
    group = heads // shared
    query, key, value = (_side_by_side(part) for part in (query, key, value))
    result = query.new_empty(rows, heads * width)
    result[int(bounds[-1]) :] = 0

    def some_heads(first: int, end: int) -> int:
        steps = ((query, group), (key, 1), (value, 1), (result, group))
        *read, written = ((each.data_ptr() + first * step * width * each.element_size(), each.stride(0)) for each, step in steps)
        operands = [part for matrix in read for part in matrix]
        return int(_built().nv_embed_attend(level(), *operands, end - first, group, width, bounds.data_ptr(), len(bounds) - 1, *written))

    _in_parts(some_heads, shared, 1)
    return result


@dataclass(frozen=True)
class Norm:
    """A layer norm's weight and bias, [width] float32."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Each row, [rows, width], to mean zero and variance one, times the weight, plus the bias."""
        x = x.contiguous()
        result = torch.empty_like(x)
        _built().nv_embed_layer_norm(x.data_ptr(), *x.shape, self.weight.data_ptr(), self.bias.data_ptr(), self.eps, result.data_ptr())
        return result

    def described(self) -> _Norm:
        return _Norm(self.weight.data_ptr(), self.bias.data_ptr(), self.eps)


@dataclass(frozen=True)
class Layer:
    """A layer of a BERT: what reads its input, and the norms behind the two sums."""

    qkv: Weight
    out: Weight
    up: Weight
    down: Weight
    after_attention: Norm
    after_mlp: Norm


class Stack:
    """The layers of a BERT, computed by one core in one call.

    Threads that each have texts of their own would meet at Python's lock between products.
    """

    def __init__(self, layers: Sequence[Layer], heads: int, width: int) -> None:
        self._layers = tuple(layers)  # they own the memory
        self._described = (_Layer * len(layers))(*map(_Layer.of, layers))
        self._heads, self._width = heads, width

    def __call__(self, x: Tensor, bounds: Tensor) -> Tensor:
        """What becomes of the embeddings, [rows, width], of texts that begin at `bounds`, [texts + 1] int32. They are changed in place."""
        described, count = self._described, len(self._layers)
        failed = _built().nv_embed_stack(
            level(), ctypes.addressof(described), count, self._heads, self._width, x.data_ptr(), len(x), bounds.data_ptr(), len(bounds) - 1
        )
        if failed:
            raise MemoryError("the kernels found no memory")
        return x


def _built() -> ctypes.CDLL:
    library = _library()
    assert library is not None
    return library


def _side_by_side(x: Tensor) -> Tensor:
    """The same rows, [rows, width] or [rows, heads, width], without gaps in them."""
    return x if x[0].is_contiguous() else x.contiguous()


def _in_parts(compute: Callable[[int, int], int], count: int, least: int) -> None:
    """Compute [0, count) in as many parts as this thread may use cores, each a multiple of `least`."""
    threads = torch.get_num_threads()
    step = -(-count // (least * threads)) * least
    starts = range(0, count, step)
    bounds = [(first, min(first + step, count)) for first in starts]
    done = [compute(*bounds[0])] if len(bounds) == 1 else list(_cores(threads).map(lambda part: compute(*part), bounds))
    if any(done):
        raise MemoryError("the kernels found no memory")


@cache
def _cores(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernels")
