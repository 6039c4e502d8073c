"""Blots a secret out of what an endpoint says, in every way in which it may be written there.

    as it is            each character may also stand as an escape of JSON, of an address or of HTML, at any depth of
                        nesting, as where an error quotes an answer that quotes a request
    hexadecimal         in either case
    Base64              and its form for addresses, at each of the three places that it may begin in a longer text
    a list of bytes     as JSON writes it beside log-probabilities

What comes after a cipher or a hash is not known as the secret any more, and is not looked for.
"""

import base64
import re
from collections.abc import Mapping

from multidict import CIMultiDict

_BLOT = b"***"
_SHORTEST = 6
"""Characters of Base64 below which a text says too little of the secret to be looked for."""


class Blotter:
    """Replaces a secret by ``***``.

    Args:
        secret: The secret, ASCII; None or "" = nothing is replaced.
    """

    def __init__(self, secret: str | None) -> None:
        self._pattern = re.compile(_pattern(secret).encode()) if secret else None

    def clean(self, content: bytes) -> bytes:
        """``content`` without the secret."""
        return content if self._pattern is None else self._pattern.sub(_BLOT, content)

    def clean_text(self, text: str) -> str:
        """``text`` without the secret."""
        return self.clean(text.encode("utf-8", "replace")).decode("utf-8", "replace")

    def clean_headers(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """``headers`` without the secret; names are found in whatever case."""
        if self._pattern is None:
            return headers
        return CIMultiDict((name, self.clean_text(value)) for name, value in headers.items())


def _pattern(secret: str) -> str:
    raw = secret.encode()
    texts = [secret, *(core for core in _base64_cores(raw) if len(core) >= _SHORTEST)]
    numbers = r"\s*,\s*".join(str(byte) for byte in raw)
    patterns = ["".join(_character(one) for one in text) for text in sorted(texts, key=len, reverse=True)]
    return "|".join([*patterns, f"(?i:{raw.hex()})", rf"\b{numbers}\b"])


def _character(character: str) -> str:
    r"""One character: itself after any number of backslashes, \\u0041, %41, %2541 or &#65; and &#x41;."""
    number = ord(character)
    itself = r"\\+" if character == "\\" else rf"\\*{re.escape(character)}"
    return rf"(?:{itself}|\\+u(?i:{number:04x})|%(?:25)*(?i:{number:02x})|&#(?:{number}|x(?i:0*{number:x}));)"


def _base64_cores(raw: bytes) -> set[str]:
    """The characters that the secret alone decides, wherever it begins in a text that is written in Base64."""
    cores = set()
    for offset in range(3):
        coded = base64.b64encode(b"\0" * offset + raw).decode()
        last = (offset + len(raw)) * 8 // 6  # characters that are full of bits up to the end of the secret
        core = coded[-(-offset * 8 // 6) : last]
        cores |= {core, core.replace("+", "-").replace("/", "_")}
    return cores
