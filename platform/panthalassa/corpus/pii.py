"""Masking of personal data: a text comes in, the same text with placeholders comes out.

Masked is only what is verified: e-mail addresses by their form, IP addresses that are public, phone
numbers that their country's numbering plan has, payment cards by issuer, length and the Luhn digit
(ISO/IEC 7812-1), bank accounts (IBAN) by country, length and check digits (ISO 13616). Numbers that
are something else stay what they are. Masking a masked text changes nothing.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from typing import Final

import phonenumbers

from panthalassa.corpus.lists import read_pairs

Check = Callable[[str], bool]
Kind = tuple[str, re.Pattern[str], Check]

PLACEHOLDERS: Final = {
    "email": "[EMAIL]",
    "iban": "[IBAN]",
    "card": "[CARD]",
    "phone": "[PHONE]",
    "ip": "[IP]",
}
"""What stands for each kind of personal data in a masked text, in the order of masking."""

GROUPS = 8  # with more, a number is looked at only as a whole, not for one among others

_SPACE = " \u00a0\u202f"  # of any width, as French and German groups of digits have
_SPACES = re.compile(f"([{_SPACE}])")
_FILES = frozenset(
    ["css", "gif", "gz", "html", "jpeg", "jpg", "js", "json", "png", "svg", "tgz", "webp", "zip"]
)

# RFC 5321: 64 characters before the @, labels of 63. The look-behind keeps the search linear.
_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w+%-][\w.+%-]{0,63}@"
    r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-])"
)
_IBAN = re.compile(
    r"\b(?:"
    + "|".join(
        rf"{country}\d\d(?:[{_SPACE}]?[A-Z0-9]){{{int(length) - 4}}}"
        for country, length in read_pairs("iban_lengths.txt").items()
    )
    + r")\b",
    re.ASCII,
)
_CARD = re.compile(rf"(?<![\w.,-])\d(?:[{_SPACE}-]?\d){{12,18}}(?![\w-]|[.,]\d)", re.ASCII)
_PHONE = re.compile(
    r"(?<![\w+.,/-])(?:"
    rf"(?:\+[1-9]|00[1-9]\d{{0,2}}[{_SPACE}./–-])(?:[{_SPACE}./–-]{{0,2}}\(?\d\)?){{6,14}}"  # E.164
    rf"|\([2-9]\d\d\)[{_SPACE}]?[2-9]\d\d[-.{_SPACE}]\d{{4}}"
    r"|[2-9]\d\d([-.])[2-9]\d\d\1\d{4}"  # North America, too
    r")(?![\w-]|[.,]\d)",
    re.ASCII,
)
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7}(?![\w:])", re.ASCII)

# Lengths by the first digits (ISO/IEC 7812): American Express, Diners, Discover, JCB, Maestro,
# Mastercard, Mir, UnionPay, Visa.
_ISSUERS = re.compile(
    r"3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}|6(?:011|4[4-9]\d|5\d\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}"
    r"|(?:5[06-9]|6[37])\d{11,17}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|62\d{14,17}|4(?:\d{12}|\d{15}|\d{18})"
)


def mask_pii(text: str) -> str:
    """The text with its personal data replaced by PLACEHOLDERS."""
    return mask_and_count(text)[0]


def mask_and_count(text: str) -> tuple[str, Counter[str]]:
    """The masked text, and how many were masked of each kind."""
    counts: Counter[str] = Counter()
    while (masked := _mask_once(text, counts)) != text:  # a placeholder may set free what is near
        text = masked
    return text, counts


def _mask_once(text: str, counts: Counter[str]) -> str:
    for sign, kinds in _KINDS:
        if sign.search(text):  # none of the kinds goes over the end of a line
            lines = text.split("\n")
            text = "\n".join(
                _mask_line(line, kinds, counts) if sign.search(line) else line for line in lines
            )
    return text


def _mask_line(line: str, kinds: list[Kind], counts: Counter[str]) -> str:
    for kind, pattern, is_valid in kinds:
        line = _replace(line, kind, pattern, is_valid, counts)
    return line


def _replace(
    text: str,
    kind: str,
    pattern: re.Pattern[str],
    is_valid: Check,
    counts: Counter[str],
) -> str:
    def masked(match: re.Match[str]) -> str:
        parts = _SPACES.split(match[0])  # groups and, between them, spaces
        if len(parts) > 2 * GROUPS:
            parts = [match[0]]
        spans = [(i, j) for i in range(0, len(parts), 2) for j in range(i + 1, len(parts) + 1, 2)]
        for start, stop in sorted(spans, key=lambda span: span[0] - span[1]):  # the longest first
            if is_valid("".join(parts[start:stop])):
                counts[kind] += 1
                return "".join([*parts[:start], PLACEHOLDERS[kind], *parts[stop:]])
        return match[0]

    return pattern.sub(masked, text)


def is_email(candidate: str) -> bool:
    """Not the name of a file, and not that of a repository."""
    local, _, domain = candidate.partition("@")
    is_file = domain.rpartition(".")[2].lower() in _FILES
    return not (is_file or local == "git" or local.endswith(".") or ".." in local)


def is_card(candidate: str) -> bool:
    """A payment card by issuer and length whose last digit is Luhn's."""
    digits = re.sub(r"\D", "", candidate)
    if not _ISSUERS.fullmatch(digits):
        return False
    total = sum(map(int, digits[-1::-2]))
    total += sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return total % 10 == 0


def is_iban(candidate: str) -> bool:
    """An account of a country in the register, of its length, that leaves 1 modulo 97."""
    plain = _SPACES.sub("", candidate)
    if not _IBAN.fullmatch(plain):
        return False
    return int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1


def is_phone(candidate: str) -> bool:
    """A number of its country's numbering plan; without a country code, of North America's."""
    number = f"+{candidate[2:]}" if candidate.startswith("00") else candidate
    try:
        parsed = phonenumbers.parse(number, None if number.startswith("+") else "US")
    except phonenumbers.NumberParseException:
        return False
    return phonenumbers.is_valid_number(parsed)


def is_public_ip(candidate: str) -> bool:
    """An address that can be someone's: not of a private, reserved or documentation network."""
    try:
        address = ipaddress.ip_address(candidate)
    except ValueError:
        return False
    if address.version == 4:  # 1.2.3.10 is more often the number of a section or a release
        is_likely = sum(len(octet) > 1 for octet in candidate.split(".")) > 1
    else:  # so is ::1a part of a program, and 1:2:3 of a ratio
        is_likely = len(candidate) > 6 and any(len(group) > 2 for group in candidate.split(":"))
    return is_likely and address.is_global


# What has a sign of some kinds is looked at for them: the search for these is several times as slow.
# A bank account has two digits behind two letters; other numbers have seven, near each other.
_NUMBER = r"[0-9](?:(?<=[A-Z][A-Z][0-9])[0-9]|(?:[ \u00a0\u202f./()–-]{0,4}[0-9]){6})"
_KINDS: Final[list[tuple[re.Pattern[str], list[Kind]]]] = [
    (re.compile("@"), [("email", _EMAIL, is_email)]),
    (
        re.compile(_NUMBER),
        [("iban", _IBAN, is_iban), ("card", _CARD, is_card), ("phone", _PHONE, is_phone)],
    ),
    (re.compile(r"\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]"), [("ip", _IPV4, is_public_ip)]),
    (re.compile(":[0-9a-fA-F]{0,4}:"), [("ip", _IPV6, is_public_ip)]),
]
