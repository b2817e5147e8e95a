"""The record of a preparation of many languages, and the folder of its corpus, without preparing it."""

import hashlib
import random
from pathlib import Path

from phases import CORPUS

from panthalassa.corpus.funnel import REPORT, Example, Report, Step, Tally
from panthalassa.corpus.manifest import MANIFEST, Manifest
from panthalassa.storage import open_storage

RULES = (
    "short", "symbols", "stop_words", "repeated_lines", "repeated_ngrams", "bullets", "ellipses",
    "javascript", "lorem_ipsum", "adult_words", "alphabetic_words", "listed_url",
)  # fmt: skip
EVALUATIONS = ("evaluations/xnli.jsonl", "evaluations/flores/devtest.txt")
HOSTILE = "</script><script>document.title = 'owned'</script><img src=x onerror=alert(1)>"
TEXTS = ("Cookies help us", "اضغط هنا للمزيد من الأخبار", "点击这里", HOSTILE)


def make_report(domains: int = 120, seed: int = 0) -> Report:
    """A funnel in which each language loses another share to each rule."""
    chance, tally = random.Random(seed), Tally()
    tokens: dict[str, int] = {}
    characters: dict[str, int] = {}
    codes = [f"{a}{b}" for a in "abcdefghijkl" for b in "qrstuvwxyz"]
    names = list(dict.fromkeys(["en", "zh", "es", "th", "am", "und", *codes]))[:domains]
    for rank, name in enumerate(names):
        documents = int(4e8 / (rank + 1) ** 1.4) + 20
        each = chance.randint(900, 4000)
        tally.add("read", name, documents, documents * each)
        steps: list[tuple[Step, str, float]] = [
            ("rule", rule, chance.uniform(0, 0.08)) for rule in chance.sample(RULES, 7)
        ]
        steps += [("duplicate", "", 0.06), ("near_duplicate", "", chance.uniform(0, 0.3))]
        steps += [("contaminated", file, 2e-5) for file in EVALUATIONS]
        left = documents
        for step, rule, lost in steps:
            count = int(left * lost)
            example = Example(
                place=f"web/{name}/{rank:03d}.warc.gz, record {count}",
                reason="0.31 of the lines are repeated" if step == "rule" else "",
                text=chance.choice(TEXTS),
            )
            tally.add(step, name, count, count * each, rule, example if count else None)
            left -= count
        trimmed = left // 3
        tally.add("trimmed", name, left // 2, trimmed)
        tally.add("masked", name, left // 9, rule="e-mail")
        tally.add("masked", name, left // 70, rule="phone")
        held_out = left // 100
        tally.add("held_out", name, held_out, held_out * each)
        tally.add("train", name, left - held_out, (left - held_out) * each - trimmed)
        fertility = chance.uniform(0.2, 0.45)
        tokens[f"held_out/{name}"] = int(held_out * each * fertility)
        tokens[f"train/{name}"] = int((left - held_out) * each * fertility)
        characters[f"held_out/{name}"] = held_out * each // (1 + rank % 3)
        characters[f"train/{name}"] = (left - held_out) * each // (1 + rank % 3)
    broken = Example(place="web/en/007.warc.gz", reason=f"cut off: {HOSTILE}")
    tally.add("unreadable", "en", 1234, rule="web/en/007.warc.gz", example=broken)
    return Report(
        files=60_000,
        file_bytes=10**12,
        entries=list(tally.entries()),
        tokens=tokens,
        characters=characters,
    )


def write_corpus(folder: Path, report: Report) -> Manifest:
    """A folder with the manifest and the record of a corpus, and without its shards."""
    digest = hashlib.sha256(report.encode()).hexdigest()
    manifest = CORPUS.model_copy(update={"report_sha256": digest})
    storage = open_storage(str(folder))
    storage.write(REPORT, report.encode())
    storage.write(MANIFEST, manifest.encode())
    return manifest
