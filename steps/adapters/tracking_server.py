"""The address of the tracking server: shown without its key, and tried before anything is spent.

Neither needs MLflow, whose import takes seconds and whose own retries take minutes.
"""

import base64
import os
import re
import ssl
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from proxykd.config.addresses import fault_of_tracking
from proxykd.exceptions import ConfigError

TIMEOUT_S = 5.0
_USERINFO = re.compile(r"(?<=://)[^/?#\s]*@")
_REFUSALS = {401, 403}


def without_userinfo(uri: str) -> str:
    """An address, or a text that holds some, without user names and passwords."""
    return _USERINFO.sub("", uri)


def check_tracking_server(uri: str) -> None:
    """Make one cheap call to an MLflow server; databases and folders pass.

    Args:
        uri: MLflow's tracking URI.

    Raises:
        ConfigError: if nobody answers there, the server fails, or it refuses our key; or if the address is of no kind
            that MLflow knows.
    """
    shown, status = without_userinfo(uri), None
    if fault := fault_of_tracking(uri):
        raise ConfigError(
            f"expected an address that MLflow knows at MLFLOW_TRACKING_URI={shown}, {fault}, or unset the variable to "
            "track in the workspace"
        )
    if urlsplit(uri).scheme not in ("http", "https"):
        return
    try:
        status = _status_of(uri)
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            return  # somebody is there, and MLflow has settings of its own for whom to trust
        raise ConfigError(
            f"expected an MLflow server at MLFLOW_TRACKING_URI={shown}, got no answer ({reason}); start it, correct "
            "the address, or unset the variable to track in the workspace"
        ) from None
    # A plug-in named there signs the requests in its own way.
    if status in _REFUSALS and "MLFLOW_TRACKING_AUTH" not in os.environ:
        raise ConfigError(
            f"the MLflow server at MLFLOW_TRACKING_URI={shown} refused our key (HTTP {status}); set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if status >= 500:
        raise ConfigError(
            f"expected a working MLflow server at MLFLOW_TRACKING_URI={shown}, got HTTP {status}; mend it, or unset "
            "the variable to track in the workspace"
        )


def _status_of(uri: str) -> int:
    found, headers = _USERINFO.search(uri), {}
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    userinfo = unquote(found[0][:-1]) if found else ":".join(os.environ.get(name, "") for name in names)
    if userinfo.strip(":"):
        headers["Authorization"] = f"Basic {base64.b64encode(userinfo.encode()).decode()}"
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    request = Request(f"{without_userinfo(uri).rstrip('/')}/health", headers=headers)
    try:
        with urlopen(request, timeout=TIMEOUT_S) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code
