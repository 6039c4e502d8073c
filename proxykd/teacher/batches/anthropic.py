"""Message batches of the Anthropic API: one call submits all requests, results are a stream of lines.

Checked against the reference ("Create a Message Batch", "Retrieve Message Batch results", "List Message Batches"), the
batch processing guide and the types of Anthropic's Python SDK. Errored, cancelled and expired requests are not billed.

A batch carries no name of ours. One whose id was lost is found among those that were made since, have as many requests,
and, once they are ended, name our requests in their results; until then nothing is submitted again.
"""

import json
import tempfile
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from proxykd.teacher.batches.api import CLOCKS_DIFFER_S, Caller, NotNow, RefusedError, Result, Status
from proxykd.teacher.batches.chunks import Chunk
from proxykd.teacher.providers.anthropic import AnthropicProvider
from proxykd.teacher.replies import Reply, Request, Verdict, as_count, as_object, as_text, parse_json

_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")


class AnthropicBatches:
    """Message batches.

    Args:
        base_url: Address up to and including the version.
        caller: Calls it.
        provider: Reads the results.
    """

    def __init__(self, base_url: str, caller: Caller, provider: AnthropicProvider) -> None:
        self._url, self._caller, self._provider = f"{base_url}/messages/batches", caller, provider

    def row(self, request: Request) -> bytes:
        """An element of ``requests``."""
        row = {"custom_id": request.key, "params": request.body}
        return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")

    def envelope(self) -> tuple[bytes, bytes, bytes]:
        """An object with the list of requests."""
        return b'{"requests": [', b",", b"]}"

    async def create(self, chunk: Chunk, rows: Path) -> str:
        """Submit the file as the body of one call."""
        with rows.open("rb") as file:
            headers = {"content-type": "application/json"}
            made = await self._caller.once("POST", self._url, data=file, headers=headers, moves_file=True)
        return as_text(made["id"])

    async def find(self, chunk: Chunk, keys: Collection[str], others: Collection[str]) -> str:
        """The batch that has as many requests, was made since, and names ours; the newest ones are listed first."""
        params: dict[str, Any] = {"limit": 100}
        has_running = False
        while True:
            page = await self._caller.call("GET", self._url, params=params)
            made_at = 0.0
            for batch in page["data"]:
                batch_id, made_at = as_text(batch["id"]), datetime.fromisoformat(batch["created_at"]).timestamp()
                counts = as_object(batch.get("request_counts"))
                num_requests = sum(as_count(counts.get(name)) for name in _COUNTS)
                is_candidate = made_at >= chunk.prepared_at - CLOCKS_DIFFER_S and num_requests == chunk.num_requests
                if not is_candidate or batch_id in others:
                    continue
                if as_text(batch["processing_status"]) != "ended":
                    has_running = True
                elif await self._names(batch_id, keys):
                    return batch_id
            if not page.get("has_more") or made_at < chunk.prepared_at - CLOCKS_DIFFER_S:
                break
            params["after_id"] = page["last_id"]
        if has_running:
            raise NotNow
        return ""

    async def _names(self, batch_id: str, keys: Collection[str]) -> bool:
        with tempfile.TemporaryDirectory(prefix="proxykd-") as folder:
            try:
                (path,) = await self.fetch(batch_id, Path(folder))
            except RefusedError:  # its results are archived: it is weeks old
                return False
            with path.open("rb") as lines:
                found = self.result(next(lines, b""))
        return found is not None and found.key in keys

    async def status(self, batch_id: str) -> Status:
        """How far a batch is."""
        batch = await self._caller.call("GET", f"{self._url}/{quote(batch_id, safe='')}")
        counts = as_object(batch.get("request_counts"))
        num_done = sum(as_count(counts.get(name)) for name in _COUNTS[1:])
        return Status(as_text(batch["processing_status"]) == "ended", num_done)

    async def fetch(self, batch_id: str, folder: Path) -> list[Path]:
        """Download the results; from our own address, so that the key goes nowhere else."""
        path = folder / "results.jsonl"
        url = f"{self._url}/{quote(batch_id, safe='')}/results"
        await self._caller.call("GET", url, into=path, moves_file=True)
        return [path]

    def result(self, line: bytes) -> Result | None:
        """A line of the results."""
        try:
            row = as_object(parse_json(line))
            key, result = as_text(row["custom_id"]), as_object(row["result"])
            kind = as_text(result["type"])
            if kind == "succeeded":
                return Result(key, 200, self._provider.judge(200, json.dumps(result["message"]).encode()))
            if kind == "errored":
                envelope = as_object(result["error"])
                error = as_object(envelope.get("error", envelope))
                status = _STATUSES.get(as_text(error.get("type")), 500)
                body = json.dumps({"error": error}).encode()
                return Result(key, status, self._provider.judge(status, body))
        except (ValueError, KeyError, TypeError):
            return None
        return Result(key, 503, Verdict(Reply(error=f"{kind} in its batch"), is_final=False, is_retryable=True))
