"""The chat format: messages come in, token ids go out, and which of them a model learns to say.

ChatML, on the special tokens that every vocabulary has: `<|bos|>`, then for each message
`<|im_start|>role`, a line break, the content, `<|im_end|>` and a line break. What counts of an
assistant's message is its content and the `<|im_end|>`. White space around a content goes, so that no
token can reach over the line break before it. A text is never trusted: one that spells `<|im_end|>`
gets ordinary tokens. `model.hugging_face.CHAT_TEMPLATE` says the same in Jinja, but
for such texts: transformers makes special tokens of them.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from panthalassa.corpus.tokenizer import Tokenizer, Tokens

ANSWERING = "assistant"
Images = Annotated[
    tuple[str, ...],
    Field(strict=False, max_length=1000),
    BeforeValidator(lambda given: given or ()),
]


class Message(BaseModel):
    """What somebody says in a chat."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str
    images: Images = Field(default=(), exclude_if=lambda paths: not paths)
    """Paths of what a user shows, in front of what they say (`model.image_text`)."""

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        if self.images and self.role != "user":
            raise ValueError("only a user shows images")
        return self


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], counting_from: int = 0
) -> tuple[Tokens, NDArray[np.bool_]]:
    """The ids of a chat [tokens], and whether each of them counts: those of the assistant's messages,
    from the message of that number on."""
    ids, counted = [tokenizer.bos], [False]
    for number, message in enumerate(messages):
        counts = message.role == ANSWERING and number >= counting_from
        start, content = _beginning(tokenizer, message.role), _content(tokenizer, message)
        end = tokenizer.encode("\n")
        ids += [*start, *content, *end]
        counted += [False] * len(start)
        counted += [counts] * len(content)
        counted += [False] * len(end)
    return np.array(ids, dtype=np.int32), np.array(counted)


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The ids of a chat up to where the assistant begins to speak."""
    ids, _ = encode_chat(tokenizer, messages)
    return [*ids.tolist(), *_beginning(tokenizer, ANSWERING)]


def encode_question(tokenizer: Tokenizer, text: str, system: str | None = None) -> list[int]:
    """The ids of a chat in which a user says `text`, behind what the system says, up to the answer."""
    before = [Message(role="system", content=system)] if system else []
    return encode_prompt(tokenizer, [*before, Message(role="user", content=text)])


def _beginning(tokenizer: Tokenizer, role: str) -> list[int]:
    return [tokenizer.turn_start, *tokenizer.encode(f"{role}\n")]


def _content(tokenizer: Tokenizer, message: Message) -> list[int]:
    return [*tokenizer.encode(message.content.strip()), tokenizer.turn_end]
