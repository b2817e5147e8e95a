"""Preparation: what the sources hold comes in, a corpus with its manifest goes out, or is found.

The destination is looked at before any work: a finished corpus of the same input is returned at
once, an unfinished one is gone on with, anything else is refused, and nothing of anybody else's is
ever deleted. Then the stages run (reading, selection, tokenizer, encoding, writing), each of which
keeps what it has done (`staging`), and the manifest, written last, is the commit. Preparing the same
input twice, anywhere, gives the same bytes and so the same fingerprint.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from typing import get_args

import ray.data
import ray.exceptions

from panthalassa import config
from panthalassa.cluster import connected, mendable
from panthalassa.config_model import Vision
from panthalassa.corpus.decontaminate import Contamination, read_evaluations
from panthalassa.corpus.destination import already_prepared, claim, commit, refuse_overlap
from panthalassa.corpus.documents import SourceFile
from panthalassa.corpus.encoding import Encoding
from panthalassa.corpus.fertility import counts_of, fertilities, worst_parity
from panthalassa.corpus.funnel import REPORT, Report, Tally, table
from panthalassa.corpus.image_paths import ListedImages
from panthalassa.corpus.manifest import TOKENIZER, Manifest, Split
from panthalassa.corpus.pair_pipeline import KeptPairs, captions
from panthalassa.corpus.pair_selection import PairCensus, refuse_one_split, select_pairs
from panthalassa.corpus.pairs import PREFIX, images_of, open_pair_refiner, refuse_unfit
from panthalassa.corpus.pipeline import Kept, Written, texts_of
from panthalassa.corpus.reading import NAMED, Reader, bands_of, check_problems, partition
from panthalassa.corpus.refine import open_refiner
from panthalassa.corpus.selection import Census, select
from panthalassa.corpus.shards import write
from panthalassa.corpus.sources import content_sha256, list_files
from panthalassa.corpus.staging import Stage, clear
from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.storage import Storage, open_storage

RECIPE = 4
"""Counts up whenever the same input would give other shards."""
IMAGE_RECIPE = 2
"""The same of images and their captions."""

LAPTOP = config.Cluster()


def prepare(
    corpus: config.Corpus,
    report: Callable[[str], None],
    cluster: config.Cluster = LAPTOP,
    debug: bool = False,
    vision: Vision | None = None,
) -> Manifest:
    """Make the corpus that `corpus` describes, or return it when it is already there.

    Ray is started, or joined as `cluster` says, only when there is something to do. `report` is
    called with lines for people. With `vision`, the model's, sources may have images. Nothing is ever
    deleted but what the preparation itself has kept for its own stages, and only an unfinished
    preparation of the same input is gone on with. Raises CorpusError for sources that can not be read,
    for a destination that holds something else or can not be written, and for input that leaves nothing
    to train on.
    """
    if vision:
        refuse_unfit(vision, corpus)
    listing = list_files(corpus.sources, images=vision is not None)
    files, left_out = listing.files, listing.left_out
    storage = open_storage(corpus.directory)
    refuse_overlap(files, storage)
    refine, contamination = open_refiner(corpus), read_evaluations(corpus)
    for line in contamination.warnings() if contamination else ():
        report(line)
    with ThreadPoolExecutor(8) as pool:
        hashes = list(pool.map(content_sha256, files))
        of_images = list(pool.map(content_sha256, listing.images))
    preparation = _preparation(
        corpus, [*files, *listing.images], [*hashes, *of_images], contamination, vision
    )
    if done := already_prepared(storage, preparation):
        report(f"{storage.uri} is already prepared, fingerprint {done.fingerprint}")
        with suppress(OSError):  # it may be read-only now
            clear(storage)
        return done
    claim(storage, corpus, preparation)
    if left_out:
        endings = ", ".join(f"{count} {ending}" for ending, count in left_out.most_common(NAMED))
        report(f"{left_out.total()} files of other kinds are left out: {endings}")
    size = sum(file.size for file in files) / 1e6
    report(f"reading {size:.2f} MB in {len(files)} files from {', '.join(corpus.sources)}")
    if listing.images:
        size = sum(file.size for file in listing.images) / 1e6
        report(f"beside them lie {size:.2f} MB in {len(listing.images)} images")
    with connected(cluster, debug), _mendable_errors():
        partitions = partition(files, hashes)
        pairs = open_pair_refiner(corpus, vision) if vision else None
        images = ListedImages.of(listing.images, of_images) if vision else None
        reader = Reader(refine, bands_of(corpus), contamination, pairs, images)
        return _prepare(corpus, files, partitions, reader, storage, preparation, report, vision)


def _prepare(
    corpus: config.Corpus,
    files: list[SourceFile],
    partitions: list[str],
    reader: Reader,
    storage: Storage,
    preparation: str,
    report: Callable[[str], None],
    vision: Vision | None,
) -> Manifest:
    made_from = _sha256(json.dumps([preparation, partitions]).encode())
    documents, kept, kept_pairs, counted, trained = (
        Stage(storage, name, made_from)
        for name in ("documents", "kept", "kept_pairs", "counted", "trained")
    )

    def read_and_select() -> str:
        tally = Tally()
        for note in documents.run(partitions, reader, report):
            tally.merge(note)
        check_problems(tally, corpus, files)  # before more is done with them
        texts, found = Census.empty(corpus), PairCensus.empty(corpus)
        if vision and _left(tally, of_pairs=True):
            found = select_pairs(documents, kept_pairs, len(partitions), corpus, tally)
        if not vision or _left(tally, of_pairs=False):
            texts = select(documents, kept, len(partitions), corpus, tally)
        refuse_one_split(texts.plus(found.census), tally, corpus.images.near_duplicates)
        return json.dumps([tally.encode(), texts.encode(), found.encode()])

    tallied, *censuses = json.loads(counted.keep_note(read_and_select))
    tally, texts, found = Tally(), Census.decode(censuses[0]), PairCensus.decode(censuses[1])
    tally.merge(tallied)
    if problems := check_problems(tally, corpus, files):
        report(problems)
    census = texts.plus(found.census)
    report(_selected(tally, census))
    if told := _without_images(tally):
        report(told)
    chosen = Kept(documents, kept, len(partitions), texts.held_out_below)
    shown = KeptPairs(documents, kept_pairs, len(partitions))

    def train_tokenizer() -> str:
        sample = [texts_of(chosen, census, corpus)] if texts.documents else []
        sample += [captions(shown, census, corpus)] if found.census.documents else []
        learnt = Tokenizer.train(chain.from_iterable(sample), corpus.vocabulary_size)
        return learnt.to_bytes().decode()

    vocabulary = trained.keep_note(train_tokenizer).encode()
    write(storage, TOKENIZER, vocabulary)
    tokenizer = Tokenizer.from_bytes(vocabulary)
    report(f"tokenizer of {tokenizer.vocabulary_size} tokens")
    encoding = Encoding(corpus, partitions, made_from, vocabulary, storage, report)
    written = Written(tokenizer.vocabulary_size)
    if texts.documents:
        encoding.write_texts(chosen, texts, written)
    if vision and found.census.documents:
        census = texts.plus(encoding.write_pairs(shown, found, vision, tally, written))
        refuse_one_split(census, tally, corpus.images.near_duplicates)
    manifest = _manifest(corpus, census, tokenizer, vocabulary, written, preparation, vision)
    funnel = make_report(files, tally, census, manifest.text_tokens())
    write(storage, REPORT, funnel.encode())
    manifest = manifest.model_copy(update={"report_sha256": _sha256(funnel.encode())})
    commit(storage, manifest)
    with suppress(OSError):  # the same command removes what is left
        clear(storage)
    for line in _told(manifest, funnel):
        report(line)
    return manifest


def _left(tally: Tally, of_pairs: bool) -> int:
    """How many documents, or pairs, were read and kept by the rules."""
    signs = {"read": 1, "rule": -1}
    return sum(
        signs.get(entry.step, 0) * entry.count
        for entry in tally.entries()
        if entry.domain.startswith(PREFIX) == of_pairs
    )


def _manifest(
    corpus: config.Corpus,
    census: Census,
    tokenizer: Tokenizer,
    vocabulary: bytes,
    written: Written,
    preparation: str,
    vision: Vision | None,
) -> Manifest:
    """That of a corpus whose shards are written, but for its report."""
    return Manifest(
        images=images_of(vision) if vision and written.has_images else None,
        sequence_length=corpus.sequence_length,
        vocabulary_size=tokenizer.vocabulary_size,
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        tokenizer_sha256=_sha256(vocabulary),
        documents=dict(sorted(census.documents.items())),
        characters=dict(sorted(census.characters.items())),
        text_bytes=dict(sorted(census.text_bytes.items())),
        unigram_loss=written.unigram_loss(),
        preparation=preparation,
        shards=written.shards,
        index=written.index,
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _selected(tally: Tally, census: Census) -> str:
    kept, domains = census.documents.total(), {g.split("/")[1] for g in census.documents}
    return (
        f"{kept} distinct documents in {len(domains)} domains, "
        f"{tally.total('rule')} documents dropped by rules, {tally.total('duplicate')} duplicates "
        f"dropped, {tally.total('near_duplicate')} near-duplicates dropped, "
        f"{tally.total('contaminated')} of evaluations dropped, {census.held_out()} documents held out"
    )


def _without_images(tally: Tally) -> str | None:
    """What was wrong with images, and the first of each kind; None when that is nothing."""
    counts = {rule: n for rule, n in tally.drops().most_common() if rule.startswith("image-")}
    entries = reversed([*tally.entries()])
    first = {entry.rule: example for entry in entries for example in entry.examples[:1]}
    kinds = ", ".join(f"{n} {r} ({first[r].place}: {first[r].reason})" for r, n in counts.items())
    return f"{sum(counts.values())} pairs are left out for their images: {kinds}" if kinds else None


def _told(manifest: Manifest, funnel: Report) -> Iterator[str]:
    yield _tokens_of_text(manifest)
    rows, tokens = sum(s.rows for s in manifest.shards), sum(s.tokens for s in manifest.shards)
    yield (
        f"{len(manifest.shards)} shards of {rows} samples and {tokens} tokens, "
        f"{100 * tokens / rows / manifest.sequence_length:.1f} % filled; unigram loss "
        f"{manifest.unigram_loss:.3f}; fingerprint {manifest.fingerprint}"
    )
    if manifest.images:
        count, size = sum(s.images or 0 for s in manifest.shards), manifest.images.size
        yield f"{count} images of {size} × {size} pixels, {manifest.images.tokens} tokens each"
    yield from table(funnel)


def _tokens_of_text(manifest: Manifest) -> str:
    """How many tokens a character takes, and where it takes most beside English."""
    counts = counts_of(
        manifest.text_tokens(), manifest.documents, manifest.characters, manifest.text_bytes
    )
    tokens = sum(found.tokens for found in counts.values())
    characters = sum(found.characters for found in counts.values())
    told = f"{tokens / characters:.2f} tokens a character"
    if (worst := worst_parity(fertilities(counts))) and worst.parity:
        told += f"; most in {worst.domain}, {worst.parity:.2f} times those of English"
    return told


def make_report(
    files: list[SourceFile], tally: Tally, census: Census, tokens: dict[str, int]
) -> Report:
    """The record of a preparation whose tally has been taken."""
    for split in get_args(Split):
        for group in census.documents:
            if group.startswith(f"{split}/"):
                domain = group.partition("/")[2]
                tally.add(split, domain, census.documents[group], census.text_bytes[group])
    return Report(
        files=len(files),
        file_bytes=sum(file.size for file in files),
        entries=list(tally.entries()),
        tokens=tokens,
        characters=dict(sorted(census.characters.items())),
    )


def _preparation(
    corpus: config.Corpus,
    files: list[SourceFile],
    hashes: list[str],
    contamination: Contamination | None,
    vision: Vision | None,
) -> str:
    """SHA-256 of all that decides the outcome: settings and sources, wherever they are kept.

    max_bad_share decides only whether there is one. A language model and evaluations count by content,
    and settings of images where there can be any.
    """
    content = sorted(
        [file.source, file.domain, file.path, file.size, digest]
        for file, digest in zip(files, hashes, strict=True)
    )
    settings = corpus.model_dump(
        exclude={"directory", "sources", "max_bad_share", "evaluation_files", "images"}
    )
    if vision:
        settings["images"] = [
            IMAGE_RECIPE,
            vision.image_size,
            vision.tokens,
            corpus.images.model_dump(),
        ]
    settings["evaluations"] = contamination.digest if contamination else None
    if corpus.language_model:
        settings["language_model"] = open_storage("/").sha256(
            os.path.abspath(corpus.language_model)
        )
    return _sha256(json.dumps([RECIPE, settings, content], sort_keys=True).encode())


@contextmanager
def _mendable_errors() -> Iterator[None]:
    """Raise a task's CorpusError as itself, without what Ray puts around it and prints about it.

    Ray's own messages go to its log files alone meanwhile.
    """
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    console = [
        (handler, handler.level)
        for handler in logging.getLogger("ray.data").handlers
        if isinstance(handler, logging.StreamHandler)
    ]
    for handler, _ in console:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if original := mendable(error):
            raise original from None
        raise
    finally:
        context.enable_progress_bars = bars
        for handler, level in console:
            handler.setLevel(level)
