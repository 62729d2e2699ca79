"""TLS to both databases, with certificates of an authority of our own."""

import ipaddress
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from psycopg.conninfo import make_conninfo

from cdc.errors import ReadRefused, SourceRefused
from cdc.servers import Server, process
from cdc.sink.engine import connect as connect_read
from cdc.sink.engine import create_engine
from cdc.source.connection import connect, connect_replication
from tests.conftest import FAST, Configuration, Database, RunningDaemon, installation, require
from tests.mariadb import MariaDB, find

Start = Callable[..., RunningDaemon]


class Authority:
    """A certificate authority."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, file.stem)])
        is_authority = x509.BasicConstraints(ca=True, path_length=0)
        made = self._signed(self._name, self._key, is_authority, critical=True)
        file.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def issue(self, certificate: Path, key: Path) -> None:
        """Write the certificate of a server at 127.0.0.1, and its key."""
        own = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        made = self._signed(name, own, x509.SubjectAlternativeName([address]), critical=False)
        certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        key.write_bytes(
            own.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        key.chmod(0o600)

    def _signed(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        extension: x509.ExtensionType,
        *,
        critical: bool,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(self._name, name, key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1))
        builder = builder.not_valid_after(now + timedelta(days=1))
        return builder.add_extension(extension, critical=critical).sign(self._key, hashes.SHA256())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "authority.pem")


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[Server]:
    """A server for both sides that takes no connection over TCP without TLS."""
    with Server(installation(), FAST) as running:
        data = running.folder / "data"
        authority.issue(data / "server.crt", data / "server.key")
        hba = data / "pg_hba.conf"
        hba.write_text(hba.read_text().replace("\nhost ", "\nhostssl "))
        process.own(data, process.server_account())
        running.configure({"ssl": True})
        running.restart()
        yield running


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    made = Database(server)
    yield made
    made.close()


@pytest.fixture
def read(server: Server) -> Iterator[Database]:
    made = Database(server)
    yield made
    made.close()


def verified(database: Database, authority: Path, host: str = "127.0.0.1") -> str:
    wanted = {"sslmode": "verify-full", "sslrootcert": str(authority)}
    return make_conninfo(database.dsn, host=host, hostaddr="127.0.0.1", **wanted)


def verified_url(database: Database, authority: Path, host: str = "127.0.0.1") -> str:
    url = f"{database.server.url(database.name)}?sslmode=verify-full&sslrootcert={authority}"
    return url.replace("127.0.0.1", host) + "&hostaddr=127.0.0.1"


def test_streams_copies_and_writes_by_verified_tls_alone(
    database: Database,
    read: Database,
    authority: Authority,
    tmp_path: Path,
    cdc_start: Start,
) -> None:
    database.run("create table t (id int primary key)", "insert into t values (1)")
    source = {"dsn": verified(database, authority.file), "slot": "tls", "plugin": "pgoutput"}
    sections = {
        "source": source,
        "read": {"url": verified_url(read, authority.file)},
        "projection": {"mirrors": [{"source": "public.t"}]},
        "http": {"listen": "127.0.0.1:0"},
    }
    daemon = cdc_start(Configuration(tmp_path, sections))
    daemon.wait_for(database.run("insert into t values (2)"))
    assert read.texts("t") == [("1",), ("2",)]
    sessions = database.rows(
        "select a.backend_type, bool_and(s.ssl) from pg_stat_activity a join pg_stat_ssl s "
        "using (pid) where a.application_name = 'cdc' group by 1 order by 1"
    )
    assert sessions == [("client backend", True), ("walsender", True)]
    assert daemon.stop() == 0


FAULTS = {
    "another authority": "sslrootcert",
    "another host": "host",
    "no authority": "sslrootcert",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_cannot_be_verified_is_refused_with_the_remedy(
    database: Database, authority: Authority, tmp_path: Path, fault: str
) -> None:
    file = {
        "another authority": Authority(tmp_path / "other.pem").file,
        "another host": authority.file,
        "no authority": tmp_path / "missing.pem",
    }[fault]
    host = "elsewhere.example" if fault == "another host" else "127.0.0.1"
    for opens in (connect, connect_replication):
        with pytest.raises(SourceRefused) as refused:
            opens(verified(database, file, host)).close()
        assert FAULTS[fault] in str(refused.value.hint)
        assert "source.dsn" in str(refused.value.hint)
    with pytest.raises(ReadRefused) as refused_there:
        connect_read(create_engine(verified_url(database, file, host)))
    assert FAULTS[fault] in str(refused_there.value.hint)
    assert "read.url" in str(refused_there.value.hint)


@pytest.fixture
def mariadb(authority: Authority) -> Iterator[MariaDB]:
    require(find(), "a MariaDB server")
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = Path(folder, "server.crt"), Path(folder, "server.key")
        authority.issue(certificate, key)
        process.own(Path(folder), process.server_account())
        with MariaDB({"ssl_cert": certificate, "ssl_key": key}) as server:
            yield server


def test_mariadb_is_verified_too(mariadb: MariaDB, authority: Authority, tmp_path: Path) -> None:
    name = mariadb.create_database()
    mariadb.query("alter user cdc@'%' require ssl")
    url = f"{mariadb.url(name, 'cdc')}?ssl_ca="
    with closing(connect_read(create_engine(f"{url}{authority.file}"))) as connection:
        status = connection.exec_driver_sql("show status like 'ssl_cipher'").one()
        assert status[1]
    with pytest.raises(ReadRefused, match="CERTIFICATE_VERIFY_FAILED") as refused:
        connect_read(create_engine(f"{url}{Authority(tmp_path / 'other.pem').file}"))
    assert "ssl_ca" in str(refused.value.hint)
