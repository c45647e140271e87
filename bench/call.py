"""
What one call from SQL adds to the encoder.

A short text is embedded by the sidecar alone (one client, one connection) and through `SELECT nv_embed(…)`: for the first call in new sessions,
and for the later ones in one. The two take turns, and the median of
their differences is the budgets' figure.

    bench/call.py [--model minilm] [--sessions 15] [--calls 300]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]

import psycopg
from machine import report
from servers import running_cluster, running_sidecar, shared_folder

from nv_embed.client import Client

TEXT = "what is the capital of France, number {}?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--sessions", type=int, default=15)
    parser.add_argument("--calls", type=int, default=300)
    options = parser.parse_args()
    with shared_folder() as folder, running_cluster(folder) as cluster, running_sidecar(folder, "--model", options.model) as sidecar:
        cluster.create_database("bench")
        with cluster.connect("bench") as db, Client(sidecar.address) as client:
            db.execute("CREATE EXTENSION nv_embed CASCADE")
            db.execute("SELECT nv_embed.configure(%s)", [sidecar.address])
            alone, later = [], []
            for n in range(options.calls):
                alone.append(timed(partial(client.embed, [TEXT.format(n)])))
                later.append(timed(partial(embed_by_sql, db, n)))
        first, before_first, memory = [], [], []
        for n in range(options.sessions):
            with cluster.connect("bench") as session, Client(sidecar.address) as client:
                client.embed(["connect"])
                before = resident_mb(session.info.backend_pid)
                before_first.append(timed(partial(client.embed, [TEXT.format(n)])))
                first.append(timed(partial(embed_by_sql, session, n)))
                memory.append(resident_mb(session.info.backend_pid) - before)
    report(
        f"call-{options.model}",
        f"one text of {len(TEXT)} characters; model {options.model}\n\n"
        f"first call over the encoder's own time: {1000 * added(first, before_first):.0f} ms; "
        f"later calls: {1000 * added(later, alone):.2f} ms; "
        f"memory that a backend gains: {statistics.median(memory):.0f} MB (resident, shared pages of libraries included)",
        {"client alone": alone, "SELECT nv_embed(), later calls": later, "SELECT nv_embed(), first in a session": first},
        ("SELECT nv_embed(), later calls", "client alone"),
        unit="ms",
    )


def embed_by_sql(db: "psycopg.Connection[object]", n: int) -> object:
    return db.execute("SELECT nv_embed(%s)", [TEXT.format(n)]).fetchall()


def added(longer: list[float], shorter: list[float]) -> float:
    """Median of the differences of neighbours in time: what else the machine does falls on both."""
    return statistics.median(a - b for a, b in zip(longer, shorter, strict=True))


def timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


if __name__ == "__main__":
    main()
