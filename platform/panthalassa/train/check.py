"""What a run is refused for before Ray starts: a corpus, folder, GPU or store that does not fit it."""

from panthalassa.config import Config, sequence_lengths
from panthalassa.corpus.manifest import Manifest, read_manifest
from panthalassa.errors import ConfigError
from panthalassa.model.flops import peak_of
from panthalassa.run_config import CONFIG, folder_of, kept_tree
from panthalassa.storage import Storage, open_storage
from panthalassa.stream.ledger import accounts
from panthalassa.tracking.mlflow_store import store_uri
from panthalassa.train.checkpoint import newest
from panthalassa.train.worker import open_curriculum


def check(config: Config) -> Manifest:
    """Refuse what can not be run, before anything starts; returns the corpus.

    Raises PanthalassaError for a missing corpus, one that does not fit the configuration, a run of
    that name with another model or corpus, an unknown GPU, and a store that MLflow does not have.
    """
    manifest = read_manifest(open_storage(config.corpus.directory))
    _refuse_another_objective(config, manifest)
    _refuse_other_images(config, manifest)
    longest = manifest.sequence_length
    for key, length in sequence_lengths(config):
        if (manifest.objective or manifest.images) and length != longest:
            what = "examples" if manifest.objective else "images"
            raise ConfigError(
                f"{key}={length}, but the {what} at {config.corpus.directory} lie in rows of "
                f"{longest} tokens, which are never cut: set it to {longest}."
            )
        if longest % length:
            raise ConfigError(
                f"{key}={length} does not fit the corpus at {config.corpus.directory}, whose samples "
                f"have {longest} tokens: it must divide that. "
                "Change it, or prepare a corpus with another corpus.sequence_length."
            )
    if manifest.vocabulary_size > config.model.vocabulary_size:
        raise ConfigError(
            f"model.vocabulary_size={config.model.vocabulary_size} is less than the "
            f"{manifest.vocabulary_size} tokens of the corpus at {config.corpus.directory}"
        )
    if isinstance(config.cluster.peak_flops, str) and config.cluster.peak_flops != "auto":
        peak_of(config.cluster.peak_flops)
    store_uri(config)
    run = folder_of(config)
    try:
        if (found := newest(run)) is None:
            _refuse_another_model(config, run)
    except OSError as error:
        raise ConfigError(
            f"run.directory={config.run.directory} can not be read: {error}. Correct the key, or the "
            "endpoint, credentials and permissions."
        ) from error
    open_curriculum(config, manifest, run, found[1] if found else None)
    if found and found[1].step > config.train.steps:
        raise ConfigError(
            f"train.steps={config.train.steps}, but {run.uri}/{found[0]} is further already. Raise it, "
            "or choose another run.name."
        )
    return manifest


def _refuse_another_objective(config: Config, manifest: Manifest) -> None:
    place, has = config.corpus.directory, manifest.objective
    wanted = config.finetune and config.finetune.objective
    if has == wanted:
        return
    if wanted is None:
        raise ConfigError(
            f"the corpus at {place} holds examples for fine-tuning ({has}), and there is no section "
            "finetune: use `panthalassa finetune`, or correct corpus.directory."
        )
    raise ConfigError(
        f"finetune.objective={wanted} does not fit the corpus at {place}, which "
        f"{f'was prepared for {has}' if has else 'holds texts and no examples'}: correct the key, or "
        "choose another corpus.directory."
    )


def _refuse_other_images(config: Config, manifest: Manifest) -> None:
    place, images, vision = config.corpus.directory, manifest.images, config.model.vision
    if images is None:
        return
    if vision is None:
        raise ConfigError(
            f"the corpus at {place} has images, and the model reads text alone: give it the section "
            "model.vision, as the preset laptop-vision has, or choose another corpus.directory."
        )
    if (images.size, images.tokens) != (vision.image_size, vision.tokens):
        raise ConfigError(
            f"the images of the corpus at {place} have {images.size} pixels a side and take "
            f"{images.tokens} tokens; model.vision.image_size={vision.image_size} and "
            f"model.vision.patch_size={vision.patch_size} make {vision.tokens} tokens. Correct these "
            "keys, or prepare the corpus anew with them."
        )


def _refuse_another_model(config: Config, run: Storage) -> None:
    """What its checkpoints say, a run that has trained knows before its first one, too."""
    if not any(account.steps for account in accounts(run)) or not run.exists(CONFIG):
        return
    before = kept_tree(run).get("model", {})
    differs = [
        f"model.{key} is {before[key]} there, {value} here"
        for key, value in config.model.identity().items()
        if before.get(key, value) != value
    ]
    if differs:
        raise ConfigError(
            f"{run.uri} belongs to another run, which has no checkpoint yet: {'; '.join(differs)}. "
            "Choose another run.name."
        )
