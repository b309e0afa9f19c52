"""Average precision on the images of a split, as COCO defines it."""

import functools

import jax
import numpy as np
from flax import nnx

import jaxiou

from .data import fit
from .images import read_image
from .model import detect

BATCH = 16


def find(model, records, size):
    """The detections in each record, in pixels of its own image.

    Yields `(boxes, labels, scores)` per record.
    """
    if jax.process_count() > 1:
        # The weights are the same everywhere: this process asks nobody else.
        graph, state = nnx.split(model)
        model = nnx.merge(graph, jax.device_get(state))
    for start in range(0, len(records), BATCH):
        chunk = records[start : start + BATCH]
        images, factors = zip(*(fit(read_image(r), size) for r in chunk), strict=True)
        images = np.stack(images)
        # The last batch is filled up, so that one compilation serves all of them.
        missing = ((0, BATCH - len(chunk)), (0, 0), (0, 0), (0, 0))
        results = jax.device_get(detect(model, np.pad(images, missing)))
        for row, factor in enumerate(factors):
            boxes, labels, scores, valid = (result[row] for result in results)
            height, width = chunk[row].size  # beyond it is what `fit` padded
            limits = np.array([width, height] * 2, np.float32)
            boxes = np.clip(boxes / np.tile(factor, 2), 0, limits)
            kept = valid & (boxes[:, 2:] > boxes[:, :2]).all(1)
            yield boxes[kept], labels[kept], scores[kept]


def average_precision(records, found, classes, areas=None):
    """Average precision of the detections `found`, one `(boxes, labels, scores)` each.

    Returns a dictionary: `AP` averages over IoU thresholds from 0.5 to 0.95, `AP50`
    takes 0.5 alone; `classes` holds both for each class. A class that no image shows
    has none. Detections on boxes to ignore count neither for nor against. `areas`, as
    in `{"small": (0, 1024)}`, adds `sizes`, the `AP` of boxes with these areas.
    """
    areas = {"all": (0, 1e10), **(areas or {})}
    arrays = _padded(found), _padded([(r.boxes, r.labels, r.ignore) for r in records])
    result = jax.device_get(_precision(*arrays, len(classes), tuple(areas.values())))
    # By threshold, area and class; a class without boxes has no precision.
    precision = np.where(result.targets, result.per_class, np.nan)
    report = {
        "AP": _mean(precision[:, 0]),
        "AP50": _mean(precision[0, 0]),
        "AP75": _mean(precision[5, 0]),
        "classes": {
            name: {"AP": _mean(precision[:, 0, k]), "AP50": _mean(precision[0, 0, k])}
            for k, name in enumerate(classes)
        },
    }
    if len(areas) > 1:
        sizes = {name: _mean(precision[:, k]) for k, name in enumerate(areas)}
        report["sizes"] = {k: v for k, v in sizes.items() if k != "all"}
    return report


def _padded(rows):
    """Triples of boxes, labels and something per box as arrays, and which are real."""
    # Powers of two: few sizes, few compilations.
    most = 1 << max(2, max((len(row[0]) - 1 for row in rows), default=0).bit_length())
    boxes, labels = (
        np.zeros((len(rows), most, 4), "f4"),
        np.zeros((len(rows), most), int),
    )
    other, real = np.zeros((len(rows), most), "f4"), np.zeros((len(rows), most), bool)
    for k, row in enumerate(rows):
        for array, values in zip((boxes, labels, other), row, strict=True):
            array[k, : len(values)] = values
        real[k, : len(row[0])] = True
    return boxes, labels, other, real


@functools.partial(jax.jit, static_argnums=(2, 3))
def _precision(found, truth, classes, areas):
    boxes, labels, scores, where = found
    targets, target_labels, ignore, where_targets = truth
    return jaxiou.average_precision(
        boxes,
        scores,
        labels,
        targets,
        target_labels,
        classes=classes,
        where=where,
        where_targets=where_targets,
        crowd=ignore > 0,
        area_ranges=areas,
        max_detections=(100,),
    )


def _mean(precision):
    """The mean over what is defined, or None where nothing is."""
    defined = precision[~np.isnan(precision)]
    return round(float(defined.mean()), 4) if defined.size else None


def evaluate(model, records, classes, size, areas=None):
    """Average precision of a model on records, and what it found in each of them."""
    found = list(find(model, records, size))
    return average_precision(records, found, classes, areas), found


def table(report, most=30):
    """A report as lines of text, with a row per class where there are few of them."""
    rows = [("all", report)]
    if len(report["classes"]) <= most:
        rows += report["classes"].items()
    width = max(5, *(len(name) for name, _ in rows))
    lines = [f"{'class':<{width}}      AP    AP50"]
    for name, row in rows:
        cells = ("-" if row[k] is None else f"{row[k]:.3f}" for k in ("AP", "AP50"))
        lines.append(f"{name:<{width}}  " + "  ".join(f"{cell:>6}" for cell in cells))
    return "\n".join(lines)
