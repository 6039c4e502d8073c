"""The real transport against a real server on loopback."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from proxykd.exceptions import StorageError, TeacherUnreachableError
from proxykd.teacher.providers.base import request_of
from proxykd.teacher.transport import AiohttpTransport, HttpResponse

Handler = Callable[[web.Request], Awaitable[web.Response]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Where a server on loopback hands what is posted to ``handler``."""
    app = web.Application()
    app.router.add_post("/v1", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


async def _send(handler: Handler, *, secret: str | None = None, timeout_s: float = 5.0) -> HttpResponse:
    async with (
        serving(handler) as url,
        AiohttpTransport(url, secret=secret, timeout_s=timeout_s, concurrency=2) as transport,
    ):
        return await transport.send(request_of({"q": "Hi"}, {}))


def test_the_body_goes_out_as_json_and_the_response_comes_back_whole() -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(status=429, body=await request.read(), headers={"Retry-After": "3"})

    response = asyncio.run(_send(echo))
    assert (response.status, response.body) == (429, b'{"q":"Hi"}')
    assert response.headers["retry-after"] == "3"


def test_the_secret_is_sent_but_never_comes_back() -> None:
    async def repeat_secret(request: web.Request) -> web.Response:
        return web.Response(text="you sent " + request.headers["Authorization"])

    response = asyncio.run(_send(repeat_secret, secret="sk-123"))
    assert response.body == b"you sent Bearer ***"


def test_without_a_secret_no_header_is_sent() -> None:
    async def names(request: web.Request) -> web.Response:
        return web.Response(text=str("Authorization" in request.headers))

    assert asyncio.run(_send(names)).body == b"False"


def test_a_server_that_is_silent_too_long_is_unreachable() -> None:
    async def sleep(_: web.Request) -> web.Response:
        await asyncio.sleep(2)
        return web.Response()

    with pytest.raises(TeacherUnreachableError, match=r"within 0\.05 s"):
        asyncio.run(_send(sleep, timeout_s=0.05))


def test_a_closed_port_is_unreachable() -> None:
    async def send() -> None:
        async with AiohttpTransport("http://127.0.0.1:9/v1", secret=None, timeout_s=5, concurrency=1) as transport:
            await transport.send(request_of({}, {}))

    with pytest.raises(TeacherUnreachableError, match=r"no answer from http://127\.0\.0\.1:9/v1"):
        asyncio.run(send())


@pytest.mark.parametrize("size", [10, 10**6])
def test_a_disk_that_takes_no_download_is_no_silent_endpoint(tmp_path: Path, size: int) -> None:
    async def results(_: web.Request) -> web.Response:
        return web.Response(body=b"line\n" * size)

    async def download(path: Path) -> None:
        async with serving(results) as url, AiohttpTransport(url, secret=None, timeout_s=5, concurrency=1) as transport:
            await transport.exchange("POST", url, into=path, moves_file=True)

    asyncio.run(download(tmp_path / "whole"))
    assert (tmp_path / "whole").read_bytes() == b"line\n" * size
    for path, why in ((Path("/dev/full"), "No space left"), (tmp_path / "none" / "file", "No such file")):
        with pytest.raises(StorageError, match=rf"expected to write .*{why}.*free its disk") as caught:
            asyncio.run(download(path))
        assert isinstance(caught.value.__cause__, OSError)


def test_it_must_be_open() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(AiohttpTransport("http://x", secret=None, timeout_s=1, concurrency=1).send(request_of({}, {})))
