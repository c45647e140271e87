"""
How benchmarks report: tables of medians, ratios, and the machine they ran on, on the terminal and in bench/results/.
"""

import math
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "transformers", "sentence-transformers", "grpcio", "psycopg")
RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """Processor, cores, memory and the versions that matter."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "unknown CPU"
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {known}" for name in PACKAGES if (known := installed(name)))
    return f"{cpu}, {os.cpu_count()} cores ({' '.join(features())}), {memory:.0f} GiB; Python {platform.python_version()}, {versions}"


def installed(package: str) -> str | None:
    """Its version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def features() -> list[str]:
    """The processor's instructions for an encoder, wider ones last."""
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags.split()]


def load_average() -> float:
    """The machine's, over the minute before; times mean little where it is not near 0 when a benchmark begins."""
    return os.getloadavg()[0]


def paired_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the ratios of measurements taken in turns: what else the machine does falls on both."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of the values that at least `percent` of them do not exceed: one that was measured, not one between two."""
    return sorted(values)[max(math.ceil(percent / 100 * len(values)), 1) - 1]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def keep(name: str, text: str, device: str = "cpu") -> None:
    """Keep what a benchmark printed, apart from what it printed on other kinds of processors."""
    folder = RESULTS / kind(device)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name.replace('/', '-')}.md").write_text(text)


def kind(device: str) -> str:
    """A GPU's name, or a CPU's widest instructions for an encoder."""
    if device == "cuda":
        from torch.cuda import get_device_name

        return get_device_name().lower().replace(" ", "-")
    return (features() or ["cpu"])[-1].replace("_", "-")


def report(name: str, what: str, seconds: Mapping[str, Sequence[float]], ratio: tuple[str, str], *, unit: str = "s") -> None:
    """Print and keep the medians of what was measured, and the ratio of two of them."""
    scale, digits = (1, 3) if unit == "s" else (1000, 2)
    lines = [f"# {name}", "", what, "", f"| | median, {unit} | least | most | rounds |", "|---|---|---|---|---|"]
    for label, values in seconds.items():
        middle, least, most = (scale * value for value in (statistics.median(values), min(values), max(values)))
        lines.append(f"| {label} | {middle:.{digits}f} | {least:.{digits}f} | {most:.{digits}f} | {len(values)} |")
    over, under = (seconds[label] for label in ratio)
    lines += ["", f"**{ratio[0]} / {ratio[1]}: {paired_ratio(over, under):.3f}**, the median over neighbours in time", "", machine(), ""]
    text = "\n".join(lines)
    print(text)
    keep(name, text)
