"""The small files of a model source, read without transformers or torch; for its weights we only look.

A hub repository is read from the local cache, else from the hub: one request that fails at once where there is no
network, instead of the patient retries that suit a long download.
"""

import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from proxykd.exceptions import ModelError
from proxykd.models.gguf_metadata import GgufMetadata
from proxykd.models.sources import EMBEDDED_SHAPES, Source, missing_model
from proxykd.records import hash_json

HUB_TIMEOUT_S = 10.0
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def find_file(source: Source, name: str) -> Path | None:
    """A file of a folder or hub repository (fetched where it is not in the cache); None = it has no such file.

    Raises:
        ModelError: if the repository does not exist, is gated or cannot be reached.
    """
    if source.is_folder:
        path = Path(source.location) / name
        return path if path.is_file() else None
    return _find_on_hub(source, name, is_fetched=True)


def read_json_file(source: Source, name: str) -> dict[str, Any] | None:
    """The content of a JSON file of a source; None = it has no such file.

    Raises:
        ModelError: if it is not JSON, or as ``find_file``.
    """
    if (path := find_file(source, name)) is None:
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"expected JSON in {path}, found none ({error}); correct the file") from None
    if not isinstance(value, dict):
        raise ModelError(f"expected a JSON object in {path}, found {type(value).__name__}; correct the file")
    return value


def read_config(source: Source) -> dict[str, Any]:
    """The model's configuration, as ``config.json`` or the head of its GGUF file has it.

    Raises:
        ModelError: if there is none.
    """
    if source.gguf_file is not None:
        return GgufMetadata.read(Path(source.location) / source.gguf_file).config()
    if source.embedded_name is not None:
        vocab = (read_json_file(source, "tokenizer.json") or {})["model"]["vocab"]
        return {**EMBEDDED_SHAPES[source.embedded_name], "vocab_size": len(vocab), "tie_word_embeddings": True}
    if (config := read_json_file(source, "config.json")) is None:
        raise missing_model("model", source, FileNotFoundError("it has no config.json"))
    return config


def check_weights(source: Source) -> None:
    """Check that a source has weights that can be loaded; they are neither read nor fetched.

    Raises:
        ModelError: if it has none in safetensors.
    """
    if source.gguf_file is not None and find_spec("gguf") is None:
        raise missing_model("model", source, ImportError("gguf"))
    if source.embedded_name is not None or source.gguf_file is not None:
        return
    folder = Path(source.location)
    if source.is_folder:
        found = any((folder / name).is_file() for name in _WEIGHTS)
    else:
        found = any(_find_on_hub(source, name, is_fetched=False) is not None for name in _WEIGHTS)
    if not found:
        raise missing_model("model", source, FileNotFoundError("it has no model.safetensors"))


def source_identity(source: Source) -> str:
    """16 hex digits that change when the files behind a source do; no weights are read.

    Of a folder: names, sizes and times of its files; of a package: its version and the size of its file; of a hub
    repository: the commit in the local cache. The embedded models count as code.
    """
    if source.embedded_name is not None:
        found: Any = source.embedded_name
    elif source.gguf_file is not None:
        file = Path(source.location) / source.gguf_file
        found = [_package_version(Path(source.location).name), file.stat().st_size]
    elif source.is_folder:
        found = sorted(_files_in(Path(source.location)))
    else:
        found = _cached_commit(source)
    return hash_json(found)[:16]


def _files_in(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of every file that is not hidden, nor in a hidden folder."""
    for file in folder.rglob("*"):
        name = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), file.stat().st_size, file.stat().st_mtime_ns


def _package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # a package may be called otherwise than the distribution that it is from
        return None


def _cached_commit(source: Source) -> str | None:
    """The commit that ``config.json`` in the cache is from; None = nothing is cached."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source.location, "config.json")
    return Path(cached).parent.name if isinstance(cached, str) else None


def _find_on_hub(source: Source, name: str, *, is_fetched: bool) -> Path | None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    # The base error of the HTTP client, whichever one the hub's library was built with.
    client_error: Any = HfHubHTTPError.__bases__[0]
    try:
        if isinstance(cached := try_to_load_from_cache(source.location, name), str):
            return Path(cached)
        url = hf_hub_url(source.location, name)
        get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
        return Path(hf_hub_download(source.location, name)) if is_fetched else Path(name)
    except EntryNotFoundError:
        return None
    except (client_error, HFValidationError, OSError) as error:
        raise missing_model("model", source, error) from None
