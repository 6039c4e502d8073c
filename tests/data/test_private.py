"""Secrets and personal data: each kind is found, look-alikes are not, and no finding repeats what it found."""

import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykd.data.private import _NEEDLES, _secret_patterns, find_personal_data, find_secret

# Made up here, by pattern: none of them opens anything. Joined so that no scanner takes this file for a leak.
SECRETS = {
    "AWS Access Key": "AKIA" + "IOSFODNN7ABCDEFG",
    "GitHub Token": "ghp_" + "a1B2" * 9,
    "GitHub Fine-grained Token": "github_pat_" + "11ABCDEFG0" * 8,
    "Google API Key": "AIza" + "SyA1234567890abcdefghijklmnopqrstuv"[:35],
    "Hugging Face Token": "hf_" + "abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "Anthropic API Key": "sk-ant-" + "api03-" + "x1Y2z3" * 8,
    "OpenAI Project Key": "sk-proj-" + "aB3dE6gH9j" * 5,
    "JSON Web Token": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmN",
    "Private Key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "Basic Auth Credentials": "https://jane:" + "hunter2@db.acme.io/x",
    "Slack Token": "xoxb-" + "123456789012-abcdefghij",
}  # fmt: skip
PERSONAL = {
    "e-mail address": "jane.doe@acme.io",
    "telephone number": "+44 20 7946 0018",
    "payment card": "4111 1111 1111 1111",
    "IBAN": "DE89 3704 0044 0532 0130 00",
    "US social security number": "536-90-4399",
}
HARMLESS = [
    "",
    "An ordinary text with antidisestablishmentarianism and electroencephalographically long words.",
    "The hash is d41d8cd98f00b204e9800998ecf8427e, the commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b.",
    "The id is 123e4567-e89b-12d3-a456-426614174000; see https://example.com/a/b?c=d&e=f",
    "password = 'changeme'",
    "Write to someone@example.com or root@localhost.",
    "91676 - 61619 = 30057; 28980-18480; 3.14159265358979; 1234567890123456",
    "In 2023-11-05, section 12-34-5678 and 000-12-3456; call 555-0100.",
    "Pi is 3.1415926535897932 and the ISBN 978-3-16-148410-0.",
    "The server is at 8.8.8.8.",
]


@pytest.mark.parametrize(("kind", "secret"), SECRETS.items())
def test_secrets_are_named_and_not_repeated(kind: str, secret: str) -> None:
    found = find_secret(f"Use this: {secret} and go on.")
    assert found.startswith(kind)
    assert secret not in found
    assert len(found) < len(kind) + 12


@pytest.mark.parametrize(("kind", "value"), PERSONAL.items())
def test_personal_data_are_named_and_not_repeated(kind: str, value: str) -> None:
    found = find_personal_data(f"It is {value}, I think.")
    assert found.startswith(kind)
    assert value not in found


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_texts_hold_neither(text: str) -> None:
    assert find_secret(text) == ""
    assert find_personal_data(text) == ""


@pytest.mark.parametrize("value", ["4111 1111 1111 1112", "DE89 3704 0044 0532 0130 01", "000-90-4399"])
def test_a_wrong_checksum_is_no_finding(value: str) -> None:
    assert find_personal_data(f"It is {value}.") == ""


def test_national_telephone_numbers_count_where_a_country_is_set() -> None:
    text = "Call (212) 555-2368 now."
    assert find_personal_data(text) == ""
    assert find_personal_data(text, phone_region="US").startswith("telephone number")


@pytest.mark.parametrize(("kind", "pattern"), [found for found in _secret_patterns() if found[0] in _NEEDLES])
@settings(max_examples=15)
@given(data=st.data())
def test_whatever_a_pattern_matches_holds_a_needle(kind: str, pattern: "re.Pattern[str]", data: st.DataObject) -> None:
    found = pattern.search(data.draw(st.from_regex(pattern)))
    assert found is not None
    text = found[0].casefold() if pattern.flags & re.IGNORECASE else found[0]
    assert any(needle in text for needle in _NEEDLES[kind])


def test_needles_name_kinds_and_folding_makes_every_form_of_their_letters_one() -> None:
    ignoring = {kind for kind, pattern in _secret_patterns() if pattern.flags & re.IGNORECASE}
    assert set(_NEEDLES) <= {kind for kind, _ in _secret_patterns()}
    letters = {letter for kind in ignoring & set(_NEEDLES) for needle in _NEEDLES[kind] for letter in needle.lower()}
    characters = "".join(map(chr, range(sys.maxunicode + 1)))
    for letter in letters - {"i", "-"}:
        forms = re.findall(letter, characters, re.IGNORECASE)
        assert {form.casefold() for form in forms} == {letter}
