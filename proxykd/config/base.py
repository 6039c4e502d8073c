"""What every section of the specification shares: frozen, no unknown keys, documented fields, secrets by name."""

import ast
import inspect
import os
import re
import textwrap
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationInfo

from proxykd.exceptions import ConfigError

_SECRET = re.compile(r"\$\{([A-Z_][A-Z0-9_]*)\}")


class Spec(BaseModel):
    """A frozen section of the run specification; unknown keys are refused, docstrings under fields are their docs.

    Numbers are finite unless a field says otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema with the docs, which are read now: pydantic would read every file again at each start."""
        schema = handler(core_schema)
        fields = handler.resolve_ref_schema(schema).get("properties", {})
        for base in cls.__mro__:
            for name, text in _docstrings(base).items() if issubclass(base, Spec) else ():
                fields.get(name, {}).setdefault("description", text)
        return schema


@cache
def _docstrings(section: type) -> dict[str, str]:
    """Field -> the string below it, of a section's own fields."""
    try:
        source = inspect.getsource(section)
    except OSError:  # installed without its sources
        return {}
    (definition,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


def _check_secret(value: str) -> str:
    if not _SECRET.fullmatch(value):
        # The value may be a key pasted by mistake: the message must not repeat it.
        raise ValueError("write the name of an environment variable as ${NAME}, never the secret itself")
    return value


def resolve_path(value: Path, info: ValidationInfo) -> Path:
    """``value``; while a YAML file is read, relative to the folder of that file."""
    base = (info.context or {}).get("base_folder")
    return value if base is None or value.is_absolute() else Path(os.path.normpath(Path(base) / value))


SecretName = Annotated[str, AfterValidator(_check_secret), Field(examples=["${OPENAI_API_KEY}"])]
"""The name of an environment variable, written ``${NAME}``; its value never enters the specification."""


def _resolve_folder(value: str, info: ValidationInfo) -> str:
    base = (info.context or {}).get("base_folder")
    folder = None if base is None else Path(os.path.normpath(Path(base) / Path(value).expanduser()))
    return str(folder) if folder is not None and folder.is_dir() else value


ModelSource = Annotated[str, AfterValidator(_resolve_folder)]
"""Where a model comes from; a folder's path is, in a YAML file, relative to the folder of that file."""

InputPath = Annotated[Path, AfterValidator(resolve_path)]
"""A path; in a YAML file, relative to the folder of that file."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


def read_secret(name: str) -> str:
    """The value of the environment variable that ``name`` (``${NAME}``) points to, without white space at its ends.

    Raises:
        ConfigError: if the variable is unset or blank, or holds a line break or another character that no key has;
            the message never repeats the value.
    """
    variable = name.removeprefix("${").removesuffix("}")
    if not (value := os.environ.get(variable, "").strip()):
        raise ConfigError(
            f"expected a secret in the environment variable {variable}, found none; export {variable}=..."
        )
    return _checked(value, f"the environment variable {variable}")


def read_secret_file(path: Path) -> str:
    """The content of a file, without white space at its ends.

    Raises:
        ConfigError: if it cannot be read or is blank, or holds a line break or another character that no key has; the
            message never repeats the content.
    """
    try:
        value = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(
            f"expected a secret in the file {path}: {error.strerror}; check teacher.api_key_file"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"expected a secret in the file {path}, found no UTF-8; put the key alone there") from None
    if not value:
        raise ConfigError(f"expected a secret in the file {path}, found none; put the key alone there")
    return _checked(value, f"the file {path}")


def _checked(value: str, place: str) -> str:
    if not (value.isprintable() and value.isascii()):
        raise ConfigError(
            f"expected a secret on one line in {place}, found a line break or another character that no key has; put "
            "the key alone there"
        )
    return value
