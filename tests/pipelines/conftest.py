"""One undisturbed run of the tiny specification, which the tests of this folder share."""

from collections.abc import Iterator

import pytest

from tests.support.program import Finished, Home


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, Finished]]:
    """The first run in a fresh workspace."""
    home = Home.create(tmp_path_factory.mktemp("undisturbed"))
    finished = home.run(PYTHONHASHSEED="1")
    assert finished.status == 0, finished.stderr
    yield home, finished
    assert not home.servers()
