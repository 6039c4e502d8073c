"""A real ZenML server on loopback: one that pods of a cluster reach, with a service account's key to it."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from tests.support.servers import answers, free_port, served

PASSWORD = "loopback"


@dataclass(frozen=True)
class ZenmlServer:
    """Where it is.

    Attributes:
        address: HTTP address.
        key: API key of a service account that may do anything.
    """

    address: str
    key: str

    def environment(self, folder: Path) -> dict[str, str]:
        """What points a client there; ``folder`` holds the client's own files."""
        return {
            "ZENML_CONFIG_PATH": str(folder / "zenml-client"),
            "ZENML_STORE_URL": self.address,
            "ZENML_STORE_API_KEY": self.key,
            "ZENML_ANALYTICS_OPT_IN": "false",
        }


@contextmanager
def zenml_server(folder: Path) -> Iterator[ZenmlServer]:
    """A ZenML server that keeps its database below ``folder``."""
    port, log = free_port(), folder / "zenml-server.log"
    address = f"http://127.0.0.1:{port}"
    own = {
        "ZENML_CONFIG_PATH": str(folder / "zenml-server"),
        "ZENML_SERVER_DEPLOYMENT_TYPE": "other",
        "ZENML_SERVER_AUTO_ACTIVATE": "true",
        "ZENML_DEFAULT_USER_NAME": "default",
        "ZENML_DEFAULT_USER_PASSWORD": PASSWORD,
        "ZENML_SERVER_JWT_SECRET_KEY": "0" * 64,
        "ZENML_ANALYTICS_OPT_IN": "false",
        "ZENML_LOGGING_VERBOSITY": "WARNING",
        "PYTHONWARNINGS": "ignore",
    }
    (folder / "zenml-server").mkdir(parents=True)
    command = [sys.executable, "-m", "uvicorn", "zenml.zen_server.zen_server_api:app", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--no-access-log", "--log-level", "warning"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ZENML_")}
    with served(command, {**plain, **own}, log, lambda: answers(f"{address}/health")):
        yield ZenmlServer(address, _key(address))


def _key(address: str) -> str:
    """The key of a new service account, which may do anything."""
    login = urlencode({"username": "default", "password": PASSWORD}).encode()
    with urlopen(Request(f"{address}/api/v1/login", login), timeout=60) as answer:
        token = json.load(answer)["access_token"]

    def post(path: str, **body: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = Request(f"{address}/api/v1/{path}", json.dumps(body).encode(), headers)
        with urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    account = post("service_accounts", name="tests", full_name="tests", description="", active=True)
    made = post(f"service_accounts/{account['id']}/api_keys", name="tests", description="")
    return str(made["body"]["key"])
