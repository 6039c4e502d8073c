"""``python -m steps.adapters.mlflow_migration``: brings MLflow's database to the schema of the installed MLflow.

MLflow's own command takes the database's address as an argument, which every user of a node can read, password and
all. Here it comes out of the environment.
"""

import os

from mlflow import db

from proxykd.exceptions import ConfigError

VARIABLE = "MLFLOW_BACKEND_STORE_URI"


def main() -> None:
    """Run ``mlflow db upgrade`` in this process.

    Raises:
        ConfigError: if the variable is not set.
    """
    if not (uri := os.environ.get(VARIABLE)):
        raise ConfigError(f"expected the database's address in {VARIABLE}, found none; set it from a Secret")
    db.commands.main(["upgrade", uri], prog_name="mlflow db")


if __name__ == "__main__":
    main()
