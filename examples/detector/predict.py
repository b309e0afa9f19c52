"""Finds objects in images: `python -m examples.detector.predict --help`."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import tyro

from .command import command
from .images import SUFFIXES, read_image
from .pictures import draw
from .precision import BATCH, find
from .records import DataError, Record
from .state import restore


@dataclasses.dataclass(frozen=True)
class Predict:
    """Writes what a trained detector finds: boxes as COCO's results, and pictures."""

    run: tyro.conf.Positional[Path]
    """The folder of a run."""

    images: tyro.conf.Positional[Path]
    """An image, or a folder of images."""

    out: Path = Path("predictions")
    """Where `predictions.json` and the pictures go."""

    least: float = 0.05
    """The score from which detections are written."""

    pictures: bool = True
    """Draw the images with the boxes of a score of 0.4 or more."""


def paths_of(images):
    """The images of a folder, in the order of their names, or the one given."""
    if images.is_file():
        return [images]
    found = sorted(p for p in images.glob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"{images}: there are no images ({', '.join(SUFFIXES)})")
    return found


def readable(paths, unread):
    """Records with the pixels in them; what cannot be read goes to `unread`."""
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, bool)
    for path in paths:
        try:
            image = read_image(Record(path.name, path, (0, 0), *nothing))
        except DataError as error:
            unread.append(str(error))
            continue
        yield Record(path.name, image, image.shape[:2], *nothing)


def predict(options):
    """Writes everything; returns the entries of `predictions.json`."""
    model, config, classes = restore(options.run)
    options.out.mkdir(parents=True, exist_ok=True)
    entries, unread, number = [], [], 0
    records = readable(paths_of(options.images), unread)
    while chunk := list(itertools.islice(records, BATCH)):
        found = find(model, chunk, config.image_size)
        for record, detections in zip(chunk, found, strict=True):
            number += 1
            for (x1, y1, x2, y2), label, score in zip(*detections, strict=True):
                if score < options.least:
                    continue
                sides = (x1, y1, x2 - x1, y2 - y1)
                entries.append(
                    {
                        "image_id": number,
                        "file_name": record.name,
                        "category_id": int(label) + 1,
                        "category": classes[label],
                        "bbox": [round(float(side), 2) for side in sides],
                        "score": round(float(score), 4),
                    }
                )
            if options.pictures:
                picture = draw(record.image, *detections, classes)
                picture.save(options.out / f"{record.name}.png")
    path = options.out / "predictions.json"
    rows = ",\n".join(json.dumps(entry) for entry in entries)
    path.write_text(f"[\n{rows}\n]\n")
    for text in unread:
        print(f"left out: {text}")
    print(
        f"{number} images, {len(entries)} boxes, {len(unread)} images left out: {path}"
    )
    return entries


if __name__ == "__main__":
    prog = "python -m examples.detector.predict"
    command(lambda: predict(tyro.cli(Predict, prog=prog)))
