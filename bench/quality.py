"""
What a precision costs in search quality.

The documents and queries of test collections are embedded by the engine in each precision of the device, in one run; each query is answered by exact
search over all documents. Prints nDCG@10 and Recall@5, what is lost to fp32, and how near the vectors are to those in fp32.

    bench/quality.py BEIR_DIR… [--model minilm] [--device auto] [--split test] [--documents N]

`nv-embed eval` measures the same through SQL.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "competitors")]

import numpy
from engine import encode
from machine import keep, load_average, machine, table
from numpy.typing import NDArray
from nv_embed_sidecar.engines import Vectors
from nv_embed_sidecar.models import Model, load
from nv_embed_sidecar.settings import Settings
from nv_embed_sidecar.tokenising import InputType
from race import least_cosine

from nv_embed.errors import EmbedError
from nv_embed.evaluation.collection import Collection, read
from nv_embed.evaluation.scoring import ndcg_at, recall_at

K = 10
PRECISIONS = ("fp32", "bf16", "int8", "fp8")


@dataclass(frozen=True)
class Quality:
    """What one precision gives on one collection.

    Attributes:
        least_cosine: of a document's vector to its vector in fp32.
    """

    precision: str
    ndcg_at_10: float
    recall_at_5: float
    least_cosine: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("folders", nargs="*", type=Path, metavar="BEIR_DIR")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--split", default="test")
    parser.add_argument("--documents", type=int, help="only so many documents, for a trial: the figures then mean nothing")
    options = parser.parse_args()
    if not options.folders:
        print("skipped: give folders in BEIR's layout to measure search quality on")
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the sidecar sets it, before torch is imported
    before = load_average()
    models, absent = load_each(options.model, options.device)
    lines = [f"# quality, {models[0].name}", ""]
    for folder in options.folders:
        collection = read(folder, options.split)
        qualities = measure(models, collection, options.documents)
        lines += [f"## {collection.name}, {options.split} split", "", rows(qualities), ""]
    lines += [f"- absent: {why}" for why in absent]
    lines += [f"- {machine()}; load average before: {before:.1f}", ""]
    result = "\n".join(lines)
    keep(f"quality-{models[0].name}", result, models[0].engine.device)
    print(result)


def load_each(name: str, device: str) -> tuple[list[Model], list[str]]:
    """The model in each precision that there is here, fp32 first, and why in the others not."""
    models, absent = [], []
    for precision in PRECISIONS:
        try:
            models += load(Settings.model_validate({"models": (name,), "device": device, "precision": precision}))
        except (EmbedError, ValueError) as error:
            absent.append(f"{precision}: {str(error).splitlines()[0]}")
    return models, absent


def measure(models: Sequence[Model], collection: Collection, most: int | None) -> list[Quality]:
    keys = list(collection.documents)[:most]
    passages = collection.passages()[:most]
    reference: Vectors | None = None
    qualities = []
    for model in models:
        print(f"{collection.name}: {len(passages):,} documents in {model.engine.precision}", file=sys.stderr, flush=True)
        begun = time.perf_counter()
        documents = encode(model, passages, InputType.PASSAGE)
        seconds = time.perf_counter() - begun
        reference = documents if reference is None else reference
        found = search(encode(model, list(collection.queries.values()), InputType.QUERY), documents)
        ranked = dict(zip(collection.queries, ([keys[position] for position in best] for best in found), strict=True))
        qualities.append(
            Quality(
                model.engine.precision,
                statistics.fmean(ndcg_at(ranked[query], collection.grades[query], K) for query in ranked),
                statistics.fmean(recall_at(ranked[query], collection.grades[query], 5) for query in ranked),
                least_cosine(documents, reference),
                seconds,
            )
        )
    return qualities


def search(queries: Vectors, documents: Vectors) -> "NDArray[numpy.intp]":
    """Positions of the `K` nearest documents of each query, best first, by exact cosine."""
    best: NDArray[numpy.intp] = numpy.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :K]
    return best


def rows(qualities: Sequence[Quality]) -> str:
    exact = qualities[0]
    return table(
        ("", "nDCG@10", f"to {exact.precision}", "Recall@5", f"to {exact.precision}", f"least cosine to {exact.precision}", "seconds"),
        (
            (
                each.precision,
                f"{each.ndcg_at_10:.4f}",
                f"{each.ndcg_at_10 - exact.ndcg_at_10:+.4f}",
                f"{each.recall_at_5:.4f}",
                f"{each.recall_at_5 - exact.recall_at_5:+.4f}",
                f"{each.least_cosine:.5f}",
                f"{each.seconds:.1f}",
            )
            for each in qualities
        ),
    )


if __name__ == "__main__":
    main()
