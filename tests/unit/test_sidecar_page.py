"""
/ui as seen from the wire, without a database: when it is there, what needs a token, and what its headers forbid.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from nv_embed_sidecar.engines.fake import FakeEngine
from nv_embed_sidecar.http.database import find_database
from nv_embed_sidecar.http.page import FILES, SHELL
from nv_embed_sidecar.server import Server
from nv_embed_sidecar.settings import Settings
from pydantic import ValidationError
from services import serving

from nv_embed import tokens
from nv_embed.errors import InvalidInput

OVER_HTTP = {"http": ("127.0.0.1:0",)}
DATA = ("/ui/load", "/ui/database")


def url(server: Server) -> str:
    return f"http://{server.http_addresses[0]}"


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with serving(FakeEngine(), ui=True, **OVER_HTTP) as server, httpx.Client(base_url=url(server), timeout=30) as client:
        yield client


def test_there_is_no_page_unless_it_was_asked_for() -> None:
    with serving(FakeEngine(), **OVER_HTTP) as server:
        assert [httpx.get(url(server) + path).status_code for path in (*SHELL, *DATA)] == [404] * (len(SHELL) + len(DATA))
        assert httpx.post(url(server) + "/ui/search", json={}).status_code == 404


def test_the_shell_needs_no_token_and_all_that_it_shows_does(tmp_path: Path) -> None:
    token = tokens.add(tmp_path / "tokens.toml", "reader")
    with serving(FakeEngine(), ui=True, tokens=tmp_path / "tokens.toml", **OVER_HTTP) as server, httpx.Client(base_url=url(server)) as http:
        assert [http.get(path).status_code for path in SHELL] == [200] * len(SHELL)
        assert 'data-needs-token="yes"' in http.get("/ui").text
        assert [http.get(path).status_code for path in DATA] == [401, 401]
        assert http.post("/ui/search", json={"relation": "r", "target": "t", "question": "q"}).status_code == 401
        http.headers["Authorization"] = f"Bearer {token}"
        assert [http.get(path).status_code for path in DATA] == [200, 200]


def test_without_tokens_the_page_does_not_ask_for_one(http: httpx.Client) -> None:
    assert 'data-needs-token="no"' in http.get("/ui").text


@pytest.mark.parametrize("path", [*SHELL, *DATA])
def test_every_answer_forbids_scripts_from_elsewhere_frames_and_caches(http: httpx.Client, path: str) -> None:
    headers = http.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert (headers["cache-control"], headers["x-content-type-options"], headers["referrer-policy"]) == ("no-store", "nosniff", "no-referrer")


def test_the_files_name_nothing_from_elsewhere_and_have_no_inline_code() -> None:
    assert {file.name for file in FILES.iterdir()} == {name for name, _ in SHELL.values()}
    for file in FILES.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.", text), file
    page = (FILES / "index.html").read_text()
    assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|javascript:", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|localStorage", (FILES / "page.js").read_text())


def test_load_counts_what_was_embedded_and_not_who_only_looks(http: httpx.Client) -> None:
    before = http.get("/ui/load").json()
    assert http.post("/v1/embeddings", json={"input": ["one two", "three"], "input_type": "query"}).status_code == 200
    http.get("/v1/health/live")
    http.get("/v1/metrics")
    after = http.get("/ui/load").json()
    assert {name: after[name] - before[name] for name in ("requests", "texts")} == {"requests": 1, "texts": 2}
    assert after["tokens"] > before["tokens"]
    assert after["at_s"] > before["at_s"]
    assert after["fill"]["interactive"][0] == before["fill"]["interactive"][0] + 1
    assert after["waiting"]["bulk"] == {"texts": 0, "cost": 0, "oldest_s": 0}
    assert [(model["name"], model["trained_dims"], model["declared_dims"]) for model in after["models"]] == [("fake", [2048, 384], [128])]


def test_without_a_database_the_panels_say_how_to_have_one(http: httpx.Client) -> None:
    assert "--ui-database-url" in http.get("/ui/database").json()["missing"]
    refused = http.post("/ui/search", json={"relation": "r", "target": "t", "question": "q"})
    assert (refused.status_code, "NV_EMBED_SIDECAR_UI_DATABASE_URL" in refused.text) == (404, True)


@pytest.mark.parametrize(
    ("host", "status"), [("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("rebound.example:8000", 421), ("", 421), ("[", 421)]
)
def test_without_tokens_a_name_that_anybody_can_give_this_address_is_refused(http: httpx.Client, host: str, status: int) -> None:
    assert [http.get(path, headers={"Host": host}).status_code for path in DATA] == [status, status]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ui": True}, "--ui needs --http"),
        ({"http": ("127.0.0.1:0",), "ui_database_url": "postgresql:///app"}, "--ui-database-url needs --ui"),
        ({"http": ("0.0.0.0:0",), "ui": True, "ui_database_url": "postgresql://a:hidden@h/d"}, "give --tokens or --tls-client-ca"),
    ],
)
def test_settings_that_would_show_nothing_or_too_much_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Settings(**given)
    assert said in str(raised.value.errors(include_input=False))


def test_the_url_s_password_is_not_among_what_settings_print() -> None:
    settings = Settings(http=("127.0.0.1:0",), ui=True, ui_database_url="postgresql://a:hidden@h/d")
    assert "hidden" not in f"{settings!r} {settings}"


def test_a_database_that_is_away_is_told_without_where_it_is(caplog: pytest.LogCaptureFixture) -> None:
    away = "postgresql://somebody:hidden@127.0.0.1:1/app"
    with serving(FakeEngine(), ui=True, ui_database_url=away, **OVER_HTTP) as server:
        refused = httpx.get(url(server) + "/ui/database", timeout=30)
        assert httpx.get(url(server) + "/ui/load").status_code == 200
    assert refused.status_code == 503
    assert "cannot be reached (the sidecar's log says why)" in refused.json()["error"]["message"]
    assert "127.0.0.1" in caplog.text
    assert "hidden" not in refused.text + caplog.text


def test_a_url_that_is_none_is_refused_without_being_quoted() -> None:
    with pytest.raises(InvalidInput) as raised:
        find_database("postgresql://somebody:hidden@host/app?nonsense=1")
    assert "hidden" not in str(raised.value)
