"""Data, training, evaluation and pictures: `python -m examples.detector --help`."""

import dataclasses
import json
import sys
import time

import tyro

from .config import Config
from .data import load, typical_size
from .evaluate import check, evaluate, table
from .predict import draw_curves, draw_predictions
from .records import DataError
from .train import train


def run(config):
    """One run from data to pictures; returns the report on the test images."""
    began = time.perf_counter()
    dataset = load(config)
    config = dataclasses.replace(
        config,
        batch_size=config.batch_size or (8 if dataset.photographs else 16),
        image_size=config.image_size or typical_size(dataset),
    )
    config.out.mkdir(parents=True, exist_ok=True)
    config.save(config.out / "config.json", dataset.classes)
    for note in dataset.notes:
        print(note)
    counts = (len(dataset.train), len(dataset.val), len(dataset.test))
    print("images: {} train, {} val, {} test".format(*counts), end="; ")
    print(f"{len(dataset.classes)} classes, up to {dataset.most_boxes()} boxes")

    lines = []
    with open(config.out / "metrics.jsonl", "w") as file:

        def log(line):
            lines.append(line)
            print(json.dumps(line), file=file, flush=True)

        model = train(config, dataset, log)
        report, found = evaluate(
            model, dataset.test, dataset.classes, config.image_size
        )
        seconds = round(time.perf_counter() - began, 1)
        log({"step": config.steps, "split": "test", "seconds": seconds, **report})

    draw_curves(config.out / "curves.png", lines)
    draw_predictions(
        config.out / "predictions.png", dataset.test, found, dataset.classes
    )
    print(table(report))
    # Last, when everything is kept.
    check(report, dataset.test, found, dataset.classes)
    print(f"{len(dataset.test)} test images; {seconds:.0f} s in all")
    for name in ("predictions.png", "curves.png", "metrics.jsonl", "config.json"):
        print(config.out / name)
    print(config.out / "checkpoint")
    return report


def main():
    """The command line; a fault in a data set is one line and no traceback."""
    try:
        run(tyro.cli(Config, prog="python -m examples.detector"))
    except DataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
