"""
The parts that torch engines are made of: packing, products, attention, and how a batch is dealt out.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nv_embed_sidecar.engines import OutOfMemory, kernels, torch_device
from nv_embed_sidecar.engines.attention import Heads, attend
from nv_embed_sidecar.engines.linear import Fp8Linear, Int8Linear, Linear, OneDnnLinear, PlainLinear, has_onednn
from nv_embed_sidecar.engines.packing import TILE, Packed, Run, pack, pieces
from nv_embed_sidecar.engines.torch_device import TorchDevice
from nv_embed_sidecar.engines.torch_engine import BATCH_S, TorchEngine
from nv_embed_sidecar.engines.transformers_encoder import TransformersEncoder
from proofs import refusal
from torch import Tensor
from torch.nn import functional

from nv_embed.errors import InvalidInput

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]


def has_scaled_products() -> bool:
    """Whether PyTorch multiplies 8-bit floating-point numbers on the CPU: 2.6 does not."""
    try:
        Fp8Linear(torch.ones(16, 16), None, in_one_pass=False)(torch.ones(16, 16))
    except (NotImplementedError, RuntimeError):
        return False
    return True


needs_scaled_products = pytest.mark.skipif(not has_scaled_products(), reason="this PyTorch has no such products on the CPU")
needs_onednn = pytest.mark.skipif(not has_onednn(), reason="this build of torch has no oneDNN")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def skip_where_refused(kind: Callable[..., Linear], dtype: torch.dtype) -> None:
    """A product that a model never meets on this processor need not come out right."""
    precision = "int8" if kind is Int8Linear else "bf16" if kind is OneDnnLinear and dtype == torch.bfloat16 else "fp32"
    if refused := refusal("cpu", precision):
        pytest.skip(refused)


@given(st.lists(st.integers(1, 9) | st.integers(1, 300), min_size=1, max_size=40), st.integers(0, 256))
def test_packed_rows_are_the_tokens_of_the_texts_and_nothing_else(lengths: list[int], unused: int) -> None:
    batch = [[100 * text + place for place in range(length)] for text, length in enumerate(sorted(lengths))]
    packed = pack(batch, CPU, sum(lengths) + unused)
    assert packed.rows == packed.tokens + unused == sum(lengths) + unused
    assert packed.ids[: packed.tokens].tolist() == [token for ids in batch for token in ids]
    assert packed.positions[: packed.tokens].tolist() == [place for ids in batch for place in range(len(ids))]
    assert [packed.ids[start:end].tolist() for start, end in zip(packed.bounds, packed.bounds[1:], strict=False)] == batch
    assert packed.ends.tolist() == [end for end, ids in zip(packed.bounds.tolist()[1:], batch, strict=True) for _ in ids] + [0] * (
        packed.rows - packed.tokens
    )
    assert [run.length for run in packed.runs] == sorted(set(lengths))
    assert packed.longest == max(lengths)
    assert packed.tiles.tolist() == [
        start + first for start, ids in zip(packed.bounds.tolist(), batch, strict=False) for first in range(0, len(ids), TILE)
    ]


@given(st.integers(1, 200), st.integers(1, 64))
def test_a_run_is_split_into_powers_of_two_that_cover_it(texts: int, most: int) -> None:
    parts = list(Run(5, texts, 3).split(most))
    assert [(part.start, part.texts) for part in parts] == [(5 + 3 * sum(p.texts for p in parts[:i]), part.texts) for i, part in enumerate(parts)]
    assert sum(part.texts for part in parts) == texts
    assert all(part.texts <= most and part.texts.bit_count() == 1 for part in parts)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=60), st.integers(1, 8))
def test_pieces_share_the_work_as_evenly_as_the_longest_text_allows(lengths: list[int], count: int) -> None:
    parts = pieces(lengths, count, float)
    assert sorted(position for part in parts for position in part) == list(range(len(lengths)))
    loads = [sum(lengths[position] for position in part) for part in parts]
    assert max(loads) - min(loads) <= max(lengths)
    assert all([lengths[position] for position in part] == sorted((lengths[position] for position in part), reverse=True) for part in parts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [PlainLinear, pytest.param(OneDnnLinear, marks=needs_onednn)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_product_and_what_follows_it_are_what_they_say(kind: Callable[..., Linear], dtype: torch.dtype, biased: bool) -> None:
    weight, bias, x, other = (
        random(48, 96),
        random(48, seed=1) if biased else None,
        random(20, 96, seed=2).to(dtype),
        random(20, 48, seed=3).to(dtype),
    )
    skip_where_refused(kind, dtype)
    product = kind(weight.to(dtype), None if bias is None else bias.to(dtype))
    expected = functional.linear(x.float(), weight.to(dtype).float(), None if bias is None else bias.to(dtype).float())
    most = 1e-6 if dtype == torch.float32 else 5e-3
    for found, wanted in [
        (product(x), expected),
        (product.gelu(x), functional.gelu(expected)),
        (product.silu(x), functional.silu(expected)),
        (product.plus(x, other.clone()), expected + other.float()),
        (product.times(x, other), expected * other.float()),
    ]:
        assert found.dtype == dtype
        assert relative_error(found, wanted) < most


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "most"),
    [pytest.param(Int8Linear, 0.02, marks=needs_onednn), pytest.param(partial(Fp8Linear, in_one_pass=False), 0.05, marks=needs_scaled_products)],
)
@pytest.mark.parametrize("biased", [True, False])
def test_a_product_of_8_bit_numbers_is_close_and_keeps_rows_apart(kind: Callable[..., Linear], most: float, dtype: torch.dtype, biased: bool) -> None:
    weight, bias, x = random(64, 96), random(64, seed=1) if biased else None, random(32, 96, seed=2).to(dtype)
    skip_where_refused(kind, dtype)
    product = kind(weight, None if bias is None else bias.to(dtype))
    found = product(x)
    assert found.dtype == dtype
    assert relative_error(found, functional.linear(x.float(), weight, bias)) < most
    louder = x.clone()
    louder[1:] *= 1000
    assert torch.equal(product(louder)[0], found[0])
    assert not product(torch.zeros_like(x)).isnan().any()


@needs_onednn
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_a_product_does_not_depend_on_the_others_to_the_last_bit(dtype: torch.dtype) -> None:
    skip_where_refused(OneDnnLinear, dtype)
    product = OneDnnLinear(random(384, 1536).to(dtype), random(384, seed=1).to(dtype))
    x = random(300, 1536, seed=2).to(dtype)
    whole = product.gelu(x)
    for rows, first in [(2, 7), (3, 33), (16, 5), (17, 100), (128, 1), (255, 40)]:
        assert torch.equal(product.gelu(x[first : first + rows].clone()), whole[first : first + rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [Heads(4, 4, 8), Heads(8, 2, 16), Heads(3, 1, 4)])
@pytest.mark.parametrize("compiled", [True, False])
def test_attention_is_that_of_each_text_alone(heads: Heads, dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(kernels, "level", lambda: kernels.NONE)
    lengths = sorted([1, 1, 2, 7, 7, 7, 40, 40, 512, 513])
    packed = pack([[0] * length for length in lengths], CPU, -(-sum(lengths) // 16) * 16)
    query, key, value = (random(packed.rows, n, heads.width, seed=seed).to(dtype) for seed, n in enumerate((heads.query, heads.kv, heads.kv)))
    attended = attend(query, key, value, packed, heads).view(packed.rows, heads.query, heads.width)
    for start, end in zip(packed.bounds.tolist(), packed.bounds.tolist()[1:], strict=False):
        for head in range(heads.query):
            of_text = [x[start:end, number].double() for x, number in ((query, head), (key, head // heads.group), (value, head // heads.group))]
            expected = (of_text[0] @ of_text[1].T).softmax(-1) @ of_text[2]
            assert relative_error(attended[start:end, head], expected) < (1e-5 if dtype == torch.float32 else 2e-2)
    assert not attended[packed.tokens :].any()


class Doubling:
    """A model whose hidden states are the ids, twice; it may fail, and notes the rows it was given."""

    width = 2
    linear_work = 1000
    attention_work = 10
    compiled = False
    recordable = False

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.failure: Exception | None = None

    def __call__(self, packed: Packed) -> Tensor:
        if self.failure is not None:
            raise self.failure
        self.rows.append(packed.tokens)
        return torch.stack([packed.ids, 2 * packed.ids], dim=1).float()


def doubling_engine(model: Doubling, threads: int = 1) -> TorchEngine:
    return TorchEngine(lambda: model, "mean", TorchDevice(CPU, "fp32", threads))


@given(st.lists(st.lists(st.integers(0, 100), min_size=1, max_size=300), min_size=1, max_size=20), st.sampled_from([1, 2, 3]))
def test_vectors_come_in_the_order_of_the_texts(batch: list[list[int]], threads: int) -> None:
    found = ENGINES[threads].encode(batch)
    assert numpy.allclose(found, [[numpy.mean(ids), 2 * numpy.mean(ids)] for ids in batch], rtol=1e-5)


ENGINES = {threads: doubling_engine(Doubling(), threads) for threads in (1, 2, 3)}


@pytest.mark.parametrize(
    "failure", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_memory_that_ran_out_is_told_from_other_failures(failure: Exception) -> None:
    model = Doubling()
    engine = doubling_engine(model)
    model.failure = failure
    with pytest.raises(OutOfMemory):
        engine.encode([[1]])
    model.failure = RuntimeError("an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal"):
        engine.encode([[1]])


def test_an_engine_is_rebuilt_from_its_files() -> None:
    models: list[Doubling] = []

    def load() -> Doubling:
        models.append(Doubling())
        return models[-1]

    engine = TorchEngine(load, "mean", TorchDevice(CPU, "fp32", 1))
    models[0].failure = RuntimeError("the device is gone")
    engine.rebuild()
    assert engine.encode([[3]]).tolist() == [[3, 6]]
    assert len(models) == 2


def test_cost_grows_with_the_square_of_a_text_but_is_its_tokens_at_first() -> None:
    engine = ENGINES[1]
    assert engine.cost(1) == pytest.approx(1, rel=0.1)
    assert engine.cost(2000) > 2.2 * engine.cost(1000)


class Slow(Doubling):
    """A model that takes 20 µs a token."""

    def __call__(self, packed: Packed) -> Tensor:
        time.sleep(packed.tokens * 20e-6)
        return super().__call__(packed)


def test_a_batch_is_as_large_as_what_the_device_does_while_a_query_may_wait() -> None:
    capacity = TorchEngine(Slow, "mean", TorchDevice(CPU, "fp32", 1)).capacity
    assert capacity.batch_tokens < capacity.most_tokens
    assert capacity.batch_tokens == int(capacity.tokens_per_s * BATCH_S)


@pytest.mark.parametrize(("device", "precision", "message"), [("cpu", "fp8", "no fp8 on cpu"), ("cuda", "bf16", "no CUDA device")])
def test_what_this_machine_cannot_do_is_refused(device: str, precision: str, message: str) -> None:
    if torch.cuda.is_available() and device == "cuda":
        pytest.skip("there is a GPU")
    with pytest.raises(InvalidInput, match=message):
        torch_device.choose(device, precision, 1)


def test_the_precision_is_chosen_by_what_the_processor_does_more_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    quick: list[str] = []
    monkeypatch.setattr(torch_device, "can_compute", lambda here: True)
    monkeypatch.setattr(torch_device, "_is_quicker", lambda one, *_: one in quick)
    assert torch_device.choose("cpu", "auto", 1).precision == "fp32"
    quick.append("bf16")
    assert torch_device.choose("cpu", "auto", 1).precision == "bf16"


def test_texts_of_one_length_and_mixed_ones_are_dealt_out_to_all_threads() -> None:
    model = Doubling()
    model.linear_work = 10**9
    engine = doubling_engine(model, threads=2)
    for lengths in ([600, 600], [100] * 12, [500, 400, 300, 200, 100]):
        model.rows.clear()
        engine.encode([[1] * length for length in lengths])
        assert sum(model.rows) == sum(lengths)
        assert max(model.rows) <= sum(lengths) / 2


class Counted(Doubling):
    """A model that counts all rows that it is given, those of no text included."""

    def __init__(self) -> None:
        super().__init__()
        self.computed = 0

    def __call__(self, packed: Packed) -> Tensor:
        self.computed += packed.rows
        return super().__call__(packed)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("lengths", [[1], [16, 16], [7, 30, 2], [3] * 400])
def test_an_engine_knows_how_many_rows_it_computes_for_a_batch(lengths: list[int], threads: int) -> None:
    model = Counted()
    engine = doubling_engine(model, threads)
    model.computed = 0
    engine.encode([[1] * length for length in lengths])
    assert engine.rows(lengths) == model.computed


def test_rows_are_known_though_the_model_cannot_be_loaded_again() -> None:
    """They are asked for when a batch has been dealt with, which may have failed."""
    models: list[Doubling] = [Doubling()]
    engine = TorchEngine(lambda: models.pop(), "mean", TorchDevice(CPU, "fp32", 2))
    before = engine.rows([7, 30, 2])
    with pytest.raises(IndexError):
        engine.rebuild()
    assert engine.rows([7, 30, 2]) == before


def test_a_model_that_could_not_be_loaded_again_is_loaded_the_next_time() -> None:
    models = iter([Doubling(), OSError("the disk is away"), OSError("still"), Doubling()])

    def load() -> Doubling:
        model = next(models)
        if isinstance(model, OSError):
            raise model
        return model

    engine = TorchEngine(load, "mean", TorchDevice(CPU, "fp32", 2))
    before = engine.encode([[3, 1]])
    for _ in range(2):
        with pytest.raises(OSError, match=r"away|still"):
            engine.rebuild()
    engine.rebuild()
    assert (engine.encode([[3, 1]]) == before).all()


class Cramped(Doubling):
    """A model on a device that has room for some tokens only."""

    def __call__(self, packed: Packed) -> Tensor:
        if packed.tokens > 100:
            raise torch.OutOfMemoryError("no room")
        return super().__call__(packed)


def test_a_batch_is_no_larger_than_the_memory_was_found_to_be() -> None:
    engine = TorchEngine(Cramped, "mean", TorchDevice(CPU, "fp32", 1))
    assert engine.capacity.batch_tokens <= engine.capacity.most_tokens <= 100
    assert len(engine.encode([[1] * 32] * (engine.capacity.batch_tokens // 32))) > 0


CHOOSE = """
from nv_embed_sidecar.engines import torch_device
for precision in ("auto", "bf16", "int8"):
    try:
        print(torch_device.choose("cpu", precision, 1).precision)
    except torch_device.InvalidInput:
        print("refused")
"""


@needs_onednn
@pytest.mark.parametrize(
    ("instructions", "chosen"),
    [
        ("AVX2", ["fp32", "refused", "refused"]),  # no half precision at all, and integers more slowly than numbers
        ("AVX512_CORE", ["fp32", "bf16", "refused"]),  # half precision, slowly; integers overflow in pairs
    ],
)
def test_a_processor_gets_no_precision_that_it_cannot_compute_in(instructions: str, chosen: list[str]) -> None:
    if not torch.cpu._is_avx512_supported():
        pytest.skip("this processor cannot play another one")
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "NV_EMBED_KERNELS": "none"}
    said = subprocess.run([sys.executable, "-W", "ignore", "-c", CHOOSE], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == chosen


def test_a_causal_model_of_another_architecture_is_refused(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2Model

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}
    Qwen2Model(Qwen2Config(**small)).save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match="causal"):
        TransformersEncoder.load(tmp_path, "qwen2", TorchDevice(CPU, "fp32", 1))


@pytest.mark.parametrize("kind", ["mpnet", "distilbert"])
def test_other_encoders_are_served_by_transformers_with_or_without_its_quicker_attention(tmp_path: Path, kind: str) -> None:
    from transformers import DistilBertConfig, DistilBertModel, MPNetConfig, MPNetModel

    if kind == "mpnet":
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
        MPNetModel(MPNetConfig(**small)).save_pretrained(tmp_path)
    else:
        DistilBertModel(DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=4, vocab_size=50)).save_pretrained(tmp_path)
    device = TorchDevice(CPU, "fp32", 1)
    engine = TorchEngine(lambda: TransformersEncoder.load(tmp_path, kind, device), "mean", device)
    texts = [[5, 6, 7], [8, 9], [5, 6, 8]]
    assert numpy.allclose(engine.encode(texts), numpy.concatenate([engine.encode([text]) for text in texts]), atol=1e-5)
