"""The compiled kernels: what they compute, against float64, with each set of instructions that this processor has."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nv_embed_sidecar.engines import kernels
from nv_embed_sidecar.engines.kernels import AMX, AVX512, GELU, LEVELS, NONE, PLAIN, PLUS, SILU, TIMES, Layer, Norm, Stack, Weight
from torch import Tensor
from torch.nn import functional

ROUNDING = 2**-8
"""Of a number that is stored in bfloat16, relative to it."""

FINISHES: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    PLAIN: lambda x, other: x,
    GELU: lambda x, other: functional.gelu(x),
    SILU: lambda x, other: functional.silu(x),
    PLUS: lambda x, other: x + other,
    TIMES: lambda x, other: x * other,
}

at_each_level = pytest.mark.usefixtures("level")


@pytest.fixture(params=[AVX512, AMX], ids=LEVELS[1:])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    if kernels.level() < request.param:
        pytest.skip("this processor, or this installation, has no such kernels")
    monkeypatch.setattr(kernels, "level", lambda: request.param)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield request.param
    torch.set_num_threads(threads)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def is_close(found: Tensor, expected: Tensor, sums_of: float = 1.0) -> None:
    """Within the rounding of the result, and of the sums on the way to it."""
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).abs().le(ROUNDING * (expected.abs() + 0.02 * sums_of)).all()


@at_each_level
@given(st.integers(1, 70), st.integers(1, 100), st.integers(1, 100), st.sampled_from(list(FINISHES)), st.booleans())
@settings(max_examples=60)
def test_a_product_is_right_for_every_shape(rows: int, width: int, columns: int, finish: int, biased: bool) -> None:
    x, weight, other = random(rows, width), random(columns, width, seed=1, scale=width**-0.5), random(rows, columns, seed=2)
    bias = random(columns, seed=3) if biased else None
    found = Weight(weight, bias).product(x, finish, other if finish in (PLUS, TIMES) else None)
    sums = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    is_close(found, FINISHES[finish](sums, other.double()), sums_of=4)


@at_each_level
@pytest.mark.parametrize(("rows", "width", "columns"), [(64, 384, 1536), (600, 1536, 384), (33, 4096, 1024), (17, 2048, 3072), (16, 8192, 64)])
def test_a_product_of_a_models_size_is_right(rows: int, width: int, columns: int) -> None:
    """Some are computed in parts of the inner components, and some weights are larger than a cache."""
    x, weight, other = random(rows, width), random(columns, width, seed=1, scale=width**-0.5), random(rows, columns, seed=2)
    is_close(Weight(weight, None).product(x, PLUS, other), x.double() @ weight.double().T + other.double())


@at_each_level
@pytest.mark.parametrize(("finish", "function"), [(GELU, functional.gelu), (SILU, functional.silu)])
def test_an_activation_is_right_for_every_number(finish: int, function: Callable[[Tensor], Tensor]) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = every[every.isfinite() & (every.abs() < 1e30)].view(-1, 1)
    found = Weight(torch.ones(1, 1).bfloat16(), None).product(x, finish).double()
    expected = function(x.double())
    assert (found - expected).abs().le(ROUNDING * expected.abs() + 2e-5).all()


@at_each_level
def test_what_is_no_number_stays_none() -> None:
    """It is how a broken device is found out."""
    x = random(40, 96)
    x[7, 3] = torch.nan
    for finish in (PLAIN, GELU, SILU, PLUS, TIMES):
        found = Weight(random(64, 96, seed=1), None).product(x, finish, random(40, 64, seed=2))
        assert found[7].isnan().all()
        assert not found[:7].isnan().any()
    query = random(30, 2, 32)
    query[4, 1, 0] = torch.nan
    attended = kernels.attend(query, random(30, 2, 32, seed=1), random(30, 2, 32, seed=2), bounds_of([10, 20]))
    assert attended[4, 32:].isnan().all()
    assert not attended[10:].isnan().any()
    norm = Norm(torch.ones(96), torch.zeros(96), 1e-5)
    assert norm(x)[7].isnan().all()


def bounds_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


@at_each_level
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=5), st.sampled_from([(1, 1), (2, 1), (3, 3), (8, 2)]), st.sampled_from([4, 16, 32, 40, 64, 128])
)
@settings(max_examples=60)
def test_attention_is_that_of_each_text_alone(lengths: list[int], heads: tuple[int, int], width: int) -> None:
    is_attention(lengths, *heads, width)


@at_each_level
@pytest.mark.parametrize("length", [511, 512, 513, 2049])
def test_attention_is_right_for_long_texts(length: int) -> None:
    is_attention([length, 3], 4, 2, 64)


def is_attention(lengths: list[int], queries: int, shared: int, width: int) -> None:
    behind = 3
    qkv = random(sum(lengths) + behind, queries + 2 * shared, width)
    query, key, value = qkv.split_with_sizes((queries, shared, shared), dim=1)
    query = query * width**-0.5
    attended = kernels.attend(query, key, value, bounds_of(lengths))
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        start += length
        q, k, v = (x[rows].double().transpose(0, 1) for x in (query, key, value))
        k, v = (x.repeat_interleave(queries // shared, dim=0) for x in (k, v))
        expected = (q @ k.transpose(1, 2)).softmax(-1) @ v
        is_close(attended[rows], expected.transpose(0, 1).reshape(length, -1), sums_of=50)
    assert not attended[start:].any()


@at_each_level
def test_scores_of_any_size_are_weighed() -> None:
    for scale in (1e-20, 100.0, 1e4):
        query, key, value = random(50, 1, 32, scale=scale), random(50, 1, 32, seed=1), random(50, 1, 32, seed=2)
        expected = (query[:, 0].double() @ key[:, 0].double().T).softmax(-1) @ value[:, 0].double()
        attended = kernels.attend(query, key, value, bounds_of([50]))
        assert ((attended.double() - expected).norm() / expected.norm()) < 0.02


@at_each_level
@given(st.integers(1, 40), st.integers(1, 200))
@settings(max_examples=40)
def test_a_norm_is_right_for_every_width(rows: int, width: int) -> None:
    x = random(rows, width) + 3
    weight, bias = torch.linspace(0.5, 2, width), torch.linspace(-1, 1, width)
    is_close(Norm(weight, bias, 1e-5)(x), functional.layer_norm(x.double(), (width,), weight.double(), bias.double(), 1e-5), sums_of=10)


WIDTH, INNER, HEADS = 96, 200, 3


def layers(count: int) -> list[Layer]:
    def weight(columns: int, width: int, seed: int) -> Weight:
        return Weight(random(columns, width, seed=seed, scale=width**-0.5), random(columns, seed=seed + 1, scale=0.1))

    def norm(seed: int) -> Norm:
        return Norm(1 + random(WIDTH, seed=seed, scale=0.1).float(), random(WIDTH, seed=seed + 1, scale=0.1).float(), 1e-12)

    return [
        Layer(
            weight(3 * WIDTH, WIDTH, 10 * seed),
            weight(WIDTH, WIDTH, 10 * seed + 2),
            weight(INNER, WIDTH, 10 * seed + 4),
            weight(WIDTH, INNER, 10 * seed + 6),
            norm(10 * seed + 7),
            norm(10 * seed + 8),
        )
        for seed in range(count)
    ]


def by_parts(layer: Layer, x: Tensor, bounds: Tensor) -> Tensor:
    """A layer, one kernel at a time."""
    qkv = layer.qkv.product(x, PLAIN).view(len(x), 3 * HEADS, WIDTH // HEADS)
    attended = kernels.attend(*qkv.split_with_sizes((HEADS,) * 3, dim=1), bounds)
    x = layer.after_attention(layer.out.product(attended, PLUS, x))
    return layer.after_mlp(layer.down.product(layer.up.product(x, GELU), PLUS, x))


@at_each_level
@pytest.mark.parametrize("threads", [1, 3])
def test_layers_in_one_call_are_the_kernels_one_by_one_to_the_last_bit(threads: int) -> None:
    some, bounds, x = layers(3), bounds_of([5, 40, 1, 64]), random(112, WIDTH)
    torch.set_num_threads(threads)
    expected = x.clone()
    for layer in some:
        expected = by_parts(layer, expected, bounds)
    assert torch.equal(Stack(some, HEADS, WIDTH // HEADS)(x.clone(), bounds)[:110], expected[:110])


@at_each_level
def test_a_row_depends_on_no_other_to_the_last_bit() -> None:
    some, x = layers(2), random(300, WIDTH)
    stack = Stack(some, HEADS, WIDTH // HEADS)
    whole = stack(x.clone(), bounds_of([17, 100, 1, 150, 32]))
    for first, end in ((0, 17), (17, 117), (117, 118), (118, 268), (268, 300)):
        assert torch.equal(stack(x[first:end].clone(), bounds_of([end - first])), whole[first:end])


@at_each_level
@pytest.mark.parametrize("rows", [3, 40, 300])
@pytest.mark.parametrize("finish", FINISHES)
def test_cores_share_rows_or_columns_without_changing_a_bit(rows: int, finish: int) -> None:
    weight, x, other = Weight(random(200, 96, seed=1), random(200, seed=2)), random(rows, 96), random(rows, 200, seed=3)
    expected = weight.product(x, finish, other)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        assert torch.equal(weight.product(x, finish, other), expected)


@at_each_level
def test_rows_may_lie_anywhere_in_memory() -> None:
    weight, x, other = Weight(random(70, 96, seed=1), None), random(50, 96), random(50, 70, seed=2)
    expected = weight.product(x, PLUS, other)
    for view in (torch.cat([x, x], dim=1)[:, 96:], x.T.contiguous().T, torch.cat([x, x])[50:]):
        assert torch.equal(weight.product(view, PLUS, other.T.contiguous().T), expected)
    assert torch.equal(weight.product(x[:1].expand(5, -1), PLAIN), weight.product(x[:1].repeat(5, 1), PLAIN))


@at_each_level
def test_nothing_in_is_nothing_out() -> None:
    assert Weight(random(70, 96), None).product(random(0, 96), GELU).shape == (0, 70)
    query, key, value = (random(9, 2, 32, seed=seed) for seed in range(3))
    beside = kernels.attend(query, key, value, torch.tensor([0, 5, 9], dtype=torch.int32))
    assert torch.equal(kernels.attend(query, key, value, torch.tensor([0, 0, 5, 5, 9, 9], dtype=torch.int32)), beside)


@at_each_level
def test_what_does_not_fit_is_refused_before_it_is_read() -> None:
    weight, norm = Weight(random(64, 96), None), Norm(torch.ones(96), torch.zeros(96), 1e-5)
    for wrong in (random(5, 95), random(5, 96).float()):
        with pytest.raises(ValueError, match="was needed"):
            weight.product(wrong, PLAIN)
        with pytest.raises(ValueError, match="was needed"):
            norm(wrong)
    with pytest.raises(ValueError, match="was needed"):
        Weight(random(64, 96).float(), None)
    with pytest.raises(ValueError, match="was needed"):
        Norm(torch.ones(96).bfloat16(), torch.zeros(96), 1e-5)
    with pytest.raises(ValueError, match="rows beside"):
        weight.product(random(5, 96), PLUS, random(4, 64))
    with pytest.raises(ValueError, match="was needed"):
        kernels.attend(*(random(5, 2, 32) for _ in range(3)), torch.tensor([0, 5]))
    with pytest.raises(ValueError, match="do not fit"):
        Stack(layers(1), HEADS, 31)


@at_each_level
def test_threads_and_other_users_of_the_same_units_do_not_disturb_each_other() -> None:
    weight, x = Weight(random(384, 384, seed=1), None), random(64, 384)
    expected = weight.product(x, GELU)

    def work(_: int) -> bool:
        torch.set_num_threads(1)
        same = True
        for _ in range(50):
            functional.linear(x, x)  # oneDNN's, which sets up the same registers
            same = same and torch.equal(weight.product(x, GELU), expected)
        return same

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(work, range(3)))


@at_each_level
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_of_a_process_that_used_several_cores_can_too() -> None:
    torch.set_num_threads(2)
    weight, x = Weight(random(64, 96), None), random(300, 96)
    expected = weight.product(x, PLAIN)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(weight.product(x, PLAIN), expected) else 1)
    ended = wait_for(child, seconds=20)
    assert ended == 0


def wait_for(child: int, seconds: float) -> int | None:
    """The child's exit status; None, and its end, if it hangs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("g++") is None, reason="the kernels are for x86-64, and compiled by g++")
def test_the_kernels_were_compiled_and_can_be_loaded() -> None:
    assert kernels._library() is not None


def test_the_environment_can_forbid_instructions() -> None:
    assert in_a_new_process("none") == f"{NONE} loaded=False"
    assert in_a_new_process("avx512").startswith(str(min(kernels.level(), AVX512)))
    assert in_a_new_process("fast") == "NV_EMBED_KERNELS is 'fast'"


def in_a_new_process(said: str) -> str:
    """The level and whether the library is in memory, or the error's message."""
    program = """
from pathlib import Path
from nv_embed.errors import InvalidInput
from nv_embed_sidecar.engines import kernels
try:
    print(kernels.level(), f"loaded={'_kernels' in Path('/proc/self/maps').read_text()}")
except InvalidInput as error:
    print(error.message)
"""
    environment = {**os.environ, "NV_EMBED_KERNELS": said}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(kernels.level() == NONE, reason="there are no kernels here")
def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(kernels, "VERSION", 0)
    assert kernels._library.__wrapped__() is None
    assert "is of another version and not used" in caplog.text


def test_a_library_that_cannot_be_loaded_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / f"_kernels{EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "kernels.py"))
    assert kernels._library.__wrapped__() is None
    assert "cannot be loaded and is not used" in caplog.text
