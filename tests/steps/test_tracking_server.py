"""The tracking server's address, shown without its key."""

import pytest

from steps.adapters.tracking_server import check_tracking_server, without_userinfo


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:key@host:5000/path?x=a@b", "https://host:5000/path?x=a@b"),
        ("https://me:k@y@host", "https://host"),
        ("postgresql+psycopg2://me:key@host/mlflow", "postgresql+psycopg2://host/mlflow"),
        ("http://host/a@b", "http://host/a@b"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("http://host and then a@b", "http://host and then a@b"),
    ],
)
def test_names_and_passwords_are_left_out(uri: str, shown: str) -> None:
    assert without_userinfo(uri) == shown


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "databricks", "postgresql://127.0.0.1:9/x"])
def test_an_address_that_is_no_servers_is_not_called(uri: str) -> None:
    check_tracking_server(uri)
