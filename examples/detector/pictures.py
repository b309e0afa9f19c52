"""Pictures: what a detector sees, and how it learned."""

import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from .images import read_image

TILE = 320  # pixels of the longer side of each drawn image, at least
SHOWN = 0.4  # the score from which a detection is drawn


def draw(image, boxes, labels, scores, classes):
    """An enlarged image with the detections drawn on it."""
    scale = max(1, TILE / max(image.shape[:2]))
    height, width = (round(scale * side) for side in image.shape[:2])
    canvas = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(canvas)
    colours = matplotlib.colormaps["tab10"].colors
    for box, label, score in zip(boxes, labels, scores, strict=True):
        if score < SHOWN:
            continue
        colour = tuple(int(255 * c) for c in colours[label % len(colours)])
        corners = [scale * float(side) for side in box]
        pen.rectangle(corners, outline=colour, width=2)
        text = f"{classes[label]} {score:.2f}"
        place = (corners[0] + 2, max(corners[1] - 12, 0))
        pen.rectangle(pen.textbbox(place, text), fill=colour)
        pen.text(place, text, fill="white")
    return canvas


def draw_predictions(path, records, found, classes, count=12):
    """One picture of the first `count` records with what was found in each."""
    pictures = [
        draw(read_image(record), *detections, classes)
        for record, detections in zip(records[:count], found[:count], strict=True)
    ]
    columns = min(4, len(pictures))
    width, height = (max(p.size[axis] for p in pictures) for axis in (0, 1))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (width + 4), rows * (height + 4)), "white")
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        sheet.paste(picture, (column * (width + 4), row * (height + 4)))
    sheet.save(path)


def draw_curves(path, lines):
    """The losses of a run and its average precision, from its lines of metrics."""
    losses = [line for line in lines if "loss" in line]
    reports = [line for line in lines if "AP" in line]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [line["step"] for line in losses]
    for name in ("loss", "class_loss", "box_loss"):
        left.plot(steps, [line[name] for line in losses], label=name.replace("_", " "))
    left.set(xlabel="step", title="training loss", ylim=(0, None))
    left.set_ylim(top=2 * np.median([line["loss"] for line in losses]) + 0.5)
    for name in ("AP", "AP50"):
        for split, style in (("val", "o-"), ("test", "*")):
            points = [
                (line["step"], line[name])
                for line in reports
                if line["split"] == split and line[name]
            ]
            x, y = zip(*points, strict=True) if points else ((), ())
            right.plot(x, y, style, label=f"{name} {split}")
    right.set(xlabel="step", title="average precision", ylim=(0, 1))
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
