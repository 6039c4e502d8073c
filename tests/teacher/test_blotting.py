"""No spelling of a secret survives, and what is not the secret does."""

import base64
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.teacher.blotting import Blotter

secrets = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="*"), min_size=6, max_size=40)


@given(secret=secrets, before=st.binary(max_size=5), after=st.binary(max_size=5))
def test_no_spelling_survives(secret: str, before: bytes, after: bytes) -> None:
    blotter, raw = Blotter(secret), secret.encode()
    numbers = "".join(f"\\u{ord(one):04x}" for one in secret).encode()
    spellings = [
        raw,
        json.dumps(secret)[1:-1].encode(),
        json.dumps(secret)[1:-1].replace("/", "\\/").encode(),
        numbers,
        quote(secret, safe="").encode(),
        quote_plus(secret).encode(),
        raw.hex().encode(),
        raw.hex().upper().encode(),
    ]
    for spelling in spellings:
        assert spelling not in blotter.clean(b"<" + before + spelling + after + b">")
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        cleaned = blotter.clean(encode(before + raw + after))
        assert b"***" in cleaned
        assert encode(raw).rstrip(b"=")[:-1] not in cleaned


@given(st.binary(max_size=50))
def test_what_is_not_the_secret_stays(content: bytes) -> None:
    assert Blotter(None).clean(content) == content
    assert Blotter("sk-1234567890").clean(content) == content


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("key sk-a/b+c= is bad", "key *** is bad"),
        ("key sk-a\\/b+c= is bad", "key *** is bad"),
        ("?key=sk-a%2Fb%2Bc%3D&x", "?key=***&x"),
        ("?key=sk-a%2fb%2bc%3d&x", "?key=***&x"),
        ("sk-a", "sk-a"),
    ],
)
def test_a_few_by_hand(text: str, cleaned: str) -> None:
    assert Blotter("sk-a/b+c=").clean_text(text) == cleaned
