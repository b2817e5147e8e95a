"""A model's own chat template, in Jinja: what transformers writes of a chat, in pieces.

The template is rendered in a process of its own (`chat_renderer`), for it is a program of a stranger:
no longer than SECONDS, in bounded memory, without this process's environment. Contents are stand-ins
there, so that a chat's text depends on its shape alone, and each shape is rendered once. The day is not
told: a template that writes the date writes the one that it has for that case, today and in a year.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from panthalassa.corpus.chat_format import Piece, Rendered, Shape, Slot, joined
from panthalassa.errors import ChatError

RENDERER = Path(__file__).parent / "chat_renderer.py"
SECONDS = 60
"""For a chat and all that begins it, on a loaded machine."""
LONGEST = 1 << 18
"""Bytes of a template."""
MOST_SHAPES = 4096
"""That are remembered."""
DEFAULT = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] | trim + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""For a model that has none: headers of ordinary tokens, as Zephyr's (Tunstall et al. 2023)."""

Job = tuple[Shape, bool]
"""A shape, and whether the assistant shall speak behind it."""


class ChatTemplate:
    """`source` in Jinja; `place` is where it is from, for errors, and `tokens` are those that it knows
    by names such as `bos_token`. Raises ChatError for chats that it refuses, or fails at."""

    def __init__(self, source: str, place: str, tokens: Mapping[str, str]) -> None:
        self.source, self._place, self._tokens = source, place, dict(tokens)
        self._known: dict[Job, Rendered | ChatError] = {}

    def whole(self, shape: Shape) -> Rendered:
        return self._rendered((shape, False))

    def asked(self, shape: Shape) -> Rendered:
        return self._rendered((shape, True))

    def _rendered(self, job: Job) -> Rendered:
        if job not in self._known:
            shape = job[0]
            begun = [
                (shape[:number], True)
                for number, (role, _) in enumerate(shape)
                if role == "assistant"
            ]
            if len(self._known) > MOST_SHAPES:
                self._known.clear()
            jobs = list(dict.fromkeys([job, *begun]))
            self._known |= zip(jobs, self._run(jobs), strict=True)
        found = self._known[job]
        if isinstance(found, ChatError):
            raise found
        return found

    def _run(self, jobs: Sequence[Job]) -> list[Rendered | ChatError]:
        request = {"template": self.source, "tokens": self._tokens, "jobs": jobs}
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(RENDERER)],
                input=json.dumps(request).encode(),
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                capture_output=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return [self._failed(f"it takes more than {SECONDS} s for a chat")] * len(jobs)
        if done.returncode:
            told = done.stderr.decode(errors="replace").strip().splitlines() or ["it was killed"]
            return [self._failed(told[-1])] * len(jobs)
        return [self._pieces(found) for found in json.loads(done.stdout)]

    def _pieces(self, found: Mapping[str, Any]) -> Rendered | ChatError:
        if "refused" in found:
            return ChatError(f"{self._place} refuses this chat: {found['refused']}")
        if "unsupported" in found:
            return self._failed(f"it {found['unsupported']}, which is not supported")
        if "syntax" in found:
            return self._failed(f"its syntax is wrong in {found['syntax']}")
        if "failed" in found:
            return self._failed(found["failed"])
        pieces: list[Piece] = [
            piece if isinstance(piece, str) else Slot(*piece) for piece in found["pieces"]
        ]
        return Rendered(joined(pieces), frozenset(found["noted"]))

    def _failed(self, why: str) -> ChatError:
        return ChatError(
            f"{self._place} can not be used: {why}. Mend the template, or put another one into a file "
            "chat_template.jinja beside the model's tokenizer.json, which goes before all others."
        )
