"""Secrets and personal data in a text, by checkers that are precise enough to count.

Secrets: the patterns of detect-secrets for the keys of some twenty providers, private keys and passwords in addresses,
and a few keys that it does not know. Its detectors of high entropy and of words like "password" are left out: over
prose they fire on ordinary words (on 1 of 6 texts of a public GPT-4 corpus), and so is its detector of IP addresses.

Personal data: e-mail addresses outside the domains reserved for examples (RFC 2606), telephone numbers that
libphonenumber holds valid, payment cards and IBANs whose checksums hold, and US social security numbers written as
such. Names, postal addresses, dates of birth and other countries' identity numbers are not looked for: without a model
of the language nothing finds them with useful precision.

A finding never repeats more than the first characters of what it found: the report must not become the leak.
"""

import re
from functools import cache

_MIN_TOKEN_CHARS = 20
_WITHOUT_LONG_TOKEN = ("PRIVATE KEY", "PuTTY-User-Key", "://")
_OWN_PATTERNS = {
    "Google API Key": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "Hugging Face Token": r"\bhf_[A-Za-z]{34}\b",
    "Anthropic API Key": r"\bsk-ant-[A-Za-z0-9_-]{32,}",
    "OpenAI Project Key": r"\bsk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{40,}",
    "GitHub Fine-grained Token": r"\bgithub_pat_[A-Za-z0-9_]{60,}",
}
_NOT_SECRET = {"Public IP (ipv4)"}
# What a text must hold to match any pattern of a kind, case-folded where the pattern ignores case: these kinds are slow
# to say no. "i" is in no needle that is case-folded: it has forms that folding does not make one.
_WORDS = ("key", "pw", "pass", "token")
_NEEDLES = {
    "Google API Key": ("AIza",),
    "Hugging Face Token": ("hf_",),
    "Anthropic API Key": ("sk-ant-",),
    "OpenAI Project Key": ("sk-",),
    "GitHub Fine-grained Token": ("github_pat_",),
    "Artifactory Credentials": ("AKC", "AP"),
    "Cloudant Credentials": (*_WORDS, "cloudant"),
    "IBM Cloud IAM Key": _WORDS,
    "IBM COS HMAC Credentials": ("secret",),
    "Mailchimp Access Key": ("-us",),
    "SoftLayer Credentials": (*_WORDS, "softlayer"),
}

_EMAIL = re.compile(r"[A-Za-z0-9][\w.+%-]{0,63}@((?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24})\b")
_EXAMPLE_DOMAIN = re.compile(
    r"(?:^|\.)(?:example|test|invalid|localhost|local)$|(?:^|\.)example\.(?:com|net|org)$", re.IGNORECASE
)
_PHONE_LIKE = re.compile(r"\+[\d(]")
_DIGITS = re.compile(r"\d[\d().\s-]{5,}\d")
_CARD = re.compile(r"(?<![\w.-])(?:[34569]\d{3}[ -]?(?:\d{4}[ -]?){2}\d{1,7}|3[47]\d{2}[ -]?\d{6}[ -]?\d{5})(?![\w-])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_IBAN_LIKE = re.compile(r"[A-Z]{2}\d{2} ?[A-Z0-9]{4}")
_SSN = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")
_SHOWN_CHARS = 4


def find_secret(text: str) -> str:
    """Which kind of secret ``text`` holds and how it begins; "" = none.

    Example:
        >>> find_secret("key: ghp_" + "a1B2" * 9), find_secret("a perfectly ordinary text")
        ("GitHub Token 'ghp_...'", '')
    """
    if max(map(len, text.split()), default=0) < _MIN_TOKEN_CHARS and not any(s in text for s in _WITHOUT_LONG_TOKEN):
        return ""  # whatever else is looked for is longer than this
    folded = text.casefold()
    for kind, pattern in _secret_patterns():
        where, needles = folded if pattern.flags & re.IGNORECASE else text, _NEEDLES.get(kind, ("",))
        if any(needle in where for needle in needles) and (found := pattern.search(text)):
            return _describe(kind, found[0])
    return ""


def find_personal_data(text: str, *, phone_region: str | None = None) -> str:
    """Which kind of personal data ``text`` holds and how it begins; "" = none.

    Args:
        text: Any text.
        phone_region: ISO 3166 code of the country whose national numbers count; None = numbers with a country code.

    Example:
        >>> find_personal_data("Write to jane.doe@acme.io!"), find_personal_data("Write to jane@example.com!")
        ("e-mail address 'jane...'", '')
    """
    if "@" in text:
        for found in _EMAIL.finditer(text):
            if not _EXAMPLE_DOMAIN.search(found[1]):
                return _describe("e-mail address", found[0])
    if not _has_digits(text):
        return ""
    for kind, pattern, is_valid in _NUMBERS:
        for found in pattern.finditer(text):
            if is_valid(found[0]):
                return _describe(kind, found[0])
    return _find_phone(text, phone_region)


def _has_digits(text: str) -> bool:
    return bool(_DIGITS.search(text)) or bool(_IBAN_LIKE.search(text))


def _find_phone(text: str, region: str | None) -> str:
    if region is None and not _PHONE_LIKE.search(text):
        return ""
    from phonenumbers import Leniency, PhoneNumberMatcher

    for found in PhoneNumberMatcher(text, region, leniency=Leniency.VALID):
        return _describe("telephone number", found.raw_string)
    return ""


def _is_card(number: str) -> bool:
    from stdnum import luhn

    digits = re.sub(r"\D", "", number)
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn.is_valid(digits)


def _is_iban(number: str) -> bool:
    from stdnum import iban

    return bool(iban.is_valid(number))


def _is_ssn(number: str) -> bool:
    from stdnum.us import ssn

    return bool(ssn.is_valid(number))


_NUMBERS = (("payment card", _CARD, _is_card), ("IBAN", _IBAN, _is_iban), ("US social security number", _SSN, _is_ssn))


def _describe(kind: str, found: str) -> str:
    return f"{kind} {found.strip()[:_SHOWN_CHARS] + '...'!r}"


@cache
def _secret_patterns() -> tuple[tuple[str, "re.Pattern[str]"], ...]:
    from detect_secrets.plugins.base import RegexBasedDetector
    from detect_secrets.settings import default_settings, get_plugins

    with default_settings():
        plugins = [plugin for plugin in get_plugins() if isinstance(plugin, RegexBasedDetector)]
    known = ((p.secret_type, pattern) for p in plugins if p.secret_type not in _NOT_SECRET for pattern in p.denylist)
    return (*((kind, re.compile(pattern)) for kind, pattern in _OWN_PATTERNS.items()), *known)
