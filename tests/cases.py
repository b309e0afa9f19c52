"""Boxes with names: what every measure, matrix and matcher is tried on.

Boxes are lists of Python numbers, exact in float32 unless the case is about size.
"""

import itertools

import numpy as np

# Overlapping pairs, neither square nor aligned: widths, heights, aspect ratios, centres
# and offsets all differ, so no two measures agree on them.
TELL_APART = [
    ([0, 0, 4, 2], [1, 1, 4, 4]),
    ([2, 1, 11, 6], [3, 3, 9, 10]),
    ([0, 0, 5, 7], [1, 2, 10, 6]),
    ([-5, -3, 6, 4], [-2, -6, 5, 3]),
    ([0, 0, 12, 3], [2, -5, 6, 8]),
    ([10, 20, 31, 33], [12, 21, 30, 37]),
]

ORDINARY = {
    "overlapping": ([0, 0, 4, 2], [1, 1, 4, 4]),
    "disjoint": ([0, 0, 3, 2], [5, 4, 9, 11]),
    "disjoint in x alone": ([0, 0, 3, 5], [7, 1, 9, 4]),
    "inside": ([2, 3, 5, 4], [0, 0, 9, 7]),
    "around": ([0, 0, 9, 7], [2, 3, 5, 4]),
    "crossing": ([0, 4, 12, 6], [5, 0, 8, 11]),
    "same aspect ratio": ([0, 0, 6, 4], [2, 3, 5, 5]),
    "same centre": ([0, 0, 8, 6], [2, 1, 6, 5]),
    "same size": ([0, 0, 5, 3], [2, 1, 7, 4]),
    "negative coordinates": ([-9, -7, -2, -3], [-6, -8, -1, -4]),
}

DEGENERATE = {
    "zero width": ([3, 1, 3, 5], [1, 2, 6, 8]),
    "zero height": ([1, 4, 6, 4], [2, 1, 5, 9]),
    "point": ([3, 4, 3, 4], [1, 2, 6, 8]),
    "point outside": ([30, 40, 30, 40], [1, 2, 6, 8]),
    "point on an edge": ([1, 4, 1, 4], [1, 2, 6, 8]),
    "point on a corner": ([6, 8, 6, 8], [1, 2, 6, 8]),
    "zero-width target": ([1, 2, 6, 8], [3, 1, 3, 5]),
    "point target": ([1, 2, 6, 8], [0, 0, 0, 0]),
    "identical": ([1, 2, 6, 9], [1, 2, 6, 9]),
    "identical zero width": ([3, 1, 3, 5], [3, 1, 3, 5]),
    "identical points": ([3, 4, 3, 4], [3, 4, 3, 4]),
    "points at the origin": ([0, 0, 0, 0], [0, 0, 0, 0]),
    "distinct points": ([3, 4, 3, 4], [7, 9, 7, 9]),
    "points on a horizontal": ([3, 4, 3, 4], [8, 4, 8, 4]),
    "crossing lines": ([0, 3, 8, 3], [5, 0, 5, 7]),
    "touching edge in x": ([0, 0, 4, 3], [4, 1, 6, 7]),
    "touching edge in y": ([0, 0, 4, 3], [1, 3, 7, 5]),
    "touching corner": ([0, 0, 4, 3], [4, 3, 9, 5]),
    "shared left and top": ([1, 2, 5, 9], [1, 2, 7, 6]),
    "shared right and bottom": ([1, 2, 7, 9], [3, 5, 7, 9]),
    "inverted in x": ([6, 2, 1, 8], [2, 3, 7, 9]),
    "inverted in y": ([1, 8, 6, 2], [2, 3, 7, 9]),
    "inverted": ([6, 8, 1, 2], [2, 3, 7, 9]),
    "inverted target": ([2, 3, 7, 9], [6, 8, 1, 2]),
    "both inverted": ([6, 8, 1, 2], [7, 9, 2, 3]),
    "identical inverted": ([6, 8, 1, 2], [6, 8, 1, 2]),
    "inverted disjoint": ([6, 8, 1, 2], [20, 30, 25, 31]),
    "huge": ([0, 0, 4e15, 2e15], [1e15, 1e15, 4e15, 4e15]),
    "identical huge": ([-1e15, 0, 1e15, 3e15], [-1e15, 0, 1e15, 3e15]),
    "tiny": ([0, 0, 4e-15, 2e-15], [1e-15, 1e-15, 4e-15, 4e-15]),
    "identical tiny": ([0, 0, 1e-15, 3e-15], [0, 0, 1e-15, 3e-15]),
    "tiny in huge": ([0, 0, 1e-15, 2e-15], [-1e15, -2e15, 1e15, 3e15]),
    "huge and point": ([-1e15, -2e15, 1e15, 3e15], [1, 2, 1, 2]),
    "huge distance": ([0, 0, 3, 2], [1e15, 2e15, 1.5e15, 3e15]),
    "wide and thin": ([0, 0, 1e15, 1e-15], [0, 0, 3e-15, 2e15]),
    "far from the origin": (
        [1e5, 1e5, 1e5 + 6, 1e5 + 3],
        [1e5 + 2, 1e5 + 1, 1e5 + 7, 1e5 + 5],
    ),
    "elongated": ([0, 0, 1000, 1], [1, 0.25, 1002, 1.5]),
    "elongated cross": ([0, 500, 1000, 501], [400, 0, 401, 1003]),
}


def stacked(pairs, dtype=np.float32):
    """Pairs, or a dict of them, as two arrays `(n, 4)`."""
    pairs = list(pairs.values()) if isinstance(pairs, dict) else pairs
    first, second = np.asarray(pairs, dtype).swapaxes(0, 1)
    return first, second


def random_boxes(seed, *shape, extent=100.0, side=40.0, dtype=np.float32):
    """Boxes `(*shape, 4)` with corners in [0, extent) and sides in [0.05, 1) side."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, extent, (*shape, 2))
    size = rng.uniform(0.05, 1, (*shape, 2)) * side
    return np.concatenate([corner, corner + size], axis=-1).astype(dtype)


def interval_pairs(size=9):
    """All pairs of intervals with ends in 0..size-1, inverted ones too: `(n, 2, 2)`."""
    intervals = list(itertools.product(range(size), repeat=2))
    return np.array(list(itertools.product(intervals, repeat=2)))


def grid_boxes(seed=0, size=9):
    """Integer boxes, `(n, 4)` twice, that contain every pair of intervals on each axis.

    The full product of both axes would be 43 million pairs; here the pairs of one axis
    meet those of the other in random order.
    """
    xs = interval_pairs(size)
    ys = np.random.default_rng(seed).permutation(xs)
    boxes = np.stack([xs[..., 0], ys[..., 0], xs[..., 1], ys[..., 1]], axis=-1)
    return boxes[:, 0], boxes[:, 1]
