"""A document is refined as the configuration says, and what is dropped has its rule."""

from pathlib import Path

import pytest

from panthalassa.config import Corpus
from panthalassa.corpus.documents import Document, Provenance
from panthalassa.corpus.refine import Refined, open_refiner
from panthalassa.errors import CorpusError

PROSE = (
    "The sea was calm that morning, and nobody on the island had expected the ships to come back "
    "before the end of the month.\nThey had been away for so long that some of the children did not "
    "know their fathers any more, which was hard for all of them.\nWrite to ann@sea.org and she "
    "will tell you the rest of it, as far as it is known."
)
COOKIES = "This website uses cookies to improve your experience."


def refined(text: str, domain: str = "folder", **settings: object) -> Refined:
    corpus = Corpus.model_validate({"directory": "unused", **settings})
    return open_refiner(corpus)(Document(text, domain, Provenance("raw", "raw/a.txt, line 1")))


def test_prose_stays_without_boilerplate_and_personal_data() -> None:
    found = refined(f"{PROSE}\n{COOKIES}")
    assert found.removal is None
    assert found.document.text == PROSE.replace("ann@sea.org", "[EMAIL]")
    assert found.document.provenance == Provenance("raw", "raw/a.txt, line 1")
    assert found.masked == {"email": 1}


def test_the_rule_that_drops_a_document_is_named_with_its_figure() -> None:
    found = refined("Too short.")
    assert found.removal is not None
    assert (found.removal.rule, found.removal.reason) == ("too_few_words", "words: 2, at least 50")


def test_without_cleaning_everything_stays() -> None:
    for text in ("Too short.", f"{PROSE}\n{COOKIES}"):
        found = refined(text, clean=False, mask_pii=False)
        assert (found.removal, found.document.text) == (None, text)


def test_personal_data_stays_where_it_is_not_to_be_masked() -> None:
    found = refined(PROSE, mask_pii=False)
    assert (found.document.text, found.masked) == (PROSE, {})


@pytest.mark.parametrize("clean", [True, False])
def test_the_domain_is_the_folder_or_the_identified_language(clean: bool) -> None:
    assert refined(PROSE, clean=clean).document.domain == "folder"
    assert refined(PROSE, clean=clean, domains="language").document.domain == "en"
    numbers = refined("1 2 3 4", clean=False, domains="language")
    assert numbers.document.domain == "und"


def test_a_language_model_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="unset the model to take CLD2"):
        refined(PROSE, language_model=str(tmp_path / "missing.bin"))
