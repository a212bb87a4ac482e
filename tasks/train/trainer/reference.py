"""The reference of preference training: the log-likelihoods of both answers by the model before its first step.

They are computed once and kept beside the job, so that no second model is held, and a resumed run has the same ones.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tunewright.modeling.preferences import REFERENCE, PairCollator, as_row
from tunewright.tasks.train.trainer import copies, ranks

FILE = "reference.parquet"  # in the trainer's folder: of the training and the validation pairs, in their order


def added(
    folder: Path, trainer: Any, collator: PairCollator, splits: Sequence[Any], on_progress: Callable[[str], None]
) -> list[Any]:
    """The data sets of pairs with the columns REFERENCE. The trainer's model is one that has taken no step.

    After each micro-batch, `on_progress` is called with what was done, in words.
    """
    file = folder / FILE
    if not ranks.from_first(file.is_file):
        found, total = list[torch.Tensor](), sum(map(len, splits))
        for split in splits:
            before = sum(map(len, found))

            def tell(done: int, before: int = before) -> None:
                on_progress(f"measuring the reference: {before + done:,} of {total:,} rows")

            found.append(_measured(trainer, collator, split, tell))
        table = pa.table(dict(zip(REFERENCE, torch.cat(found).double().numpy().T, strict=True)))
        if ranks.own() == 0:
            unfinished = file.with_suffix(".part")
            pq.write_table(table, unfinished)
            unfinished.rename(file)
        ranks.wait()
    copies.on_each(folder, FILE)
    kept, start, made = pq.read_table(file), 0, []
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
        found[some] = trainer.likelihoods(batch, 2 * len(some)).view(-1, 2).float().cpu()
        on_progress(start + len(some))
    return found
