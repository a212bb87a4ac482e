"""With training.keep_general=auto the base's own answers train as general rows, and change nothing else."""

import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Once, base_in
from pydantic import ValidationError
from split_rows import prompts as texts_of_words

from tunewright.artifacts import Artifact, Base, Rehearsed, Splits
from tunewright.artifacts.payloads import CheckResults, LeakProof
from tunewright.artifacts.placement import SPLITS
from tunewright.cli import deployment_file
from tunewright.cli.data import find, look_up
from tunewright.cli.data.as_json import figures, row_json
from tunewright.cli.plan import look_up as look_up_plan
from tunewright.config import (
    Checks,
    Data,
    Evaluation,
    Expectation,
    Method,
    Model,
    Preference,
    Registry,
    Settings,
    Source,
    Split,
    Training,
)
from tunewright.data_checks.report import summary
from tunewright.flows.calls import Reached, Run, Step, stages
from tunewright.flows.finetune import pipeline, plan
from tunewright.flows.outcome import Outcome
from tunewright.reports.account import growth_sentence
from tunewright.store import pipelines
from tunewright.tasks import rehearse as rehearsing
from tunewright.tasks.forgetting import tasks, texts
from tunewright.tasks.ingest import row_id_of
from tunewright.tasks.rehearse import FILE, GROUP, prompts, room

DEMO = Path(__file__).parents[1] / "deployments" / "demo"
SO_FAR = "(split.replay of the rows so far; split leaves out those beyond its share of what is left)"
AUTO = Training(keep_general="auto")
OWN = [
    {"instruction": text, "output": ("shelf", "box")[at % 2]} for at, text in enumerate(texts_of_words(120, copies=0))
]


def grams(text: str) -> set[str]:
    """The passages of six characters of a text."""
    text = " ".join(text.casefold().split())
    return {text[at : at + 6] for at in range(max(1, len(text) - 5))}


def similarity(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def ending(tiny: Base, folder: Path, seed: int) -> Base:
    """A tiny base of random weights that ends many of its answers, since many tokens end one."""
    import torch
    from transformers import LlamaForCausalLM

    shutil.copytree(tiny.weights, folder)
    torch.manual_seed(seed)
    model = LlamaForCausalLM.from_pretrained(folder)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    stops = [*range(200, 260), model.config.eos_token_id]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    return base_in(folder, f"ending {seed}")


@pytest.fixture(scope="module")
def bases(once: Once, tiny_base: Base) -> tuple[Base, Base]:
    one, other = (once(f"ending_{seed}", lambda folder, seed=seed: ending(tiny_base, folder, seed)) for seed in (1, 2))
    return base_in(one, "one"), base_in(other, "other")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(OWN)


def write(rows: Sequence[dict[str, str]]) -> None:
    lines = [json.dumps(row) for row in rows] + ["{"]
    Path("own.jsonl").write_text("".join(f"{line}\n" for line in lines))


def settings(base: Base, **sections: Any) -> Settings:
    given: dict[str, Any] = {
        "data": Data(sources=(Source(path="own.jsonl"),)),
        "model": Model(base=base.reference),
        "checks": Checks(max_quarantined_share=1),
        "registry": Registry(name="tiny"),
        "training": AUTO,
    }
    return Settings(**given | sections)


class Direct(Run):
    """Runs each stage without Prefect."""

    def called(self, task: Any, of: str, inputs: Any) -> Any:
        pipelines.note(self.pipeline, task.name, task.fn.key(**inputs))
        record = task.fn(**inputs)
        self.keep(Step(stage=task.name, of=of, state="ran", record=record))
        return record


def run(asked: Settings) -> dict[str, Any]:
    """The records of the data stages, by stage."""
    calls = Direct(asked, "split")
    with suppress(Reached):
        pipeline(asked, calls)
    account = Outcome.of(calls.steps).account()
    assert account
    account.add_up()
    return {step.stage: step.record for step in calls.steps}


def split_of(splits: Splits, *, general: bool) -> dict[str, str]:
    """The split of each row_id, of the general rows or of the others."""
    tables = {name: pq.read_table(splits.path(f"{name}.parquet")).to_pylist() for name in SPLITS}
    return {
        row["row_id"]: name for name, rows in tables.items() for row in rows if (row["use_as"] == "replay") is general
    }


def rows_in(record: Artifact) -> list[dict[str, Any]]:
    return pq.read_table(record.path("rows.parquet")).to_pylist()


def test_the_prompts_are_not_those_that_forgetting_is_measured_by_nor_rows_of_the_demo() -> None:
    own = {prompt: grams(prompt) for prompt in prompts()}
    assert len(own) == len(prompts()) == 160
    assert len(prompts()) % GROUP == 0
    suite = [*(task.prompt for task in tasks()), *(text for _, text in texts())]
    others = [grams(text) for text in suite]
    assert max(similarity(mine, theirs) for mine in own.values() for theirs in others) < 0.4
    every = [*own.values()]
    assert max(similarity(one, other) for at, one in enumerate(every) for other in every[:at]) < 0.5
    demo = " ".join(" ".join(file.read_text("utf-8", "replace").casefold().split()) for file in DEMO.iterdir())
    shared = {prompt: sum(each in demo for each in mine) / len(mine) for prompt, mine in own.items()}
    assert max(shared.values()) < 0.9, max(shared, key=lambda prompt: shared[prompt])


def test_there_are_at_most_as_many_prompts_as_the_share_has_room_for() -> None:
    assert [room(rows, 0.1) for rows in (1, 90, 600, 1_440, 10**6)] == [1, 10, 66, 160, 160]
    assert [room(100, share) for share in (0.5, 1)] == [100, 160]


def test_the_base_answers_become_rows_behind_the_others_and_growing_data_get_the_same(
    bases: tuple[Base, Base], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tunewright"):
        few, more = (run(settings(bases[0], split=Split(replay=share)))["rehearse"] for share in (0.1, 0.4))
    first, _ = (each for each in caplog.messages if "general prompts, asked" in each)
    assert first.partition(" answers to ")[0].endswith(f" of {GROUP}")
    assert first.endswith(f", asked {GROUP} at a time: 10 added, of at most 10 {SO_FAR}")
    own, rows = rows_in(run(settings(bases[0], training=Training()))["ingest"]), rows_in(few)
    assert rows[: len(own)] == own
    general = rows[len(own) :]
    assert (len(general), few.num_general) == (10, 10)
    assert (few.num_read, few.num_rows, few.num_quarantined) == (len(own) + 1, len(own) + 10, 1)
    for row in general:
        asked, said = row["messages"]
        assert (asked["role"], said["role"], row["use_as"], row["file"]) == ("user", "assistant", "replay", FILE)
        assert asked["content"] == prompts()[row["line"] - 1]
        assert said["content"].strip()
        assert row["row_id"] == row_id_of(row["messages"])
    assert rows_in(more)[len(own) :][:10] == general
    assert 10 < more.num_general < 64, "some answers were not ended"


def test_a_base_is_asked_once_and_again_only_for_more_prompts(
    bases: tuple[Base, Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    answered = rehearsing._answered
    monkeypatch.setattr(rehearsing, "_answered", lambda base, of: asked.append(len(of)) or answered(base, of))
    for share in (0.1, 0.15, 0.4):
        run(settings(bases[0], split=Split(replay=share)))
    write(OWN[1:])
    run(settings(bases[0]))
    assert asked == [GROUP, 2 * GROUP]


def test_a_base_that_ends_no_answer_is_warned_of_and_the_run_goes_on(
    tiny_base: Base, bases: tuple[Base, Base], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rehearsing, "MAX_NEW_TOKENS", 1)
    with caplog.at_level(logging.WARNING, "tunewright"):
        made = run(settings(tiny_base))
    assert made["rehearse"].num_general == made["split"].num_replay == 0
    (said,) = made["rehearse"].warned
    assert said.startswith(
        "training.keep_general=auto adds no general rows: the base ended none of 32 answers within 1"
    )
    assert said in caplog.text
    assert FILE not in made["rehearse"].detected


def test_the_splits_and_the_version_of_the_data_are_the_same_with_any_base_and_without(
    bases: tuple[Base, Base],
) -> None:
    off, one, other = (
        run(settings(base, training=training))
        for base, training in ((bases[0], Training()), (bases[0], AUTO), (bases[1], AUTO))
    )
    assert "rehearse" not in off
    splits = [split_of(made["split"], general=False) for made in (off, one, other)]
    assert splits[0] == splits[1] == splits[2]
    of_general = [split_of(made["split"], general=True) for made in (one, other)]
    assert all({*found.values()} == {"train"} for found in of_general)
    assert of_general[0].keys().isdisjoint(of_general[1].keys())
    assert one["split"].num_replay / one["split"].num_train <= Split().replay
    data = look_up(settings(bases[1]))
    assert data.title == "data of tiny: version 1 of 1"
    found = figures(data.past[0])
    assert found["rows"] == found["new"] == len(OWN) + other["rehearse"].num_general
    assert (found["read"], found["general"], found["refused"]) == (len(OWN) + 1, other["rehearse"].num_general, 1)
    assert min(count for count in found.values() if count is not None) >= 0
    write([*OWN, {"instruction": "And one more?", "output": "shelf"}])
    grown = run(settings(bases[0]))
    assert splits[0].items() <= split_of(grown["split"], general=False).items()
    assert [version.number for version in look_up(settings(bases[0])).past] == [1, 2]
    kept, replay = len(OWN), grown["split"].num_replay
    assert growth_sentence(LeakProof.load(grown["split"])) == (
        f"Since the previous version: {kept + 1 + replay} rows in splits = {kept} that kept theirs + 1 that is new + "
        f"{replay} replay rows."
    )


def test_checks_compare_the_rows_of_the_task_alone_and_count_the_general_ones_apart(bases: tuple[Base, Base]) -> None:
    write([{"instruction": row["instruction"], "output": json.dumps([row["output"]])} for row in OWN])
    severe = tuple(Expectation(name=name, severity="warning") for name in ("no_json_answer", "language"))
    made = run(settings(bases[0], checks=Checks(max_quarantined_share=1, expectations=severe)))
    general = made["rehearse"].num_general
    aside = pq.read_table(made["check"].path("quarantine.parquet"), columns=["file", "reason"]).to_pylist()
    assert general > 0 and {row["reason"] for row in aside if row["file"] == FILE} <= {"replacement_character"}
    results = CheckResults.load(made["check"])
    assert (results.read, results.general, results.rows) == (len(OWN) + 1, general, len(OWN) + general)
    assert f"{len(OWN) + 1} records read + {general} general rows made = " in summary(results)
    assert "general rows made" in made["check"].path("report.html").read_text()
    (of_json,) = (each for each in results.expectations if each.name == "no_json_answer")
    assert of_json.failed == 0


def test_general_rows_that_are_all_quarantined_are_warned_of(bases: tuple[Base, Base]) -> None:
    long = (Expectation(name="length_out_of_bounds", arguments={"max_prompt_chars": 12}),)
    write([{"instruction": f"Where {at}?", "output": row["output"]} for at, row in enumerate(OWN)])
    made = run(settings(bases[0], checks=Checks(max_quarantined_share=1, expectations=long)))
    (said,) = made["check"].warned
    number = made["rehearse"].num_general
    assert said == (
        f"all of the {number} replay rows are quarantined (length_out_of_bounds {number}): no general row trains"
    )


def test_a_general_row_is_found_with_its_life(bases: tuple[Base, Base]) -> None:
    made = run(settings(bases[0]))
    data = look_up(settings(bases[0]))
    assert data.made
    assert data.made.all_rows.detected == {"own.jsonl": "jsonl, alpaca", FILE: "answers of the base"}
    row_id = next(iter(split_of(made["split"], general=True)))
    (row,) = (row for row in rows_in(made["rehearse"]) if row["row_id"] == row_id)
    for query in (
        (row_id, None, None),
        (None, f"{FILE}:{row['line']}", None),
        (None, f"prompts.jsonl:{row['line']}", None),
    ):
        told = row_json(data, find(data, *query))
        assert told["row_id"] == row_id
        assert [event["stage"] for event in told["life"]] == ["rehearse", "check", "dedupe", "split"]
        assert told["life"][0]["use_as"] == "replay"
        assert told["life"][-1]["because"] == "replay"
    own = row_json(data, find(data, None, "own.jsonl:1", None))
    assert [event["stage"] for event in own["life"]] == ["ingest", "check", "dedupe", "split"]


def test_the_records_that_ingest_refused_are_found_where_ingest_wrote_them(bases: tuple[Base, Base]) -> None:
    calls = Direct(settings(bases[0]), "rehearse")
    with suppress(Reached):
        pipeline(settings(bases[0]), calls)
    made = {step.stage: step.record for step in calls.steps}
    copied = made["rehearse"]
    assert isinstance(copied, Rehearsed) and copied.num_quarantined == 1
    assert made["ingest"]
    assert Outcome.of(calls.steps).quarantines() == [made["ingest"].path("quarantine.parquet")]


def test_a_plan_names_the_stage_and_why_it_would_run(bases: tuple[Base, Base]) -> None:
    def causes(asked: Settings) -> dict[str, list[str]]:
        return {step.stage: list(step.because) for step in plan(asked, "split", ()) if step.because}

    assert causes(settings(bases[0]))["rehearse"] == ["runs after ingest and base"]
    run(settings(bases[0]))
    assert causes(settings(bases[0])) == {}
    assert causes(settings(bases[0], split=Split(replay=0.2)))["rehearse"] == ["split.replay: 0.1 -> 0.2"]
    off = causes(settings(bases[0], training=Training()))
    assert off["check"] == ["it reads the output of ingest in place of rehearse"]


def test_a_plan_says_what_the_estimate_leaves_out(bases: tuple[Base, Base]) -> None:
    def notes() -> str:
        parameters = {
            "data": {"sources": sources},
            "model": {"base": bases[0].reference},
            "training": {"keep_general": "auto"},
        }
        deployment = {"name": "tiny", "entrypoint": deployment_file.ENTRYPOINT, "parameters": parameters}
        Path("mine.yaml").write_text(json.dumps({"deployments": [deployment]}))
        planned = look_up_plan(deployment_file.load(Path("mine.yaml")), "mine.yaml")
        assert planned.costs
        return "; ".join(planned.costs.notes)

    sources = [{"path": "own.jsonl"}]
    assert (
        "training.keep_general=auto: at most 10 more training rows, of the answers that the base ends; the estimate "
        "leaves them out"
    ) in notes()
    shutil.copy("own.jsonl", "general.jsonl")
    sources.append({"path": "general.jsonl", "use_as": "replay"})
    assert "training.keep_general=auto adds no general rows: a source in data.sources has use_as: replay" in notes()


def test_a_replay_source_leaves_the_setting_nothing_to_do(bases: tuple[Base, Base]) -> None:
    shutil.copy("own.jsonl", "general.jsonl")
    sources = (Source(path="own.jsonl"), Source(path="general.jsonl", use_as="replay"))
    given = settings(bases[0], data=Data(sources=sources))
    assert given.has_general
    assert not given.rehearses
    assert "rehearse" not in stages(given)
    assert "rehearse" in stages(settings(bases[0]))
    assert given.training.used() == Training().used(), "the key of a training does not have it"


def test_settings_that_need_general_rows_are_accepted_with_it(bases: tuple[Base, Base]) -> None:
    both = settings(bases[0], training=Training(keep_general="auto", kl_to_base=1), split=Split(replay=0.2))
    assert both.has_general
    with pytest.raises(ValidationError, match=r"kl_to_base=1 needs general rows: .*, and training.keep_general is off"):
        settings(bases[0], training=Training(kl_to_base=1))
    with pytest.raises(ValidationError, match=r"split.replay=0.2 has no effect: .*, and training.keep_general is off"):
        settings(bases[0], training=Training(), split=Split(replay=0.2))


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"method": Method(kind="few_shot"), "evaluation": Evaluation()},
            "with method.kind=few_shot, which trains nothing",
        ),
        ({"preference": Preference(method="dpo", after_sft=False)}, "as there is no SFT; leave it out"),
    ],
)
def test_without_a_training_on_answers_it_is_refused(
    bases: tuple[Base, Base], sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=rf"training.keep_general=auto has no effect.*{said}"):
        settings(bases[0], **sections)
