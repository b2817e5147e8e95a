"""What a fine-tuning begins with: the shape, the tokenizer and the weights of a run, or of a folder in
the Llama layout of Hugging Face. Weights are copied, and stay when the source goes on or goes away.
"""

from collections.abc import Callable

from panthalassa.config_model import Model
from panthalassa.corpus.text_tokenizer import TextTokenizer
from panthalassa.errors import CorruptError, PanthalassaError
from panthalassa.exchange.fresh_checkpoint import write_checkpoint
from panthalassa.exchange.llama_folder import CONFIG, read_folder, read_shape, read_sums
from panthalassa.exchange.storage_errors import named
from panthalassa.exchange.tokenizer_source import tokenizer_of_folder, tokenizer_of_run
from panthalassa.exchange.weights import newest_good, no_checkpoint, verified
from panthalassa.storage import Storage
from panthalassa.train import checkpoint
from panthalassa.train.checkpoint import COMMIT, Commit, folder


def copy_weights(
    source: Storage, target: Storage, staging: str | None, tell: Callable[[str], None]
) -> Commit:
    """Write the weights of a source, and nothing else, into a checkpoint of step 0 below `target`.

    Of a run it is the newest good checkpoint; `tell` hears of those that are passed over. A copy that is
    there already is verified and kept, whatever the source has become; a torn one is made anew. staging:
    a local folder for files on their way from and to object storage. Raises PanthalassaError.
    """
    with named(source, target):
        if target.exists(f"{folder(0)}/{COMMIT}"):
            return _verified_copy(target, staging)
        if is_folder(source):
            with read_folder(source, staging) as found:
                return write_checkpoint(target, found.model, found, staging, optimizer=False)
        with newest_good(source, staging, tell) as weights:
            return write_checkpoint(target, weights.commit.shape, weights, staging, optimizer=False)


def _verified_copy(target: Storage, staging: str | None) -> Commit:
    try:
        with verified(target, folder(0), staging) as copy:
            return copy.commit
    except CorruptError as error:
        raise CorruptError(
            f"{error}. What was trained on it needs these very weights: restore {target.uri} from a "
            "copy, or choose another run.name to begin anew."
        ) from error


def is_folder(source: Storage) -> bool:
    """Whether it is a folder in the Llama layout, else a run. Raises PanthalassaError when it is not
    there."""
    with named(source):
        if not source.exists(""):
            raise PanthalassaError(
                f"{source.uri} is not there: expected a run such as runs/laptop, or a folder with "
                f"{CONFIG} and safetensors as `panthalassa export` writes them."
            )
        return source.exists(CONFIG)


def shape_of(source: Storage) -> Model:
    """The model that a source is. Raises PanthalassaError."""
    with named(source):
        if is_folder(source):
            return read_shape(source, read_sums(source))
        return _newest(source).shape


def tokenizer_of(source: Storage) -> TextTokenizer:
    """The tokenizer that belongs to a source. Raises PanthalassaError.

    Of a run that was trained it is that of its newest corpus, of an imported one what came with it.
    """
    with named(source):
        if is_folder(source):
            return tokenizer_of_folder(source, read_shape(source, read_sums(source)))
        return tokenizer_of_run(source, _newest(source))


def _newest(run: Storage) -> Commit:
    found = checkpoint.newest(run)
    if found is None:
        raise no_checkpoint(run)
    return found[1]
