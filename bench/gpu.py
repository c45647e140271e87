"""
How fast the 1B retriever is on a GPU, and how much of the GPU it uses.

The shape of llama-3.2-nv-embedqa-1b-v2 with random weights, which cost what trained ones do. This engine and transformers take turns at texts of
20 to 8192 tokens and at mixed lengths; MFU is the model's operations a second over the largest rate of products of matrices that was measured in the
same run. Then queries of 20 tokens, one at a time: by the engine, by transformers, and through gRPC.

sentence-transformers loads such a model only with the code that lies beside its weights. What stands for it is what that code does: transformers'
LlamaModel with a mask that lets every token see the whole text, over texts sorted by length, in padded batches of 32.

    bench/gpu.py [--device cuda] [--precision bf16|fp8] [--tokens 400000] [--rounds 3] [--tiny]

--device cpu --tiny tries the program itself out; the figures then mean nothing.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "competitors"), str(Path(__file__).parent.parent / "tests")]

import checkpoints
import numpy
import torch
from engine import encode_ids
from flops import Shape
from gemm import TYPES, quickest, sustained
from machine import keep, load_average, machine, paired_ratio, percentile, table
from nv_embed_sidecar.engines import Engine, Vectors
from nv_embed_sidecar.models import load
from nv_embed_sidecar.pooling import truncate
from nv_embed_sidecar.settings import Settings
from race import least_cosine
from safetensors.torch import load_file
from servers import running_sidecar, shared_folder
from transformers import LlamaConfig, LlamaModel

from nv_embed.client import Client

LENGTHS = (20, 300, 512, 2048, 8192)
TINY_LENGTHS = (20, 60, 200)
IDS = 256
QUERY_TOKENS = 20
QUERIES = 200
BATCH_SIZE = 32

Ids = Sequence[Sequence[int]]


@dataclass
class Timed:
    """One set of texts and what it took.

    Attributes:
        ours, theirs: seconds a round.
        cosine: the least between the two's vectors.
    """

    name: str
    ids: Ids
    cosine: float
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        return [len(each) for each in self.ids]


class Transformers:
    """transformers' Llama, made bidirectional."""

    def __init__(self, directory: Path, config: dict[str, Any], device: str, dtype: torch.dtype) -> None:
        rope = {**config["rope_scaling"], "rope_theta": config["rope_theta"]}
        known = {key: value for key, value in config.items() if key not in ("architectures", "model_type", "rope_theta", "rope_scaling", "pooling")}
        with torch.device("meta"):
            self._model = LlamaModel(LlamaConfig(**known, rope_parameters=rope, attn_implementation="sdpa"))
        self._model.load_state_dict(load_file(directory / "model.safetensors"), strict=True, assign=True)
        self._model.rotary_emb = type(self._model.rotary_emb)(config=self._model.config)
        self._model = self._model.to(device, dtype).eval()
        self._device = device

    def encode(self, ids: Ids) -> Vectors:
        """Mean-pooled vectors; batches that the device has no room for are halved."""
        vectors = numpy.empty((len(ids), self._model.config.hidden_size), dtype=numpy.float32)
        order = sorted(range(len(ids)), key=lambda position: -len(ids[position]))
        start, size = 0, BATCH_SIZE
        while start < len(order):
            positions = order[start : start + size]
            try:
                vectors[positions] = self._encode_padded([ids[position] for position in positions])
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size //= 2
                torch.cuda.empty_cache()
                continue
            start += len(positions)
        return vectors

    @torch.inference_mode()
    def _encode_padded(self, ids: Ids) -> Vectors:
        length = max(map(len, ids))
        padded = torch.tensor([[*each, *[0] * (length - len(each))] for each in ids], device=self._device)
        lengths = torch.tensor([len(each) for each in ids], device=self._device)
        real = torch.arange(length, device=self._device) < lengths[:, None]
        everything = real[:, None, None, :].expand(-1, 1, length, -1)
        hidden = self._model(input_ids=padded, attention_mask=everything, use_cache=False).last_hidden_state
        weights = real.unsqueeze(-1)
        pooled: Vectors = ((hidden.float() * weights).sum(1) / weights.sum(1)).cpu().numpy()
        return pooled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp8"), default="bf16", help="ours; transformers and the limit are in bf16 beside fp8"
    )
    parser.add_argument("--tokens", type=int, default=400_000, help="of each set of texts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a small shape and short texts")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("skipped: there is no CUDA device")
        return
    before = load_average()
    config = checkpoints.LLAMA if options.tiny else checkpoints.LLAMA_1B
    shape = Shape.read(config)
    beside = "bf16" if options.precision == "fp8" else options.precision
    finalists = quickest(options.device, beside, shape.matrices)
    with shared_folder() as folder:
        directory = checkpoints.llama(folder / "model", **config)
        (model,) = load(Settings.model_validate({"models": (str(directory),), "device": options.device, "precision": options.precision}))
        others = Transformers(directory, config, options.device, TYPES[beside])
        peak, timed = race(model.engine, others, text_sets(options.tokens, TINY_LENGTHS if options.tiny else LENGTHS), options.rounds, finalists)
        query = [random_ids(random.Random(7), QUERY_TOKENS)]
        latencies = {
            "this engine": latency(lambda: model.engine.encode(query)),
            "this engine, through gRPC": latency_through_grpc(folder, directory, options.device, options.precision),
            "transformers": latency(lambda: others.encode(query)),
        }
    result = report(options, shape, peak, timed, latencies, before)
    if not options.tiny:
        keep(f"gpu-1b-{options.precision}", result)
    print(result)


def text_sets(tokens: int, lengths: Sequence[int]) -> dict[str, Ids]:
    """Random texts: as many of each length as make up the tokens, and a set of all lengths up to the longest, short ones more often."""
    draw = random.Random(7)
    sets: dict[str, Ids] = {f"{length} tokens": [random_ids(draw, length) for _ in range(max(tokens // length, 1))] for length in lengths}
    mixed: list[list[int]] = []
    while sum(map(len, mixed)) < tokens:
        mixed.append(random_ids(draw, round(lengths[0] * (lengths[-1] / lengths[0]) ** draw.random())))
    return {**sets, f"{lengths[0]} to {lengths[-1]} tokens": mixed}


def random_ids(draw: random.Random, length: int) -> list[int]:
    return [draw.randrange(IDS) for _ in range(length)]


def race(engine: Engine, others: Transformers, sets: dict[str, Ids], rounds: int, finalists: Any) -> tuple[float, list[Timed]]:
    """The largest rate of products of matrices of all rounds, and what each set took."""
    peak = 0.0
    timed = []
    for name, ids in sets.items():
        ours, theirs = (truncate(vectors, engine.width) for vectors in (encode_ids(engine, ids), others.encode(ids)))
        each = Timed(name, ids, least_cosine(ours, theirs))
        for _ in range(rounds):
            each.ours.append(seconds(lambda ids=ids: encode_ids(engine, ids)))  # type: ignore[misc]
            each.theirs.append(seconds(lambda ids=ids: others.encode(ids)))  # type: ignore[misc]
            peak = max(peak, sustained(finalists))
        print(f"{name}: {statistics.median(each.ours):.2f} s, transformers {statistics.median(each.theirs):.2f} s", file=sys.stderr, flush=True)
        timed.append(each)
    return peak, timed


def latency(call: Callable[[], object]) -> list[float]:
    seconds(call)
    return [seconds(call) for _ in range(QUERIES)]


def latency_through_grpc(folder: Path, directory: Path, device: str, precision: str) -> list[float]:
    with (
        running_sidecar(folder, "--model", str(directory), "--device", device, "--precision", precision) as sidecar,
        Client(sidecar.address) as client,
    ):
        candidates = ["dynamo " * words for words in range(1, 2 * QUERY_TOKENS)]
        counts = client.count_tokens(candidates, input_type="query")
        text = min(zip(candidates, counts, strict=True), key=lambda each: abs(each[1] - QUERY_TOKENS))[0]
        return latency(lambda: list(client.embed_pages([text], input_type="query", interactive=True)))


def seconds(call: Callable[[], object]) -> float:
    """Both sides answer with arrays in the machine's memory: when they return, the device is done."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def report(options: argparse.Namespace, shape: Shape, peak: float, timed: Sequence[Timed], latencies: dict[str, list[float]], before: float) -> str:
    device = torch.cuda.get_device_name() if options.device == "cuda" else "the CPU"
    lines = [
        f"# gpu, {'a tiny shape' if options.tiny else 'the 1B shape'}, {options.precision}",
        "",
        f"Random weights on {device}; medians of {options.rounds} rounds in turns. Largest rate of products of matrices: {peak / 1e12:.2f} TFLOP/s.",
        "",
        table(
            ("", "texts", "tokens/s", "texts/s", "MFU", "transformers, tokens/s", "MFU", "× as fast", "least cosine between them"),
            (row(each, shape, peak) for each in timed),
        ),
        "",
        table(
            (f"a query of {QUERY_TOKENS} tokens, ms", "p50", "p95"),
            ((name, *(f"{1000 * percentile(each, percent):.2f}" for percent in (50, 95))) for name, each in latencies.items()),
        ),
        "",
        f"- {machine()}; load average before: {before:.1f}",
        "",
    ]
    return "\n".join(lines)


def row(timed: Timed, shape: Shape, peak: float) -> tuple[str, ...]:
    ours, theirs = statistics.median(timed.ours), statistics.median(timed.theirs)
    tokens, flop = sum(timed.lengths), shape.flop(timed.lengths)
    return (
        timed.name,
        f"{len(timed.ids):,}",
        f"{tokens / ours:,.0f}",
        f"{len(timed.ids) / ours:,.1f}",
        f"{flop / ours / peak:.0%}",
        f"{tokens / theirs:,.0f}",
        f"{flop / theirs / peak:.0%}",
        f"{paired_ratio(timed.theirs, timed.ours):.2f}",
        f"{timed.cosine:.5f}",
    )


if __name__ == "__main__":
    main()
