"""
Tokens and certificates in a database: configured, used, and kept from everybody else.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from authority import Authority
from conftest import Connection
from installs import BOTH, Install
from program import eventually
from servers import Sidecar, running_sidecar
from vectors import one
from workers import drain, working

from nv_embed import tokens
from nv_embed.client import Client
from nv_embed.cluster import Cluster
from nv_embed.worker import find_sidecar

CONFIGURE = "SELECT nv_embed.configure(%(endpoint)s, token => %(token)s, ca => %(ca)s, certificate => %(certificate)s, key => %(key)s)"
SECRETS = ("token", "ca", "certificate", "key")


@dataclass(frozen=True)
class Guarded:
    """A sidecar that asks for a token, over TLS, and for a client certificate.

    Attributes:
        file: of its tokens.
        shown: what a client must give, by the names of `configure`.
    """

    sidecar: Sidecar
    file: Path
    authority: Authority
    shown: dict[str, str]


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[Guarded]:
    folder = folder / "guarded-sql"
    folder.mkdir()
    authority = Authority(folder / "authority")
    server, client = authority.issue("server"), authority.issue("client")
    file = folder / "tokens.toml"
    token = tokens.add(file, "database")
    options = ("--tokens", str(file), "--tls-cert", str(server.certificate), "--tls-key", str(server.key))
    with running_sidecar(folder, "--model", "fake", "--listen", "127.0.0.1:0", *options, "--tls-client-ca", str(authority.certificate)) as sidecar:
        shown = {
            "endpoint": next(address for address in sidecar.ready["addresses"] if address.startswith("127.")),
            "token": token,
            "ca": authority.certificate.read_text(),
            "certificate": client.certificate.read_text(),
            "key": client.key.read_text(),
        }
        yield Guarded(sidecar, file, authority, shown)


def settings(db: Connection) -> dict[str, object]:
    with db.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        found = cursor.execute("SELECT * FROM nv_embed.settings").fetchone()
    assert found is not None
    return found


def test_a_sidecar_with_a_token_tls_and_client_certificates_is_used(db: Connection, guarded: Guarded, client: Client) -> None:
    db.execute(CONFIGURE, guarded.shown)
    assert one(db, "SELECT vector_dims(nv_embed('hello', 384))") == 384
    assert one(db, "SELECT vector_dims(nv_embed_query('hello', 384))") == 384
    assert one(db, "SELECT count(*) FROM nv_embed.models()") == 1
    assert one(db, "SELECT serving FROM nv_embed.health()") is True
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    db.execute("INSERT INTO docs VALUES (1, 'hello')")
    assert db.execute("SELECT (hit).id FROM nv_search(NULL::docs, 'hello')").fetchall() == [(1,)]


@pytest.mark.parametrize("token", [None, "nve_wrong"])
def test_no_token_or_a_wrong_one_is_sqlstate_28000_and_is_not_quoted(db: Connection, guarded: Guarded, token: str | None) -> None:
    db.execute(CONFIGURE, {**guarded.shown, "token": token})
    with pytest.raises(psycopg.errors.InvalidAuthorizationSpecification) as raised:
        db.execute("SELECT nv_embed('hello')")
    assert raised.value.sqlstate == "28000"
    assert raised.value.diag.message_hint
    assert "nve_wrong" not in f"{raised.value}{raised.value.diag.context}{raised.value.diag.message_detail}"


def test_vectors_are_searched_and_measured_though_the_sidecar_refuses_the_database(db: Connection, guarded: Guarded) -> None:
    db.execute(CONFIGURE, guarded.shown)
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384); INSERT INTO docs VALUES (1, 'hello')")
    asked = one(db, "SELECT nv_embed_query('hello', 384)::text")
    db.execute(CONFIGURE, {**guarded.shown, "token": "nve_wrong"})
    for dim in (None, 384):
        assert one(db, "SELECT (hit).id FROM nv_search(NULL::docs, %s::vector, dim => %s)", [asked, dim]) == 1
    widths = db.execute("SELECT DISTINCT dim FROM nv_embed.storage_report('docs') WHERE dim IS NOT NULL").fetchall()
    assert widths == [(384,)]


def test_a_session_takes_another_token_as_soon_as_it_is_configured(connect: Callable[..., Connection], guarded: Guarded) -> None:
    owner, app = connect(), connect("app")
    owner.execute(CONFIGURE, {**guarded.shown, "token": "nve_wrong"})
    with pytest.raises(psycopg.errors.InvalidAuthorizationSpecification):
        app.execute("SELECT nv_embed('hello')")
    owner.execute("SELECT nv_embed.configure(%s, token => %s)", [guarded.shown["endpoint"], guarded.shown["token"]])
    assert one(app, "SELECT vector_dims(nv_embed('hello', 384))") == 384


def test_a_token_that_is_rotated_in_the_sidecars_file_lets_in_without_a_restart(connect: Callable[..., Connection], guarded: Guarded) -> None:
    owner = connect()
    new = tokens.add(guarded.file, "database-2")
    owner.execute(CONFIGURE, {**guarded.shown, "token": new})

    def embeds() -> bool:
        try:
            return bool(one(owner, "SELECT vector_dims(nv_embed('hello', 384))") == 384)
        except psycopg.errors.InvalidAuthorizationSpecification:
            return False

    assert eventually(embeds)
    tokens.remove(guarded.file, "database-2")
    assert eventually(lambda: not embeds())


def test_a_sidecar_that_is_not_the_authoritys_is_not_sent_anything(db: Connection, guarded: Guarded, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    db.execute(CONFIGURE, {**guarded.shown, "ca": stranger.certificate.read_text()})
    with pytest.raises(psycopg.errors.SystemError, match="not by the authority that is trusted") as raised:
        db.execute("SELECT nv_embed('hello')")
    assert "127.0.0.1" not in str(raised.value)


@BOTH
def test_credentials_stay_with_their_endpoint_and_go_with_another_one(db: Connection, guarded: Guarded) -> None:
    shown = guarded.shown
    db.execute(CONFIGURE, shown)
    assert {name: settings(db)[name] for name in shown} == shown
    db.execute("SELECT nv_embed.configure(%s, 30)", [shown["endpoint"]])
    assert {name: settings(db)[name] for name in shown} == shown
    db.execute("SELECT nv_embed.configure(%s, token => '')", [shown["endpoint"]])
    assert [settings(db)[name] is None for name in SECRETS] == [True, False, False, False]
    db.execute(CONFIGURE, shown)
    db.execute("SELECT nv_embed.configure(%s, ca => 'system')", [shown["endpoint"]])
    assert [settings(db)[name] for name in SECRETS] == [None, "system", None, None]
    db.execute(CONFIGURE, shown)
    db.execute("SELECT nv_embed.configure('127.0.0.1:1')")
    assert [settings(db)[name] for name in SECRETS] == [None] * 4


@BOTH
def test_what_cannot_be_used_is_refused_without_quoting_it(connect: Callable[..., Connection], guarded: Guarded) -> None:
    owner = connect()
    pem, key = guarded.shown["certificate"], guarded.shown["key"]
    for arguments, says in (
        ({"token": "nve_secret\n"}, "the token has characters"),
        ({"token": "nve_secret", "endpoint": "sidecar:50051"}, "the token would go over the network unencrypted"),
        ({"token": "nve_secret", "endpoint": "127.0.0.1.example:50051"}, "the token would go over the network unencrypted"),
        ({"ca": "/etc/nve_secret.pem"}, "the ca has no PEM certificate"),
        ({"ca": "system", "certificate": "nve_secret", "key": key}, "the certificate or the key is not PEM"),
        ({"ca": "system", "certificate": pem}, "a certificate needs its key"),
        ({"certificate": pem, "key": key}, "a certificate needs its key, and a ca"),
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=says) as raised:
            owner.execute(CONFIGURE, {"endpoint": "127.0.0.1:1", **dict.fromkeys(SECRETS), **arguments})
        assert raised.value.diag.message_hint
        said = f"{raised.value}{raised.value.diag.context}{raised.value.diag.message_detail}"
        assert "nve_secret" not in said
        assert "PRIVATE" not in said
    owner.execute("SELECT nv_embed.configure('sidecar:50051', token => 'nve_secret', token_without_tls => true)")
    for endpoint in ("unix:/run/sidecar.sock", "localhost:50051", "127.0.0.1:50051", "[::1]:50051"):
        owner.execute("SELECT nv_embed.configure(%s, token => 'nve_secret')", [endpoint])


@BOTH
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT token FROM nv_embed.settings",
        "SELECT s FROM nv_embed.settings AS s",
        "COPY nv_embed.settings (key) TO STDOUT",
    ],
)
def test_an_ordinary_role_cannot_read_them(connect: Callable[..., Connection], guarded: Guarded, statement: str) -> None:
    connect().execute(CONFIGURE, guarded.shown)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connect("app").execute(statement)


def test_they_are_no_setting_and_not_in_statistics_about_the_table(connect: Callable[..., Connection], guarded: Guarded) -> None:
    owner, app = connect(), connect("app")
    owner.execute(CONFIGURE, guarded.shown)
    owner.execute("ANALYZE nv_embed.settings")
    app.execute("SELECT nv_embed('hello')")
    for connection in (owner, app):
        assert one(connection, "SELECT count(*) FROM pg_settings WHERE setting LIKE '%%nve_%%'") == 0
    assert one(app, "SELECT count(*) FROM pg_stats WHERE tablename = 'settings'") == 0


def test_a_member_of_nv_embed_admin_cannot_have_the_token_sent_elsewhere(connect: Callable[..., Connection], guarded: Guarded) -> None:
    owner, app = connect(), connect("app")
    owner.execute(CONFIGURE, guarded.shown)
    owner.execute("GRANT nv_embed_admin TO app")
    try:
        same = f"'{guarded.shown['endpoint']}'"
        for elsewhere in ("'127.0.0.1:1'", f"{same}, ca => ''", f"{same}, ca => 'system'", f"{same}, token_without_tls => true"):
            owner.execute(CONFIGURE, guarded.shown)
            app.execute(f"SELECT nv_embed.configure({elsewhere})")
            assert settings(owner)["token"] is None
            assert settings(owner)["key"] is None
    finally:
        owner.execute("REVOKE nv_embed_admin FROM app")


@BOTH
def test_a_worker_finds_them_in_the_database(connect: Callable[..., Connection], install: Install, own_database: str, guarded: Guarded) -> None:
    owner, dsn = connect(), install.dsn(own_database)
    owner.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    owner.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, mode => 'async')")
    owner.execute("INSERT INTO docs VALUES (1, 'hello')")
    owner.execute(CONFIGURE, guarded.shown)
    endpoint, credentials = find_sidecar(dsn)
    assert endpoint == guarded.shown["endpoint"]
    drain(dsn, endpoint, credentials=credentials)
    assert one(owner, "SELECT count(embedding) FROM docs") == 1


def test_a_worker_whose_token_is_refused_raises_an_alarm_fails_no_row_and_goes_on_when_it_is_let_in(
    connect: Callable[..., Connection], install: Install, own_database: str, guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    owner = connect()
    owner.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    owner.execute(CONFIGURE, guarded.shown)
    owner.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, mode => 'async')")
    owner.execute("INSERT INTO docs VALUES (1, 'hello')")
    endpoint, credentials = find_sidecar(install.dsn(own_database))
    late = "nve_late"
    with working(install.dsn(own_database), endpoint, credentials={**credentials, "token": late}):
        assert eventually(lambda: "the token is not one of this sidecar's" in caplog.text)
        assert "ERROR" in {record.levelname for record in caplog.records}
        assert one(owner, "SELECT count(*) FROM nv_embed.failures") == 0
        with guarded.file.open("a") as file:
            file.write(f'[late]\nsha256 = "{tokens.hash_token(late)}"\n')
        assert eventually(lambda: one(owner, "SELECT count(embedding) FROM docs") == 1)
    assert late not in caplog.text
    tokens.remove(guarded.file, "late")


@BOTH
def test_the_servers_log_has_nothing_of_them_when_they_come_as_parameters(
    connect: Callable[..., Connection], cluster: Cluster, guarded: Guarded
) -> None:
    owner = connect()
    written = len(cluster.log.read_text())
    for token in ("nve_wrong", "nve_wrong\n"):
        with suppress(psycopg.errors.InvalidParameterValue):
            owner.execute(CONFIGURE, {**guarded.shown, "token": token})
        with pytest.raises(psycopg.Error):
            owner.execute("SELECT nv_embed('hello')")
    log = cluster.log.read_text()[written:]
    assert "nv_embed.configure($1" in log
    for secret in ("nve_wrong", "PRIVATE KEY"):
        assert secret not in log


def test_the_sidecars_log_holds_neither_tokens_nor_texts(connect: Callable[..., Connection], guarded: Guarded) -> None:
    owner = connect()
    for token in (guarded.shown["token"], "nve_wrong"):
        owner.execute(CONFIGURE, {**guarded.shown, "token": token})
        try:
            owner.execute("SELECT nv_embed('Xylophonquark')")
        except psycopg.errors.InvalidAuthorizationSpecification:
            assert token == "nve_wrong"
    log = (guarded.sidecar.folder / "sidecar.log").read_text()
    assert "Xylophonquark" not in log
    assert "nve_" not in log
