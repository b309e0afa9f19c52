"""Fixed-size non-maximum suppression of boxes, or of whatever else was compared."""

__all__ = ["Kept", "Overlaps", "nms"]

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from . import _checks, _loops, _measure
from ._measure import Measure, Planes
from .measures import iou

Compare = Callable[[Planes, Planes], Array]
"""A measure on planes that broadcast, whatever the planes are."""


class Sizes(NamedTuple):
    """Boxes decided at once, kept boxes compared with them at once, rounds at once."""

    block: int
    chunk: int
    rounds: int


_CPU = Sizes(block=128, chunk=256, rounds=1)
# An accelerator is asked in every round of a loop whether it goes on: few, large ones.
_ACCELERATOR = Sizes(block=2048, chunk=8192, rounds=4)


class Kept(NamedTuple):
    """The boxes that survive, in order of falling score.

    Attributes:
        indices: `(*batch, max_outputs)` int32 into the boxes; -1 in empty slots.
        valid: `(*batch, max_outputs)`, False in empty slots.
    """

    indices: Int[Array, "*batch k"]
    valid: Bool[Array, "*batch k"]


class Overlaps(NamedTuple):
    """Given in place of boxes: how far each pair of anything overlaps.

    For what has no measure on coordinates, such as masks:
    `nms(Overlaps(pairwise_mask_iou(masks, masks)), scores, ...)`.

    Attributes:
        matrix: `(*batch, n, n)`, in the row of i what i, once kept, does to the others.
    """

    matrix: Float[Array, "*batch n n"]


def nms(
    boxes: _checks.Boxes | Overlaps,
    scores: _checks.ArrayLike,
    *,
    threshold: float,
    max_outputs: int,
    score_threshold: float | None = None,
    labels: _checks.ArrayLike | None = None,
    where: _checks.Mask | None = None,
    measure: Measure = iou,
) -> Kept:
    """Greedy non-maximum suppression.

    Walks the boxes by falling score, lower index first at equal scores, and keeps a box
    unless its measure with a kept one is above `threshold`. Equal to that loop on every
    input, in memory O(n + max_outputs), and it stops once `max_outputs` are kept.

    Args:
        boxes: `(*batch, n, 4)`, or as many coordinates as the measure takes; or
            `Overlaps(matrix)` of what was compared already, masks for example.
        scores: `(*batch, n)`.
        threshold: a box is suppressed where the measure is strictly above it.
        max_outputs: slots in the result; may exceed n.
        score_threshold: only boxes with a score strictly above it take part.
        labels: `(*batch, n)` integers; boxes suppress only their own label. Compared as
            ids: no coordinate offsets, so any label and coordinate is right.
        where: `(*batch, n)`, False for padding.
        measure: any measure; the kept box is its first argument.

    Returns:
        `Kept(indices, valid)`.

    At the edge:
        n may be 0. A box with a NaN coordinate neither suppresses nor is suppressed; a
        NaN score never takes part. Not differentiable: gather with the indices.

    Raises:
        ValueError: on shapes that do not fit each other, a `max_outputs` that is not a
            static integer >= 0, labels too large for their dtype, thresholds that are
            no single numbers, or a `measure` beside overlaps.
        TypeError: on a `measure` that is not one, masks that are not boolean, labels
            that are not integers.

    Example:
        >>> import jaxiou
        >>> boxes = [[0.0, 0.0, 4.0, 2.0], [0.0, 0.0, 4.0, 3.0], [5.0, 1.0, 9.0, 4.0]]
        >>> kept = jaxiou.nms(boxes, [0.6, 0.9, 0.3], threshold=0.5, max_outputs=3)
        >>> print(kept.indices, kept.valid)
        [ 1  2 -1] [ True  True False]

    Reference:
        The greedy rule of P. Felzenszwalb et al., "Object Detection with
        Discriminatively Trained Part-Based Models", 2010, with torchvision's `nms`
        conventions; `labels` is its `batched_nms`.
    """
    candidates = Candidates("nms", boxes, scores, max_outputs, labels, where, measure)
    limit = jax.lax.stop_gradient(_checks.as_number("nms", "threshold", threshold))
    if score_threshold is not None:
        least = _checks.as_number("nms", "score_threshold", score_threshold)
        candidates.takes_part &= candidates.scores > least

    # Blocks of many images at once take as much memory as those of a few.
    images = math.prod(candidates.batch)
    # Of a symbolic number, in `jax.export`, nothing is known.
    fewer = math.isqrt(max(1, images)) if isinstance(images, int) else 16
    large = _ACCELERATOR._replace(block=max(_CPU.block, _ACCELERATOR.block // fewer))
    one = functools.partial(_greedy, candidates)
    indices = candidates.each(
        functools.partial(one, _CPU), limit, accelerated=functools.partial(one, large)
    )
    return Kept(indices, indices >= 0)


class Candidates:
    """What may be suppressed: checked, and brought to one flat batch axis."""

    def __init__(
        self,
        function: str,
        boxes: Any,
        scores: Any,
        max_outputs: Any,
        labels: Any,
        where: Any,
        measure: Any,
    ):
        self.function = function
        self.measure = _measure.as_measure(function, measure)
        self.given = isinstance(boxes, Overlaps)
        array = self._overlaps(boxes) if self.given else self._boxes(boxes)
        shape = array.shape[:-1]
        if not isinstance(max_outputs, int | np.integer) or max_outputs < 0:
            raise ValueError(
                f"jaxiou.{function}: `max_outputs` is {max_outputs!r}, wanted an "
                "integer >= 0: the number of slots is part of the result's shape, so "
                "it cannot be traced."
            )
        self.max_outputs = int(max_outputs)
        score = self._per_box("scores", scores, shape)
        # Integers are ranked as they are: in float32 those above 2^24 would tie.
        if jnp.issubdtype(score.dtype, jnp.floating):
            score = score.astype(_checks.arithmetic_dtype(score))
        takes_part = ~jnp.isnan(score)
        if where is not None:
            takes_part &= _checks.as_mask(function, "where", where, shape)
        label = jnp.zeros(shape, jnp.int32)
        if labels is not None:
            label = self._per_box("labels", self._ids(labels), shape)
        self.batch = shape[:-1]
        self.data, self.scores, self.takes_part, self.labels = (
            _loops.replicate(jax.lax.stop_gradient(x)).reshape(
                math.prod(self.batch), *x.shape[len(self.batch) :]
            )
            for x in (array, score, takes_part, label)
        )

    def _boxes(self, boxes: Any) -> Array:
        return _checks.as_boxes(
            self.function,
            "boxes",
            boxes,
            coordinates=self.measure.coordinates,
            rank=2,
        )

    def _overlaps(self, boxes: Overlaps) -> Array:
        if self.measure != iou:
            raise ValueError(
                f"jaxiou.{self.function}: `measure` is {self.measure!r} beside "
                "`Overlaps`, which are measured already; leave it out."
            )
        matrix = _checks.as_real(self.function, "boxes", boxes.matrix)
        if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
            raise ValueError(
                f"jaxiou.{self.function}: `boxes` is an `Overlaps` of shape "
                f"{matrix.shape}, wanted (*batch, n, n), one row and column per item."
            )
        return matrix

    def _per_box(self, name: str, value: Any, shape: tuple[int, ...]) -> Array:
        array = _checks.as_real(self.function, name, value)
        if array.shape != shape:
            raise ValueError(
                f"jaxiou.{self.function}: `{name}` has shape {array.shape}, wanted "
                f"{shape}, one entry per box; for scores per class repeat the boxes "
                "and pass `labels`."
            )
        return array

    def _ids(self, labels: Any) -> Array:
        """Labels as integers that fit their dtype: truncated ids would collide."""
        label = _checks.as_integers(self.function, "labels", labels, "integer ids")
        if not isinstance(labels, jax.Array):
            given, info = np.asarray(labels), jnp.iinfo(label.dtype)
            if given.size and (given.min() < info.min or given.max() > info.max):
                raise ValueError(
                    f"jaxiou.{self.function}: `labels` reach from {given.min()} to "
                    f"{given.max()}, beyond {label.dtype}; number them anew with "
                    "`np.unique(labels, return_inverse=True)`, or enable 64-bit types."
                )
        return label

    def comparison(self, data: Array, rows: Array) -> tuple[Planes, Compare]:
        """Those rows of one image as planes, and the function that compares planes."""
        dtype = _checks.arithmetic_dtype(data)
        if not self.given:
            return _measure.split(data[rows], dtype), self.measure.planes

        def look_up(a: Planes, b: Planes) -> Array:
            found = data.at[a[0], b[0]].get(mode="promise_in_bounds")
            return found.astype(dtype)

        return (rows,), look_up

    def each(self, one: Callable[..., Any], shared: Any, **other: Any) -> Any:
        """`one(shared, data, scores, takes_part, labels)` for each image."""
        arrays = self.data, self.scores, self.takes_part, self.labels
        result = _loops.each_image(one, shared, arrays, **other)
        return jax.tree.map(lambda x: x.reshape(*self.batch, self.max_outputs), result)


def _greedy(
    candidates: Candidates,
    sizes: Sizes,
    threshold: Array,
    data: Array,
    score: Array,
    takes_part: Array,
    label: Array,
) -> Array:
    """The pull form: blocks in score order, compared with the boxes kept so far."""
    n, max_outputs = score.shape[0], candidates.max_outputs
    if n == 0 or max_outputs == 0:
        return jnp.full((max_outputs,), -1, jnp.int32)
    size = min(sizes.block, n)
    blocks = -(-n // size)
    order = by_score(score, takes_part)
    padded = jnp.pad(order, (0, blocks * size - n))
    planes, compare = candidates.comparison(data, padded)
    labels = label[padded]
    # int32 like the indices: a sum of booleans follows the x64 flag.
    count = jnp.sum(takes_part, dtype=jnp.int32)
    width = min(sizes.chunk, max_outputs)
    slots = -(-max_outputs // width) * width
    inputs = (threshold, data, score, takes_part, label)

    def above(first: tuple[Planes, Array], second: tuple[Planes, Array]) -> Array:
        rows = tuple(p[:, None] for p in first[0])
        columns = tuple(p[None, :] for p in second[0])
        same = first[1][:, None] == second[1][None, :]
        return (compare(rows, columns) > threshold) & same

    def step(state: Any) -> Any:
        index, kept_count, kept, kept_order = state
        start = index * size
        block = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), (planes, labels)
        )

        def pull(chunk: Array, suppressed: Array) -> Array:
            first = chunk * width
            some = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, first, width), kept
            )
            real = first + jnp.arange(width) < kept_count
            return suppressed | (above(some, block) & real[:, None]).any(axis=0)

        chunks = -(-kept_count // width)
        none = _loops.varying(jnp.zeros((size,), bool), inputs)
        alive = ~jax.lax.fori_loop(0, chunks, pull, none)
        place = start + jnp.arange(size)
        alive &= place < count
        keep = _solve(above(block, block), place, alive, sizes.rounds)
        last = kept_count + jnp.cumsum(keep, dtype=jnp.int32)
        slot = jnp.where(keep, last - 1, slots)

        def store(buffer: Array, values: Array) -> Array:
            return buffer.at[slot].set(values, mode="drop")

        positions = jax.lax.dynamic_slice_in_dim(padded, start, size)
        return (
            index + 1,
            jnp.minimum(last[-1], max_outputs),
            jax.tree.map(store, kept, block),
            store(kept_order, positions),
        )

    def unfinished(state: Any) -> Array:
        index, kept_count = state[:2]
        return (index * size < count) & (kept_count < max_outputs)

    empty = jax.tree.map(lambda x: jnp.zeros((slots,), x.dtype), (planes, labels))
    start = (jnp.int32(0), jnp.int32(0), empty, jnp.full((slots,), -1, jnp.int32))
    start = _loops.varying(start, inputs)
    _, kept_count, _, kept_order = jax.lax.while_loop(unfinished, step, start)
    filled = jnp.arange(max_outputs) < kept_count
    return jnp.where(filled, kept_order[:max_outputs], -1)


def by_score(score: Array, takes_part: Array) -> Array:
    """Indices by falling score, lower index first at ties, the left out last."""
    index = jnp.arange(score.shape[0], dtype=jnp.int32)
    keys: tuple[Array, ...]
    if jnp.issubdtype(score.dtype, jnp.integer):
        keys = ~takes_part, ~score  # -x of the least integer is itself; ~x is -x - 1
    else:
        # NaN comes last: one key is sorted in three quarters of the time of two.
        keys = (jnp.where(takes_part, -score, jnp.nan),)
    return jax.lax.sort((*keys, index), num_keys=len(keys), is_stable=True)[-1]


def _solve(above: Array, place: Array, alive: Array, rounds: int) -> Array:
    """Greedy within one block, as the fixed point of "no earlier kept box is above".

    Each round settles at least the next box in order, usually many more.
    """
    # Places, not a constant triangle: XLA would take a minute to evaluate that.
    edges = above & (place[:, None] < place[None, :])

    def again(state: tuple[Array, Array]) -> Array:
        return state[1]

    def improve(state: tuple[Array, Array]) -> tuple[Array, Array]:
        new, _ = state
        for _ in range(rounds):
            keep, new = new, alive & ~(edges & new[:, None]).any(axis=0)
        return new, (new != keep).any()

    start = _loops.varying((alive, jnp.bool_(True)), (above, alive))
    return jax.lax.while_loop(again, improve, start)[0]
