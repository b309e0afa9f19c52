"""Evaluates a trained detector: `python -m examples.detector.evaluate --help`."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

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
    """`digits`, `coco:...` or `voc:...`, of the same classes; by default the run's."""

    split: Literal["train", "val", "test"] = "test"
    """Which images."""

    skip_faulty: bool = False
    """Leave out images and annotations that cannot be read, instead of stopping."""


def report_on(options):
    """Prints the table; returns the report, which is in `{split}.json` of the run."""
    model, config, classes = restore(options.run)
    chosen = dataclasses.replace(config, data=options.data or config.data)
    dataset = load(chosen, options.skip_faulty)
    if dataset.classes != classes:
        raise DataError(
            f"--data {chosen.data} has the classes {', '.join(dataset.classes)}; the "
            f"run learned {', '.join(classes)}"
        )
    for note in dataset.notes:
        print(note)
    records = getattr(dataset, options.split)
    report, _ = evaluate(model, records, classes, config.image_size)
    print(table(report))
    print(f"{len(records)} {options.split} images of {chosen.data}")
    path = options.run / f"{options.split}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    prog = "python -m examples.detector.evaluate"
    command(lambda: report_on(tyro.cli(Evaluate, prog=prog)))
