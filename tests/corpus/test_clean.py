"""Rules remove what they name, and keep clean text of every script."""

import random

import pytest
from benchmarks.languages import verdicts
from hypothesis import given
from hypothesis import strategies as st
from udhr import folder, read_declarations

from panthalassa.corpus.clean import RULES, Page, drop_boilerplate, judge
from panthalassa.corpus.limits import Limits
from panthalassa.corpus.lists import FOLDER, read_lines, read_pairs, read_words

KEPT_SHARE = 0.95

WORDS = [
    "the",
    "sea",
    "be",
    "to",
    "deep",
    "of",
    "and",
    "tide",
    "that",
    "slow",
    "have",
    "pale",
    "moon",
    "with",
    "island",
    "harbour",
    "sail",
    "wind",
    "storm",
    "north",
    "anchor",
    "captain",
    "shore",
    "gull",
    "salt",
    "wave",
    "current",
    "reef",
    "lagoon",
    "monsoon",
    "chart",
    "compass",
]


def prose(sentences: int = 12, seed: int = 0) -> str:
    draw = random.Random(seed)
    lines = [" ".join(draw.choices(WORDS, k=14)).capitalize() + "." for _ in range(sentences)]
    return "\n".join(lines)


def page(text: str, url: str | None = None) -> Page:
    return Page(text, "en", url)


def lines(pattern: str) -> str:
    """Prose of which each line is put into the pattern."""
    return "\n".join(pattern.format(line.rstrip(".")) for line in prose().split("\n"))


BROKEN = {
    "blocked_url": page(prose(), "https://www.pornhub.com/view?x=1"),
    "undecodable": page(prose().replace("e", "\ufffd")),
    "too_few_words": page("The sea is deep."),
    "too_many_words": page("the sea and " * 40_000, "https://example.org/"),
    "word_length": page("incomprehensibilitiesnotwithstanding " * 60),
    "symbols": page(lines("#{}. # #")),
    "bullet_lines": page(lines("• {}.")),
    "ellipsis_lines": page(lines("{}...")),
    "alphabetic_words": page(lines("{} 1 2 3 4 5 6 7 8 9.")),
    "stop_words": page(" ".join(word for word in WORDS if len(word) > 4) * 9),
    "lorem_ipsum": page(f"{prose()}\nLorem ipsum dolor sit amet."),
    "curly_braces": page(lines("{{ {} }}.")),
    "punctuated_lines": page(lines("{}")),
    "short_lines": page(f"{prose()}\n" + "\n".join(f"{word}." for word in WORDS)),
    "adult_words": page(f"{prose()}\n" + "porn xxx " * 5),
    "duplicate_lines": page(prose(5) + f"\n{prose(1, seed=1)}" * 12),
    "duplicate_paragraphs": page(f"{prose(4)}\n\n{prose(4, 1)}\n\n" + f"{prose(4, 2)}\n\n" * 9),
    "top_ngrams": page(lines("{} lighthouse keeper anchorage. lighthouse keeper anchorage.")),
    "duplicate_ngrams": page(prose(6) + "\n" + prose(6).replace(".\n", ", but so. ")),
}


def test_each_rule_has_a_page_that_breaks_it() -> None:
    assert BROKEN.keys() == RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_a_rule_removes_what_it_names_and_says_why(name: str) -> None:
    assert RULES[name](BROKEN[name])
    assert RULES[name](page(prose(), "https://example.org/sea")) is None
    assert judge(BROKEN[name])


def test_prose_breaks_no_rule() -> None:
    assert judge(page(prose())) is None


def test_a_reason_gives_the_figure_and_its_limit() -> None:
    removal = judge(page("The sea is deep."))
    assert removal
    assert (removal.rule, removal.reason) == ("too_few_words", "words: 4, at least 50")


def test_limits_can_be_given() -> None:
    short = Page("The tide is slow and of the sea.", "en", limits_given=Limits(min_words=3))
    assert judge(short) is None


def test_a_book_may_be_longer_than_a_page_of_the_web() -> None:
    assert RULES["too_many_words"](page("the sea and " * 40_000)) is None


def test_hosts_are_blocked_with_all_below_them_and_words_only_whole() -> None:
    rule = RULES["blocked_url"]
    for url in (
        "http://m.xvideos.com",
        "https://a:b@xnxx.com:8/",
        "https://x.org/xxx/milf/1",
        "freeporn.tv",
    ):
        assert rule(page("", url)), url
    for url in (
        "https://notbit.ly/",
        "https://essex.gov.uk/torrential-rain",
        "https://x.org/pornography",
        "https://en.wikipedia.org/wiki/Casino_Royale",
        "https://docs.python.org/3/slots",
    ):
        assert rule(page("", url)) is None, url


@given(st.text(st.characters(exclude_categories=[])), st.sampled_from(["en", "th", "zh", "und"]))
def test_rules_take_any_text_and_say_the_same_twice(text: str, language: str) -> None:
    for rule in RULES.values():
        assert rule(Page(text, language, text)) == rule(Page(text, language, text))


def test_furniture_of_a_page_goes_and_prose_about_it_stays() -> None:
    long = "The law asks each site that uses cookies to say so. " * 5
    text = f"First line.\nThis site uses cookies.\n{long}\nAlle Rechte vorbehalten\nLast line."
    assert drop_boilerplate(text) == f"First line.\n{long}\nLast line."
    assert drop_boilerplate(prose()) == prose()


def test_lists_are_in_lower_case_and_name_nothing_twice() -> None:
    for name in ("boilerplate.txt", "url_hosts.txt", "url_words.txt"):
        entries = read_lines(name)
        assert len(set(entries)) == len(entries)
        assert [entry.lower() for entry in entries] == list(entries)
    for name in ("stop_words.txt", "adult_words.txt"):
        assert all(word == word.lower() for words in read_words(name).values() for word in words)
    assert read_pairs("iban_lengths.txt")["NO"] == "15"
    assert len(list(FOLDER.iterdir())) == 7


def test_clean_text_of_every_script_is_kept() -> None:
    found = verdicts(read_declarations(folder()))
    assert len(found) > 30
    kept = {script: removals.count(None) / len(removals) for script, removals in found.items()}
    assert {script: share for script, share in kept.items() if share < KEPT_SHARE} == {}
