"""Sources of open models, their tokenizers, and whether two tokenizers agree.

A source names a folder, a hub repository, one of the embedded tiny models or a GGUF file inside an installed package.
Nothing heavy is imported before a tokenizer is loaded, and two folders can be compared without that.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from proxykd.config.models import ModelSpec
from proxykd.exceptions import ModelError
from proxykd.records import hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
_TOKENIZER_FILE = "tokenizer.json"
EMBEDDED_NAMES = ("proxy", "student")


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


def load_tokenizer(spec: ModelSpec) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, with a pad token set and padding on the right.

    Raises:
        ModelError: if it cannot be found, or has no end-of-sequence token.
    """
    return load_tokenizer_from(resolve_source(spec.source))


def load_tokenizer_from(source: Source) -> "PreTrainedTokenizerBase":
    """The tokenizer of a resolved source, with a pad token set and padding on the right.

    Raises:
        ModelError: if it cannot be found, or has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **source.arguments)
    except (OSError, ValueError, ImportError) as error:
        raise missing_model("tokenizer", source, error) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"expected an end-of-sequence token in the tokenizer of {source.location}, found none; "
            "set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def missing_model(what: str, source: Source, error: Exception) -> ModelError:
    """The error for a ``what`` (model, tokenizer) that could not be loaded from ``source``."""
    if source.gguf_file is not None and isinstance(error, ImportError):
        return ModelError(f"reading {source.gguf_file} needs the gguf package: pip install 'proxykd[gguf]'")
    place = "folder" if Path(source.location).is_dir() else "hub repository"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"expected a {what} in the {place} {source.location!r}, could not load it ({reason}); check the name, the "
        "network and HF_TOKEN for gated models, or give a local folder"
    )


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """64 hex digits that are equal exactly when two tokenizers turn every text into the same token ids."""
    return hash_json(_parts(tokenizer))


def check_same_tokenizer(proxy: ModelSpec, student: ModelSpec) -> None:
    """Check that the student can learn from distributions over the proxy's vocabulary.

    Sources that are one are not read at all, two folders are compared by their files.

    Raises:
        ModelError: naming the first difference between the two tokenizers.
    """
    sources = resolve_source(proxy.source), resolve_source(student.source)
    if len({(source.location, source.gguf_file) for source in sources}) == 1:
        return
    if all((Path(source.location) / _TOKENIZER_FILE).is_file() for source in sources):
        first, second = (_parts_of_files(Path(source.location)) for source in sources)
    else:
        first, second = (_parts(load_tokenizer_from(source)) for source in sources)
    for name in first:
        if first[name] != second[name]:
            raise ModelError(
                f"proxy and student must share a tokenizer, but {proxy.source} and {student.source} differ in "
                f"{_describe(name, first[name], second[name])}; choose two models of one family"
            )


def _embedded_source(name: str) -> Source:
    if name not in EMBEDDED_NAMES:
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


def _parts(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """What decides about token ids, by name, in the order in which differences are worth naming."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    definition = {} if backend is None else json.loads(backend.to_str())
    return _comparable(tokenizer.get_vocab(), tokenizer.eos_token, definition)


def _parts_of_files(folder: Path) -> dict[str, Any]:
    """The same from a folder's files, which takes neither transformers nor torch."""
    backend = tokenizers.Tokenizer.from_file(str(folder / _TOKENIZER_FILE))
    settings = folder / "tokenizer_config.json"
    eos = json.loads(settings.read_text(encoding="utf-8")).get("eos_token") if settings.is_file() else None
    eos = eos.get("content") if isinstance(eos, dict) else eos
    return _comparable(backend.get_vocab(with_added_tokens=True), eos, json.loads(backend.to_str()))


def _comparable(vocab: dict[str, int], eos: str | None, definition: dict[str, Any]) -> dict[str, Any]:
    added = definition.get("added_tokens", [])
    return {
        "vocabulary": dict(sorted(vocab.items(), key=lambda item: item[1])),
        "end-of-sequence token": eos,
        "special tokens": sorted(token["content"] for token in added if token["special"]),
        "merges": definition.get("model", {}).get("merges", []),
        "normalizer": definition.get("normalizer"),
        "pre-tokenizer": definition.get("pre_tokenizer"),
    }


def _describe(name: str, first: Any, second: Any) -> str:
    if name == "vocabulary":
        if len(first) != len(second):
            return f"the size of the vocabulary ({len(first)} against {len(second)} tokens)"
        token = next(token for token, idx in first.items() if second.get(token) != idx)
        return f"the vocabulary (token {token!r} has id {first[token]} against {second.get(token)})"
    return f"the {name}" if isinstance(first, (list, dict)) else f"the {name} ({first!r} against {second!r})"
