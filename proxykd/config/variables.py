"""Environment variables that are written down in clear text, and so may hold no credential."""

import re
from typing import Annotated

from pydantic import AfterValidator

_CREDENTIAL = re.compile(r"TOKEN(?!IZ)|API_?KEY|ACCESS_?KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?$")


def is_credential(variable: str) -> bool:
    """Whether an environment variable of this name holds a credential."""
    return _CREDENTIAL.search(variable.upper()) is not None


def _check_public(environment: dict[str, str]) -> dict[str, str]:
    if hidden := sorted(name for name in environment if is_credential(name)):
        raise ValueError(f"expected no credential among the variables in clear text, got {hidden}: name a Secret")
    return environment


PublicVariables = Annotated[dict[str, str], AfterValidator(_check_public)]
"""Variable -> value; refused if a name is that of a credential, in a message that never repeats the value."""
