"""The migration takes the database's address out of the environment alone; tests/k8s/test_mlflow_server.py runs it."""

import pytest

from proxykd.exceptions import ConfigError
from steps.adapters import mlflow_migration


def test_without_its_variable_nothing_is_migrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(mlflow_migration.VARIABLE, raising=False)
    monkeypatch.setattr("sys.argv", ["mlflow_migration", "sqlite:///a.db"])
    with pytest.raises(ConfigError, match="MLFLOW_BACKEND_STORE_URI"):
        mlflow_migration.main()
