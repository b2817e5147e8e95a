"""Texts that continue texts, as they come.

Ids become text piece by piece: bytes that begin a character wait for the rest of it, and what may begin
a stop string waits until it does not. So what has been shown never changes, and is whole characters.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from panthalassa.corpus.text_tokenizer import TextTokenizer
from panthalassa.model.generate import BATCH, generate_batch
from panthalassa.model.sampling import Sampling
from panthalassa.model.transformer import Transformer

Show = Callable[[int, str], None]
"""Is given the number of a prompt and the next piece of what continues it."""


class TextStream:
    """The text of ids that come one after the other, up to the stop string that is whole first.

    It goes on behind the ids `before`; without them it is a text of its own.
    """

    def __init__(
        self, tokenizer: TextTokenizer, stop: Sequence[str] = (), before: Sequence[int] = ()
    ) -> None:
        self._stop = [string for string in stop if string]
        self._decoder = tokenizer.decoder(before)
        self._held = ""
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """What can be shown after this id: the next piece of `text`, which may be empty."""
        return self._show(self._decoder.add(token), last=False)

    def end(self) -> str:
        """The last piece: what was held back, in which bytes that are no UTF-8 are U+FFFD."""
        return self._show(self._decoder.end(), last=True)

    def _show(self, more: str, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + more
        found = [(start + len(s), start) for s in self._stop if (start := text.find(s)) >= 0]
        self.stopped = bool(found)
        end = len(text) - (0 if last else self._may_begin(text))
        shown = min(found)[1] if found else end  # of several the one that is whole first
        self._held = text[shown:]
        self.text += text[:shown]
        return text[:shown]

    def _may_begin(self, text: str) -> int:
        """Characters at the end of the text that are the beginning of a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for count in range(min(longest, len(text)), 0, -1):
            if any(string.startswith(text[-count:]) for string in self._stop):
                return count
        return 0


def ids_of(tokenizer: TextTokenizer, prompt: str) -> list[int]:
    """A prompt as the model has seen texts begin; where that is with nothing, an empty one is `eos`."""
    return [*tokenizer.beginning, *tokenizer.encode(prompt)] or [tokenizer.eos]


def continue_texts(
    model: Transformer,
    tokenizer: TextTokenizer,
    prompts: Sequence[Sequence[int]],
    limit: int,
    sampling: Sampling | Sequence[Sampling],
    stop: Sequence[str] = (),
    show: Show | None = None,
    batch: int = BATCH,
    chats: Sequence[bool] = (),
    images: Sequence[Tensor] | None = None,
) -> list[str]:
    """What continues each prompt (ids), by at most `limit` tokens, up to the end of a document or of a
    turn, or one of the strings `stop`. `show` gets it as it comes. chats: which prompts are
    chats, where an answer is a text of its own; the rest is as in `generate_batch`."""
    streams = [
        TextStream(tokenizer, stop, () if chat else prompt)
        for prompt, chat in zip(prompts, chats or [False] * len(prompts), strict=True)
    ]

    def watch(number: int, token: int) -> bool:
        stream = streams[number]
        piece = stream.add(token)
        if show and piece:
            show(number, piece)
        return stream.stopped

    generate_batch(model, prompts, limit, sampling, tokenizer.ends, watch, batch, images)
    for number, stream in enumerate(streams):
        piece = stream.end()
        if show and piece:
            show(number, piece)
    return [stream.text for stream in streams]
