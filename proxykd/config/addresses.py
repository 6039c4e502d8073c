"""What an address alone tells: where its host lies (on the machine that asks, on the Internet, or elsewhere), its kind.

Nothing is looked up: a public name of a private address is taken for what it looks like.
"""

import re
from importlib.metadata import entry_points
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal
from urllib.parse import urlsplit

Way = Literal["loopback", "internet", "elsewhere"]
_PORTS = {"https": 443, "http": 80}
_PRIVATE = (".svc", ".local", ".internal")
_TRACKING_PLUGINS = "mlflow.tracking_store"
_DATABASES = {"mssql", "mysql", "postgresql", "sqlite"}
_TRACKING = {"databricks", "databricks-uc", "file", "http", "https", "uc", *_DATABASES}
_WITHOUT_SCHEME = re.compile(r"[\w.-]+:\d+(/|$)")


def is_loopback(host: str) -> bool:
    """Whether a host is whoever asks: localhost, 127.0.0.0/8, ::1, or the address that stands for all of one's own.

    Args:
        host: Name or IP address, without brackets or port.
    """
    name = host.lower().removesuffix(".")
    address = _ip_address(host)
    if address is None:
        return name == "localhost" or name.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def way_to(url: str) -> Way:
    """Which way leads there: none out of the machine, HTTPS on the Internet's port 443, or any other.

    Args:
        url: With its scheme; a port that it lacks is its scheme's.
    """
    host, port = endpoint(url)
    if is_loopback(host):
        return "loopback"
    address = _ip_address(host)
    is_public = address.is_global if address else "." in host.rstrip(".") and not host.rstrip(".").endswith(_PRIVATE)
    return "internet" if is_public and port == _PORTS["https"] else "elsewhere"


def endpoint(url: str) -> tuple[str, int]:
    """Host and port of an address whose scheme is http or https."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or _PORTS[parts.scheme]


def fault_of_tracking(uri: str) -> str:
    """What is wrong with the kind of an address of MLflow's: "" for one that it or one of its plug-ins knows."""
    if _WITHOUT_SCHEME.match(uri):
        return f"got a host and a port alone; write http://{uri}"
    scheme = urlsplit(uri).scheme
    known = _TRACKING | {plugin.name for plugin in entry_points(group=_TRACKING_PLUGINS)}
    is_driver = scheme.partition("+")[0] in _DATABASES
    if not scheme or scheme in known or is_driver:
        return ""
    return f"got the scheme {scheme!r}; use one of {', '.join(sorted(_TRACKING))}"


def _ip_address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
