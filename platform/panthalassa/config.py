"""The configuration of a run: one typed tree, read from YAML and dotted overrides, checked at once.

`load(path, ["train.steps=50"])` gives a frozen `Config` or raises a ConfigError that lists every
mistake with its key, its value, what is allowed and the nearest right key. Nothing else in the
platform reads YAML or the command line, and a key exists only because something reads it.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from panthalassa.errors import ConfigError

PRESETS = Path(__file__).parent / "model" / "presets.yaml"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Run(Section):
    name: Name
    """A run is known by its name: the same name goes on where it was."""
    directory: str = "runs"
    """Where runs are kept: a local folder or `s3://bucket/prefix`."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Fixes the initial weights and the order of the samples."""


class Corpus(Section):
    directory: str
    """Where the prepared corpus is: a local folder or `s3://bucket/prefix`."""
    sources: list[str] = []
    """Folders of .txt, .jsonl or .parquet; `python-reference` is the one that Python carries."""
    sequence_length: int = Field(default=256, ge=2)
    """Tokens in a packed sample."""
    vocabulary_size: int = Field(default=4096, ge=260, le=2**20)
    """Size of the byte-level BPE vocabulary to train, special tokens included."""
    held_out_share: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of the documents kept for evaluation, chosen by the hash of their text."""
    rows_per_group: Positive = 32
    """Samples in a Parquet row group, the unit of reading."""
    rows_per_shard: Positive = 8192
    """Samples in a shard file."""


class Model(Section):
    """A Llama-compatible decoder; `preset` fills in whatever is not given here."""

    preset: str | None = None
    """A shape of model/presets.yaml."""
    vocabulary_size: Positive
    """Rows of the embedding: at least the corpus's vocabulary."""
    hidden_size: Positive
    """Width of the residual stream."""
    layers: Positive
    """Blocks of attention and feed-forward."""
    heads: Positive
    """Query heads; a multiple of kv_heads."""
    kv_heads: Positive
    """Key and value heads, each shared by heads / kv_heads query heads."""
    head_size: int = Field(ge=2, multiple_of=2)
    """Width of a head."""
    ffn_size: Positive
    """Width inside the feed-forward (SwiGLU)."""
    tied_embeddings: bool = False
    """One matrix for the embedding and the output."""
    rope_theta: Rate = 10_000.0
    """Base of the rotary position embedding."""
    norm_epsilon: Rate = 1e-5
    """Added to the mean square in RMSNorm."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("preset") is None:
            return data
        presets = yaml.safe_load(PRESETS.read_text())
        if str(data["preset"]) not in presets:
            raise ValueError(f"no preset {data['preset']!r}; there are {', '.join(presets)}")
        return {**presets[data["preset"]], **data}

    @model_validator(mode="after")
    def _check(self) -> "Model":
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        return self


class Parallel(Section):
    tp_size: Positive = 1
    """Ranks that share one copy of each layer (tensor and sequence parallel)."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again: nothing, all but the matrix products, or each block."""
    compile: bool = False
    """Compile each block with torch.compile."""
    keep_gathered: bool = False
    """Keep weights and gradients whole through a step's micro-batches: one exchange instead of one
    each, for the memory of a whole copy."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the layers; weights, moments and gradient sums stay fp32."""


class Stream(Section):
    temperature: Rate = 1.0
    """Languages are mixed by tokens**(1/temperature): above 1 the small ones are seen more often."""
    read_tasks: Positive = 2
    """Tasks that read for a rank at a time."""


class Optimizer(Section):
    """AdamW with decoupled decay (Loshchilov & Hutter 2019), none on norms."""

    learning_rate: Rate = 3e-4
    """The peak, reached at the end of the warm-up."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """Decay of the first and of the second moment."""
    epsilon: Rate = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """Multiplied by the learning rate and the weight."""
    clip_norm: Rate = 1.0
    """Gradients are scaled down to this global norm."""


class Schedule(Section):
    kind: Literal["cosine", "wsd"] = "cosine"
    """Warm-up, then a cosine, or stable and a linear decay (WSD)."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps in which the rate rises linearly to its peak."""
    decay_share: float = Field(default=0.2, gt=0, le=1)
    """WSD: the last share of the steps in which the rate falls."""
    final_share: float = Field(default=0.1, ge=0, le=1)
    """The rate at the end as a share of the peak."""


class Train(Section):
    steps: Positive
    """Steps of the optimizer in the whole run."""
    global_batch: Positive
    """Samples in a step over all ranks; the mathematics of a run depends on it, not on the ranks."""
    micro_batch: Positive
    """Samples that a rank passes through the model at once."""
    sequence_length: int = Field(ge=2)
    """Tokens in a sample; divides the corpus's."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    loss_chunk: Positive = 1024
    """Positions whose logits exist at once."""


class Checkpoint(Section):
    every: Positive = 100
    """Steps between checkpoints; the last step always has one."""
    keep: Positive = 2
    """The newest checkpoints that are kept."""


class Evaluation(Section):
    every: Positive = 100
    """Steps between evaluations; before the first and after the last step there is always one."""
    samples: Positive = 128
    """Held-out samples that are read, or all when there are fewer."""
    prompts: list[str] = []
    """Prompts that are continued at the end of the run."""
    new_tokens: Positive = 40
    """Tokens in a continuation."""
    sampling_temperature: float = Field(default=0.7, ge=0, allow_inf_nan=False)
    """0 takes the most likely token."""


class Tracking(Section):
    uri: str | None = None
    """MLflow server; else MLFLOW_TRACKING_URI, else a sqlite file in run.directory."""
    experiment: Name = "panthalassa"
    """The MLflow experiment that the run is filed under."""


class Energy(Section):
    source: Literal["auto", "nvml", "rapl", "none"] = "auto"
    """Where joules are read; `auto` takes NVML for ranks with a GPU and RAPL for the others."""


class Cluster(Section):
    address: str = "local"
    """`local` starts Ray in this process; else the address of a running cluster, or `auto`."""
    workers: Positive = 1
    """Training ranks."""
    gpus_per_worker: Literal[0, 1] = 0
    """GPUs of a rank; with 0 it computes on the CPU."""
    cpus_per_worker: float = Field(default=0.5, gt=0, multiple_of=0.25)
    """CPUs that Ray reserves for a rank; a multiple of 1/4, which binary fractions hold exactly."""
    threads_per_worker: Positive = 1
    """Threads of torch in a rank."""
    max_failures: int = Field(default=3, ge=0)
    """Times that the workers are started again after a failure."""
    dashboard_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of Ray's dashboard, which an embedded Ray otherwise leaves out."""
    peak_flops: Rate | str = Field(default="auto", union_mode="left_to_right")
    """FLOP/s of one rank for the MFU: a number, a GPU's name, or `auto` (by name; CPUs are measured)."""


class Config(Section):
    run: Run
    corpus: Corpus
    model: Model
    parallel: Parallel = Parallel()
    stream: Stream = Stream()
    train: Train
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    energy: Energy = Energy()
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _check_combinations(self) -> "Config":
        problems = list(_impossible_combinations(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def dump(self) -> str:
        """The resolved configuration as YAML; loading it gives the same configuration."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class Preparation(Section):
    """The part of a configuration that `panthalassa prepare` reads."""

    corpus: Corpus
    cluster: Cluster = Cluster()


Tree = TypeVar("Tree", Config, Preparation)


def _impossible_combinations(config: Config) -> Any:
    tp, model, train = config.parallel.tp_size, config.model, config.train
    for key in ("heads", "kv_heads", "ffn_size", "vocabulary_size"):
        if (value := getattr(model, key)) % tp:
            yield f"model.{key}={value} is not divisible by parallel.tp_size={tp}"
    if train.sequence_length % tp:
        yield (
            f"train.sequence_length={train.sequence_length} is not divisible by "
            f"parallel.tp_size={tp}, over which sequences are split"
        )
    if config.cluster.workers % tp:
        yield (
            f"cluster.workers={config.cluster.workers} is not a multiple of parallel.tp_size={tp}"
        )
    if train.schedule.warmup_steps >= train.steps:
        yield (
            f"train.schedule.warmup_steps={train.schedule.warmup_steps} leaves nothing of "
            f"train.steps={train.steps}"
        )
    if config.parallel.compile and config.parallel.activation_checkpointing == "full":
        yield (
            "parallel.compile=true with parallel.activation_checkpointing=full crashes in "
            "torch 2.13; take selective, or compile=false"
        )


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply `key.path=value` overrides (values are YAML), and check the whole.

    Raises ConfigError with every mistake at once.
    """
    try:
        data = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"configuration {path} can not be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # not UTF-8, or no date like 2024-13-45
        raise ConfigError(f"configuration {path} is not YAML: {error}") from error
    return build(data, overrides or [], str(path), Config)


def load_preparation(source: Path, overrides: list[str]) -> Preparation:
    """What preparing needs of a configuration file, or defaults for a folder of texts.

    A folder `texts/mine` becomes the corpus `data/mine`. Raises ConfigError.
    """
    if not source.is_dir():
        config = load(source, overrides)
        return Preparation(corpus=config.corpus, cluster=config.cluster)
    name = source.resolve().name
    data: dict[str, Any] = {"corpus": {"directory": f"data/{name}", "sources": [str(source)]}}
    return build(data, overrides, str(source), Preparation)


def build(data: Any, overrides: list[str], origin: str, kind: type[Tree]) -> Tree:
    """Check a tree that is already read, after its overrides; `origin` names it in messages."""
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: expected sections such as `train:`, found {data!r}")
    for override in overrides:
        _apply(data, override)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise ConfigError(f"{origin} can not be run:\n" + "\n".join(lines)) from error


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r}: expected key=value, e.g. train.steps=50")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from error
    *parents, last = key.split(".")
    for parent in parents:
        node = data.get(parent)
        if node is None:
            node = data[parent] = {}
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {parent} holds a value, not further keys")
        data = node
    data[last] = value


def _explain(detail: Any) -> str:
    keys = [str(part) for part in detail["loc"]]
    key, value = ".".join(keys), detail["input"]
    if detail["type"] == "extra_forbidden":
        return f"  {key}={value!r}: there is no such key; {_nearest(keys)}"
    if detail["type"] == "missing":
        return f"  {key}: missing; it has no default"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "value_error":
        prefix = f"{key}: " if key else ""
        return "\n".join(f"  {prefix}{line}" for line in message.split("\n"))
    return f"  {key}={value!r}: {message}"


def _nearest(keys: list[str]) -> str:
    """The right key most like a wrong one: in its own section first, then anywhere."""
    *parents, last = keys
    every = {path.rsplit(".", 1)[-1]: path for path in reversed(_paths(Config))}
    section = [p for p in _paths(Config) if p.split(".")[:-1] == parents]
    here = difflib.get_close_matches(last, [p.rsplit(".", 1)[-1] for p in section], n=1)
    if here:
        return f"did you mean {'.'.join([*parents, *here])}?"
    anywhere = difflib.get_close_matches(last, every, n=1)
    if anywhere:
        return f"did you mean {every[anywhere[0]]}?"
    return f"allowed are {', '.join(section)}"


def _paths(section: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in section.model_fields.items():
        found.append(prefix + name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += _paths(kind, f"{prefix}{name}.")
    return found
