"""
What Prometheus is told of a database that does not answer.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import httpx
import psycopg
import pytest
from installs import Install
from program import eventually

from nv_embed import exporter
from nv_embed.counts import Counts
from nv_embed.jobs import connect as connect_worker

Connection = psycopg.Connection[Any]


@contextmanager
def exported(install: Install, database: str, opened: list[Connection]) -> Iterator[Callable[[], bool]]:
    """Whether a scrape says that the database is up; `opened` are the exporter's connections."""

    def connect(**settings: Any) -> Connection:
        opened.append(connect_worker(install.dsn(database), **settings))
        return opened[-1]

    address, close = exporter.serve("127.0.0.1:0", Counts(), connect)
    try:
        yield lambda: "nv_embed_database_up 1.0" in httpx.get(f"http://{address}/metrics", timeout=60).text
    finally:
        close()
        opened[-1].close()


def test_while_one_scrape_waits_for_a_database_that_is_silent_the_others_say_that_it_is_away(
    install: Install, own_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "TIMEOUT_MS", 500)
    opened: list[Connection] = []
    with exported(install, own_database, opened) as is_up, ThreadPoolExecutor(2) as pool:
        assert eventually(is_up)
        backend = opened[-1].info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        try:
            done, waiting = wait([pool.submit(is_up) for _ in range(2)], 30, return_when=FIRST_COMPLETED)
        finally:
            os.kill(backend, signal.SIGCONT)
        assert [each.result() for each in done] == [False]
        wait(waiting)
        assert eventually(is_up)


def test_the_kernel_does_not_wait_long_for_a_database_whose_host_is_gone(install: Install, own_database: str) -> None:
    opened: list[Connection] = []
    with exported(install, own_database, opened) as is_up:
        assert eventually(is_up)
        with socket.socket(fileno=os.dup(opened[-1].fileno())) as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < 10
