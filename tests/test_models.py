"""The digest of a base is of all that loading it reads, and of nothing else; what cannot be read is one line."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tunewright.artifacts import Base
from tunewright.errors import ConfigError
from tunewright.modeling.models import identity, load_tokenizer
from tunewright.serving import LOADED
from tunewright.tasks.base import base


@pytest.fixture
def folder(tiny_base: Base, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base.weights, tmp_path / "base"))


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer.model", "merges.txt", "vocab.txt", "vocab.json", "added_tokens.json", "special_tokens_map.json"),
        *("chat_template.jinja", "additional_chat_templates/tools.jinja", "generation_config.json", "config.json"),
        *("model.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"),
    ],
)
def test_a_change_in_what_loading_reads_is_another_base(folder: Path, name: str) -> None:
    before = identity(str(folder))
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    if file.suffix == ".json":
        settings = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(settings | {"changed": True}))
    elif file.suffix == ".safetensors":
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # another weight
    else:
        file.write_bytes((file.read_bytes() if file.exists() else b"") + b"\n")
    assert identity(str(folder)) != before


@pytest.mark.parametrize(
    "name",
    [*("README.md", "LICENSE.txt", "optimizer.pt", "pytorch_model.bin", "pytorch_model.bin.index.json"), ".git/HEAD"],
)
def test_what_loading_does_not_read_is_no_part_of_a_base(folder: Path, name: str) -> None:
    before = identity(str(folder))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    assert identity(str(folder)) == before


def test_every_file_that_a_tokenizer_of_transformers_names_is_read_for_the_digest() -> None:
    import transformers

    package = Path(transformers.__file__).parent
    sources = [*package.glob("models/*/tokenization_*.py"), *package.glob("tokenization_*.py")]
    named = {name for file in sources for name in re.findall(r'"\w*_file": "([^"]+)"', file.read_text())}
    assert {"merges.txt", "tokenizer.model", "vocab.txt"} < named
    assert not [name for name in named if not any(fnmatch(name, pattern) for pattern in LOADED)]


@pytest.mark.parametrize("name", ["is_local", "local_files_only", "name_or_path"])
def test_what_transformers_writes_from_its_environment_is_no_part_of_a_base(folder: Path, name: str) -> None:
    before = identity(str(folder))
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {name: not settings.get(name)}, indent=3))
    assert identity(str(folder)) == before


def zeros(file: Path) -> None:
    file.symlink_to("/dev/zero")


def gigabytes(file: Path) -> None:
    with file.open("wb") as opened:
        opened.truncate(10**12)  # sparse


@pytest.mark.parametrize("name", ["z.json", "merges.txt", "model-2.safetensors", "additional_chat_templates/a.jinja"])
@pytest.mark.parametrize("make", [zeros, os.mkfifo])
def test_what_is_no_file_in_a_base_is_one_line_at_once(folder: Path, make: Callable[[Path], None], name: str) -> None:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    make(file)
    with pytest.raises(ConfigError, match=rf"^model\.base={folder}: .*{name} is not a regular file.*; accepted: files"):
        identity(str(folder))


def test_a_name_that_stands_for_two_in_the_list_of_a_base_is_refused(folder: Path) -> None:
    (folder / "tokenizer a\ntokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer a\\ntokenizer.json' has a control character or a line"):
        identity(str(folder))


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "config.json"])
def test_a_file_too_large_to_be_what_its_name_says_is_one_line_at_once(folder: Path, name: str) -> None:
    gigabytes(folder / name)
    with pytest.raises(ConfigError, match=rf"{name} has 1,000,000,000,000 bytes; accepted: at most 268,435,456"):
        identity(str(folder))


def test_weights_that_may_not_be_read_are_named_with_the_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = PermissionError("Permission denied (os error 13)")  # all that safetensors says of it
    monkeypatch.setattr("safetensors.safe_open", Mock(side_effect=denied))  # root may read any file
    said = f"model.base={folder}: {folder}/model.safetensors cannot be read: Permission denied"
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        identity(str(folder))
    monkeypatch.setattr("safetensors.safe_open", Mock(side_effect=OSError("no device")))
    with pytest.raises(ConfigError, match=rf"^model\.base={folder}: a file in it cannot be read: no device$"):
        identity(str(folder))


def test_a_file_in_place_of_its_folder_is_told_the_folder(folder: Path) -> None:
    with pytest.raises(ConfigError, match=rf"model\.safetensors: a file; accepted: .*such as model\.base={folder}, "):
        identity(str(folder / "model.safetensors"))
    with pytest.raises(ConfigError, match=r"config\.json: a file; accepted: the name of a folder with safetensors, "):
        identity(str(folder / "config.json"))


def test_a_link_to_a_file_is_that_file(folder: Path, tmp_path: Path) -> None:
    before = identity(str(folder))
    (folder / "tokenizer.json").rename(tmp_path / "blob")
    (folder / "tokenizer.json").symlink_to(tmp_path / "blob")  # as the hub's cache has them
    assert identity(str(folder)) == before
    (tmp_path / "blob").unlink()
    with pytest.raises(ConfigError, match=r"tokenizer.json is not a regular file, or a broken link"):
        identity(str(folder))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ['{"model_type": "lla', "[" * 100_000, "[]", "\xff"])
def test_settings_that_were_cut_are_one_line(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=rf"^model\.base={folder}: {name} is not .*JSON.*; copy it again$"):
        identity(str(folder))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000; accepted: a whole number from 1 to 10,000"),
        ({"num_hidden_layers": 9_000}, "says num_hidden_layers=9000, the weights have 2 layers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0; accepted:"),
        ({"hidden_size": -64}, "hidden_size=-64; accepted:"),
        ({"hidden_size": 64_000}, "says hidden_size=64000, and no tensor of the weights is of that length"),
        ({"vocab_size": "500"}, "vocab_size='500'; accepted:"),
        ({"vocab_size": 10**15}, "vocab_size=1000000000000000; accepted:"),
        ({"vocab_size": 10_000_000}, "says vocab_size=10000000, and no tensor"),
        ({"intermediate_size": 10**12}, "intermediate_size=1000000000000; accepted:"),
        ({"num_attention_heads": 1e9}, "num_attention_heads=1000000000.0; accepted:"),
        ({"model_type": ["llama"]}, "no model_type that is a name; accepted:"),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_one_line(folder: Path, fields: dict[str, Any], said: str) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(ConfigError, match=rf"^model\.base={folder}: [^\n]*config\.json (has )?{re.escape(said)}"):
        identity(str(folder))


def header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0",
        (2**62).to_bytes(8, "little") + b"{}",
        header("{"),
        header("[" * 100_000),
        header('{"a":' * 5_000 + "{}" + "}" * 5_000),
        header('{"a": {"dtype": "F32", "data_offsets": [0, 0]}}'),
        header('{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}') + bytes(4),
        header('{"a": {"dtype": "F32", "shape": [4611686018427387904, 8], "data_offsets": [0, 4]}}') + bytes(4),
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'),
        header('{"a": {"dtype": {"\\n": null}, "shape": [1], "data_offsets": [0, 4]}}') + bytes(4),
    ],
    ids=["empty", "short", "2^62", "cut", "list", "deep", "no shape", "negative", "overflow", "no weights", "newline"],
)
def test_weights_that_are_no_whole_safetensors_are_one_line(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    said = rf"^model\.base={folder}: model\.safetensors is not a complete safetensors file \([^\n]+\); copy it again$"
    with pytest.raises(ConfigError, match=said):
        identity(str(folder))


def test_a_tokenizer_that_cannot_be_loaded_is_one_line(tiny_base: Base, folder: Path) -> None:
    copied = tiny_base.model_copy(update={"folder": folder})
    whole = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"^model\.base=.*: its tokenizer cannot be loaded from .*: [^\n]+$"):
        load_tokenizer(copied)


def test_a_tokenizer_that_loads_and_cannot_be_used_is_one_line(tiny_base: Base, folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": []}))
    with pytest.raises(ConfigError, match=r"^model\.base=.*: its tokenizer cannot be loaded from .*: [^\n]+$"):
        load_tokenizer(tiny_base.model_copy(update={"folder": folder}))


EMPTY = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


@pytest.mark.parametrize(
    "kind", ["qwen2", "gpt2", "gemma", "gpt_neox", "mamba", "t5", "cohere", "xglm", "llama", "mistral", "phi3", "olmo2"]
)  # of some of which transformers makes a tokenizer without any file
def test_a_base_without_tokenizer_files_is_one_line_that_names_them(tiny_base: Base, folder: Path, kind: str) -> None:
    for name in EMPTY:
        (folder / name).unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ConfigError) as refused:
        load_tokenizer(tiny_base.model_copy(update={"folder": folder, "reference": "mine"}))
    assert str(refused.value) == (
        f"model.base=mine: {folder} has no tokenizer files; copy them from the original model: tokenizer.json, "
        "tokenizer.model, or vocab.json with merges.txt"
    )


def test_a_tokenizer_with_an_empty_vocabulary_is_one_line(tiny_base: Base, folder: Path) -> None:
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text())
    special = {token["content"] for token in whole["added_tokens"]}
    whole["model"]["vocab"] = {text: id_ for text, id_ in whole["model"]["vocab"].items() if text in special}
    file.write_text(json.dumps(whole | {"model": whole["model"] | {"merges": []}}))
    with pytest.raises(
        ConfigError, match=r"^model\.base=.*: the tokenizer in .* knows no text; copy its files \(token"
    ):
        load_tokenizer(tiny_base.model_copy(update={"folder": folder}))


def test_a_tokenizer_whose_code_lies_in_the_base_is_one_line_and_not_run(tiny_base: Base, folder: Path) -> None:
    copied = tiny_base.model_copy(update={"folder": folder})
    file = folder / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    (folder / "config.json").write_text(json.dumps({"model_type": "own"}))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError, match=r"^model\.base=.*: its tokenizer cannot be loaded from .*: [^\n]+$"):
        load_tokenizer(copied)
    assert not (folder / "ran").exists()


def test_stages_that_read_a_base_see_that_its_merges_changed(folder: Path) -> None:
    before = base.fn(str(folder), None, identity(str(folder)))
    (folder / "merges.txt").write_text("a b\n")
    after = base.fn(str(folder), None, identity(str(folder)))
    assert (before.key != after.key, before.digest != after.digest) == (True, True)


def test_a_base_that_left_the_hubs_cache_or_changed_there_is_fetched_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def fetch(reference: str, *_: object) -> Path:
        fetched.append(reference)
        shutil.copytree(tiny, folder, dirs_exist_ok=True)
        return folder

    tiny = folder.rename(folder.with_name("on_the_hub"))
    monkeypatch.setattr("tunewright.tasks.base.resolve", fetch)
    for _ in range(2):
        assert base.fn("org/name", None, "org/name").weights == folder
    assert fetched == ["org/name"]
    shutil.rmtree(folder)
    before = base.fn("org/name", None, "org/name")
    assert fetched == ["org/name", "org/name"]
    (tiny / "merges.txt").write_text("a b\n")
    (folder / "merges.txt").write_text("a b\n")
    assert base.fn("org/name", None, "org/name").digest != before.digest
    assert fetched == ["org/name"] * 3


def test_weights_without_permission_are_not_said_to_be_missing(tiny_base: Base) -> None:
    with tempfile.TemporaryDirectory() as outer:  # pytest's own are closed to others
        Path(outer).chmod(0o755)
        copy = Path(shutil.copytree(tiny_base.weights, Path(outer) / "base"))
        copy.chmod(0o755)
        for file in copy.iterdir():
            file.chmod(0o644)
        (copy / "model.safetensors").chmod(0)
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)  # root may read any file
        try:
            with pytest.raises(ConfigError) as refused:
                identity(str(copy))
        finally:
            os.seteuid(before)
    assert str(refused.value) == f"model.base={copy}: {copy}/model.safetensors cannot be read: Permission denied"


def test_a_base_that_cannot_be_read_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder / "model.safetensors"))

    monkeypatch.setattr("tunewright.serving._content", forbidden)
    with pytest.raises(ConfigError, match=rf"^model\.base={folder}: .*model.safetensors cannot be read: Permission"):
        identity(str(folder))


def test_a_tokenizer_saved_offline_and_one_saved_online_are_one(folder: Path) -> None:
    from transformers import AutoTokenizer

    digests, texts = set(), set()
    for offline in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not offline:
                patch.setattr("transformers.tokenization_utils_base.is_offline_mode", lambda: False)
            AutoTokenizer.from_pretrained(folder, local_files_only=offline).save_pretrained(folder)
        digests.add(identity(str(folder)))
        texts.add((folder / "tokenizer_config.json").read_text())
    assert (len(digests), len(texts)) == (1, 2)


Change = Callable[[dict[str, Any]], dict[str, Any]]  # of a tokenizer.json
CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": "CAAAAAE="}


def _of_many_tokens(content: dict[str, Any]) -> dict[str, Any]:
    vocab = {f"token {number:09d}": number for number in range(3_000_000)}
    return content | {"model": {"type": "BPE", "vocab": vocab, "merges": []}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content | {"normalizer": CHARSMAP}, r"crashes its reader \(exit code 1\)"),
        (_of_many_tokens, r"crashes its reader \(Aborted\)|takes more than 400 MB of memory"),
    ],
)
def test_a_hostile_tokenizer_is_one_line_and_no_crash(
    tiny_base: Base, tmp_path: Path, change: Change, said: str
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base.weights, folder)
    base = tiny_base.model_copy(update={"folder": folder, "location": Path()})
    file = base.weights / "tokenizer.json"
    load_tokenizer(base)
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    within = rf"{file} cannot be read within 10 s of processor time and 400 MB of memory \((?:{said})\)"
    with pytest.raises(ConfigError, match=rf"^model\.base=.*: its tokenizer cannot be loaded: {within}$"):
        load_tokenizer(base)


def _chained(
    kind: str, times: int, pattern: dict[str, str] | None = None
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    one = {"type": "Replace", "pattern": pattern or {"String": "\u00a7"}, "content": "\u00a7" * 4}
    name = "normalizers" if kind == "normalizer" else "decoders"
    return lambda content: content | {kind: {"type": "Sequence", name: [one] * times}}


@pytest.mark.parametrize(
    ("kind", "change", "times"),
    [
        ("normalizer", _chained("normalizer", 40), "over 1,000,000,000"),
        ("normalizer", _chained("normalizer", 5, {"Regex": "x*"}), "3,125"),
        ("normalizer", _chained("normalizer", 2_000), "over 1,000,000,000"),
        ("decoder", _chained("decoder", 4), "256"),
    ],
)
def test_a_tokenizer_that_multiplies_a_text_is_one_line(
    tiny_base: Base, tmp_path: Path, kind: str, change: Change, times: str
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base.weights, folder)
    base = tiny_base.model_copy(update={"folder": folder, "location": Path()})
    file = base.weights / "tokenizer.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    said = rf"its {kind} makes a text {times} times as long; accepted: at most 100 times"
    with pytest.raises(ConfigError, match=rf"^model\.base=.*: its tokenizer cannot be loaded: {file}: {said}$"):
        load_tokenizer(base)


def test_a_tokenizer_that_writes_spaces_as_another_sign_is_loaded(tiny_base: Base, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base.weights, folder)
    base = tiny_base.model_copy(update={"folder": folder, "location": Path()})
    file = base.weights / "tokenizer.json"
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    sequence = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, space]}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": sequence}))
    assert load_tokenizer(base).backend_tokenizer.normalizer.normalize_str("a b") == "\u2581a\u2581b"
