"""
What auto-embedding adds to the encoder.

1,000 real texts are embedded by the sidecar alone, and inserted in one statement into an auto-embedded table; both again and again in turns, on one
PostgreSQL and one sidecar. The ratio of the medians is what a user pays for the trigger, PL/Python, gRPC and the second row version.

    bench/insert.py [--model minilm] [--rows 1000] [--rounds 7]
"""

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]

import psycopg
from machine import report
from servers import running_cluster, running_sidecar, shared_folder

from nv_embed.client import Client
from nv_embed.demo import corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    texts = [text for text in (entry.doc for entry in corpus.read()) if text][: options.rows]
    with shared_folder() as folder, running_cluster(folder) as cluster, running_sidecar(folder, "--model", options.model) as sidecar:
        cluster.create_database("bench")
        with cluster.connect("bench") as db, Client(sidecar.address) as client:
            prepare(db, sidecar.address)
            client.embed(texts[:100], truncate="END")
            alone, inserted = [], []
            for _ in range(options.rounds):
                alone.append(encode(client, texts))
                inserted.append(insert(db, texts))
            plain = [insert(db, texts, table="plain") for _ in range(options.rounds)]
    report(
        f"insert-{options.model}",
        f"{len(texts)} documentation texts of {sum(map(len, texts)) / len(texts):.0f} characters, one INSERT statement; model {options.model}",
        {"encoder alone (client, gRPC)": alone, "INSERT, auto-embedded": inserted, "INSERT, no embedding": plain},
        ("INSERT, auto-embedded", "encoder alone (client, gRPC)"),
    )


def prepare(db: "psycopg.Connection[object]", endpoint: str) -> None:
    db.execute("CREATE EXTENSION nv_embed CASCADE")
    db.execute("SELECT nv_embed.configure(%s)", [endpoint])
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("CREATE TABLE plain (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', truncate => 'END')")


def encode(client: Client, texts: list[str]) -> float:
    begun = time.perf_counter()
    client.embed(texts, truncate="END")
    return time.perf_counter() - begun


def insert(db: "psycopg.Connection[object]", texts: list[str], table: str = "docs") -> float:
    db.execute(f"TRUNCATE {table}")
    begun = time.perf_counter()
    db.execute(f"INSERT INTO {table} SELECT n, body FROM unnest(%s::text[]) WITH ORDINALITY AS t (body, n)", [texts])
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
