"""
What a model does between its products on a GPU, each as one pass over memory, in half precision.

PyTorch's own operations read and write their operands once each, and its attention takes whole tiles for each text, however short, by instructions
of an older generation. Triton makes these kernels when they are first called.

In:  what a product gave      Out: what the next one takes
Source of the attention: Dao, FlashAttention-2, 2023.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nv_embed_sidecar.engines.packing import TILE, Packed

BLOCK = 1024
"""Components of a row that one program computes at a time."""

MEAN_ROWS, MEAN_COLUMNS = 32, 64
"""Tokens and components that a mean takes at a time."""

ATTEND_KEYS, ATTEND_WARPS, ATTEND_STAGES = 64, 4, 3
"""Of attention: keys that one program takes at a time, and how Triton is to divide and overlap the work."""

LOWEST = tl.constexpr(-1e30)
"""The score of a key of another text: less than any other, and not infinite, so that differences of two are numbers."""

BASE_2 = tl.constexpr(1.4426950408889634)
"""Scores times it are exponents of 2, which the GPU computes more quickly than those of e."""


@triton.jit
def _swiglu(both, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(both + 2 * row * width + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + (2 * row + 1) * width + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rotate(
    qkv,
    positions,
    cosines,
    sines,
    scale,
    row_width,
    QUERY: tl.constexpr,
    TURNED: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, PAIRS)[None, :]
    inside = (head < TURNED) & (pair < HALF)
    angle = tl.load(positions + row).to(tl.int64) * HALF + pair
    factor = tl.where(head < QUERY, scale, 1.0)
    cos = tl.load(cosines + angle, mask=pair < HALF, other=0.0) * factor
    sin = tl.load(sines + angle, mask=pair < HALF, other=0.0) * factor
    place = qkv + row * row_width + head * 2 * HALF + pair
    first = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(place + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, (first * cos - second * sin).to(qkv.dtype.element_ty), mask=inside)
    tl.store(place + HALF, (second * cos + first * sin).to(qkv.dtype.element_ty), mask=inside)


@triton.jit
def _quantize(x, out, scales, width, most, smallest, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    values = tl.load(x + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values)), smallest) / most
    tl.store(scales + row, scale)
    tl.store(out + row * width + columns, (values / scale).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _mean(hidden, bounds, out, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    text = tl.program_id(0)
    start = tl.load(bounds + text).to(tl.int64)
    end = tl.load(bounds + text + 1).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for first in range(start, end, ROWS):
        rows = first + tl.arange(0, ROWS)
        there = (rows < end)[:, None] & inside[None, :]
        total += tl.load(hidden + rows[:, None] * width + columns[None, :], mask=there, other=0.0).to(tl.float32)
    tl.store(out + text.to(tl.int64) * width + columns, tl.sum(total, axis=0) / (end - start).to(tl.float32), mask=inside)


@triton.jit
def _take_keys(state, asked, keys_at, values_at, there, MASKED: tl.constexpr):
    """One step of the softmax: rescale what was found with the keys before, and add what these have."""
    most, total, found = state
    if MASKED:
        score = tl.dot(asked, tl.load(keys_at, mask=there[None, :], other=0.0)) * BASE_2
        score = tl.where(there[None, :], score, LOWEST)
        values = tl.load(values_at, mask=there[:, None], other=0.0)
    else:
        score = tl.dot(asked, tl.load(keys_at)) * BASE_2
        values = tl.load(values_at)
    larger = tl.maximum(most, tl.max(score, axis=1))
    score = tl.exp2(score - larger[:, None])
    shrink = tl.exp2(most - larger)
    return larger, total * shrink + tl.sum(score, axis=1), tl.dot(score.to(values.dtype), values, found * shrink[:, None])


@triton.jit
def _attend(
    query,
    key,
    value,
    tiles,
    positions,
    ends,
    out,
    rows,
    query_row,
    key_row,
    value_row,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """One tile of one head. Keys are taken from the text's first, so that the order of the sums does not depend on what else is in the batch."""
    head = tl.program_id(1)
    tile = tl.load(tiles + tl.program_id(0))
    start = tile - tl.load(positions + tile, mask=tile < rows, other=0)
    end = tl.load(ends + tile, mask=tile < rows, other=0)
    row = tile + tl.arange(0, ROWS)
    part = tl.arange(0, WIDTH)
    asked = tl.load(query + row.to(tl.int64)[:, None] * query_row + head * WIDTH + part[None, :], mask=(row < end)[:, None], other=0.0)
    places = start + tl.arange(0, KEYS)
    keys_at = key + head // GROUP * WIDTH + places.to(tl.int64)[None, :] * key_row + part[:, None]
    values_at = value + head // GROUP * WIDTH + places.to(tl.int64)[:, None] * value_row + part[None, :]
    state = tl.full((ROWS,), LOWEST, tl.float32), tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, WIDTH), tl.float32)
    whole = (end - start) // KEYS * KEYS
    for _ in range(0, whole, KEYS):
        state = _take_keys(state, asked, keys_at, values_at, places < end, False)
        keys_at += KEYS * key_row
        values_at += KEYS * value_row
    if start + whole < end:
        state = _take_keys(state, asked, keys_at, values_at, places + whole < end, True)
    _, total, found = state
    where = out + row.to(tl.int64)[:, None] * (tl.num_programs(1) * WIDTH) + head * WIDTH + part[None, :]
    tl.store(where, (found / total[:, None]).to(out.dtype.element_ty), mask=(row < end)[:, None])


def swiglu(both: Tensor) -> Tensor:
    """silu of the first half of each row, times the second.

    Args:
        both: [rows, 2 * width].
    Returns:
        [rows, width].
    """
    rows, width = len(both), both.shape[1] // 2
    out = both.new_empty(rows, width)
    _swiglu[rows, triton.cdiv(width, BLOCK)](both, out, width, BLOCK=BLOCK)
    return out


def rotate(qkv: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, query: int, kv: int) -> None:
    """Turn queries and keys by their positions, in place, and scale the queries for attention.

    Args:
        qkv: [rows, query + 2 * kv, head_width], contiguous.
        positions: [rows] int32.
        cos, sin: [positions, head_width / 2] float32.
    """
    half = cos.shape[1]
    sizes = {"QUERY": query, "TURNED": query + kv, "HALF": half, "HEADS": triton.next_power_of_2(query + kv), "PAIRS": triton.next_power_of_2(half)}
    _rotate[len(qkv),](qkv, positions, cos, sin, (2 * half) ** -0.5, qkv.stride(0), **sizes)


def quantize(x: Tensor, most: float, smallest: float) -> tuple[Tensor, Tensor]:
    """Rows as 8-bit floating-point numbers, each scaled to its own range.

    Returns:
        [rows, width] float8_e4m3fn, and the scales, [rows, 1] float32.
    """
    out, scales = torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty(len(x), 1, dtype=torch.float32)
    _quantize[len(x),](x, out, scales, x.shape[1], most, smallest, BLOCK=triton.next_power_of_2(x.shape[1]))
    return out, scales


def attend(query: Tensor, key: Tensor, value: Tensor, packed: Packed) -> Tensor:
    """Full bidirectional attention within each text.

    Args:
        query: [rows, heads, width], scaled already; a width is a power of 2, and the heads of a row lie one behind the other.
        key, value: [rows, kv_heads, width], likewise.
    Returns:
        [rows, heads * width]; rows of no text hold zeros.
    """
    rows, heads, width = query.shape
    out = query.new_zeros(rows, heads * width) if packed.is_padded else query.new_empty(rows, heads * width)
    _attend[len(packed.tiles), heads](
        query,
        key,
        value,
        packed.tiles,
        packed.positions,
        packed.ends,
        out,
        rows,
        query.stride(0),
        key.stride(0),
        value.stride(0),
        GROUP=heads // key.shape[1],
        WIDTH=width,
        ROWS=TILE,
        KEYS=ATTEND_KEYS,
        num_warps=ATTEND_WARPS,
        num_stages=ATTEND_STAGES,
    )
    return out


def mean(hidden: Tensor, bounds: Tensor) -> Tensor:
    """The mean over every token of a text; arguments and results as in `pooling.mean`."""
    texts, width = len(bounds) - 1, hidden.shape[1]
    out = hidden.new_empty(texts, width, dtype=torch.float32)
    _mean[texts, triton.cdiv(width, MEAN_COLUMNS)](hidden, bounds, out, width, ROWS=MEAN_ROWS, COLUMNS=MEAN_COLUMNS)
    return out
