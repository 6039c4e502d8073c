"""A PostgreSQL server that takes connections by TLS alone, out of Debian's or Ubuntu's packages.

The one in the Python package that other tests take is built without TLS.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.servers import free_port, served

PASSWORD = "of-a-test"
UNPRIVILEGED = "nobody"
"""Who runs the server where the tests run as root, whom it refuses."""


def program(name: str) -> Path | None:
    """One of the server's programs; None = it is not on this machine."""
    packaged = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name)
    return Path(found) if found else next(reversed(packaged), None)


@contextmanager
def postgresql_tls(certificate: Path, key: Path) -> Iterator[str]:
    """A server with this certificate; gives ``postgresql+psycopg://USER:PASSWORD@localhost:PORT/NAME``.

    Args:
        certificate: In PEM, for ``localhost``.
        key: Its private key, in PEM.

    Raises:
        FileNotFoundError: without a server's programs on this machine.
    """
    initdb, postgres = program("initdb"), program("postgres")
    if initdb is None or postgres is None:
        raise FileNotFoundError("expected PostgreSQL's initdb and postgres; install the package postgresql")
    user: dict[str, Any] = {"user": UNPRIVILEGED, "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="proxykd-postgresql-tls-") as name:
        folder, port = Path(name), free_port()
        (folder / "password").write_text(PASSWORD)
        (folder / "certificate.pem").write_bytes(certificate.read_bytes())
        (folder / "key.pem").write_bytes(key.read_bytes())
        (folder / "key.pem").chmod(0o600)
        (folder / "hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        if user:
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, UNPRIVILEGED, "nogroup")
        made = [initdb, "--pgdata", folder / "data", "--username", "mlflow", "--pwfile", folder / "password"]
        subprocess.run([*made, "--auth", "scram-sha-256", "--no-sync"], check=True, capture_output=True, **user)
        settings = {
            "ssl": "on", "ssl_cert_file": folder / "certificate.pem", "ssl_key_file": folder / "key.pem",
            "hba_file": folder / "hba.conf", "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
            "port": port, "fsync": "off",
        }  # fmt: skip
        command = [str(postgres), "-D", str(folder / "data")]
        command += [word for each, value in settings.items() for word in ("-c", f"{each}={value}")]
        uri = f"postgresql+psycopg://mlflow:{PASSWORD}@localhost:{port}/postgres"
        with served(command, dict(os.environ), folder / "log", lambda: _answers(uri), **user):
            yield uri


def _answers(uri: str) -> bool:
    import psycopg

    try:
        psycopg.connect(f"{uri.replace('+psycopg', '')}?sslmode=require").close()
    except psycopg.OperationalError:
        return False
    return True
