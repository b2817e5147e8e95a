"""Answers to requests by one model in one process.

Texts become token ids, ids become windows no longer than what the model was trained on, windows of
like length become batches. How texts are cut into tokens and windows is that of the LM Evaluation
Harness 0.4 (`TemplateLM._encode_pair`, `get_rolling_token_windows`), so that both count the same; each
text begins with `bos`, as documents do in training. A prompt that is too long loses what is behind its
beginning, a chat what is behind the header of the user's turn; a context outside of chats loses its
beginning, `bos` with it, as in the harness.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from panthalassa.corpus.text_tokenizer import TextTokenizer
from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.task import Answer, Generation, Likelihood, Likely, Request, Rolling
from panthalassa.finetune.chat import encode_answer, encode_question, question_frame
from panthalassa.model.generate import generate_batch
from panthalassa.model.sampling import Sampling
from panthalassa.model.text import TextStream, ids_of
from panthalassa.model.transformer import Transformer

SHOWN = 60
"""Characters of a context in messages, the last ones."""
LOGITS = 1 << 26
"""That exist at a time: 256 MB in fp32."""


@dataclass(frozen=True)
class Window:
    """Tokens that the model reads, and those that it is asked about."""

    request: int
    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    """The last len(targets) of the tokens that follow each input."""


@dataclass(frozen=True)
class Answerer:
    """A model that answers requests. The answers depend on the requests' order only by rounding."""

    model: Transformer
    """In evaluation mode."""
    tokenizer: TextTokenizer
    length: int
    """Tokens that the model reads at most."""
    batch_tokens: int
    """That it reads at a time; a longer text is read alone."""
    chat: bool = False
    """Whether contexts and prompts are what a user says in a chat, as in `finetune.chat`."""

    @torch.inference_mode()
    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """One for each request, in their order."""
        found: dict[int, Answer] = {**self._likely(requests), **self._continuations(requests)}
        return [found[number] for number in range(len(requests))]

    def cut(self, requests: Sequence[Request]) -> list[int]:
        """The numbers of those whose context or prompt does not fit, and is read in part."""
        return [number for number, request in enumerate(requests) if self._is_cut(request)]

    def _is_cut(self, request: Request) -> bool:
        if isinstance(request, Generation):
            prompt = prompt_ids(self.tokenizer, request.prompt, self.chat)
            return len(prompt) + request.new_tokens > self.length
        context, continuation = encode(self.tokenizer, request, self.chat)
        whole = len(context) + len(continuation) - 1 <= self.length
        return not (whole or isinstance(request, Rolling))

    def _likely(self, requests: Sequence[Request]) -> dict[int, Likely]:
        """The answers to all but generations, by number of the request."""
        found: dict[int, Likely] = {}
        asked: list[Window] = []
        for number, request in enumerate(requests):
            if not isinstance(request, Generation):
                found[number] = Likely(0.0, True, 0)
                context, continuation = encode(self.tokenizer, request, self.chat)
                if self.chat and len(continuation) < self.length:
                    context = self._shortened(context, len(continuation) - 1)
                asked += windows(number, context, continuation, self.length)
        for batch in batches(asked, self.batch_tokens):
            for window, (nats, greedy) in zip(batch, self._score(batch), strict=True):
                so_far = found[window.request]
                found[window.request] = Likely(
                    so_far.nats + nats,
                    so_far.greedy and greedy,
                    so_far.tokens + len(window.targets),
                )
        return found

    def _score(self, batch: Sequence[Window]) -> Iterator[tuple[float, bool]]:
        """For each window the log-probability of its targets, and whether all are the most likely."""
        device = next(self.model.parameters()).device
        rows = {inputs: row for row, inputs in enumerate(dict.fromkeys(w.inputs for w in batch))}
        width = max(map(len, rows))
        tokens = torch.tensor([[*inputs, *[0] * (width - len(inputs))] for inputs in rows])
        tokens = tokens.to(device)
        hidden = self.model.hidden(
            tokens, torch.zeros_like(tokens)
        )  # padding is seen by none before it
        places = torch.tensor(
            [
                rows[window.inputs] * width + len(window.inputs) - len(window.targets) + offset
                for window in batch
                for offset in range(len(window.targets))
            ]
        )
        targets = torch.tensor([target for window in batch for target in window.targets])
        scores = self._log_probabilities(
            hidden.flatten(0, 1), places.to(device), targets.to(device)
        )
        sizes = [len(window.targets) for window in batch]
        nats, greedy = (torch.split(part, sizes) for part in scores)
        for logs, hits in zip(nats, greedy, strict=True):
            yield float(logs.sum()), bool(hits.all())

    def _log_probabilities(
        self, hidden: Tensor, places: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of targets [n] at places [n] of hidden [positions, hidden], in fp64; whether each is the most
        likely."""
        head, chunk = self.model.head, max(1, LOGITS // self.model.config.vocabulary_size)
        nats, greedy = [], []
        for at, target in zip(
            *(torch.split(part, chunk) for part in (places, targets)), strict=True
        ):
            logits = head(hidden[None, at])[0].float()
            nats.append(torch.log_softmax(logits, -1).gather(1, target[:, None])[:, 0].double())
            greedy.append(logits.argmax(-1) == target)
        return torch.cat(nats).cpu(), torch.cat(greedy).cpu()

    def _continuations(self, requests: Sequence[Request]) -> dict[int, str]:
        """The answers to generations, by number of the request."""
        found: dict[int, str] = {}
        by_limit: dict[int, list[tuple[int, Generation]]] = {}
        for number, request in enumerate(requests):
            if isinstance(request, Generation):
                by_limit.setdefault(request.new_tokens, []).append((number, request))
        for limit, asked in by_limit.items():
            said = self._continue([request for _, request in asked], limit)
            found |= zip((number for number, _ in asked), said, strict=True)
        return found

    def _continue(self, asked: Sequence[Generation], limit: int) -> list[str]:
        prompts = [
            self._shortened(prompt_ids(self.tokenizer, request.prompt, self.chat), limit)
            for request in asked
        ]
        streams = [TextStream(self.tokenizer, request.stop) for request in asked]

        def watch(number: int, token: int) -> bool:
            streams[number].add(token)
            return streams[number].stopped

        generate_batch(
            self.model,
            prompts,
            limit,
            [Sampling(request.temperature, seed=request.sample) for request in asked],
            self.tokenizer.ends,
            watch,
            max(1, self.batch_tokens // (max(map(len, prompts)) + limit)),
        )
        for stream in streams:
            stream.end()
        return [stream.text for stream in streams]

    def _shortened(self, prompt: list[int], more: int) -> list[int]:
        """What is read of a prompt before `more` tokens: its beginning, which is `bos` and in a chat
        the header of the user's turn, and its end. Raises PanthalassaError when nothing fits between.
        """
        room = self.length - more
        if len(prompt) <= room:
            return prompt
        head, behind = (
            question_frame(self.tokenizer) if self.chat else (self.tokenizer.beginning, ())
        )
        if room <= len(head) + len(behind):
            raise PanthalassaError(
                f"{more:,} tokens behind a prompt leave no room for it in the {self.length:,} that are "
                "read at most. Set fewer new_tokens in the task's settings, or a larger length."
            )
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(head, prompt, strict=False))
        head = [id for id, _ in pairs]  # what follows may be one word with the end of it
        return [*head, *prompt[len(head) - room :]]


def prompt_ids(tokenizer: TextTokenizer, text: str, chat: bool) -> list[int]:
    """A prompt as documents begin, or as what a user says in a chat."""
    if chat:
        return encode_question(tokenizer, text)
    return ids_of(tokenizer, text)


def encode(
    tokenizer: TextTokenizer, request: Likelihood | Rolling, chat: bool = False
) -> tuple[list[int], list[int]]:
    """The ids of what is given, `bos` first, and of what is asked about.

    Spaces at the end of a context go to the continuation, as words have them in front; where both
    together have no more tokens than the context, each is cut into tokens by itself. chat: a context is
    what a user says, and its continuation, without spaces around it, the answer. Raises
    PanthalassaError for a continuation without tokens, as nothing would be the most likely of all.
    """
    if isinstance(request, Rolling):
        return _start(tokenizer), tokenizer.encode(request.text)
    context = request.context.rstrip()
    if chat and context:
        said = request.continuation.strip()
        before, asked = encode_answer(tokenizer, context, said) if said else ([], [])
    else:
        start = tokenizer.beginning if context else _start(tokenizer)
        before = [*start, *tokenizer.encode(context)]
        continuation = request.context[len(context) :] + request.continuation
        whole = [*start, *tokenizer.encode(context + continuation)]
        asked = whole[len(before) :] or tokenizer.encode(continuation)
    if not asked:
        raise PanthalassaError(
            f"how likely {request.continuation!r} is behind {request.context[-SHOWN:]!r} can not be "
            "said: it has no tokens. Correct the task's data."
        )
    return before, asked


def _start(tokenizer: TextTokenizer) -> list[int]:
    """The id that a text without a context is behind, as in the harness."""
    return [tokenizer.eos if tokenizer.bos is None else tokenizer.bos]


def windows(
    request: int, context: Sequence[int], continuation: Sequence[int], length: int
) -> Iterator[Window]:
    """Each token of the continuation once, behind as much as `length` inputs hold.

    What does not fit is cut off on the left. A continuation of more than `length` tokens is asked about
    in pieces of `length`, the last of which has more before it.
    """
    text = [*context, *continuation]
    for start in range(len(context), len(text), length):
        end = min(start + length, len(text))
        inputs = text[max(0, end - 1 - length) : end - 1]
        yield Window(request, tuple(inputs), tuple(text[start:end]))


def batches(asked: Sequence[Window], tokens: int) -> Iterator[list[Window]]:
    """Windows of like length together, the longest first, of at most `tokens` inputs with padding.

    Windows with the same inputs are read once.
    """
    batch: list[Window] = []
    inputs: set[tuple[int, ...]] = set()
    for window in sorted(asked, key=lambda window: (-len(window.inputs), window.inputs)):
        new = window.inputs not in inputs
        if batch and new and (len(inputs) + 1) * len(batch[0].inputs) > tokens:
            yield batch
            batch, inputs = [], set()
        batch.append(window)
        inputs.add(window.inputs)
    if batch:
        yield batch
