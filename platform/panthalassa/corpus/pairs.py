"""Pairs of an image and its caption: one as it was read comes in, the row that is kept goes out.

A caption is normalised as texts are and its personal data masked, but no rule for prose is asked, for
one word may be a good caption. Its language is what the source claims, else what is identified, and
names the domain: `images-{language}`. The image is prepared once (`images`), and what can not be is
counted as dropped by a rule, by what is wrong with it. The tokens of a pair are

    bos  <|vision_start|> tokens × <|image_pad|> <|vision_end|>  caption  eos

of which the caption and `eos` count in the loss.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from panthalassa import config
from panthalassa.config_model import Vision
from panthalassa.corpus.decontaminate import Contamination
from panthalassa.corpus.documents import READ, Document, SourceFile
from panthalassa.corpus.funnel import EXAMPLE_CHARACTERS, Example, Tally
from panthalassa.corpus.image_hash import signature
from panthalassa.corpus.images import BadImage, Limits, encoded, fitted
from panthalassa.corpus.language import Identify, open_identifier
from panthalassa.corpus.manifest import IMAGE_DELIMITERS, Images
from panthalassa.corpus.pii import mask_and_count
from panthalassa.corpus.sources import path_safe
from panthalassa.corpus.tokenizer import Tokenizer, Tokens, ids_of_image
from panthalassa.errors import CorpusError

PREFIX: Final = "images-"
SEVERAL: Final = 4
NO_CAPTION: Final = "there is no caption beside the image (in a tar, directly before or behind it)"

# Of a pair, beside what a document has (READ): its `characters`, how it `begins`, the SHA-256
# of the prepared `pixels`, its signature, the size of the encoded image, and the file of an evaluation
# that the caption shares a passage with. The images themselves are in a table beside.
PAIRS = pa.schema(
    [
        *READ,
        pa.field("pixels", pa.binary()),
        pa.field("bits", pa.binary()),
        pa.field("colours", pa.binary()),
        pa.field("image_bytes", pa.int64()),
    ]
)


def ids_of_pair(tokenizer: Tokenizer, caption: str, tokens: int) -> Tokens:
    """The ids of an image and its caption; those that count begin at `caption_start`."""
    text = tokenizer.encode_document(caption)
    return np.concatenate((text[:1], ids_of_image(tokens), text[1:]), dtype=np.int32)


def caption_start(tokens: int) -> int:
    return 1 + tokens + IMAGE_DELIMITERS


def images_of(vision: Vision) -> Images:
    return Images(size=vision.image_size, tokens=vision.tokens)


def refuse_unfit(vision: Vision, corpus: config.Corpus) -> None:
    """Raises CorpusError when no image and word fit into a sample."""
    least = caption_start(vision.tokens) + 2
    if least > corpus.sequence_length:
        raise CorpusError(
            f"an image takes {vision.tokens} positions (model.vision: image_size="
            f"{vision.image_size}, patch_size={vision.patch_size}), and with a caption at least "
            f"{least}, but corpus.sequence_length is {corpus.sequence_length}. Raise it, or take "
            "larger patches or smaller images."
        )


@dataclass(frozen=True)
class _Look:
    """A prepared `image`, the SHA-256 of its `pixels`, and its signature."""

    image: bytes
    pixels: bytes
    bits: bytes
    colours: bytes


@lru_cache(maxsize=SEVERAL)
def _look(data: bytes, size: int, limits: Limits) -> _Look:
    """Of an image that often follows itself, with the captions of other languages."""
    pixels = fitted(data, size, limits)
    digest = hashlib.sha256(pixels.tobytes()).digest()
    return _Look(encoded(pixels), digest, *signature(pixels))


@dataclass(frozen=True)
class PairRefiner:
    """Makes pairs with images of `size` pixels; like `Refiner`, it is sent to where they are read."""

    size: int
    limits: Limits
    mask_pii: bool
    identify: Identify

    def __call__(
        self, pair: Document, file: SourceFile, place: str, tally: Tally
    ) -> tuple[dict[str, Any], bytes] | None:
        """The row of a pair and its image, or None when it is dropped, which is counted."""
        language = pair.domain or self.identify(pair.text).code
        domain = path_safe(f"{PREFIX}{language}")
        size = len(pair.text.encode())
        tally.add("read", domain, size=size)
        try:
            if not pair.text:
                raise BadImage("caption-missing", NO_CAPTION)
            if not isinstance(pair.image, bytes):
                raise pair.image or BadImage("image-missing", "there is no image")
            look = _look(pair.image, self.size, self.limits)
        except BadImage as bad:
            example = Example(place=place, reason=str(bad), text=pair.text)
            tally.add("rule", domain, size=size, rule=bad.rule, example=example)
            return None
        caption = self._masked(pair.text, domain, tally)
        text = caption.encode()
        row = {
            "hash": hashlib.sha256(look.pixels + text).digest(),
            "domain": domain,
            "text": caption,
            "bytes": len(text),
            "source": file.source,
            "place": pair.provenance.place.removeprefix(f"{file.root}/"),
            "url": pair.provenance.url,
            "license": pair.provenance.license,
            "pixels": look.pixels,
            "bits": look.bits,
            "colours": look.colours,
            "image_bytes": len(look.image),
        }
        return row, look.image

    def _masked(self, caption: str, domain: str, tally: Tally) -> str:
        if not self.mask_pii:
            return caption
        masked, kinds = mask_and_count(caption)
        for kind, count in kinds.items():
            tally.add("masked", domain, count, rule=kind)
        if masked != caption:
            tally.add("trimmed", domain, size=len(caption.encode()) - len(masked.encode()))
        return masked


def open_pair_refiner(corpus: config.Corpus, vision: Vision) -> PairRefiner:
    """What the configuration asks for. Raises CorpusError for a language model that is none."""
    limits = Limits(corpus.images.max_megabytes << 20, corpus.images.max_pixels)
    identify = open_identifier(corpus.language_model)
    return PairRefiner(vision.image_size, limits, corpus.mask_pii, identify)


def pair_table(rows: list[dict[str, Any]], contamination: Contamination | None) -> pa.Table:
    """Rows of pairs as a table."""
    table = pa.Table.from_pylist(rows, PAIRS)
    texts = table["text"]
    found = contamination.find(texts) if contamination else [None] * len(table)
    return (
        table.append_column("characters", pc.utf8_length(texts))
        .append_column("begins", pc.utf8_slice_codeunits(texts, 0, EXAMPLE_CHARACTERS))
        .append_column("evaluation", pa.array(found, pa.string()))
    )
