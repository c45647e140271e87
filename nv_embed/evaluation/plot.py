"""
Quality against size: nDCG@10 over the bytes of the vectors that are searched.

In:  what was measured      Out: a PNG file
"""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import matplotlib

from nv_embed.evaluation.results import WHOLE, Measured, Result

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

MARKERS = {"halfvec": "o", "vector": "s", "bit": "^"}
STYLES = ("--", "-.", ":", (0, (1, 5)), (0, (8, 4)))
"""Of the lines of what has no size."""

INCHES = (7.0, 4.5)


def plot(measured: Sequence[Measured], file: Path) -> None:
    """A picture for each collection, one below the other."""
    figure = Figure(figsize=(INCHES[0], INCHES[1] * len(measured)), layout="constrained")
    for axes, each in zip(figure.subplots(len(measured), squeeze=False)[:, 0], measured, strict=True):
        draw(axes, each)
    figure.savefig(file, format="png", dpi=120)


def draw(axes: Axes, measured: Measured) -> None:
    for (label, storage), results in series(measured.results).items():
        sizes, qualities = zip(*((each.bytes_per_vector, each.ndcg_at_10) for each in results), strict=True)
        axes.plot(sizes, qualities, label=label, marker=MARKERS[storage], linestyle="-" if len(results) > 1 else "none")
    without = [each for each in measured.results if each.bytes_per_vector is None]
    for each, style in zip(without, cycle(STYLES), strict=False):
        axes.axhline(each.ndcg_at_10, label=f"{each.plan}{_pieces(each)}", color="grey", linewidth=1, linestyle=style)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set(title=measured.collection, xlabel="bytes of a vector that is searched", ylabel="nDCG@10")
    axes.legend(fontsize="small")


def series(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Lines of the picture: what differs in dimension alone, smallest first; the label says the rest."""
    lines: dict[tuple[str, str], list[Result]] = {}
    for each in sorted((each for each in results if each.bytes_per_vector is not None), key=lambda each: each.bytes_per_vector or 0):
        way = "hnsw" if each.index_bytes is not None else "exact"
        rescored = ", re-scored" if way == "hnsw" and each.rescore else ""
        lines.setdefault((f"{way} {each.storage}{rescored}{_pieces(each)}", each.storage or ""), []).append(each)
    return lines


def _pieces(result: Result) -> str:
    return f", {result.text}" if result.text not in ("", WHOLE) else ""
