"""The reference, the model before its first step: the log-likelihoods of answers, or its likeliest tokens and theirs.

They are computed once and kept beside the job, so that no second model is held, and a resumed run has the same ones.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tunewright.artifacts import IGNORED
from tunewright.modeling.anchor import COLUMNS, AnchoredCollator, likeliest
from tunewright.modeling.batches import answer_likelihoods
from tunewright.modeling.preferences import REFERENCE, PairCollator, as_row
from tunewright.tasks.train.trainer import copies, ranks

FILE = "reference.parquet"  # in the trainer's folder: of the training and the validation pairs, or rows, in their order


def _kept(folder: Path, make: Callable[[], pa.Table]) -> pa.Table:
    """The table in the trainer's folder, which is made where there is none."""
    file = folder / FILE
    if not ranks.from_first(file.is_file):
        table = make()
        if ranks.own() == 0:
            unfinished = file.with_suffix(".part")
            pq.write_table(table, unfinished)
            unfinished.rename(file)
        ranks.wait()
    copies.on_each(folder, FILE)
    return pq.read_table(file)


def added(
    folder: Path, trainer: Any, collator: PairCollator, splits: Sequence[Any], on_progress: Callable[[str], None]
) -> list[Any]:
    """The data sets of pairs with the columns REFERENCE. The trainer's model is one that has taken no step.

    After each micro-batch, `on_progress` is called with what was done, in words.
    """

    def make() -> pa.Table:
        found, total = list[torch.Tensor](), sum(map(len, splits))
        for split in splits:
            before = sum(map(len, found))

            def tell(done: int, before: int = before) -> None:
                on_progress(f"measuring the reference: {before + done:,} of {total:,} rows")

            found.append(_measured(trainer, collator, split, tell))
        return pa.table(dict(zip(REFERENCE, torch.cat(found).double().numpy().T, strict=True)))

    kept, start, made = _kept(folder, make), 0, []
    for split in splits:
        own = kept.slice(start, len(split))
        start += len(split)
        for name in REFERENCE:
            split = split.add_column(name, own[name].to_numpy())
        made.append(split)
    return made


def _measured(trainer: Any, collator: PairCollator, pairs: Any, on_progress: Callable[[int], None]) -> torch.Tensor:
    """The log-likelihoods [pairs, 2]; those of prompts that begin alike are computed together."""
    rows = [as_row(pair, branches=collator.layout == "shared") for pair in pairs]
    order = sorted(range(len(rows)), key=lambda at: rows[at]["input_ids"])
    found = torch.zeros(len(rows), 2)
    for start in range(0, len(order), collator.micro_batch):
        some = order[start : start + collator.micro_batch]
        batch = collator.lay([rows[at] for at in some])
        measured = trainer.measured(batch, partial(answer_likelihoods, number=2 * len(some)))
        found[some] = measured.view(-1, 2).float().cpu()
        on_progress(start + len(some))
    return found


def anchored(
    folder: Path, trainer: Any, collator: AnchoredCollator, rows: Any, on_progress: Callable[[str], None]
) -> Any:
    """The data set of rows with anchor.COLUMNS, which are empty but of general rows; else as `added`."""

    def make() -> pa.Table:
        general = [at for at, is_general in enumerate(rows["replay"]) if is_general]
        general.sort(key=lambda at: len(rows[at]["input_ids"]))
        found: dict[str, list[Any]] = {name: [None] * len(rows) for name in COLUMNS}
        for start in range(0, len(general), collator.micro_batch):
            places = general[start : start + collator.micro_batch]
            some = [rows[at] for at in places]
            measured = trainer.measured(collator.lay(some), likeliest)
            ends = np.cumsum([sum(label != IGNORED for label in row["labels"][1:]) for row in some])
            for name, each in zip(COLUMNS, measured, strict=True):
                for at, of_row in zip(places, np.split(each.cpu().numpy(), ends[:-1]), strict=True):
                    found[name][at] = of_row.ravel()
            on_progress(f"measuring the base: {start + len(some):,} of {len(general):,} general rows")
        return pa.table({name: pa.array(found[name], pa.list_(kind)) for name, kind in COLUMNS.items()})

    table = rows.data.table
    kept = _kept(folder, make)
    for name in COLUMNS:
        table = table.append_column(name, kept[name])
    return datasets.Dataset(table)
