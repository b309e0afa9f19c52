"""Evaluates a trained detector: `python -m examples.detector.evaluate --help`."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from .command import command
from .data import load
from .precision import evaluate, table
from .records import DataError
from .state import restore


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Average precision of the detector of a run, on its data or on other images."""

    run: tyro.conf.Positional[Path]
    """The folder of a run."""

    data: str | None = None
    """`digits`, `coco:...` or `voc:...`, of the run's classes; by default its data."""

    split: Literal["train", "val", "test"] = "test"
    """Which images."""

    skip_faulty: bool = False
    """Leave out images and annotations that cannot be read, instead of stopping."""


def places(data):
    """The paths in `--data`, however they are written."""
    return [Path(part).expanduser().resolve() for part in data.split(":")]


def report_on(options):
    """Prints the table; returns the report, which is in `{split}.json` of the run."""
    model, config, classes = restore(options.run)
    given = {"data": options.data or config.data, "skip_faulty": options.skip_faulty}
    chosen = dataclasses.replace(config, **given)
    dataset = load(chosen)
    if unknown := {*dataset.classes} - {*classes}:
        raise DataError(
            f"--data {chosen.data} has the classes {', '.join(sorted(unknown))}; the "
            f"run learned {', '.join(classes)}"
        )
    records, notes = getattr(dataset, options.split), dataset.notes
    other = places(chosen.data) != places(config.data)
    if other and dataset.held_out and options.split == "test":
        records, notes = dataset.train + dataset.val, notes[:-1]
        print(f"{chosen.data} has no splits: all of its images are looked at")
    if not records:
        raise DataError(f"--data {chosen.data} has no {options.split} images")
    for note in notes:
        print(note)
    numbers = np.array([classes.index(name) for name in dataset.classes])
    records = [dataclasses.replace(r, labels=numbers[r.labels]) for r in records]
    report, _ = evaluate(model, records, classes, config.image_size)
    print(table(report))
    print(f"{len(records)} {options.split} images of {chosen.data}")
    path = options.run / f"{options.split}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    prog = "python -m examples.detector.evaluate"
    command(lambda: report_on(tyro.cli(Evaluate, prog=prog)))
