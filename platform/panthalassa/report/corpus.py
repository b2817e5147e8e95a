"""A corpus as a page: the record of its preparation comes in, `corpus.html` goes out.

The same tables stand in the report of a run that was trained on it. All bars are of bytes of text, as
shares of what was read, and each of their numbers stands beside them.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import ValidationError

from panthalassa.corpus.fertility import Fertility, counts_of, fertilities
from panthalassa.corpus.funnel import DROPS, REPORT, Entry, Example, Report, Step
from panthalassa.corpus.manifest import MANIFESTS, PAGE, read_manifest
from panthalassa.errors import CorpusError, PanthalassaError
from panthalassa.report.packed import packed, table
from panthalassa.report.template import fill
from panthalassa.storage import Storage, open_storage

PATIENCE = 5.0
"""Seconds for which a run's report waits for the storage of its corpus."""
NAMED = 3
DAMAGED = 100
SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


class Kind(NamedTuple):
    """What became of text: a step with its name and its colour, of Paul Tol's "light" scheme."""

    step: Step
    name: str
    colour: str


KINDS = (
    Kind("train", "trained on", "#44bb99"),
    Kind("held_out", "held out", "#99ddff"),
    Kind("trimmed", "trimmed", "#bbbbbb"),
    Kind("rule", "dropped by rules", "#ee8866"),
    Kind("duplicate", "duplicates", "#eedd88"),
    Kind("near_duplicate", "near-duplicates", "#bbcc33"),
    Kind("contaminated", "in an evaluation", "#ffaabb"),
)


class Bar(NamedTuple):
    """A piece of a bar, in percent of its width, from where the last one ends."""

    colour: str
    percent: float


class Loss(NamedTuple):
    """A row of the funnel: what is left is drawn pale, what is lost or set aside in its colour."""

    name: str
    documents: int
    size: str
    share: str
    bars: list[Bar]
    remark: str = ""


class Language(NamedTuple):
    name: str
    documents: int
    size: str
    bars: list[Bar]
    dropped: str
    most: str
    """The rule or step that dropped most of it."""
    kept: str
    tokens: int
    per_byte: str
    """Tokens a byte of text; `per_character` in Unicode characters."""
    per_character: str
    parity: str
    """Tokens a character beside those of English."""


class Rule(NamedTuple):
    name: str
    documents: int
    share: str
    size: str
    domains: str
    """The ones that lost the greatest shares."""
    examples: list[Example]


class Damaged(NamedTuple):
    """A file with records that can not be read, and what is wrong with the first."""

    file: str
    records: int
    reason: str


@dataclass(frozen=True)
class Shown:
    """What a page tells of a corpus."""

    cards: list[tuple[str, str, str]]
    """Name, number and note."""
    funnel: list[Loss]
    languages: list[Language]
    rules: list[Rule]
    masked: list[tuple[str, int]]
    unreadable: list[Damaged]
    kinds: list[Kind]
    """Those that occur, for a legend."""
    by_language: str
    """CSV of all steps by language, packed; `by_rule` of all rules."""
    by_rule: str


class _Sums:
    """Documents and bytes by step, rule and domain, each of which may be left open."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._documents: Counter[tuple[str, str, str]] = Counter()
        self._bytes: Counter[tuple[str, str, str]] = Counter()
        for entry in entries:
            for rule in {entry.rule, ""}:
                for domain in (entry.domain, ""):
                    self._documents[entry.step, rule, domain] += entry.count
                    self._bytes[entry.step, rule, domain] += entry.bytes

    def documents(self, step: Step, rule: str = "", domain: str = "") -> int:
        return self._documents[step, rule, domain]

    def bytes(self, step: Step, rule: str = "", domain: str = "") -> int:
        return self._bytes[step, rule, domain]


def find_page(corpus: Storage) -> str:
    """Where the page of a corpus is, which is written if it is not there yet, or why there is none."""
    try:
        return f"{corpus.uri}/{PAGE}" if corpus.exists(PAGE) else write_page(corpus)
    except CorpusError as error:  # as on a disk that is read-only by now
        return f"the corpus has no page: {error}"


def write_page(corpus: Storage) -> str:
    """Write the page of a corpus beside its manifest, and tell where.

    Raises CorpusError when its record is missing or damaged, or the page can not be written.
    """
    manifest = read_manifest(corpus)
    report = read_report(corpus, {manifest.report_sha256})
    text = fill(
        "report/corpus.html",
        {},
        name=corpus.uri.rstrip("/").rpartition("/")[2],
        uri=corpus.uri,
        fingerprint=manifest.fingerprint,
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        corpus=shown(report),
    )
    try:
        corpus.write(PAGE, text.encode())
    except OSError as error:
        raise CorpusError(f"{corpus.uri}/{PAGE} can not be written: {error}") from error
    return f"{corpus.uri}/{PAGE}"


def read_report(corpus: Storage, hashes: set[str]) -> Report:
    """The record of a preparation, which has one of these SHA-256. Raises CorpusError."""
    place = f"{corpus.uri}/{REPORT}"
    try:
        data = corpus.read(REPORT)
    except OSError as error:
        raise CorpusError(f"{place} can not be read: {error}") from error
    if hashlib.sha256(data).hexdigest() not in hashes:
        raise CorpusError(
            f"{place} is of another corpus, or damaged: the manifest has another hash"
        )
    try:
        return Report.model_validate_json(data)
    except ValidationError as error:
        raise CorpusError(f"{place} is no record of a preparation: {error}") from error


def report_of_run(run: Storage, directory: str | None) -> Report | None:
    """The record of the corpus in `directory`, when a run was trained on it and it has one.

    Raises PanthalassaError when it has one that can not be read.
    """
    try:
        kept = run.below(MANIFESTS)
        manifests = [read_manifest(kept, name) for name, _ in kept.files()]
    except (OSError, PanthalassaError):
        return None  # the part of the report that needs them says so
    hashes = {manifest.report_sha256 for manifest in manifests} - {""}
    if not hashes or not directory:
        return None
    return read_report(open_storage(directory, PATIENCE), hashes)


def shown(report: Report) -> Shown:
    """What a page tells of a corpus, from the record of its preparation."""
    sums = _Sums(report.entries)
    rules = [(step, rule) for step in DROPS for rule in report.rules(step) if rule]
    domains = sorted(report.domains(), key=lambda name: -sums.bytes("read", domain=name))
    documents, text_bytes = report.kept()
    counts = counts_of(report.tokens, documents, report.characters, text_bytes)
    fertile = {row.domain: row for row in fertilities(counts)}
    return Shown(
        cards=list(_cards(report, sums, domains, fertile)),
        funnel=list(_funnel(report, sums)),
        languages=[_language(report, sums, rules, name, fertile.get(name)) for name in domains],
        rules=[_rule(report, sums, domains, step, rule) for step, rule in rules],
        masked=[(kind, sums.documents("masked", kind)) for kind in report.rules("masked")],
        unreadable=_damaged(report),
        kinds=[kind for kind in KINDS if sums.bytes(kind.step)],
        by_language=packed(table(*_by_language(report, sums, domains))),
        by_rule=packed(table(*_by_rule(report))),
    )


def _cards(
    report: Report, sums: _Sums, domains: list[str], fertile: dict[str, Fertility]
) -> Iterator[tuple[str, str, str]]:
    read, lost = sums.documents("read"), sums.documents("unreadable")
    kept = sums.documents("train") + sums.documents("held_out")
    yield "files", f"{report.files:,}", f"{size(report.file_bytes)} as stored"
    yield (
        "read",
        f"{number(read)} documents",
        f"{size(sums.bytes('read'))} in {len(domains)} domains",
    )
    yield "unreadable records", number(lost), share(lost, read + lost)
    yield "dropped", share(read - kept, read), f"{read - kept:,} documents"
    left = sums.bytes("train") + sums.bytes("held_out")
    yield "kept", size(left), f"{kept:,} documents"
    tokens = Counter[str]()
    for group, count in report.tokens.items():
        tokens[group.partition("/")[0]] += count
    yield "tokens", number(tokens["train"]), f"and {number(tokens['held_out'])} held out"
    if worst := max(fertile.values(), key=lambda row: row.per_character, default=None):
        beside = f"; {worst.parity:.1f} times that of English" if worst.parity else ""
        yield "most tokens a character", f"{worst.per_character:.2f}", f"{worst.domain}{beside}"


def _funnel(report: Report, sums: _Sums) -> Iterator[Loss]:
    whole = max(sums.bytes("read"), 1)
    left = sums.bytes("read")
    pale = KINDS[0].colour
    lost = sums.documents("unreadable")
    remark = f"{report.files:,} files of {size(report.file_bytes)}, {lost:,} records unreadable"
    yield Loss("read", sums.documents("read"), size(left), "100.0%", [Bar(pale, 100.0)], remark)
    for kind in KINDS[2:]:
        taken = sums.bytes(kind.step)
        if not sums.documents(kind.step):
            continue
        left -= taken
        bars = [Bar(pale, 100 * left / whole), Bar(kind.colour, 100 * max(taken, 0) / whole)]
        told = ", ".join(report.rules(kind.step)[:NAMED]) if kind.step != "trimmed" else ""
        remark = f"most by {told}" if told else ""
        count = sums.documents(kind.step)
        yield Loss(f"− {kind.name}", count, size(taken), share(taken, whole), bars, remark)
    for kind in KINDS[1::-1]:
        taken = sums.bytes(kind.step)
        tokens = sum(n for group, n in report.tokens.items() if group.startswith(f"{kind.step}/"))
        before = 0.0 if kind.step == "train" else 100 * (left - taken) / whole
        bars = [Bar("transparent", before), Bar(kind.colour, 100 * taken / whole)]
        count = sums.documents(kind.step)
        remark = f"{tokens:,} tokens"
        yield Loss(kind.name, count, size(taken), share(taken, whole), bars, remark)


def _language(
    report: Report,
    sums: _Sums,
    rules: list[tuple[Step, str]],
    name: str,
    fertility: Fertility | None,
) -> Language:
    read, whole = sums.documents("read", domain=name), max(sums.bytes("read", domain=name), 1)
    pieces = [(kind.colour, sums.bytes(kind.step, domain=name)) for kind in KINDS]
    longest = max(whole, sum(max(piece, 0) for _, piece in pieces))
    dropped = sum(sums.documents(step, domain=name) for step in DROPS)
    reasons: list[tuple[Step, str]] = [*rules, ("duplicate", ""), ("near_duplicate", "")]
    step, rule = max(reasons, key=lambda reason: sums.documents(reason[0], reason[1], name))
    most = sums.documents(step, rule, name)
    return Language(
        name,
        read,
        size(sums.bytes("read", domain=name)),
        [Bar(colour, 100 * piece / longest) for colour, piece in pieces if piece > 0],
        share(dropped, read),
        f"{rule or step.replace('_', '-')} {share(most, read)}" if most else "",
        size(sums.bytes("train", domain=name) + sums.bytes("held_out", domain=name)),
        report.tokens.get(f"train/{name}", 0),
        f"{fertility.per_byte:.3f}" if fertility else "–",
        f"{fertility.per_character:.3f}" if fertility else "–",
        f"{fertility.parity:.2f}" if fertility and fertility.parity else "–",
    )


def _rule(report: Report, sums: _Sums, domains: list[str], step: Step, rule: str) -> Rule:
    documents, read = sums.documents(step, rule), sums.documents("read")
    shares = {
        name: sums.documents(step, rule, name) / max(sums.documents("read", domain=name), 1)
        for name in domains
    }
    worst = [name for name in sorted(domains, key=lambda name: -shares[name]) if shares[name]]
    return Rule(
        rule,
        documents,
        share(documents, read),
        size(sums.bytes(step, rule)),
        ", ".join(f"{name} {shares[name]:.1%}" for name in worst[:NAMED]),
        _examples(report, step, rule),
    )


def _damaged(report: Report) -> list[Damaged]:
    """The files that lost most."""
    found = [
        Damaged(
            entry.rule or f"other files of {entry.domain}",
            entry.count,
            "; ".join(f"{e.place.removeprefix(entry.rule)} {e.reason}" for e in entry.examples[:1]),
        )
        for entry in report.entries
        if entry.step == "unreadable"
    ]
    return sorted(found, key=lambda row: (-row.records, row.file))[:DAMAGED]


def _examples(report: Report, step: Step, rule: str) -> list[Example]:
    """The first by their places."""
    found = {
        example
        for entry in report.entries
        if entry.step == step and entry.rule == rule
        for example in entry.examples
    }
    return sorted(found, key=lambda example: (example.place, example.reason))[:NAMED]


def _by_language(
    report: Report, sums: _Sums, domains: list[str]
) -> tuple[list[str], list[list[object]]]:
    steps: list[Step] = ["read", "trimmed", *DROPS, "held_out", "train"]
    header = ["domain", *(f"{step}_{what}" for step in steps for what in ("documents", "bytes"))]
    rows: list[list[object]] = []
    for name in domains:
        counted: list[object] = [name]
        for step in steps:
            counted += [sums.documents(step, domain=name), sums.bytes(step, domain=name)]
        tokens = [report.tokens.get(f"{split}/{name}", 0) for split in ("held_out", "train")]
        rows.append([*counted, *tokens])
    return [*header, "held_out_tokens", "train_tokens"], rows


def _by_rule(report: Report) -> tuple[list[str], list[list[object]]]:
    header = ["step", "rule", "domain", "documents", "bytes"]
    return header, [[e.step, e.rule, e.domain, e.count, e.bytes] for e in report.entries]


def size(count: int) -> str:
    """Bytes in decimal units, to three digits."""
    return _scaled(count, SIZES) or f"{count} bytes"


def number(count: int) -> str:
    """A count in full, or to three digits from a million on."""
    return _scaled(count, COUNTS) or f"{count:,}"


def _scaled(count: int, units: tuple[tuple[float, str], ...]) -> str:
    """In the greatest unit that it reaches; empty when it reaches none."""
    for unit, name in units:
        if abs(count) >= unit:
            digits = 3 - len(str(int(abs(count) / unit)))
            return f"{count / unit:,.{max(0, digits)}f} {name}"
    return ""


def share(part: int, whole: int) -> str:
    if not whole:
        return "–"
    return "<0.1%" if 0 < part / whole < 0.0005 else f"{part / whole:.1%}"
