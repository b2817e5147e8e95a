"""A dump gives its articles as prose; a broken page costs itself alone."""

import bz2
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.corpus.formats.wikitext import prose

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <base>https://{host}/wiki/Wikipedia:Hauptseite</base>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="6" case="first-letter">Datei</namespace>
      <namespace key="14" case="first-letter">Kategorie</namespace>
    </namespaces>
  </siteinfo>
"""
TAIL = "</mediawiki>\n"


def page(title: str, text: str, namespace: int = 0, redirect: str = "") -> str:
    return (
        f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{namespace}</ns>\n    <id>7</id>\n"
        f"{redirect}    <revision>\n      <id>1</id>\n      <model>wikitext</model>\n"
        f'      <text bytes="5" xml:space="preserve">{escape(text)}</text>\n'
        "    </revision>\n  </page>\n"
    )


def dump(*pages: str, host: str = "de.wikipedia.org", tail: str = TAIL) -> bytes:
    return (HEAD.format(host=host) + "".join(pages) + tail).encode()


def test_articles_come_with_language_url_and_licence(read, compress, suffix: str) -> None:
    data = dump(page("Große See", "Die '''See''' ist <i>tief</i>."), page("B & C", "Zwei."))
    documents, problems = read(f"dewiki-pages-articles.xml{suffix}", compress(suffix, data))
    assert problems == []
    assert [document.text for document in documents] == ["Die See ist tief.", "Zwei."]
    first = documents[0]
    assert first.domain == "de"
    assert first.provenance.url == "https://de.wikipedia.org/wiki/Gro%C3%9Fe_See"
    assert first.provenance.license == "CC BY-SA"
    assert first.provenance.place.endswith(", line 11")


def test_redirects_and_other_namespaces_are_left_out(read) -> None:
    data = dump(
        page("A", "#REDIRECT [[B]]", redirect='    <redirect title="B" />\n'),
        page("Diskussion:B", "Streit.", namespace=1),
        page("Vorlage:B", "{{x}}", namespace=10),
        page("B", "Text."),
    )
    documents, problems = read("a.xml", data)
    assert ([document.text for document in documents], problems) == (["Text."], [])


def test_parts_of_a_multistream_dump_are_read_and_its_index_is_not(read) -> None:
    parts = (HEAD.format(host="de.wikipedia.org"), page("A", "Eins."), page("B", "Zwei."), TAIL)
    data = b"".join(bz2.compress(part.encode()) for part in parts)
    read("dewiki-pages-articles-multistream2.xml-p10p20.bz2", data)
    name = "dewiki-pages-articles-multistream-index.txt.bz2"
    with pytest.raises(ValueError, match="not enough values"):
        read(name, bz2.compress(b"600:7:A\n"))
    documents, [] = read("dewiki-pages-articles-multistream3.xml-p21p30.bz2", data)
    assert [document.text for document in documents] == ["Eins.", "Zwei."]


def test_another_wiki_says_nothing_of_a_licence(read) -> None:
    [document], [] = read("a.xml", dump(page("A", "Text."), host="wiki.example.com"))
    assert document.provenance.license is None
    assert document.provenance.url == "https://wiki.example.com/wiki/A"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (page("B", "x").replace("</title>", "</titel>"), "no XML"),
        (page("B", "x").replace("x</text>", "a & b</text>"), "no XML"),
        (page("B", "x").replace("  </page>\n", ""), "no end"),
        (page("B", "x").replace("<title>B</title>", ""), "no title"),
    ],
)
def test_a_broken_page_costs_itself_alone(read, bad: str, reason: str) -> None:
    documents, [problem] = read("a.xml", dump(page("A", "Eins."), bad, page("C", "Drei.")))
    assert [document.text for document in documents] == ["Eins.", "Drei."]
    assert reason in problem.reason
    assert problem.place.endswith(", line 21")


@pytest.mark.parametrize("cut", [len(TAIL) + 1, len(TAIL) + 30, 200])
def test_a_dump_that_is_cut_off_says_so(read, cut: int) -> None:
    documents, [problem] = read("a.xml", dump(page("A", "Eins."), page("B", "Zwei."))[:-cut])
    assert documents[0].text == "Eins."
    assert "cut off" in problem.reason


@pytest.mark.parametrize("rewrite", [("\n", ""), ("\n", "\r\n"), ("\n  <", " <")])
def test_pages_are_found_wherever_lines_end(read, rewrite: tuple[str, str]) -> None:
    data = dump(page("A", "Eins."), page("B", "Zwei.")).decode().replace(*rewrite)
    documents, problems = read("a.xml", data.encode())
    assert ([document.text for document in documents], problems) == (["Eins.", "Zwei."], [])
    assert documents[1].provenance.url == "https://de.wikipedia.org/wiki/B"


@pytest.mark.parametrize(
    "data",
    [
        b"<html>\n<p>text</p>\n</html>\n",
        b"<rss><item>no dump</item></rss>",
        b"<p>sea</p>\n" * 200_000,
        dump(),
    ],
    ids=["html", "rss", "long", "no page"],
)
def test_other_xml_is_a_problem(read, data: bytes) -> None:
    documents, [problem] = read("a.xml", data)
    assert documents == []
    assert "no dump of MediaWiki" in problem.reason


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("'''Sea''' is ''deep''", "Sea is deep"),
        ("[[water|salt ''water'']] and [[tide]]s", "salt water and tides"),
        ("[[File:A.jpg|thumb|A [[moon]]]]sea[[Category:Seas]]", "sea"),
        ("[[:Category:Seas]] remain", ":Category:Seas remain"),
        ("sea<ref>book</ref><ref name=a /> here<!-- no -->", "sea here"),
        ("{{Infobox|a={{b}}}}The sea ({{IPA|x}}; {{y}}) is", "The sea is"),
        ("Sea ({{IPA|x}}, deep)", "Sea (deep)"),
        ("a\n{| class=x\n| cell\n|}\nb", "a\n\nb"),
        ("== Tides ==\nThey come.\n* one\n* two", "Tides\nThey come.\n one\n two"),
        ("one&nbsp;two &amp; 3<br/>four", "one two & 3\nfour"),
        ("[http://e.org the page] [http://e.org]", "the page"),
        ("<math>x^2</math>a<gallery>\nA.jpg\n</gallery>__NOTOC__", "a"),
        ("<nowiki>[[raw]]</nowiki>", "[[raw]]"),
        ("-{zh-hans:海 洋;zh-hant:海洋}-很深", "海 洋很深"),
        ("-{A|zh-cn:[[海]];zh-tw:洋}-和-{zh-cn;zh-tw|水}--{H|zh-cn:a;zh-tw:b}-", "海和水"),
        ("-{T|zh-cn:a}--{R|:)}- -{x; y}-", ":) x; y"),
        (";tide: water\n;see http://e.org now\n:more", "tide\nwater\nsee now\nmore"),
        ("深い<ruby>海<rp>(</rp><rt>うみ</rt><rp>)</rp></ruby>", "深い海"),
    ],
)
def test_prose_is_what_a_reader_sees(wikitext: str, text: str) -> None:
    assert prose(wikitext) == text.replace("\n ", "\n")


@given(st.text(st.sampled_from("[]{}|'=<>/&;:#* \nabref"), max_size=300))
def test_no_wikitext_brings_the_parser_down(wikitext: str) -> None:
    assert isinstance(prose(wikitext), str)
