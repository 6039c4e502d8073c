"""Batches of the OpenAI API: a JSONL file is uploaded, a batch is made of it, results are files again.

Checked against the Batch guide, the API reference ("Batch", "Files") and the types of OpenAI's Python SDK. A batch
carries metadata, so that one whose id was lost is found by the name of its chunk. Completed requests alone are billed;
the others stand in the error file, expired ones with the code ``batch_expired`` and no response.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from proxykd.teacher.batches.api import CLOCKS_DIFFER_S, Caller, Result, Status
from proxykd.teacher.batches.chunks import Chunk
from proxykd.teacher.providers.openai import OpenAIProvider
from proxykd.teacher.replies import Reply, Request, Verdict, as_count, as_object, as_text, parse_json, plain

_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_MAY_PASS = frozenset({"token_limit_exceeded", "rate_limit_exceeded", "queue_full"})
_NAME = "proxykd_chunk"


class OpenAIBatches:
    """Files and batches.

    Args:
        base_url: Address up to and including the version.
        caller: Calls it.
        provider: Reads the results.
    """

    def __init__(self, base_url: str, caller: Caller, provider: OpenAIProvider) -> None:
        self._base_url, self._caller, self._provider = base_url, caller, provider

    def row(self, request: Request) -> bytes:
        """A line of the input file."""
        row = {"custom_id": request.key, "method": "POST", "url": "/v1/chat/completions", "body": request.body}
        return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")

    def envelope(self) -> tuple[bytes, bytes, bytes]:
        """A row a line."""
        return b"", b"\n", b"\n"

    async def create(self, chunk: Chunk, rows: Path) -> str:
        """Upload the rows and make a batch of them."""
        with rows.open("rb") as file:
            form = aiohttp.FormData()
            form.add_field("purpose", "batch")
            form.add_field("file", file, filename=f"{chunk.name}.jsonl", content_type="application/jsonl")
            uploaded = await self._caller.once("POST", f"{self._base_url}/files", data=form, moves_file=True)
        body = {
            "input_file_id": as_text(uploaded["id"]),
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {_NAME: chunk.name},
        }
        made = await self._caller.once("POST", f"{self._base_url}/batches", json=body)
        return as_text(made["id"])

    async def find(self, chunk: Chunk, keys: Collection[str], others: Collection[str]) -> str:
        """The batch whose metadata name the chunk; the newest ones are listed first."""
        params: dict[str, Any] = {"limit": 100}
        while True:
            page = await self._caller.call("GET", f"{self._base_url}/batches", params=params)
            for batch in page["data"]:
                if as_object(batch.get("metadata")).get(_NAME) == chunk.name:
                    return as_text(batch["id"])
            is_older = page["data"] and page["data"][-1].get("created_at", 0) < chunk.prepared_at - CLOCKS_DIFFER_S
            if not page.get("has_more") or not page["data"] or is_older:
                return ""
            params["after"] = page["data"][-1]["id"]

    async def status(self, batch_id: str) -> Status:
        """How far a batch is."""
        batch = await self._batch(batch_id)
        counts, status = as_object(batch.get("request_counts")), as_text(batch["status"])
        failure, codes = "", set()
        if status == "failed":
            errors = as_object(batch.get("errors")).get("data") or []
            codes = {str(one.get("code")) for one in errors}
            failure = plain("; ".join(str(one.get("message")) for one in errors[:3]) or "it does not say why")
        num_done = as_count(counts.get("completed")) + as_count(counts.get("failed"))
        return Status(status in _ENDED, num_done, failure, may_pass=not codes.isdisjoint(_MAY_PASS))

    async def fetch(self, batch_id: str, folder: Path) -> list[Path]:
        """Download the output file and the error file, where they exist."""
        batch, paths = await self._batch(batch_id), []
        for name in ("output_file_id", "error_file_id"):
            if file_id := as_text(batch.get(name)):
                path = folder / f"{name}.jsonl"
                url = f"{self._base_url}/files/{quote(file_id, safe='')}/content"
                await self._caller.call("GET", url, into=path, moves_file=True)
                paths.append(path)
        return paths

    async def _batch(self, batch_id: str) -> Any:
        return await self._caller.call("GET", f"{self._base_url}/batches/{quote(batch_id, safe='')}")

    def result(self, line: bytes) -> Result | None:
        """A line of the output or the error file."""
        try:
            row = as_object(parse_json(line))
            key, response, error = (
                as_text(row["custom_id"]),
                as_object(row.get("response")),
                as_object(row.get("error")),
            )
            if response:
                status = as_count(response["status_code"])
                return Result(key, status, self._provider.judge(status, json.dumps(response["body"]).encode()))
        except (ValueError, KeyError, TypeError):
            return None
        reason = plain(f"{error.get('code', 'no response')}: {error.get('message', '')}")
        return Result(key, 503, Verdict(Reply(error=reason), is_final=False, is_retryable=True))
