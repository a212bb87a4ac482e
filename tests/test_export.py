"""An exported folder answers as the registered version does, without the project; or nothing is written."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import exporting
import pytest
import registered
import torch
import without_project
import yaml
from exporting import refused
from huggingface_hub import ModelCard
from make_payloads import make_comparison, make_verdict_details
from registered import QUESTIONS
from safetensors.torch import load_file, save_file

from tunewright.artifacts import Base, Registered, RunArtifacts
from tunewright.config import Registry
from tunewright.errors import TunewrightError
from tunewright.export import card, evidence, parity, weights
from tunewright.export.evidence import CardEvidence
from tunewright.export.parity import ExpectedAnswer
from tunewright.export.unfinished import unfinished
from tunewright.modeling.models import load_model
from tunewright.registry.rehearsal import RehearsalRow
from tunewright.registry.tracking import connected
from tunewright.serving import TRAINED

Make = Callable[..., Registered]
Export = Callable[..., Any]
CODE = re.compile(r"```python\n(.*?)```", re.S)


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """`export("--to", "merged")` exports version 1 of triage to the folder `out`; the result of the command."""
    monkeypatch.setattr(logging.getLogger("tunewright"), "handlers", [])

    def call(*options: str, folder: Path = tmp_path / "out") -> Any:
        return exporting.export(folder, *options)

    return call


def ask_as_the_card_says(folder: Path, elsewhere: Path) -> list[str]:
    """The answers that the code of README.md prints, in a process that has neither the project nor a network."""
    (code,) = CODE.findall((folder / "README.md").read_text(encoding="utf-8"))
    loading, asking = code.split("messages = ")
    looped = "".join(f"    {line}\n" for line in f"messages = {asking}".splitlines())
    script = f"{loading}\nfor question in {QUESTIONS!r}:\n{looped}".replace('"..."', "question")
    assert script.count("question") > 1, code
    environment = without_project.environment(elsewhere) | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_merged_export_answers_as_the_version_without_the_project(
    register_candidate: Make, export: Export, said: list[str], tuned: Path, tmp_path: Path
) -> None:
    register_candidate()
    (tmp_path / "out").mkdir()  # empty
    result = export("--to", "merged", "--license", "apache-2.0", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["name"], found["version"], found["form"], found["dtype"]) == ("triage", "1", "merged", "float32")
    assert found["parity"]["rows"] == found["parity"]["same"] == len(QUESTIONS)
    assert found["parity"]["largest_difference"] < 1e-4
    assert found["next"] == [f"vllm serve {tmp_path / 'out'} --served-model-name triage"]
    files = {each["path"]: each["bytes"] for each in found["files"]}
    needed = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert needed < files.keys()
    assert "adapter_config.json" not in files
    assert found["bytes"] == sum(files.values()) == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    contract = json.loads((tuned / "contract.json").read_text())
    assert settings["eos_token_id"] == contract["stop_token_ids"]
    assert (settings["do_sample"], settings["max_new_tokens"]) == (False, 6)
    assert [line.strip() for line in ask_as_the_card_says(tmp_path / "out", tmp_path / "elsewhere")] == [
        line.strip() for line in said
    ]
    assert no_paths(tmp_path / "out", tmp_path)


def no_paths(folder: Path, machine: Path) -> bool:
    """Whether no file of a folder names a path of the machine."""
    return not any(str(machine).encode() in file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_an_adapter_is_exported_with_a_base_that_no_stranger_can_name(
    register_candidate: Make, export: Export, said: list[str], tiny_base: Base, tmp_path: Path
) -> None:
    register_candidate()
    result = export("--to", "adapter")
    assert result.exit_code == 0, result.output
    assert "3 of 3 test rows get the same tokens" in result.output
    folder = tmp_path / "out"
    adapter = json.loads((folder / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter.get("revision")) == ("base", None)
    assert load_file(folder / "base" / "model.safetensors").keys() == (
        load_file(tiny_base.weights / "model.safetensors").keys()
    )
    assert [line.strip() for line in ask_as_the_card_says(folder, tmp_path / "elsewhere")] == [
        line.strip() for line in said
    ]
    assert no_paths(folder, tiny_base.weights)


def test_a_slow_export_says_how_far_it_is(
    register_candidate: Make, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_candidate()
    monkeypatch.setattr(parity, "ANSWER_SECONDS", 0.0)
    monkeypatch.setattr(parity, "CHECK_SECONDS", 0.5)
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    result = export("--to", "merged")
    assert result.exit_code == 0, result.output
    slowed = rf"; the machine is busy: 1000\.0 processes want its {os.cpu_count()} processors"
    assert re.findall(rf"(\d) of 3 test rows answered in \d+ s{slowed}", result.output) == ["1", "2"]
    assert re.search(rf"still comparing after \d+ s{slowed}", result.output)


def test_an_adapter_names_a_base_on_the_hub_by_its_commit(
    register_candidate: Make, export: Export, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = shutil.copytree(tiny_base.weights, tmp_path / "snapshots" / "abc123")
    monkeypatch.setattr("tunewright.serving.download", lambda *_: snapshot)
    register_candidate(base=tiny_base.model_copy(update={"reference": "org/tiny"}))
    result = export("--to", "adapter")
    assert result.exit_code == 0, result.output
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("org/tiny", "abc123")
    assert not (tmp_path / "out" / "base").exists()
    card: Any = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == "org/tiny"
    assert 'from_pretrained("org/tiny", revision="abc123", dtype="float32")' in card.text


def test_an_export_for_vllm_is_an_adapter_with_a_configuration_that_is_read_in_its_folder(
    register_candidate: Make, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_candidate()
    result = export("--to", "vllm", "--json")
    assert result.exit_code == 0, result.output
    found, folder = json.loads(result.stdout.splitlines()[-1]), tmp_path / "out"
    assert (found["form"], found["base"], found["parity"]["same"]) == ("vllm", "base", len(QUESTIONS))
    command = "vllm serve ./base --config vllm.yaml"
    assert found["next"] == [f"cd {folder} && {command}"]
    settings = yaml.safe_load((folder / "vllm.yaml").read_text())
    assert settings == {
        "model": "./base",
        "served-model-name": "triage-base",
        "dtype": "float32",
        "tokenizer": ".",
        "chat-template": "./chat_template.jinja",
        "generation-config": ".",
        "override-generation-config": '{"temperature": 0}',
        "enable-lora": True,
        "lora-modules": ["triage=."],
        "max-lora-rank": 8,
    }
    monkeypatch.chdir(folder)
    assert all(Path(settings[key]).exists() for key in ("model", "tokenizer", "chat-template"))
    assert json.loads(Path(settings["generation-config"], "generation_config.json").read_text())["eos_token_id"]
    card = (folder / "README.md").read_text()
    assert f"`{command}`" in card
    assert "The fine-tune answers as `triage`, its base as `triage-base`." in card
    assert no_paths(folder, tmp_path)


def trained(tuned: Path, base: Base, folder: Path, kind: str) -> Path:
    """The output of train where one tensor of the base, or all of it, was trained; or nothing was."""
    made = shutil.copytree(tuned, folder)
    shutil.rmtree(made / "model")
    (made / "model").mkdir()
    name = "model.layers.1.mlp.down_proj.weight"
    model = load_model(base)
    generator = torch.Generator().manual_seed(3)
    weight = model.get_parameter(name).data
    weight.add_(torch.randn(weight.shape, generator=generator) * (kind != "nothing"))
    if kind == "full":
        model.save_pretrained(made / "model")
    else:
        save_file({name: weight}, made / "model" / TRAINED, metadata={"format": "pt"})
    return made


def register_trained(register_candidate: Any, base: Base, made: Path, said: list[str] | None = None) -> None:
    """Registers it in place of the adapter of the fixture."""
    tmp_path, _, _, splits = register_candidate.args
    registered.register_candidate(tmp_path, made, said or registered.ask(base, made), splits, base=base)


@pytest.mark.parametrize("kind", ["tensors", "full"])
def test_weights_that_were_trained_without_an_adapter_are_exported_merged_alone(
    kind: str, register_candidate: Make, export: Export, tuned: Path, tiny_base: Base, tmp_path: Path
) -> None:
    register_trained(register_candidate, tiny_base, trained(tuned, tiny_base, tmp_path / "trained", kind))
    error = refused(export("--to", "adapter"), tmp_path / "out", code=2)
    assert error == (
        "error: --to adapter: models:/triage/1 has no adapter, as weights of the base itself were trained; use --to "
        "merged"
    )
    result = export("--to", "vllm", "--dtype", "bfloat16")  # merged, as there is no adapter
    assert result.exit_code == 0, result.output
    settings = yaml.safe_load((tmp_path / "out" / "vllm.yaml").read_text())
    assert (settings["model"], settings["served-model-name"], settings["dtype"]) == (".", "triage", "bfloat16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def test_what_was_trained_but_changes_nothing_is_refused(
    register_candidate: Make,
    export: Export,
    tuned: Path,
    said: list[str],
    tiny_base: Base,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = shutil.copytree(tuned, tmp_path / "zeros")
    file = made / "model" / "adapter_model.safetensors"
    zeros = {name: tensor * ("lora_B" not in name) for name, tensor in load_file(file).items()}
    save_file(zeros, file, metadata={"format": "pt"})
    monkeypatch.setattr("tunewright.registry.rehearsal._rehearse", lambda *_: 0)
    register_trained(register_candidate, tiny_base, made, said)
    assert refused(export("--to", "merged"), tmp_path / "out") == (
        "error: models:/triage/1: its adapter changes nothing: every logit of 3 prompts equals the base's; nothing was "
        "exported"
    )


def test_single_tensors_that_equal_the_base_are_refused(tuned: Path, tiny_base: Base, tmp_path: Path) -> None:
    made = trained(tuned, tiny_base, tmp_path / "trained", "nothing") / "model"
    loaded: Any = SimpleNamespace(model=load_model(tiny_base, made), base=tiny_base.weights)
    with pytest.raises(TunewrightError, match=r"trained\.safetensors changes nothing: every tensor in it equals"):
        parity.require_effect("models:/triage/1", loaded, made, [[1]])


def test_weights_that_differ_from_the_version_block_the_export(
    register_candidate: Make, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_candidate()
    write = weights.write_settings

    def damage(folder: Path, *given: Any) -> None:
        write(folder, *given)
        tensors = load_file(folder / "model.safetensors")
        name = "model.layers.1.mlp.down_proj.weight"
        save_file(tensors | {name: -5 * tensors[name]}, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(weights, "write_settings", damage)
    error = refused(export("--to", "merged"), tmp_path / "out")
    assert re.fullmatch(
        r"error: the exported model is not the registered version: \d of 3 test rows get another answer; row \w{12}: "
        r"first difference at token \d: expected .+, got .+; nothing was exported",
        error,
    )


def test_a_version_that_was_altered_is_refused_before_it_is_loaded(
    register_candidate: Make, export: Export, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_candidate()
    (weights_file,) = (home / "mlartifacts").rglob("adapter_model.safetensors")
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"\x01")
    monkeypatch.setattr("tunewright.registry.rehearsal.load", lambda *_: pytest.fail("it was loaded"))
    error = refused(export("--to", "merged"), tmp_path / "out")
    assert "artifacts/model/adapter_model.safetensors was altered since the version was registered" in error


def test_a_disk_without_room_is_refused_with_the_bytes(
    register_candidate: Make, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_candidate()
    monkeypatch.setattr("tunewright.export.weights.shutil.disk_usage", lambda _: SimpleNamespace(free=999))
    error = refused(export("--to", "adapter"), tmp_path / "out")
    assert re.search(r": 999 bytes are free on its disk; needed: 64,\d{3},\d{3}; free some", error)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--to", "merge"), '--to "merge": did you mean merged? Accepted: merged, adapter, vllm, gguf, ollama'),
        (("--to", "merged", "--dtype", "int8"), '--to merged --dtype "int8": accepted: float32, bfloat16, float16'),
        (("--to", "adapter", "--dtype", "q8_0"), '--to adapter --dtype "q8_0": accepted: float32, bfloat16, float16'),
        (("--to", "merged", "--version", "7"), 'version "7" of triage: no such version; accepted: 1'),
        (("--to", "merged", "--alias", "pilot"), "no version of triage is @pilot: give --version 1, the only one"),
    ],
)
def test_options_are_refused_in_a_line(
    options: tuple[str, ...], error: str, request: pytest.FixtureRequest, export: Export, tmp_path: Path
) -> None:
    if "triage" in error:
        request.getfixturevalue("register_candidate")()
    assert refused(export(*options), tmp_path / "out", code=2).lower() == f"error: {error}".lower()


def test_a_folder_with_files_is_left_as_it_is(export: Export, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    result = export("--to", "merged", folder=tmp_path / "notes")
    assert (result.exit_code, (tmp_path / "notes" / "mine.txt").read_text()) == (2, "mine")
    assert "notes: is not empty; accepted: a folder that is not there yet, or is empty" in result.stderr
    result = export("--to", "merged", folder=tmp_path / "notes" / "mine.txt")
    assert "mine.txt: is not a folder; accepted:" in result.stderr


def test_what_a_killed_export_left_is_removed_by_the_next_and_what_another_writes_is_not(tmp_path: Path) -> None:
    killed = tmp_path / ".out.1.unfinished"
    killed.mkdir()
    with unfinished(tmp_path / "out") as other:
        assert not killed.exists()
        with pytest.raises(KeyboardInterrupt), unfinished(tmp_path / "out") as made:
            (made / "file").write_text("half")
            raise KeyboardInterrupt
        assert [*tmp_path.iterdir()] == [other]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def written(languages: dict[str, int] | None = None, **changes: Any) -> str:
    """The card of a merged version whose run and verdict have what is usual, with `changes` of the evidence.

    `languages` are those of the test rows; where they are not given, the verdict is older and has slices alone.
    """
    verdict = make_verdict_details(
        decision="inconclusive",
        sentence="Inconclusive: not enough evidence.",
        smallest_visible=0.09,
        visible_against="base",
        own={
            "base": {"exact_match": (0.1, 0.2, 0.3), "stopped": (0.4, 0.5, 0.6)},
            "candidate": {"exact_match": (0.55, 0.61234, 0.7), "stopped": (0.9, 0.95, 1.0)},
            "champion": {"exact_match": (0.5, 0.6, 0.65)},
        },
        comparisons=[make_comparison(), make_comparison(opponent="constant", opponent_mean=0.25)],
        slices=[
            {"by": "language", "name": name, "num_rows": rows, "candidate": 0, "base": 0, "difference": (0, 0, 0)}
            | {"is_small": False}
            for name, rows in (("en", 70), ("de", 20), ("unknown", 10))
            if languages is None
        ],
        languages=languages or {},
        general={"base": {"general_loss": 3.5}, "candidate": {"general_loss": 3.75}},
    )
    given: dict[str, Any] = {
        "name": "triage",
        "version": "3",
        "params": {
            "data.sources.0.path": "/srv/secret/rows.jsonl",
            "data.sources.1.path": "hf://datasets/org/rows",
            "data.sources.2.path": "golden.jsonl",
            "data.sources.2.use_as": "test",
            "method.kind": "lora",
            "method.rank": "16",
            "method.dora": "False",
            "training.learning_rate": "0.0002",
            "training.max_steps": "none",
            "model.max_length": "512",
            "gate.max_test_set_uses": "20",
        },
        "tags": {
            "verdict": "inconclusive",
            "test_set_uses": "21",
            "training": "overfitting since step 1; try less",
            "warnings": "6 answers were cut off; raise evaluation.max_new_tokens\nmany test-set uses",
            "data.version": "2",
            "data.splits": "5" * 64,
            "data.drawn": "seed 0, by cluster",
        },
        "verdict": verdict,
        "sentence": verdict.sentence,
        "rows": {"train": 1200, "test": 100},
    }
    made = card.ExportedForm(
        form="merged",
        dtype="bfloat16",
        measured="float32",
        base="`org/base`",
        hub=("org/base", "abc"),
        license="apache-2.0",
        most=64,
        context=8192,
        rows=8,
        same=7,
    )
    return card.written(CardEvidence(**given | changes), made)


def test_the_hub_reads_the_front_matter_of_the_card() -> None:
    read: Any = ModelCard(written())
    assert (read.data.base_model, read.data.license, read.data.language) == ("org/base", "apache-2.0", ["en", "de"])
    assert (read.data.library_name, read.data.pipeline_tag) == ("transformers", "text-generation")
    assert [(each.metric_type, each.metric_value) for each in read.data.eval_results] == [
        ("exact_match", 0.6123),
        ("stopped", 0.95),
    ]


@pytest.mark.parametrize(
    ("languages", "listed", "said"),
    [
        ({"en": 25}, ["en"], "It was measured in this language only: en (25 test rows)."),
        (
            {"en": 60, "ja": 40, "nl": 1},
            ["en", "ja"],
            "in these languages only: en (60 test rows), ja (40 test rows), beside 1 test row in other languages, or ",
        ),
        (
            {"en": 2, "unknown": 20},
            ["en"],
            "only: en (2 test rows), beside 20 test rows in other languages, or too short to tell.",
        ),
        ({"unknown": 20}, None, "The test rows are too short to tell their languages."),
        ({}, None, "It is not known in which languages it was measured."),
    ],
)
def test_the_card_names_the_languages_of_the_test_rows_also_where_there_is_one(
    languages: dict[str, int], listed: list[str] | None, said: str
) -> None:
    text = written(languages)
    assert said in text
    read: Any = ModelCard(text)
    assert read.data.language == listed


def test_the_card_says_what_a_stranger_has_to_know_and_no_path() -> None:
    text = written()
    assert "secret" not in text
    for said in (
        "Inconclusive: not enough evidence.",
        "Sources: `rows.jsonl`, `hf://datasets/org/rows`",
        "| train | 1,200 |",
        "| this model | .612 [.550, .700] | .950 [.900, 1.000] |",
        "| base | .200 [.100, .300] | .500 [.400, .600] |",
        "| champion before | .600 [.500, .650] |  |",
        "| majority-class baseline | .250 |  |",
        "| exact_match | base | +.20 [.10, .30] | .00 | above |",
        "Method: lora: rank 16\n",
        "Training: learning rate 0.0002\n",
        "Languages of the test prompts: en (70 rows), de (20 rows)",
        "It was measured in these languages only: en (70 test rows), de (20 test rows).",
        "It did not pass its gate: inconclusive.",
        "When this version was decided on, these test rows had been used for 21 candidates; after 20,",
        "- 6 answers were cut off.\n- Many test-set uses.\n- Overfitting since step 1.\n",
        "general loss 3.50 -> 3.75",
        "measured in float32; these files are for bfloat16",
        "8 test rows: 7 with",
        "of more than 512 tokens",
        "vllm serve FOLDER --served-model-name triage",
    ):
        assert said in text, said
    assert "golden.jsonl" not in text


@pytest.mark.parametrize(
    ("keep_general", "whose"),
    [("auto", "the base's own answers to general prompts"), ("off", "from sources with use_as: replay")],
)
def test_the_card_says_how_many_training_rows_are_general_ones_and_whose(keep_general: str, whose: str) -> None:
    text = written(num_replay=36, params={"training.keep_general": keep_general})
    assert f"- General rows: 36 of the train rows, {whose}; they are to keep what the base could do before\n" in text
    assert "General rows" not in written()


def test_the_evidence_is_what_mlflow_keeps_with_the_warnings_of_the_verdict(
    register_candidate: Make, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: dict[str, Any] = {"warnings": ("6 answers were cut off; raise it",)}
    monkeypatch.setattr(registered, "RunArtifacts", lambda **given: RunArtifacts(**given | warnings))
    register_candidate(decision="inconclusive")
    register_candidate()  # another run finds another verdict on the same version
    shutil.rmtree(home / "artifacts")
    (tmp_path / "place").mkdir()
    with connected(Registry(name="triage")) as client:
        found = evidence.of_version(client, client.get_model_version("triage", "1"), tmp_path / "place")
    assert found.rows == {"train": 1, "validation": 1, "test": 1}
    assert found.sources == ["data.jsonl"]
    assert found.warnings == ["6 answers were cut off", "overfitting since step 1: seen"]
    assert found.sentence == "Promoted: better than the base by 0.82."
    assert found.tags["verdict"] == found.verdict.decision == "promote"


class Letters:
    """A tokenizer whose token 1 is "b"."""

    def decode(self, ids: list[int]) -> str:
        return "".join("abcdefgh"[id_] for id_ in ids)


def compared(monkeypatch: pytest.MonkeyPatch, precision: str, *changed: dict[str, Any]) -> parity.Parity:
    """Four rows with the prompt [0] and the answer [1, 2, 3]; the exported folder has `changed` of the first ones."""
    row = RehearsalRow(row_id="0123456789abcdef", messages=[], answer="bcd")
    version = [ExpectedAnswer(row, [0], [1, 2, 3], -0.5)] * 4
    same = {"prompt": [0], "answer": [1, 2, 3], "log_probability": -0.5, "gap": 0.0, "logit": 4.0}
    replies = [same | change for change in changed] + [same] * (4 - len(changed))
    monkeypatch.setattr(parity, "_answers", lambda *_: replies)
    loaded: Any = SimpleNamespace(precision="float32", tokenizer=Letters())
    return parity.check(Path(), None, precision, version, loaded)


@pytest.mark.parametrize(
    ("precision", "changed", "error"),
    [
        (
            "float32",
            [{"answer": [1, 4, 3]}],
            "1 of 4 test rows get another answer; row 0123456789ab: first difference at token 2: expected 'c', got 'e'",
        ),
        ("float32", [{"answer": [1, 2]}], "first difference at token 3: expected 'd', got the end;"),
        (
            "bfloat16",
            [{"answer": [1], "gap": 0.05}, {"answer": [1], "gap": 0.11}],
            "1 of 4 test rows get another answer; row 0123456789ab: first difference at token 2: expected 'c', got the "
            "end; merging rounds the weights to bfloat16, so export it with --dtype float32; nothing was exported",
        ),
        (
            "float32",
            [{"prompt": [7]}],
            "the prompt has other tokens: first difference at token 1: expected 'a', got 'h'",
        ),
        ("float32", [{"log_probability": -0.502}], "differs by 0.002 nats/token; accepted in float32: 0.001;"),
        ("bfloat16", [{"log_probability": float("nan")}], "differs by inf nats/token; accepted in bfloat16: 0.1;"),
        (
            "float16",
            [{"log_probability": -0.6}, {}],
            "differs by 0.1 nats/token; accepted in float16: 0.02; merging rounds",
        ),
    ],
)
def test_the_first_difference_to_the_version_is_named(
    precision: str, changed: list[dict[str, Any]], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TunewrightError) as caught:
        compared(monkeypatch, precision, *changed)
    assert error in str(caught.value)


def test_a_near_tie_in_a_lower_precision_is_counted_and_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    tie = {"answer": [1, 2, 5], "log_probability": -0.52, "gap": 0.09}
    found = compared(monkeypatch, "bfloat16", tie, tie | {"gap": 0.25, "logit": 20.0})
    assert (found.rows, found.same, found.near_ties, round(found.largest_difference, 2)) == (4, 2, 2, 0.02)


def test_other_answers_of_quantized_weights_are_counted_and_their_probability_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = {"answer": [5], "log_probability": -0.59, "gap": 3.0}
    found = compared(monkeypatch, "q8_0", other)
    assert (found.same, found.near_ties, found.others) == (3, 0, 1)
    with pytest.raises(TunewrightError, match=r"differs by 0\.11 nats/token; accepted in q8_0: 0\.1;"):
        compared(monkeypatch, "q8_0", other | {"log_probability": -0.61})
