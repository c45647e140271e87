"""
The audit of what is pinned, by the real pip-audit against a service of the test's own that answers as OSV does.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

AUDIT = Path(__file__).resolve().parents[2] / "setup" / "audit.py"
AFFECTED = {"vulns": [{"id": "GHSA-0000-0000-0000", "affected": [{"package": {"name": "leaky", "ecosystem": "PyPI"}, "versions": ["1.0"]}]}]}


class Osv(BaseHTTPRequestHandler):
    """Knows that leaky 1.0 is vulnerable."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps(AFFECTED if asked["package"]["name"] == "leaky" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def osv() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Osv) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    return tmp_path / "constraints.txt"


def audit(pins: Path, url: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PIP_AUDIT_OSV_URL": url}
    return subprocess.run([sys.executable, AUDIT, pins], env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_known_vulnerability_fails_and_is_named(pins: Path) -> None:
    pins.write_text("# a comment\nfine==1.0\nleaky==1.0\n")
    with osv() as url:
        audited = audit(pins, url)
    assert audited.returncode == 1
    assert "leaky 1.0: GHSA-0000-0000-0000" in audited.stderr


def test_packages_without_one_pass_and_are_counted(pins: Path) -> None:
    pins.write_text("fine==1.0\nsound==2.0\n")
    with osv() as url:
        audited = audit(pins, url)
    assert (audited.returncode, audited.stdout) == (0, "pip-audit: no known vulnerability in 2 packages\n")


def test_a_service_that_is_out_of_reach_fails_nothing_and_is_said(pins: Path) -> None:
    pins.write_text("leaky==1.0\n")
    with osv() as url:
        pass
    audited = audit(pins, url)
    assert audited.returncode == 0
    assert "could not be asked, so constraints.txt is NOT audited" in audited.stdout
