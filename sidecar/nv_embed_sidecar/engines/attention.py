"""
Attention of every token to every other token of its text, and to no other text's.

One kernel takes the packed rows as they are, on a GPU and, in half precision, on a CPU that has the instructions. Elsewhere each run of texts of one
length is a rectangle for the library's own.

In:  queries, keys and values of packed rows      Out: what each row attended to
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from nv_embed_sidecar.engines import fused, kernels
from nv_embed_sidecar.engines.packing import Packed, Run

MOST_TEXTS = 32
"""Of one length, that the library's kernel gets at a time."""


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
        [rows, heads.query * heads.width]; what rows of no text hold has no meaning.
    """
    if query.is_cuda and query.dtype != torch.float32:
        return _attend_varlen(query, key, value, packed, heads)
    if kernels.serve(query):
        return kernels.attend(query, key, value, packed.bounds)
    attended = query.new_zeros(query.shape)
    for run in packed.runs:
        for part in run.split(MOST_TEXTS):
            rows = slice(part.start, part.start + part.texts * part.length)
            attended[rows] = _by_tiles(query[rows], key[rows], value[rows], part, heads)
    return attended.view(packed.rows, -1)


def _attend_varlen(query: Tensor, key: Tensor, value: Tensor, packed: Packed, heads: Heads) -> Tensor:
    """Our own kernel, or FlashAttention as PyTorch has it, which leaves rows of no text as they are."""
    if fused.serve(query.device, query.dtype) and heads.width in fused.WIDTHS:
        attended: Tensor = fused.kernels().attend(query, key, value, packed)
        return attended
    bounds, longest = packed.bounds, packed.longest
    flash = torch.ops.aten._flash_attention_forward
    attended = flash(query, key, value, bounds, bounds, longest, longest, 0.0, False, False, scale=1.0, **_one_split())[0]
    return attended.view(packed.rows, heads.query * heads.width)


@cache
def _one_split() -> dict[str, int]:
    """The argument by which sums are not split, where there is one: else the longest text of a batch would decide how those of the others are."""
    known = {argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments}
    return {"num_splits": 1} if "num_splits" in known else {}


def _by_tiles(query: Tensor, key: Tensor, value: Tensor, run: Run, heads: Heads) -> Tensor:
    """The library's kernel, which computes the scores in tiles and keeps none."""
    n, length, width = run.texts, run.length, heads.width
    q = query.view(n, length, heads.query, width).transpose(1, 2)
    k, v = (x.view(n, length, heads.kv, width).transpose(1, 2).repeat_interleave(heads.group, dim=1) for x in (key, value))
    attended = functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    return attended.transpose(1, 2).reshape(n * length, heads.query, width)
