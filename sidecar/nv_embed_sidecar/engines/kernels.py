"""
The compiled kernels of `sidecar/native/`: half precision on the CPU, by AMX or by AVX-512 BF16.

They are there where a compiler was when the sidecar was installed, and used where the processor has the instructions. A row of a result depends on no
other row, to the last bit. A thread that may use several cores has rows, columns or heads computed by several.

In:  tensors of bfloat16 in rows      Out: tensors of bfloat16 in rows
"""

import ctypes
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cache, partial
from importlib.machinery import EXTENSION_SUFFIXES
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from nv_embed.errors import InvalidInput

log = logging.getLogger(__name__)

VERSION = 1
"""Of what the library exports."""

NONE, AVX512, AMX = range(3)
LEVELS = ("none", "avx512", "amx")
PLAIN, GELU, SILU, PLUS, TIMES = range(5)

ALIGNMENT = 64


@cache
def level() -> int:
    """Which instructions are used: `AMX`, `AVX512` or `NONE`; no better ones than the environment's `NV_EMBED_KERNELS` names.

    Raises:
        InvalidInput: it names none of them.
    """
    most = os.environ.get("NV_EMBED_KERNELS", LEVELS[AMX])
    if most not in LEVELS:
        raise InvalidInput(f"NV_EMBED_KERNELS is {most!r}", hint=f"it is one of {', '.join(LEVELS)}; leave it out for the best there is")
    if most == LEVELS[NONE] or (library := _library()) is None:
        return NONE
    return int(library.nv_embed_level(LEVELS.index(most)))


def serve(x: Tensor) -> bool:
    """Whether there are kernels for this tensor's device and precision."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and level() != NONE


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled library, if it was made here and from these sources."""
    file = next((file for suffix in EXTENSION_SUFFIXES if (file := Path(__file__).with_name(f"_kernels{suffix}")).exists()), None)
    if file is None:
        return None
    try:
        library = ctypes.CDLL(str(file))
        library.nv_embed_version.restype = ctypes.c_long
        if library.nv_embed_version() == VERSION:
            return _declared(library)
        log.warning("%s is of another version and not used: install the sidecar again, in a checkout with `make setup`", file)
    except (OSError, AttributeError) as error:
        log.warning("%s cannot be loaded and is not used: %s", file, error)
    return None


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    number, pointer, level = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    library.nv_embed_level.argtypes = [level]
    if library.nv_embed_level(NONE + 1) == NONE:
        return library
    for name, result, *arguments in (
        ("panel", number),
        ("packed_size", number, number, number),
        ("pack", None, pointer, number, number, pointer),
        ("linear", level, level, pointer, number, number, pointer, number, number, level, pointer, pointer),
        ("attend", level, level, *(pointer, number) * 3, number, number, number, pointer, number, pointer, number),
        ("stack", level, level, pointer, number, number, number, pointer, number, pointer, number),
        ("layer_norm", None, pointer, pointer, number, number, pointer),
    ):
        function = getattr(library, f"nv_embed_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def _built() -> ctypes.CDLL:
    library = _library()
    assert library is not None
    return library


class _Weight(ctypes.Structure):
    _fields_ = (("packed", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("width", ctypes.c_long), ("columns", ctypes.c_long))


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_float))


class _Layer(ctypes.Structure):
    _fields_ = (*((name, _Weight) for name in ("qkv", "out", "up", "down")), *((name, _Norm) for name in ("after_attention", "after_mlp")))


class Weight:
    """A weight, [out, in] bfloat16, and its bias, [out], as the kernels read them."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        library = _built()
        self.columns, self.width = weight.shape
        weight = _checked(weight, torch.bfloat16, self.width).contiguous()
        self._panel = int(library.nv_embed_panel())
        self._packed = torch.empty(library.nv_embed_packed_size(self.columns, self.width), dtype=torch.bfloat16)
        assert self._packed.data_ptr() % ALIGNMENT == 0
        library.nv_embed_pack(weight.data_ptr(), self.columns, self.width, self._packed.data_ptr())
        self._bias = torch.zeros(self._panels * self._panel, dtype=torch.float32)
        if bias is not None:
            self._bias[: self.columns] = bias
        self.described = _Weight(self._packed.data_ptr(), self._bias.data_ptr(), self.width, self.columns)

    @property
    def _panels(self) -> int:
        return -(-self.columns // self._panel)

    def product(self, x: Tensor, finish: int, other: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias, [rows, out], and what `finish` says of it.

        Args:
            x: [rows, in].
            other: [rows, out], for `PLUS` and `TIMES`.
        """
        x = _checked(x, torch.bfloat16, self.width)
        result = x.new_empty(len(x), self.columns)
        beside = result if other is None else _checked(other, torch.bfloat16, self.columns).contiguous()
        if len(beside) != len(x):
            raise ValueError(f"{len(beside)} rows beside {len(x)}")

        def part(rows: tuple[int, int], panels: tuple[int, int]) -> int:
            read, other, written = (each.data_ptr() + rows[0] * each.stride(0) * each.element_size() for each in (x, beside, result))
            weight = ctypes.addressof(self.described)
            return int(_built().nv_embed_linear(level(), weight, *panels, read, x.stride(0), rows[1] - rows[0], finish, other, written))

        by_rows, by_panels = _split(len(x), self._panel), _split(self._panels, 1)
        if len(by_rows) >= len(by_panels):
            _compute([partial(part, rows, (0, self._panels)) for rows in by_rows])
        else:  # a few rows would leave cores without work
            _compute([partial(part, (0, len(x)), panels) for panels in by_panels])
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
    kv = key.shape[1]
    group = heads // kv
    query, key, value = (_checked(each, torch.bfloat16, width) for each in (query, key, value))
    bounds = _checked(bounds, torch.int32, len(bounds))
    result = query.new_empty(rows, heads * width)
    result[int(bounds[-1]) :] = 0

    def part(first: int, end: int) -> int:
        steps = ((query, group), (key, 1), (value, 1), (result, group))
        *read, written = ((each.data_ptr() + first * step * width * each.element_size(), each.stride(0)) for each, step in steps)
        operands = [number for matrix in read for number in matrix]
        return int(_built().nv_embed_attend(level(), *operands, end - first, group, width, bounds.data_ptr(), len(bounds) - 1, *written))

    _compute([partial(part, *some) for some in _split(kv, 1)])
    return result


class Norm:
    """A layer norm with its weight and bias, [width] float32."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        self.width = len(weight)
        self._weight, self._bias = (_checked(each, torch.float32, self.width) for each in (weight, bias))
        self.described = _Norm(self._weight.data_ptr(), self._bias.data_ptr(), eps)

    def __call__(self, x: Tensor) -> Tensor:
        """Each row, [rows, width], to mean zero and variance one, times the weight, plus the bias."""
        x = _checked(x, torch.bfloat16, self.width).contiguous()
        result = torch.empty_like(x)
        _built().nv_embed_layer_norm(ctypes.addressof(self.described), x.data_ptr(), *x.shape, result.data_ptr())
        return result


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

    Args:
        heads, width: heads of attention, and the width of one.
    """

    def __init__(self, layers: Sequence[Layer], heads: int, width: int) -> None:
        for layer in layers:
            inside = (layer.qkv.columns, layer.out.width, layer.up.columns)
            outside = {layer.qkv.width, layer.out.columns, layer.up.width, layer.down.columns, layer.after_attention.width, layer.after_mlp.width}
            if inside != (3 * heads * width, heads * width, layer.down.width) or len(outside) != 1:
                raise ValueError(f"the matrices of a layer do not fit each other: {inside} inside, {outside} outside, {heads} heads of {width}")
        self._layers = tuple(layers)  # they own the memory
        self._described = (_Layer * len(layers))(*(_Layer(*(getattr(layer, field.name).described for field in fields(layer))) for layer in layers))
        self._heads, self._width = heads, width

    def __call__(self, x: Tensor, bounds: Tensor) -> Tensor:
        """What becomes of the embeddings, [rows, width], of texts that begin at `bounds`, [texts + 1] int32."""
        x = _checked(x, torch.bfloat16, self._layers[0].qkv.width).clone(memory_format=torch.contiguous_format)
        bounds = _checked(bounds, torch.int32, len(bounds))
        layers, count = ctypes.addressof(self._described), len(self._layers)
        arguments = layers, count, self._heads, self._width, x.data_ptr(), len(x), bounds.data_ptr(), len(bounds) - 1
        _compute([partial(_built().nv_embed_stack, level(), *arguments)])
        return x


def _checked(x: Tensor, dtype: torch.dtype, width: int) -> Tensor:
    """The tensor, [width], [rows, width] or [rows, heads, width], each row without gaps: what the kernels read they do not check."""
    if x.dtype != dtype or x.device.type != "cpu" or x.shape[-1] != width:
        raise ValueError(f"a tensor of {x.dtype} {list(x.shape)} on {x.device} where {dtype} {width} wide on the CPU was needed")
    *_, heads, component = (width, *x.stride())
    return x if component == 1 and (x.dim() < 3 or heads == width) else x.contiguous()


def _split(count: int, least: int) -> list[tuple[int, int]]:
    """[0, count) in as many parts as this thread may use cores, each but the last a multiple of `least`."""
    step = -(-count // (least * torch.get_num_threads())) * least
    return list(pairwise([*range(0, count, step), count])) if count else []


def _compute(parts: Sequence[Callable[[], int]]) -> None:
    failed = [part() for part in parts] if len(parts) < 2 else list(_cores(torch.get_num_threads()).map(lambda part: part(), parts))
    if any(failed):
        raise MemoryError("the kernels found no memory")


@cache
def _cores(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernels")


os.register_at_fork(after_in_child=_cores.cache_clear)
