"""The run specification: one YAML file says which teacher, which proxy, which student, which data, which gate.

``load_specification`` reads it into ``RunSpec``, a tree of frozen pydantic models that refuse unknown keys and hold
their bounds in their types. Imports neither torch nor transformers, so that a plan or a help text is instant.
"""

from proxykd.config.estimation import TargetsSpec
from proxykd.config.gate import GateSpec
from proxykd.config.loading import load_specification
from proxykd.config.specification import (
    DataSplitSpec,
    EvaluationSpec,
    QuerySpec,
    RegistrySpec,
    RunSpec,
)
from proxykd.config.validation import ValidationSpec

__all__ = [
    "DataSplitSpec",
    "EvaluationSpec",
    "GateSpec",
    "QuerySpec",
    "RegistrySpec",
    "RunSpec",
    "TargetsSpec",
    "ValidationSpec",
    "load_specification",
]
