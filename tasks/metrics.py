"""What an answer is worth beside its reference: one score a row in 0..1, and perplexity over all of them.

Each is an evaluate.Metric of this module, so that nothing is fetched from a hub or run from a script of that name.
"""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from statistics import fmean
from typing import Any

from tasks import config

# Words and numbers; every sign; and every character of a script that puts no spaces between its words:
# Thai to Tibetan, Burmese, Khmer, kana, Han.
SPACELESS = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
TOKEN = re.compile(rf"[{SPACELESS}]|[^\W{SPACELESS}]+|[^\w\s]")


def exact_match(answer: str, reference: str) -> float:
    """1.0 where both are equal after Unicode NFC and without the space around them; case and signs count."""
    return float(_plain(answer) == _plain(reference))


def token_f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall of the answer's tokens, as a bag (SQuAD: Rajpurkar et al. 2016, 4.3).

    Unlike SQuAD's, case, signs and articles count, since these answers need not be English or prose; and in a script
    without spaces each character is a token. Two empty texts score 1.0.
    """
    said, wanted = Counter(TOKEN.findall(_plain(answer))), Counter(TOKEN.findall(_plain(reference)))
    if not said or not wanted:
        return float(said == wanted)
    return 2 * (said & wanted).total() / (said.total() + wanted.total())


def chrf(answer: str, reference: str) -> float:
    """sacrebleu's sentence-level chrF2 (Popović 2015) over 100: of characters, so for any script. Two empty: 1.0."""
    answer, reference = _plain(answer), _plain(reference)
    if not answer and not reference:
        return 1.0
    return _sacrebleu_chrf().sentence_score(answer, [reference]).score / 100


def json_valid(answer: str, reference: str = "") -> float:
    """1.0 where the answer is a JSON object or array and nothing else: no key twice, no NaN or Infinity, no fence."""
    try:
        parsed = json.loads(answer, object_pairs_hook=_without_repeats, parse_constant=_refuse)
    except (ValueError, RecursionError):  # the second from brackets thousands deep
        return 0.0
    return float(isinstance(parsed, dict | list))


def perplexity(nlls: Sequence[float], num_tokens: Sequence[int]) -> float:
    """exp of the mean negative log-likelihood a token; `nlls` are the sums of each row, in nats."""
    if not sum(num_tokens):
        raise ValueError("no tokens to score")
    return math.exp(math.fsum(nlls) / sum(num_tokens))


PER_ROW: dict[config.Metric, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "chrf": chrf,
    "json_valid": json_valid,
}


def applicable(names: Sequence[config.Metric], references: Sequence[str]) -> list[config.Metric]:
    """The metrics that mean something here: json_valid only where every reference is valid JSON itself."""
    all_json = all(json_valid(reference) for reference in references)
    return [name for name in names if name != "json_valid" or all_json]


def load(name: config.Metric) -> Any:
    """A new evaluate.Metric: its compute(predictions=, references=) gives {name: mean, "rows": [score of each row]}.

    Perplexity's predictions are the rows' summed negative log-likelihoods and its references their token counts; its
    "rows" are nats a token. compute raises ValueError on no rows at all.
    """
    per_row, perplexity_metric = _classes()
    # In memory: on disk each further instance of a metric waits a second for the lock of the one before.
    return perplexity_metric(keep_in_memory=True) if name == "perplexity" else per_row(name, keep_in_memory=True)


@cache
def _classes() -> tuple[type, type]:
    import datasets
    import evaluate

    def info(description: str, of: str, beside: str) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value(of), "references": datasets.Value(beside)})
        return evaluate.MetricInfo(description=description, citation="", features=features)

    class PerRow(evaluate.Metric):
        """The mean of a function of answer and reference."""

        def __init__(self, name: config.Metric, **options: Any) -> None:
            self.metric: config.Metric = name
            super().__init__(config_name=name, **options)

        def _info(self) -> evaluate.MetricInfo:
            return info(PER_ROW[self.metric].__doc__ or "", "string", "string")

        def _compute(self, *, predictions: Any = None, references: Any = None, **_: Any) -> dict[str, Any]:
            rows = [PER_ROW[self.metric](*pair) for pair in zip(predictions, references, strict=True)]
            return {self.metric: fmean(rows), "rows": rows}

    class Perplexity(evaluate.Metric):
        """Over all tokens of all rows."""

        def _info(self) -> evaluate.MetricInfo:
            return info(perplexity.__doc__ or "", "float64", "int64")

        def _compute(self, *, predictions: Any = None, references: Any = None, **_: Any) -> dict[str, Any]:
            rows = [nll / num_tokens for nll, num_tokens in zip(predictions, references, strict=True)]
            return {"perplexity": perplexity(predictions, references), "rows": rows}

    return PerRow, Perplexity


@cache
def _sacrebleu_chrf() -> Any:
    from sacrebleu import CHRF

    return CHRF()


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        raise ValueError("a key stands twice")
    return parsed


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
