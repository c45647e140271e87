"""
How fast the 1B retriever is on a GPU, and how much of the GPU it uses.

The shape of llama-3.2-nv-embedqa-1b-v2 with random weights, which cost what trained ones do. This engine and sentence-transformers take turns at
texts of 20 to 8192 tokens and at mixed lengths; MFU is the model's operations a second over the largest rate of products of matrices that was
measured in the same run. Then queries of 20 tokens, one at a time: by each of the two, and through gRPC.

sentence-transformers loads such a model only with the code that lies beside its weights. Here it has transformers' own Llama instead, told not to be
causal, which is quicker: where no text is padded there is no mask. Its batches are of 32 texts, as it has them unless told otherwise.

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
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from servers import running_sidecar, shared_folder
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
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


class Characters(torch.nn.Module):
    """The model as sentence-transformers' first module. A text is its ids as characters: tokenising, which is not measured, costs next to nothing."""

    def __init__(self, model: LlamaModel) -> None:
        super().__init__()
        self.auto_model = model

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        ids = [torch.tensor(list(map(ord, text))) for text in texts]
        real = [torch.ones_like(each) for each in ids]
        return {name: pad_sequence(rows, batch_first=True) for name, rows in (("input_ids", ids), ("attention_mask", real))}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = self.auto_model(input_ids=features["input_ids"], attention_mask=features["attention_mask"], use_cache=False)
        return {**features, "token_embeddings": hidden.last_hidden_state}


class Others:
    """sentence-transformers with transformers' Llama, made bidirectional."""

    def __init__(self, directory: Path, config: dict[str, Any], device: str, dtype: torch.dtype) -> None:
        rope = {**config["rope_scaling"], "rope_theta": config["rope_theta"]}
        known = {key: value for key, value in config.items() if key not in ("architectures", "model_type", "rope_theta", "rope_scaling", "pooling")}
        with torch.device("meta"):
            model = LlamaModel(LlamaConfig(**known, rope_parameters=rope, attn_implementation="sdpa", is_causal=False))
        model.load_state_dict(load_file(directory / "model.safetensors"), strict=True, assign=True)
        model.rotary_emb = type(model.rotary_emb)(config=model.config)
        for layer in model.layers:
            layer.self_attn.is_causal = False
        model = model.to(device, dtype).eval()
        self._model = SentenceTransformer(modules=[Characters(model), Pooling(model.config.hidden_size, "mean")], device=device)

    def encode(self, ids: Ids) -> Vectors:
        """Vectors of unit length; where the device has no room, batches are halved."""
        texts = ["".join(map(chr, each)) for each in ids]
        for size in (BATCH_SIZE >> halving for halving in range(BATCH_SIZE.bit_length())):
            try:
                vectors: Vectors = self._model.encode(texts, batch_size=size, normalize_embeddings=True, show_progress_bar=False)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
            else:
                return vectors
        raise MemoryError("the device has no room for one text")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp8"), default="bf16", help="ours; sentence-transformers and the limit are in bf16 beside fp8"
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
        others = Others(directory, config, options.device, TYPES[beside])
        peak, timed = race(model.engine, others, text_sets(options.tokens, TINY_LENGTHS if options.tiny else LENGTHS), options.rounds, finalists)
        query = [random_ids(random.Random(7), QUERY_TOKENS)]
        latencies = {
            "this engine": latency(lambda: model.engine.encode(query)),
            "this engine, through gRPC": latency_through_grpc(folder, directory, options.device, options.precision),
            "sentence-transformers": latency(lambda: others.encode(query)),
        }
    result = report(options, shape, peak, timed, latencies, before)
    if not options.tiny:
        keep(f"gpu-1b-{options.precision}", result, options.device)
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


def race(engine: Engine, others: Others, sets: dict[str, Ids], rounds: int, finalists: Any) -> tuple[float, list[Timed]]:
    """The largest rate of products of matrices of all rounds, and what each set took."""
    peak = 0.0
    timed = []
    for name, ids in sets.items():
        each = Timed(name, ids, least_cosine(truncate(encode_ids(engine, ids), engine.width), others.encode(ids)))
        for _ in range(rounds):
            each.ours.append(seconds(lambda ids=ids: encode_ids(engine, ids)))  # type: ignore[misc]
            each.theirs.append(seconds(lambda ids=ids: others.encode(ids)))  # type: ignore[misc]
            peak = max(peak, sustained(finalists))
        print(
            f"{name}: {statistics.median(each.ours):.2f} s, sentence-transformers {statistics.median(each.theirs):.2f} s", file=sys.stderr, flush=True
        )
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
        return latency(lambda: list(client.embed_pages([text], input_type="query")))


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
            ("", "texts", "tokens/s", "texts/s", "MFU", "sentence-transformers, tokens/s", "MFU", "× as fast", "least cosine between them"),
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
