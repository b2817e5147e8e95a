"""A corpus without bytes, of two domains, and phases over it."""

import hashlib

from panthalassa.corpus.manifest import Images, Manifest, Shard
from panthalassa.stream.curriculum import Phase


def bare_manifest(
    shards: list[Shard], sequence_length: int, images: Images | None = None
) -> Manifest:
    """A manifest of these shards, in which nothing else matters."""
    return Manifest(
        images=images,
        sequence_length=sequence_length,
        vocabulary_size=4096,
        bos=0,
        eos=1,
        tokenizer_sha256="",
        documents={},
        characters={},
        text_bytes={},
        unigram_loss=1.0,
        shards=shards,
    )


CORPUS = bare_manifest(
    [
        Shard(
            path=f"train/{domain}/0.parquet",
            domain=domain,
            split="train",
            rows=rows,
            tokens=rows * 16,
            row_groups=(rows,),
            size=1,
            sha256=hashlib.sha256(domain.encode()).hexdigest(),
        )
        for domain, rows in (("aa", 30), ("bb", 50))
    ],
    16,
)


def phase(first_step: int, **changes: object) -> Phase:
    first = Phase(
        first_step=first_step,
        corpus=CORPUS.fingerprint,
        seed=1,
        temperature=1.0,
        weights=None,
        sequence_length=16,
        global_batch=4,
    )
    return first.model_copy(update=changes)
