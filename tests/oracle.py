"""What the answers are: plain loops written from the papers, importing no jaxiou.

A pair of boxes is two sequences `(x1, y1, x2, y2)` of Python numbers. The measures use
`+ - * /`, `min` and `max` alone, so the same lines compute in float64 or exactly, with
`fractions.Fraction` (all but `ciou`, which needs an angle).

Conventions: an empty or inverted box has area 0; a ratio with denominator 0 is 0; the
hull is around all corners, those of an inverted box included; the centre is the middle
of the corners.
"""

import math
from fractions import Fraction

import numpy as np


def exact(box):
    """The box as fractions: what follows is free of rounding."""
    return [Fraction(x) for x in box]


def elementwise(function, boxes1, boxes2):
    """`function` of each pair of `(n, 4)` arrays, in float64."""
    pairs = zip(np.asarray(boxes1, float), np.asarray(boxes2, float), strict=True)
    return np.array([float(function(a.tolist(), b.tolist())) for a, b in pairs])


def matrix(function, boxes1, boxes2):
    """`function` of every pair as an `(n, m)` array, in float64."""
    boxes1, boxes2 = np.asarray(boxes1, float), np.asarray(boxes2, float)
    values = [float(function(a, b)) for a in boxes1.tolist() for b in boxes2.tolist()]
    return np.array(values).reshape(len(boxes1), len(boxes2))


def ratio(part, whole):
    """part / whole, 0 where the whole is nothing."""
    return part / whole if whole else part * 0


def sides(box):
    """Width and height; an inverted side has length 0."""
    return max(box[2] - box[0], 0), max(box[3] - box[1], 0)


def area(box):
    """Width times height."""
    width, height = sides(box)
    return width * height


def intersection(a, b):
    """The area both boxes cover."""
    corners = [max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])]
    return area(corners)


def union(a, b):
    """The area that one of the boxes covers, or both."""
    return area(a) + area(b) - intersection(a, b)


def hull(a, b):
    """Width and height of the smallest box around all corners."""
    xs, ys = [a[0], a[2], b[0], b[2]], [a[1], a[3], b[1], b[3]]
    return max(xs) - min(xs), max(ys) - min(ys)


def iou(a, b):
    """Jaccard index: intersection over union."""
    return ratio(intersection(a, b), union(a, b))


def iof(a, b):
    """Intersection over the area of the first box."""
    return ratio(intersection(a, b), area(a))


def giou(a, b):
    """Rezatofighi et al. 2019, algorithm 1."""
    width, height = hull(a, b)
    return iou(a, b) - ratio(width * height - union(a, b), width * height)


def diou(a, b):
    """Zheng et al. 2020, equations 6 and 7."""
    width, height = hull(a, b)
    dx = (a[0] + a[2] - b[0] - b[2]) / 2
    dy = (a[1] + a[3] - b[1] - b[3]) / 2
    return iou(a, b) - ratio(dx * dx + dy * dy, width * width + height * height)


def aspect(a, b):
    """Zheng et al. 2020, equations 9 and 11: `v` and `alpha`."""
    difference = math.atan2(*sides(b)) - math.atan2(*sides(a))
    v = 4 / math.pi**2 * difference**2
    return v, ratio(v, 1 - iou(a, b) + v)


def ciou(a, b):
    """Zheng et al. 2020, equations 8 to 11."""
    v, alpha = aspect(a, b)
    return diou(a, b) - alpha * v


def nms(boxes, scores, threshold, *, labels=None, measure=iou):
    """Indices kept by greedy suppression: strictly above, equal scores by index."""
    boxes = [[float(x) for x in box] for box in boxes]
    labels = [0] * len(boxes) if labels is None else list(labels)
    order = sorted(range(len(boxes)), key=lambda i: (-float(scores[i]), i))
    kept = []
    for i in order:
        rivals = [j for j in kept if labels[j] == labels[i]]
        if not any(measure(boxes[j], boxes[i]) > threshold for j in rivals):
            kept.append(i)
    return kept


def match(overlaps, positive, negative, *, force, claim_zero=False):
    """torchvision's `Matcher` on an (anchors, targets) matrix of overlaps.

    With `force`, an anchor whose overlap equals the best of some target gets its own
    best target. A target without any overlap claims every anchor that does not touch it
    in torchvision (`claim_zero=True`), and none here.
    """
    overlaps = np.asarray(overlaps, float)
    result = np.full(len(overlaps), -1)
    if overlaps.shape[1] == 0:
        return result
    for i, row in enumerate(overlaps.tolist()):
        value = max(row)
        forced = force and any(
            x == best and (best > 0 or claim_zero)
            for x, best in zip(row, overlaps.max(axis=0).tolist(), strict=True)
        )
        if value >= positive or forced:
            result[i] = row.index(value)
        elif value >= negative:
            result[i] = -2
    return result
