"""Average precision on the images of a split, as COCO defines it."""

import jax
import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from .data import fit, read_image
from .model import detect

BATCH = 16


def find(model, records, size):
    """The detections in each record, in pixels of its own image.

    Yields `(boxes, labels, scores)` per record.
    """
    for start in range(0, len(records), BATCH):
        chunk = records[start : start + BATCH]
        images, factors = zip(*(fit(read_image(r), size) for r in chunk), strict=True)
        images = np.stack(images)
        # The last batch is filled up, so that one compilation serves all of them.
        missing = ((0, BATCH - len(chunk)), (0, 0), (0, 0), (0, 0))
        results = jax.device_get(detect(model, np.pad(images, missing)))
        for row, factor in enumerate(factors):
            boxes, labels, scores, valid = (result[row] for result in results)
            boxes = boxes[valid] / np.tile(factor, 2)
            yield boxes, labels[valid], scores[valid]


def average_precision(records, found, classes, areas=None):
    """Average precision of the detections `found`, one `(boxes, labels, scores)` each.

    Returns a dictionary: `AP` averages over IoU thresholds from 0.5 to 0.95, `AP50`
    takes 0.5 alone; `classes` holds both for each class. A class that no image shows
    has none. Detections on boxes to ignore count neither for nor against. `areas`, as
    in `{"small": (0, 1024)}`, adds `sizes`, the `AP` of boxes with these areas.
    """
    areas = areas or {}
    truth, answers = [], []
    for image, (record, (boxes, labels, scores)) in enumerate(
        zip(records, found, strict=True), 1
    ):
        for box, label, ignore in zip(
            record.boxes, record.labels, record.ignore, strict=True
        ):
            truth.append(_entry(image, box, label) | {"iscrowd": int(ignore)})
        for box, label, score in zip(boxes, labels, scores, strict=True):
            answers.append(_entry(image, box, label) | {"score": float(score)})
    for number, entry in enumerate(truth, 1):
        entry["id"] = number
    by_area = _precision(len(records), truth, answers, classes, areas)
    precision = by_area[..., 0]
    per_class = {
        name: {"AP": _mean(precision[..., k]), "AP50": _mean(precision[0, :, k])}
        for k, name in enumerate(classes)
    }
    report = {
        "AP": _mean(precision),
        "AP50": _mean(precision[0]),
        "AP75": _mean(precision[5]),
        "classes": per_class,
    }
    if areas:
        sizes = {name: _mean(by_area[..., k]) for k, name in enumerate(areas, 1)}
        report["sizes"] = sizes
    return report


def _entry(image, box, label):
    """A box as COCO writes it."""
    x1, y1, x2, y2 = map(float, box)
    bbox = [x1, y1, x2 - x1, y2 - y1]
    entry = {"image_id": image, "category_id": int(label) + 1, "bbox": bbox}
    return entry | {"area": bbox[2] * bbox[3]}


def _precision(images, truth, answers, classes, areas):
    """Precision by IoU threshold, recall, class and area, of which any is the first.

    It is -1 where a class never occurs.
    """
    coco = COCO(
        {
            "images": [{"id": i} for i in range(1, images + 1)],
            "categories": [
                {"id": k, "name": name} for k, name in enumerate(classes, 1)
            ],
            "annotations": truth,
        }
    )
    evaluation = COCOeval_faster(coco, coco.loadRes(answers), "bbox")
    evaluation.params.areaRng = [(0, 1e10), *areas.values()]
    evaluation.params.areaRngLbl = ["all", *areas]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., -1]  # 100 detections


def _mean(precision):
    """The mean over what is defined, or None where nothing is."""
    defined = precision[precision > -1]
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
