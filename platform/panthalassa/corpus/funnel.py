"""The funnel: what a preparation read, dropped and kept comes in, one record of it goes out.

Tasks count into a `Tally`, whose entries are small whatever was read; tallies add up in any order to
the same sum. At its end the preparation writes it as the corpus's `report.json`: a `Report`, which
is also what other pages about a corpus are made from.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, get_args

from pydantic import Field, model_validator

from panthalassa.corpus.manifest import Record

REPORT = "report.json"
EXAMPLES = 3
DAMAGED = 1000
EXAMPLE_CHARACTERS = 120
PLACE_CHARACTERS = 300

Step = Literal[
    "unreadable",
    "read",
    "trimmed",
    "masked",
    "rule",
    "duplicate",
    "near_duplicate",
    "contaminated",
    "held_out",
    "train",
]
DROPS: tuple[Step, ...] = ("rule", "duplicate", "near_duplicate", "contaminated")
"""The steps that drop documents, in their order."""


class Example(Record):
    """A document by its `place` (source, file, and where in it) and how it begins, and why it is
    one: the figure of a rule, or what was wrong with a record."""

    place: str
    reason: str = ""
    text: str = ""


class Entry(Record):
    """What one step did to one domain.

    `unreadable`: a `count` of records that are lost of a file, with its place as `rule`, the first
    DAMAGED of which are named. `read`: documents, and
    the `bytes` of their text (UTF-8, normalised). `trimmed`: documents from which boilerplate and
    personal data were cut, and by how many bytes they are shorter (negative where placeholders are
    longer). `masked`: pieces of personal data, with their kind as `rule`. `rule`, `duplicate`,
    `near_duplicate`, `contaminated`: documents dropped, by the rule of that name, because they
    repeat another, or because they share text with an evaluation. `held_out`, `train`: what is left.
    """

    step: Step
    rule: str = ""
    domain: str
    count: int = Field(ge=0)
    bytes: int = 0
    examples: tuple[Example, ...] = Field(default=(), max_length=EXAMPLES)


class Report(Record):
    """A preparation in full: `files` of `file_bytes` (as stored, compressed) in all, and what came
    of them, in the order of steps, rules and domains. `tokens` and `characters` are by
    `{split}/{domain}`, as the counts of the manifest are.

    Every document that was read was dropped by one step or is left, in each domain and in its bytes.
    """

    format: Literal[1] = 1
    files: int
    file_bytes: int
    entries: list[Entry]
    tokens: dict[str, int]
    characters: dict[str, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _adds_up(self) -> "Report":
        open_documents: Counter[str] = Counter()
        open_bytes: Counter[str] = Counter()
        for entry in self.entries:
            if entry.step in ("read", "trimmed", *DROPS, "held_out", "train"):
                sign = 1 if entry.step == "read" else -1
                open_bytes[entry.domain] += sign * entry.bytes
                open_documents[entry.domain] += sign * entry.count * (entry.step != "trimmed")
        for domain, missing in open_documents.items():
            if missing or open_bytes[domain]:
                raise ValueError(
                    f"{missing} documents of {open_bytes[domain]} bytes in domain {domain} were "
                    "read, but are neither dropped nor kept"
                )
        return self

    def total(self, *steps: Step, rule: str = "", domain: str = "") -> tuple[int, int]:
        """Count and bytes of these steps; of one rule or domain where it is given."""
        chosen = [
            entry
            for entry in self.entries
            if entry.step in steps and rule in ("", entry.rule) and domain in ("", entry.domain)
        ]
        return sum(entry.count for entry in chosen), sum(entry.bytes for entry in chosen)

    def kept(self) -> tuple[dict[str, int], dict[str, int]]:
        """Documents and bytes that are left, by `{split}/{domain}`."""
        left = [entry for entry in self.entries if entry.step in ("held_out", "train")]
        groups = [f"{entry.step}/{entry.domain}" for entry in left]
        return (
            dict(zip(groups, (entry.count for entry in left), strict=True)),
            dict(zip(groups, (entry.bytes for entry in left), strict=True)),
        )

    def domains(self) -> list[str]:
        return sorted({entry.domain for entry in self.entries if entry.step != "unreadable"})

    def rules(self, step: Step) -> list[str]:
        """Names of what a step dropped or masked, the most frequent first."""
        names = {entry.rule for entry in self.entries if entry.step == step}
        return sorted(names, key=lambda name: (-self.total(step, rule=name)[0], name))

    def encode(self) -> bytes:
        return (self.model_dump_json(indent=1) + "\n").encode()


class Key(NamedTuple):
    step: Step
    rule: str
    domain: str


class Tally:
    """Counts that are still being taken; the sum does not depend on the order of its parts."""

    def __init__(self) -> None:
        self._counts: Counter[Key] = Counter()
        self._bytes: Counter[Key] = Counter()
        self._examples: defaultdict[Key, list[Example]] = defaultdict(list)

    def add(
        self,
        step: Step,
        domain: str,
        count: int = 1,
        size: int = 0,
        rule: str = "",
        example: Example | None = None,
    ) -> None:
        """Count; of the examples those stay whose places sort first."""
        key = Key(step, rule, domain)
        self._counts[key] += count
        self._bytes[key] += size
        if example:
            self._keep(key, [shortened(example)])

    def merge(self, encoded: str) -> None:
        """Add what another one's `encode` gave."""
        for item in json.loads(encoded):
            entry = Entry.model_validate(item)
            key = Key(entry.step, entry.rule, entry.domain)
            self._counts[key] += entry.count
            self._bytes[key] += entry.bytes
            self._keep(key, entry.examples)

    def encode(self) -> str:
        return json.dumps([entry.model_dump() for entry in self.entries()])

    def entries(self) -> Iterator[Entry]:
        """In the order of steps, rules and domains."""
        steps = get_args(Step)
        damaged = sorted(key for key in self._counts if key.step == "unreadable" and key.rule)
        for key in damaged[DAMAGED:]:
            self._counts[key._replace(rule="")] += self._counts.pop(key)
            self._examples.pop(key, None)
        for key in sorted(self._counts, key=lambda key: (steps.index(key.step), *key)):
            yield Entry(
                **key._asdict(),
                count=self._counts[key],
                bytes=self._bytes[key],
                examples=tuple(self._examples[key]),
            )

    def total(self, step: Step) -> int:
        return sum(count for key, count in self._counts.items() if key.step == step)

    def drops(self) -> Counter[str]:
        """Documents that were dropped, by the rule, or else the step, that did it."""
        found = Counter[str]()
        for entry in self.entries():
            if entry.step in DROPS:
                found[entry.rule or entry.step] += entry.count
        return found

    def examples(self, step: Step) -> list[Example]:
        found = [e for key, kept in self._examples.items() if key.step == step for e in kept]
        return sorted(found, key=_order)[:EXAMPLES]

    def _keep(self, key: Key, examples: Iterable[Example]) -> None:
        self._examples[key] = sorted({*self._examples[key], *examples}, key=_order)[:EXAMPLES]


def shortened(example: Example) -> Example:
    return Example(
        place=example.place[:PLACE_CHARACTERS],
        reason=example.reason[:PLACE_CHARACTERS],
        text=example.text[:EXAMPLE_CHARACTERS],
    )


def _order(example: Example) -> tuple[str, str, str]:
    return example.place, example.reason, example.text


LINES = 25


def table(report: Report) -> Iterator[str]:
    """The funnel in at most LINES lines: what happened, to how many documents and megabytes."""
    rows = list(_rows(report))
    width = max(len(row[0]) for row in rows)
    for name, documents, megabytes, remark in rows:
        yield f"{name:{width}}{documents:>13}{megabytes:>13}  {remark}".rstrip()


def _rows(report: Report) -> Iterator[tuple[str, str, str, str]]:
    yield "", "documents", "MB", ""
    lost, _ = report.total("unreadable")
    yield "files", f"{report.files:,}", _mb(report.file_bytes), f"{lost:,} records unreadable"
    domains = len(report.domains())
    yield "read", *_amount(report, "read"), f"{domains} domain{'s' * (domains != 1)}"
    kinds = [f"{report.total('masked', rule=kind)[0]:,} {kind}" for kind in report.rules("masked")]
    yield "− trimmed", *_amount(report, "trimmed"), ", ".join(["these stay", *kinds])
    rules = report.rules("rule")
    shown = rules if len(rules) <= LINES - 10 else rules[: LINES - 11]
    for rule in shown:
        yield f"− {rule}", *_amount(report, "rule", rule), _most(report, "rule", rule)
    if rest := rules[len(shown) :]:
        counts = [report.total("rule", rule=rule) for rule in rest]
        documents, size = (sum(column) for column in zip(*counts, strict=True))
        yield f"− {len(rest)} other rules", f"{documents:,}", _mb(size), ""
    for step in DROPS[1:]:
        if report.total(step)[0]:
            name = step.replace("_", "-")
            yield f"− {name}", *_amount(report, step), _most(report, step)
    splits: tuple[Step, ...] = ("held_out", "train")
    for split in splits:
        tokens = sum(n for group, n in report.tokens.items() if group.startswith(f"{split}/"))
        yield split.replace("_", " "), *_amount(report, split), f"{tokens:,} tokens"


def _amount(report: Report, step: Step, rule: str = "") -> tuple[str, str]:
    documents, size = report.total(step, rule=rule)
    return f"{documents:,}", _mb(size)


def _most(report: Report, step: Step, rule: str = "") -> str:
    """The domain that lost most."""
    worst = max(report.domains(), key=lambda d: report.total(step, rule=rule, domain=d)[0])
    return f"{report.total(step, rule=rule, domain=worst)[0]:,} of {worst}"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.2f}"
