"""What a container's namespaces would do for its processes: the pod's host name and its service account's folder.

Python imports this module at its start wherever this folder is on PYTHONPATH; the kubelet double puts it there.
"""

import datetime
import importlib.abc
import importlib.machinery
import os
import socket
import sys
from types import ModuleType

ACCOUNT_FOLDER = "DOUBLE_SERVICE_ACCOUNT_FOLDER"
REFRESH_S = 2.0  # instead of a minute
CLIENT = "kubernetes.config.incluster_config"

socket.gethostname = lambda: os.environ.get("HOSTNAME", "localhost")


class _Moved(importlib.abc.MetaPathFinder):
    """Loads the client's module of in-cluster configuration, then moves the folder that it reads."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != CLIENT:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)  # type: ignore[arg-type]
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_move(module: ModuleType) -> None:
            execute(module)
            folder = os.environ[ACCOUNT_FOLDER]
            module.SERVICE_TOKEN_FILENAME = os.path.join(folder, "token")  # type: ignore[attr-defined]
            module.SERVICE_CERT_FILENAME = os.path.join(folder, "ca.crt")  # type: ignore[attr-defined]
            loader = module.InClusterConfigLoader  # type: ignore[attr-defined]
            create = loader.__init__

            def create_and_hurry(self: object, *arguments: object, **options: object) -> None:
                create(self, *arguments, **options)
                self._token_refresh_period = datetime.timedelta(seconds=REFRESH_S)  # type: ignore[attr-defined]

            loader.__init__ = create_and_hurry

        spec.loader.exec_module = execute_and_move  # type: ignore[method-assign]
        return spec


if ACCOUNT_FOLDER in os.environ:
    sys.meta_path.insert(0, _Moved())
