"""A fine-tuning as the driver sees it: its examples, the weights that it begins with, and a training.

What follows is `train.run`: the same loop, stream, checkpoints and accounts, on a corpus of examples.
"""

import threading
from collections.abc import Callable
from functools import partial

from panthalassa.config import Config
from panthalassa.corpus.manifest import MANIFEST, read_manifest
from panthalassa.corpus.text_tokenizer import TextTokenizer
from panthalassa.corpus.tokenizer import read_tokenizer
from panthalassa.errors import ConfigError
from panthalassa.exchange.base import copy_weights, tokenizer_of
from panthalassa.finetune.dpo import Preference
from panthalassa.finetune.prepare import prepare_chats
from panthalassa.finetune.sft import Answers
from panthalassa.run_config import folder_of
from panthalassa.storage import Storage, open_storage
from panthalassa.train.base import BASE, has_base
from panthalassa.train.checkpoint import unlike
from panthalassa.train.events import Event, Notice
from panthalassa.train.run import Beginning, Outcome, pretrain


def finetune(
    config: Config,
    show: Callable[[Event], None],
    debug: bool = False,
    began: float | None = None,
    stopping: threading.Event | None = None,
) -> Outcome:
    """Prepare the examples where that has not been done, and train as `pretrain` does.

    `config` has a section `finetune`. Raises PanthalassaError as `pretrain`, and for a model or examples
    that can not be used.
    """
    assert config.finetune
    setting = config.finetune

    def tell(text: str) -> None:
        show(Notice(text))

    prepare_chats(config.corpus, _tokenizer(config), setting.objective, tell, config.model.vision)
    objective = Preference(setting.beta) if setting.objective == "dpo" else Answers()
    beginning = Beginning(objective, partial(_place_weights, config, tell))
    return pretrain(config, show, debug, began, stopping, beginning)


def _tokenizer(config: Config) -> TextTokenizer:
    """That of the model; of a run that has begun, that of its examples."""
    assert config.finetune
    corpus = open_storage(config.corpus.directory)
    if has_base(folder_of(config)) and corpus.exists(MANIFEST):
        return read_tokenizer(corpus, read_manifest(corpus))
    return tokenizer_of(open_storage(config.finetune.start))


def _place_weights(config: Config, tell: Callable[[str], None], run: Storage) -> None:
    assert config.finetune
    source = open_storage(config.finetune.start)
    base = copy_weights(source, run.below(BASE), config.checkpoint.staging_directory, tell)
    if differs := unlike(base.model, config.model.identity()):
        raise ConfigError(
            f"{run.uri}/{BASE}, with which the run begins, is another model than the configuration's: "
            f"{'; '.join(differs)}. Leave out the section model, or choose another run.name."
        )
