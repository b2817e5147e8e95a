"""Reading: files come in, documents go out, refined, with their provenance, and a tally of the rest.

The first stage of a preparation. A partition is some files; of each run of documents it gives two
tables, row by row the same documents: `texts` with the texts alone, and `about` with all that the
next stages decide by, so that they need not read the texts. Of pairs it gives two tables as well,
`pictures` with the prepared images alone, and `pairs`.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from panthalassa import config
from panthalassa.corpus.decontaminate import Contamination
from panthalassa.corpus.documents import READ, Document, Problem, SourceFile
from panthalassa.corpus.formats.stream import changed
from panthalassa.corpus.funnel import EXAMPLE_CHARACTERS, Entry, Example, Tally
from panthalassa.corpus.image_paths import ListedImages
from panthalassa.corpus.minhash import choose_bands, key_lists
from panthalassa.corpus.pairs import PREFIX, PairRefiner, pair_table
from panthalassa.corpus.refine import Refiner
from panthalassa.corpus.sources import content_sha256, path_safe, read_documents
from panthalassa.corpus.staging import MOST_TASKS, Tables
from panthalassa.errors import CorpusError

PARTITION_BYTES = 64 << 20  # files that one task reads
TABLE_BYTES = 16 << 20  # text of a table
TABLE_ROWS = 65_536
NAMED = 5  # files with records that can not be read

# A row of `about` has what READ has but the text, its `characters`, how it `begins`, the `keys` of the
# bands of near-duplicates (none in a text without words), and the file of an `evaluation` that the
# document shares a passage with.


def partition(files: list[SourceFile], hashes: list[str]) -> list[str]:
    """The files by source and path with their SHA-256, in runs of PARTITION_BYTES, or more where that
    would make more than MOST_TASKS, or one file that is longer; as JSON."""
    most = max(PARTITION_BYTES, sum(file.size for file in files) / MOST_TASKS)
    runs: list[list[tuple[SourceFile, str]]] = []
    size = 0
    pairs = zip(files, hashes, strict=True)
    for file, sha256 in sorted(pairs, key=lambda pair: (pair[0].source, pair[0].path)):
        if not runs or size + file.size > most:
            runs.append([])
            size = 0
        runs[-1].append((file, sha256))
        size += file.size
    return [json.dumps([[asdict(file), sha256] for file, sha256 in run]) for run in runs]


@dataclass(frozen=True)
class Reader:
    """Reads a partition. `bands` has the number and the length of the bands whose keys are made; `pairs`
    is given where images are taken, and `images` are those that were listed beside the sources.

    Ray Data sends it to a node once, where all tasks share the arrays in it. A reference to an object of
    Ray's would stay in every process that has run it: Ray never ends such a process, nor uses it again.
    """

    refine: Refiner
    bands: tuple[int, int] | None
    contamination: Contamination | None
    pairs: PairRefiner | None = None
    images: ListedImages | None = None

    def __call__(self, number: int, partition: str) -> Tables:
        tally = Tally()
        rows: list[dict[str, Any]] = []
        images: list[bytes] = []
        pairs: list[dict[str, Any]] = []
        size = image_size = 0
        for row, image in self._documents(partition, tally):
            if image is None:
                rows.append(row)
                size += row["bytes"]
            else:
                pairs.append(row)
                images.append(image)
                image_size += row["bytes"] + len(image)
            if size > TABLE_BYTES or len(rows) >= TABLE_ROWS:
                yield from self._tables(rows)
                rows, size = [], 0
            if image_size > TABLE_BYTES or len(pairs) >= TABLE_ROWS:
                yield from self._pair_tables(pairs, images)
                pairs, images, image_size = [], [], 0
        if rows:
            yield from self._tables(rows)
        if pairs:
            yield from self._pair_tables(pairs, images)
        return tally.encode()

    def _documents(
        self, partition: str, tally: Tally
    ) -> Iterator[tuple[dict[str, Any], bytes | None]]:
        """Rows of documents, and of pairs with their images."""
        limit = self.pairs.limits.max_bytes if self.pairs else None
        for fields, sha256 in json.loads(partition):
            file = SourceFile(**fields)
            for found in read_documents(file, limit, self.images):
                if isinstance(found, Problem):
                    add_problem(tally, file, found)
                elif self.pairs and found.image is not None:
                    place = _place(file, found.provenance.place)
                    if pair := self.pairs(found, file, place, tally):
                        yield pair
                elif document := _refined(self._apart(found), file, self.refine, tally):
                    yield _row(document, file), None
            refuse_changed(file, sha256)

    def _apart(self, document: Document) -> Document:
        """The document, whose domain is not one of pairs."""
        if self.pairs and document.domain.startswith(PREFIX):
            return replace(document, domain=path_safe(f"text-{document.domain}"))
        return document

    def _pair_tables(
        self, pairs: list[dict[str, Any]], images: list[bytes]
    ) -> Iterator[tuple[str, pa.Table]]:
        yield "pictures", pa.table({"image": pa.array(images, pa.large_binary())})
        yield "pairs", pair_table(pairs, self.contamination)

    def _tables(self, rows: list[dict[str, Any]]) -> Iterator[tuple[str, pa.Table]]:
        table = pa.Table.from_pylist(rows, READ)
        texts = table["text"]
        keys: pa.Array = pa.nulls(len(table), pa.list_(pa.uint64()))
        if self.bands:
            keys = key_lists(texts, self.bands)
        found: list[str | None] = [None] * len(table)
        if self.contamination:
            found = self.contamination.find(texts)
        about = (
            table.drop_columns(["text"])
            .append_column("characters", pc.utf8_length(texts))
            .append_column("begins", pc.utf8_slice_codeunits(texts, 0, EXAMPLE_CHARACTERS))
            .append_column("keys", keys)
            .append_column("evaluation", pa.array(found, pa.string()))
        )
        yield "texts", table.select(["text"])
        yield "about", about


def refuse_changed(file: SourceFile, sha256: str) -> None:
    """Raises CorpusError when the file is not any more what it was."""
    if content_sha256(file) != sha256:
        raise changed(file.place)


def add_problem(tally: Tally, file: SourceFile, problem: Problem) -> None:
    """Count what is lost of a file, and name it."""
    example = Example(place=_place(file, problem.place), reason=problem.reason)
    name = _place(file, file.place)
    tally.add("unreadable", file.domain, problem.records, rule=name, example=example)


def bands_of(corpus: config.Corpus) -> tuple[int, int] | None:
    """The bands by which near-duplicates are found, when they are looked for."""
    return choose_bands(corpus.near_duplicates) if corpus.near_duplicates is not None else None


def check_problems(tally: Tally, corpus: config.Corpus, files: list[SourceFile]) -> str | None:
    """What could not be read, counted and named by file; None when that is nothing.

    Raises CorpusError when it is more than `corpus.max_bad_share` of the records, or all there is.
    """
    read, lost = tally.total("read"), tally.total("unreadable")
    told = None
    if lost:
        places = {f"{file.source}/{file.path}": file.place for file in files}
        damaged = [entry for entry in tally.entries() if entry.step == "unreadable"]
        damaged.sort(key=lambda entry: -entry.count)
        named = [_told(entry, places.get(entry.rule, "other files")) for entry in damaged[:NAMED]]
        named += [f"and in {len(damaged) - NAMED} more files"] if len(damaged) > NAMED else []
        share = float(f"{100 * lost / (read + lost):.2g}")
        told = f"{lost} of {read + lost} records ({share:g} %) can not be read: {'; '.join(named)}"
        if lost > corpus.max_bad_share * (read + lost):
            raise CorpusError(
                f"{told}. Correct the files or take them out of the folder, and remove "
                f"{corpus.directory}, which keeps what was read of them; or raise "
                f"corpus.max_bad_share above {corpus.max_bad_share:g}, and the same command goes on."
            )
    if not read:
        raise CorpusError("the files of corpus.sources hold no text. Add some that do.")
    if tally.total("rule") == read:
        reasons = "; ".join(f"{e.place}: {e.reason}" for e in tally.examples("rule"))
        prose = any(not e.domain.startswith(PREFIX) for e in tally.entries() if e.step == "rule")
        raise CorpusError(
            f"all of the {read} documents were dropped by rules ({reasons}). Add documents to "
            f"corpus.sources{', or set corpus.clean to false' * prose}."
        )
    return told


def _told(damaged: Entry, place: str) -> str:
    """A file with what is wrong with the first record of it that can not be read."""
    if not damaged.examples:
        return f"{damaged.count} in {place}"
    first = damaged.examples[0]
    where = first.place.removeprefix(damaged.rule).lstrip(", ")
    return f"{damaged.count} in {place} ({where}{': ' * bool(where)}{first.reason})"


def _place(file: SourceFile, place: str) -> str:
    """The place of a document without what is before its source, which no corpus depends on."""
    return f"{file.source}/{place.removeprefix(f'{file.root}/')}"


def _refined(
    document: Document, file: SourceFile, refine: Refiner, tally: Tally
) -> Document | None:
    size = len(document.text.encode())
    refined = refine(document)
    domain = refined.document.domain
    tally.add("read", domain, size=size)
    if removal := refined.removal:
        example = Example(
            place=_place(file, document.provenance.place),
            reason=removal.reason,
            text=document.text,
        )
        tally.add("rule", domain, size=size, rule=removal.rule, example=example)
        return None
    if refined.document.text != document.text:
        tally.add("trimmed", domain, size=size - len(refined.document.text.encode()))
    for kind, count in refined.masked.items():
        tally.add("masked", domain, count, rule=kind)
    return refined.document


def _row(document: Document, file: SourceFile) -> dict[str, Any]:
    provenance, encoded = document.provenance, document.text.encode()
    return {
        "hash": hashlib.sha256(encoded).digest(),
        "domain": document.domain,
        "text": document.text,
        "bytes": len(encoded),
        "source": file.source,
        "place": provenance.place.removeprefix(f"{file.root}/"),
        "url": provenance.url,
        "license": provenance.license,
    }
