"""Average precision and recall as COCO defines them, with fixed shapes."""

__all__ = ["Evaluation", "average_precision"]

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from . import _checks, _loops, _measure
from ._measure import Measure
from .matrix import Operands
from .measures import iof, iou
from .suppression import by_score

THRESHOLDS = tuple((0.5 + 0.05 * np.arange(10)).round(2).tolist())
AREA_RANGES = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))

# The recalls at which COCO reads the precision are multiples of 0.01 in float64: some
# are above the number they stand for, and a recall equal to that does not reach them.
_STEPS = 100
_ABOVE = np.linspace(0, 1, _STEPS + 1) > np.arange(_STEPS + 1) / _STEPS


class Evaluation(NamedTuple):
    """What detections are worth; means over the classes that have targets.

    Attributes:
        precision: `(thresholds, areas)`, average precision with the most detections;
            `precision[:, 0].mean()` is COCO's AP, `precision[0, 0]` its AP50.
        recall: `(max_detections, thresholds, areas)`; `recall[-1, :, 0].mean()` is
            COCO's AR100.
        per_class: `(thresholds, areas, classes)`, the average precision of each class,
            0 without targets.
        targets: `(areas, classes)` int32, number of targets that count.
    """

    precision: Float[Array, "thresholds areas"]
    recall: Float[Array, "limits thresholds areas"]
    per_class: Float[Array, "thresholds areas classes"]
    targets: Int[Array, "areas classes"]


def average_precision(
    boxes: _checks.Boxes,
    scores: _checks.ArrayLike,
    labels: _checks.ArrayLike,
    targets: _checks.Boxes,
    target_labels: _checks.ArrayLike,
    *,
    classes: int,
    where: _checks.Mask | None = None,
    where_targets: _checks.Mask | None = None,
    crowd: _checks.Mask | None = None,
    ignore: _checks.Mask | None = None,
    target_areas: _checks.ArrayLike | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    area_ranges: Sequence[tuple[float, float]] = AREA_RANGES,
    max_detections: Sequence[int] = (1, 10, 100),
    measure: Measure = iou,
    crowd_measure: Measure = iof,
) -> Evaluation:
    """COCO's average precision and recall of all images, on the device.

    In every image and class detections are taken by falling score; each is matched with
    the target of its class, not yet matched, of largest measure, if that is at least
    the threshold. Precision is the largest at any recall from r on, averaged over r =
    0, 0.01, ..., 1. Targets of a crowd, ignored ones and those outside of an area range
    do not count, nor do detections matched with them, nor unmatched detections outside
    of the range.

    Args:
        boxes: `(images, d, 4)`, detections, padded; or as many coordinates as the
            measure takes.
        scores: `(images, d)`.
        labels: `(images, d)` integers from 0 on.
        targets: `(images, t, 4)`, padded.
        target_labels: `(images, t)` integers.
        classes: number of classes.
        where: `(images, d)`, False for padding.
        where_targets: `(images, t)`, False for padding.
        crowd: `(images, t)`, True for targets that any number of detections may match,
            by `crowd_measure`.
        ignore: `(images, t)`, True for other targets that do not count.
        target_areas: `(images, t)`, areas for the ranges, as COCO has those of masks;
            None for those of the boxes.
        thresholds: smallest measures of a match.
        area_ranges: `(least, most)` areas, both included.
        max_detections: numbers of detections per image and class, rising.
        measure: any measure; the detection is its first argument.
        crowd_measure: that of detections with crowds.

    Returns:
        `Evaluation(precision, recall, per_class, targets)`, float32 in [0, 1].

    At the edge:
        0 where no class has targets (pycocotools returns -1). At equal scores the image
        of lower index comes first, then the detection. Detections with a NaN score or a
        label that is no class are left out. Measures within 4 ulp of a threshold reach
        it. An inverted box is an empty one (pycocotools leaves out detections of
        negative area). Not differentiable.

    Raises:
        ValueError: on shapes that do not fit each other, or numbers that make no sense.
        TypeError: on a measure that is not one, or masks that are not boolean.

    Example:
        >>> import jaxiou
        >>> boxes = [[[0.0, 0.0, 40.0, 20.0], [1.0, 0.0, 40.0, 30.0]]]
        >>> targets = [[[0.0, 0.0, 40.0, 30.0]]]
        >>> found = jaxiou.average_precision(
        ...     boxes, [[0.9, 0.6]], [[0, 0]], targets, [[0]], classes=1)
        >>> print(found.precision[:5, 0])
        [1.  1.  1.  1.  0.5]

    Reference:
        T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", 2014,
        arXiv:1405.0312; pycocotools' `COCOeval`, to the digits of float32.
    """
    name = "average_precision"
    operands = Operands(
        name,
        measure,
        boxes,
        targets,
        where,
        where_targets,
        names=("boxes", "targets"),
        masks=("where", "where_targets"),
    ).gathered()
    if len(operands.batch) != 1:
        raise ValueError(
            f"jaxiou.{name}: `boxes` and `targets` have leading axes {operands.batch}, "
            "wanted one axis of images; a single one gets it with `boxes[None]`."
        )
    other = _measure.as_measure(name, crowd_measure, name="crowd_measure")
    if other.coordinates != operands.measure.coordinates:
        if crowd is not None:
            raise ValueError(
                f"jaxiou.{name}: `crowd_measure` is {other!r}, of boxes with "
                f"{other.coordinates} coordinates, wanted one of boxes with "
                f"{operands.measure.coordinates}, as `measure` has."
            )
        other = operands.measure
    numbers = _checked(name, classes, thresholds, area_ranges, max_detections)
    least, ranges, limits = numbers
    (images, d), t = operands.boxes1.shape[:2], operands.boxes2.shape[1]
    of_boxes = functools.partial(_per_box, name, (images, d))
    of_targets = functools.partial(_per_box, name, (images, t))
    score, label = of_boxes("scores", scores), of_boxes("labels", labels, whole=True)
    kind = of_targets("target_labels", target_labels, whole=True)
    sizes = _sizes(operands.boxes2)
    if target_areas is not None:
        sizes = of_targets("target_areas", target_areas)
    is_crowd, is_ignored = (
        _loops.replicate(
            jnp.zeros((images, t), bool)
            if mask is None
            else _checks.as_mask(name, key, mask, (images, t))
        )
        for key, mask in (("crowd", crowd), ("ignore", ignore))
    )
    # A class beyond the range of a narrow type would be another one.
    label, kind = (
        x.astype(jnp.promote_types(x.dtype, jnp.int32)) for x in (label, kind)
    )
    takes_part = operands.where1 & ~jnp.isnan(score) & (label >= 0) & (label < classes)
    counts = ~_outside(sizes, ranges) & ~(is_crowd | is_ignored)[:, None]
    arrays = (
        *map(jax.lax.stop_gradient, (operands.boxes1, operands.boxes2, score)),
        *(label, kind, is_crowd, takes_part, operands.where2, counts),
    )
    match = functools.partial(_match, operands.measure, other, least, ranges)
    right, wrong, rank = _loops.each_image(match, None, arrays)
    is_target = (counts & operands.where2[:, None]).astype(jnp.int32)
    place = jnp.where((kind >= 0) & (kind < classes), kind, classes).reshape(-1)
    is_target = jnp.moveaxis(is_target, 1, 0).reshape(len(ranges), images * t)
    total = jnp.zeros((len(ranges), classes), jnp.int32)
    total = total.at[:, place].add(is_target, mode="drop")
    order = _order(score, label, takes_part)
    right, wrong, rank, label = (
        jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], images * d)[..., order]
        for x in (right, wrong, rank, label)
    )
    return _evaluation(right, wrong, rank, label, total, limits)


def _match(
    measure: Measure,
    crowd_measure: Measure,
    thresholds: np.ndarray,
    ranges: np.ndarray,
    _: Any,
    boxes: Array,
    targets: Array,
    score: Array,
    label: Array,
    kind: Array,
    crowd: Array,
    takes_part: Array,
    real: Array,
    counts: Array,
) -> tuple[Array, Array, Array]:
    """Of one image: which detections are right and which wrong, and their ranks.

    `(areas, thresholds, d)` twice, and `(d,)`, the place of each in its class.
    """
    dtype = _checks.arithmetic_dtype(boxes, targets)
    order = by_score(score, takes_part)
    rows = tuple(p[:, None] for p in _measure.split(boxes[order], dtype))
    columns = tuple(p[None, :] for p in _measure.split(targets, dtype))
    with_crowds = crowd_measure.planes(rows, columns)
    values = jnp.where(crowd[None], with_crowds, measure.planes(rows, columns))
    same = (label[order][:, None] == kind[None]) & takes_part[order][:, None]
    same &= real[None]
    values = jnp.where(same & (values > -jnp.inf), values, -jnp.inf)
    outside = _outside(_sizes(boxes[None]), ranges)[0][:, order]
    # Compilers divide to an ulp or two, and an IoU of 3/5 is to reach 0.6.
    slack = 4 * float(jnp.finfo(dtype).eps) * np.abs(thresholds)
    least = jnp.asarray(thresholds - slack, dtype)[None, :, None]
    place = jnp.arange(kind.size, dtype=jnp.int32)[None, None]

    def step(taken: Array, x: tuple[Array, Array]) -> Any:
        value, outside = x
        value = value[None, None]
        enough = (value >= least) & (value > -jnp.inf)
        first = enough & counts[:, None] & ~taken
        # Only then those that do not count; of a crowd again and again.
        then = enough & ~counts[:, None] & (~taken | crowd[None, None])
        open_ = jnp.where(first.any(-1, keepdims=True), first, then)
        best = jnp.where(open_, value, -jnp.inf).max(
            -1, keepdims=True, initial=-jnp.inf
        )
        # Of equal ones the last, as COCO does.
        last = jnp.where(open_ & (value == best), place, -1)
        chosen = last.max(-1, keepdims=True, initial=-1)
        mine = place == chosen
        right = (mine & counts[:, None]).any(-1)
        wrong = (chosen[..., 0] < 0) & ~outside[:, None]
        return taken | mine, (right, wrong)

    shape = (len(ranges), len(thresholds), kind.size)
    inputs = boxes, targets, score, label, kind, crowd, takes_part, real, counts
    start = _loops.varying(jnp.zeros(shape, bool), inputs)
    _, found = jax.lax.scan(step, start, (values, outside.T))
    right, wrong = (
        jnp.zeros((*shape[:2], order.size), bool)
        .at[..., order]
        .set(jnp.moveaxis(x, 0, -1))
        for x in found
    )
    earlier = jnp.arange(order.size)[:, None] > jnp.arange(order.size)[None]
    mates = label[order][:, None] == label[order][None]
    rank = jnp.sum(earlier & mates & takes_part[order][None], axis=1, dtype=jnp.int32)
    rank = jnp.zeros_like(rank).at[order].set(rank)
    keep = takes_part[None, None]
    return right & keep, wrong & keep, rank


def _order(score: Array, label: Array, takes_part: Array) -> Array:
    """All detections by class, falling score, image and place."""
    order = by_score(score.reshape(-1), takes_part.reshape(-1))
    return order[jnp.argsort(label.reshape(-1)[order], stable=True)]


def _evaluation(
    right: Array,
    wrong: Array,
    rank: Array,
    label: Array,
    total: Array,
    limits: tuple[int, ...],
) -> Evaluation:
    """All detections in order, class after class, counted up."""
    areas, thresholds, _ = right.shape
    classes = total.shape[1]
    label = jnp.clip(label, 0, classes - 1)
    first = jnp.searchsorted(label, jnp.arange(classes, dtype=label.dtype))

    def one(x: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        right, wrong, total = x
        recalls = [
            jnp.zeros((classes,), jnp.int32).at[label].add(right & (rank < limit))
            for limit in limits
        ]
        hits, misses = right & (rank < limits[-1]), wrong & (rank < limits[-1])
        hits, misses = (_within(x, label, first) for x in (hits, misses))
        whole = jnp.maximum(total, 1)
        place = _STEPS * hits // whole[label]
        exact = _STEPS * hits == place * whole[label]
        place = jnp.minimum(place, _STEPS)
        place = place - (exact & jnp.asarray(_ABOVE)[place])
        precision = hits / jnp.maximum(hits + misses, 1)
        best = jnp.zeros((classes, _STEPS + 1), precision.dtype)
        best = best.at[label, place].max(jnp.where(hits > 0, precision, 0))
        best = jax.lax.cummax(best, axis=1, reverse=True)
        return best.mean(1), jnp.stack(recalls) / whole[None]

    pairs = areas * thresholds
    operands = (
        right.reshape(pairs, -1),
        wrong.reshape(pairs, -1),
        jnp.repeat(total, thresholds, axis=0),
    )
    precision, recall = jax.lax.map(one, operands)
    shape = areas, thresholds
    per_class = precision.reshape(*shape, classes).swapaxes(0, 1)
    recall = recall.reshape(*shape, len(limits), classes).transpose(2, 1, 0, 3)
    has = total > 0
    mean = functools.partial(_mean_of, has)
    per_class = jnp.where(has[None], per_class, 0)
    return Evaluation(mean(per_class), mean(recall), per_class, total)


def _mean_of(has: Array, values: Array) -> Array:
    """The mean over classes with targets, 0 where none has."""
    count = jnp.maximum(has.sum(-1), 1)
    has = has.reshape(*(1,) * (values.ndim - 2), *has.shape)
    total = jnp.where(has, values, 0).sum(-1)
    return total / count.reshape(*(1,) * (total.ndim - 1), -1)


def _within(x: Array, label: Array, first: Array) -> Array:
    """Counted up from the first detection of each class on."""
    count = jnp.cumsum(x, dtype=jnp.int32)
    before = jnp.concatenate([jnp.zeros((1,), jnp.int32), count])[first]
    return count - before[label]


def _sizes(boxes: Array) -> Array:
    """Area, or volume, of boxes `(*batch, n, coordinates)`."""
    planes = _measure.split(boxes, _checks.arithmetic_dtype(boxes))
    half = len(planes) // 2
    sides = planes[half : 2 * half]
    if len(planes) % 2 == 0:
        sides = tuple(b - a for a, b in zip(planes[:half], sides, strict=True))
    return functools.reduce(jnp.multiply, (jnp.maximum(s, 0) for s in sides))


def _outside(sizes: Array, ranges: np.ndarray) -> Array:
    """`(images, areas, n)`: whether a size is not in a range."""
    size, low, high = sizes[:, None], *jnp.asarray(ranges, sizes.dtype).T
    low, high = low[None, :, None], high[None, :, None]
    return (size < low) | (size > high)


def _per_box(
    function: str, shape: tuple[int, int], name: str, value: Any, whole: bool = False
) -> Array:
    if whole:
        value = _checks.as_integers(function, name, value, "integers")
    array = _checks.as_real(function, name, value)
    if array.shape != shape:
        raise ValueError(
            f"jaxiou.{function}: `{name}` has shape {array.shape}, wanted {shape}, one "
            "entry per box."
        )
    return _loops.replicate(array)


def _checked(
    function: str, classes: Any, thresholds: Any, ranges: Any, limits: Any
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Thresholds, ranges and limits as they are used."""
    least, bounds = np.asarray(thresholds, float), np.asarray(ranges, float)
    numbers = tuple(limits) if isinstance(limits, Sequence | np.ndarray) else ()
    right = {
        "classes": isinstance(classes, int | np.integer) and classes >= 1,
        "thresholds": least.ndim == 1 and least.size > 0,
        "area_ranges": bounds.ndim == 2 and bounds.shape[1] == 2 and len(bounds) > 0,
        "max_detections": all(isinstance(x, int | np.integer) for x in numbers)
        and numbers == tuple(sorted(numbers))
        and min(numbers, default=0) > 0,
    }
    given = dict(zip(right, (classes, thresholds, ranges, limits), strict=True))
    for name, fits in right.items():
        if not fits:
            raise ValueError(
                f"jaxiou.{function}: `{name}` is {given[name]!r}, wanted a positive "
                "integer for `classes`, numbers for `thresholds`, pairs for "
                "`area_ranges`, rising positive integers for `max_detections`."
            )
    return least, bounds, numbers
