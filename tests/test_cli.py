"""The command line: one JSON object for programs, one clear line for an error, an exit code for its kind."""

import errno
import json
import logging
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
import waiting
from conftest import Harness
from prefect._internal.analytics.ci_detection import CI_ENV_VARS
from prefect.settings import PREFECT_API_URL
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from tunewright.artifacts import Base
from tunewright.cli import main
from tunewright.config import NO_TELEMETRY, Checks
from tunewright.machine import addresses
from tunewright.reports.progress import layout

SUBJECTS = ("my parcel", "the red shoes", "a broken lamp", "one late letter", "your green chair", "an old phone")
PLACES = ("in Berlin", "at the harbour", "from Lisbon", "near our school", "on the train", "by the lake")
ROWS = [
    {"instruction": f"{subject} {place} {what}", "output": "refund"}
    for subject in SUBJECTS
    for place in PLACES
    for what in ("is missing", "came late")
]
FILE = """\
deployments:
  - name: tiny
    entrypoint: tunewright.flows.finetune.finetune
    parameters:
      data: {sources: [{path: rows.jsonl}]}
      model: {base: "BASE", max_length: 128}
      method: {rank: 2, alpha: 4}
      training: {learning_rate: 1e-2, max_steps: 2, batch: 4}
      compute: {threads: 1}
      evaluation: {max_new_tokens: 4}
"""
Run = Callable[..., Result]


@pytest.fixture(scope="module", autouse=True)
def server(prefect_harness: Harness) -> Iterator[None]:
    with prefect_harness():
        yield


@pytest.fixture(autouse=True)
def _files(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tiny_base, tmp_path)


def write_files(base: Base, folder: Path) -> None:
    (folder / "tiny.yaml").write_text(FILE.replace("BASE", base.reference))
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))


@pytest.fixture
def tunewright(monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process, which is quick."""
    monkeypatch.setattr(logging.getLogger("tunewright"), "handlers", [])

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main.app, list(arguments))

    return run


def process(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command as a person calls it, in a folder of its own, with the server that runs here."""
    with running(*arguments, folder=folder) as started:
        stdout, stderr = started.communicate(timeout=300)
    return subprocess.CompletedProcess(started.args, started.returncode, stdout, stderr)


def running(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """The same, at work."""
    environment = os.environ | {
        "TUNEWRIGHT_HOME": str(folder / "home"),
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": PREFECT_API_URL.value() or "",
    }
    del environment["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"]  # the command itself has to be silent
    command = [str(Path(sys.executable).with_name("tunewright")), *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def first(
    server: None, tiny_base: Base, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a whole run, and what it wrote."""
    folder = tmp_path_factory.mktemp("first")
    write_files(tiny_base, folder)
    return folder, process("run", "tiny.yaml", "--json", folder=folder)


def refusal(result: Result) -> tuple[int, str]:
    """The exit code, and the one line that says why."""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.output
    return result.exit_code, line.removeprefix("error: ")


def test_help_and_version(tunewright: Run) -> None:
    shown = tunewright("--help")
    assert shown.exit_code == 0
    assert "run" in shown.stdout
    assert "plan" in shown.stdout
    version = tunewright("--version")
    assert version.exit_code == 0
    assert version.stdout.startswith("tunewright 0.")


def test_a_second_home_is_not_made_without_a_word(
    tunewright: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("theirs/.tunewright", "here"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "theirs" / "bank.yaml").write_text("deployments: []\n")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    here, theirs = tmp_path / "here" / ".tunewright", tmp_path / "theirs" / ".tunewright"
    note = f"note: the home here is {here}; {theirs} beside the deployment file exists; set TUNEWRIGHT_HOME to use it"

    def shown(command: str, folder: Path, *options: str) -> list[str]:
        monkeypatch.chdir(folder)
        monkeypatch.delenv("TUNEWRIGHT_HOME", raising=False)
        found = tunewright(command, "../theirs/bank.yaml", *options)
        assert "note:" not in found.stdout
        return found.stderr.splitlines()

    for command in ("run", "plan", "data", "compare", "deploy"):
        assert shown(command, here.parent, *(() if command == "deploy" else ("--json",)))[0] == note
        assert note not in shown(command, theirs.parent)
    here.mkdir()
    assert note not in shown("plan", here.parent)
    here.rmdir()
    monkeypatch.chdir(here.parent)
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(here))
    assert note not in tunewright("plan", "../theirs/bank.yaml").stderr


@pytest.mark.parametrize(
    ("gate", "key"),
    [
        ("metric: json_field_f1", "gate.metric=json_field_f1"),
        ("guardrails: [{metric: json_valid, margin: 0.1}]", "gate.guardrails[0].metric=json_valid"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused_before_anything_is_trained(
    tunewright: Run, tmp_path: Path, gate: str, key: str
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(f"{file.read_text()}      gate:\n        {gate}\n")
    said = f"tiny.yaml line 12: {key} cannot be measured on"
    code, line = refusal(tunewright("plan", "tiny.yaml"))
    assert code == 2
    assert line.startswith(f"{said} the first 72 rows: 72 of 72 references are not JSON, such as 'refund'; set ")
    ran = tunewright("run", "tiny.yaml")
    code, line = refusal(ran)
    assert code == 2
    assert line.startswith(f"{said} the test rows: ")
    assert "split" in ran.output
    assert "render" not in ran.output
    assert refusal(tunewright("plan", "tiny.yaml")) == (code, line)


def test_a_slow_plan_says_that_it_goes_on(tunewright: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunewright.reports.progress.FIRST_SECONDS", 0.0)
    assert "planning: 0 s so far" in tunewright("plan", "tiny.yaml").stdout
    assert "planning" not in tunewright("plan", "tiny.yaml", "--quiet").output


def test_help_does_not_break_a_line_where_the_docstring_does() -> None:
    shown = CliRunner(env={"COLUMNS": "400"}).invoke(main.app, ["clean", "--help"]).stdout
    assert "weights, runs deleted in MLflow, and runs that found nothing new and were hidden there. Never" in shown
    shown = CliRunner(env={"COLUMNS": "400"}).invoke(main.app, ["run", "--help"]).stdout
    assert "5 not promoted and --require-promotion given, 130 interrupted by Ctrl-C, 143 ended by SIGTERM" in shown
    shown = CliRunner(env={"COLUMNS": "400"}).invoke(main.app, ["release", "rollback", "--help"]).stdout
    assert "checking it. No pipeline" not in shown  # these are two paragraphs
    assert "No pipeline promotes" in shown


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ([], "--version"),
        (["run"], "--quiet"),
        (["compare"], "--no-prune"),
        (["clean"], "--yes"),
        (["release", "history"], "--json"),
    ],
)
def test_help_shows_no_type_for_a_flag_and_the_metavar_of_an_option(arguments: list[str], flag: str) -> None:
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(main.app, [*arguments, "--help"]).stdout
    assert flag in shown
    assert "--help" in shown
    assert "bool" not in shown


def test_help_breaks_no_metavar_in_a_terminal_of_80_columns() -> None:
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(main.app, ["compare", "--help"]).stdout
    assert " KEY=VALUE,VALUE " in shown
    assert " SECTION.FIELD=VALUE " in shown


IMPORTED = """
import sys
from tunewright.cli import api, command_line, main, operate, registered_model

def prepare(*_, **__):
    print("prefect" in sys.modules)
    raise SystemExit

for module in (api, command_line, operate, registered_model):
    module.prepare = prepare
main.main()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "a"),
        ("plan", "a"),
        ("compare", "a"),
        ("data", "a"),
        ("deploy", "a"),
        ("release", "history", "a"),
        ("serve", "a"),
        ("api", "a"),
    ],
)
def test_prefect_is_imported_when_its_environment_is_there(arguments: tuple[str, ...]) -> None:
    """It reads its server and its database once."""
    done = subprocess.run([sys.executable, "-c", IMPORTED, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_run_for_a_program_writes_one_json_object_and_nothing_else(
    first: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    done = first[1]
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    said = json.loads(line)
    assert {"stages", "rows", "scores", "verdict", "model"} <= said.keys()
    for stage in said["stages"]:
        assert {"stage", "state", "seconds", "artifact"} <= stage.keys()
        assert stage["state"] == "ran"
        assert Path(stage["artifact"], "manifest.json").is_file()
    of_splits = {"train", "validation", "test", "replay", "undesirable"}
    assert said["rows"].keys() == {"read", "general", "kept", "quarantined", "duplicates", *of_splits}
    assert said["rows"]["read"] == len(ROWS)
    assert said["scores"].keys() == {"base", "few_shot", "retrieval", "candidate", "constant"}
    assert "exact_match" in said["scores"]["candidate"]
    assert {"decision", "reason"} <= said["verdict"].keys()
    assert said["model"].items() >= {"name": "tiny", "version": "1", "alias": None}.items()
    assert said["model"]["uri"] == "models:/tiny/1"
    assert said["verdict"]["reason"] in done.stderr  # the summary is for people
    assert "Traceback" not in done.stderr


def test_a_plan_for_a_program_writes_one_json_object_and_nothing_else(
    first: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    done = process("plan", "tiny.yaml", "--json", "--set", "training.learning_rate=0.02", folder=first[0])
    (line,) = done.stdout.splitlines()
    stages = {(s["stage"], s.get("of")): s for s in json.loads(line)["stages"]}
    assert done.returncode == 0
    assert stages["split", None]["state"] == "cached"
    assert stages["train", None] == {
        "stage": "train",
        "state": "run",
        "because": ["training.learning_rate: 0.01 -> 0.02"],
    }
    assert stages["evaluate", "candidate"]["because"] == ["runs after train"]


def test_a_plan_says_what_training_would_take(after_first: Run) -> None:
    result = after_first("plan", "tiny.yaml", "--json", "--device", "rtx-4090")
    assert result.exit_code == 0
    told = json.loads(result.stdout)["training"]
    assert [method["method"] for method in told["methods"]] == ["lora", "qlora", "full", "spectrum", "osf"]
    chosen, full = told["methods"][0], told["methods"][2]
    assert (told["rows"], told["device"]["name"], told["warning"]) == ("render", "GeForce RTX 4090", "")
    assert chosen["steps"] == 2
    adapter = chosen["trained_parameters"]
    assert 0 < adapter < chosen["parameters"] == full["parameters"] + adapter
    assert full["trained_parameters"] == full["parameters"]
    assert chosen["memory_bytes"]["peak"] < sum(chosen["memory_bytes"].values())
    assert 0 < chosen["seconds"][0] <= chosen["seconds"][1]
    memory = next(line for line in after_first("plan", "tiny.yaml").stdout.splitlines() if " at peak, " in line)
    assert "; parts" in memory and "0.00 GB" not in memory
    here = json.loads(after_first("plan", "tiny.yaml", "--json").stdout)["training"]
    assert here["methods"][0]["seconds_from"].startswith("an earlier run of 2 steps")


def test_a_plan_says_the_trained_share_of_the_run_and_what_its_time_is_of(
    first: tuple[Path, subprocess.CompletedProcess[str]], after_first: Run
) -> None:
    (status,) = (first[0] / "home" / "artifacts" / "train").glob("*/status.json")
    (of_run,) = (line for line in layout(json.loads(status.read_text())) if "trainable" in line)
    page = " ".join(after_first("plan", "tiny.yaml", "--set", "training.learning_rate=0.02").stdout.split())
    said = of_run.strip().replace("parameters are trainable", "parameters")
    assert f"trainable {said}" in page
    share = said.partition("(")[2].rstrip(")")
    assert re.search(rf"lora [\d,]+ {re.escape(share)}", page)
    assert re.search(
        r"training steps and evaluations, without loading, saving and answering the test rows: about .*, based on an "
        r"earlier run of 2 steps on this machine \(the whole stage with loading: \d+ s\) ",
        page,
    )


def test_a_plan_compares_adapters_of_the_same_size_where_it_can(after_first: Run) -> None:
    def learning(*options: str) -> dict[str, int]:
        plan = after_first("plan", "tiny.yaml", "--json", *(part for each in options for part in ("--set", each)))
        return {each["method"]: each["trained_parameters"] for each in json.loads(plan.stdout)["training"]["methods"]}

    few, more = learning("method.layers=1", "method.rank=4"), learning("method.rank=4")
    assert few["lora"] == few["qlora"] < more["lora"] == more["qlora"]
    assert "qlora" not in learning("method.init=pissa")  # which it refuses


def test_a_plan_before_anything_ran_looks_at_the_first_rows(tunewright: Run) -> None:
    result = tunewright("plan", "tiny.yaml")
    assert result.exit_code == 0
    page = " ".join(result.stdout.split())
    assert re.search(r"estimated from the \d+ rows of the sources, rendered", page)
    told = json.loads(tunewright("plan", "tiny.yaml", "--json").stdout)["training"]
    assert (told["rows"], told["at_most"]) == ("sample", False)
    assert "training with" not in tunewright("plan", "tiny.yaml", "--until", "render").stdout
    code, line = refusal(tunewright("plan", "tiny.yaml", "--device", "rtx-4900"))
    assert (code, "did you mean rtx-4090?" in line) == (2, True)
    first = "tunewright run tiny.yaml --until render && tunewright plan tiny.yaml --calibrate"
    assert refusal(tunewright("plan", "tiny.yaml", "--calibrate"))[1].endswith(first)


def test_a_machine_that_is_not_here_has_the_packages_that_are_asked_for(after_first: Run) -> None:
    asked = ("--set", "compute.liger=true", "--json")
    told = json.loads(after_first("plan", "tiny.yaml", "--device", "h100", *asked).stdout)["training"]
    assert told["methods"][0]["computed_with"]["liger"]
    assert told["notes"][0] == "assumes that liger-kernel is installed there"
    assert refusal(after_first("plan", "tiny.yaml", *asked))[0] == 2


def test_splits_that_are_known_are_reckoned_with_before_render_has_read_them(
    first: tuple[Path, subprocess.CompletedProcess[str]], tunewright: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(first[0] / "home", home, ignore=shutil.ignore_patterns("render"))
    monkeypatch.chdir(first[0])
    told = json.loads(tunewright("plan", "tiny.yaml", "--json").stdout)["training"]
    assert (told["rows"], told["at_most"]) == ("split", False)
    assert told["methods"][0]["rows"] == json.loads(first[1].stdout)["rows"]["train"]


@pytest.fixture
def after_first(
    first: tuple[Path, subprocess.CompletedProcess[str]], tunewright: Run, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """The command line where the first run was."""
    monkeypatch.chdir(first[0])
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(first[0] / "home"))
    return tunewright


def test_a_plan_after_render_counts_the_tokens_that_train(
    first: tuple[Path, subprocess.CompletedProcess[str]], after_first: Run
) -> None:
    (train,) = (first[0] / "home" / "artifacts" / "render").glob("*/train.parquet")
    lengths = [len(ids) for ids in pq.read_table(train, columns=["input_ids"])["input_ids"].to_pylist()]
    assert len(set(lengths)) > 1
    told = json.loads(after_first("plan", "tiny.yaml", "--json").stdout)["training"]
    assert (told["rows"], told["methods"][0]["tokens_an_epoch"]) == ("render", sum(lengths))
    page = " ".join(after_first("plan", "tiny.yaml").stdout.split())
    assert f" {len(lengths)} with {sum(lengths):,} tokens" in page


def test_the_data_of_a_run_are_told_stage_by_stage(after_first: Run) -> None:
    result = after_first("data", "tiny.yaml", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert (told["name"], told["version"], told["missing"]) == ("tiny", 1, "")
    assert [stage["stage"] for stage in told["stages"]] == ["ingest", "check", "dedupe", "split", "render"]
    assert [version["counts"]["read"] for version in told["versions"]] == [len(ROWS)]
    assert "data of tiny: version 1 of 1" in after_first("data", "tiny.yaml").stdout


def test_a_row_is_told_from_its_line_to_its_split(after_first: Run) -> None:
    result = after_first("data", "tiny.yaml", "--line", "rows.jsonl:3", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    outcomes = {event["stage"]: event["outcome"] for event in told["life"]}
    assert (told["file"], told["line"]) == ("rows.jsonl", 3)
    assert outcomes["ingest"] == "read"
    assert outcomes.get("split", "train") in ("train", "validation", "test")
    again = json.loads(after_first("data", "tiny.yaml", "--row", told["row_id"][:12], "--json").stdout)
    assert again == told
    few = json.loads(after_first("data", "tiny.yaml", "--text", "harbour came", "--json").stdout)
    assert len(few["matches"]) == len(SUBJECTS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--row", "f" * 64], "no such record among the 72 records (data of tiny: version 1 of 1)"),
        (["--row", "f", "--text", "harbour"], "only one of them"),
        (["--version", "7"], "--version 7: no such version of tiny; accepted: 1"),
        (["--version", "x"], "--version x: accepted: a number"),
        (["--set", "registry.name=other", "--version", "1"], "no such version of other; accepted: none yet"),
    ],
)
def test_a_row_or_version_that_is_not_there_is_one_line_and_code_2(
    after_first: Run, arguments: list[str], said: str
) -> None:
    code, line = refusal(after_first("data", "tiny.yaml", *arguments))
    assert code == 2
    assert said in line


def test_a_candidate_that_is_not_promoted_can_be_asked_to_fail(after_first: Run) -> None:
    result = after_first("run", "tiny.yaml", "--require-promotion", "--json")
    assert result.exit_code == main.NOT_PROMOTED == 5
    assert json.loads(result.stdout.splitlines()[-1])["verdict"]["decision"] == "keep"


def test_a_short_run_ends_with_what_can_be_said_so_far(tunewright: Run) -> None:
    result = tunewright("run", "tiny.yaml", "--until", "split", "--json")
    assert result.exit_code == 0
    said = json.loads(result.stdout.splitlines()[-1])
    assert said.keys() == {"stages", "saved_seconds", "rows", "reasons", "findings"}, "nothing that it did not reach"
    assert said["rows"]["train"] + said["rows"]["validation"] + said["rows"]["test"] == said["rows"]["kept"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "training.learning_rat=1"], ["training.learning_rat", "did you mean learning_rate"]),
        (["--set", "training.epochs=many"], ["training.epochs", '"many"', "a number"]),
        (["--set", "split.test=0.9", "--set", "split.validation=0.2"], ["validation=0.2 and test=0.9"]),
        (["--set", "gate.metric=chrf", "--set", "evaluation.metrics=exact_match"], ["gate.metric=chrf"]),
        (["--set", "model.base=./nowhere"], ["model.base=./nowhere", "no such folder"]),
        (["--set", "model.base=package:nothing/x.gguf"], ["model.base=package:nothing/x.gguf"]),
        (
            ["--set", "model.base=nobody/nothing"],
            ["model.base=nobody/nothing", "taken for a hub id, as there is no folder", "the hub"],
        ),
        (["--until", "split", "--require-promotion"], ["--require-promotion", "ends with split"]),
        (["--set", "data.sources=nowhere.jsonl"], ["nowhere.jsonl"]),
        (["--until", "trian"], ['--until "trian": did you mean train? accepted: ingest, base']),
        (["--until", ""], ['--until "": accepted: ingest, base']),
        (["--refresh", "split", "--refresh", "x"], ['--refresh "x": accepted: ingest, base']),
        (
            ["--refresh", "train", "--until", "split"],
            ["refresh=train", "after until=split", "accepted: ingest, base"],
        ),
        (["--set", "checks.expectations=[{name: emty_answer}]"], ["expectations[0].name=emty_answer", "empty_answer"]),
        (["--deployment", "other"], ["other", "tiny"]),
    ],
)
def test_wrong_settings_are_one_line_and_code_2(tunewright: Run, arguments: list[str], said: list[str]) -> None:
    code, line = refusal(tunewright("run", "tiny.yaml", *arguments))
    assert code == 2
    for part in said:
        assert part in line


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("data.sources=row.jsonl", "command line: data.sources[0].path=row.jsonl: no such file in "),
        ("data.sources=nowhere/*.jsonl", "command line: data.sources[0].path=nowhere/*.jsonl: no file matches: "),
        ("model.base=./nowhere", "command line: model.base=./nowhere: no such folder"),
        (
            "dedupe={semantic: 0.9, semantic_model: nowhere}",
            "command line: dedupe.semantic_model=nowhere: nowhere has ",
        ),
        (
            "checks.expectations=[{name: test_suite.ExpectTicketNumber, arguments: {column: promt}}]",
            "command line: checks.expectations[0].arguments.column=promt is not a column of the rows; "
            "did you mean promp",
        ),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_what_a_run_cannot_use_is_said_before_it_begins(
    tunewright: Run, monkeypatch: pytest.MonkeyPatch, command: str, assignment: str, said: str
) -> None:
    monkeypatch.setattr("tunewright.flows.finetune.finetune", None)
    code, line = refusal(tunewright(command, "tiny.yaml", "--set", assignment))
    assert code == 2
    assert line.startswith(said)


def test_a_file_is_looked_at_once_before_a_run(tunewright: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Checks] = []

    def look(checks: Checks) -> tuple[tuple[str, str], ...]:
        looked.append(checks)
        return ()

    monkeypatch.setattr("tunewright.flows.inputs.own_expectations", look)
    assert tunewright("run", "tiny.yaml", "-q", "--until", "ingest").exit_code == 0
    assert tunewright("plan", "tiny.yaml", "--until", "ingest").exit_code == 0
    assert len(looked) == 2


def test_quiet_prints_the_last_word_alone(tunewright: Run) -> None:
    until_split = ("tiny.yaml", "--until", "split")
    assert tunewright("plan", "-q", *until_split).output == "5 of 5 tasks would run\n"
    shown = tunewright("run", "-q", *until_split)
    assert shown.output.splitlines() == [
        "72 rows read = 72 kept + 0 quarantined + 0 duplicates",
        "72 kept = 58 train + 7 validation + 7 test",
    ]
    assert tunewright("run", "-q", *until_split).output == shown.output
    code, said = refusal(tunewright("run", "tiny.yaml", "-q", "--set", "split.test=2"))
    assert (code, said.partition(":")[0]) == (2, '--set "split.test=2"')


def test_a_warning_about_the_test_rows_is_given_by_each_run(tunewright: Run) -> None:
    said = []
    for state in ("ran", "cached"):
        shown = tunewright("run", "tiny.yaml", "--until", "split")
        assert re.search(rf"^split +{state} ", shown.stdout, re.MULTILINE)
        words = " ".join(shown.stdout.split())
        said.append(re.findall(r"split: \d+ test rows .*?can show only .*? proof.json has more", words))
    assert {*said[0]} == {*said[1]} and len({*said[0]}) == 1


def test_a_home_that_cannot_be_made_is_one_line_and_code_2(
    tunewright: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "file" / "home"))
    code, line = refusal(tunewright("run", "tiny.yaml", "--until", "ingest"))
    assert code == 2
    assert line.startswith(f"TUNEWRIGHT_HOME={tmp_path / 'file' / 'home'}: ")


def test_an_error_is_an_object_for_a_program(tunewright: Run) -> None:
    result = tunewright("run", "nowhere.yaml", "--json")
    assert json.loads(result.stdout) == {"error": "nowhere.yaml: no such file", "exit_code": 2}


def test_the_commands_to_run_next_keep_what_was_changed(tunewright: Run) -> None:
    result = tunewright("run", "tiny.yaml", "--until", "split", "--set", "split.seed=1")
    assert "tunewright plan tiny.yaml --set split.seed=1" in result.stdout


def test_an_unknown_option_suggests_only_what_is_close(tunewright: Run) -> None:
    assert "ossible" not in tunewright("run", "tiny.yaml", "--bogus").stderr
    assert "(Possible options: --until)" in tunewright("run", "tiny.yaml", "--untill").stderr


def test_a_deployment_file_that_is_not_there_is_code_2(tunewright: Run) -> None:
    assert refusal(tunewright("run", "nowhere.yaml")) == (2, "nowhere.yaml: no such file")
    assert refusal(tunewright("plan", "nowhere.yaml")) == (2, "nowhere.yaml: no such file")


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        ("", [], ["rows.jsonl"]),
        ("not json\n" * 20, [], ["20 of 20 records quarantined", "bad_json", "rows.jsonl line 1"]),
        (
            "".join(f'{{"instruction": "question {i}", "output": "TODO"}}\n' for i in range(20)),
            [],
            ["20 of 20 rows quarantined", "20 placeholder_answer", "rows.jsonl line 1"],
        ),
        (
            "".join(f"{json.dumps(row)}\n" for row in ROWS[:2]),
            ["--set", "dedupe.near=false"],
            ["split is empty", "split.test"],
        ),
    ],
    ids=["empty", "malformed", "all quarantined", "empty split"],
)
def test_refused_data_are_one_line_and_code_3(
    tunewright: Run, content: str, arguments: list[str], said: list[str]
) -> None:
    Path("rows.jsonl").write_text(content)
    code, line = refusal(tunewright("run", "tiny.yaml", "-q", "--until", "split", *arguments))
    assert code == 3
    for part in said:
        assert part in line


def test_an_error_is_all_that_a_person_sees_of_it_and_what_prefect_keeps_of_it_is_in_the_home(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("rows.jsonl").write_text("not json\n")
    monkeypatch.delenv("PREFECT_LOCAL_STORAGE_PATH", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    failed = process("run", "tiny.yaml", "-q", folder=tmp_path)
    assert [*(home / "errors").iterdir()] and not [*tmp_path.glob("prefect/storage/*")]
    assert (failed.returncode, failed.stdout) == (3, "")
    (line,) = failed.stderr.splitlines()
    assert line.startswith("error: 1 of 1 records quarantined")


def test_the_next_commands_name_the_deployment_that_was_chosen(tunewright: Run) -> None:
    said = tunewright("run", "tiny.yaml", "--deployment", "tiny", "--until", "split", "--set", "split.seed=1").stdout
    for command in ("data tiny.yaml", "run tiny.yaml", "plan tiny.yaml"):
        assert f"tunewright {command} --deployment tiny --set split.seed=1" in said


def test_training_that_does_not_finish_is_one_line_and_code_4(tunewright: Run, tiny_base: Base, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_base.weights, tmp_path / "broken")
    weights = {name: torch.full_like(each, torch.nan) for name, each in load_file(broken / "model.safetensors").items()}
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    code, line = refusal(tunewright("run", "tiny.yaml", "-q", "--set", f"model.base={broken}", "--until", "train"))
    assert code == 4, line
    assert "loss" in line


def test_a_full_disk_is_one_line_and_code_1(tunewright: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, line = refusal(tunewright("run", "tiny.yaml", "-q", "--until", "ingest"))
    assert code == 1
    assert line.startswith(f"no space left on the disk of {home}")
    assert not list(home.glob("artifacts/*/*/manifest.json"))


def test_sigterm_ends_a_run_and_its_trainer_with_one_line_and_the_next_run_goes_on(
    first: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(first[0] / "home", home)
    longer = ("--set", "training.max_steps=4000", "--until", "train", "--quiet", "--json")
    with running("run", "tiny.yaml", *longer, folder=tmp_path) as started:
        waiting.until(lambda: next(home.glob("work/train/*/metrics.jsonl"), None), seconds=600)
        (trainer,) = [
            each
            for each in psutil.Process(started.pid).children()
            if "tunewright.tasks.train.trainer" in str(each.cmdline())
        ]
        started.terminate()
        stdout, stderr = started.communicate(timeout=60)
    line = "ended by SIGTERM, not finished; the next run resumes from the last finished stage or checkpoint"
    assert started.returncode == 128 + signal.SIGTERM
    assert [each for each in stderr.splitlines() if each.strip()][-1] == f"error: {line}"
    assert json.loads(stdout.splitlines()[-1]) == {"error": line, "exit_code": 143}
    assert not trainer.is_running()
    assert list(home.glob("work/train/*/checkpoints/checkpoint-*/manifest.json"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["release", "rollback", "demo"], "error: tunewright release rollback: Missing option '--reason'; "),
        (["plan"], "error: tunewright plan: Missing argument 'FILE'; "),
        (["up", "--port", "abc"], 'error: tunewright up: --port "abc": accepted: a whole number from 1 to 65535; see '),
        (
            ["clean", "--keep-runs", "0"],
            'error: tunewright clean: --keep-runs "0": accepted: a whole number, 1 or more; ',
        ),
        (["plna"], "error: tunewright: No such command 'plna'. Did you mean 'plan'?; "),
    ],
)
def test_an_error_of_usage_is_one_line(words: list[str], said: str) -> None:
    done = CliRunner().invoke(main.app, words, prog_name="tunewright")
    assert done.exit_code == 2
    assert done.output.startswith(said)
    assert done.output.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["release", "promote", "mine", "--json"],
        ["run", "mine.yaml", "--nosuch", "--json"],
        ["clean", "--json", "--keep-runs", "0"],
        ["plan", "--json"],
        ["home", "backup", "--json"],
        ["nosuch", "--json"],
    ],
)
def test_an_error_of_usage_is_an_object_where_json_is_asked_for(words: list[str]) -> None:
    done = CliRunner().invoke(main.app, words, prog_name="tunewright")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert json.loads(done.stdout) == {"error": done.stderr.removeprefix("error: ").rstrip("\n"), "exit_code": 2}


def test_json_behind_the_options_is_an_argument() -> None:
    done = CliRunner().invoke(main.app, ["plan", "--nosuch", "--", "--json"], prog_name="tunewright")
    assert (done.exit_code, done.stdout) == (2, "")


@pytest.mark.parametrize("command", [("run",), ("plan",), ("compare", "--vary", "training.seed=1,2")])
def test_quiet_and_verbose_together_are_refused_in_one_line(tunewright: Run, command: tuple[str, ...]) -> None:
    name, *options = command
    code, said = refusal(tunewright(name, "tiny.yaml", *options, "--quiet", "--verbose"))
    assert (code, said) == (2, "--quiet and --verbose exclude each other; accepted: one of them, or neither")


def in_a_terminal(code: str, arguments: Sequence[str], environment: dict[str, str]) -> str:
    """Return the output of a Python process in a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    printed = b""
    with suppress(OSError):  # the other end is closed
        while read := os.read(ours, 4096):
            printed += read
    os.close(ours)
    process.wait()
    return printed.decode()


@pytest.mark.parametrize("command", [("up", "--port", "9", "--mlflow-port", "9"), ("doctor",)])
def test_a_command_in_a_terminal_does_not_begin_with_what_prefect_tells_its_maker(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    """Prefect says so, and makes an id of the device, when it is imported in a terminal that no CI has."""
    told = {*NO_TELEMETRY, *CI_ENV_VARS}
    own = {"TUNEWRIGHT_HOME": str(tmp_path / "home"), "PREFECT_HOME": str(tmp_path / "prefect")}
    environment = {name: value for name, value in os.environ.items() if name not in told} | own
    loud = environment | {"PREFECT_HOME": str(tmp_path / "loud")}
    assert "anonymous usage data" in in_a_terminal("import prefect", (), loud)
    assert "anonymous usage data" not in in_a_terminal(
        "from tunewright.cli.main import main; main()", command, environment
    )
    assert not (tmp_path / "prefect" / ".sdk_telemetry").exists()


def test_a_command_of_prefects_own_that_ours_show_tells_its_maker_nothing(tmp_path: Path) -> None:
    told = {*NO_TELEMETRY, *CI_ENV_VARS}
    environment = {name: value for name, value in os.environ.items() if name not in told}
    environment |= {"PREFECT_HOME": str(tmp_path / "prefect")}
    shell = "import subprocess, sys; subprocess.run(sys.argv[1], shell=True, check=True)"
    command = f"{shlex.quote(sys.executable)} -c 'import prefect'"
    shown = f"{addresses.for_prefect('http://127.0.0.1:9/api')} {command}"
    assert "anonymous usage data" not in in_a_terminal(shell, [shown], environment)
    assert "anonymous usage data" in in_a_terminal(shell, [command], environment)
