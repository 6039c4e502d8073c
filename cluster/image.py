"""The image that pods run: whether its registry has it, and whether it was made of the code that is to be run."""

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from cluster.findings import Finding, missing, ok, unchecked
from cluster.services import Reply, ask
from proxykd import own_code
from proxykd.config.addresses import is_loopback

PLACEHOLDER = f"sha256:{'0' * 64}"
"""What stands for the digest in files of the checkout; no image has it."""
REVISION = "org.opencontainers.image.revision"
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_ACCEPTED = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)


class _Repository:
    """A repository of a registry, as anybody may read it."""

    def __init__(self, name: str) -> None:
        host, _, path = name.partition("/")
        if "." not in host and ":" not in host and host != "localhost":
            host, path = "docker.io", name
        if host in ("docker.io", "index.docker.io"):
            host, path = "registry-1.docker.io", path if "/" in path else f"library/{path}"
        self.path = path.rpartition(":")[0] or path
        scheme = "http" if is_loopback(urlsplit(f"//{host}").hostname or "") else "https"
        self.address = f"{scheme}://{host}/v2/{self.path}"
        self.headers: dict[str, str] = {}

    def ask(self, kind: str, digest: str) -> Reply:
        """A manifest or a blob."""
        address = f"{self.address}/{kind}/{digest}"
        reply = ask(address, Accept=_ACCEPTED, **self.headers)
        if reply.status == 401 and (token := _anonymous_token(reply.challenge, self.path)):
            self.headers = {"Authorization": f"Bearer {token}"}
            reply = ask(address, Accept=_ACCEPTED, **self.headers)
        return reply

    def revision(self, manifest: Any) -> str:
        """The commit that a label of the image names; "" = none, or it cannot be read."""
        # Of a list of images the code is the same on each platform; what attests them has none.
        for part in _objects(manifest, "manifests"):
            if _at(part, "platform", "os") != "unknown":
                manifest = _parsed(self.ask("manifests", str(part.get("digest"))))
                break
        if not (digest := _at(manifest, "config", "digest")):
            return ""
        found = _at(_parsed(self.ask("blobs", str(digest))), "config", "Labels", REVISION)
        return found if isinstance(found, str) else ""


def check_image(image: str) -> Iterator[Finding]:
    """The registry has the image's digest; one that wants a login, or is out of reach, is left unchecked."""
    name, _, digest = image.partition("@")
    what = f"image {name}"
    if digest == PLACEHOLDER:
        remedy = "build and push the image, and write its digest into the stack (docs/kubernetes.md, The image)"
        yield missing(what, "its digest is the placeholder of the checkout's files", remedy)
        return
    repository = _Repository(name)
    reply = repository.ask("manifests", digest)
    if reply.status == 200:
        yield _compared(what, digest[:19], repository.revision(_parsed(reply)))
    elif reply.status == 404:
        yield missing(what, f"the registry has no {digest[:19]}...", "push it, or write the digest that was pushed")
    elif reply.status in (401, 403):
        remedy = "nodes that may pull it, or service accounts with imagePullSecrets (k8s/components/private-registry)"
        yield unchecked(what, "the registry wants a login", f"the pods need {remedy}")
    else:
        yield unchecked(what, f"the registry gave no answer ({reply.status or reply.text})")


def _compared(what: str, shown: str, revision: str) -> Finding:
    """The image against the sources here of all that steps run."""
    blobs = _blobs(revision) if _COMMIT.fullmatch(revision) else {}
    if not blobs:
        return unchecked(what, f"{shown} is there; whether it is of this checkout's code, its steps tell")
    if any(_differ(blobs)):
        found = f"it was made of {revision[:12]}, and what steps run differs from that here"
        return missing(what, found, "build and push the image of this checkout, or submit from the one it was made of")
    return ok(what, f"{shown}, of the steps' code here")


def _blobs(revision: str) -> dict[str, str]:
    """Path in the checkout -> hash, of all sources of a commit; {} where git cannot tell."""
    command = ["git", "ls-tree", "-r", "-z", revision, "--", *own_code.ROOMS]
    environ = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1"}
    try:
        asked = subprocess.run(
            command, cwd=own_code.CHECKOUT, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=10.0,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):  # there is no git, or it waits
        return {}
    lines = asked.stdout.decode(errors="replace").split("\0") if asked.returncode == 0 else []
    return {path: facts.split()[-1] for facts, _, path in (line.partition("\t") for line in lines if line)}


def _differ(blobs: dict[str, str]) -> Iterator[bool]:
    """Of each file that steps run, whether it is another here than in a commit."""
    modules = [f"steps.{file.stem}" for file in (own_code.CHECKOUT / "steps").glob("*.py")]
    files = {file for module in modules for file in own_code.code_files(module)}
    for file in files:
        yield blobs.get(file.relative_to(own_code.CHECKOUT).as_posix(), "") not in _hashes(file.read_bytes())


def _hashes(content: bytes) -> Iterator[str]:
    """What git calls a file, its lines ended as here and as in a commit, in either of its formats."""
    for text in (content, content.replace(b"\r\n", b"\n")):
        blob = b"blob %d\0%b" % (len(text), text)
        yield from (hashlib.sha1(blob, usedforsecurity=False).hexdigest(), hashlib.sha256(blob).hexdigest())


def _anonymous_token(challenge: str, repository: str) -> str:
    """A token that a registry gives to anybody for public images; "" = none."""
    kind, _, rest = challenge.partition(" ")
    fields = dict(part.strip().split("=", 1) for part in rest.split(",") if "=" in part)
    realm = fields.get("realm", "").strip('"')
    if kind.lower() != "bearer" or not realm.startswith("https://"):
        return ""
    query = {"service": fields.get("service", "").strip('"'), "scope": f"repository:{repository}:pull"}
    reply = ask(f"{realm}?{urlencode(query, quote_via=quote)}")
    try:
        found = json.loads(reply.text)
    except ValueError:
        return ""
    return str(found.get("token") or found.get("access_token") or "") if isinstance(found, dict) else ""


def _parsed(reply: Reply) -> Any:
    try:
        return json.loads(reply.text) if reply.status == 200 else None
    except (ValueError, RecursionError):
        return None


def _at(found: Any, *keys: str) -> Any:
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _objects(found: Any, key: str) -> list[dict[str, Any]]:
    parts = _at(found, key)
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
