"""Encoding: what is kept comes in, and is encoded and written as shards, texts and pairs in turn."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from panthalassa import config
from panthalassa.config_model import Vision
from panthalassa.corpus.funnel import Tally
from panthalassa.corpus.manifest import Images
from panthalassa.corpus.pair_pipeline import KeptPairs, PairEncoder, without_unfit
from panthalassa.corpus.pair_selection import PairCensus
from panthalassa.corpus.pairs import images_of
from panthalassa.corpus.pipeline import Division, Kept, Written, encode, write_shards
from panthalassa.corpus.selection import Census
from panthalassa.corpus.staging import Stage
from panthalassa.storage import Storage


@dataclass(frozen=True)
class Encoding:
    """The last two stages of a preparation, with the bytes of its tokenizer."""

    corpus: config.Corpus
    partitions: list[str]
    made_from: str
    vocabulary: bytes
    storage: Storage
    report: Callable[[str], None]

    def write_texts(self, kept: Kept, census: Census, written: Written) -> None:
        division = Division.of(census.text_bytes)
        work = partial(encode, kept=kept, vocabulary=self.vocabulary, division=division)
        stage = self._stage("encoded", division)
        for _ in stage.run(self.partitions, work, self.report):
            pass
        self._write(stage, division, census, written, None)

    def write_pairs(
        self, kept: KeptPairs, pairs: PairCensus, vision: Vision, tally: Tally, written: Written
    ) -> Census:
        """What is left of the pairs: those that do not fit into a sample are added to the tally."""
        division, length = Division.of(pairs.sizes), self.corpus.sequence_length
        work = PairEncoder(kept, self.vocabulary, division, vision.tokens, length)
        stage = self._stage("encoded_pairs", division)
        notes = stage.run(self.partitions, work, self.report)
        census = without_unfit(pairs, notes, tally)
        self._write(stage, division, census, written, images_of(vision))
        return census

    def _stage(self, name: str, division: Division) -> Stage:
        told = f"{self.made_from}{division.digest}".encode() + self.vocabulary
        return Stage(self.storage, name, hashlib.sha256(told).hexdigest())

    def _write(
        self,
        stage: Stage,
        division: Division,
        census: Census,
        written: Written,
        images: Images | None,
    ) -> None:
        write_shards(
            stage,
            len(self.partitions),
            division,
            census,
            self.vocabulary,
            self.corpus,
            self.storage,
            written,
            images,
        )
