"""Supervised fine-tuning: to say the answers of chats."""

from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.finetune.chat import encode_question
from panthalassa.train.objective import NextToken


class Answers(NextToken):
    """The cross-entropy of the tokens of answers, each behind its prompt."""

    def prompt(self, tokenizer: Tokenizer, text: str) -> list[int]:
        return encode_question(tokenizer, text)
