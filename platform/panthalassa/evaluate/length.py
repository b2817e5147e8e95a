"""How long the texts were that a model was trained on."""

import json
from typing import Any

from panthalassa.errors import ConfigError
from panthalassa.exchange.importing import FOLDER
from panthalassa.run_config import CONFIG, kept_tree
from panthalassa.storage import Storage

LLAMA = "config.json"


def trained_length(place: Storage) -> int:
    """Tokens, of a run or of a folder in the Llama layout. Raises ConfigError where nothing says it."""
    found: Any = None
    if place.exists(LLAMA):
        found = _of_llama(place, LLAMA)
    elif place.exists(CONFIG):
        found = kept_tree(place).get("train", {}).get("sequence_length")
    elif place.exists(f"{FOLDER}/{LLAMA}"):
        found = _of_llama(place, f"{FOLDER}/{LLAMA}")
    if not isinstance(found, int) or found < 2:
        raise ConfigError(f"{place.uri} does not say how long its texts were: give the key length")
    return found


def _of_llama(place: Storage, name: str) -> Any:
    return json.loads(place.read(name)).get("max_position_embeddings")
