"""
Tokens, TLS and client certificates over HTTP.
"""

import ssl
from pathlib import Path

import httpx
import pytest
from authority import Authority
from nv_embed_sidecar.engines.fake import FakeEngine
from nv_embed_sidecar.server import Server
from services import serving

from nv_embed import tokens

OVER_HTTP = {"http": ("127.0.0.1:0",)}
ASKED = {"input": "a"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def plain(server: Server) -> httpx.Client:
    return httpx.Client(base_url=f"http://{server.http_addresses[0]}", timeout=30)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_everything_but_health_and_the_description_needs_a_token(file: Path) -> None:
    token = tokens.add(file, "app")
    with serving(FakeEngine(), tokens=file, **OVER_HTTP) as server, plain(server) as http:
        for path in ("/v1/models", "/v1/models/fake", "/v1/metadata", "/v1/metrics", "/nothing"):
            assert http.get(path).status_code == 401
        for path in ("/v1/health/live", "/v1/health/ready", "/openapi.json"):
            assert http.get(path).status_code == 200
        missing = http.post("/v1/embeddings", json=ASKED)
        assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
        assert (missing.json()["error"]["type"], missing.json()["error"]["code"]) == ("authentication_error", "invalid_api_key")
        assert missing.json()["error"]["message"].startswith("a token is missing")
        for wrong in (b"Basic YTpi", b"Bearer", f"Bearer {token}x".encode(), "Bearer é".encode()):
            assert http.post("/v1/embeddings", json=ASKED, headers={b"Authorization": wrong}).status_code == 401
        right = http.post("/v1/embeddings", json=ASKED, headers=bearer(token))
        assert right.status_code == 200
        assert 'code="401"' in http.get("/v1/metrics", headers=bearer(token)).text


def test_requests_and_tokens_over_the_limit_are_429_with_the_time_to_wait(file: Path) -> None:
    few, short = tokens.add(file, "few", requests_per_minute=2), tokens.add(file, "short", tokens_per_minute=10)
    with serving(FakeEngine(), tokens=file, **OVER_HTTP) as server, plain(server) as http:
        assert [http.post("/v1/embeddings", json=ASKED, headers=bearer(few)).status_code for _ in range(3)] == [200, 200, 429]
        assert http.post("/v1/embeddings", json={"input": "a b c d"}, headers=bearer(short)).status_code == 200
        refused = http.post("/v1/embeddings", json={"input": "a b c d"}, headers=bearer(short))
    assert refused.status_code == 429
    assert 10 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["message"].startswith("short may send 10 tokens a minute, and has")


def encrypted(authority: Authority, client_ca: Path | None = None) -> dict[str, object]:
    pair = authority.issue("server")
    return {"tls_cert": pair.certificate, "tls_key": pair.key, "tls_client_ca": client_ca}


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.certificate))


def answered(server: Server, context: ssl.SSLContext) -> bool:
    try:
        with httpx.Client(base_url=f"https://{server.http_addresses[0]}", verify=context, timeout=30) as http:
            return http.post("/v1/embeddings", json=ASKED).status_code == 200
    except httpx.HTTPError:
        return False


def test_who_trusts_the_authority_is_answered_and_plain_http_is_not(authority: Authority, tmp_path: Path) -> None:
    with serving(FakeEngine(), **encrypted(authority), **OVER_HTTP) as server:
        assert answered(server, trusting(authority))
        assert not answered(server, trusting(Authority(tmp_path / "stranger")))
        with plain(server) as http, pytest.raises(httpx.HTTPError):
            http.post("/v1/embeddings", json=ASKED)
        assert answered(server, trusting(authority)), "whoever does not speak TLS keeps nobody out"


def test_where_clients_must_show_a_certificate_only_a_valid_one_is_let_in(authority: Authority, tmp_path: Path) -> None:
    with serving(FakeEngine(), **encrypted(authority, authority.certificate), **OVER_HTTP) as server:
        assert not answered(server, trusting(authority))
        for pair, is_let_in in (
            (authority.issue("client"), True),
            (authority.issue("expired", days=-1), False),
            (Authority(tmp_path / "stranger").issue("client"), False),
        ):
            context = trusting(authority)
            context.load_cert_chain(pair.certificate, pair.key)
            assert answered(server, context) == is_let_in
