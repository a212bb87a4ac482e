"""The gain on a task beside what was forgotten, by the measure against forgetting that the training takes.

On the demo's rows and on an intent set of 12 labels, each training starts from the same base, seed and rows, in the
trainer's own process; what it saved is loaded anew and asked: the loss on the test rows, the share of them that it
answers exactly, and its loss on the general texts that the stage `forgetting` reads. `--general` has rows of the same
form as `--intents` (instruction, input, output); the share split.replay of the training rows are drawn from them, or
from the base's own answers (training.keep_general=auto).

    .venv/bin/python benchmarks/forgetting.py --intents banking77_train.jsonl --general self_instruct_seed.jsonl \
        --plot forgetting.png
"""

import argparse
import json
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

import pipelines
import pyarrow.compute as pc
import pyarrow.parquet as pq
from trainings import job_of, train

from tunewright.config import Method, quiet_libraries

LABELS, ROWS_EACH = 12, 50
DEMO = pipelines.demo()
RATE, LAYERS = DEMO["training"]["learning_rate"], DEMO["method"]["layers"]
BASE = "*the base*"

Found = tuple[float, float, float]  # of test rows the loss and the exact match, and the loss on general texts


class Measure(NamedTuple):
    """A way to train: without general rows, with those of a file or the base's own answers, and its settings."""

    general: Literal["", "file", "answers"] = ""
    kl_to_base: float = 0.0
    learning_rate: float = RATE
    method: Method = Method(layers=LAYERS)


MEASURES = {
    "none": Measure(),
    "replay": Measure(general="file"),
    "replay, kl_to_base 1": Measure(general="file", kl_to_base=1.0),
    "replay, kl_to_base 10": Measure(general="file", kl_to_base=10.0),
    "own answers": Measure(general="answers"),
    "own answers, kl_to_base 1": Measure(general="answers", kl_to_base=1.0),
    "own answers, kl_to_base 10": Measure(general="answers", kl_to_base=10.0),
    "osf": Measure(method=Method(kind="osf", layers=LAYERS), learning_rate=RATE / 20),
    "osf, higher learning rate": Measure(method=Method(kind="osf", layers=LAYERS), learning_rate=RATE / 4),
    "rank 2": Measure(method=Method(layers=LAYERS, rank=2, alpha=4)),
    "learning rate / 4": Measure(learning_rate=RATE / 4),
}


def rendered(sources: list[dict[str, str]], folder: Path, name: str, *changes: str) -> tuple[Path, Path]:
    """The folders of the base's weights and of render's tokens, of the demo's settings with other sources."""
    parameters = pipelines.demo()
    file, home = folder / f"{name}.yaml", folder / f"home-{name}"
    pipelines.write(file, parameters | {"data": parameters["data"] | {"sources": sources}})
    pipelines.run(file, home, f"registry.name={name}", "model.on_long=quarantine", *changes, until="render")
    (base,), (tokens,) = home.glob("artifacts/base/*/weights"), home.glob("artifacts/render/*/")
    return base, tokens


def sources_of(options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, str]]]:
    """The sources of each data set."""
    demo = [str(pipelines.DEMO.parent / source["path"]) for source in pipelines.demo()["data"]["sources"]]
    counts, kept = Counter[str](), list[str]()
    for line in options.intents.read_text(encoding="utf-8").splitlines():
        label = json.loads(line)["output"]
        if (label in counts or len(counts) < LABELS) and counts[label] < ROWS_EACH:
            counts[label] += 1
            kept.append(line)
    (folder / "intents.jsonl").write_text("\n".join(kept), encoding="utf-8")
    general = {"path": str(options.general.absolute()), "use_as": "replay"}
    named = {"demo": demo, "intents": [str(folder / "intents.jsonl")]}
    return {name: [*({"path": path} for path in paths), general] for name, paths in named.items()}


class Judge:
    """Asks models the test rows and the general texts."""

    def __init__(self, base: Path, tokens: Path) -> None:
        from transformers import AutoTokenizer

        from tunewright.modeling.chat import Chat
        from tunewright.tasks.train.trainer.watch import COLUMNS

        self.base, self.rows = base, pq.read_table(tokens / "test.parquet", columns=COLUMNS).to_pylist()
        self.chat = Chat(AutoTokenizer.from_pretrained(base, local_files_only=True), base)

    def __call__(self, model: Path | None) -> Found:
        """The loss per token and the exact match of the test rows, and the mean loss of the general texts."""
        import torch

        from tunewright.generation import Greedy
        from tunewright.serving import load_weights
        from tunewright.tasks.forgetting import read
        from tunewright.tasks.train.trainer.watch import asked_of

        loaded, stops = load_weights(self.base, model, dtype=torch.float32).eval(), sorted(self.chat.stops.values())
        answers = [asked_of(row) for row in self.rows]
        longest = max(len(answer.reference) for answer in answers)
        with torch.inference_mode():
            Greedy(loaded, stops=stops, max_new_tokens=longest, batch=32).answer(answers, generate=False)
            general = statistics.fmean(item["score"] for item in read(loaded, self.chat))
        loss = sum(answer.nll for answer in answers) / sum(len(answer.reference) for answer in answers)
        return loss, statistics.fmean(answer.is_reference(stops) for answer in answers), general


def plot(found: dict[str, dict[str, Found]], file: Path) -> None:
    """Exact match against the rise of the general loss, a panel for each data set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    _, panels = pyplot.subplots(1, len(found), figsize=(5 * len(found) + 3, 5), layout="constrained", squeeze=False)
    for axis, (name, measured) in zip(panels[0], found.items(), strict=True):
        for number, measure in enumerate([*measured][1:], start=1):  # without the base
            at = measured[measure][2] - measured[BASE][2], measured[measure][1]
            axis.plot(*at, "o", label=f"{number}  {measure}")
            axis.annotate(str(number), at, (4, 4), textcoords="offset points")
        axis.set(title=name, xlabel="general loss above the base's, nats per token", ylabel="exact match")
        axis.grid(alpha=0.3)
    panels[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    pyplot.savefig(file, dpi=100)


def main() -> None:
    """Prints the table and draws the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--intents", type=Path, required=True)
    parser.add_argument("--general", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=DEMO["training"]["max_steps"])
    parser.add_argument("--batch", type=int, default=DEMO["training"]["batch"])
    parser.add_argument("--sets", nargs="*", choices=("demo", "intents"), default=("demo", "intents"))
    parser.add_argument("--measures", nargs="*", choices=MEASURES, metavar="MEASURE", default=[*MEASURES])
    parser.add_argument("--plot", type=Path, help="where to draw the plot: a .png or .svg file")
    options = parser.parse_args()
    quiet_libraries()
    found: dict[str, dict[str, Found]] = {}
    print("| rows | measure | test loss | exact match | general loss |\n|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, sources in sources_of(options, folder).items():
            if name not in options.sets:
                continue
            base, tokens = rendered(sources, folder, name)
            judge = Judge(base, tokens)
            found[name] = {BASE: judge(None)}
            print("| {} | {} | {:.3f} | {:.3f} | {:.3f} |".format(name, BASE, *found[name][BASE]), flush=True)
            trained = {"file": tokens}
            if any(MEASURES[measure].general == "answers" for measure in options.measures):
                own = [source for source in sources if "use_as" not in source]
                _, trained["answers"] = rendered(own, folder, f"{name}-answers", "training.keep_general=auto")
            table = pq.read_table(tokens / "train.parquet")
            pq.write_table(table.filter(~pc.field("replay")), folder / "own.parquet")
            pq.write_table(pq.read_table(tokens / "validation.parquet").slice(0, 8), folder / "validation.parquet")
            for measure in options.measures:
                general, kl_to_base, learning_rate, method = MEASURES[measure]
                job = job_of(
                    base,
                    trained.get(general, tokens),
                    steps=options.steps,
                    batch=options.batch,
                    rate=learning_rate,
                    kl_to_base=kl_to_base,
                    method=method,
                    micro_batch=max(1, options.batch // 2),  # so that general rows stand apart from a shared prefix
                )
                job = job.model_copy(update={"validation": folder / "validation.parquet"})
                job = job if general else job.model_copy(update={"train": folder / "own.parquet"})
                work = folder / f"{name}-{measure.replace('/', 'by')}"
                train(job, work)
                found[name][measure] = judge(work / "model")
                print("| {} | {} | {:.3f} | {:.3f} | {:.3f} |".format(name, measure, *found[name][measure]), flush=True)
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
