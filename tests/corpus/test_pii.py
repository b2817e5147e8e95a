"""Personal data is masked where checks confirm it, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.corpus.pii import is_card, is_iban, mask_and_count, mask_pii

MASKED = {
    "write to a.b+c@example.co.uk.": "write to [EMAIL].",
    "用户@例子.中国": "[EMAIL]",
    "from 84.200.69.80, 2001:4860:4860::8888": "from [IP], [IP]",
    "card 4111 1111 1111 1111 12/27": "card [CARD] 12/27",
    "card 378282246310005, 5500-0000-0000-0004": "card [CARD], [CARD]",
    "DE89 3704 0044 0532 0130 00 BIC X": "[IBAN] BIC X",
    "GB82WEST12345698765432": "[IBAN]",
    "+49 (0)30 1234567, 0044 20 7946 0018": "[PHONE], [PHONE]",
    "DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000": "[IBAN]",
    "4111\u202f1111\u202f1111\u202f1111": "[CARD]",
    "+33\u00a01\u00a042\u00a068\u00a053\u00a000 +49–30–901820": "[PHONE] [PHONE]",
    "call (202) 456-1111 or 202-456-1111": "call [PHONE] or [PHONE]",
}
KEPT = [
    "x@y and @sea at 12:30:45",
    "192.168.1.1 127.0.0.1 999.1.1.1 release 1.2.3.10 std::vector a::b",
    "4111 1111 1111 1112",
    "1234 5678 9012 3456 1:2:3:4:5:6:7:8 a:b:c:d:e:f:a:b",
    "icon@3x.png pkg@latest.zip git@example.org:a/b",
    "DE88370400440532013000",
    "from 1939-1945, 3.14159265358979, ISBN 978-3-16-148410-0",
    "555-123-4567 and +999 123 456 789",
]


@pytest.mark.parametrize(("text", "masked"), MASKED.items())
def test_what_checks_confirm_is_masked(text: str, masked: str) -> None:
    assert mask_pii(text) == masked


@pytest.mark.parametrize("text", KEPT)
def test_what_fails_its_check_is_kept(text: str) -> None:
    assert mask_pii(text) == text


def test_each_kind_is_counted() -> None:
    _, counts = mask_and_count("a@b.org c@d.org 4111111111111111")
    assert counts == {"email": 2, "card": 1}


@given(st.integers(0, 14), st.integers(1, 9))
def test_no_card_with_one_wrong_digit_passes(place: int, change: int) -> None:
    digits = list("4012888888881881")
    digits[place + 1] = str((int(digits[place + 1]) + change) % 10)
    assert is_card("4012888888881881")
    assert not is_card("".join(digits))


@given(st.integers(4, 21), st.integers(1, 9))
def test_no_account_with_one_wrong_digit_passes(place: int, change: int) -> None:
    digits = list("DE89370400440532013000")
    digits[place] = str((int(digits[place]) + change) % 10)
    assert is_iban("DE89370400440532013000")
    assert not is_iban("".join(digits))


PIECES = ["a@b.co", "84.200.69.80", "4111111111111111", "GB82WEST12345698765432", "+4930901820"]
near = st.lists(st.sampled_from([*PIECES, " ", ".", "1", "x", ":", "-", "@", "+", "[IP]"]))


@given(st.one_of(st.text(st.characters(exclude_categories=[])), near.map("".join)))
def test_masking_a_masked_text_changes_nothing(text: str) -> None:
    masked = mask_pii(text)
    assert mask_pii(masked) == masked


@pytest.mark.parametrize("piece", ["1 ", "a@", "1.1.", "a.", "+1-", ":a", "A1", "4111 "])
def test_hostile_texts_take_linear_time(piece: str) -> None:
    mask_pii(piece * 100_000)
