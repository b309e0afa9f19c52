"""Suppression that lowers scores in place of removing boxes: soft and matrix NMS."""

__all__ = ["GaussianDecay", "LinearDecay", "Rescored", "matrix_nms", "soft_nms"]

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from . import _checks, _loops
from ._measure import Measure, Planes
from .measures import iou
from .suppression import Candidates, Overlaps, by_score

Decay = Callable[[Array], Array]

# Pairs per block of `matrix_nms`: what a second-level cache holds.
_PAIRS = 1 << 17


class Rescored(NamedTuple):
    """Boxes in order of falling lowered score.

    Attributes:
        indices: `(*batch, max_outputs)` int32 into the boxes; -1 in empty slots.
        scores: `(*batch, max_outputs)`, the lowered scores; 0 in empty slots.
        valid: `(*batch, max_outputs)`, False in empty slots.
    """

    indices: Int[Array, "*batch k"]
    scores: Float[Array, "*batch k"]
    valid: Bool[Array, "*batch k"]


class LinearDecay(NamedTuple):
    """The factor 1 - u of an overlap u that is at least `threshold`, 1 of others.

    Attributes:
        threshold: smallest overlap that lowers a score.
    """

    threshold: float = 0.0

    def __call__(self, overlap: Array) -> Array:
        _parameter(self, "threshold", self.threshold, least=0, most=1, default="0.3")
        return jnp.where(overlap >= self.threshold, 1 - overlap, 1)


class GaussianDecay(NamedTuple):
    """The factor exp(-u² / σ) of an overlap u.

    Attributes:
        sigma: the σ of both papers, above 0. In the code published with matrix NMS, and
            in mmdetection, a `sigma` multiplies: theirs is 1 / ours.
    """

    sigma: float = 0.5

    def __call__(self, overlap: Array) -> Array:
        _parameter(self, "sigma", self.sigma, above=0, default="0.5")
        return jnp.exp(-(overlap**2) / self.sigma)


_GAUSSIAN: Any = GaussianDecay()


def soft_nms(
    boxes: _checks.Boxes | Overlaps,
    scores: _checks.ArrayLike,
    *,
    max_outputs: int,
    decay: Decay = _GAUSSIAN,
    score_threshold: float | None = None,
    labels: _checks.ArrayLike | None = None,
    where: _checks.Mask | None = None,
    measure: Measure = iou,
) -> Rescored:
    """Soft non-maximum suppression: a chosen box lowers the scores of the others.

    Again and again the box of the best score is chosen, lower index first at equal
    ones, and each score that is left is multiplied by `decay` of the measure with it.

    Args:
        boxes: `(*batch, n, 4)`, or as many coordinates as the measure takes; or
            `Overlaps(matrix)` of what was compared already, masks for example.
        scores: `(*batch, n)`, not negative.
        max_outputs: slots in the result; may exceed n. The time grows with it.
        decay: factor in [0, 1] of an overlap in [0, 1]: `GaussianDecay`, `LinearDecay`,
            or any function of an array, elementwise.
        score_threshold: boxes are chosen while their score is strictly above it.
        labels: `(*batch, n)` integers; boxes lower the scores of their own label only.
        where: `(*batch, n)`, False for padding.
        measure: any measure; the chosen box is its first argument. What is below 0
            counts as 0.

    Returns:
        `Rescored(indices, scores, valid)`, scores in the arithmetic dtype.

    At the edge:
        n may be 0. A box with a NaN coordinate neither lowers a score nor has its own
        lowered; a score that is NaN or negative never takes part. Not differentiable.

    Raises:
        ValueError: on shapes that do not fit each other, a `max_outputs` that is not a
            static integer >= 0, labels too large for their dtype, a `measure` beside
            overlaps, or a `decay` that is not elementwise.
        TypeError: on a `measure` or `decay` that is not one, masks that are not
            boolean, labels that are not integers.

    Example:
        >>> import jaxiou
        >>> boxes = [[0.0, 0.0, 4.0, 2.0], [0.0, 0.0, 4.0, 4.0], [5.0, 1.0, 9.0, 4.0]]
        >>> found = jaxiou.soft_nms(boxes, [0.6, 0.9, 0.5], max_outputs=3,
        ...                         decay=jaxiou.LinearDecay(threshold=0.3))
        >>> print(found.indices, found.scores)
        [1 2 0] [0.9 0.5 0.3]

    Reference:
        N. Bodla, B. Singh, R. Chellappa, L. S. Davis, "Soft-NMS: Improving Object
        Detection With One Line of Code", 2017, arXiv:1704.04503. mmcv's `soft_nms` runs
        on a CPU only and returns its first box whatever `min_score`.
    """
    candidates = Candidates(
        "soft_nms", boxes, scores, max_outputs, labels, where, measure
    )
    return _rescored(candidates, _one_by_one, decay, score_threshold)


def matrix_nms(
    boxes: _checks.Boxes | Overlaps,
    scores: _checks.ArrayLike,
    *,
    max_outputs: int,
    decay: Decay = _GAUSSIAN,
    score_threshold: float | None = None,
    labels: _checks.ArrayLike | None = None,
    where: _checks.Mask | None = None,
    measure: Measure = iou,
) -> Rescored:
    """Matrix non-maximum suppression: soft suppression without a loop over choices.

    With the boxes in order of falling score, lower index first at equal ones, score j
    is multiplied by the least of decay(u[i, j]) / decay(max over k < i of u[k, i]) over
    i < j: what i does to j, less so where i is itself suppressed.

    Args:
        boxes: `(*batch, n, 4)`, or as many coordinates as the measure takes; or
            `Overlaps(matrix)` of what was compared already, masks for example.
        scores: `(*batch, n)`, not negative.
        max_outputs: slots in the result; may exceed n.
        decay: factor in [0, 1] of an overlap in [0, 1]: `GaussianDecay`, `LinearDecay`,
            or any function of an array, elementwise.
        score_threshold: only boxes with a lowered score strictly above it are returned.
        labels: `(*batch, n)` integers; boxes lower the scores of their own label only.
        where: `(*batch, n)`, False for padding.
        measure: any measure; the box of the better score is its first argument. What is
            below 0 counts as 0.

    Returns:
        `Rescored(indices, scores, valid)`, scores in the arithmetic dtype.

    At the edge:
        n may be 0. A box that is suppressed entirely, decay 0, suppresses nothing. A
        box with a NaN coordinate neither lowers a score nor has its own lowered; a
        score that is NaN or negative never takes part. Not differentiable. Memory is
        O(n): blocks of rows are compared one after the other.

    Raises:
        ValueError: on shapes that do not fit each other, a `max_outputs` that is not a
            static integer >= 0, labels too large for their dtype, a `measure` beside
            overlaps, or a `decay` that is not elementwise.
        TypeError: on a `measure` or `decay` that is not one, masks that are not
            boolean, labels that are not integers.

    Example:
        >>> import jaxiou
        >>> boxes = [[0.0, 0.0, 4.0, 2.0], [0.0, 0.0, 4.0, 4.0], [5.0, 1.0, 9.0, 4.0]]
        >>> found = jaxiou.matrix_nms(boxes, [0.6, 0.9, 0.5], max_outputs=3,
        ...                           decay=jaxiou.LinearDecay())
        >>> print(found.indices, found.scores)
        [1 2 0] [0.9 0.5 0.3]

    Reference:
        X. Wang, R. Zhang, T. Kong, L. Li, C. Shen, "SOLOv2: Dynamic and Fast Instance
        Segmentation", 2020, arXiv:2003.10152. mmdetection's `mask_matrix_nms` divides
        by zero where a mask repeats one of a better score and the decay is linear.
    """
    candidates = Candidates(
        "matrix_nms", boxes, scores, max_outputs, labels, where, measure
    )
    return _rescored(candidates, _at_once, decay, score_threshold)


def _rescored(
    candidates: Candidates,
    algorithm: Callable[..., tuple[Array, Array]],
    decay: Any,
    score_threshold: Any,
) -> Rescored:
    """Runs one of the two algorithms on every image."""
    name = candidates.function
    if not callable(decay):
        raise TypeError(
            f"jaxiou.{name}: `decay` is {decay!r}, wanted a function of the overlap, "
            "as `jaxiou.LinearDecay()` or `jaxiou.GaussianDecay(sigma=0.5)`."
        )
    least = _checks.as_number(
        name, "score_threshold", -1.0 if score_threshold is None else score_threshold
    )
    # Parameters of a decay that are traced are operands of the loop.
    leaves, structure = jax.tree.flatten(decay)
    traced = [x for x in leaves if isinstance(x, jax.Array)]

    def one(
        shared: Any, data: Array, score: Array, takes_part: Array, label: Array
    ) -> tuple[Array, Array]:
        least, traced = shared[0], iter(shared[1])
        parameters = [next(traced) if isinstance(x, jax.Array) else x for x in leaves]
        fade = _fading(name, jax.tree.unflatten(structure, parameters))
        score = score.astype(_checks.arithmetic_dtype(score))
        takes_part &= (score > least) & (score >= 0)
        if not score.size or not candidates.max_outputs:
            nothing = jnp.full((candidates.max_outputs,), -1, jnp.int32)
            return nothing, jnp.zeros(nothing.shape, score.dtype)
        return algorithm(candidates, fade, least, data, score, takes_part, label)

    indices, scores = candidates.each(one, (least, traced))
    return Rescored(indices, scores, indices >= 0)


def _parameter(decay: Any, name: str, value: Any, **limits: Any) -> None:
    """Refuses a number that makes no sense; what is traced cannot be looked at."""
    if isinstance(value, int | float):
        _checks.number(type(decay).__name__, name, value, **limits)


def _fading(function: str, decay: Decay) -> Decay:
    """The factor of whatever a measure returns; NaN and what is below 0 give 1."""

    def fade(value: Array) -> Array:
        overlap = jnp.clip(value, 0, 1)
        factor = decay(overlap)
        if jnp.shape(factor) != overlap.shape:
            raise ValueError(
                f"jaxiou.{function}: `decay` returned shape {jnp.shape(factor)} for "
                f"overlaps of shape {overlap.shape}; it must be elementwise."
            )
        return jnp.where(overlap > 0, factor, 1).astype(overlap.dtype)

    return fade


def _lowered(score: Array, factor: Array) -> Array:
    """score · factor, where an infinite score times 0 is 0."""
    return jnp.where(factor == 0, 0, score * factor.astype(score.dtype))


def _one_by_one(
    candidates: Candidates,
    fade: Decay,
    least: Array,
    data: Array,
    score: Array,
    takes_part: Array,
    label: Array,
) -> tuple[Array, Array]:
    """Soft suppression as it is defined."""
    slots, place = candidates.max_outputs, jnp.arange(score.size, dtype=jnp.int32)
    inputs = (least, data, score, takes_part, label)
    place = _loops.varying(place, inputs)
    planes, compare = candidates.comparison(data, place)

    def best(score: Array, left: Array) -> tuple[Array, Array]:
        score = jnp.where(left, score, -jnp.inf)
        top = score.max()
        return top, jnp.min(jnp.where(score == top, place, score.size))

    def unfinished(state: Any) -> Array:
        count, (top, _) = state[:2]
        return (count < slots) & (top > least)

    def choose(state: Any) -> Any:
        count, (top, chosen), score, left, indices, scores = state
        value = compare(tuple(p[chosen][None] for p in planes), planes)
        factor = jnp.where(label == label[chosen], fade(value), 1)
        score = _lowered(score, factor)
        left = left & (place != chosen)
        return (
            count + 1,
            best(score, left),
            score,
            left,
            indices.at[count].set(chosen),
            scores.at[count].set(top),
        )

    empty = jnp.full((slots,), -1, jnp.int32), jnp.zeros((slots,), score.dtype)
    start = (jnp.int32(0), best(score, takes_part), score, takes_part, *empty)
    start = _loops.varying(start, inputs)
    return jax.lax.while_loop(unfinished, choose, start)[4:]


def _at_once(
    candidates: Candidates,
    fade: Decay,
    least: Array,
    data: Array,
    score: Array,
    takes_part: Array,
    label: Array,
) -> tuple[Array, Array]:
    """Matrix suppression: the matrix row block by row block, in order of the scores."""
    order = by_score(score, takes_part)
    factor = _least_factors(candidates, fade, data, order, takes_part, label)
    score = _lowered(score, jnp.zeros_like(score).at[order].set(factor))
    takes_part &= score > least
    slots, n = candidates.max_outputs, score.size
    chosen = by_score(score, takes_part)[:slots]
    is_full = jnp.arange(slots) < jnp.sum(takes_part, dtype=jnp.int32)
    indices, scores = (
        jnp.pad(x, (0, max(0, slots - n))) for x in (chosen, score[chosen])
    )
    return jnp.where(is_full, indices, -1), jnp.where(is_full, scores, 0)


def _least_factors(
    candidates: Candidates,
    fade: Decay,
    data: Array,
    order: Array,
    takes_part: Array,
    label: Array,
) -> Array:
    """The factor of each score, in order of the scores."""
    n = order.size
    rows = max(1, min(n, _PAIRS // n))
    blocks = -(-n // rows)
    padded = jnp.pad(order, (0, blocks * rows - n))
    place = jnp.arange(blocks * rows, dtype=jnp.int32)
    planes, compare = candidates.comparison(data, padded)
    labels, count = label[padded], jnp.sum(takes_part, dtype=jnp.int32)
    columns: Planes = tuple(p[None, :] for p in planes)

    def step(state: tuple[Array, Array], start: Array) -> Any:
        most, factor = state

        def cut(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, start, rows)

        earlier = cut(place)[:, None] < place[None, :]
        same = cut(labels)[:, None] == labels[None, :]
        pairs = earlier & same & (place < count)[None, :]
        value = compare(tuple(cut(p)[:, None] for p in planes), columns)
        overlap = jnp.where(pairs & (value > 0), value, 0)
        # The rows of this block are compared with every better box by now.
        most = jnp.maximum(most, overlap.max(axis=0))
        own, part = fade(cut(most))[:, None], fade(overlap)
        does = pairs & (part < own)
        ratio = jnp.where(does, part / jnp.where(own > 0, own, 1), 1)
        return (most, jnp.minimum(factor, ratio.min(axis=0))), None

    ones = jnp.ones(place.shape, _checks.arithmetic_dtype(data))
    start = _loops.varying((0 * ones, ones), (data, order, takes_part, label))
    starts = rows * jnp.arange(blocks, dtype=jnp.int32)
    (_, factor), _ = jax.lax.scan(step, start, starts)
    return factor[:n]
