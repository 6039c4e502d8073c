"""Blots a secret out of what an endpoint says, in every way in which it may be written there.

    as it is                     with JSON's escapes, slashes escaped or not, u-escapes in either case
    percent-encoded              as in a query or a path, in either case
    hexadecimal                  in either case
    Base64, and its URL form     at each of the three places that it may begin in a longer text

What comes after a cipher or a hash is not known as the secret any more, and is not looked for.
"""

import base64
import json
import re
from urllib.parse import quote, quote_plus

_BLOT = b"***"
_SHORTEST = 6
"""Bytes below which a part of an encoding says too little of the secret to be looked for."""


class Blotter:
    """Replaces a secret by ``***``.

    Args:
        secret: The secret; None or "" = nothing is replaced.
    """

    def __init__(self, secret: str | None) -> None:
        found = sorted(_spellings(secret), key=len, reverse=True) if secret else []
        self._pattern = re.compile(b"|".join(re.escape(one) for one in found)) if found else None

    def clean(self, content: bytes) -> bytes:
        """``content`` without the secret."""
        return content if self._pattern is None else self._pattern.sub(_BLOT, content)

    def clean_text(self, text: str) -> str:
        """``text`` without the secret."""
        return self.clean(text.encode("utf-8", "replace")).decode("utf-8", "replace")


def _spellings(secret: str) -> set[bytes]:
    raw = secret.encode()
    escaped = json.dumps(secret)[1:-1]
    numbers = "".join(f"\\u{ord(character):04x}" for character in secret)
    percent = "".join(f"%{byte:02x}" for byte in raw)
    partly = quote(secret, safe="")
    lower = re.sub("%..", lambda match: match[0].lower(), partly)
    texts = {secret, escaped, escaped.replace("/", "\\/"), numbers, numbers.upper().replace("U", "u")}
    texts |= {percent, percent.upper(), partly, lower, quote(secret), quote_plus(secret), raw.hex(), raw.hex().upper()}
    return {text.encode() for text in texts} | _base64_cores(raw)


def _base64_cores(raw: bytes) -> set[bytes]:
    """The characters that the secret alone decides, wherever it begins in a text that is written in Base64."""
    cores = set()
    for offset in range(3):
        coded = base64.b64encode(b"\0" * offset + raw)
        last = (offset + len(raw)) * 8 // 6  # characters that are full of bits up to the end of the secret
        core = coded[-(-offset * 8 // 6) : last]
        if len(core) >= _SHORTEST:
            cores |= {core, core.replace(b"+", b"-").replace(b"/", b"_")}
    return cores
