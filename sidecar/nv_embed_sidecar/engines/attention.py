"""
Attention of every token to every other token of its text, and to no other text's.

On a GPU one kernel takes the packed rows as they are. On the CPU each run of texts of one length is a rectangle: short ones in half precision go
through two matrix products, whose scores fit the cache, others through the kernel that never holds all scores.

In:  queries, keys and values of packed rows      Out: what each row attended to
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nv_embed_sidecar.engines.packing import Packed, Run

SHORT = 512
SCORES = 1 << 20
"""Scores of one pair of matrix products, unless one text alone has more: in half precision they then fit a core's own cache."""
MOST_TEXTS = 32
LENGTHS = 32


@dataclass(frozen=True)
class Heads:
    """Query heads, key/value heads and their width; key/value head j serves `query / kv` neighbouring query heads."""

    query: int
    kv: int
    width: int

    @property
    def group(self) -> int:
        return self.query // self.kv


def attend(query: Tensor, key: Tensor, value: Tensor, packed: Packed, heads: Heads) -> Tensor:
    """Full bidirectional attention.

    Args:
        query: [rows, heads.query, heads.width], scaled already.
        key, value: [rows, heads.kv, heads.width].
    Returns:
        [rows, heads.query * heads.width]; rows of no text hold zeros.
    """
    if query.is_cuda and query.dtype != torch.float32:
        return _attend_varlen(query, key, value, packed, heads)
    attended = query.new_zeros(query.shape)
    for run in packed.runs:
        by_products = query.dtype == torch.bfloat16 and run.length <= SHORT
        for part in run.split(_most_texts(run.length, heads) if by_products else MOST_TEXTS):
            rows = slice(part.start, part.start + part.texts * part.length)
            parts = query[rows], key[rows], value[rows]
            attended[rows] = _by_products(*parts, part, heads) if by_products else _by_tiles(*parts, part, heads)
    return attended.view(packed.rows, -1)


def _most_texts(length: int, heads: Heads) -> int:
    return min(max(SCORES // (heads.query * length * length), 1), MOST_TEXTS)


def _attend_varlen(query: Tensor, key: Tensor, value: Tensor, packed: Packed, heads: Heads) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    attended = varlen_attn(
        query,
        key,
        value,
        packed.bounds,
        packed.bounds,
        packed.longest,
        packed.longest,
        scale=1.0,
        enable_gqa=heads.group > 1,
        num_splits=1,  # otherwise the longest text of the batch would decide how the sums of the others are split
    )
    assert isinstance(attended, Tensor)
    return attended.view(packed.rows, -1)


def _by_products(query: Tensor, key: Tensor, value: Tensor, run: Run, heads: Heads) -> Tensor:
    """Two matrix products with all scores between them; heads that share a key are rows of one product.

    Lengths are filled up to a multiple of `LENGTHS`, because each shape that oneDNN meets costs some half a megabyte for good.
    """
    n, length, width = run.texts, run.length, heads.width
    filled = -(-length // LENGTHS) * LENGTHS
    q = query.new_zeros(n, heads.kv, heads.group, filled, width)
    k, v = query.new_zeros(n, heads.kv, width, filled), query.new_zeros(n, heads.kv, filled, width)
    q[:, :, :, :length] = query.view(n, length, heads.kv, heads.group, width).permute(0, 2, 3, 1, 4)
    k[:, :, :, :length] = key.view(n, length, heads.kv, width).permute(0, 2, 3, 1)
    v[:, :, :length] = value.view(n, length, heads.kv, width).transpose(1, 2)
    scores = torch.bmm(q.view(n * heads.kv, heads.group * filled, width), k.view(n * heads.kv, width, filled))
    scores[:, :, length:] = -torch.inf
    attended = torch.bmm(scores.softmax(-1), v.view(n * heads.kv, filled, width)).view(n, heads.kv, heads.group, filled, width)
    return attended[:, :, :, :length].permute(0, 3, 1, 2, 4).reshape(n * length, heads.query, width)


def _by_tiles(query: Tensor, key: Tensor, value: Tensor, run: Run, heads: Heads) -> Tensor:
    """The library's kernel, which computes the scores in tiles and keeps none."""
    n, length, width = run.texts, run.length, heads.width
    q = query.view(n, length, heads.query, width).transpose(1, 2)
    k, v = (x.view(n, length, heads.kv, width).transpose(1, 2).repeat_interleave(heads.group, dim=1) for x in (key, value))
    attended = functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    return attended.transpose(1, 2).reshape(n * length, heads.query, width)
