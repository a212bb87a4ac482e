"""A configuration of another tool becomes a deployment file, and none of its keys is dropped in silence."""

import ast
import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Base
from typer.testing import CliRunner, Result

from tunewright.cli import deployment_file
from tunewright.cli.imports import TOOLS as NAMES
from tunewright.cli.imports import axolotl, importing, llama_factory, openai, reading, trl, writing
from tunewright.cli.imports.importing import TOOLS, Imported
from tunewright.cli.imports.rules import Treatment
from tunewright.cli.main import app
from tunewright.cli.settings import listed
from tunewright.errors import ConfigError

FOLDER = Path(__file__).parent / "imported"  # configurations in the shapes of public ones, by tool
FILES = sorted(each for each in FOLDER.glob("*/*.*") if each.is_file())
ENTRIES = {
    "axolotl": axolotl.DATASET,
    "llama-factory": llama_factory.DATASET,
    "trl": trl.DATASET,
    "openai": openai.FILE,
}
AXOLOTL = """\
base_model: acme/base
datasets: [{path: data/rows.jsonl, type: chat_template}]
sequence_len: 1024
micro_batch_size: 2
learning_rate: 0.0001
"""
TRL = {"model_name_or_path": "a/b", "dataset_name": "a/c"}
JOB = {"model": "m", "training_file": "file-a"}
Import = Callable[..., Imported]


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Import:
    """`imported(text)` imports a file of this text, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(text: str | dict[str, Any], name: str = "theirs.yml", **options: Any) -> Imported:
        Path(name).write_text(text if isinstance(text, str) else json.dumps(text))
        found = importing.import_file(Path(name), tmp_path, **options)
        writing.check(found, writing.text_of(found), Path("ours.yaml"))
        return found

    return call


def end(found: Imported, key: str) -> Treatment | None:
    """The end of a key."""
    (each,) = [each for each in found.ends if each.key == key]
    return each.treatment


def settings_of(text: str, folder: Path) -> Any:
    """The settings of a written deployment file."""
    (folder / "written.yaml").write_text(text)
    return deployment_file.load(folder / "written.yaml").settings


def leaves(value: Any, key: str = "") -> set[str]:
    """The keys of a configuration as the list names them: those at the top, and those of each data set."""
    found = set()
    for name, inner in value.items():
        found.add(f"{key}{name}")
        if name in {"datasets", "test_datasets"} and isinstance(inner, list):
            for i, item in enumerate(inner):
                found |= {f"{key}{name}[{i}].{each}" for each in item}
    return found


def test_there_are_a_dozen_configurations_of_each_tool() -> None:
    counts = {name: len([file for file in FILES if file.parent.name == name.replace("-", "_")]) for name in NAMES}
    assert counts == {"axolotl": 13, "llama-factory": 14, "trl": 18, "openai": 13}
    assert tuple(TOOLS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_target_of_a_table_is_a_setting(name: str) -> None:
    ours = {each.key for each in listed()}
    rules = [*TOOLS[name].table.values(), *ENTRIES[name].values()]
    assert {target for rule in rules for target in rule.targets} <= ours
    assert TOOLS[name].defaults.keys() <= TOOLS[name].table.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_key_of_a_configuration_ends_somewhere_and_the_file_is_accepted(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = importing.import_file(file, tmp_path, base="acme/open" if file.parent.name == "openai" else None)
    assert found.tool.name.replace("-", "_") == file.parent.name
    ends = {each.key for each in found.ends}
    given = leaves(yaml.safe_load(file.read_text()))
    flat = {key.rpartition(".")[2] for key in ends} | {*found.empty}
    lacking = {key for key in given - ends - {*found.empty} if key not in found.tool.groups}
    assert lacking <= flat | {"hyperparameters"}
    assert [each.key for each in found.ends if each.treatment is None] == []
    assert [each for each in found.ends if "understood" in (each.treatment.why if each.treatment else "")] == []
    assert all(each.treatment.why for each in found.ends if each.treatment and each.treatment.kind != "set"), (
        "what is not set says why"
    )
    for each in found.ends:  # a rule sets only what it says it can
        rule = {**ENTRIES[found.tool.name], **found.tool.table}.get(each.key.rpartition(".")[2])
        if rule and each.treatment and "[" not in each.key and " " not in each.key:
            of_steps = {key.replace("training.", "preference.") for key in rule.targets}  # of training on preferences
            known = {*rule.targets, *of_steps, *openai.FILE["id"].targets, *trl.PATH.targets}
            assert {*each.treatment.values} <= known
    text = writing.text_of(found)
    assert settings_of(text, tmp_path).model.base == found.values["model.base"]
    assert all(line.isprintable() for line in text.splitlines())
    assert "s3cret" not in text + json.dumps(writing.as_json(found, text, None))


def fields(package: str, file: str, *classes: str) -> set[str]:
    """The fields of dataclasses of an installed package, read without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec
    assert spec.origin
    tree = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
    found = [each for each in ast.walk(tree) if isinstance(each, ast.ClassDef) and each.name in classes]
    assert len(found) == len(classes)
    annotated = [each for kind in found for each in kind.body if isinstance(each, ast.AnnAssign)]
    names = {each.target.id for each in annotated if isinstance(each.target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def test_every_argument_of_the_installed_trl_peft_and_transformers_is_known() -> None:
    trainer = fields("transformers", "training_args.py", "TrainingArguments")
    assert trainer - trl.TABLE.keys() - {"framework"} == set()
    assert trainer - llama_factory.TABLE.keys() - {"framework"} == set()
    assert fields("transformers", "training_args_seq2seq.py", "Seq2SeqTrainingArguments") <= llama_factory.TABLE.keys()
    of_trl = (("trainer/sft_config.py", "SFTConfig"), ("trainer/model_config.py", "ModelConfig"))
    preferences = [(f"trainer/{name}_config.py", f"{name.upper()}Config") for name in ("dpo", "kto")]
    preferences += [("experimental/orpo/orpo_config.py", "ORPOConfig")]
    for file, kind in (*of_trl, *preferences, ("trainer/base_config.py", "_BaseConfig")):
        assert fields("trl", file, kind) - trl.TABLE.keys() == set()
    assert fields("trl", "scripts/utils.py", "ScriptArguments", "DatasetMixtureConfig") - trl.TABLE.keys() == set()
    assert fields("trl", "scripts/utils.py", "DatasetConfig") - trl.DATASET.keys() == set()
    assert fields("peft", "tuners/lora/config.py", "LoraConfig") - trl.TABLE.keys() == set()


def test_an_axolotl_configuration_is_the_same_training(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "support.jsonl").touch()
    found = imported((FOLDER / "axolotl" / "alpaca_lora.yml").read_text(), devices=2)
    settings = settings_of(writing.text_of(found), tmp_path)
    assert settings.data.sources[0].model_dump(exclude_defaults=True) == {
        "path": "data/support.jsonl",
        "layout": "alpaca",
    }
    assert (settings.model.base, settings.model.chat_template) == ("acme/tiny-llama", "alpaca")
    assert (settings.model.max_length, settings.model.on_long) == (4096, "quarantine")
    method = settings.method
    assert (method.kind, method.bits, method.rank, method.alpha) == ("qlora", 8, 32, 16)
    assert (method.dropout, method.target) == (0.05, "all-linear")
    training = settings.training
    assert (training.batch, training.micro_batch, training.epochs) == (2 * 4 * 2, 2, 4)
    assert (training.schedule, training.warmup, training.patience) == ("cosine", 0.1, None)
    assert (settings.compute.optimizer, settings.compute.checkpointing) == ("adamw_8bit", True)
    assert settings.split.validation == 0.05


def test_a_llama_factory_configuration_takes_its_data_from_dataset_info(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FOLDER / "llama_factory", tmp_path / "theirs")
    (tmp_path / "theirs" / "data" / "support.jsonl").touch()
    (tmp_path / "theirs" / "data" / "chats").mkdir()
    monkeypatch.chdir(tmp_path)
    found = importing.import_file(Path("theirs/masks.yaml"), tmp_path)
    assert found.sources == [
        {"path": "hub:acme/talks:train_sft", "layout": "messages"},
        {"path": "hub:acme/odd"},
        {
            "path": "hub:acme/orca/en",
            "layout": "alpaca",
            "columns": {"instruction": "question", "output": "response", "system": "system_prompt"},
            "use_as": "validation",
        },
    ]
    lora = importing.import_file(Path("theirs/lora.yaml"), tmp_path / "theirs")
    assert lora.sources[1] == {
        "path": "data/support.jsonl",
        "layout": "alpaca",
        "columns": {
            "instruction": "question",
            "input": "details",
            "output": "reply",
            "history": "before",
            "system": "rules",
        },
    }
    assert (lora.values["method.rank"], lora.values["method.alpha"]) == (8, 16), "twice the rank, as there"
    assert importing.import_file(Path("theirs/padding.yaml"), tmp_path).sources[0]["path"] == "theirs/data/chats/*"


@pytest.mark.parametrize(
    ("data", "ours"),
    [
        ({"dataset": "acme/one"}, {"data.limit": 5}),
        ({"dataset": "acme/one", "eval_dataset": ""}, {"data.limit": 5}),
        ({"dataset": "acme/one,acme/two"}, {}),
        ({"dataset": "acme/one", "eval_dataset": "acme/two"}, {}),
    ],
)
def test_a_limit_of_each_data_set_is_none_of_all_together(
    imported: Import, data: dict[str, str], ours: dict[str, int]
) -> None:
    found = imported({"model_name_or_path": "a/b", "stage": "sft", "dataset_dir": "ONLINE", "max_samples": 5} | data)
    treatment = end(found, "max_samples")
    assert treatment
    assert treatment.values == ours
    assert ours or treatment.kind == "no counterpart"


def test_a_script_of_trl_is_the_same_training(imported: Import, tmp_path: Path) -> None:
    found = imported((FOLDER / "trl" / "by_class.json").read_text(), "theirs.json")
    settings = settings_of(writing.text_of(found), tmp_path)
    assert (settings.method.kind, settings.method.bits, settings.method.dropout) == ("qlora", 8, 0.05)
    assert (settings.method.target, settings.method.rslora) == ("all-linear", True)
    training = settings.training
    assert (training.batch, training.micro_batch, training.epochs) == (8, 2, 2)
    assert (training.schedule, training.warmup, settings.model.max_length) == ("linear", 0, 512), "defaults of TRL"
    assert settings.compute.precision == "float32"
    assert end(found, "SFTConfig.completion_only_loss") == Treatment(
        "not needed", "the loss covers answer tokens only, always"
    )


def test_a_job_of_openai_says_how_its_files_are_fetched(imported: Import) -> None:
    job = json.loads((FOLDER / "openai" / "succeeded.json").read_text())
    found = imported(job, "theirs.json", base="acme/open")
    assert found.name == "support-bot"
    assert found.sources == [
        {"path": "file-a1b2.jsonl", "layout": "messages"},
        {"path": "file-v1.jsonl", "layout": "messages", "use_as": "validation"},
    ]
    assert found.values == {
        "training.epochs": 3,
        "training.batch": 3,
        "training.seed": 42,
        "training.patience": None,
        "model.base": "acme/open",
    }
    assert "curl https://api.openai.com/v1/files/file-a1b2/content" in writing.text_of(found)
    assert [each.key for each in found.ends if each.treatment and each.treatment.kind == "no counterpart"] == [
        "model",
        "method.supervised.hyperparameters.learning_rate_multiplier",
        "metadata",
    ]
    with pytest.raises(ConfigError, match=r'^theirs\.json line 1: model: "gpt-4o-mini-2024-07-18" is .* --base'):
        imported(job, "theirs.json")
    ours = writing.text_of(imported(job | {"organization_id": "tunewright"}, "ours.json", base="acme/open"))
    assert (
        'curl http://127.0.0.1:8000/v1/files/file-a1b2/content -H "Authorization: Bearer $TUNEWRIGHT_API_KEY"' in ours
    )
    hostile = imported(job | {"training_file": "file-a; rm -rf ~"}, "theirs.json", base="acme/open")
    assert "curl https://api.openai.com/v1/files/file-v1" in writing.text_of(hostile)
    assert "files/file-a;" not in writing.text_of(hostile), "no command holds what is no file id"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "openai/dumped.json",
            {"training.epochs": 4, "training.batch": 2, "training.seed": 1},
        ),  # auto in the newer key
        ("openai/legacy.json", {"training.epochs": 4, "training.batch": 4}),
        ("openai/azure.json", {"training.epochs": 3, "training.batch": 4, "training.seed": 105}),
        ("trl/recipe.yaml", {"method.kind": "spectrum", "model.max_length": 1024, "training.batch": 16}),
        ("trl/first_script.yaml", {"method.kind": "qlora", "method.rank": 64, "training.batch": 64 * 16}),
        ("trl/fsdp.yaml", {"method.kind": "full", "model.max_length": 3072, "training.schedule": "constant"}),
        ("trl/experts.yaml", {"method.target": "all-linear", "data.limit": 10_000}),
        ("trl/by_part.json", {"method.kind": "qlora", "method.bits": 4, "method.rank": 64, "training.epochs": 1}),
    ],
)
def test_names_of_own_scripts_and_of_older_apis_are_known(name: str, expected: dict[str, Any], tmp_path: Path) -> None:
    found = importing.import_file(FOLDER / name, tmp_path, base="acme/open")
    assert {key: found.values.get(key) for key in expected} == expected


def test_the_files_of_the_api_that_was_before_hold_prompts_and_completions(tmp_path: Path) -> None:
    found = importing.import_file(FOLDER / "openai" / "legacy.json", tmp_path, base="acme/open")
    files = [(Path(source["path"]).name, source["layout"], source.get("use_as")) for source in found.sources]
    layout = "prompt_completion"
    assert files == [("file-L2.jsonl", layout, None), ("file-L3.jsonl", layout, "validation")]


def test_a_list_of_one_job_is_that_job_and_of_several_is_refused(imported: Import) -> None:
    job = json.loads((FOLDER / "openai" / "failed.json").read_text())
    page = {"object": "list", "data": [job], "has_more": False}
    assert imported(page, "theirs.json", base="acme/open").ends == imported(job, "theirs.json", base="acme/open").ends
    with pytest.raises(
        ConfigError, match=r"^theirs\.json: a list of 2 jobs; accepted: one job; save the one to import"
    ):
        imported(page | {"data": [job, job]}, "theirs.json", base="acme/open")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"adapter": "lora"}, {"kind": "lora"}),
        ({"adapter": "qlora", "load_in_4bit": True}, {"kind": "qlora", "bits": 4}),
        ({"adapter": "lora", "load_in_8bit": True}, {"kind": "qlora", "bits": 8}),
        ({"adapter": "lora", "peft": {"backend": "torchao", "weight_dtype": "nf4"}}, {"kind": "qlora", "bits": 4}),
        ({"lora_r": 8, "lora_target_linear": True}, {"kind": "full"}),
        ({"plugins": ["a.spectrum.SpectrumPlugin"], "spectrum_top_fraction": 0.3}, {"kind": "spectrum", "share": 0.3}),
        ({"adapter": "qlora", "load_in_4bit": True, "peft_init_lora_weights": "pissa"}, {"kind": "qlora", "bits": 4}),
    ],
)
def test_the_method_comes_from_several_keys(imported: Import, more: dict[str, Any], expected: dict[str, Any]) -> None:
    found = imported(yaml.safe_load(AXOLOTL) | more)
    assert found.parameters()["method"] == expected
    assert {each.key for each in found.ends} >= more.keys()


@pytest.mark.parametrize(
    ("more", "ours", "value"),
    [
        ({"warmup_steps": 10, "max_steps": 200}, "training.warmup", 0.05),
        ({"warmup_steps": 0.2}, "training.warmup", 0.2),
        ({"warmup_steps": 10}, "training.warmup", None),
        ({"lr_scheduler": "constant"}, "training.warmup", 0.0),
        ({"lr_scheduler": "rex"}, "training.schedule", None),
        ({"eval_steps": 0.25, "max_steps": 200}, "training.evaluate_every", 50),
        ({"eval_steps": 0.25}, "training.evaluate_every", None),
        ({"val_set_size": 0}, "split.validation", None),
        ({"val_set_size": 200}, "split.validation", None),
        ({"optimizer": "paged_adamw_32bit"}, "compute.optimizer", "adamw"),
        ({"optimizer": "lion_8bit"}, "compute.optimizer", None),
        ({"bf16": False}, "compute.precision", "float32"),
        ({"bf16": False, "fp16": True}, "compute.precision", None),
        ({"gradient_checkpointing": "offload"}, "compute.checkpointing", True),
        ({"sample_packing": False}, "compute.packing", False),
        ({"sample_packing": True}, "compute.packing", None),
        ({"batch_size": 64}, "training.batch", 64),
        ({"max_steps": -1}, "training.max_steps", None),
        ({"chat_template": "phi_35"}, "model.chat_template", "phi3"),
        ({"mlflow_experiment_name": "Our Bot"}, "registry.name", "our-bot"),
    ],
)
def test_units_and_meanings_are_converted(imported: Import, more: dict[str, Any], ours: str, value: Any) -> None:
    found = imported(yaml.safe_load(AXOLOTL) | more)
    assert found.values.get(ours) == value
    if value is None:
        assert any(each.treatment and each.treatment.why for each in found.ends if each.key in more)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lora_r", 4096, "method.rank: 4096 is refused; accepted: 1 to 1024"),
        ("learning_rate", 3, "training.learning_rate: 3 is refused; accepted: more than 0, 1 or less"),
        ("num_epochs", 5000, "training.epochs: 5000 is refused; accepted: more than 0, 1000 or less"),
        ("lora_target_modules", "[0-9]+.(q|k)_proj", 'method.target: "[0-9]+.(q|k)_proj" is refused; accepted: all-'),
        ("mlflow_tracking_uri", "http://me:pw@host:5000", "registry.tracking_uri: "),
        ("learning_rate", "fast", 'training.learning_rate: "fast" is refused; accepted: a number'),
    ],
)
def test_a_value_out_of_our_bounds_is_said_and_left_out(imported: Import, key: str, value: Any, said: str) -> None:
    found = imported(yaml.safe_load(AXOLOTL) | {"adapter": "lora", key: value})
    treatment = end(found, key)
    assert treatment
    assert (treatment.kind, treatment.values) == ("no counterpart", {})
    assert treatment.why.startswith(said)
    assert "me:pw" not in writing.text_of(found)


def test_of_two_keys_for_one_setting_the_list_says_which_decides(imported: Import) -> None:
    found = imported({"model_name_or_path": "a/b", "dataset_name": "a/c", "use_peft": True, "r": 8, "lora_r": 16})
    assert found.values["method.rank"] == 8
    assert end(found, "lora_r") == Treatment("not needed", "r: 8 decides")


def test_a_default_there_without_a_counterpart_is_listed(imported: Import) -> None:
    script = {"model_name_or_path": "a/b", "dataset_name": "a/c", "use_peft": True}
    found = imported(script)
    lost = {each.key for each in found.ends if each.treatment and each.treatment.kind == "no counterpart"}
    assert lost == {"lora_target_modules (not given)", "assistant_only_loss (not given)"}
    assert "# no counterpart: lora_target_modules (not given): PEFT chooses" in writing.text_of(found)
    whole = imported(script | {"lora_target_modules": "all-linear", "assistant_only_loss": True})
    assert not any("(not given)" in each.key for each in whole.ends)
    mixed = imported(AXOLOTL.replace("}]", "}, {path: a/b, type: alpaca}]"))
    assert "model.chat_template" not in mixed.values
    said = end(mixed, "datasets")
    assert said
    assert "all rows share one chat template" in said.why


def test_empty_and_unknown_keys_are_listed(imported: Import) -> None:
    found = imported(AXOLOTL + "wandb_project:\nlora_rnak: 8\n")
    assert found.empty == ["wandb_project"]
    assert end(found, "lora_rnak") is None
    assert "# not known: lora_rnak\n" in writing.text_of(found)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"base_model": "a/b", "rl": "grpo"}, 'rl: "grpo" is training on preferences or rewards'),
        ({"base_model": "a/b", "reward_model": True}, "reward_model: a reward model"),
        ({"base_model": "a/b", "pretraining_dataset": [{"path": "a/c"}]}, "pretraining_dataset: pretraining"),
        ({"base_model": "a/b", "datasets": [{"path": "x", "type": "completion"}]}, 'type: "completion" is pretraining'),
        ({"base_model": "a/b", "processor_type": "AutoProcessor"}, "processor_type: multimodal training"),
        ({"base_model": "a/b", "adapter": "ia3"}, 'adapter: "ia3" is a method that is not offered'),
        ({"model_name_or_path": "a/b", "stage": "ppo"}, 'stage: "ppo" is PPO'),
        ({"model_name_or_path": "a/b", "stage": "dpo", "pref_loss": "simpo"}, '"simpo" is a loss that is not offered'),
        ({"model_name_or_path": "a/b", "stage": "pt"}, 'stage: "pt" is pretraining'),
        ({"model_name_or_path": "a/b", "stage": "sft", "finetuning_type": "freeze"}, 'finetuning_type: "freeze" is'),
        (TRL | {"beta": 0.1, "reward_funcs": "x"}, "reward_funcs: GRPO"),
        (TRL | {"beta": 0.1, "loss_type": "dapo"}, "loss_type: GRPO"),
        (TRL | {"GRPOConfig": {"beta": 0.1}}, "GRPOConfig: GRPO"),
        (TRL | {"loss_type": "simpo", "simpo_gamma": 0.5}, "simpo_gamma: CPO or SimPO"),
        (TRL | {"center_rewards_coefficient": 0.01}, "center_rewards_coefficient: a reward model"),
        (TRL | {"loss_type": ["discopop"]}, 'loss_type: "discopop" is a loss of DPO that is not offered; accepted: '),
        (TRL | {"loss_type": "sft"}, 'loss_type: "sft" is a loss of DPO that is not offered'),
        (TRL | {"loss_type": ["sigmoid", "bco_pair", "sft"]}, "loss_type: sigmoid, bco_pair, sft: one loss is offered"),
        (
            TRL | {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.8, 1.0]},
            "sigmoid, sft with loss_weights [0.8, 1.0]: one loss is offered, of weight 1, with or without sft",
        ),
        (TRL | {"loss_type": "apo_zero_unpaired"}, '"apo_zero_unpaired" is a loss of KTO that is not offered'),
        ({"model_name_or_path": "a/b", "dataset_name": "a/c", "num_generations": 8}, "num_generations: GRPO"),
        (JOB | {"method": {"type": "reinforcement"}}, 'method.type: "reinforcement" is training on rewards'),
        (JOB | {"method": {"type": "ppo"}}, 'method.type: "ppo" is no known method of training'),
    ],
)
def test_what_is_no_supervised_fine_tuning_is_refused_by_name(
    imported: Import, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        imported(values)
    assert str(error.value).startswith("theirs.yml line ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_data_sets_of_preferences_and_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FOLDER / "llama_factory", tmp_path, dirs_exist_ok=True)
    for name, what in (
        ("pairs", "ranking: preference pairs, which need stage: dpo"),
        ("pictures", "images: multimodal training"),
    ):
        Path("x.yaml").write_text(f"model_name_or_path: a/b\nstage: sft\ndataset: {name}\n")
        with pytest.raises(ConfigError, match=what):
            importing.import_file(Path("x.yaml"), tmp_path)
    Path("x.yaml").write_text("model_name_or_path: a/b\nstage: sft\ndataset: suport\n")
    with pytest.raises(ConfigError, match=r'^x\.yaml line 3: dataset: "suport" is not in .* did you mean support\?'):
        importing.import_file(Path("x.yaml"), tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "null is refused; accepted: a mapping of arguments"),
        (b"[1, 2]", "[1, 2] is refused; accepted: a mapping of arguments"),
        (b"a: b: c\n", "line 1 column 5: found ':' where no key can stand"),
        (b"base_model: a\nbase_model: b\n", "line 2 column 1: duplicate key base_model, first on line 1"),
        (b"a: !!python/object:os.system x\n", "line 1 column 4: the tag"),
        (b"x: &a [*a]\n", "nested more than 50 levels deep"),
        (b"x: \xff\n", "line 1: byte 0xff is not UTF-8"),
        (b"x: " + b"1" * 1_000_001, "larger than 1,000,000 bytes"),
        (b"deployments: []\n", "line 1: deployments: this is a deployment file already"),
        (b"model: x\n", "the keys do not tell which tool it is for; say it with --from: axolotl, "),
        (b"base_model: a/b\ndatasets: x\n", 'line 2: datasets: "x" is refused; accepted: a list of mappings'),
        (b"base_model: a/b\nlearning_rate: 1\n", "no data set is named; accepted: at least one data set to train on"),
        (b"base_model: a/b\ndatasets: [{path: ''}]\n", "datasets[0]: the path is empty; accepted: at least one"),
        (b"base_model: a/b\nadapter: [x]\ndatasets: [{path: a/b}]\n", "a value is of another type than Axolotl takes"),
        (b"datasets: [{path: a/b}]\nsequence_len: 8\n", "base_model: missing; name a base with --base"),
        (b"dataset_name: a/b\nmax_steps: -1\n", "model_name_or_path: missing; name a base with --base"),
        (
            b"model_name_or_path: a/b\ndataset_name: imdb\n",
            "dataset_name: neither a file here nor a data set of the hub",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "theirs.yml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        importing.import_file(file, tmp_path)
    assert str(error.value).startswith(str(file))
    assert said in str(error.value)


def test_json_with_tabs_and_escaped_pairs_is_read(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text('{\n\t"suffix": "\\ud83d\\ude00 bot",\n\t"model": "m"\n}')
    document = reading.parse(file)
    assert document.value == {"suffix": "😀 bot", "model": "m"}
    assert document.place("model") == f"{file} line 3"


def test_paths_start_at_the_folder_of_the_written_file(imported: Import, tmp_path: Path) -> None:
    for folder in ("data", "bases", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "rows.jsonl").touch()
    (tmp_path / "theirs.yml").write_text(AXOLOTL.replace("acme/base", "bases"))
    found = importing.import_file(Path("theirs.yml"), Path("out"))
    assert (found.sources[0]["path"], found.values["model.base"]) == ("../data/rows.jsonl", "../bases")
    here = imported(AXOLOTL.replace("acme/base", "./bases").replace("data/rows.jsonl", "data/others.jsonl"))
    assert (here.sources[0]["path"], here.values["model.base"]) == ("data/others.jsonl", "./bases")
    assert end(here, "datasets[0].path") == Treatment(
        "set", "not found here: check the path", {"data.sources[].path": "data/others.jsonl"}
    )


@pytest.mark.parametrize("base", ["./bases/gone", "../gone", "/bases/gone"])
def test_a_folder_of_a_base_that_is_missing_stays_a_folder(imported: Import, base: str) -> None:
    found = imported(AXOLOTL.replace("acme/base", base))
    assert end(found, "base_model") == Treatment("set", "not found here: check the path", {"model.base": base})


def test_a_misspelt_type_of_a_data_set_is_told(imported: Import) -> None:
    said = end(imported(AXOLOTL.replace("type: chat_template", "type: alpacca")), "datasets[0].type")
    assert said and said.why.startswith("a typing error? the type alpaca is known; the layout is detected")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["import", *arguments])


def test_the_file_goes_to_stdout_and_the_list_beside_it(imported: Import) -> None:
    imported(AXOLOTL + "weight_decay: 0.1\nwandb_project: ours\n")
    result = call("theirs.yml")
    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout)["deployments"][0]["parameters"]["model"]["base"] == "acme/base"
    assert "weight_decay=0.1: weight decay is 0 here" in result.stderr
    assert "wandb_project: MLflow records every run" in result.stderr
    said = json.loads(call("theirs.yml", "--json").stdout)
    assert said["text"] == result.stdout
    assert {
        "key": "weight_decay",
        "becomes": "no counterpart",
        "settings": {},
        "why": "weight decay is 0 here",
    } in said["keys"]


def test_a_file_is_overwritten_only_with_force(imported: Import) -> None:
    imported(AXOLOTL)
    assert call("theirs.yml", "--output", "ours.yaml").exit_code == 0
    Path("ours.yaml").write_text("mine")
    refused = call("theirs.yml", "--output", "ours.yaml")
    assert (refused.exit_code, Path("ours.yaml").read_text()) == (2, "mine")
    assert refused.stderr == "error: ours.yaml: exists; accepted: another --output, or --force to overwrite it\n"
    assert call("theirs.yml", "--output", "ours.yaml", "--force").exit_code == 0
    assert deployment_file.load(Path("ours.yaml")).settings.model.base == "acme/base"
    assert sorted(each.name for each in Path().iterdir()) == ["ours.yaml", "theirs.yml"]
    assert "there is no folder gone" in call("theirs.yml", "--output", "gone/ours.yaml").stderr
    assert 'error: --from "axolot": did you mean axolotl? accepted: ' in call("theirs.yml", "--from", "axolot").stderr


def test_a_tool_that_was_named_is_taken(imported: Import) -> None:
    text = "model_name_or_path: a/b\ndataset_name: a/c\n"
    assert imported(text).tool.name == "trl"
    with pytest.raises(ConfigError, match="no data set is named"):
        imported(text, asked="llama-factory")


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_accepts_what_was_imported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Base
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": f"Where is {i}?"}, {"role": "assistant", "content": "Here."}]}
        for i in range(30)
    ]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    info: dict[str, Any] = {
        "rows": {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}}
    }
    info["rows"]["tags"] = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
    }
    Path("dataset_info.json").write_text(json.dumps(info))
    base = str(tiny_base.folder)
    theirs = {
        "axolotl": {"base_model": base, "datasets": [{"path": "rows.jsonl", "type": "chat_template"}]},
        "llama-factory": {"model_name_or_path": base, "stage": "sft", "dataset": "rows", "dataset_dir": "."},
        "trl": {"model_name_or_path": base, "dataset_name": "rows.jsonl", "use_peft": True},
        "openai": {"model": "gpt-4o", "training_file": "rows.jsonl", "hyperparameters": {"n_epochs": 1}},
    }[name]
    Path("theirs.json").write_text(json.dumps(theirs))
    given = ["--base", base] if name == "openai" else []
    assert call("theirs.json", "--output", "ours.yaml", *given).exit_code == 0
    result = CliRunner().invoke(app, ["plan", "ours.yaml", "--until", "split"])
    assert result.exit_code == 0, result.output
    assert re.search(r"split +run", result.stdout)


def test_preference_training_of_llama_factory_becomes_the_section_preference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    info = {"pairs": {"file_name": "pairs.json", "ranking": True, "columns": columns}, "rows": {"file_name": "r.json"}}
    Path("dataset_info.json").write_text(json.dumps(info))
    Path("pairs.json").write_text("[]")
    given = "model_name_or_path: a/b\nstage: dpo\ndataset: pairs\npref_beta: 0.3\npref_ftx: 0.5\nlearning_rate: 5e-6\n"
    Path("x.yaml").write_text(f"{given}pref_loss: ipo\nmax_steps: 40\n")
    found = importing.import_file(Path("x.yaml"), tmp_path)
    assert {key: value for key, value in found.values.items() if key.startswith("preference.")} == {
        "preference.method": "dpo",
        "preference.loss": "ipo",
        "preference.beta": 0.3,
        "preference.sft_weight": 0.5,
        "preference.learning_rate": 5e-6,
        "preference.max_steps": 40,
        "preference.after_sft": False,
    }
    assert not {"training.learning_rate", "training.max_steps", "training.epochs"} & found.values.keys()
    (source,) = found.sources
    assert source["layout"] == "preference"
    assert source["columns"] == {"instruction": "question", "chosen": "better", "rejected": "worse"}
    assert "learning_rate: 5.0e-06" in writing.text_of(found).partition("preference:")[2]

    Path("x.yaml").write_text(f"{given}pref_loss: orpo\n")
    orpo = importing.import_file(Path("x.yaml"), tmp_path).values
    assert orpo["preference.method"] == "orpo" and orpo["preference.epochs"] == 3
    assert not {"preference.loss", "preference.sft_weight", "preference.after_sft"} & orpo.keys()

    Path("x.yaml").write_text(given.replace("dataset: pairs", "dataset: rows"))
    with pytest.raises(ConfigError, match="no ranking: stage dpo needs preference pairs"):
        importing.import_file(Path("x.yaml"), tmp_path)


def test_labelled_answers_of_llama_factory_are_trained_by_kto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    columns = {"messages": "talk", "kto_tag": "liked"}
    info = {"thumbs": {"file_name": "t.json", "formatting": "sharegpt", "columns": columns}, "rows": {"file_name": "r"}}
    Path("dataset_info.json").write_text(json.dumps(info))
    Path("t.json").write_text("[]")
    given = "model_name_or_path: a/b\nstage: kto\ndataset: thumbs\npref_beta: 0.3\n"
    Path("x.yaml").write_text(f"{given}kto_rejected_weight: 2.0\npref_ftx: 0.5\nlearning_rate: 5e-6\n")
    found = importing.import_file(Path("x.yaml"), tmp_path)
    assert {key: value for key, value in found.values.items() if key.startswith("preference.")} == {
        "preference.method": "kto",
        "preference.beta": 0.3,
        "preference.undesirable_weight": 2.0,
        "preference.learning_rate": 5e-6,
        "preference.epochs": 3.0,
        "preference.after_sft": False,
    }
    (source,) = found.sources
    assert (source["layout"], source["columns"]) == ("sharegpt", {"conversations": "talk", "label": "liked"})
    assert "# no counterpart: pref_ftx=0.5: kto adds no loss" in writing.text_of(found)

    Path("x.yaml").write_text(given.replace("dataset: thumbs", "dataset: rows"))
    with pytest.raises(ConfigError, match="no kto_tag: stage kto needs labelled answers"):
        importing.import_file(Path("x.yaml"), tmp_path)
    Path("x.yaml").write_text(given.replace("stage: kto", "stage: sft"))
    with pytest.raises(ConfigError, match="kto_tag: labelled answers, which need stage: kto"):
        importing.import_file(Path("x.yaml"), tmp_path)


KTO = {"method": "kto", "beta": 0.2, "undesirable_weight": 1.5, "after_sft": False}


@pytest.mark.parametrize(
    ("rl", "kind", "values", "columns"),
    [
        ("dpo", "chat_template.default", {"method": "dpo", "loss": "sigmoid", "beta": 0.2, "after_sft": False}, {}),
        (
            "ipo",
            "chatml.intel",
            {"method": "dpo", "loss": "ipo", "beta": 0.2, "after_sft": False},
            {"prompt": "question"},
        ),
        ("orpo", {"field_prompt": "q"}, {"method": "orpo", "beta": 0.05}, {"prompt": "q"}),
        ("kto", "llama3.argilla", KTO, {"prompt": "instruction", "label": "label"}),
        ("kto", {"field_prompt": "q", "field_label": "up"}, KTO, {"prompt": "q", "label": "up"}),
    ],
)
def test_preference_training_of_axolotl_becomes_the_section_preference(
    imported: Import, rl: str, kind: Any, values: dict[str, Any], columns: dict[str, str]
) -> None:
    found = imported(
        {
            "base_model": "a/b",
            "rl": rl,
            "rl_beta": 0.2,
            "orpo_alpha": 0.05,
            "kto_undesirable_weight": 1.5,
            "micro_batch_size": 2,
            "learning_rate": 1e-5,
            "num_epochs": 2,
            "datasets": [{"path": "acme/pairs", "type": kind, "field_chosen": columns.get("chosen")}],
        }
    )
    there = {key.partition(".")[2]: value for key, value in found.values.items() if key.startswith("preference.")}
    assert there == values | {"learning_rate": 1e-5, "epochs": 2}
    (source,) = found.sources
    assert source["layout"] == ("prompt_completion" if rl == "kto" else "preference")
    assert source.get("columns", {}) == columns


def of_preferences(found: Imported) -> dict[str, Any]:
    return {key.partition(".")[2]: value for key, value in found.values.items() if key.startswith("preference.")}


DPO = {"method": "dpo", "after_sft": False, "learning_rate": 1e-6, "epochs": 3.0}


@pytest.mark.parametrize(
    ("theirs", "tool", "values", "told"),
    [
        ({"beta": 0.05}, None, DPO | {"beta": 0.05}, "DPO, told by beta"),
        ({"max_prompt_length": 512}, None, DPO, "DPO, told by max_prompt_length"),
        ({"DPOConfig": {"max_steps": 9}}, None, {**DPO, "max_steps": 9}, "DPO, told by DPOConfig"),
        ({}, "trl-dpo", DPO, "DPO, told by --from"),
        ({"loss_type": "ipo", "beta": 0.4}, None, DPO | {"loss": "ipo", "beta": 0.4}, "DPO, told by loss_type"),
        ({"loss_type": ["hinge"]}, None, DPO | {"loss": "hinge"}, "DPO, told by loss_type"),
        ({"rpo_alpha": 0.5}, None, DPO | {"sft_weight": 0.5}, "DPO, told by rpo_alpha"),
        ({"loss_type": ["sft", "ipo"]}, None, DPO | {"loss": "ipo", "sft_weight": 1.0}, "DPO, told by loss_type"),
        (
            {"loss_type": "robust", "label_smoothing": 0.2},
            None,
            DPO | {"loss": "robust", "label_smoothing": 0.2},
            "DPO, told by loss_type",
        ),
        (
            {"loss_type": "exo_pair"},
            None,
            DPO | {"loss": "exo_pair", "label_smoothing": 0.001},
            "DPO, told by loss_type",
        ),
        ({"label_smoothing": 0.2}, None, DPO, "DPO, told by label_smoothing"),
        (
            {"beta": 0.2, "undesirable_weight": 2.0, "rpo_alpha": 1.0},
            None,
            DPO | {"method": "kto", "beta": 0.2, "undesirable_weight": 2.0},
            "KTO, told by undesirable_weight",
        ),
        ({"loss_type": "kto"}, None, DPO | {"method": "kto"}, "KTO, told by loss_type"),
        ({"beta": 0.2}, "trl-kto", DPO | {"method": "kto", "beta": 0.2}, "KTO, told by --from"),
        (
            {"beta": 0.2, "desirable_weight": 2.0},
            "trl-orpo",
            {"method": "orpo", "beta": 0.2, "learning_rate": 1e-6, "epochs": 3.0},
            "ORPO, told by --from",
        ),
    ],
)
def test_preference_training_of_trl_becomes_the_section_preference(
    imported: Import, theirs: dict[str, Any], tool: str | None, values: dict[str, Any], told: str
) -> None:
    found = imported(TRL | theirs, asked=tool)
    values = {key: value for key, value in values.items() if key != "epochs" or "max_steps" not in values}
    assert (found.tool.name, of_preferences(found)) == ("trl", values)
    decided = end(found, told)
    assert decided
    assert decided.values == {"preference.method": values["method"]}
    assert not {"training.learning_rate", "training.epochs", "training.max_steps"} & found.values.keys()


def test_what_two_methods_of_trl_share_is_taken_for_dpo_with_a_note(imported: Import) -> None:
    text = writing.text_of(imported(TRL | {"beta": 0.1, "precompute_ref_log_probs": True}))
    note = "DPO, told by beta: KTO and ORPO have such keys too; if it is one of them, say --from trl-kto or trl-orpo"
    assert f"# note: {note}\n" in text
    assert f"method: dpo  # {note}\n" in text
    assert "note: DPO" not in writing.text_of(imported(TRL | {"rpo_alpha": 1.0, "beta": 0.1}))
    nothing = end(imported(TRL), "SFT, told by no key")
    assert nothing
    assert nothing.why == "if it is of DPO, KTO or ORPO, say --from trl-dpo, trl-kto or trl-orpo"
    assert "SFT, told by no key" not in [each.key for each in imported(TRL | {"packing": True}).ends]


@pytest.mark.parametrize(
    ("theirs", "kind"),
    [
        ({"use_weighting": True}, "no counterpart"),
        ({"ld_alpha": 0.5}, "no counterpart"),
        ({"ld_alpha": 1.0}, "not needed"),
        ({"f_divergence_type": "js_divergence"}, "no counterpart"),
        ({"f_divergence_type": "FDivergenceType.REVERSE_KL"}, "not needed"),
        ({"sync_ref_model": True}, "no counterpart"),
        ({"ref_model_sync_steps": 64, "sync_ref_model": True}, "no counterpart"),
        ({"ref_model_sync_steps": 64}, "not needed"),
        ({"ref_model": "a/other", "beta": 0.1}, "no counterpart"),
        ({"ref_model": "a/b", "beta": 0.1}, "not needed"),
        ({"reference_free": True}, "no counterpart"),
        ({"label_smoothing": 0.1, "loss_type": "sigmoid"}, "no counterpart"),
        ({"precompute_ref_log_probs": True}, "not needed"),
        ({"padding_free": False, "beta": 0.1}, "not needed"),
        ({"padding_free": False}, "set"),
        ({"desirable_weight": 2000.0}, "no counterpart"),
        ({"lora_dropout": 0.1, "use_peft": True, "beta": 0.1}, "not needed"),
        ({"lora_dropout": 0.1, "use_peft": True, "beta": 0.1, "disable_dropout": False}, "set"),
    ],
)
def test_what_preference_training_of_trl_has_alone_is_said(imported: Import, theirs: dict[str, Any], kind: str) -> None:
    treatment = end(imported(TRL | theirs), next(iter(theirs)))
    assert treatment
    assert treatment.kind == kind


def test_a_job_of_openai_on_preferences_becomes_the_section_preference(imported: Import) -> None:
    job = json.loads((FOLDER / "openai" / "preferences.json").read_text())
    found = imported(job, "theirs.json", base="acme/open")
    assert of_preferences(found) == {"method": "dpo", "beta": 0.3, "epochs": 2, "after_sft": False}
    assert [source["layout"] for source in found.sources] == ["preference", "preference"]
    rate = end(found, "method.dpo.hyperparameters.learning_rate_multiplier")
    assert rate == Treatment("not needed", "chosen there; preference.learning_rate stays at its default")
    job["method"]["dpo"]["hyperparameters"] = {"beta": "auto", "n_epochs": "auto", "learning_rate_multiplier": 2.0}
    chosen = imported(job, "theirs.json", base="acme/open")
    assert of_preferences(chosen) == {"method": "dpo", "epochs": 2, "after_sft": False}, "epochs of the older key"
    rate = end(chosen, "method.dpo.hyperparameters.learning_rate_multiplier")
    assert rate
    assert rate.kind == "no counterpart"
    supervised = JOB | {"method": {"type": "supervised", "supervised": {"hyperparameters": {"beta": 0.3}}}}
    assert of_preferences(imported(supervised, "theirs.json", base="acme/open")) == {}


@pytest.mark.parametrize("name", ["trl", "openai"])
def test_the_plan_accepts_imported_preference_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Base
) -> None:
    monkeypatch.chdir(tmp_path)
    base = str(tiny_base.folder)
    pairs = [
        {
            "input": {"messages": [{"role": "user", "content": f"Where is {i}?"}]},
            "preferred_output": [{"role": "assistant", "content": "Here."}],
            "non_preferred_output": [{"role": "assistant", "content": "There."}],
        }
        for i in range(30)
    ]
    Path("pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1}}}
    theirs = {
        "trl": {"model_name_or_path": base, "dataset_name": "pairs.jsonl", "beta": 0.2},
        "openai": {"model": "gpt-4o", "training_file": "pairs.jsonl", "method": method},
    }[name]
    Path("theirs.json").write_text(json.dumps(theirs))
    given = ["--base", base] if name == "openai" else ["--from", "trl-dpo"]
    assert call("theirs.json", "--output", "ours.yaml", *given).exit_code == 0
    result = CliRunner().invoke(app, ["run", "ours.yaml", "--until", "split"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["plan", "ours.yaml"])
    assert result.exit_code == 0, result.output
    assert re.search(r"prefer +run", result.stdout), result.stdout
