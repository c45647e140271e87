"""
`nv-embed worker`: embeds what awaits its vector, outside of Postgres.

On a terminal it shows one line that is kept up to date; elsewhere a line whenever something was done, at most one in ten seconds; with --json the
same as JSON. SIGTERM and Ctrl-C let the batches under way be written; a second one ends it at once.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from nv_embed.cli.credentials import CaOption, CertificateOption, KeyOption, TokenFileOption, TokenWithoutTlsOption, credentials

if TYPE_CHECKING:
    from nv_embed.worker import Worker

LINE_S = 10.0


@dataclass(frozen=True)
class Done:
    """What a worker has done, as it is printed."""

    embedded: int
    failed: int
    seconds: float
    rate: float


def worker(
    database_url: Annotated[
        str,
        typer.Option(
            envvar="NV_EMBED_DATABASE_URL", help="The database: postgresql://user:password@host:port/name; a table's owner or nv_embed_worker."
        ),
    ],
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            envvar="NV_EMBED_ENDPOINT", help="A sidecar: host:port, or unix:/path; more than one share the work. The database's own unless given."
        ),
    ] = None,
    lanes: Annotated[int, typer.Option(min=1, max=64, help="Batches under way at a time, for each sidecar.")] = 3,
    lease: Annotated[float, typer.Option(min=1, max=3600, help="Seconds after which the jobs of a worker that died are another's.")] = 60.0,
    poll: Annotated[float, typer.Option(min=0.05, max=60, help="Seconds between two looks when nothing tells of jobs.")] = 2.0,
    timeout: Annotated[float, typer.Option(min=1, max=3600, help="Seconds to wait for the vectors of one page of texts.")] = 60.0,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    token_without_tls: TokenWithoutTlsOption = False,
    once: Annotated[
        bool, typer.Option("--once", help="End when nothing is due any more, or what is needed is away for longer than --timeout.")
    ] = False,
    metrics: Annotated[str | None, typer.Option(help="Where to answer Prometheus: host:port; nowhere unless given.")] = None,
    otlp: Annotated[
        str | None, typer.Option(envvar="NV_EMBED_OTLP", help="Send spans by OTLP over gRPC to http://host:4317, or https:// for TLS.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
) -> None:
    """Embed what awaits its vector in tables that are auto-embedded."""
    from nv_embed import tracing
    from nv_embed.worker import Settings, Worker, find_sidecar

    logging.basicConfig(stream=sys.stderr, format="nv-embed worker: %(message)s", level=logging.WARNING)
    if endpoint:
        endpoints, shown = tuple(endpoint), credentials(token_file, ca, certificate, key, token_without_tls)
    else:
        found, shown = find_sidecar(database_url)
        endpoints = (found,)
    traced = tracing.opened("nv-embed-worker", otlp)
    running = Worker(Settings(database_url, endpoints, lanes, lease, poll, timeout, once, shown, traced))
    close = _answer_prometheus(metrics, running, database_url)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: _stop(running, number))
    ended = threading.Event()
    reporter = threading.Thread(target=_report, args=[running, ended, as_json], daemon=True)
    reporter.start()
    try:
        running.run()
    finally:
        ended.set()
        reporter.join()
        close()
        traced.close()


def _answer_prometheus(address: str | None, running: "Worker", database_url: str) -> Callable[[], None]:
    """Begin to, where it is wanted. Returns what ends it."""
    if address is None:
        return lambda: None
    from nv_embed.exporter import serve
    from nv_embed.jobs import connect

    real, close = serve(address, running.counts, partial(connect, database_url))
    typer.echo(f"nv-embed worker: metrics at http://{real}/metrics", err=True)
    return close


def _stop(running: "Worker", number: int) -> None:
    if running.is_stopping():
        os._exit(128 + number)
    running.stop()


def _report(running: "Worker", ended: threading.Event, as_json: bool) -> None:
    from nv_embed.cli.screen import console, plain

    begun = last = time.monotonic()
    before = (0, 0)
    with console.status("waiting for jobs") if console.is_terminal and not as_json else _Nothing() as shown:
        while not ended.wait(0.2):
            done = _done(running, begun)
            now = time.monotonic()
            if isinstance(shown, _Nothing):
                if (done.embedded, done.failed) != before and now - last >= LINE_S:
                    plain(_line(done, as_json))
                    before, last = (done.embedded, done.failed), now
            else:
                shown.update(_line(done, False))
    plain(_line(_done(running, begun), as_json))


def _done(running: "Worker", begun: float) -> Done:
    embedded, seconds = running.counts.embedded, time.monotonic() - begun
    return Done(embedded, running.counts.failed, round(seconds, 1), round(embedded / max(seconds, 0.001), 1))


def _line(done: Done, as_json: bool) -> str:
    if as_json:
        return json.dumps(asdict(done))
    failed = f", {done.failed:,} failed (see nv_embed.failures)" if done.failed else ""
    return f"{done.embedded:,} rows embedded in {done.seconds:,.0f} s, {done.rate:,.0f} a second{failed}"


class _Nothing:
    def __enter__(self) -> "_Nothing":
        return self

    def __exit__(self, *_: object) -> None:
        pass
