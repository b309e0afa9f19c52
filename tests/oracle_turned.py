"""What the answers are for boxes that turn and boxes with depth, importing no jaxiou.

Float64 loops over single pairs, by other routes than the library's: polygons are
clipped edge by edge, hulls are walked in sorted order, Gaussians are matrices.
"""

import math

import numpy as np


def rectangle(box):
    """The four corners in order, `(4, 2)`; a negative side counts as 0."""
    cx, cy, w, h, angle = box
    w, h = max(w, 0.0), max(h, 0.0)
    turn = np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    return signs * [w / 2, h / 2] @ turn.T + [cx, cy]


def cross(o, p, q):
    return (p[0] - o[0]) * (q[1] - o[1]) - (p[1] - o[1]) * (q[0] - o[0])


def polygon_area(points):
    total = 0.0
    for p, q in zip(points, [*points[1:], *points[:1]], strict=True):
        total += cross(points[0], p, q)
    return abs(total) / 2


def clipped(polygon, start, end):
    """The part of a polygon to the left of a line (Sutherland and Hodgman)."""
    kept = []
    for p, q in zip(polygon, [*polygon[1:], *polygon[:1]], strict=True):
        left, right = cross(start, end, p), cross(start, end, q)
        if left >= 0:
            kept.append(p)
        if (left > 0 > right) or (left < 0 < right):
            kept.append(p + (q - p) * (left / (left - right)))
    return kept


def area(box):
    return max(box[2], 0.0) * max(box[3], 0.0)


def intersection(a, b):
    """Area of the intersection, after moving both to the centre of the first."""
    if not area(a) or not area(b):
        return 0.0
    middle = np.array([a[0], a[1], 0, 0, 0])
    polygon, other = list(rectangle(a - middle)), list(rectangle(b - middle))
    for start, end in zip(other, [*other[1:], *other[:1]], strict=True):
        polygon = clipped(polygon, start, end)
        if not polygon:
            return 0.0
    return polygon_area(polygon)


def hull_area(a, b):
    """Area of the convex hull of all corners (Andrew's monotone chain)."""
    middle = np.array([a[0], a[1], 0, 0, 0])
    both = np.concatenate([rectangle(a - middle), rectangle(b - middle)])
    points = sorted({tuple(p) for p in both.tolist()})
    if len(points) < 3:
        return 0.0
    chains = []
    for ordered in (points, points[::-1]):
        chain = []
        for p in ordered:
            while len(chain) > 1 and cross(chain[-2], chain[-1], p) <= 0:
                chain.pop()
            chain.append(p)
        chains += chain[:-1]
    return polygon_area(chains)


def ratio(part, whole):
    return part / whole if whole else 0.0


def rotated_iou(a, b):
    common = intersection(a, b)
    return ratio(common, area(a) + area(b) - common)


def rotated_iof(a, b):
    return ratio(intersection(a, b), area(a))


def rotated_giou(a, b):
    hull = hull_area(a, b)
    union = area(a) + area(b) - intersection(a, b)
    return rotated_iou(a, b) - ratio(hull - union, hull)


def rotated_diou(a, b):
    points = np.concatenate([rectangle(a), rectangle(b)]) - a[:2]
    diagonals = []
    for angle in (a[4], b[4]):
        u = np.array([math.cos(angle), math.sin(angle)])
        shadows = points @ np.stack([u, [-u[1], u[0]]]).T
        diagonals.append(np.sum(np.ptp(shadows, axis=0) ** 2))
    distance = np.sum((a[:2] - b[:2]) ** 2)
    return rotated_iou(a, b) - ratio(distance, min(diagonals))


def mgiou(a, b):
    first, second = rectangle(a) - a[:2], rectangle(b) - a[:2]
    total = 0.0
    for angle in (a[4], a[4] + math.pi / 2, b[4], b[4] + math.pi / 2):
        n = np.array([math.cos(angle), math.sin(angle)])
        p, q = first @ n, second @ n
        common = min(p.max(), q.max()) - max(p.min(), q.min())
        total += ratio(common, max(p.max(), q.max()) - min(p.min(), q.min()))
    return total / 4


def gaussian(box, variance=0.25):
    """Mean and covariance."""
    cx, cy, w, h, angle = box
    turn = np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    return np.array([cx, cy]), turn @ np.diag([w * w, h * h]) @ turn.T * variance


def matrix_root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T


def gwd_distance(a, b):
    (m, s), (n, t) = gaussian(a), gaussian(b)
    half = matrix_root(s)
    square = np.sum((m - n) ** 2) + np.trace(s + t - 2 * matrix_root(half @ t @ half))
    return math.sqrt(max(square, 0))


def nwd(a, b, constant=12.8):
    def turned(x):
        return np.array([(x[0] + x[2]) / 2, (x[1] + x[3]) / 2, *(x[2:] - x[:2]), 0])

    return math.exp(-gwd_distance(turned(a), turned(b)) / constant)


def rotated_nwd(a, b, constant=12.8):
    return math.exp(-gwd_distance(a, b) / constant)


def kld_distance(a, b):
    (m, s), (n, t) = gaussian(a), gaussian(b)
    inverse = np.linalg.inv(t)
    place = (m - n) @ inverse @ (m - n)
    shape = np.trace(inverse @ s) - 2 - math.log(np.linalg.det(s) / np.linalg.det(t))
    return (place + shape) / 2


def jeffreys_distance(a, b):
    return (kld_distance(a, b) + kld_distance(b, a)) / 2


def bhattacharyya_distance(a, b, variance=0.25):
    (m, s), (n, t) = gaussian(a, variance), gaussian(b, variance)
    mean = (s + t) / 2
    place = (m - n) @ np.linalg.inv(mean) @ (m - n) / 8
    shape = np.linalg.det(mean) / math.sqrt(np.linalg.det(s) * np.linalg.det(t))
    return place + math.log(shape) / 2


def probiou(a, b):
    return 1 - math.sqrt(-math.expm1(-max(bhattacharyya_distance(a, b, 1 / 12), 0)))


def kfiou_raw(a, b):
    (_, s), (_, t) = gaussian(a), gaussian(b)
    fused = s - s @ np.linalg.inv(s + t) @ s
    common = 4 * math.sqrt(np.linalg.det(fused))
    return common / (area(a) + area(b) - common)


def kfiou(a, b):
    return 3 * kfiou_raw(a, b)


def _extents(a, b):
    d = len(a) // 2
    first, second = np.maximum(a[d:] - a[:d], 0), np.maximum(b[d:] - b[:d], 0)
    common = np.maximum(np.minimum(a[d:], b[d:]) - np.maximum(a[:d], b[:d]), 0)
    around = np.ptp(np.stack([a[:d], a[d:], b[:d], b[d:]]), axis=0)
    return np.prod(common), np.prod(first), np.prod(second), around


def iou_3d(a, b):
    common, first, second, _ = _extents(a, b)
    return ratio(common, first + second - common)


def giou_3d(a, b):
    common, first, second, around = _extents(a, b)
    volume = np.prod(around)
    return iou_3d(a, b) - ratio(volume - (first + second - common), volume)


def diou_3d(a, b):
    d = len(a) // 2
    centres = (a[:d] + a[d:] - b[:d] - b[d:]) / 2
    return iou_3d(a, b) - ratio(np.sum(centres**2), np.sum(_extents(a, b)[3] ** 2))


interval_iou = iou_3d


def _standing(a, b):
    above = [0, 1, 3, 4, 6]
    z = np.array([a[2] - a[5] / 2, a[2] + a[5] / 2, b[2] - b[5] / 2, b[2] + b[5] / 2])
    common = max(min(z[1], z[3]) - max(z[0], z[2]), 0)
    heights = max(a[5], 0), max(b[5], 0)
    return a[above], b[above], common, heights, np.ptp(z)


def bev_iou(a, b):
    return rotated_iou(*_standing(a, b)[:2])


def yaw_iou_3d(a, b):
    p, q, common, heights, _ = _standing(a, b)
    volume = intersection(p, q) * common
    return ratio(volume, area(p) * heights[0] + area(q) * heights[1] - volume)


def yaw_giou_3d(a, b):
    p, q, common, heights, around = _standing(a, b)
    union = area(p) * heights[0] + area(q) * heights[1] - intersection(p, q) * common
    volume = hull_area(p, q) * around
    return yaw_iou_3d(a, b) - ratio(volume - union, volume)
