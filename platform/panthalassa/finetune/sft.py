"""Supervised fine-tuning: to say the answers of chats."""

from panthalassa.corpus.text_tokenizer import TextTokenizer
from panthalassa.finetune.chat import encode_question
from panthalassa.train.objective import NextToken


class Answers(NextToken):
    """The cross-entropy of the tokens of answers, each behind its prompt."""

    def prompt(self, tokenizer: TextTokenizer, text: str) -> list[int]:
        return encode_question(tokenizer, text)
