"""The funnel adds up, in whatever order it was counted, and fits a terminal."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from panthalassa.corpus import funnel
from panthalassa.corpus.funnel import LINES, Example, Report, Tally, table

WORDS = st.text("abc", min_size=1, max_size=3)
COUNTS = st.tuples(
    st.sampled_from(["read", "rule", "duplicate", "unreadable"]),
    st.sampled_from(["", "too_few_words", "symbols"]),
    st.sampled_from(["en", "th"]),
    st.integers(1, 9),
    st.integers(0, 99),
    WORDS,
)


@given(st.lists(COUNTS, max_size=30), st.randoms(use_true_random=False))
def test_tallies_add_up_in_any_order(counts: list, draw: random.Random) -> None:
    def tally(counts: list) -> Tally:
        made = Tally()
        for step, rule, domain, count, size, place in counts:
            made.add(step, domain, count, size, rule, Example(place=place))
        return made

    whole = tally(counts)
    draw.shuffle(counts)
    cut = draw.randint(0, len(counts))
    parts = [tally(counts[:cut]), tally(counts[cut:])]
    merged = Tally()
    for part in parts:
        merged.merge(part.encode())
    assert merged.encode() == whole.encode()
    read = sum(count for step, _, _, count, _, _ in counts if step == "read")
    assert merged.total("read") == read
    for entry in merged.entries():
        places = {
            c[5] for c in counts if (c[0], c[1], c[2]) == (entry.step, entry.rule, entry.domain)
        }
        assert [example.place for example in entry.examples] == sorted(places)[:3]


def test_damaged_files_are_named_up_to_a_number_and_all_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(funnel, "DAMAGED", 3)
    tallies = [Tally(), Tally()]
    for number in range(10):
        place = f"raw/{number}.warc"
        tallies[number % 2].add("unreadable", "en", 2, rule=place, example=Example(place=place))
    whole = Tally()
    for tally in tallies:
        whole.merge(tally.encode())
    found = {entry.rule: entry.count for entry in whole.entries()}
    assert found == {"": 14, "raw/0.warc": 2, "raw/1.warc": 2, "raw/2.warc": 2}


def report(rules: int, kept: int = 5) -> Report:
    tally = Tally()
    tally.add("read", "en", 5 + 2 * rules, 500 + 20 * rules)
    for index in range(rules):
        tally.add("rule", "en", 2, 20, f"rule_{index}", Example(place="raw/a.txt", text="x" * 999))
    tally.add("trimmed", "en", 1, 100)
    tally.add("masked", "en", 3, rule="email")
    tally.add("held_out", "en", 1, 80)
    tally.add("train", "en", kept - 1, 320)
    entries = list(tally.entries())
    return Report(files=1, file_bytes=999, entries=entries, tokens={"train/en": 7})


def test_every_document_that_was_read_is_dropped_or_kept() -> None:
    assert report(3).total("rule", domain="en") == (6, 60)
    with pytest.raises(ValidationError, match="1 documents of 0 bytes in domain en were read"):
        report(3, kept=4)


def test_a_long_funnel_is_told_in_a_few_lines() -> None:
    for rules in (0, 3, 19, 40):
        lines = list(table(report(rules)))
        assert len(lines) <= LINES
        assert sum("rule" in line for line in lines) <= rules
    assert any(line.startswith("− 26 other rules") for line in lines)
    assert any(line.endswith("3 email") for line in lines)
    assert report(40).entries[3].examples[0].text == "x" * 120


def test_a_report_comes_back_as_it_was_written() -> None:
    written = report(3)
    assert Report.model_validate_json(written.encode()) == written
