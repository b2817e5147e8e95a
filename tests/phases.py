"""A corpus without bytes, of two domains, and phases over it."""

import hashlib

from panthalassa.corpus.manifest import Manifest, Shard
from panthalassa.stream.curriculum import Phase


def manifest(length: int = 16) -> Manifest:
    shards = [
        Shard(
            path=f"train/{domain}/0.parquet",
            domain=domain,
            split="train",
            rows=rows,
            tokens=rows * length,
            row_groups=(rows,),
            size=1,
            sha256=hashlib.sha256(domain.encode()).hexdigest(),
        )
        for domain, rows in (("aa", 30), ("bb", 50))
    ]
    return Manifest(
        sequence_length=length,
        vocabulary_size=100,
        bos=0,
        eos=1,
        tokenizer_sha256="",
        documents={},
        text_bytes={},
        unigram_loss=1.0,
        shards=shards,
    )


CORPUS = manifest()


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
