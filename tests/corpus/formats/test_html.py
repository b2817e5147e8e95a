"""A page gives its main text, whatever it says of its encoding, and is refused before it takes long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.corpus.formats.html import main_text


def page(text: str, head: str = "") -> str:
    return f"<html><head>{head}</head><body><main><p>{text}</p></main></body></html>"


@pytest.mark.parametrize("charset", ["windows-1251", "utf-8"])
@pytest.mark.parametrize("where", ["http", "meta"])
def test_a_page_is_decoded_as_it_says(charset: str, where: str) -> None:
    text = "Море глубокое, и волны в нём идут одна за другой весь день."
    meta = f"<meta charset='{charset}'>" if where == "meta" else ""
    html = page(text, meta).encode(charset)
    assert main_text(html, charset if where == "http" else None)[0] == text


@pytest.mark.parametrize(
    ("label", "encoding", "text"),
    [
        ("x-sjis", "shift_jis", "海は広くて深い。"),
        ("x-gbk", "gbk", "海洋又宽又深。"),
        ("windows-874", "cp874", "ทะเลกว้างและลึก"),
        ("iso-8859-8-i", "iso8859-8", "הים רחב ועמוק"),
        ("x-cp1251", "cp1251", "Море глубокое"),
        ("none", "utf-8", "Die See ist groß"),
        ("ansi", "utf-8", "Die See ist groß"),
        ("utf-8, text/html", "utf-8", "Die See ist groß"),
    ],
)
def test_labels_are_those_of_the_web_and_others_are_not_believed(
    label: str, encoding: str, text: str
) -> None:
    assert main_text(page(text).encode(encoding), label)[0] == text


def test_how_characters_are_read_aloud_is_left_out() -> None:
    ruby = "深い<ruby>海<rp>(</rp><rt>うみ</rt><rp>)</rp></ruby>を渡る。"
    assert main_text(page(ruby).encode())[0] == "深い海を渡る。"


@pytest.mark.parametrize(
    ("html", "reason"),
    [
        ("<div>" * 100_000 + "sea", "nested more than 100 deep"),
        ("<b><div>" * 20_000 + "sea", "nested more than 250 deep"),
        ("<div>" * 70 + "<p>sea</p>" * 200_000, "nested more than 64 deep"),
        ("<p " + " ".join(f"a{index}=1" for index in range(100_000)) + ">sea", "16000 attributes"),
        ("<p " + "".join(f"a{index}='1'" for index in range(100_000)) + ">sea", "16000 attributes"),
        (
            "<p>" + "".join(f"<b a{i}>" for i in range(1000)) + "</p><p>sea" * 2000,
            "kinds of formatting",
        ),
        ("<" * (16 << 20), "500000 tags"),
    ],
    ids=["deep", "two kinds", "broad and deep", "attributes", "glued", "formatting", "<"],
)
def test_a_page_that_would_take_long_is_refused(html: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        main_text(html.encode())


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 1000 + "sea",
        "<p><b><font size=1>sea" * 5000,
        f"<img alt='{'x ' * 50_000}'>sea",
        f"<script>{'x = y / 2; ' * 50_000}</script>sea",
        "sea<!--" + "x y " * 50_000,
        "<table><tr><td>sea" + "<table>" * 400,
    ],
    ids=["deep", "unclosed", "long value", "script", "comment", "tables"],
)
def test_a_page_is_not_refused_for_its_size_or_its_faults(html: str) -> None:
    assert "sea" in main_text(html.encode())[0]


@given(st.binary(max_size=2000))
def test_no_page_brings_the_extraction_down(html: bytes) -> None:
    text, _ = main_text(html)
    assert isinstance(text, str)
