"""
What a search costs where memory does not hold everything.

The table and three indexes of `search.py`: whole vectors, and their first 384 and 768 components. At which setting each finds as much as is asked for
is measured with everything in the buffers. Then the server starts again in a control group of Linux, which bounds its memory, the system's cache of
its files included, and the cheapest setting of each index is measured alone, after as many other searches: what is read again and again is there by
then. Plans that took turns would take each other's pages away.

    bench/search_memory.py [--memory 512] [--rows 100000] [--queries 200]

As root: it makes the control group, and empties the system's cache before the server starts again. What bounds a search is how many of its pages are
not in memory, since each of those is a read of the disk. Of whole vectors and their table, 1.4 GB, 512 MB hold a third; of 384 components and the
table 680 MB, most.
"""

import argparse
import os
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from machine import keep, load_average, machine, table
from search import (
    DIM,
    EF_CONSTRUCTION,
    FULL,
    FULL_RANKED,
    NARROW,
    NEAR,
    RECALLS,
    WIDE,
    Built,
    Connection,
    K,
    M,
    Plan,
    a_cluster,
    build_all,
    choose_each,
    copy_into_rows,
    distinct,
    load,
    measure,
    opened,
    say,
    sweep,
)
from synthetic import Collection, nearest

from nv_embed.cluster import Cluster

INDEXES = (FULL, FULL_RANKED, NARROW, NEAR, WIDE)
BUFFERS = "128MB"
GROUPS = Path("/sys/fs/cgroup")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--memory", type=int, default=512, metavar="MB")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    options = parser.parse_args()
    before = load_average()
    collection = Collection(options.rows, DIM)
    asked = collection.queries(2 * options.queries)
    wanted, _ = nearest(collection, asked, K)
    with a_cluster() as cluster:
        with opened(cluster, "8GB") as db:
            load(db, collection)
            copy_into_rows(db)
            built = build_all(db, INDEXES, M, EF_CONSTRUCTION)
            plans = sweep(db, INDEXES, asked[: options.queries], wanted[: options.queries])
        chosen = choose_each(plans, INDEXES, RECALLS)
        with bounded(cluster, options.memory) as db:
            for plan in distinct(chosen):
                say(f"{plan.index.name}, hnsw.ef_search {plan.width}, {plan.candidates} candidates")
                for half in (slice(options.queries, None), slice(options.queries)):
                    measure(db, [plan], asked[half], wanted[half], 1)
    text = "\n".join(
        [
            f"# search in {options.memory} MB, {options.rows:,} vectors of {DIM} dimensions",
            "",
            *(line for least, selection in chosen.items() for line in section(least, selection, built)),
            f"- {options.memory} MB for all of the server, the system's cache of its files included; shared_buffers {BUFFERS}",
            f"- graphs of m {M} and ef_construction {EF_CONSTRUCTION}; each plan alone, {options.queries} queries after as many others",
            f"- {machine()}; load average before: {before:.1f}",
            "",
        ]
    )
    print(text)
    keep(f"search-{options.rows}-in-{options.memory}-mb", text)


@contextmanager
def bounded(cluster: Cluster, memory_mb: int) -> Iterator[Connection]:
    """A connection to the cluster, started anew, which has no more memory than that."""
    with a_group(memory_mb) as group, opened(cluster, BUFFERS) as db:
        try:
            running = cluster.running()
            assert running is not None
            children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
            for pid in (str(running.pid), *children):
                (group / "cgroup.procs").write_text(pid)
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("1")
            yield db
        finally:
            cluster.stop()


@contextmanager
def a_group(memory_mb: int) -> Iterator[Path]:
    """A control group of version 1 or 2."""
    is_old = (GROUPS / "memory").is_dir()
    group = (GROUPS / "memory" if is_old else GROUPS) / f"nv_embed-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if is_old else "memory.max")).write_text(f"{memory_mb}M")
        yield group
    finally:
        group.rmdir()


def section(least: float, selection: Mapping[str, Plan], built: Mapping[str, Built]) -> list[str]:
    rows = [
        (
            plan.index.name,
            f"{plan.recall():.4f}",
            f"{1000 * statistics.median(plan.seconds):.1f}",
            f"{1000 * plan.p95():.1f}",
            str(plan.width),
            str(plan.candidates),
            f"{built[name].bytes / 1e6:.0f}",
        )
        for name, plan in selection.items()
    ]
    return [
        f"## At a recall of {least}",
        "",
        table(("plan", "recall@10", "p50, ms", "p95, ms", "hnsw.ef_search", "candidates", "index, MB"), rows),
        "",
        *ratios(least, selection),
        "",
    ]


def ratios(least: float, selection: Mapping[str, Plan]) -> list[str]:
    wholes = [selection[index.name] for index in (FULL, FULL_RANKED) if index.name in selection]
    narrow = [selection[index.name] for index in (NARROW, NEAR, WIDE) if index.name in selection]
    return [
        f"- p95 at a recall of {least}, {whole.index.name} over {plan.index.name}: **× {whole.p95() / plan.p95():.1f}** (wanted: 2)"
        for whole in wholes
        for plan in narrow
    ]


if __name__ == "__main__":
    main()
