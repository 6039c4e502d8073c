"""Real MLflow stores: a file of SQLite for each test, and one server on PostgreSQL for all."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mlflow_servers import Trouble, mlflow_server, postgresql, troubled


@pytest.fixture(scope="session")
def empty_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take seconds to create."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def mlflow_store(empty_mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty MLflow store that the adapters use."""
    shutil.copy(empty_mlflow_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return tmp_path


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server on a PostgreSQL server, shared: each test has models of its own."""
    folder = tmp_path_factory.mktemp("postgresql")
    with postgresql() as database, mlflow_server(folder, database) as address:
        yield address


@pytest.fixture(params=["sqlite", "postgresql"])
def registry_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of the store that the adapters use."""
    if request.param == "sqlite":
        request.getfixturevalue("mlflow_store")
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("postgresql_server"))
    return str(request.param)


@pytest.fixture
def trouble(postgresql_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trouble]:
    """What happens to the calls of the adapters on their way to the server; MLflow tries each three times."""
    settings = {"MAX_RETRIES": "2", "BACKOFF_FACTOR": "0", "BACKOFF_JITTER": "0"}
    for name, value in settings.items():
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    with troubled(postgresql_server) as (address, trouble):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield trouble
