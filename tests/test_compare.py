"""Variants are ranked on the validation rows alone, those that are behind end early, and nothing is trained twice."""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import Harness, Once
from rich.console import Console
from trained import done_once
from typer.testing import CliRunner

from tunewright.artifacts import Base
from tunewright.cli.compare import Variant, show, variants
from tunewright.cli.deployment_file import load
from tunewright.cli.main import app
from tunewright.comparison import Course, Study, Trial, VariantComparison, markdown, notes, of, rows
from tunewright.comparison.ranking import Ranked, State, ValidationPoint, rank, recommended, sentence
from tunewright.config import Compute, Data, Evaluation, Method, Model, Registry, Settings, Source, Training
from tunewright.errors import ConfigError, Pruned, TrainingError
from tunewright.flows import compare as flow_of_compare
from tunewright.flows.compare import WarningsOnce, compare, warnings_once
from tunewright.registry.address import tracking_uri
from tunewright.store.caching import Cached
from tunewright.tasks.train import stage as train_stage

FILE = """\
deployments:
  - name: mine
    entrypoint: tunewright.flows.finetune.finetune
    parameters:
      data: {sources: [{path: rows.jsonl}]}
      model: {base: some/model}
      method: {kind: lora, rank: 4}
"""


def asked(tmp_path: Path, *varied: str, more: str = "") -> dict[str, Variant]:
    file = tmp_path / "mine.yaml"
    file.write_text(FILE + more)
    return variants(load(file), varied)


def test_every_combination_of_the_values_is_a_variant(tmp_path: Path) -> None:
    found = asked(tmp_path, "method.rank=8, 16", "training.learning_rate=1e-4,3e-4")
    assert {
        name: (each.settings.method.rank, each.settings.training.learning_rate) for name, each in found.items()
    } == {
        "rank=8 learning_rate=1e-4": (8, 1e-4),
        "rank=8 learning_rate=3e-4": (8, 3e-4),
        "rank=16 learning_rate=1e-4": (16, 1e-4),
        "rank=16 learning_rate=3e-4": (16, 3e-4),
    }


def test_a_whole_section_can_be_varied(tmp_path: Path) -> None:
    found = asked(tmp_path, "method={kind: full},{kind: lora, rank: 8, target: 'q_proj, v_proj'}")
    assert [(each.settings.method.kind, each.settings.method.target) for each in found.values()] == [
        ("full", "all-linear"),
        ("lora", "q_proj, v_proj"),
    ]


@pytest.mark.parametrize(
    ("varied", "says"),
    [
        ([], "--vary: missing; accepted: section.field=value,value"),
        (["method.rank"], "--vary method.rank: accepted: section.field=value,value with two values or more"),
        (["method.rank=8"], "with two values or more"),
        (["method.rank=8,,16"], "with two values or more"),
        (["method.rank=8,08"], "08"),
        (["method.rank=8,16", "method.rank=2,4"], "a setting appears twice in method.rank, method.rank"),
        (["method.rank=8,0"], r"--vary .method.rank=0.: method.rank: 0 is refused"),
        (["method.rnk=8,16"], r'^--vary "method.rnk": no such setting; did you mean method.rank\?$'),
        (
            ["lr=0.1,0.2"],
            r'^--vary "lr": no such setting; did you mean training.learning_rate or .* or grpo.learning_rate\?$',
        ),
        (
            ["lr=0.1", "method.rank=8"],
            r'^--vary "lr": no such setting; did you mean training.learning_rate or .* or grpo.learning_rate\?$',
        ),
        (["training.learning_rate=1e-4,0.0001"], "are the same settings; leave one out"),
        (["split.seed=1,2"], "--vary split.seed: variants are compared on the same validation rows; accepted:"),
        (["training.best_by=loss,chrf"], "it is what the variants are ranked by"),
        (["model.base=a/b,c/d"], "their losses do not compare"),
        (
            ["training.seed=1,2"],
            r"^--vary training.seed=1,2: a seed makes no variant; .* --seeds N trains each variant",
        ),
        (["method.rank=1,2,3,4,5,6,7,8,9", "method.alpha=1,2,3,4,5,6,7,8"], "72 variants; accepted: at most 64"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(tmp_path: Path, varied: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        asked(tmp_path, *varied)
    assert "\n" not in str(refused.value)


def test_bases_are_compared_by_their_answers(tmp_path: Path) -> None:
    found = asked(tmp_path, "model.base=a/b,c/d", more="      training: {best_by: exact_match}\n")
    assert [each.settings.model.base for each in found.values()] == ["a/b", "c/d"]


def follow(course: Course, values: Sequence[float]) -> None:
    for step, value in enumerate(values, 1):
        course({"step": step, "planned": len(values), f"eval_{course.measure}": value})


def finished(study: Study, *courses: Sequence[float]) -> None:
    for values in courses:
        course = study.begin()
        follow(course, values)
        course.study.tell(course.trial, min(values))


def test_a_variant_behind_the_median_ends_after_a_third_of_its_steps() -> None:
    study = Study("loss", prunes=True)
    finished(study, [3, 2, 1.5, 1.2, 1, 1], [3, 2.2, 1.7, 1.4, 1.2, 1.2])
    course = study.begin()
    with pytest.raises(Pruned, match=r"pruned at step 3 of 6: validation loss 2\.8 is behind the median"):
        follow(course, [9, 2.9, 2.8, 2.7, 2.6, 2.5])
    assert [look.step for look in course.evaluations] == [1, 2, 3]
    follow(study.begin(), [9, 2, 1.4, 1.1, 0.9, 0.9])


def test_more_of_a_metric_is_better() -> None:
    study = Study("exact_match", prunes=True)
    finished(study, [0.1, 0.4, 0.5], [0.1, 0.4, 0.6])
    follow(study.begin(), [0.0, 0.7, 0.8])
    with pytest.raises(Pruned):
        follow(study.begin(), [0.0, 0.3, 0.8])


@pytest.mark.parametrize("prunes", [True, False])
def test_nothing_is_pruned_before_two_have_finished_or_where_it_is_not_wanted(prunes: bool) -> None:
    study = Study("loss", prunes=prunes)
    finished(study, [1, 1, 1, 1], *[[2, 2, 2, 2]] * (0 if prunes else 3))
    follow(study.begin(), [9, 9, 9, 9])


def test_a_training_that_goes_on_is_not_counted_twice() -> None:
    course = Study("loss", prunes=True).begin()
    for step in (1, 2, 1, 2, 3):
        course({"step": step, "planned": 4, "eval_loss": 1.0})
    assert [look.step for look in course.evaluations] == [1, 2, 3]


def trial(variant: str, seed: int, value: float | None, measure: str = "loss", **more: Any) -> Trial:
    state: State = "pruned" if value is None else "finished"
    return Trial(
        variant=variant, seed=seed, measure=measure, state=state, said="so", value=value, evaluations=(), **more
    )


def ranked(measure: str = "loss", **values: Sequence[float | None]) -> tuple[Ranked, ...]:
    return rank([trial(name, seed, value, measure) for name, of in values.items() for seed, value in enumerate(of)])


def test_the_best_mean_is_first_and_what_did_not_finish_last() -> None:
    found = ranked(a=[0.5, 0.7], b=[None], c=[0.4, 0.6])
    assert [(each.variant, each.state) for each in found] == [("c", "finished"), ("a", "finished"), ("b", "pruned")]
    assert found[1].behind == pytest.approx(0.1)
    assert [each.variant for each in ranked("chrf", a=[0.5, 0.7], c=[0.4, 0.6])] == ["a", "c"]


def test_a_variant_is_beaten_by_more_than_seeds_differ_or_not_told_apart() -> None:
    found = ranked(best=[0.50, 0.52, 0.48], near=[0.51, 0.50, 0.50], far=[0.70, 0.73, 0.69])
    assert {each.variant: each.beaten for each in found} == {"best": None, "near": False, "far": True}
    assert sentence(found) == "Best by validation loss: best (0.5); with 3 seeds it is not distinguishable from near."
    alone = ranked(best=[0.50, 0.52, 0.48], far=[0.70, 0.73, 0.69])
    assert sentence(alone).endswith("better than every other variant by more than the noise of 3 seeds.")


def test_figures_of_a_table_have_equal_decimals_and_differ_where_the_trainings_do() -> None:
    found = ranked(a=[9.945, 9.973], b=[10.0072, 10.0128], c=[10.03, 10.032])
    assert [row["validation loss"] for row in rows(found)] == [
        "9.9590 ± 0.0198",
        "10.0100 ± 0.0040",
        "10.0310 ± 0.0014",
    ]
    assert rows(found)[1]["behind"] == "0.051, within noise (up to 0.071)"
    assert "where a paired t test over these seeds does not show it" in notes(found)
    close = ranked(a=[10.0112], b=[10.0138], c=[10.2])
    assert len({row["validation loss"] for row in rows(close)}) == 3


@pytest.mark.parametrize("values", [([10.01], [10.01 + 3.5e-8]), ([1.0, 2.0], [1.0005, 2.0009]), ([0.5], [0.5])])
def test_a_difference_of_next_to_nothing_is_a_tie(values: tuple[list[float], list[float]]) -> None:
    first, second = values
    found = ranked(a=first, b=second, c=[each + 1 for each in first])
    assert sentence(found).startswith("A tie by validation loss: a and b (")
    assert [row["behind"] for row in rows(found)][:2] == ["best", "tie"]
    assert recommended(found).variant == "a"
    assert not found[2].ties


def test_of_a_tie_the_one_that_trains_fewer_parameters_is_recommended() -> None:
    found = rank([trial("a", 0, 1.0, learning=4000), trial("b", 0, 1.0, learning=1000), trial("c", 0, 2.0, learning=1)])
    assert recommended(found).variant == "b"
    assert "of which b trains 1,000 parameters instead of 4,000." in sentence(found)


def even(*variants: dict[str, Any]) -> str:
    """Return the sentence on the variants, best first, that are not distinguishable across seeds."""
    values = ([0.50, 0.52, 0.48], [0.51, 0.50, 0.50], [0.50, 0.51, 0.51])
    trials = [
        trial(f"v{number}", seed, value, **more)
        for number, (more, of) in enumerate(zip(variants, values, strict=False))
        for seed, value in enumerate(of)
    ]
    return sentence(rank(trials)).partition("not distinguishable from ")[2]


def test_of_variants_as_good_as_the_best_it_is_said_which_takes_less() -> None:
    small, large = {"learning": 1000, "seconds": 50.0}, {"learning": 4000, "seconds": 50.0}
    assert even(large, small) == "v1, which trains 1,000 parameters instead of 4,000."
    assert even(large, large, small) == "v1, or v2, of which v2 trains 1,000 parameters instead of 4,000."
    assert even(small, large) == even(small, {"learning": 1000, "seconds": 41.0}) == "v1."
    assert even({"seconds": 200.0}, {"seconds": 90.0}) == "v1, which takes 90 s instead of 3.3 min."


def test_a_best_step_that_is_the_last_is_said() -> None:
    def ends(**steps: int) -> str:
        evaluations = tuple(ValidationPoint(step=step, planned=20, value=1.0) for step in (10, 20))
        found = [
            trial(name, 0, value, best_step=step).model_copy(update={"evaluations": evaluations})
            for value, (name, step) in enumerate(steps.items())
        ]
        return sentence(rank(found))

    assert ends(a=20, b=10).endswith(" a was best at its last step: more steps may improve it.")
    assert "last step" not in ends(a=10, b=20)
    assert ends(a=0, b=10).endswith(" a keeps the model from before this training: no step improved it.")
    assert ends(a=0, b=0).startswith("No variant improved the validation loss: each keeps the model from before this")


def test_the_table_says_what_it_means_and_lines_have_numbers_where_these_can_be_read() -> None:
    evaluations = tuple(ValidationPoint(step=step, planned=2, value=1 / step) for step in (1, 2))
    found = [trial(name, seed, 0.5 + seed) for name in ("a", "b") for seed in range(2)] + [trial("c", 0, None)]
    assert "± is the standard deviation over seeds" in notes(rank(found))
    assert "pruned variants are not ranked" in markdown(rank(found))
    assert notes(rank([trial("a", 0, 0.5)])) == ""
    level = [each.model_copy(update={"evaluations": evaluations}) for each in found[:4]]
    behind = found[4].model_copy(update={"evaluations": evaluations[:1]})
    page = (of([*level, behind], "mine").folder / "report.html").read_text()
    assert re.findall(r'<text class="(best|finished|pruned)"[^>]*>(\d)</text>', page) == [
        ("pruned", "3"),
        ("best", "1"),
    ]


def test_one_seed_proves_nothing_and_says_so() -> None:
    found = ranked(a=[0.5], b=[0.4])
    assert found[1].beaten is None
    assert "0.1 ahead of the next. With one seed each the difference may be chance" in sentence(found)
    assert sentence(ranked(a=[None])) == "No variant finished."


def test_the_page_loads_nothing_and_shows_text_as_text() -> None:
    found = of([trial("training.x=<b>", 0, 0.5), trial("y", 0, None)], "mine")
    page = (found.folder / "report.html").read_text()
    assert "training.x=&lt;b&gt;" in page
    assert not re.search(r"<b>|<script|https?://", page)
    assert "training.x=&lt;b&gt;" in markdown(found.ranked)


@pytest.fixture(scope="module")
def server(prefect_harness: Harness) -> Iterator[None]:
    with prefect_harness():
        yield


@pytest.fixture
def settings(
    tiny_base: Base, home: Path, once: Once, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    home.mkdir()
    shutil.copy(mlflow_database, home)
    done_once(once, monkeypatch, train_stage._attempt)  # in processes, since one that is pruned is ended
    monkeypatch.chdir(home.parent)
    rows = [
        {"instruction": f"{what} {i} {'abcdefgh'[i % 8]} {'stuvwxyz'[i // 8]}", "output": ("refund", "repair")[i % 2]}
        for i in range(64)
        for what in ("parcel",)
    ]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return Settings(
        data=Data(sources=(Source(path="rows.jsonl"),)),
        model=Model(base=tiny_base.reference, max_length=128),
        method=Method(rank=2, alpha=4),
        training=Training(learning_rate=0.01, max_steps=6, batch=4, evaluate_every=1, patience=None),
        compute=Compute(threads=1),
        evaluation=Evaluation(max_new_tokens=4),
        registry=Registry(name="tiny"),
    )


def with_rates(settings: Settings, *rates: float) -> dict[str, Settings]:
    return {
        f"training.learning_rate={rate}": settings.model_copy(
            update={"training": settings.training.model_copy(update={"learning_rate": rate})}
        )
        for rate in rates
    }


def compared(settings: Settings, tried: dict[str, Settings], seeds: int) -> VariantComparison:
    state: Any = compare(settings, tried, seeds, return_state=True)
    return state.result()


def test_variants_are_trained_pruned_ranked_logged_and_found_again(
    server: None, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = with_rates(settings, 0.02, 0.01, 0.000001)
    first = compared(settings, tried, 2)
    warned, *again = (said for said in caplog.messages if said.startswith("split: "))
    (beginning, whom) = again[0].split(" …: ")
    assert (len(again), whom) == (1, "holds for all 3 variants")
    assert warned.startswith(f"{beginning} ")
    assert beginning.count("(") == beginning.count(")")
    *better, last = first.ranked
    assert (last.variant, last.state, len(last.trials)) == ("training.learning_rate=1e-06", "pruned", 1)
    assert {len(each.trials) for each in better} == {2}
    assert all(look.planned == 6 for each in first.ranked for trial in each.trials for look in trial.evaluations)
    assert not list((first.folder.parents[1] / "test_set_uses").glob("*"))  # no test row was looked at

    made: list[str] = []
    monkeypatch.setattr(Cached, "_make", lambda self, *_, **__: made.append(self.stage) or pytest.fail(self.stage))
    monkeypatch.setattr(
        "tunewright.tasks.train.stage.run_trainer", lambda job, _: made.append(str(job.training.learning_rate))
    )
    found = with_rates(settings, 0.02, 0.01)
    again = compared(settings, found, 2)
    assert made == []
    assert [each.mean for each in again.ranked] == [each.mean for each in better]

    client = mlflow.MlflowClient(tracking_uri(settings.registry))
    (experiment,) = (each for each in client.search_experiments() if each.name == "tiny.compare")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 2
    assert len(runs) == 2 + 5 + 4
    pruned = next(run for run in runs if run.data.tags.get("state") == "pruned")
    assert pruned.data.params == {"training.learning_rate": "1e-06", "training.seed": "0"}
    assert pruned.data.metrics.keys() == {"validation/loss"}
    values = {run.data.metrics["validation/best_loss"] for run in runs if run.data.tags.get("state") == "finished"}
    assert min(values) == min(trial.value for trial in better[0].trials if trial.value is not None)


def test_files_that_come_while_variants_train_are_read_by_none(
    server: None, settings: Settings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_and_receive(course: Any, *rest: Any) -> Any:
        trial = of_variant(course, *rest)
        Path("rows-new.jsonl").write_text('{"instruction": "what of the new one", "output": "repair"}\n')
        return trial

    of_variant = flow_of_compare._train
    monkeypatch.setattr(flow_of_compare, "_train", train_and_receive)
    settings = settings.model_copy(update={"data": Data(sources=(Source(path="rows*.jsonl"),))})
    found = compared(settings, with_rates(settings, 0.02, 0.01), 1)
    assert len(found.ranked) == 2
    assert len([*(home / "artifacts" / "ingest").glob("*/manifest.json")]) == 1
    assert len([*(home / "artifacts" / "train").glob("*/manifest.json")]) == 2


def test_a_variant_that_cannot_be_trained_does_not_end_the_others(
    server: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = with_rates(settings, 0.01, 0.02)
    original = Cached._make

    def make(self: Any, folder: Path, ingredients: Any, *args: Any, **kwargs: Any) -> Any:
        if self.stage == "train" and ingredients["training.learning_rate"] == 0.02:
            raise TrainingError("the loss is no number at step 3")
        return original(self, folder, ingredients, *args, **kwargs)

    monkeypatch.setattr(Cached, "_make", make)
    found = compared(settings, tried, 1)
    assert [(each.variant, each.state) for each in found.ranked] == [
        ("training.learning_rate=0.01", "finished"),
        ("training.learning_rate=0.02", "failed"),
    ]
    assert found.ranked[1].trials[0].said == "the loss is no number at step 3"


def test_a_warning_is_logged_once_with_the_variants_that_it_holds_for(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("tunewright")
    with warnings_once() as once:
        for variant, warnings in (
            ("a", ["both", "one", "one"]),
            ("b", ["two"]),
            ("c", ["both", "two"]),
            ("a", ["one"]),
        ):
            once.begin(variant)
            for said in warnings:
                log.warning("%s", said)
    assert caplog.messages == ["both", "one", "one", "two"]
    assert [*once.says(3)] == ["both: holds for a; c", "two: holds for b; c"]


def test_a_long_warning_is_cut_before_a_bracket_and_between_words() -> None:
    few = "split: 61 test rows count as 26 independent rows (near-duplicates and rows of one group count once) and can"
    plain = f"split: {'word ' * 30}"
    once = WarningsOnce()
    for once.variant in ("a", "b"):
        for said in (few, plain):
            once.filter(logging.makeLogRecord({"levelno": logging.WARNING, "msg": said}))
    assert [*once.says(2)] == [
        "split: 61 test rows count as 26 independent rows …: holds for both variants",
        f"split:{' word' * 14} …: holds for both variants",
    ]


def test_the_winner_is_run_by_its_whole_assignments(tmp_path: Path) -> None:
    tried = asked(tmp_path, "method={kind: full},{kind: lora, rank: 8}", "training.epochs=1,2")
    found = of([trial(name, 0, float(number)) for number, name in enumerate(tried)], "mine")
    console = Console(file=StringIO(), width=200)
    show(console, found, tried, "mine.yaml")
    said = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "tunewright run mine.yaml --set 'method={kind: full}' --set training.epochs=1" in said
    serves = f"mlflow ui --backend-store-uri {tracking_uri(Registry())}"
    assert f"\nin MLflow           {found.link} (to open it, start: {serves})\n" in said


def test_a_winner_that_trains_on_a_part_of_the_rows_is_not_to_be_run(tmp_path: Path) -> None:
    tried = asked(tmp_path, "training.share=0.25,1")
    for best, is_run in (("share=0.25", False), ("share=1", True)):
        found = of([trial(name, 0, float(name != best)) for name in tried], "mine")
        console = Console(file=StringIO(), width=200)
        show(console, found, tried, "mine.yaml")
        said = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
        assert ("tunewright run mine.yaml" in said) is is_run


def test_the_command_line_refuses_before_anything_is_trained(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(FILE)
    refused = CliRunner().invoke(app, ["compare", str(file), "--vary", "gate.margin=0,0.1", "--json"])
    assert refused.exit_code == 2
    assert json.loads(refused.stdout.splitlines()[-1])["error"].startswith("--vary gate.margin: variants are compared")
