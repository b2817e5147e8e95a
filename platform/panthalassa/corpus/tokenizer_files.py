"""The files around a `tokenizer.json` of Hugging Face: which tokens begin and end texts, and the chat
template. What they say is checked here, before anything is made of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from panthalassa.corpus.chat_template import DEFAULT, LONGEST
from panthalassa.corpus.manifest import TokenizerFile
from panthalassa.errors import ConfigError

TOKENIZER_CONFIG: TokenizerFile = "tokenizer_config.json"
SPECIAL_TOKENS: TokenizerFile = "special_tokens_map.json"
GENERATION: TokenizerFile = "generation_config.json"
TEMPLATE: TokenizerFile = "chat_template.jinja"
TEMPLATE_JSON: TokenizerFile = "chat_template.json"


def _spelled(given: Any) -> Any:
    """A token is a text, or an object with a text."""
    return given.get("content") if isinstance(given, dict) else given


def _named_default(given: Any) -> Any:
    """Templates may be several, by name."""
    if isinstance(given, list):
        named = {one.get("name"): one.get("template") for one in given if isinstance(one, dict)}
        return named.get("default")
    return given


Token = Annotated[
    Annotated[str, Field(min_length=1, max_length=256)] | None, BeforeValidator(_spelled)
]
Template = Annotated[
    Annotated[str, Field(max_length=LONGEST)] | None, BeforeValidator(_named_default)
]
Id = Annotated[int, Field(ge=0, lt=1 << 31, strict=True)]


class _Named(BaseModel):
    """Special tokens, by their names in a template; what else a file has does not matter."""

    model_config = ConfigDict(frozen=True)

    bos_token: Token = None
    eos_token: Token = None
    pad_token: Token = None
    unk_token: Token = None


class _Config(_Named):
    add_bos_token: bool | None = None
    chat_template: Template = None


class _Generation(BaseModel):
    model_config = ConfigDict(frozen=True)

    bos_token_id: Id | None = None
    eos_token_id: Id | Annotated[list[Id], Field(max_length=64)] | None = None
    pad_token_id: Id | None = None


class _TemplateJson(BaseModel):
    model_config = ConfigDict(frozen=True)

    chat_template: Template = None


@dataclass(frozen=True)
class Around:
    """What the files say. `tokens` are texts by name (`bos_token` …), `ids` those without a text."""

    tokens: Mapping[str, str]
    ids: Mapping[str, int]
    ends: tuple[int, ...]
    """Those of generation_config.json."""
    add_bos: bool | None
    template: str
    template_place: str
    given: bool
    """Whether there is a template; else it is DEFAULT."""


def read_around(files: Mapping[str, bytes], place: str) -> Around:
    """place: the folder, for errors. Raises ConfigError that names the file and the key."""
    config = _read(_Config, files, TOKENIZER_CONFIG, place)
    named = _read(_Named, files, SPECIAL_TOKENS, place)
    generation = _read(_Generation, files, GENERATION, place)
    tokens = {
        name: token
        for name in _Named.model_fields
        if (token := getattr(config, name) or getattr(named, name))
    }
    eos = generation.eos_token_id
    ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
    ids = {"bos_token": generation.bos_token_id, "pad_token": generation.pad_token_id}
    ids["eos_token"] = next(iter(ends), None)
    told = config.model_fields_set | named.model_fields_set  # also of those that are null
    template, where = _template(files, config, place)
    template = template if template and template.strip() else None
    return Around(
        tokens=tokens,
        ids={name: id for name, id in ids.items() if id is not None and name not in told},
        ends=tuple(ends),
        add_bos=config.add_bos_token,
        template=DEFAULT if template is None else template,
        template_place=where,
        given=template is not None,
    )


def _template(files: Mapping[str, bytes], config: _Config, place: str) -> tuple[str | None, str]:
    """The template, and which file it is from."""
    if (data := files.get(TEMPLATE)) is not None:
        where = f"{place}/{TEMPLATE}"
        if len(data) > LONGEST:
            raise ConfigError(f"{where} has {len(data):,} bytes, and may have {LONGEST:,}")
        try:
            return data.decode(), where
        except UnicodeDecodeError as error:
            raise ConfigError(f"{where} is no UTF-8: {error}") from error
    kept = _read(_TemplateJson, files, TEMPLATE_JSON, place).chat_template
    if kept is not None:
        return kept, f"{place}/{TEMPLATE_JSON}"
    return config.chat_template, f"the chat_template of {place}/{TOKENIZER_CONFIG}"


Read = TypeVar("Read", bound=BaseModel)


def _read(kind: type[Read], files: Mapping[str, bytes], name: TokenizerFile, place: str) -> Read:
    try:
        content = json.loads(files.get(name, b"{}"))
        if not isinstance(content, dict):
            raise ConfigError(f"{place}/{name} is no JSON of an object, with keys")
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"][:1]))
        raise ConfigError(f"{place}/{name}: {key}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}/{name} is no JSON: {error}") from error
