"""
The client with tokens and certificates, against the real sidecar.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from nv_embed_sidecar.engines.fake import FakeEngine
from nv_embed_sidecar.server import Server
from services import serving

from nv_embed import tokens
from nv_embed.addresses import is_local
from nv_embed.client import Client
from nv_embed.credentials import from_environment
from nv_embed.errors import InvalidInput, Overloaded, Unauthenticated, Unavailable


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


@contextmanager
def encrypted(authority: Authority, **settings: Any) -> Iterator[Server]:
    pair = authority.issue("server")
    with serving(FakeEngine(), tls_cert=pair.certificate, tls_key=pair.key, **settings) as server:
        yield server


def answer(server: Server, **credentials: Any) -> int:
    with Client(server.addresses[0], timeout_s=10, **credentials) as client:
        return int(client.embed(["one"], dim=384).shape[1])


def test_a_token_lets_in_and_none_or_a_wrong_one_is_unauthenticated(file: Path) -> None:
    token = tokens.add(file, "app")
    with serving(FakeEngine(), tokens=file) as server:
        assert answer(server, token=token) == 384
        with pytest.raises(Unauthenticated, match="a token is missing") as raised:
            answer(server)
        assert raised.value.hint
        with pytest.raises(Unauthenticated, match="not one of this sidecar's") as raised:
            answer(server, token="nve_wrong")
        assert "nve_wrong" not in str(raised.value)
        with Client(server.addresses[0]) as client:
            assert client.health() == "SERVING"


def test_a_limit_that_is_met_says_when_to_come_back(file: Path) -> None:
    token = tokens.add(file, "app", requests_per_minute=1)
    with serving(FakeEngine(), tokens=file) as server:
        answer(server, token=token)
        with pytest.raises(Overloaded) as raised:
            answer(server, token=token)
    assert raised.value.retry_after_s == pytest.approx(60, abs=5)


@pytest.mark.parametrize("how", ["path", "text"])
def test_the_authority_may_be_a_path_or_its_text(authority: Authority, how: str) -> None:
    ca = authority.certificate if how == "path" else authority.certificate.read_text()
    with encrypted(authority) as server:
        assert answer(server, ca=ca) == 384


def test_tokens_and_tls_go_together(authority: Authority, file: Path) -> None:
    token = tokens.add(file, "app")
    with encrypted(authority, tokens=file) as server:
        assert answer(server, ca=authority.certificate, token=token) == 384
        with pytest.raises(Unauthenticated):
            answer(server, ca=authority.certificate)


def test_what_keeps_a_connection_from_being_made_is_said_without_addresses(authority: Authority, stranger: Authority) -> None:
    with encrypted(authority) as server:
        for credentials, says, hint in (
            ({}, "as one does that expects TLS", "give as ca"),
            ({"ca": stranger.certificate}, "not by the authority that is trusted", "who has signed"),
            ({"tls": True}, "not by the authority that is trusted", "who has signed"),
            ({"ca": "system"}, "not by the authority that is trusted", "who has signed"),
        ):
            with Client(server.addresses[0], timeout_s=10, label="the sidecar", **credentials) as client:  # type: ignore[arg-type]
                with pytest.raises(Unavailable, match=says) as raised:
                    client.embed(["one"])
                assert hint in raised.value.hint
                assert "127.0.0.1" not in str(raised.value)
    with serving(FakeEngine()) as plain, pytest.raises(Unavailable, match="it does not speak TLS"):
        answer(plain, ca=authority.certificate)


def test_a_certificate_for_another_name_or_one_that_has_expired_is_told_apart(authority: Authority) -> None:
    with encrypted(authority) as server:
        other = server.addresses[0].replace("127.0.0.1", "127.0.0.2")
        with (
            serving(
                FakeEngine(),
                listen=(other.rpartition(":")[0] + ":0",),
                tls_cert=authority.folder / "server.pem",
                tls_key=authority.folder / "server.key",
            ) as two,
            pytest.raises(Unavailable, match="for other names than the endpoint's"),
        ):
            answer(two, ca=authority.certificate)


def test_a_client_is_known_by_its_certificate(authority: Authority, stranger: Authority) -> None:
    with encrypted(authority, tls_client_ca=authority.certificate) as server:
        good, bad, old = authority.issue("client"), stranger.issue("client"), authority.issue("old", days=-1)
        assert answer(server, ca=authority.certificate, certificate=good.certificate, key=good.key.read_text()) == 384
        for shown in ({}, {"certificate": bad.certificate, "key": bad.key}, {"certificate": old.certificate, "key": old.key}):
            with pytest.raises(Unavailable, match="closed the connection during the handshake") as raised:
                answer(server, ca=authority.certificate, **shown)
            assert "certificate" in raised.value.hint


def test_a_token_does_not_go_over_a_network_in_the_clear() -> None:
    for endpoint in ("sidecar:50051", "10.0.0.1:50051", "127.0.0.1.example:1", "[2001:db8::1]:1"):
        with pytest.raises(InvalidInput, match="unencrypted") as raised:
            Client(endpoint, token="nve_secret")
        assert "nve_secret" not in str(raised.value)
        Client(endpoint, token="nve_secret", tls=True).close()
        Client(endpoint, token="nve_secret", token_without_tls=True).close()
    for endpoint in ("unix:/run/x.sock", "localhost:1", "127.0.0.1:1", "[::1]:1"):
        assert is_local(endpoint)
        Client(endpoint, token="nve_secret").close()


@pytest.mark.parametrize(
    ("credentials", "says"),
    [
        ({"token": ""}, "the token is empty"),
        ({"token": "nve_secret\n"}, "the token is empty or has characters"),
        ({"ca": "no/such/file.pem"}, "cannot read the ca: No such file"),
        ({"ca": "nve_secret\0"}, "cannot read the ca: it is neither"),
        ({"ca": "-----BEGIN PRIVATE KEY-----\nnve_secret"}, "the ca has no PEM certificate"),
        ({"tls": True, "certificate": "a.pem"}, "go together"),
        ({"certificate": "a.pem", "key": "a.key"}, "by TLS only"),
    ],
)
def test_credentials_that_cannot_be_used_are_refused_without_quoting_them(credentials: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as raised:
        Client("127.0.0.1:1", **credentials)
    assert "nve_secret" not in str(raised.value)


def test_a_unix_socket_needs_no_tls(authority: Authority, tmp_path: Path) -> None:
    with encrypted(authority, listen=(f"unix:{tmp_path}/s.sock",)) as server:
        assert answer(server, ca=authority.certificate) == 384


def test_the_environment_names_files_and_never_holds_a_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("nve_secret\n")
    environ = {"NV_EMBED_TOKEN_FILE": str(tmp_path / "token"), "NV_EMBED_CA": "system", "NV_EMBED_TOKEN_WITHOUT_TLS": "yes", "NV_EMBED_KEY": ""}
    found = from_environment(environ)
    assert found == {"token": "nve_secret", "ca": "system", "certificate": None, "key": None, "token_without_tls": True}
    assert from_environment({})["token"] is None
    with pytest.raises(InvalidInput, match="cannot read the token in"):
        from_environment({"NV_EMBED_TOKEN_FILE": str(tmp_path / "none")})
