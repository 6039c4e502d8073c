"""A registered student behind an OpenAI-compatible endpoint: finds it, downloads it and keeps a server running.

The server is somebody else's who keeps it well: ``transformers serve``, or ``vllm serve`` where vLLM is installed, as a
process of its own that loads one local folder and never asks the hub. What is here is only which version it serves.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from urllib.error import URLError
from urllib.request import urlopen

from proxykd.exceptions import ConfigError, ModelError, ProxykdError
from proxykd.workspace import Workspace
from steps.adapters.mlflow_registry import CHAMPION, RegisteredVersion, download_version, find_version

START_S, STOP_S = 600.0, 15.0
"""Seconds that a server may take to load the model, and to end."""
_POLL_S = 0.2
_NEEDED = {"transformers": ("transformers", "fastapi", "uvicorn", "openai"), "vllm": ("vllm",)}


def serve(model: str, *, host: str, port: int, engine: str, poll_s: float | None = None) -> None:
    """Serve a registered student until interrupted.

    Args:
        model: ``NAME`` (its champion), ``NAME@ALIAS`` or ``NAME/VERSION``.
        host: Address to listen on.
        port: Port to listen on.
        engine: transformers, vllm, or auto: vllm where it is installed.
        poll_s: Seconds between two looks at the alias, whose new version is then served; None = never look.

    Raises:
        ModelError: if there is no such model, or its tokenizer has no chat template.
        ConfigError: if the engine is not installed or its server ends.
    """
    named = model if "@" in model or "/" in model else f"{model}@{CHAMPION}"
    engine = _engine(engine)
    served, process = find_version(named), None
    with suppress(KeyboardInterrupt), _ended_by_signal():
        try:
            process = _start(served, host, port, engine)
            while process.poll() is None:
                time.sleep(poll_s or _POLL_S)
                if poll_s is not None and (newer := _moved(named, served)) is not None:
                    served, process = _replace(process, served, newer, host, port, engine)
            raise ConfigError(f"the server ended with status {process.returncode}; see its messages above")
        finally:
            if process is not None:
                _stop(process)


def server_command(engine: str, folder: Path, host: str, port: int) -> list[str]:
    """The command that serves a folder under the folder's name; to be run in the folder above.

    Args:
        engine: transformers or vllm.
        folder: Weights and tokenizer.
        host: Address to listen on.
        port: Port to listen on.
    """
    # -P: what is imported does not depend on the folder above.
    program = [sys.executable, "-P", "-m"]
    where = ["--host", host, "--port", str(port)]
    if engine == "vllm":
        return [*program, "vllm.entrypoints.cli.main", "serve", folder.name, "--served-model-name", folder.name, *where]
    return [*program, "transformers.cli.transformers", "serve", folder.name, *where]


def _engine(wanted: str) -> str:
    if wanted == "auto":
        wanted = "vllm" if find_spec("vllm") else "transformers"
    if missing := [name for name in _NEEDED[wanted] if find_spec(name) is None]:
        extra = "proxykd's extra `serving`" if wanted == "transformers" else "vLLM"
        raise ConfigError(f"expected {extra} to serve with {wanted}, found no {', '.join(missing)}; install it")
    return wanted


def _start(served: RegisteredVersion, host: str, port: int, engine: str) -> "subprocess.Popen[bytes]":
    folder = _folder_of(served)
    # A hub's cache of its own, which stays empty: no client can have another model loaded from the user's.
    cache = Workspace.default().root / "served" / ".hub"
    cache.mkdir(exist_ok=True)
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    process = subprocess.Popen(server_command(engine, folder, host, port), cwd=folder.parent, env=offline)
    try:
        _await(process, host, port)
    except BaseException:
        _stop(process)
        raise
    shown = f"[{host}]" if ":" in host else host
    print(
        f"version {served.version} of {served.model_name} at http://{shown}:{port}/v1 (model: {served.model_name!r})",
        flush=True,
    )
    return process


def _await(process: "subprocess.Popen[bytes]", host: str, port: int) -> None:
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ConfigError(
                f"expected a server on {host}:{port}, but it ended with status {process.returncode}; see its messages "
                "above (a port that is in use: choose another with --port)"
            )
        try:
            with urlopen(f"http://{name}:{port}/health", timeout=2.0):
                return
        except (URLError, OSError):
            time.sleep(_POLL_S)
    raise ConfigError(f"expected a server on {host}:{port} within {START_S:.0f} s; the model may be too large here")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _moved(named: str, served: RegisteredVersion) -> RegisteredVersion | None:
    """The version that the alias points to by now; None = the same, or nobody can say."""
    try:
        newest = find_version(named)
    except ProxykdError as error:
        print(f"version {served.version} is served further: {error}", file=sys.stderr, flush=True)
        return None
    return None if newest.version == served.version else newest


def _replace(
    process: "subprocess.Popen[bytes]",
    served: RegisteredVersion,
    newer: RegisteredVersion,
    host: str,
    port: int,
    engine: str,
) -> "tuple[RegisteredVersion, subprocess.Popen[bytes]]":
    """Serve another version at the same address; the one before again, if the other one cannot be served."""
    try:
        _folder_of(newer)
    except ProxykdError as error:
        print(f"version {served.version} is served further: {error}", file=sys.stderr, flush=True)
        return served, process
    _stop(process)
    try:
        return newer, _start(newer, host, port, engine)
    except ConfigError as error:
        print(f"back to version {served.version}: {error}", file=sys.stderr, flush=True)
        return served, _start(served, host, port, engine)


def _folder_of(served: RegisteredVersion) -> Path:
    """The version's files below the workspace, complete or not there; the folder has the model's name."""
    root = Workspace.default().root / "served" / served.model_name / f"{served.version}-{served.student_hash[:12]}"
    folder = root / served.model_name
    if not folder.exists():
        root.mkdir(parents=True, exist_ok=True)
        with Workspace.default().temporary_folder("serving") as scratch:
            shutil.move(download_version(served, scratch), folder)
    if not (list(folder.glob("chat_template*")) or "chat_template" in (folder / "tokenizer_config.json").read_text()):
        raise ModelError(
            f"expected a tokenizer with a chat template in version {served.version} of {served.model_name}, found "
            "none: it takes text and not messages; load it as docs/registry.md shows"
        )
    return folder


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """SIGTERM ends it as Ctrl-C does, so that the server ends too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
