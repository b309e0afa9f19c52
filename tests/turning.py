"""Boxes of 2, 5, 6 and 7 coordinates: what the other measures are tried on."""

import numpy as np
from cases import random_boxes

# (cx, cy, w, h, angle): what breaks overlaps of polygons.
TURNED = {
    "zero width": ([3, 4, 0, 5, 0.3], [2, 3, 6, 8, -0.4]),
    "zero height": ([3, 4, 5, 0, 0.3], [2, 3, 6, 8, -0.4]),
    "point": ([3, 4, 0, 0, 0.3], [2, 3, 6, 8, -0.4]),
    "point outside": ([30, 40, 0, 0, 0.3], [2, 3, 6, 8, -0.4]),
    "zero-width target": ([2, 3, 6, 8, -0.4], [3, 4, 0, 5, 0.3]),
    "point target": ([2, 3, 6, 8, -0.4], [0, 0, 0, 0, 0]),
    "identical": ([2, 3, 6, 8, -0.4], [2, 3, 6, 8, -0.4]),
    "identical points": ([3, 4, 0, 0, 1], [3, 4, 0, 0, 1]),
    "distinct points": ([3, 4, 0, 0, 1], [5, 4, 0, 0, 2]),
    "points at the origin": ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
    "identical lines": ([3, 4, 0, 7, 1], [3, 4, 0, 7, 1]),
    "crossing lines": ([3, 4, 0, 7, 1], [3, 4, 7, 0, 1.2]),
    "half a turn": ([2, 3, 6, 8, -0.4], [2, 3, 6, 8, -0.4 + np.pi]),
    "quarter turn": ([2, 3, 6, 8, -0.4], [2, 3, 8, 6, -0.4 + np.pi / 2]),
    "many turns": ([2, 3, 6, 8, 100.0], [3, 3, 6, 8, -200.0]),
    "touching edges": ([0, 0, 4, 3, 0], [4, 0, 4, 2, 0]),
    "touching corners": ([0, 0, 4, 4, 0], [4, 4, 4, 4, 0]),
    "shared edges": ([0, 0, 4, 3, 0], [1, 0, 2, 3, 0]),
    "corner on an edge": ([0, 0, 4, 4, 0], [2 + 2**0.5, 0, 2, 2, np.pi / 4]),
    "almost parallel": ([0, 0, 4, 3, 0], [1, 1, 4, 3, 1e-7]),
    "tiny angle": ([0, 0, 4, 3, 0], [0, 0, 4, 3, 1e-30]),
    "needle": ([0, 0, 1000, 1, 0.7], [5, 6, 1000, 1, 0.7001]),
    "crossed needles": ([0, 0, 1000, 1, 0.7], [5, 6, 1000, 1, -0.9]),
    "negative width": ([2, 3, -6, 8, -0.4], [3, 4, 5, 7, 0.3]),
    "both negative": ([2, 3, -6, -8, -0.4], [3, 4, -5, -7, 0.3]),
    "huge": ([1e15, 0, 3e15, 2e15, 1], [0, 1e15, 2e15, 4e15, 0.1]),
    "tiny": ([1e-15, 0, 3e-15, 2e-15, 1], [0, 1e-15, 2e-15, 4e-15, 0.1]),
    "tiny in huge": ([1, 2, 1e-15, 2e-15, 1], [0, 0, 3e15, 4e15, 0.1]),
    "huge distance": ([1e15, 2e15, 3, 2, 1], [0, 0, 4, 5, 0.1]),
    "thin and wide": ([0, 0, 1e15, 1e-15, 1], [1, 0, 3e-15, 2e15, 0.1]),
    "huge angles": ([0, 0, 4, 3, 1e9], [1, 1, 3, 5, -1e20]),
    "far from the origin": ([1e5, 1e5, 6, 3, 1], [1e5 + 1, 1e5 + 2, 4, 5, 0.2]),
}


def boxes(coordinates, seed, n, *, extent=30.0, side=20.0, dtype=np.float64):
    """Random boxes `(n, coordinates)` of the layout that has so many."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(0, extent, (n, 3))
    sides = rng.uniform(0.05, 1, (n, 3)) * side
    angle = rng.uniform(-4, 4, (n, 1))
    layouts = {
        2: lambda: [place[:, :1], place[:, :1] + sides[:, :1]],
        4: lambda: [random_boxes(seed, n, extent=extent, side=side, dtype=dtype)],
        5: lambda: [place[:, :2], sides[:, :2], angle],
        6: lambda: [place, place + sides],
        7: lambda: [place, sides, angle],
    }
    return np.concatenate(layouts[coordinates](), axis=1).astype(dtype)


def scaled(array, factor):
    """The boxes in another unit: all but their angles."""
    factors = np.full(array.shape[-1], factor)
    if array.shape[-1] in (5, 7):
        factors[-1] = 1
    return (array * factors).astype(array.dtype)


def degenerate(coordinates):
    """Pairs of the layout, made of `TURNED`, as two float64 arrays."""
    first, second = np.asarray(list(TURNED.values()), float).swapaxes(0, 1)

    def read(x):
        cx, cy, w, h, angle = x.T
        columns = {
            2: (cx, cx + w),
            4: (cx, cy, cx + w, cy + h),
            5: (cx, cy, w, h, angle),
            6: (cx, cy, cy, cx + w, cy + h, cy + w),
            7: (cx, cy, cx, w, h, w, angle),
        }
        return np.stack(columns[coordinates], axis=-1)

    return read(first), read(second)


def sides_of(array):
    """All sides of boxes, `(n, d)`."""
    k = array.shape[-1]
    if k in (5, 7):
        return np.abs(array[:, k // 2 : -1])
    return np.abs(array[:, k // 2 :] - array[:, : k // 2])
