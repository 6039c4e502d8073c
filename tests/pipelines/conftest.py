"""One undisturbed run of the tiny specification, which the tests of this folder share."""

import fcntl
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.support.program import Finished, Home


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Home, Finished]:
    """The first run in a fresh workspace; of several processes that share the tests, the first to ask makes it."""
    base = tmp_path_factory.getbasetemp()
    told = (base.parent if hasattr(request.config, "workerinput") else base) / "undisturbed.json"
    with told.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not told.exists():
            home = Home.create(tmp_path_factory.mktemp("undisturbed"))
            finished = home.run(PYTHONHASHSEED="1")
            assert finished.status == 0, finished.stderr
            assert home.has_no_server_soon()
            told.write_text(json.dumps([str(home.folder), asdict(finished)]), encoding="utf-8")
    folder, ended = json.loads(told.read_text(encoding="utf-8"))
    return Home(Path(folder)), Finished(**ended)
