"""A process in which nothing of ours can be imported: what a user without proxykd has."""

import subprocess
import sys

_WITHOUT_US = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("proxykd", "steps", "pipelines", "zenml"):
            raise ImportError(name)

sys.meta_path.insert(0, Nothing())
"""


def run_without_us(program: str, *arguments: str, timeout_s: float = 300.0) -> "subprocess.CompletedProcess[str]":
    """Run a program's text with ``sys.argv[1:]`` as given."""
    command = [sys.executable, "-I", "-c", _WITHOUT_US + program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
