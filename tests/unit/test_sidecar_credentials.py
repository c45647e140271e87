"""
TLS and mutual TLS on the real server, with certificates that openssl makes.
"""

import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from authority import Authority, Pair
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nv_embed_sidecar.credentials import BadCertificate, Certificates
from nv_embed_sidecar.engines.fake import FakeEngine
from nv_embed_sidecar.server import Server
from services import serving


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@contextmanager
def encrypted(pair: Pair, client_ca: Authority | None = None, **settings: Any) -> Iterator[Server]:
    ca = None if client_ca is None else client_ca.certificate
    with serving(FakeEngine(), tls_cert=pair.certificate, tls_key=pair.key, tls_client_ca=ca, **settings) as server:
        yield server


def asked(server: Server, ca: Authority | None, pair: Pair | None = None) -> str:
    """What the health service says over a new connection; what gRPC says where there is none."""
    address = server.addresses[0]
    if ca is None:
        channel = grpc.insecure_channel(address)
    else:
        shown = (None, None) if pair is None else (pair.key.read_bytes(), pair.certificate.read_bytes())
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(ca.certificate.read_bytes(), *shown))
    with channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.RpcError as error:
            return str(error.details())
    return "SERVING"


def test_who_trusts_the_authority_is_answered_and_nobody_else(authority: Authority, stranger: Authority) -> None:
    with encrypted(authority.issue("server")) as server:
        assert asked(server, authority) == "SERVING"
        assert "CERTIFICATE_VERIFY_FAILED" in asked(server, stranger)
        assert "Socket closed" in asked(server, None)


def test_a_unix_socket_is_not_encrypted(authority: Authority, tmp_path: Path) -> None:
    with encrypted(authority.issue("server"), listen=(f"unix:{tmp_path}/s.sock", "127.0.0.1:0")) as server:
        assert asked(server, None) == "SERVING"


@pytest.mark.parametrize(
    ("who", "answered"), [("with a certificate", True), ("without one", False), ("by another authority", False), ("with an expired one", False)]
)
def test_where_clients_must_show_a_certificate_only_a_valid_one_is_let_in(
    authority: Authority, stranger: Authority, who: str, answered: bool
) -> None:
    pair = {
        "with a certificate": lambda: authority.issue("client"),
        "without one": lambda: None,
        "by another authority": lambda: stranger.issue("client"),
        "with an expired one": lambda: authority.issue("client", days=-1),
    }[who]()
    with encrypted(authority.issue("server"), client_ca=authority) as server:
        assert (asked(server, authority, pair) == "SERVING") is answered


def test_a_renewed_certificate_is_shown_to_new_connections(authority: Authority, stranger: Authority, caplog: pytest.LogCaptureFixture) -> None:
    pair = authority.issue("renewed")
    with encrypted(pair, listen=("127.0.0.1:0", "127.0.0.1:0")) as server, caplog.at_level("INFO"):
        assert asked(server, authority) == "SERVING"
        renewed = stranger.issue("renewed")
        shutil.copy(renewed.certificate, pair.certificate)
        assert asked(server, authority) == "SERVING", "the key is not there yet"
        shutil.copy(renewed.key, pair.key)
        for _ in server.addresses:
            assert asked(server, stranger) == "SERVING"
            server.addresses = server.addresses[::-1]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_renewed_certificate_that_cannot_be_used_leaves_the_one_before(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    pair = authority.issue("kept")
    with encrypted(pair) as server:
        for break_it in (lambda: authority.issue("kept", days=-1), lambda: pair.certificate.write_text(""), pair.key.unlink):
            caplog.clear()
            break_it()
            for _ in range(2):
                assert asked(server, authority) == "SERVING"
            (record,) = caplog.records
            assert "the certificate that was used before stays" in record.getMessage()


def test_an_authority_of_clients_that_was_replaced_lets_its_own_in_and_no_others(authority: Authority, stranger: Authority, tmp_path: Path) -> None:
    ca = Authority(tmp_path / "clients", "clients")
    with encrypted(authority.issue("server"), client_ca=ca) as server:
        client = ca.issue("client")
        assert asked(server, authority, client) == "SERVING"
        shutil.copy(stranger.certificate, ca.certificate)
        assert asked(server, authority, client) != "SERVING"
        assert asked(server, authority, stranger.issue("client")) == "SERVING"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (("no.pem", "a.key", None), "cannot read .*no.pem: No such file"),
        (("a.pem", "no.key", None), "cannot read .*no.key: No such file"),
        (("a.pem", "a.key", "no.pem"), "cannot read .*no.pem: No such file"),
        (("a.pem", "b.key", None), "the key is another certificate's"),
        (("old.pem", "old.key", None), "certificate has expired"),
        (("empty", "a.key", None), "no PEM"),
        (("a.pem", "locked.key", None), "a passphrase is wanted"),
        (("a.pem", "a.key", "empty"), "empty has no PEM certificate"),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_one_line(authority: Authority, files: tuple[str, str, str | None], says: str) -> None:
    authority.issue("a")
    authority.issue("b")
    authority.issue("old", days=-1)
    (authority.folder / "empty").write_text("")
    authority.openssl("ec", "-in", "a.key", "-aes128", "-passout", "pass:x", "-out", "locked.key")
    with pytest.raises(BadCertificate, match=says) as raised:
        Certificates(*(None if name is None else authority.folder / name for name in files))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    assert raised.value.hint


@contextmanager
def answering(context: ssl.SSLContext) -> Iterator[int]:
    """A server of another kind than gRPC's, on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                try:
                    with context.wrap_socket(connection, server_side=True) as secure:
                        secure.sendall(b"hello")
                except OSError:
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def greeted(port: int, ca: Authority, pair: Pair | None = None, maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bool:
    context = ssl.create_default_context(cafile=ca.certificate)
    context.maximum_version = maximum
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    try:
        with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain, server_hostname="localhost") as secure:
            return secure.recv(5) == b"hello"
    except OSError:
        return False


def test_a_context_for_other_servers_asks_for_the_same_and_is_renewed_alike(authority: Authority, stranger: Authority, tmp_path: Path) -> None:
    pair, clients = authority.issue("web"), Authority(tmp_path / "clients", "clients")
    with answering(Certificates(pair.certificate, pair.key, clients.certificate).ssl_context()) as port:
        client = clients.issue("client")
        assert greeted(port, authority, client)
        assert not greeted(port, authority)
        assert not greeted(port, authority, stranger.issue("client"))
        assert not greeted(port, stranger, client)
        renewed = stranger.issue("web")
        shutil.copy(renewed.certificate, pair.certificate)
        shutil.copy(renewed.key, pair.key)
        shutil.copy(stranger.certificate, clients.certificate)
        assert greeted(port, stranger, stranger.issue("client"))
        assert not greeted(port, stranger, client), "its authority is trusted no more"
        assert not greeted(port, authority, stranger.issue("client"))


def test_versions_of_tls_before_1_2_are_refused(authority: Authority) -> None:
    pair = authority.issue("web")
    context = Certificates(pair.certificate, pair.key).ssl_context()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    with answering(context) as port:
        assert greeted(port, authority, maximum=ssl.TLSVersion.TLSv1_2)
