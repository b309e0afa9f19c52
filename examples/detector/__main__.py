"""Data, training, evaluation and pictures: `python -m examples.detector --help`."""

import argparse
import dataclasses
import functools
import json
import time
from pathlib import Path

import jax
import numpy as np
import tyro

from .command import command
from .config import ALONE, Config
from .data import completed, load
from .pictures import draw_curves, draw_predictions
from .precision import evaluate, table
from .records import DataError
from .state import checkpoints
from .train import sharing, train


def run(config):
    """One run from data to pictures; returns the report on the test images."""
    began = time.perf_counter()
    lines = []
    if config.resume:
        config, lines = resumed(config)
    dataset = load(config)
    config = completed(config, dataset)
    if config.resume and Config.load(config.out / "config.json")[1] != dataset.classes:
        raise DataError(f"--resume: the classes of {config.data} are others by now")
    if jax.process_index() > 0:
        train(config, dataset, lambda line: None)
        return None
    sharing(config)  # complains before anything is written
    if not config.resume and (config.out / "checkpoints").is_dir():
        print(f"{config.out}: begins anew, the checkpoints of an earlier run go")
    config.out.mkdir(parents=True, exist_ok=True)
    for note in dataset.notes:
        print(note)
    counts = (len(dataset.train), len(dataset.val), len(dataset.test))
    print("images: {} train, {} val, {} test".format(*counts), end="; ")
    print(f"{len(dataset.classes)} classes, up to {dataset.most_boxes()} boxes")
    labels = np.concatenate([r.labels[~r.ignore] for r in dataset.train])
    counts = np.bincount(labels, minlength=len(dataset.classes))
    named = zip(dataset.classes, counts, strict=True)
    print("boxes to learn:", ", ".join(f"{name} {count:,}" for name, count in named))

    metrics = config.out / "metrics.jsonl"
    # What was logged before is never missing, whenever the run is killed.
    part = metrics.with_suffix(".part")
    part.write_text("".join(json.dumps(line) + "\n" for line in lines))
    part.replace(metrics)
    with open(metrics, "a") as file:

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
    print(f"{len(dataset.test)} test images; {seconds:.0f} s in all")
    for name in ("predictions.png", "curves.png", "metrics.jsonl", "config.json"):
        print(config.out / name)
    print(config.out / "checkpoints")
    return report


def resumed(given):
    """The configuration of a run that was stopped, and what it logged so far."""
    out, last = given.out, None
    if (out / "checkpoints").is_dir():
        with checkpoints(out) as manager:
            last = manager.latest_step()
    if last is None:
        raise DataError(f"--resume: {out} has no checkpoint to go on from")
    config, _ = Config.load(out / "config.json")
    for name, value in vars(given).items():
        if name not in ("out", *ALONE) and value not in (None, getattr(config, name)):
            flag = f"--{name.replace('_', '-')} {value}"
            text = f"--resume goes on with the choices of {out}, without {flag}"
            raise DataError(text)
    lines = []
    for text in (out / "metrics.jsonl").read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # cut off while it was written
            break
        if line["step"] <= last and line.get("split") != "test":
            lines.append(line)
    return dataclasses.replace(config, out=out, resume=True), lines


def arguments(given=None):
    """The configuration: flags, else the file that `--config` names, else defaults."""
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", type=Path)
    known, rest = files.parse_known_args(given)
    default = Config()
    if known.config:
        try:
            default, _ = Config.load(known.config)
        except OSError as error:
            raise DataError(f"--config {known.config}: {error}") from None
    about = f"{Config.__doc__}\n\n--config FILE.json reads choices from a file first."
    parse = functools.partial(
        tyro.cli,
        Config,
        prog="python -m examples.detector",
        description=about,
        args=rest,
    )
    config = parse(default=default)
    path = config.out / "config.json"
    if config.resume and path.is_file():
        # What is not said is as it was.
        saved, _ = Config.load(path)
        config = parse(default=dataclasses.replace(saved, out=config.out))
    return config


def main():
    """A run as the command line says."""
    config = arguments()
    if config.coordinator:
        address, count, index = config.coordinator, config.processes, config.process
        jax.distributed.initialize(address, count, index)
    run(config)


if __name__ == "__main__":
    command(main)
