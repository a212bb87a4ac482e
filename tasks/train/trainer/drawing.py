"""Training on rewards: a step's answers are drawn by the model as it is, rewarded, and learned from.

Which prompts a step draws for, and which random numbers, follow from the seed and the step, so that a resumed run draws
the same answers. Several steps on the same answers read them from a file.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_utils import EvalLoopOutput

from tunewright import compat
from tunewright.config import Grpo
from tunewright.errors import ConfigError
from tunewright.generation import Greedy, Sampling
from tunewright.generation.vllm_server import VllmServer
from tunewright.metrics.rewards import Rewards
from tunewright.modeling import groups
from tunewright.modeling.batches import token_likelihoods
from tunewright.modeling.groups import DrawnCollator
from tunewright.tasks.train.trainer import checkpoints, copies, ranks
from tunewright.tasks.train.trainer.observed import ObservedTrainer
from tunewright.tasks.train.trainer.rows import Asked
from tunewright.tasks.train.trainer.watch import BatchRows, answering, asked_of, mean_score, share_of

FOLDER = "drawn"  # beside the job: the answers of a draw, where several steps learn from them
SHOWN = 300  # characters of an answer in the log


class Drawing:
    """Draws answers to prompts and rewards them; `batch` are the answers that are drawn at once.

    With a `server` that draws the training answers; those to the validation prompts are the model's own.
    """

    def __init__(
        self,
        settings: Grpo,
        rewards: Rewards,
        splits: Sequence[Sequence[Asked]],
        *,
        tokenizer: Any,
        stops: Sequence[int],
        seed: int,
        batch: int,
        server: VllmServer | None = None,
    ) -> None:
        self.settings, self.rewards, self.server = settings, rewards, server
        self.train, self.validation = splits
        self.tokenizer, self.stops, self.seed, self.batch = tokenizer, stops, seed, batch
        self.beat: Callable[[], None] = lambda: None  # called after each pass through the model
        self.sample: dict[str, Any] = {}  # the answers to one prompt of the last draw, for people

    @property
    def longest(self) -> int:
        """The most tokens that a prompt and its answer can have."""
        prompts = (len(row["answer"].prompt) for rows in (self.train, self.validation) for row in rows)
        return max(prompts) + self.settings.max_new_tokens

    def prompts(self, draw: int) -> list[Asked]:
        """The training rows of a draw: each epoch has them in an order of its own."""
        batch, number = min(self.settings.batch, len(self.train)), len(self.train)
        places = range(draw * batch, (draw + 1) * batch)
        orders = {
            epoch: np.random.default_rng([self.seed, epoch]).permutation(number)
            for epoch in {p // number for p in places}
        }
        return [self.train[orders[place // number][place % number]] for place in places]

    def draw(self, model: Any, draw: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """The answers of a draw as rows with `advantage` and `weight`, and figures of them. The same on all ranks."""
        asked = self.prompts(draw)
        number, rank = share_of(model)
        own = asked[rank::number]
        named = [f"{rank + at * number} {row['row_id']}" for at, row in enumerate(own)]
        drawn = list[tuple[int, list[dict[str, Any]], list[float], list[str]]]()
        with answering(model):
            asked_here, group = [row["answer"] for row in own], self.settings.group
            drawer = self._drawer(model, f"{self.seed} {draw}")
            found = drawer.draw(asked_here, named, group, lambda _: self.beat()) if own else []
        for at, (row, answers) in enumerate(zip(own, found, strict=True)):
            texts = [answer.text(self.tokenizer, row["reference"], self.stops) for answer in answers]
            rewarded = self._rewards(model, [row] * len(texts), texts)
            drawn.append((rank + at * number, groups.as_rows(row, answers), rewarded, texts))
        whole = sorted(ranks.gathered(drawn) if number > 1 else drawn, key=lambda each: each[0])
        rewards = torch.tensor([each[2] for each in whole])
        rows = [row for each in whole for row in each[1]]
        shares = groups.weights([row["num_tokens"] for row in rows], self.settings)
        above = groups.advantages(rewards, self.settings).flatten().tolist()
        for row, advantage, weight in zip(rows, above, shares, strict=True):
            row |= {"advantage": advantage, "weight": weight}
        self.sample = {
            "row": asked[0]["row_id"],
            "reference": asked[0]["reference"][:SHOWN],
            "answers": [text[:SHOWN] for text in whole[0][3]],
            "rewards": whole[0][2],
        }
        spread = rewards.std(dim=1)
        return rows, {
            "reward": rewards.mean().item(),
            "reward_std": spread.mean().item(),
            "no_signal_share": (spread == 0).float().mean().item(),
            "answer_tokens": statistics.fmean(row["num_tokens"] for row in rows),
            "cut_share": statistics.fmean(row["labels"][-1] not in self.stops for row in rows),
        }

    def _drawer(self, model: Any, seed: str) -> Sampling | VllmServer:
        """That which draws answers by the model as it is now."""
        if self.server:
            self.server.load(model, seed)
            return self.server
        return Sampling(
            model,
            temperature=self.settings.temperature,
            seed=seed,
            stops=self.stops,
            max_new_tokens=self.settings.max_new_tokens,
            batch=self.batch,
        )

    def validate(self, model: Any, is_interrupted: Callable[[], bool]) -> float:
        """The mean reward of the greedy answers to the validation prompts, or of those before an interruption."""
        return mean_score(model, self.validation, self.batch, partial(self._validated, model), is_interrupted)

    def _validated(self, model: Any, rows: Sequence[Asked]) -> list[float]:
        greedy = Greedy(model, stops=self.stops, max_new_tokens=self.settings.max_new_tokens, batch=len(rows))
        answers = [asked_of(row) for row in rows]
        greedy.answer(answers, on_progress=lambda _: self.beat())
        pairs = zip(rows, answers, strict=True)
        texts = [answer.text(self.tokenizer, row["reference"], self.stops) for row, answer in pairs]
        return self._rewards(model, rows, texts)

    def _rewards(self, model: Any, rows: Sequence[Asked], texts: Sequence[str]) -> list[float]:
        """The rewards of answers; of those that all ranks draw, as a sharded model does, the first rank's."""
        by_row = {row["row_id"]: row for row in rows}  # several answers may be to one prompt
        prompts = {row_id: self.tokenizer.decode(row["answer"].prompt) for row_id, row in by_row.items()}
        ids = [row["row_id"] for row in rows]
        asked = [prompts[each] for each in ids]
        rewarded = partial(self.rewards, ids, asked, texts, [row["reference"] for row in rows])
        return ranks.from_first(rewarded) if compat.is_sharded(model) else rewarded()


class RewardTrainer(ObservedTrainer):
    """ObservedTrainer whose steps learn from answers that they draw; validation is by reward."""

    def __init__(self, *, drawing: Drawing, collator: DrawnCollator, folder: Path, **rest: Any) -> None:
        super().__init__(**rest, data_collator=lambda rows: {"drawn": BatchRows(rows)})
        self.drawing, self.collator, self.folder = drawing, collator, folder / FOLDER
        self.drawn = -1  # the number of the draw whose answers are at hand
        self.answers: list[dict[str, Any]] = []
        self.of_draw: dict[str, float] = {}
        self.began: dict[str, torch.Tensor] = {}  # what learns, as it was before the first step
        if drawing.settings.beta:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ConfigError(
                    "grpo.beta above 0 needs the model whole on each device; accepted: 0, or compute.strategy=ddp"
                )
            model: Any = self.model
            self.began = {name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad}
        self.watch.stop_naming()

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One step on the answers of its draw."""
        settings, step = self.drawing.settings, self.state.global_step
        if self.drawn != step // settings.iterations:
            self._draw(model, step // settings.iterations)
        self.watch.sample = self.drawing.sample
        learned = [row for row in self.answers if row["advantage"] or settings.beta] or self.answers[:1]
        inputs = {**self.collator(learned), "drawn": BatchRows(self.answers)}
        return super().training_step(model, inputs, num_items_in_batch)

    def _draw(self, model: Any, draw: int) -> None:
        """Has the answers of a draw at hand: of the file where a step before this one drew them."""
        file, again = self.folder / f"{draw}.json", self.state.global_step % self.drawing.settings.iterations > 0
        if again and ranks.from_first(file.is_file):
            copies.on_each(self.folder, file.name)
            held = json.loads(file.read_text(encoding="utf-8"))
            self.answers, self.of_draw, self.drawing.sample = held["answers"], held["figures"], held["sample"]
        else:
            unwrapped: Any = self.model
            unwrapped.eval()
            with self.compute_loss_context_manager():
                self.answers, self.of_draw = self.drawing.draw(unwrapped, draw)
            self._read(model)
            unwrapped.train()
            if self.drawing.settings.iterations > 1:
                self._keep(file)
        self.drawn = draw

    @torch.no_grad()
    def _read(self, model: Any) -> None:
        """Adds the log-likelihoods that the loss compares with: of the model now, and of it before its first step."""
        if self.drawing.settings.iterations > 1:
            self._add("drawn", model)
        if self.began:
            with self._as_it_began():
                self._add("reference", model)

    def _add(self, name: str, model: Any) -> None:
        number, rank = share_of(self.model)
        own = self.answers[rank::number]
        found = list[tuple[int, list[float]]]()
        for start in range(0, len(own), self.collator.micro_batch):
            some = own[start : start + self.collator.micro_batch]
            laid: Any = self.collator.plain(some)
            batch: Any = self._prepare_inputs(laid)
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                values = token_likelihoods(compat.forward_in_autocast(model), batch, self.drawing.settings.temperature)
            self.drawing.beat()
            places = (rank + (start + at) * number for at in range(len(some)))
            found += zip(places, groups.of_answers(batch, values, len(some)), strict=True)
        for place, values in ranks.gathered(found) if number > 1 else found:
            self.answers[place][name] = values

    @contextmanager
    def _as_it_began(self) -> Iterator[None]:
        """Has the weights of before the first step within."""
        model: Any = self.model
        learning = {name: each for name, each in model.named_parameters() if name in self.began}
        now = {name: each.data for name, each in learning.items()}
        try:
            for name, each in learning.items():
                each.data = self.began[name].to(each.device)
            yield
        finally:
            for name, each in learning.items():
                each.data = now[name]

    def _keep(self, file: Path) -> None:
        """Writes the answers at hand, and removes those that no checkpoint goes on with."""
        if ranks.own() > 0:
            return
        self.folder.mkdir(exist_ok=True)
        held = {"answers": self.answers, "figures": self.of_draw, "sample": self.drawing.sample}
        unfinished = file.with_suffix(".part")
        unfinished.write_text(json.dumps(held), encoding="utf-8")
        unfinished.rename(file)
        steps = map(checkpoints.steps, checkpoints.newest_first(Path(str(self.args.output_dir))))
        needed = {file.stem, *(str(step // self.drawing.settings.iterations) for step in steps)}
        for other in self.folder.glob("*.json"):
            if other.stem not in needed:
                other.unlink()

    def log(self, logs: dict[str, float], *rest: Any, **more: Any) -> None:
        """With the figures of the draw, and the epochs of the prompts: several steps on the same answers are one."""
        draws = self.state.global_step / self.drawing.settings.iterations
        self.state.epoch = draws * self.drawing.settings.batch / len(self.drawing.train)
        super().log(logs | self.of_draw if "loss" in logs else logs, *rest, **more)

    @torch.no_grad()
    def evaluation_loop(self, dataloader: Any, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> EvalLoopOutput:
        """The mean reward of greedy answers; as a loss it is its negative."""
        model: Any = self.model
        model.eval()
        with self.compute_loss_context_manager():
            reward = self.drawing.validate(model, self.is_interrupted)
        metrics = {f"{metric_key_prefix}_reward": reward, f"{metric_key_prefix}_loss": -reward}
        number = len(self.drawing.validation)
        return EvalLoopOutput(
            np.empty(0), label_ids=None, metrics={} if self.is_interrupted() else metrics, num_samples=number
        )
