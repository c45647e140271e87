"""
Our own kernels for a GPU against the same arithmetic in float64.
"""

import itertools
from collections.abc import Sequence

import pytest
import torch
from nv_embed_sidecar.engines import fused
from nv_embed_sidecar.engines.packing import fixed, most_tiles, pack, padded
from proofs import ON_GPU
from torch import Tensor
from torch.nn import functional

pytestmark = ON_GPU

DEVICE = torch.device("cuda")
ROUNDED = 0.004
"""Relative error of half precision."""

LENGTHS = [
    [1],
    [2, 1],
    [20] * 40,
    [128] * 3,
    [64, 65, 127, 128, 129, 1, 300],
    [2000, 5, 5, 5],
    [8192],
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, torch.bfloat16)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def attended(query: Tensor, key: Tensor, value: Tensor, bounds: Sequence[int]) -> Tensor:
    """Text by text."""
    query, key, value = (x.double().transpose(0, 1) for x in (query, key, value))
    key, value = (x.repeat_interleave(len(query) // len(x), dim=0) for x in (key, value))
    texts = [slice(start, end) for start, end in itertools.pairwise(bounds)]
    found = [torch.softmax(query[:, rows] @ key[:, rows].transpose(1, 2), dim=2) @ value[:, rows] for rows in texts]
    return torch.cat(found, dim=1).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("heads", "kv", "width"), [(8, 2, 64), (4, 4, 32), (4, 1, 128), (2, 2, 16)])
def test_each_token_attends_to_its_text_and_to_no_other(lengths: list[int], heads: int, kv: int, width: int) -> None:
    packed = pack([[0] * length for length in lengths], DEVICE)
    query, key, value = random(packed.rows, heads + 2 * kv, width).split((heads, kv, kv), dim=1)
    found = fused.kernels().attend(query * 2 * width**-0.5, key, value, packed)
    assert error(found, attended(query * 2 * width**-0.5, key, value, packed.bounds.tolist())) < ROUNDED


def test_rows_of_no_text_disturb_nobody_and_hold_numbers() -> None:
    batch = [[0] * length for length in (3, 40, 7)]
    packed = fixed(padded(batch, 256, 32, most_tiles(256, 32)).to(DEVICE), 256, 32)
    query, key, value = random(256, 3 * 4, 64).split(4, dim=1)
    found = fused.kernels().attend(query, key, value, packed)
    assert error(found[:50], attended(query[:50], key[:50], value[:50], [0, 3, 43, 50])) < ROUNDED
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("length", [1, 63, 64, 65, 300, 512])
def test_a_text_attends_alike_to_the_last_bit_wherever_it_lies(length: int) -> None:
    lengths = [700, length, 31]
    packed = pack([[0] * each for each in lengths], DEVICE)
    query, key, value = random(packed.rows, 3 * 4, 64).split(4, dim=1)
    rows = slice(700, 700 + length)
    alone = fused.kernels().attend(query[rows], key[rows], value[rows], pack([[0] * length], DEVICE))
    assert torch.equal(fused.kernels().attend(query, key, value, packed)[rows], alone)


@pytest.mark.parametrize("width", [16, 384, 8192])
def test_swiglu(width: int) -> None:
    both = random(37, 2 * width)
    gate, up = both.double().chunk(2, dim=1)
    assert error(fused.kernels().swiglu(both), functional.silu(gate) * up) < ROUNDED


@pytest.mark.parametrize(("heads", "kv", "width"), [(32, 8, 64), (6, 3, 24), (32, 8, 128)])
def test_queries_and_keys_turn_and_values_stay(heads: int, kv: int, width: int) -> None:
    qkv = random(19, heads + 2 * kv, width)
    positions = torch.randint(0, 100, (19,), dtype=torch.int32, device=DEVICE)
    angles = torch.rand(100, width // 2, device=DEVICE)
    cos, sin = (turn.double()[positions.long()].unsqueeze(1) for turn in (angles.cos(), angles.sin()))
    turned, values = qkv.double().split((heads + kv, kv), dim=1)
    first, second = turned.chunk(2, dim=2)
    expected = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=2)
    expected[:, :heads] *= width**-0.5
    fused.kernels().rotate(qkv, positions, angles.cos(), angles.sin(), heads, kv)
    assert error(qkv[:, : heads + kv], expected) < ROUNDED
    assert torch.equal(qkv[:, heads + kv :].double(), values)


@pytest.mark.parametrize("width", [16, 384, 8192])
def test_rows_are_quantised_each_to_its_own_range(width: int) -> None:
    x = random(11, width)
    x[3] *= 1000
    x[4] = 0
    quantized, scale = fused.kernels().quantize(x, 448.0, 1e-12)
    found = quantized.double() * scale
    for row in (0, 3):
        assert error(found[row], x[row].double()) < 0.04
        assert float(quantized[row].float().abs().max()) == 448
    assert not found[4].any()


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_the_mean_is_of_every_token_of_a_text(lengths: list[int]) -> None:
    packed = pack([[0] * length for length in lengths], DEVICE)
    hidden = random(packed.rows, 400)
    expected = torch.stack([part.mean(dim=0) for part in hidden.double().split(lengths)])
    assert error(fused.kernels().mean(hidden, packed.bounds), expected) < 1e-6
