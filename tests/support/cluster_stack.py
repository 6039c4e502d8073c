"""``python -m tests.support.cluster_stack FOLDER``: a stack of process orchestrator and bucket, made the active one."""

import sys
from pathlib import Path

from zenml.client import Client
from zenml.enums import StackComponentType
from zenml.utils import source_utils


def register(folder: Path) -> None:
    """Register both flavours and components in the ZenML store of the environment; state goes into ``folder``."""
    source_utils.set_custom_source_root(str(Path(__file__).parents[2]))
    client, parts = Client(), {}
    for kind, name, configuration in (
        ("orchestrator", "process_orchestrator.ProcessOrchestrator",
         {"journals": str(folder / "volume"), "notes": str(folder / "notes.txt")}),
        ("artifact_store", "bucket_store.BucketStore", {"path": "s3://bucket", "folder": str(folder / "objects")}),
    ):  # fmt: skip
        flavor = client.create_flavor(f"tests.support.{name}Flavor", StackComponentType(kind))
        client.create_stack_component(f"test-{kind}", flavor.name, StackComponentType(kind), configuration)
        parts[StackComponentType(kind)] = f"test-{kind}"
    client.create_stack("test-cluster", parts)
    client.activate_stack("test-cluster")


if __name__ == "__main__":
    register(Path(sys.argv[1]))
