"""How often the decision is wrong, and how often it sees a better model: simulated test sets, decided as in a run.

    .venv/bin/python benchmarks/decision.py

Of each kind of scores and number of rows it draws models that are equal to the base, and models that are five points
better, and prints how often they are promoted: by Gaffke's bound, which decides; by Student's t over clusters with an
imagined win and an imagined loss, which decided before; and by whoever has the higher mean. Beside the share of better
models that are promoted stands the power that the verdicts themselves say. Then come models that are far above the
base, but no better than the champion, or just not as good as a prompt. Then come prompts that are ended once their
comparison is settled, beside the comparison of all rows, at the level of a first test-set use: how often either finds
the candidate at least as good or the prompt better, and on how many of the rows. At last come histories: a hundred
candidates, one after the other, on one test set, where alpha is spent as in a run, and where each that is promoted is
the champion of the next. It exits with 1 where equal models are promoted in more than one of twenty trials or
histories, where a prompt is misjudged in more than one of forty, or where the power is not within three points, and two
standard errors each.

Two things are printed and are no failures. Where a few losses decide, as in the skewed kinds, one more or less changes
the verdict, and the power said is up to thirteen points off, mostly too low. And a loss in nats has no worst value, so
that no bound can hold for it: the t of before errs about as often, or more.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from tunewright.config import Gate
from tunewright.metrics.intervals import Floats, PowerAnalysis
from tunewright.metrics.paired import Paired
from tunewright.store.test_set_uses import share_of
from tunewright.tasks.decide.comparison import EFFECT
from tunewright.tasks.decide.decision import Decision, Evidence, decide_scores
from tunewright.tasks.evaluate.interim import alpha_shares, blocks

GATE = Gate(metric="token_f1")
CANDIDATES = 100  # of a history
LUCK = 0.5  # share of clusters on which all candidates of a history have the same luck
IN_HISTORIES = ("0/1, 10% differ", "0/1, clusters", "graded", "skewed")
MUCH_BETTER = 0.2
LEVEL = 1 - GATE.confidence
FIRST = LEVEL * share_of(1, 0.0)  # level of the first use of a test set
PROMPTED = ("0/1, 30% differ", "0/1, clusters", "graded", "skewed")  # kinds of scores
PROMPTED_ROWS = 300
AHEAD = (-GATE.tolerance, 0.0, 0.06, 0.12, 0.25)  # by how much a candidate scores more than a prompt, or less
POWER_TRIALS = 4  # times as many as of equal models, since three points are to be told
SAID = 20  # of so many better models the power is computed of one
UNBOUNDED = "perplexity"

Draw = Callable[[np.random.Generator, np.ndarray, float], tuple[Floats, Floats]]


def right_or_wrong(differing: float, shared: float = 0.0) -> Draw:
    """Scores 0 and 1, of which so many differ; a share of the rows does as its cluster does."""

    def draw(generator: np.random.Generator, clusters: np.ndarray, gain: float) -> tuple[Floats, Floats]:
        num_rows = len(clusters)
        chance, base = _shared(generator, clusters, shared), generator.random(num_rows) < 0.5
        wins, losses = chance < (differing + gain) / 2, chance > 1 - (differing - gain) / 2
        base = np.where(wins, 0.0, np.where(losses, 1.0, base))
        return base + wins - losses, base

    return draw


def graded(spread: float, shared: float = 0.0) -> Draw:
    """Scores from 0 to 1, many of them equal: of an F1 or chrF."""

    def draw(generator: np.random.Generator, clusters: np.ndarray, gain: float) -> tuple[Floats, Floats]:
        noise = np.where(_shared(generator, clusters, shared) < 0.4, generator.normal(0, spread, len(clusters)), 0)
        noise = noise.clip(gain - 0.9, 0.9 - gain)
        base = generator.uniform(0, 1, len(clusters))
        base = base.clip(-(gain + noise).clip(max=0), 1 - (gain + noise).clip(min=0))
        return base + gain + noise, base

    return draw


def in_steps(num_fields: int) -> Draw:
    """The share of right fields of so many: graded, with ties; one row in four differs, by any number of fields."""

    def draw(generator: np.random.Generator, clusters: np.ndarray, gain: float) -> tuple[Floats, Floats]:
        num_rows = len(clusters)
        fields = generator.integers(1, num_fields + 1, num_rows) / num_fields
        chance = gain / (num_fields + 1) * 2 * num_fields  # of a win, more than of a loss
        drawn = generator.random(num_rows)
        change = fields * np.where(drawn < 0.125 + chance / 2, 1.0, np.where(drawn > 0.875 + chance / 2, -1.0, 0.0))
        return change.clip(min=0), -change.clip(max=0)

    return draw


def few_losses(expected: float | None = None, share: float = 0.05) -> Draw:
    """Many small wins, and few losses of a whole point: of a share of the clusters, or of so many in a test set."""

    def draw(generator: np.random.Generator, clusters: np.ndarray, gain: float) -> tuple[Floats, Floats]:
        num_clusters = clusters.max() + 1
        lost = expected / num_clusters if expected else share
        is_lost = (generator.random(num_clusters) < lost)[clusters]
        won = (lost + gain) / (1 - lost)
        return np.where(is_lost, 0.0, won), np.where(is_lost, 1.0, 0.0)

    return draw


def _shared(generator: np.random.Generator, clusters: np.ndarray, share: float) -> Floats:
    of_rows, of_clusters = generator.random((2, len(clusters)))
    return np.where(generator.random(len(clusters)) < share, of_clusters[clusters], of_rows)


Sizes = Callable[[np.random.Generator, int], np.ndarray]


def geometric(mean: float) -> Sizes:
    """Sizes of clusters around a mean."""
    return lambda generator, num_rows: generator.geometric(1 / mean, num_rows)


def always(size: int) -> Sizes:
    """Clusters of one size."""
    return lambda _, num_rows: np.full(num_rows, size)


def heavy_tailed(generator: np.random.Generator, num_rows: int) -> np.ndarray:
    """Most clusters are of one row, and the largest may have a tenth of all."""
    return np.ceil(generator.pareto(1.5, num_rows)).clip(1, num_rows / 10).astype(int)


class Kind(NamedTuple):
    """A kind of test set."""

    draw: Draw
    sizes: Sizes = always(1)
    metric: str = GATE.metric
    is_skewed: bool = False


KINDS: dict[str, Kind] = {
    "0/1, 10% differ": Kind(right_or_wrong(0.1)),
    "0/1, 30% differ": Kind(right_or_wrong(0.3)),
    "0/1, clusters": Kind(right_or_wrong(0.2, shared=0.8), geometric(2)),
    "0/1, unequal clusters": Kind(right_or_wrong(0.2, shared=0.8), heavy_tailed),
    "graded": Kind(graded(0.4)),
    "graded, clusters": Kind(graded(0.4, shared=0.8), geometric(2)),
    "graded with ties": Kind(in_steps(4)),
    "skewed": Kind(few_losses(), is_skewed=True),
    "skewed, 3 losses": Kind(few_losses(3), is_skewed=True),
    "skewed, clusters of 3": Kind(few_losses(), always(3), is_skewed=True),
    "skewed, 3 clusters of 3": Kind(few_losses(3), always(3), is_skewed=True),
    "skewed, clusters": Kind(few_losses(4), geometric(2), is_skewed=True),
    "skewed, unequal clusters": Kind(few_losses(4), heavy_tailed, is_skewed=True),
    "unbounded": Kind(graded(0.4), metric=UNBOUNDED),
    "unbounded, skewed": Kind(few_losses(), metric=UNBOUNDED),
}


class Line(NamedTuple):
    """Shares of the trials, 0 to 1."""

    kind: str
    num_rows: int
    promoted: float  # equal models
    promoted_by_t: float
    higher_mean: float
    seen: float  # better models
    power: float  # as the verdicts say it
    seen_by_t: float


def clusters_of(sizes: np.ndarray, num_rows: int) -> np.ndarray:
    """(rows,) clusters of these sizes, numbered from 0."""
    return np.repeat(np.arange(len(sizes)), sizes)[:num_rows]


def decision(clusters: np.ndarray, candidate: Floats, base: Floats, **others: Floats) -> Decision:
    """The decision on the candidate among these scores, by the same function as in a run."""
    contenders = {"candidate": candidate, "base": base, **others}
    rows = [f"{row:04}" for row in range(len(clusters))]
    scores = {name: dict(zip(rows, of_rows.tolist(), strict=True)) for name, of_rows in contenders.items()}
    evidence = Evidence(GATE.metric, scores, dict(zip(rows, clusters.tolist(), strict=True)))
    return decide_scores(evidence, GATE)


def share(found: Iterable[float]) -> float:
    """The mean of what was found in each trial."""
    return float(np.mean(list(found)))


def by_t(differences: Floats, clusters: np.ndarray) -> bool:
    """Whether the bound of Student's t over clusters is above 0, with an imagined win and an imagined loss.

    They are clusters of the mean size, and as large as the largest difference, or twice the root mean square of those
    that are not 0, if that is less.
    """
    sizes, changed = np.bincount(clusters).astype(float), np.abs(differences[differences != 0])
    large = min(changed.max(), 2 * math.sqrt((changed**2).mean())) if len(changed) else 1.0
    pair = np.array([-large, large]) * sizes.mean()
    sums = np.append(np.bincount(clusters, differences), pair)
    sizes = np.append(sizes, [sizes.mean(), sizes.mean()])
    mean, num_clusters = sums.sum() / sizes.sum(), len(sums)
    error = math.sqrt(((sums - mean * sizes) ** 2).sum() * num_clusters / (num_clusters - 1)) / sizes.sum()
    return mean > stdtrit(num_clusters - 1, GATE.confidence) * error


def simulate(kind: str, num_rows: int, trials: int, seed: int) -> Line:
    """One line of the table. A p value below the level is a bound above 0, and takes less time."""
    generator, (draw, sizes, metric) = np.random.default_rng([seed, num_rows, *kind.encode()]), KINDS[kind][:3]
    equal, better = (
        [
            Paired(*draw(generator, clusters, gain), clusters)
            for clusters in (clusters_of(sizes(generator, num_rows), num_rows) for _ in range(number))
        ]
        for gain, number in ((0.0, trials), (EFFECT, POWER_TRIALS * trials))
    )
    if metric == UNBOUNDED:  # where lower is better
        equal, better = (
            [Paired(-own, -theirs, clusters) for own, theirs, clusters in each] for each in (equal, better)
        )

    def promoted(pairs: list[Paired]) -> float:
        return share(pair.evidence(metric).p_not_above(0.0) < LEVEL for pair in pairs)

    def promoted_by_t(pairs: list[Paired]) -> float:
        return share(by_t(pair.differences(metric), pair.clusters) for pair in pairs)

    return Line(
        kind,
        num_rows,
        promoted=promoted(equal),
        promoted_by_t=promoted_by_t(equal),
        higher_mean=share(pair.differences(metric).mean() > 0 for pair in equal),
        seen=promoted(better),
        power=share(
            PowerAnalysis(pair.evidence(metric), 0.0, GATE.confidence).power(EFFECT) for pair in better[::SAID]
        ),
        seen_by_t=promoted_by_t(better),
    )


def beside_others(trials: int, seed: int) -> dict[str, float]:
    """The share of candidates far above the base that are promoted although they miss something else."""
    generator, num_rows = np.random.default_rng(seed), 200
    draw, clusters = right_or_wrong(0.2), np.arange(num_rows)
    wrong = np.zeros(num_rows)
    shares = {}
    for missed, gain in (("champion", 0.0), ("few_shot", -GATE.tolerance)):
        pairs = [draw(generator, clusters, gain) for _ in range(trials)]
        decided = (decision(clusters, own, wrong, **{missed: theirs}) for own, theirs in pairs)
        shares[missed] = share(each.decision == "promote" for each in decided)
    return shares


class Ended(NamedTuple):
    """Shares of the trials, 0 to 1, of a prompt; and of the rows, those that it answered."""

    matched: float
    better: float
    matched_by_all: float  # by one comparison of all rows
    better_by_all: float
    rows: float


def ended(kind: str, num_rows: int, gain: float, trials: int, seed: int) -> Ended:
    """Simulate prompts that a candidate is ahead of by `gain`, compared as evaluate and decide do."""
    generator, (draw, sizes, metric, _) = np.random.default_rng([seed, num_rows, *kind.encode()]), KINDS[kind]
    found = []
    for _ in range(trials):
        clusters = clusters_of(sizes(generator, num_rows), num_rows)
        scores = Paired(*draw(generator, clusters, gain), clusters)
        found.append((*_ended(scores, metric), *_concluded(scores, metric, FIRST)))
    matched, better, rows, matched_by_all, better_by_all = (share(column) for column in zip(*found, strict=True))
    return Ended(matched, better, matched_by_all, better_by_all, rows / num_rows)


def _ended(scores: Paired, metric: str) -> tuple[bool, bool, int]:
    """The conclusions of the last comparison, and the number of its rows."""
    number, found = 0, blocks([f"{row}" for row in range(len(scores.clusters))], scores.clusters.tolist())
    order, concluded = np.concatenate(found), (False, False)
    for block, alpha_share in zip(found, alpha_shares(len(found)), strict=True):
        number += len(block)
        some = Paired(*(each[order[:number]] for each in scores))
        concluded = matched, better = _concluded(some, metric, FIRST * alpha_share)
        if better or (matched and some.differences(metric).mean() >= 0):
            break
    return *concluded, number


def _concluded(scores: Paired, metric: str, level: float) -> tuple[bool, bool]:
    """Whether the candidate is at least as good, and whether the prompt is better."""
    evidence = scores.evidence(metric)
    return evidence.p_not_above(-GATE.tolerance) < level, evidence.p_not_below(0.0) < level


class Histories(NamedTuple):
    """Shares of histories in which a candidate that is equal to the base is promoted, 0 to 1."""

    by_spending: float
    by_confidence: float  # each tested at gate.confidence, as if the test rows were new


def histories(kind: str, num_rows: int, trials: int, seed: int, *, better_every: int = 0) -> Histories:
    """Simulate histories of CANDIDATES; each `better_every`-th one is MUCH_BETTER, and its promotion is no error."""
    generator = np.random.default_rng([seed, num_rows, better_every, *kind.encode()])
    found = [_history(kind, num_rows, generator, better_every) for _ in range(trials)]
    return Histories(*(share(each[at] for each in found) for at in (0, 1)))


def _history(kind: str, num_rows: int, generator: np.random.Generator, better_every: int) -> tuple[bool, bool]:
    """Whether any equal candidate is promoted: at what its use may spend, and at gate.confidence.

    The first are equal to the base, or better, and those after a promotion to the new champion, or better than it.
    """
    draw, sizes, metric, _ = KINDS[kind]
    clusters = clusters_of(sizes(generator, num_rows), num_rows)
    luck, by_spending, by_confidence, carried = draw(generator, clusters, 0.0), False, False, 0.0
    for number in range(1, CANDIDATES + 1):
        is_better = bool(better_every) and number % better_every == 0
        scores = draw(generator, clusters, MUCH_BETTER if is_better else 0.0)
        if not is_better:
            same = (generator.random(clusters.max() + 1) < LUCK)[clusters]
            scores = np.where(same, luck[0], scores[0]), np.where(same, luck[1], scores[1])
        p = Paired(*scores, clusters).evidence(metric).p_not_above(0.0)
        alpha_share = share_of(number, carried)
        carried = alpha_share if p < alpha_share * LEVEL else 0.0
        if carried:
            luck = draw(generator, clusters, 0.0)  # beside another champion
        by_spending |= carried > 0 and not is_better
        by_confidence |= p < LEVEL and not is_better
    return by_spending, by_confidence


def main() -> int:
    """Prints the table; returns 1 where the decision does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1_000, help="of equal models, and four times as many of better")
    parser.add_argument("--rows", type=int, nargs="+", default=[40, 60, 146, 400])
    parser.add_argument("--histories", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    most = LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / given.trials)
    print(f"share promoted of {given.trials:,} models that are equal to the base, and that are {EFFECT:.0%} better\n")
    print(f"{'':32}{'equal to the base':^36}{'better':^30}")
    columns = ("decide", "t", "higher mean", "decide", "said", "t")
    print(f"{'scores':26}{'rows':>6}" + "".join(f"{column:>12}" for column in columns))
    failures = []
    for kind in KINDS:
        for num_rows in given.rows:
            line = simulate(kind, num_rows, given.trials, given.seed)
            print(f"{line.kind:26}{line.num_rows:>6}" + "".join(f"{value:>12.3f}" for value in line[2:]), flush=True)
            error = math.sqrt(line.seen * (1 - line.seen) / (POWER_TRIALS * given.trials))
            is_off = abs(line.seen - line.power) > 0.03 + 2 * error and not KINDS[kind].is_skewed
            if KINDS[kind].metric != UNBOUNDED and (line.promoted > most or is_off):
                failures.append(f"{kind}, {num_rows} rows")
    for missed, promoted in beside_others(given.trials, given.seed).items():
        print(f"far above the base, but not surely above the threshold beside the {missed}: {promoted:.3f} promoted")
        if promoted > most:
            failures.append(missed)
    print(f"\nshares of {given.trials:,} prompts, ended once settled and by all rows, on {PROMPTED_ROWS} test rows\n")
    columns = ("ahead", "matched", "by all", "better", "by all", "of the rows")
    print(f"{'scores':26}" + "".join(f"{column:>12}" for column in columns))
    most = FIRST + 2 * math.sqrt(FIRST * (1 - FIRST) / given.trials)
    for kind in PROMPTED:
        for gain in AHEAD:
            of = ended(kind, PROMPTED_ROWS, gain, given.trials, given.seed)
            values = (gain, of.matched, of.matched_by_all, of.better, of.better_by_all, of.rows)
            print(f"{kind:26}" + "".join(f"{value:>12.3f}" for value in values), flush=True)
            if (gain < 0 and of.matched > most) or (gain >= 0 and of.better > most):
                failures.append(f"prompts of {kind}, {gain:+.2f}")
    most = LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / given.histories)
    for kind in IN_HISTORIES:
        for every, what in ((0, "all equal to the base"), (5, "each fifth much better, the others equal")):
            found = histories(kind, given.rows[-1], given.histories, given.seed, better_every=every)
            print(
                f"{CANDIDATES} candidates on {given.rows[-1]} rows, {kind}, {what}: an equal one is promoted in "
                f"{found.by_spending:.3f} of histories; without spending in {found.by_confidence:.3f}",
                flush=True,
            )
            if found.by_spending > most:
                failures.append(f"histories of {kind}, {what}")
    if failures:
        print(f"it does not hold for {'; '.join(failures)}: at most {most:.4f}, and the power said within 0.03")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
