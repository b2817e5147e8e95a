"""Configurations are refused at the door, with every mistake named, and no key is a dead switch."""

import ast
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from panthalassa.config import Config, Stream
from panthalassa.config_file import load, load_preparation
from panthalassa.config_model import PRESETS
from panthalassa.errors import ConfigError
from panthalassa.finetune.config import load as load_tuning
from panthalassa.sweep.config import SweptConfig

ROOT = Path(__file__).parents[1]
SWEEPS = sorted((ROOT / "jobs" / "configs").glob("s[cw]*-*.yaml"))  # scaling-, sweep-
EVALUATIONS = sorted((ROOT / "jobs" / "configs").glob("evaluate-*.yaml"))
TUNINGS = sorted((ROOT / "jobs" / "configs").glob("finetune-*.yaml"))
SHIPPED = sorted({*(ROOT / "jobs" / "configs").glob("*.yaml")} - {*SWEEPS, *EVALUATIONS, *TUNINGS})
LAPTOP = ROOT / "jobs" / "configs" / "laptop.yaml"


def refused(*overrides: str, path: Path = LAPTOP) -> str:
    with pytest.raises(ConfigError) as refusal:
        load(path, list(overrides))
    return str(refusal.value)


def sections(kind: object) -> Iterator[type[BaseModel]]:
    for inner in get_args(kind) if isinstance(kind, UnionType) else [kind]:
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield inner


def leaves(
    section: type[BaseModel] = SweptConfig, prefix: str = ""
) -> Iterator[tuple[str, str | None]]:
    """Dotted key and docstring of every key that holds a value."""
    for name, field in section.model_fields.items():
        inner = list(sections(field.annotation))
        for kind in inner:
            yield from leaves(kind, f"{prefix}{name}.")
        if not inner:
            yield prefix + name, field.description


LEAVES = dict(leaves())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert isinstance(load(path), Config)


@pytest.mark.parametrize("path", TUNINGS, ids=lambda path: path.name)
def test_every_shipped_fine_tuning_loads_and_says_so_where_another_command_is_given_it(
    path: Path, tmp_path: Path
) -> None:
    config = load_tuning(path, ["model.preset=laptop"])
    assert config.finetune is not None
    assert "panthalassa finetune" in refused(path=path)
    (tmp_path / "config.yaml").write_text(config.dump())
    assert load_tuning(tmp_path / "config.yaml") == config


def test_there_are_shipped_configurations() -> None:
    assert {"qa", "summarisation", "code"} <= {path.stem.partition("-")[2] for path in TUNINGS}
    assert LAPTOP in SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_dumped_configuration_loads_as_the_same(path: Path, tmp_path: Path) -> None:
    config = load(
        path, ["tracking.uri=http://127.0.0.1:5000", "evaluation.prompts=[Θάλασσα, ': #']"]
    )
    (tmp_path / "config.yaml").write_text(config.dump())
    assert load(tmp_path / "config.yaml") == config


def test_overrides_reach_any_depth_and_are_yaml() -> None:
    config = load(
        LAPTOP,
        [
            "train.steps=77",
            "train.optimizer.betas=[0.8, 0.9]",
            "energy.source=none",
            "tracking.uri=http://host:5000/?a=b",
            "corpus.sources=[]",
        ],
    )
    assert config.train.steps == 77
    assert config.train.optimizer.betas == (0.8, 0.9)
    assert config.energy.source == "none"
    assert config.tracking.uri == "http://host:5000/?a=b"
    assert config.corpus.sources == []


def test_a_section_that_is_only_named_holds_its_defaults() -> None:
    assert load(LAPTOP, ["stream="]).stream == Stream()


def test_a_file_that_is_no_configuration_is_not_printed_whole(tmp_path: Path) -> None:
    (tmp_path / "prose.txt").write_text("The sea is wide. " * 1000)
    assert len(refused(path=tmp_path / "prose.txt")) < 300


def test_keys_of_a_preparation_are_looked_for_among_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_preparation(str(tmp_path), ["train.steps=5"])
    assert "train." not in str(refusal.value).partition("no such key")[2]


def test_the_later_override_wins() -> None:
    assert load(LAPTOP, ["train.steps=50", "train.steps=60"]).train.steps == 60


def test_a_configuration_can_not_be_changed_once_it_is_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(LAPTOP).train.steps = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("train.stepz=50", "did you mean train.steps?"),
        ("train.optimizer.learning_rat=1", "did you mean train.optimizer.learning_rate?"),
        ("trian.steps=50", "did you mean train?"),
        ("checkpoint.evry=50", "did you mean checkpoint.every?"),  # evaluation.every is as near
        ("stream.learning_rate=1", "did you mean train.optimizer.learning_rate?"),
        ("checkpoint.max_failures=1", "did you mean cluster.max_failures?"),
        ("optimizer.clip_norm=1", "did you mean train.optimizer?"),
        ("checkpoint.zzzzzz=1", "allowed are checkpoint.every, checkpoint.keep"),
    ],
)
def test_a_wrong_key_is_answered_with_the_nearest_right_one(
    override: str, suggestion: str, tmp_path: Path
) -> None:
    """The same in an override and in the file."""
    message = refused(override)
    key = override.partition("=")[0]
    assert suggestion in message
    assert key.split(".")[0] in message

    *parents, last = key.split(".")
    tree = node = yaml.safe_load(LAPTOP.read_text())
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = 1
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(tree))
    assert suggestion in refused(path=tmp_path / "wrong.yaml")


@pytest.mark.parametrize(
    ("override", "key", "reason"),
    [
        ("train.steps=many", "train.steps='many'", "integer"),
        ("train.steps=5.5", "train.steps=5.5", "integer"),
        ("train.global_batch=0", "train.global_batch=0", "greater than or equal to 1"),
        ("train.micro_batch=-1", "train.micro_batch=-1", "greater than or equal to 1"),
        ("train.optimizer.learning_rate=.nan", "train.optimizer.learning_rate=nan", "finite"),
        ("train.optimizer.betas=[0.9]", "train.optimizer.betas", "missing"),
        ("train.optimizer.betas=[0.9, 1.0]", "train.optimizer.betas.1=1.0", "less than 1"),
        ("stream.temperature=0", "stream.temperature=0", "greater than 0"),
        ("stream.cache_directory=s3://b/c", "stream.cache_directory='s3://b/c'", "a local folder"),
        ("stream.cache_directory=~no-one/x", "stream.cache_directory='~no-one/x'", "no such user"),
        (
            "stream.phases=[{from_stp: 3}]",
            "stream.phases.0.from_stp",
            "mean stream.phases.0.from_step",
        ),
        ("stream.weights={no: 1}", "stream.weights", "quote the name"),
        ("model.head_size=33", "model.head_size=33", "multiple of 2"),
        ("cluster.cpus_per_worker=0.1", "cluster.cpus_per_worker=0.1", "multiple of 0.25"),
        ("cluster.address=http://127.0.0.1:8265", "cluster.address='http", "that is a dashboard"),
        ("cluster.peak_flops=0", "cluster.peak_flops", "greater than 0"),
        ("cluster.peak_flops=true", "cluster.peak_flops=True", "a GPU's name"),
        ("parallel.precision=fp8", "parallel.precision='fp8'", "'fp32' or 'bf16'"),
        ("run.name=a/b", "run.name='a/b'", "match pattern"),
        ("run.name=../up", "run.name='../up'", "match pattern"),
        ("corpus.held_out_share=0.5", "corpus.held_out_share=0.5", "less than 0.5"),
        ("train=5", "train=5", "allowed are train.steps, train.global_batch"),
        ("train.schedule=", "train.schedule=None", "allowed are train.schedule.kind"),
        ("train=", "train.steps", "missing"),
        ("train.steps=yes", "train.steps=True", "not true or false"),
        ("run.seed=on", "run.seed=True", "not true or false"),
        ("cluster.gpus_per_worker=true", "cluster.gpus_per_worker=True", "not true or false"),
        ("train.global_batch=10000000000", "train.global_batch", "less than or equal to"),
        ("run.directory=''", "run.directory=''", "match pattern"),
        ("cluster.address=''", "cluster.address=''", "match pattern"),
        ('corpus.directory="a\\0b"', "corpus.directory='a\\x00b'", "match pattern"),
        ("cluster.peak_flops=[1]", "cluster.peak_flops=[1]", "a GPU's name"),
        ("model.preset=lptop", "model", "did you mean laptop?"),
        ("run.name=mlflow.db", "run.name=mlflow.db", "tracking"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_is_allowed(
    override: str, key: str, reason: str
) -> None:
    message = refused(override)
    assert key in message
    assert reason in message


def test_missing_keys_are_named(tmp_path: Path) -> None:
    tree = yaml.safe_load(LAPTOP.read_text())
    del tree["train"]["steps"], tree["corpus"]["directory"], tree["run"]
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(tree))
    message = refused(path=tmp_path / "short.yaml")
    for key in ("train.steps", "corpus.directory", "run"):
        assert f"  {key}: missing; it has no default" in message


def test_several_mistakes_are_all_listed_at_once() -> None:
    message = refused("train.stepz=1", "train.micro_batch=none", "model.heads=7", "run.nme=x")
    assert "train.stepz=1" in message
    assert "train.micro_batch='none'" in message
    assert "heads=7 is not a multiple of kv_heads=4" in message
    assert "did you mean run.name?" in message
    assert str(LAPTOP) in message


def test_an_unknown_preset_lists_the_presets() -> None:
    message = refused("model.preset=huge")
    for preset in yaml.safe_load(PRESETS.read_text()):
        assert preset in message
    assert "'huge'" in message
    assert "laptop, laptop-vision, workstation" in refused("model.preset=[1]")


def test_what_is_given_beside_a_preset_goes_before_it() -> None:
    plain, changed = load(LAPTOP).model, load(LAPTOP, ["model.layers=9"]).model
    assert changed.layers == 9
    assert changed.model_copy(update={"layers": plain.layers}) == plain
    seeing = "model.preset=laptop-vision"
    plain, changed = (load(LAPTOP, [seeing, f"model.vision.layers={n}"]).model for n in (4, 9))
    assert changed.vision != plain.vision
    assert changed.vision == plain.vision.model_copy(update={"layers": 9})
    assert load(LAPTOP, [seeing, "model.vision=null"]).model.vision is None
    assert "model.vision.image_size" in refused(seeing, "model.vision.image_size=100000")


def test_each_rank_has_its_share_of_a_tower() -> None:
    vision = (
        "{image_size: 60, patch_size: 20, hidden_size: 128, layers: 4, heads: 4, ffn_size: 510}"
    )
    message = refused("parallel.tp_size=4", "cluster.workers=4", f"model.vision={vision}")
    assert "model.vision.heads" not in message
    for line in (
        "model.vision.ffn_size=510 is not divisible by parallel.tp_size=4",
        "model.vision.tokens=9 is not divisible by parallel.tp_size=4",
    ):
        assert line in message
    narrow = ("model.preset=laptop-vision", "model.hidden_size=250", "parallel.tp_size=4")
    line = "model.hidden_size=250 is not divisible by parallel.tp_size=4"
    assert line in refused(*narrow)
    assert line not in refused(*narrow, "model.vision=null", "model.heads=6")


def test_all_impossible_combinations_are_listed_with_both_keys() -> None:
    message = refused(
        "parallel.tp_size=3",
        "cluster.workers=4",
        "train.steps=20",
        "stream.phases=[{from_step: 20, temperature: 2}]",
        "parallel.compile=true",
        "parallel.activation_checkpointing=full",
    )
    for line in (
        "model.heads=8 is not divisible by parallel.tp_size=3",
        "model.kv_heads=4 is not divisible by parallel.tp_size=3",
        "model.ffn_size=704 is not divisible by parallel.tp_size=3",
        "model.vocabulary_size=4096 is not divisible by parallel.tp_size=3",
        "train.sequence_length=256 is not divisible by parallel.tp_size=3",
        "cluster.workers=4 is no multiple of parallel.tp_size=3",
        "train.schedule.warmup_steps=20 leaves nothing of train.steps=20",
        "stream.phases begin at the steps [20], not all before train.steps=20",
        "parallel.compile=true with parallel.activation_checkpointing=full",
    ):
        assert line in message


def test_a_warm_up_may_take_all_steps_but_the_last() -> None:
    assert "warmup_steps=21" in refused("train.steps=20", "train.schedule.warmup_steps=21")
    assert load(LAPTOP, ["train.steps=21"]).train.schedule.warmup_steps == 20


@pytest.mark.parametrize("checkpointing", ["none", "selective"])
def test_compile_goes_with_every_checkpointing_but_full(checkpointing: str) -> None:
    overrides = ["parallel.compile=true", f"parallel.activation_checkpointing={checkpointing}"]
    assert load(LAPTOP, overrides).parallel.compile


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("train.steps", "expected key=value"),
        ("=5", "expected key=value"),
        ("", "expected key=value"),
        ("train.steps.more=5", "steps holds a value, not further keys"),
        ("corpus.sources.0=x", "sources holds a value, not further keys"),
        ("train.steps=[1", "the value is not YAML"),
        ("run.name=2024-13-45", "the value is not YAML: month"),
    ],
)
def test_an_override_that_can_not_be_applied_is_quoted(override: str, reason: str) -> None:
    message = refused(override)
    assert repr(override) in message
    assert reason in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "expected sections such as `train:`, found None"),
        (b"- a\n- b\n", "expected sections such as `train:`"),
        (b"train: [unclosed", "is not YAML"),
        (b"\x00\x01\x02", "is not YAML"),
        (b"\xff\xfe\xfa", "is not YAML"),
        (b"run: {name: 2024-13-45}", "is not YAML"),
        (b"1: 2\n", "1"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    message = refused(path=path)
    assert str(path) in message
    assert reason in message


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    absent = tmp_path / "absent.yaml"
    assert (
        refused(path=absent) == f"configuration {absent} can not be read: No such file or directory"
    )
    assert "Is a directory" in refused(path=tmp_path)


def test_a_file_can_not_run_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"run: !!python/object/apply:os.mkdir ['{tmp_path}/made']")
    assert "is not YAML" in refused(path=path)
    assert not (tmp_path / "made").exists()


def test_a_peak_may_be_a_number_in_any_notation_a_name_or_auto() -> None:
    for text, peak in [("3.12e14", 3.12e14), ("312000000000000", 3.12e14), ("A100", "A100")]:
        assert load(LAPTOP, [f"cluster.peak_flops={text}"]).cluster.peak_flops == peak
    assert load(LAPTOP).cluster.peak_flops == "auto"


def test_a_folder_of_texts_is_a_corpus_with_defaults(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    overrides = ["corpus.vocabulary_size=512", "cluster.address=auto"]
    preparation = load_preparation(str(tmp_path / "mine"), overrides)
    assert preparation.corpus.directory == "data/mine"
    assert preparation.corpus.sources == [str(tmp_path / "mine")]
    assert preparation.corpus.vocabulary_size == 512
    assert preparation.cluster.address == "auto"
    with pytest.raises(ConfigError, match=r"did you mean corpus\.sources"):
        load_preparation(str(tmp_path / "mine"), ["corpus.source=x"])


def test_a_configuration_is_prepared_with_its_own_corpus_and_cluster() -> None:
    remote = load_preparation("s3://ocean/raw/mine/", [])
    assert (remote.corpus.sources, remote.corpus.directory) == (
        ["s3://ocean/raw/mine"],
        "data/mine",
    )
    preparation, config = load_preparation(str(LAPTOP), ["cluster.workers=4"]), load(LAPTOP)
    assert preparation.corpus == config.corpus
    assert preparation.cluster == config.cluster.model_copy(update={"workers": 4})


@pytest.mark.parametrize("key", LEAVES)
def test_every_key_has_a_docstring(key: str) -> None:
    assert LEAVES[key], f"{key} has no docstring beneath it in config.py"


def reads() -> set[tuple[str, str]]:
    """Every `receiver.attribute` that the platform loads outside config.py, by their last names."""
    found = set()
    for path in (ROOT / "platform").rglob("*.py"):
        if path.name == "config.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                match node.value:
                    case ast.Name(id=receiver) | ast.Attribute(attr=receiver):
                        found.add((receiver, node.attr))
    return found


ALIASES = {
    "model": "config",
    "parallel": "config",
    "optimizer": "config",
    "beside": "section",
    "evaluation": "setting",
    "finetune": "setting",
    "guard": "setting",
    "stream": "settings",
    "vision": "config",
}
"""What a section is called where it is passed on alone."""


def is_read(key: str, found: set[tuple[str, str]]) -> bool:
    section, name = key.split(".")[-2:]
    return (section, name) in found or (ALIASES.get(section), name) in found


def test_no_key_is_a_dead_switch() -> None:
    found = reads()
    dead = [key for key in LEAVES if not is_read(key, found)]
    assert dead == ["model.preset"]  # config.py itself fills the others in from it
    assert not is_read("train.no_such_key", found)
    assert not is_read("stream.steps", found)  # though train.steps is read
