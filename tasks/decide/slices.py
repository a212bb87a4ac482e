"""The difference to the base in parts of the test rows: by source, language, length and label.

They show where to look, and are no part of the decision: of so many intervals some exclude 0 by luck.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from tunewright.artifacts.payloads import Slice
from tunewright.metrics.labels import ROWS_OF_A_LABEL
from tunewright.tasks.decide.decision import TO_BEAT, Evidence

SMALL = 30  # rows; an interval of fewer says little
LEAST = 5  # rows of a slice; fewer are not listed
LISTED = 20  # of each kind, those with the most rows


def slices(evidence: Evidence, kinds: Mapping[str, Mapping[str, str]], confidence: float) -> list[Slice]:
    """The slices of each kind that has more than one; `kinds` are {kind: {row_id: slice}}."""
    found = []
    for by, of_rows in kinds.items():
        counts = Counter(of_rows[row] for row in evidence.clusters)
        if len(counts) > 1:
            listed = sorted(counts, key=lambda name: (-counts[name], name))[:LISTED]
            for name in (name for name in listed if counts[name] >= LEAST):
                rows = {row: cluster for row, cluster in evidence.clusters.items() if of_rows[row] == name}
                paired = Evidence(evidence.metric, evidence.scores, rows).paired(TO_BEAT[0])
                part = Slice(
                    by=by,
                    name=name,
                    num_rows=len(rows),
                    candidate=float(paired.candidate.mean()),
                    base=float(paired.opponent.mean()),
                    difference=paired.interval(evidence.metric, confidence),
                    is_small=len(rows) < SMALL,
                )
                found.append(part)
    return found


def kinds(test: pa.Table, references: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """{kind: {row_id: slice}} of the test rows (row_id, source, messages) and their references.

    What a name shows of secrets and personal data is masked, as in other reports.
    """
    from tunewright.data_checks.columns import derive
    from tunewright.privacy.excerpts import in_a_line

    rows = [row for row in test.to_pylist() if row["row_id"] in references]
    said = [references[row["row_id"]] for row in rows]
    columns = derive([row["messages"] for row in rows], (), {"prompt_language", "prompt_chars"})
    found = {
        "source": [in_a_line(row["source"]) for row in rows],
        "language": [code if isinstance(code, str) else "unknown" for code in columns["prompt_language"]],
        "length": _lengths(columns["prompt_chars"].tolist()),
    }
    if len({*said}) * ROWS_OF_A_LABEL <= len(said):
        found["label"] = [in_a_line(text) for text in said]
    return {kind: dict(zip((row["row_id"] for row in rows), names, strict=True)) for kind, names in found.items()}


def _lengths(num_characters: Sequence[int]) -> list[str]:
    """The third that each prompt is in, by its characters."""
    short, middle = np.quantile(num_characters, [1 / 3, 2 / 3], method="inverted_cdf").tolist()
    names = (f"to {short:,} characters", f"{short + 1:,} to {middle:,} characters", f"over {middle:,} characters")
    return [names[int(length > short) + int(length > middle)] for length in num_characters]
