"""What the answers are: plain loops written from the papers, importing no jaxiou.

A pair of boxes is two sequences `(x1, y1, x2, y2)` of Python numbers. The measures use
`+ - * /`, `min` and `max` alone, so the same lines compute in float64 or exactly, with
`fractions.Fraction` (all but those that need an angle, a root or an exponential).

What the authors hold constant in the gradient is computed of `held`, a pair of boxes;
differences of the rest are the gradient that is meant.

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


def empty_hull(a, b):
    """The part of the hull that neither box covers."""
    width, height = hull(a, b)
    return ratio(width * height - union(a, b), width * height)


def giou(a, b):
    """Rezatofighi et al. 2019, algorithm 1."""
    return iou(a, b) - empty_hull(a, b)


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


def ciou(a, b, *, held=None):
    """Zheng et al. 2020, equations 8 to 11."""
    return diou(a, b) - aspect(*(held or (a, b)))[1] * aspect(a, b)[0]


def gated_ciou(a, b, *, gate, held=None):
    """Zheng et al. 2021: the aspect counts above an IoU."""
    return ciou(a, b, held=held) if iou(a, b) > gate else diou(a, b)


def offset(a, b):
    """From the centre of the second box to that of the first."""
    return (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2


def eiou(a, b):
    """Zhang et al. 2021, equation 6."""
    cost = sum(
        ratio((x - y) * (x - y), c * c)
        for x, y, c in zip(sides(a), sides(b), hull(a, b), strict=True)
    )
    return diou(a, b) - cost


def siou(a, b):
    """Gevorgyan 2022, with its sine and arcsine."""
    dx, dy = offset(a, b)
    sigma = math.hypot(dx, dy)
    angle = math.asin(min(ratio(abs(dy), sigma), 1.0))
    gamma = 2 - (1 - 2 * math.sin(angle - math.pi / 4) ** 2)
    distance = sum(
        1 - math.exp(-gamma * ratio(d, c) ** 2)
        for d, c in zip((dx, dy), hull(a, b), strict=True)
    )
    shape = sum(
        (1 - math.exp(-ratio(abs(x - y), max(x, y)))) ** 4
        for x, y in zip(sides(a), sides(b), strict=True)
    )
    return iou(a, b) - (distance + shape) / 2


def extended_iou(a, b):
    """Peng & Yu 2021: areas between the first corner and four others."""
    # An inverted box is empty: it ends where it begins.
    a, b = ([x1, y1, max(x1, x2), max(y1, y2)] for x1, y1, x2, y2 in (a, b))
    x0, y0 = min(a[0], b[0]), min(a[1], b[1])
    x1, y1 = max(a[0], b[0]) - x0, max(a[1], b[1]) - y0
    x2, y2 = min(a[2], b[2]) - x0, min(a[3], b[3]) - y0
    signed = x2 * y2 + min(x1, x2) * min(y1, y2) - x1 * max(y1, y2) - max(x1, x2) * y1
    return ratio(signed, area(a) + area(b) - signed)


def huber(x, point):
    """Smooth L1: a parabola below the point, a line above."""
    return x * x / (2 * point) if x < point else x - point / 2


def smooth_iou(a, b, *, point):
    """Peng & Yu 2021: the smooth loss of the extended IoU."""
    return 1 - huber(1 - extended_iou(a, b), point)


def bounds(a, b):
    """Tychsen-Smith & Petersson 2017: IoU bounds of x, y, width and height."""
    pairs = list(zip(sides(a), sides(b), offset(a, b), strict=True))
    centre = [ratio(max(w2 - 2 * abs(d), 0), w2 + 2 * abs(d)) for _, w2, d in pairs]
    return [*centre, *(ratio(min(w1, w2), max(w1, w2)) for w1, w2, _ in pairs)]


def bounded_iou(a, b):
    """The mean of the four bounds."""
    return sum(bounds(a, b)) / 4


def mpdiou(a, b, *, image_size):
    """Ma & Xu 2023: distances of like corners over the image's diagonal."""
    width, height = image_size
    square = sum((x - y) * (x - y) for x, y in zip(a, b, strict=True))
    return iou(a, b) - square / (width * width + height * height)


def shape_iou(a, b, *, scale):
    """Zhang & Zhang 2023: costs weighted by the shape of the target."""
    (w1, h1), (w2, h2), (dx, dy), (width, height) = (
        sides(a),
        sides(b),
        offset(a, b),
        hull(a, b),
    )
    wide, high = (2 * ratio(s**scale, w2**scale + h2**scale) for s in (w2, h2))
    distance = ratio(high * dx * dx + wide * dy * dy, width**2 + height**2)
    omegas = (
        high * ratio(abs(w1 - w2), max(w1, w2)),
        wide * ratio(abs(h1 - h2), max(h1, h2)),
    )
    shape = sum((1 - math.exp(-omega)) ** 4 for omega in omegas)
    return iou(a, b) - distance - shape / 2


def corners_apart(a, b):
    """Liu et al. 2024: P, the distances of like edges over the target's sides."""
    width, height = sides(b)
    parts = zip(a, b, (width, height) * 2, strict=True)
    return sum(ratio(abs(x - y), side) for x, y, side in parts) / 4


def piou(a, b):
    """Liu et al. 2024, Powerful-IoU."""
    return iou(a, b) - 1 + math.exp(-(min(corners_apart(a, b), 100.0) ** 2))


def piou_v2(a, b, *, attention):
    """Liu et al. 2024, Powerful-IoU v2."""
    x = attention * math.exp(-corners_apart(a, b))
    return 1 - 3 * x * math.exp(-x * x) * (1 - piou(a, b))


def wiou(a, b, *, held=None):
    """Tong et al. 2023, version 1; the hull is held."""
    (dx, dy), (width, height) = offset(a, b), hull(*(held or (a, b)))
    away = math.exp(ratio(dx * dx + dy * dy, width * width + height * height))
    return 1 - away * (1 - iou(a, b))


def terms(name, a, b, held=None):
    """IoU and the penalties of a measure, which is the first minus the others."""
    if name == "iou":
        return [iou(a, b)]
    if name == "giou":
        return [iou(a, b), empty_hull(a, b)]
    if name == "ciou":
        v, alpha = aspect(a, b)[0], aspect(*(held or (a, b)))[1]
        return [*terms("diou", a, b), alpha * v]
    return [iou(a, b), iou(a, b) - globals()[name](a, b)]


def alpha_iou(a, b, *, alpha, base, held=None):
    """He et al. 2021: each term to a power."""
    overlap, *penalties = (max(x, 0) ** alpha for x in terms(base, a, b, held))
    return overlap - sum(penalties)


def inner_iou(a, b, *, ratio, base, held=None):
    """Zhang et al. 2023: the IoU of boxes scaled about their centres."""
    inner = []
    for box in (a, b):
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        w, h = (side * ratio / 2 for side in sides(box))
        inner.append([cx - w, cy - h, cx + w, cy + h])
    return iou(*inner) - sum(terms(base, a, b, held)[1:])


def focaler(a, b, *, lower, upper, base, held=None):
    """Zhang & Zhang 2024: the IoU stretched from an interval to [0, 1]."""
    stretched = min(max((iou(a, b) - lower) / (upper - lower), 0), 1)
    return stretched - sum(terms(base, a, b, held)[1:])


def gradient(function, a, b, step=1e-6):
    """Central differences in the eight coordinates, what is held held."""
    pair = np.stack([np.asarray(a, float), np.asarray(b, float)])
    step = step * max(1.0, np.abs(pair).max())
    slopes = []
    for change in step * np.eye(8).reshape(8, 2, 4):
        up, down = (function(*(pair + s * change).tolist()) for s in (1, -1))
        slopes.append((up - down) / (2 * step))
    return np.reshape(slopes, (2, 4))


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
