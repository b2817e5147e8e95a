"""Refining: a document as it was read comes in, the document to keep or the reason to drop it goes out.

A pure function of one document, in the order of the design: boilerplate goes, the language is
identified, the rules are asked, personal data is masked. What is configured is in `Refiner`, which
is sent to where documents are read.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

from panthalassa import config
from panthalassa.corpus.clean import Page, Removal, drop_boilerplate, judge
from panthalassa.corpus.documents import Document
from panthalassa.corpus.language import Identify, open_identifier
from panthalassa.corpus.pii import mask_and_count


@dataclass(frozen=True)
class Refined:
    """A document to keep, or with a `removal` to drop; `masked` counts its personal data by kind."""

    document: Document
    removal: Removal | None = None
    masked: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Refiner:
    """`identify` names the domain, or only the language that rules look at."""

    domain_is_language: bool
    clean: bool
    mask_pii: bool
    identify: Identify

    def __call__(self, document: Document) -> Refined:
        text = drop_boilerplate(document.text) if self.clean else document.text
        if self.clean or self.domain_is_language:
            language = self.identify(text).code
            if self.domain_is_language:
                document = replace(document, domain=language)
            page = Page(text, language, document.provenance.url)
            if self.clean and (removal := judge(page)):
                return Refined(document, removal)
        masked: Counter[str] = Counter()
        if self.mask_pii:
            text, masked = mask_and_count(text)
        return Refined(replace(document, text=text), masked=masked)


def open_refiner(corpus: config.Corpus) -> Refiner:
    """What the configuration asks for. Raises CorpusError for a language model that is none."""
    return Refiner(
        corpus.domains == "language",
        corpus.clean,
        corpus.mask_pii,
        open_identifier(corpus.language_model),
    )
