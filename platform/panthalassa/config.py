"""The configuration of a run: one typed, frozen tree, in which each value has been checked.

`config_file` reads it from YAML and the command line. A key exists only because something reads it.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from panthalassa.config_evaluation import Beside
from panthalassa.config_finetune import Finetune
from panthalassa.config_images import Images
from panthalassa.config_model import Model
from panthalassa.config_values import (
    Length,
    LocalFolder,
    Name,
    Place,
    Positive,
    Rate,
    Section,
    Share,
    Weights,
    WholeShare,
    number_or_name,
)

LONGEST_WINDOW = 1024


class Run(Section):
    name: Name
    """A run is known by its name: the same name goes on where it was."""
    directory: Place = "runs"
    """Where runs are kept: a local folder or `s3://bucket/prefix`."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Fixes the initial weights and the order of the samples."""


class Corpus(Section):
    directory: Place
    """Where the prepared corpus is: a local folder or `s3://bucket/prefix`."""
    sources: list[str] = Field(default_factory=list)
    """Folders of texts, tables, Wikipedia dumps or web crawls, local or `s3://`; `python-reference`
    is the one that Python carries."""
    max_bad_share: float = Field(default=0.01, ge=0, le=1)
    """Share of the records that may be unreadable: they are left out, counted and named."""
    domains: Literal["folder", "language"] = "folder"
    """What the domain of a document is: the language that its source names, else its first folder;
    or the language that is identified, `und` where that is not sure."""
    language_model: str | None = None
    """A fastText model (a file on every node) that identifies languages in place of CLD2."""
    clean: bool = True
    """Cut boilerplate, and drop what the rules of `corpus/clean.py` tell to be no prose."""
    mask_pii: bool = True
    """Put placeholders for e-mail and IP addresses, phone, card and bank numbers."""
    sequence_length: Length = 256
    """Tokens in a packed sample."""
    vocabulary_size: int = Field(default=4096, ge=288, le=2**18)
    """Size of the byte-level BPE vocabulary to train: 32 special tokens, 256 bytes, and merges."""
    tokenizer_alpha: float = Field(default=0.3, ge=0, le=1)
    """The tokenizer's sample, where text is more than its 256 MB, has of each domain as its size to this
    power: 1 is in proportion, 0 alike."""
    held_out_share: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of the documents kept for evaluation, chosen by the hash of their text."""
    evaluation_files: list[Place] = Field(default_factory=list)
    """Files (of the kinds of `sources`), or folders of them: a document that has thirteen words in a row
    from one of their texts is left out."""
    near_duplicates: Annotated[float, Field(ge=0.5, lt=1)] | None = 0.8
    """Jaccard similarity of two texts' shingles from which only the longer one is kept, because repeated
    text is learned by heart and crosses the split; or null. 0.8 is that of Lee et al., 2022."""
    images: Images = Field(default=Images(), exclude_if=lambda value: value == Images())
    """Of sources with pairs of an image and a text."""
    rows_per_group: Positive = 32
    """Samples in a Parquet row group, the unit of reading."""
    rows_per_shard: Positive = 8192
    """Samples in a shard file."""


class Parallel(Section):
    tp_size: Positive = 1
    """Ranks that share one copy of each layer (tensor and sequence parallel)."""
    replicas: Positive = 1
    """Whole copies of the model at most, each sharded over its part of the ranks (HSDP), so that weights
    are gathered over fewer of them; the number that is taken divides the data-parallel ranks."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again: nothing, all but the matrix products, or each block."""
    compile: bool = False
    """Compile each block with torch.compile."""
    keep_gathered: bool = False
    """Keep weights and gradients whole through a step's micro-batches: one exchange instead of one
    each, for the memory of a whole copy."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the layers; weights, moments and gradient sums stay fp32."""


class LaterPhase(Section):
    """A part of a run with its own mixture or sequence length; the rest is as in the first phase."""

    from_step: Positive
    """The phase holds from this step on, to the next phase or the end."""
    temperature: Rate | None = None
    """Another temperature, without weights."""
    weights: Weights | None = None
    """Other weights."""
    image_share: WholeShare | None = None
    """Another share of samples with images."""
    sequence_length: Length | None = None
    """Another train.sequence_length."""


class Stream(Section):
    temperature: Rate = 1.0
    """Domains are mixed by samples**(1/temperature): above 1 the small ones are seen more often."""
    weights: Weights | None = None
    """Domains are mixed in these proportions instead; one that is not named is left out."""
    image_share: WholeShare | None = None
    """Share of the samples that have images, 0 to 1, whatever there is of them: temperature or weights
    then mix the domains with images among themselves, and those of text. But for 0 and 1 each
    domain still has one of about a thousand samples at least. Null: all domains together."""
    phases: list[LaterPhase] = Field(default_factory=list)
    """The curriculum: what changes at later steps."""
    on_bad_shard: Literal["stop", "quarantine"] = "stop"
    """When a shard is missing or rotten: stop with a checkpoint, or go on without its samples, which
    the ledger records."""
    on_change: Literal["refuse", "new_phase"] = "refuse"
    """When a run goes on with another corpus, seed, batch or mixture than it had: refuse, or begin a
    new phase there, which the checkpoints and the ledger record."""
    read_tasks: Positive = 2
    """Tasks that read for a rank at a time."""
    ahead_megabytes: Positive = 64
    """Samples that a rank's tasks may have read before they are asked for."""
    cache_directory: LocalFolder = "~/.cache/panthalassa/shards"
    """Where each node keeps shards of a corpus in object storage; a local corpus is read in place."""
    cache_gigabytes: Rate = 20.0
    """Size of that folder; the shards that were opened longest ago give way."""


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
    global_batch: int = Field(ge=1, le=2**20)
    """Samples in a step over all ranks; the mathematics of a run depends on it, not on the ranks."""
    micro_batch: Positive
    """Samples that a rank passes through the model at once."""
    sequence_length: Length
    """Tokens in a sample; divides the corpus's."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    loss_chunk: Positive = 1024
    """Positions whose logits exist at once."""


class Checkpoint(Section):
    every: Positive | None = None
    """Steps between checkpoints; without it they come as often as is best within max_lost_seconds. The
    last step always has one."""
    keep: Positive = 2
    """The newest checkpoints that are kept, beside the newest older one that was healthy."""
    max_lost_seconds: Rate = 60.0
    """Without `every`: the most seconds of work that the death of a rank may cost."""
    staging_directory: LocalFolder | None = None
    """Where each node keeps files on their way to and from object storage, such as /dev/shm; else the
    system's temporary folder."""


class Guard(Section):
    sigma: Rate = 6.0
    """A step is skipped when its gradient's norm is more standard deviations than this above the mean
    of the last ones, or not finite."""
    window: int = Field(default=128, ge=16, le=LONGEST_WINDOW)
    """Accepted steps whose norms count."""
    max_skips: Positive = 5
    """Skipped steps in a row after which the run goes back to its newest known-good checkpoint, and on
    behind the samples that it met since."""
    max_rollbacks: int = Field(default=3, ge=0)
    """Times in a row that it goes back without a newer known-good checkpoint; then the run ends."""
    step_seconds: Rate = 300.0
    """Seconds without a sign of life after which a rank counts as hung and ends, with its stacks."""
    first_step_seconds: Rate = 1800.0
    """The same until the first step after a start is done."""
    straggler_every: Positive = 32
    """Steps after which the ranks compare their speed and a slow one is named."""


class Evaluation(Section):
    every: Positive = 100
    """Steps between evaluations; before the first and after the last step there is always one."""
    samples: Positive = 128
    """Held-out samples that are read, or all when there are fewer."""
    prompts: list[str] = Field(default_factory=list)
    """Prompts that are continued at the end of the run; of a fine-tuning, what a user says."""
    new_tokens: Positive = 40
    """Tokens in a continuation."""
    sampling_temperature: float = Field(default=0.7, ge=0, allow_inf_nan=False)
    """0 takes the most likely token."""
    beside: Beside | None = None
    """Tasks that checkpoints are asked on resources of their own, while the training goes on."""


class Tracking(Section):
    uri: str | None = None
    """MLflow server; else MLFLOW_TRACKING_URI, else a sqlite file in run.directory."""
    experiment: Name = "panthalassa"
    """The MLflow experiment that the run is filed under."""
    parent: str | None = Field(default=None, pattern="^[0-9a-f]{32}$")
    """MLflow's id of the run that this one is a child of, as the runs of a sweep are."""


class Energy(Section):
    source: Literal["auto", "nvml", "rapl", "none"] = "auto"
    """Where joules are read; `auto` takes NVML for ranks with a GPU and RAPL for the others."""
    pue: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    """Power usage effectiveness of the facility: its kWh are those of the devices times this."""
    grid_kg_per_kwh: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """kg of CO₂ a kWh of the grid, for the carbon in the account of energy."""


class Cluster(Section):
    address: Place = "local"
    """`local` starts Ray in this process; else the address of a running cluster, or `auto`."""
    workers: Positive = 1
    """Training ranks, at most."""
    min_workers: Positive | None = None
    """Training ranks, at least: with fewer a run waits for nodes. As many as `workers` if not given."""
    wait_seconds: Rate = 600.0
    """Time that a run waits for nodes before it ends, with its checkpoints in place."""
    gpus_per_worker: Literal[0, 1] = 0
    """GPUs of a rank; with 0 it computes on the CPU."""
    cpus_per_worker: float = Field(default=0.5, gt=0, multiple_of=0.25)
    """CPUs that Ray reserves for a rank; a multiple of 1/4, which binary fractions hold exactly."""
    threads_per_worker: Positive = 1
    """Threads of torch in a rank."""
    max_failures: int = Field(default=3, ge=0)
    """Times that the workers are started again after failures without a new checkpoint in between."""
    dashboard_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of Ray's dashboard, which an embedded Ray otherwise leaves out."""
    peak_flops: float | str = "auto"
    """FLOP/s of one rank for the MFU: a number, a GPU's name, or `auto` (by name; CPUs are measured)."""

    @field_validator("address")
    @classmethod
    def _no_dashboard(cls, value: str) -> str:
        if value.startswith(("http://", "https://")):
            raise ValueError(
                "that is a dashboard, where jobs are submitted: give the cluster's own address, "
                "host:6379 unless its head was told another port, or auto"
            )
        return value

    _peak = field_validator("peak_flops", mode="plain")(number_or_name)


class Config(Section):
    run: Run
    corpus: Corpus
    model: Model
    parallel: Parallel = Parallel()
    stream: Stream = Stream()
    train: Train
    checkpoint: Checkpoint = Checkpoint()
    guard: Guard = Guard()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    energy: Energy = Energy()
    cluster: Cluster = Cluster()
    finetune: Finetune | None = None

    @model_validator(mode="after")
    def _check_combinations(self) -> "Config":
        if problems := list(_impossible_combinations(self)):
            raise ValueError("\n".join(problems))
        return self

    def dump(self) -> str:
        """The resolved configuration as YAML; loading it gives the same configuration."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def sequence_lengths(config: Config) -> Iterator[tuple[str, int]]:
    """The sequence lengths of all phases, each with its key."""
    yield "train.sequence_length", config.train.sequence_length
    for number, phase in enumerate(config.stream.phases):
        if phase.sequence_length is not None:
            yield f"stream.phases.{number}.sequence_length", phase.sequence_length


def _impossible_combinations(config: Config) -> Iterator[str]:
    tp, model, train = config.parallel.tp_size, config.model, config.train
    if config.run.name == "mlflow.db":
        yield "run.name=mlflow.db is the name of the file that tracking keeps in run.directory"
    for key in ("heads", "kv_heads", "ffn_size", "vocabulary_size"):
        if (value := getattr(model, key)) % tp:
            yield f"model.{key}={value} is not divisible by parallel.tp_size={tp}"
    if model.vision and model.hidden_size % tp:
        yield f"model.hidden_size={model.hidden_size} is not divisible by parallel.tp_size={tp}"
    for key in ("heads", "ffn_size", "tokens") if model.vision else ():
        if (value := getattr(model.vision, key)) % tp:
            yield f"model.vision.{key}={value} is not divisible by parallel.tp_size={tp}"
    for key, length in sequence_lengths(config):
        if length % tp:
            yield (
                f"{key}={length} is not divisible by parallel.tp_size={tp}, over which sequences "
                "are split"
            )
    for number, phase in enumerate(config.stream.phases):
        if phase.temperature is not None and phase.weights is not None:
            yield f"stream.phases.{number} has a temperature and weights; one of them mixes domains"
    starts = [0, *(phase.from_step for phase in config.stream.phases)]
    if sorted(set(starts)) != starts:
        yield f"stream.phases begin at the steps {starts[1:]}, which do not rise"
    if starts[-1] >= train.steps:
        yield f"stream.phases begin at the steps {starts[1:]}, not all before train.steps={train.steps}"
    if config.cluster.workers % tp:
        yield f"cluster.workers={config.cluster.workers} is no multiple of parallel.tp_size={tp}"
    if (least := config.cluster.min_workers) and least > config.cluster.workers:
        yield f"cluster.min_workers={least} is more than cluster.workers={config.cluster.workers}"
    if config.finetune and config.finetune.objective == "dpo" and not config.finetune.lora:
        yield (
            "finetune.objective=dpo needs finetune.lora: what it compares with is the model beneath the "
            "adapters"
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
