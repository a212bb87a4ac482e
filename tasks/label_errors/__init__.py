"""Training rows whose answers are likely wrong, found by cross-validation.

The training rows are dealt into folds, rows of one cluster into the same one. A model that is trained on the other
folds, and so saw neither a row nor its near-duplicates and group, answers it. If it finds its own answer far likelier
than the given one, the given one is likely a label error: the idea of confident learning (Northcutt et al. 2021,
"Confident Learning: Estimating Uncertainty in Dataset Labels"), with answers in place of classes and one threshold for
all. People decide what becomes of such rows; none is quarantined, and no other stage depends on it.
"""

import logging
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright import cost_model
from tunewright.artifacts import Base, LabelErrors, Scan, Splits, SuspectedRow, Tokens
from tunewright.artifacts.payloads import Contract, TrainingSummary
from tunewright.config import Compute, Method, Training
from tunewright.errors import ConfigError, TunewrightError, visible
from tunewright.metrics.labels import Labels, are_labels
from tunewright.metrics.texts import plain
from tunewright.modeling.models import load_model, load_tokenizer, merged
from tunewright.privacy.excerpts import ends, in_a_line, masked
from tunewright.reports.pages import counted, template
from tunewright.reports.progress import Countdown
from tunewright.store.caching import work_folder
from tunewright.store.stage import stage
from tunewright.tasks.train import trainer
from tunewright.tasks.train.stage import LIBRARIES, run_trainer

if TYPE_CHECKING:
    from tunewright.generation import Answer

log = logging.getLogger("tunewright")

LABEL_ERRORS_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("fold", pa.int64()),  # whose model, trained on the others, answered
        ("loss", pa.float64()),  # of the given answer, in nats per token
        # Log-likelihood of the model's own answer less that of the given one, both over all tokens, in nats. It can be
        # below 0: the likeliest token each time need not make the likeliest answer.
        ("log_odds", pa.float64()),
        ("likely", pa.bool_()),  # whether that is LIKELY or more; among labels, if the own answer is one of them
        ("reference", pa.string()),  # the given answer
        ("answer", pa.string()),  # the model's own
    ]
)
MOSTLY = 2  # likely errors of a label; with more, and more than half of its rows, it is told
LIKELY = math.log(20)  # nats: the model finds its own answer twenty times as likely as the given one
BATCH = 32  # rows that are answered at once, or fewer where memory does not suffice
MOST = math.log(1e6)  # nats; more is not told apart on the page
SHOWN, NAMED = 100, 5  # rows on the page, and in a terminal
SHOWN_CHARS = 600  # of a prompt or an answer on the page


class LabelCount(NamedTuple):
    """How many rows have a label, got it as the model's answer, and are likely errors."""

    name: str
    num_rows: int
    num_same: int
    num_likely: int


def require_clusters(number: int, num_folds: int) -> None:
    """Raises ConfigError where so many clusters of training rows cannot be dealt into the folds."""
    if number < num_folds:
        accepted = f"accepted: at most {number}" if number > 1 else "so none can be left out"
        raise ConfigError(
            f"checks.label_error_folds={num_folds}: all training rows are in {counted(number, 'cluster')} (of "
            f"near-duplicates, and of rows of one group); {accepted}; for more clusters raise split.threshold, or name "
            "no group in columns"
        )


def dealt(rows: pa.Table, num_folds: int) -> np.ndarray:
    """The fold of each row [rows], 0 to num_folds - 1; -1 of a row for replay, which trains in each.

    Clusters are dealt in turn, by their first answer, so that each fold has its share of each label, and then by the
    smallest id of their rows, which are hashes. Raises ConfigError where there are fewer clusters than folds.
    """
    clusters = rows.filter(~pc.field("replay")).group_by("cluster").aggregate([("reference", "min"), ("row_id", "min")])
    ordered = clusters.sort_by([("reference_min", "ascending"), ("row_id_min", "ascending")])["cluster"].to_pylist()
    require_clusters(len(ordered), num_folds)
    fold_of = {cluster: at % num_folds for at, cluster in enumerate(ordered)}
    replay = rows["replay"].to_pylist()
    return np.array([-1 if r else fold_of[c] for c, r in zip(rows["cluster"].to_pylist(), replay, strict=True)])


def _without_fold(work: Path, tokens: Tokens, rows: pa.Table, is_in_fold: np.ndarray) -> Path:
    """A folder as render's with the training rows of the other folds."""
    folder = work / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows.filter(pa.array(~is_in_fold)), folder / "train.parquet")
    for name in ("validation.parquet", Contract.FILE):
        shutil.copy(tokens.path(name), folder)
    return folder


def _answered(base: Base, model: Path, tokens: Tokens, rows: pa.Table, fold: str) -> Iterator[dict[str, Any]]:
    """Yield what the model in a folder says of each row (TOKEN_SCHEMA): its id, scores and answers."""
    from tunewright.generation import Greedy

    loaded, tokenizer = merged(load_model(base, model)), load_tokenizer(base)
    stops = Contract.load(tokens).stop_token_ids
    greedy = Greedy(loaded, stops=stops, max_new_tokens=tokens.longest_answer, batch=BATCH)
    countdown = Countdown(len(rows), "answers", "label-errors-progress", fold)
    for some, given in greedy.answer_table(rows, countdown.tell):
        texts = [answer.text(tokenizer, row["reference"], stops) for row, answer in zip(some, given, strict=True)]
        differs = (row["reference"].strip() != text.strip() for row, text in zip(some, texts, strict=True))
        other = {at: _own(given[at]) for at, is_other in enumerate(differs) if is_other}
        if other:
            greedy.answer([*other.values()], generate=False)
        for at, (row, answer, text) in enumerate(zip(some, given, texts, strict=True)):
            yield {
                "row_id": row["row_id"],
                "loss": answer.mean_nll,
                "log_odds": answer.nll - other[at].nll if at in other else 0.0,
                "reference": row["reference"],
                "answer": text,
            }


def _own(answer: "Answer") -> "Answer":
    """The model's own answer, as the reference of the same question."""
    stop = [answer.stop] if answer.stop is not None else []
    return type(answer)(list(answer.prompt), [*answer.tokens, *stop])


def _places(splits: Splits) -> dict[str, tuple[str, int]]:
    """The file and line of each training row, by its id."""
    found = pq.read_table(splits.path("train.parquet"), columns=["row_id", "file", "line"])
    places = zip(found["file"].to_pylist(), found["line"].to_pylist(), strict=True)
    return dict(zip(found["row_id"].to_pylist(), places, strict=True))


def _prompts(splits: Splits, wanted: set[str]) -> dict[str, str]:
    """The last message before the answer of each training row of these ids."""
    found = pq.read_table(splits.path("train.parquet"), columns=["row_id", "messages"])
    found = found.filter(pc.field("row_id").isin(pa.array([*wanted], pa.string()))).to_pylist()
    return {row["row_id"]: row["messages"][-2]["content"] if len(row["messages"]) > 1 else "" for row in found}


def _shown(text: str) -> str:
    return visible(ends(masked(text), SHOWN_CHARS))


def _line(text: str) -> str:
    return visible(in_a_line(text))


def _by_label(found: Sequence[Mapping[str, Any]], labels: Labels | None) -> list[LabelCount]:
    """The rows of each label, those with the most likely errors first; none where answers are no labels."""
    counts = {name: LabelCount(name, 0, 0, 0) for name in sorted(labels.exactly if labels else ())}
    for row in found if labels else ():
        name, num_rows, num_same, num_likely = counts[plain(row["reference"])]
        same, likely = num_same + (row["answer"] == row["reference"]), num_likely + row["likely"]
        counts[name] = LabelCount(name, num_rows + 1, same, likely)
    return sorted(counts.values(), key=lambda each: -each.num_likely)


def _page(
    found: LabelErrors,
    suspected: Sequence[Mapping[str, Any]],
    prompts: Mapping[str, str],
    by_label: Sequence[LabelCount],
) -> str:
    labels = [each._replace(name=_shown(each.name)) for each in by_label]
    shown = [
        {
            "file": visible(row["file"]),
            "line": row["line"],
            "times": f"{math.exp(row['log_odds']):,.0f}" if row["log_odds"] < MOST else f"over {math.exp(MOST):,.0f}",
            "texts": [_shown(text) for text in (prompts[row["row_id"]], row["reference"], row["answer"])],
        }
        for row in suspected[:SHOWN]
    ]
    page = template(Path(__file__).with_name("page.html"))
    return page.render(found=found, rows=shown, labels=labels, times=math.exp(LIKELY))


@stage("{num_folds} folds", libraries=(*LIBRARIES, "numpy", "pyarrow", "jinja2"), volatile=("seconds",))
def label_errors(
    folder: Path,
    splits: Splits,
    tokens: Tokens,
    base: Base,
    method: Method,
    training: Training,
    compute: Compute,
    num_folds: int,
    scan: Scan | None = None,
) -> LabelErrors:
    """The training rows, the likeliest label errors first, each with the answer of a model trained without it.

    A model is trained for each fold, as `train` would on the other folds; a killed run goes on where it was. Raises
    ConfigError where there are too few rows, TunewrightError where likelihoods are not finite, and what the trainer
    raises.
    """
    work = work_folder(folder)
    rows = pq.read_table(tokens.path("train.parquet"))
    folds, places = dealt(rows, num_folds), _places(splits)
    counts = Counter(map(plain, rows.filter(~pc.field("replay"))["reference"].to_pylist()))
    labels = Labels([*counts]) if are_labels(counts.values()) else None
    found: list[dict[str, Any]] = []
    with cost_model.on_devices(compute.devices):
        micro_batch, ddp, shortage = cost_model.before_training(base, tokens, method, training, compute)
        if shortage:
            log.warning("  %s", shortage)
        for fold in range(num_folds):
            own, is_in_fold = work / f"fold_{fold}", folds == fold
            said, answers = f"fold {fold + 1} of {num_folds}", own / "answers.parquet"
            if not answers.is_file():
                log.info("  %s: training on %d rows, answering %d", said, (~is_in_fold).sum(), is_in_fold.sum())
                job = trainer.Job.of(
                    base.weights,
                    _without_fold(own, tokens, rows, is_in_fold),
                    reference=base.reference,
                    method=method,
                    modules=scan.chosen if scan else (),
                    training=training,
                    compute=compute,
                    micro_batch=micro_batch,
                    ddp=ddp,
                )
                if not (own / TrainingSummary.FILE).is_file():  # the last that a finished training writes
                    run_trainer(job, own)
                answered = _answered(base, own / "model", tokens, rows.filter(pa.array(is_in_fold)), said)
                pq.write_table(pa.Table.from_pylist([*answered]), own / "unfinished.parquet")
                (own / "unfinished.parquet").rename(answers)
            for row in pq.read_table(answers).to_pylist():
                file, line = places[row["row_id"]]
                likely = row["log_odds"] >= LIKELY and (labels is None or labels.read(row["answer"]) is not None)
                found.append({**row, "file": file, "line": line, "fold": fold, "likely": likely})
    if unknown := sum(not math.isfinite(row["log_odds"]) for row in found):
        raise TunewrightError(
            f"{unknown} of {len(found)} training rows have NaN or infinite likelihoods, as the training on the other "
            "folds diverged; try a lower training.learning_rate"
        )
    found.sort(key=lambda row: -row["log_odds"])
    pq.write_table(pa.Table.from_pylist(found, LABEL_ERRORS_SCHEMA), folder / "label_errors.parquet")
    suspected, by_label = [row for row in found if row["likely"]], _by_label(found, labels)
    made = LabelErrors(
        num_folds=num_folds,
        num_rows=len(found),
        num_same=sum(row["answer"] == row["reference"] for row in found),
        num_likely=len(suspected),
        named=tuple(
            SuspectedRow(visible(row["file"]), row["line"], *(_line(row[name]) for name in ("reference", "answer")))
            for row in suspected[:NAMED]
        ),
        unlearned=tuple(
            f"{each.num_likely} of the {each.num_rows} rows with {_line(each.name)!r}"
            for each in by_label
            if each.num_likely > max(MOSTLY, each.num_rows / 2)
        ),
    )
    prompts = _prompts(splits, {row["row_id"] for row in suspected[:SHOWN]})
    (folder / "report.html").write_text(_page(made, suspected, prompts, by_label), encoding="utf-8")
    return made
