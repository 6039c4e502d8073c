"""Sources of open models, found without importing or loading anything.

A source names a folder, a hub repository, one of the embedded tiny models or a GGUF file inside an installed package.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxykd.exceptions import ModelError

EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
# About 2.5M and 1.0M parameters. Wide and shallow: six layers of 192 train at half the tokens a second on a CPU.
EMBEDDED_SHAPES = {
    "proxy": {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 704},
    "student": {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 512},
}


@dataclass(frozen=True, slots=True)
class Source:
    """A resolved model source.

    Attributes:
        location: Folder or hub name, as ``from_pretrained`` takes it.
        gguf_file: File name inside ``location``; None = safetensors.
        embedded_name: Name of an embedded shape, whose ``location`` holds the tokenizer only; None = real weights.
    """

    location: str
    gguf_file: str | None = None
    embedded_name: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether ``location`` is a folder; else it names a hub repository."""
        return Path(self.location).is_dir()

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments that ``from_pretrained`` needs beside the location."""
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}


def resolve_source(source: str) -> Source:
    """Find what ``ModelSpec.source`` names, without importing or loading anything.

    Raises:
        ModelError: if the embedded name, the package, its file or the folder does not exist.
    """
    kind, separator, rest = source.partition(":")
    if separator and kind == "embedded":
        return _embedded_source(rest)
    if separator and kind == "package":
        return _package_source(rest)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return Source(str(folder))
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ModelError(f"expected a model folder at {folder}, found none; give an existing folder or a hub name")
    return Source(source)


def missing_model(what: str, source: Source, error: Exception) -> ModelError:
    """The error for a ``what`` (model, tokenizer) that could not be loaded from ``source``."""
    if source.gguf_file is not None and isinstance(error, ImportError):
        return ModelError(f"reading {source.gguf_file} needs the gguf package: pip install 'proxykd[gguf]'")
    place = "folder" if source.is_folder else "hub repository"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"expected a {what} in the {place} {source.location!r}, could not load it ({reason}); check the name, the "
        "network and HF_TOKEN for gated models, or give a local folder"
    )


def _embedded_source(name: str) -> Source:
    if name not in EMBEDDED_SHAPES:
        raise ModelError(f"expected embedded:proxy or embedded:student, got embedded:{name}")
    return Source(str(EMBEDDED_FOLDER), embedded_name=name)


def _package_source(rest: str) -> Source:
    package, separator, file = rest.partition("/")
    if not separator or not file.endswith(".gguf") or not package.isidentifier():
        raise ModelError(f"expected package:IMPORT_NAME/FILE.gguf, got package:{rest}")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModelError(f"expected an installed Python package {package!r} with {file}, found none; pip install it")
    folder = Path(next(iter(found.submodule_search_locations)))
    if not (folder / file).is_file():
        names = sorted(p.name for p in folder.rglob("*.gguf"))
        raise ModelError(f"expected {file} in the package {package!r}, found {names}; correct the file name")
    return Source(str(folder), gguf_file=file)
