"""Which box loss, and how much of it? `python -m examples.loss_study --help`.

Trains the detector of `examples/detector` with losses that differ in kind and with
several weights of the box loss, with several seeds each. Runs of one seed start from
the same weights and see the same batches, so losses are compared within a seed.
"""

import contextlib
import dataclasses
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import tyro

from benchmarks.report import markdown

from .detector.config import LOSSES as EVERY
from .detector.config import Config
from .detector.data import completed, load
from .detector.precision import evaluate
from .detector.records import DataError
from .detector.train import train
from .page import fill, head, heading, read
from .pictures import draw_runs

LOSSES = {
    "iou": "overlap alone",
    "giou": "overlap, and the hull for boxes apart",
    "diou": "overlap, and the distance of the centres",
    "ciou": "as diou, and the aspect ratio",
    "log_iou": "overlap, steepest where it is small",
    "alpha_iou": "overlap, steepest where it is large",
    "nwd": "boxes as Gaussians; small and large ones alike in pixels",
    "smooth_l1": "no overlap: offsets, what was used before",
}
REFERENCE = "giou"  # of the losses; of the weights it is 1
SIZES = ("small", "medium", "large")
METRICS = ("AP", "AP50", "AP75")


@dataclasses.dataclass(frozen=True)
class Study:
    """Trains the detector with every loss, weight and seed; runs already made stay."""

    data: str = "digits"
    """`digits`, `coco:annotations.json[:images/]` or `voc:folder`."""
    losses: str = ",".join(LOSSES)
    """Names of losses of the detector, separated by commas."""
    weights: str = "0.25,4"
    """Weights of the box loss to try beside 1, separated by commas."""
    weighted: str = REFERENCE
    """The loss whose weight is varied."""
    seeds: int = 3
    """How many runs of each."""
    steps: int | None = None
    """Training steps of a run; by default 600 for digits and 300 for photographs."""
    image_size: tuple[int, int] | None = None
    """Height and width in pixels; by default those of the detector."""
    out: Path = Path("docs/which_loss")
    """Where `runs.json` and the pictures go."""
    tables: bool = False
    """Train nothing; write the tables of `out` into docs/which_loss.md."""


def settings(study):
    """The `(loss, weight, seed)` of every run; the first seed of all comes first."""
    losses = [(loss, 1.0) for loss in filter(None, study.losses.split(","))]
    weights = [1.0, *map(float, filter(None, study.weights.split(",")))]
    if len(weights) > 1:
        losses += [(study.weighted, weight) for weight in weights]
    every = dict.fromkeys(losses)
    return [(*each, seed) for seed in range(study.seeds) for each in every]


def areas(dataset):
    """Thirds of the training boxes by area, in square pixels of their images.

    COCO's limits, 32² and 96² pixels, would call nearly every digit small.
    """
    boxes = np.concatenate([record.boxes[~record.ignore] for record in dataset.train])
    found = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    first, second = (round(float(np.quantile(found, q))) for q in (1 / 3, 2 / 3))
    limits = ((0, first), (first, second), (second, 1e10))
    return dict(zip(SIZES, limits, strict=True))


def one(config, dataset, limits, split="test"):
    """Trains one detector; returns what the images of a split say."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(config, out=Path(folder))
        model = train(config, dataset, lambda line: None)
    classes, size = dataset.classes, config.image_size
    report, _ = evaluate(model, getattr(dataset, split), classes, size, limits)
    seconds = round(time.perf_counter() - began, 1)
    return {**{key: report[key] for key in (*METRICS, "sizes")}, "seconds": seconds}


def save(runs, path):
    """One run per line; replaced at once, so that a run that is cut off spoils none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(json.dumps(run) for run in runs)
    path.with_suffix(".new").write_text(f"[\n{rows}\n]\n")
    path.with_suffix(".new").replace(path)


def prepared(study, base):
    """What does not vary, the data, their name, and the arguments that say so."""
    base = dataclasses.replace(base, data=study.data, evaluations=1, devices=1)
    dataset = load(base)
    base = dataclasses.replace(
        base,
        steps=study.steps or (300 if dataset.photographs else 600),
        image_size=study.image_size or base.image_size,
    )
    base = completed(base, dataset)
    kind, _, rest = study.data.partition(":")
    stem = name = Path(rest.partition(":")[0]).stem or kind
    typed = [] if kind == "digits" else ["--data", f"{kind}:{stem}"]
    typed += [] if study.steps is None else ["--steps", study.steps]
    if study.image_size:
        name = f"{stem}-{'x'.join(map(str, study.image_size))}"
        typed += ["--image-size", *study.image_size]
    return base, dataset, name, typed


def complete(path, wanted, dataset, origin, split="test"):
    """Makes the runs that are missing; returns all.

    `wanted` are pairs of what a run is known by and its configuration.
    """
    limits, runs = areas(dataset), read(path) or []
    made = {**head(*origin), "areas": limits}  # before the runs alter the tree
    for number, (key, config) in enumerate(wanted, 1):
        if any(key.items() <= run.items() for run in runs):
            continue
        print(f"{number} of {len(wanted)}:", *(f"{k} {v}" for k, v in key.items()))
        row = one(config, dataset, limits, split)
        runs.append({**key, **row, "head": made})
        save(runs, path)
    return runs


def run(study, base=Config()):  # noqa: B008, it is frozen
    """Makes the runs that are missing; returns all. `base` has what does not vary."""
    base, dataset, name, typed = prepared(study, base)
    wanted = []
    for loss, weight, seed in settings(study):
        key = dict(data=name, steps=base.steps, loss=loss, weight=weight, seed=seed)
        chosen = dict(loss=loss, box_weight=weight, seed=seed)
        wanted.append((key, dataclasses.replace(base, **chosen)))
    origin = "examples.loss_study", typed
    return complete(study.out / "runs.json", wanted, dataset, origin)


def paired(values, reference):
    """Mean and standard error of the differences within seeds; None from one seed."""
    differences = [values[seed] - reference[seed] for seed in values.keys() & reference]
    if len(differences) < 2:
        return None
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences), error


def verdict(mean, error):
    """A difference counts from two standard errors on."""
    if abs(mean) < 2 * error or mean == 0:
        return "no difference"
    return "better" if mean > 0 else "worse"


def spread(values):
    """Mean and standard deviation over seeds as text."""
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def groups(runs):
    """{(data, steps): {(loss, weight): {seed: run}}}"""
    found = {}
    for each in runs:
        group = found.setdefault((each["data"], each["steps"]), {})
        group.setdefault((each["loss"], each["weight"]), {})[each["seed"]] = each
    return found


def losses_of(group):
    return {loss: seeds for (loss, weight), seeds in group.items() if weight == 1}


def weights_of(group):
    """The weights of the loss that has several, `{loss: {weight: {seed: run}}}`."""
    varied = {loss for loss, weight in group if weight != 1}
    return {
        loss: {f"{w:g}": x for (name, w), x in sorted(group.items()) if name == loss}
        for loss in sorted(varied)
    }


def compared(rows, reference, first):
    """A table with a line per entry of `rows`, `{name: {seed: run}}`."""
    lines = []
    for name, seeds in rows.items():
        line = [f"`{name}`", *(spread([r[m] for r in seeds.values()]) for m in METRICS)]
        line += [spread([r["sizes"][s] for r in seeds.values()]) for s in SIZES]
        for metric in ("AP", "AP75"):
            pairs = [{s: r[metric] for s, r in x.items()} for x in (seeds, reference)]
            found = None if seeds is reference else paired(*pairs)
            text = (
                f"{found[0]:+.3f} ± {found[1]:.3f}, {verdict(*found)}" if found else ""
            )
            line.append(text)
        lines.append(line)
    sizes = (f"AP {size}" for size in SIZES)
    return markdown([first, *METRICS, *sizes, "Δ AP", "Δ AP75"], lines)


def footing(name, steps, group):
    """What a table means and where it is from."""
    every = [each for seeds in group.values() for each in seeds.values()]
    first, second = every[0]["head"]["areas"]["medium"]
    limits = f"boxes are medium from {first:,} to {second:,} square pixels"
    seconds = statistics.median(each["seconds"] for each in every)
    origins = dict.fromkeys(heading(each["head"]) for each in every)
    text = f"**{name}**, {steps:,} steps, {seconds:.0f} s a run; {limits}."
    return "\n\n".join([text, *origins])


def tables(runs, folder="which_loss"):
    """The blocks of the page: losses and weights."""
    blocks = {"losses": [], "weights": []}
    for (name, steps), group in groups(runs or []).items():
        title = footing(name, steps, group)
        losses = losses_of(group)
        table = compared(losses, losses.get(REFERENCE, {}), "loss")
        picture = f"![AP75 of every run]({folder}/{name}-{steps}.png)"
        blocks["losses"] += [title, table, picture]
        for loss, rows in weights_of(group).items():
            table = compared(rows, rows.get("1", {}), "weight")
            blocks["weights"] += [f"**{name}**, {steps:,} steps, `{loss}`.", table]
    return {block: "\n\n".join(parts) for block, parts in blocks.items()}


def panels(group):
    """AP75 of every run, for the picture."""
    parts = {"loss": losses_of(group)}
    parts |= {f"weight of {loss}": rows for loss, rows in weights_of(group).items()}
    return {
        title: {name: [r["AP75"] for r in x.values()] for name, x in rows.items()}
        for title, rows in parts.items()
        if rows
    }


@contextlib.contextmanager
def compiled_once():
    """Runs that differ in their seed share programs; bad data are one line."""
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        try:
            yield
        except DataError as error:
            raise SystemExit(f"error: {error}") from None


def main():
    study = tyro.cli(Study, prog="python -m examples.loss_study")
    asked = {*study.losses.split(","), study.weighted} - {""}
    if unknown := asked - set(EVERY):
        raise SystemExit(
            f"unknown losses {sorted(unknown)}; there are {', '.join(EVERY)}"
        )
    if study.tables:
        fill(tables(read(study.out / "runs.json")))
        return
    with compiled_once():
        runs = run(study)
    for (name, steps), group in groups(runs).items():
        draw_runs(study.out / f"{name}-{steps}.png", "AP75", panels(group))
    print("\n\n".join(tables(runs).values()))


if __name__ == "__main__":
    main()
