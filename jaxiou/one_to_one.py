"""Matching one to one at the least total cost, and the usual costs."""

__all__ = ["box_l1_cost", "focal_cost", "match_one_to_one", "measure_cost"]

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _checks, _loops, _measure, _numerics
from ._measure import Measure
from .matching import Assignment
from .matrix import pairwise
from .measures import giou

Solver = Callable[[Array], tuple[Array, Array]]


def match_one_to_one(
    cost: _checks.ArrayLike,
    *,
    where: _checks.Mask | None = None,
    solver: Solver | None = None,
) -> Assignment:
    """Matches rows and columns in pairs so that the sum of their costs is least.

    As many pairs as possible are made; among those ways the one of least total cost.

    Args:
        cost: `(*batch, n, m)`, of predictions (rows) and targets (columns).
        where: bool, broadcasts to the shape of `cost`, False for pairs that cannot
            match: `where[:, None, :]` for padded targets, or a gate such as
            `pairwise(boxes1, boxes2) > 0.3`.
        solver: function of one matrix `(n, m)` that returns the rows and the columns of
            min(n, m) pairs; None for `optax.assignment.hungarian_algorithm`.

    Returns:
        `Assignment(indices, values, None)`: the column of each row, -1 for none, and
        minus the cost of the pair, `-inf` for none.

    At the edge:
        n or m may be 0. What is not finite, NaN included, never matches. Not
        differentiable: gather the costs with the indices. The solver sees costs in
        [0, 1] and min(n, m) + 1 for pairs that cannot match; where it is forced to use
        such pairs it rounds to about 1e-7 of that.

    Raises:
        ValueError: on a cost without two axes, or a mask that does not broadcast to it.
        TypeError: on a mask that is not boolean.
        ImportError: where there is neither Optax nor another `solver`.

    Example:
        >>> import jaxiou
        >>> cost = [[0.5, 0.1, 0.9], [0.4, 0.2, 0.1]]
        >>> print(jaxiou.match_one_to_one(cost, where=[True, True, False]).indices)
        [1 0]

    Reference:
        H. W. Kuhn, "The Hungarian method for the assignment problem", 1955; N. Carion
        et al., "End-to-End Object Detection with Transformers", 2020, arXiv:2005.12872.
        scipy's `linear_sum_assignment` raises on NaN and has no mask; mmdetection moves
        every cost matrix to the CPU for it.
    """
    array = _checks.as_real("match_one_to_one", "cost", cost)
    if array.ndim < 2:
        raise ValueError(
            f"jaxiou.match_one_to_one: `cost` has shape {array.shape}, wanted "
            "(*batch, n, m); `jaxiou.measure_cost` makes such a matrix of boxes."
        )
    *batch, n, m = array.shape
    array = array.astype(_checks.arithmetic_dtype(array))
    allowed = jnp.isfinite(array)
    if where is not None:
        allowed &= _checks.as_mask(
            "match_one_to_one", "where", where, array.shape, unit="pair"
        )
    solve = _hungarian() if solver is None else solver

    def one(_: None, cost: Array, allowed: Array) -> tuple[Array, Array]:
        rows, columns = solve(_prepared(cost, allowed))
        real = allowed[rows, columns]
        place = jnp.where(real, rows, n)
        index = jnp.full((n,), -1, jnp.int32)
        index = index.at[place].set(columns.astype(jnp.int32), mode="drop")
        values = jnp.full((n,), -jnp.inf, cost.dtype)
        return index, values.at[place].set(-cost[rows, columns], mode="drop")

    if not array.size:
        index = jnp.full((*batch, n), -1, jnp.int32)
        return Assignment(index, jnp.full(index.shape, -jnp.inf, array.dtype))
    operands = jax.lax.stop_gradient(array), allowed
    flat = [_loops.replicate(x).reshape(-1, n, m) for x in operands]
    found = _loops.each_image(one, None, flat)
    return Assignment(*(x.reshape(*batch, n) for x in found))


def box_l1_cost(
    boxes1: _checks.Boxes, boxes2: _checks.Boxes
) -> Float[Array, "*batch n m"]:
    """The sum of the distances of the coordinates, for every pair of two sets.

    out[i, j] = Σ |boxes1[i] - boxes2[j]|.

    Args:
        boxes1: `(*batch, n, 4)`, in any format and unit; or any number of coordinates.
        boxes2: `(*batch, m, 4)`, in the same; leading axes broadcast.

    Returns:
        `(*batch, n, m)` in that unit and the floating dtype of the inputs.

    At the edge:
        n or m may be 0. NaN gives NaN, which `match_one_to_one` never matches.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on boolean or complex boxes.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.box_l1_cost([[0.1, 0.2, 0.4, 0.4]], [[0.1, 0.3, 0.5, 0.8]]))
        [[0.6]]

    Reference:
        N. Carion et al., "End-to-End Object Detection with Transformers", 2020,
        arXiv:2005.12872, of boxes (cx, cy, w, h) in units of the image.
    """
    name = "box_l1_cost"
    shapes = (
        _checks.as_real(name, key, value).shape
        for key, value in (("boxes1", boxes1), ("boxes2", boxes2))
    )
    # `[]` is a set of boxes with as many coordinates as those of the other set.
    size = next((s[-1] for s in shapes if s and s != (0,)), 4)
    if not size:
        raise ValueError(f"jaxiou.{name}: the boxes have no coordinates.")
    array1, array2 = (
        _checks.as_boxes(name, key, value, coordinates=size, rank=2)
        for key, value in (("boxes1", boxes1), ("boxes2", boxes2))
    )
    batches = array1.shape[:-2], array2.shape[:-2]
    _checks.broadcast_batch(name, ("boxes1", "boxes2"), *batches)
    dtype = _checks.result_dtype(array1, array2)
    array1, array2 = _measure.promote(array1, array2)
    # One coordinate after the other: nothing of size n × m × 4 is written.
    total = sum(
        jnp.abs(array1[..., :, None, k] - array2[..., None, :, k]) for k in range(size)
    )
    return _measure.narrow(jnp.asarray(total), dtype)


def measure_cost(
    boxes1: _checks.Boxes, boxes2: _checks.Boxes, *, measure: Measure = giou
) -> Float[Array, "*batch n m"]:
    """What a measure lacks to its maximum, for every pair of two sets.

    out[i, j] = maximum - measure(boxes1[i], boxes2[j]).

    Args:
        boxes1: `(*batch, n, 4)`, or as many coordinates as the measure takes.
        boxes2: `(*batch, m, 4)`; leading axes broadcast.
        measure: any measure.

    Returns:
        `(*batch, n, m)` in the boxes' floating dtype, 0 for identical boxes.

    At the edge:
        n or m may be 0. NaN gives NaN, which `match_one_to_one` never matches.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on a `measure` that is not one.

    Example:
        >>> import jaxiou
        >>> boxes = [[0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]]
        >>> print(jaxiou.measure_cost(boxes, [[0.0, 0.0, 4.0, 4.0]]))
        [[0.5   ]
         [0.4375]]

    Reference:
        N. Carion et al., "End-to-End Object Detection with Transformers", 2020,
        arXiv:2005.12872. mmdetection's `IoUCost` leaves the maximum out.
    """
    measure = _measure.as_measure("measure_cost", measure)
    return measure.maximum - pairwise(boxes1, boxes2, measure=measure)


def focal_cost(
    logits: _checks.ArrayLike,
    labels: _checks.ArrayLike,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "*batch n m"]:
    """What the focal loss grows by where a prediction is to have a target's label.

    With p the probability that prediction i gives to label j, out[i, j] =
    α (1 - p)^γ (-log p) - (1 - α) p^γ (-log(1 - p)).

    Args:
        logits: `(*batch, n, classes)`, before the sigmoid.
        labels: `(*batch, m)` integers; leading axes broadcast.
        alpha: weight of the positive part, in [0, 1].
        gamma: exponent, at least 0.

    Returns:
        `(*batch, n, m)` in the floating dtype of the logits; lower where p is larger.

    At the edge:
        Finite for every finite logit: logarithms are those of a sigmoid. n or m may be
        0.

    Raises:
        ValueError: on shapes that do not fit, or parameters outside of their range.
        TypeError: on labels that are not integers.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.focal_cost([[0.0, 2.0, -2.0]], [1, 0, 2]))
        [[-1.2371079 -0.0866434  0.4111669]]

    Reference:
        T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollár, "Focal Loss for Dense Object
        Detection", 2017, arXiv:1708.02002; X. Zhu et al., "Deformable DETR", 2020,
        arXiv:2010.04159, adds 1e-8 inside of the logarithms.
    """
    name = "focal_cost"
    logit = _checks.as_real(name, "logits", logits)
    label = _checks.as_integers(name, "labels", labels, "integers")
    if logit.ndim < 2 or label.ndim < 1:
        raise ValueError(
            f"jaxiou.{name}: `logits` has shape {logit.shape} and `labels` "
            f"{label.shape}, wanted (*batch, n, classes) and (*batch, m)."
        )
    _checks.number(name, "alpha", alpha, least=0, most=1, default="0.25")
    _checks.number(name, "gamma", gamma, least=0, default="2")
    batch = _checks.broadcast_batch(
        name, ("logits", "labels"), logit.shape[:-2], label.shape[:-1]
    )
    x = logit.astype(_checks.arithmetic_dtype(logit))
    log_p, log_q = jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)
    # Powers as exponentials: of probabilities that are 0 the derivative would be NaN.
    gain = -alpha * jnp.exp(gamma * log_q) * log_p
    loss = -(1 - alpha) * jnp.exp(gamma * log_p) * log_q
    cost = jnp.broadcast_to(gain - loss, (*batch, *logit.shape[-2:]))
    place = jnp.broadcast_to(label[..., None, :], (*batch, 1, label.shape[-1]))
    found = jnp.take_along_axis(cost, place, axis=-1, mode="clip")
    return _measure.narrow(found, _checks.result_dtype(logit))


def _hungarian() -> Solver:
    try:
        import optax
    except ImportError:
        raise ImportError(
            "jaxiou.match_one_to_one: needs Optax for its default solver, `pip install "
            "optax`; or pass `solver=`, a function of a cost matrix (n, m) that "
            "returns the rows and the columns of its pairs."
        ) from None
    solve: Any = optax.assignment.hungarian_algorithm
    return solve


def _prepared(cost: Array, allowed: Array) -> Array:
    """Costs in [0, 1]; of pairs that cannot match so much that all others come first.

    Of the shorter side every line is matched anyway: there a line without any pair may
    cost nothing, which keeps all digits of the others.
    """
    n, m = cost.shape
    # So that the distance of two costs is a number, and its reciprocal a normal one.
    cost = _numerics.saturate(cost, float(jnp.finfo(cost.dtype).max) / 64)
    least = jnp.min(cost, where=allowed, initial=jnp.inf)
    most = jnp.max(cost, where=allowed, initial=-jnp.inf)
    size = jnp.where(most > least, most - least, 1)
    relative = jnp.where(allowed, (cost - least) / size, 0)
    dead = ~allowed.any(axis=0 if m <= n else 1, keepdims=True)
    forbidden = jnp.where(dead, 0.0, 1.0 + min(n, m))
    return jnp.where(allowed, relative, forbidden.astype(cost.dtype))
