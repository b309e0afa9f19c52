"""Losses of boxes: one value per pair, nothing reduced.

Every loss takes `predictions` and `targets` as decoded boxes, `(*batch, 4)` in xyxy
(not encoded offsets), and returns `(*batch)`. Where `where` is False the loss is
exactly 0 and so is its gradient, whatever the boxes hold. Gradients reach both
arguments. The mean that survives an image without targets is

    jnp.sum(loss, where=where) / jnp.maximum(jnp.sum(where), 1)
"""

__all__ = [
    "box_loss",
    "ciou_loss",
    "diou_loss",
    "focal_eiou_loss",
    "giou_loss",
    "iou_loss",
    "log_iou_loss",
    "squared_iou_loss",
    "wiou_loss",
]

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _checks, _measure
from ._measure import Measure, Planes
from ._numerics import divide, largest, power
from .measures import ciou, diou, eiou, giou, iou
from .variants import wiou


def box_loss(
    predictions: _checks.Boxes,
    targets: _checks.Boxes,
    *,
    measure: Measure,
    transform: Callable[[Array], Array] | None = None,
    where: _checks.Mask | None = None,
) -> Float[Array, "*batch"]:
    """The loss of a measure: its maximum minus its value.

    Args:
        predictions: `(*batch, 4)`, or as many coordinates as the measure takes.
        targets: `(*batch, 4)`; leading axes broadcast.
        measure: any measure; `measure.plain` where forward mode is wanted.
        transform: an elementwise function of the loss, applied in float32 or wider and
            before the mask, as `lambda loss: 1 - (1 - loss) ** 2`.
        where: `(*batch)`, False for pairs to leave out.

    Returns:
        `(*batch)`, in [0, measure.maximum - measure.minimum] unless transformed, 0 for
        identical boxes, in the boxes' floating dtype (float32 for integers).

    At the edge:
        Masked pairs give value 0 and gradient 0, also where they hold NaN or infinity.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on a `measure` that is not one, or a mask that is not boolean.

    Example:
        >>> import jaxiou
        >>> prediction, target = [0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]
        >>> print(jaxiou.box_loss(prediction, target, measure=jaxiou.giou))
        0.91071427

    Reference:
        The measure's.
    """
    measure = _measure.as_measure("box_loss", measure)
    return _distance("box_loss", predictions, targets, measure, where, transform)


def iou_loss(
    predictions: _checks.Boxes,
    targets: _checks.Boxes,
    *,
    where: _checks.Mask | None = None,
) -> Float[Array, "*batch"]:
    """1 - IoU: `box_loss` with `measure=iou`.

    Args:
        predictions: `(*batch, 4)`, xyxy.
        targets: `(*batch, 4)`, xyxy; leading axes broadcast.
        where: `(*batch)`, False for pairs to leave out.

    Returns:
        `(*batch)`, in [0, 1], 0 for identical boxes.

    At the edge:
        1, with gradient 0, for disjoint boxes: those learn nothing. Use `giou_loss` or
        `diou_loss` where predictions may miss their target.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on a mask that is not boolean.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.iou_loss([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.78571427

    Reference:
        J. Yu, Y. Jiang, Z. Wang, Z. Cao, T. Huang, "UnitBox: An Advanced Object
        Detection Network", 2016, arXiv:1608.01471, in the linear form of later work.
    """
    return _distance("iou_loss", predictions, targets, iou, where)


def giou_loss(
    predictions: _checks.Boxes,
    targets: _checks.Boxes,
    *,
    where: _checks.Mask | None = None,
) -> Float[Array, "*batch"]:
    """1 - GIoU: `box_loss` with `measure=giou`.

    Args:
        predictions: `(*batch, 4)`, xyxy.
        targets: `(*batch, 4)`, xyxy; leading axes broadcast.
        where: `(*batch)`, False for pairs to leave out.

    Returns:
        `(*batch)`, in [0, 2], 0 for identical boxes.

    At the edge:
        Disjoint boxes keep a gradient.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on a mask that is not boolean.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.giou_loss([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.91071427

    Reference:
        H. Rezatofighi et al., "Generalized Intersection over Union", 2019,
        arXiv:1902.09630.
    """
    return _distance("giou_loss", predictions, targets, giou, where)


def diou_loss(
    predictions: _checks.Boxes,
    targets: _checks.Boxes,
    *,
    where: _checks.Mask | None = None,
) -> Float[Array, "*batch"]:
    """1 - DIoU: `box_loss` with `measure=diou`.

    Args:
        predictions: `(*batch, 4)`, xyxy.
        targets: `(*batch, 4)`, xyxy; leading axes broadcast.
        where: `(*batch)`, False for pairs to leave out.

    Returns:
        `(*batch)`, in [0, 2], 0 for identical boxes.

    At the edge:
        Disjoint boxes keep a gradient.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on a mask that is not boolean.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.diou_loss([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.86383927

    Reference:
        Z. Zheng et al., "Distance-IoU Loss", 2020, arXiv:1911.08287.
    """
    return _distance("diou_loss", predictions, targets, diou, where)


def ciou_loss(
    predictions: _checks.Boxes,
    targets: _checks.Boxes,
    *,
    where: _checks.Mask | None = None,
) -> Float[Array, "*batch"]:
    """1 - CIoU: `box_loss` with `measure=ciou`.

    Args:
        predictions: `(*batch, 4)`, xyxy.
        targets: `(*batch, 4)`, xyxy; leading axes broadcast.
        where: `(*batch)`, False for pairs to leave out.

    Returns:
        `(*batch)`, in [0, 2.5], 0 for identical boxes.

    At the edge:
        Disjoint boxes keep a gradient. The weight α of the aspect term is constant in
        the gradient.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on a mask that is not boolean.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.ciou_loss([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.86596614

    Reference:
        Z. Zheng et al., "Distance-IoU Loss", 2020, arXiv:1911.08287.
    """
    return _distance("ciou_loss", predictions, targets, ciou, where)


def squared_iou_loss(
    predictions: _checks.Boxes,
    targets: _checks.Boxes,
    *,
    where: _checks.Mask | None = None,
) -> Float[Array, "*batch"]:
    """1 - IoU², which pulls hardest on boxes that already fit.

    Args:
        predictions: `(*batch, 4)`, xyxy.
        targets: `(*batch, 4)`, xyxy; leading axes broadcast.
        where: `(*batch)`, False for pairs to leave out.

    Returns:
        `(*batch)`, in [0, 1], 0 for identical boxes.

    At the edge:
        1, with gradient 0, for disjoint boxes.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast.
        TypeError: on a mask that is not boolean.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.squared_iou_loss([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.95408165

    Reference:
        The `square` mode of mmdetection's `IoULoss`.
    """
    return _loss(
        "squared_iou_loss", predictions, targets, iou, where, lambda v: 1 - v * v
    )


def log_iou_loss(
    predictions: _checks.Boxes,
    targets: _checks.Boxes,
    *,
    floor: float = 1e-3,
    where: _checks.Mask | None = None,
) -> Float[Array, "*batch"]:
    """-log IoU, continued along its tangent below a floor.

    L = -log(IoU) for IoU >= floor, and -log(floor) + (floor - IoU) / floor below: the
    loss and its slope stay continuous and finite.

    Args:
        predictions: `(*batch, 4)`, xyxy.
        targets: `(*batch, 4)`, xyxy; leading axes broadcast.
        floor: IoU below which the tangent takes over, in (0, 1].
        where: `(*batch)`, False for pairs to leave out.

    Returns:
        `(*batch)`, in [0, 1 - log(floor)], 0 for identical boxes.

    At the edge:
        1 - log(floor), 7.9 by default, with gradient 0, for disjoint boxes. The slope
        in the IoU is at most 1 / floor.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast, or a floor outside
            of (0, 1].
        TypeError: on a mask that is not boolean.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.log_iou_loss([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        1.5404451

    Reference:
        J. Yu, Y. Jiang, Z. Wang, Z. Cao, T. Huang, "UnitBox: An Advanced Object
        Detection Network", 2016, arXiv:1608.01471. mmdetection clamps the IoU at
        1e-6 instead, which cuts the gradient off.
    """
    _checks.number("log_iou_loss", "floor", floor, above=0, most=1, default="1e-3")

    def continued(value: Array) -> Array:
        safe = jnp.maximum(value, floor)
        return -jnp.log(safe) + jnp.maximum(floor - value, 0) / floor

    return _loss("log_iou_loss", predictions, targets, iou, where, continued)


@_measure.measure
def _focal_eiou(a: Planes, b: Planes, *, gamma: float) -> Array:
    overlap, *penalties = eiou.terms(a, b)
    weight = jax.lax.stop_gradient(power(overlap, gamma))
    return 1 - weight * (1 - overlap + sum(penalties))


def focal_eiou_loss(
    predictions: _checks.Boxes,
    targets: _checks.Boxes,
    *,
    gamma: float = 0.5,
    where: _checks.Mask | None = None,
) -> Float[Array, "*batch"]:
    """IoU^γ (1 - EIoU): the efficient IoU loss, weighted towards boxes that fit.

    Args:
        predictions: `(*batch, 4)`, xyxy.
        targets: `(*batch, 4)`, xyxy; leading axes broadcast.
        gamma: the power γ of the weight, 0 or more.
        where: `(*batch)`, False for pairs to leave out.

    Returns:
        `(*batch)`, in [0, 1.5), 0 for identical boxes and for disjoint ones.

    At the edge:
        The weight is constant in the gradient. Disjoint boxes have weight 0 and learn
        nothing.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast, or a negative γ.
        TypeError: on a mask that is not boolean.

    Example:
        >>> import jaxiou
        >>> print(jaxiou.focal_eiou_loss([0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]))
        0.45774364

    Reference:
        Y.-F. Zhang, W. Ren, Z. Zhang, Z. Jia, L. Wang, T. Tan, "Focal and Efficient IOU
        Loss for Accurate Bounding Box Regression", 2021, arXiv:2101.08158.
    """
    _checks.number("focal_eiou_loss", "gamma", gamma, least=0, default="0.5")
    measure = _focal_eiou(gamma=gamma)
    return _distance("focal_eiou_loss", predictions, targets, measure, where)


def wiou_loss(
    predictions: _checks.Boxes,
    targets: _checks.Boxes,
    *,
    mean: _checks.ArrayLike,
    measure: Measure = wiou,
    version: int = 3,
    gamma: float = 0.5,
    alpha: float = 1.9,
    delta: float = 3.0,
    momentum: float = 0.01,
    where: _checks.Mask | None = None,
) -> tuple[Float[Array, "*batch"], Float[Array, ""]]:
    """Wise-IoU: a loss focused by how a box compares with the mean of the training.

    L = r (1 - WIoU) with β = (1 - IoU) / mean and r = 1 in version 1, r = β^γ in
    version 2, r = β / (δ α^(β - δ)) in version 3; r is constant in the gradient. The
    mean is state that you carry: start with 1.0, hand the new one to the next step.

    Args:
        predictions: `(*batch, 4)`, xyxy.
        targets: `(*batch, 4)`, xyxy; leading axes broadcast.
        mean: scalar, the running mean of 1 - IoU.
        measure: the measure whose loss is focused; the authors also use others.
        version: 1, 2 or 3.
        gamma: the power γ of version 2.
        alpha: the base α of version 3, above 1.
        delta: the outlier degree δ of version 3 at which r is 1.
        momentum: weight of these boxes in the new mean, in [0, 1]; 0 freezes it.
        where: `(*batch)`, False for pairs to leave out, also of the mean.

    Returns:
        The losses, `(*batch)`, 0 for identical boxes, and the new mean, which is also
        the one that scaled them. Without any box the mean stays.

    At the edge:
        Disjoint boxes keep a gradient with the default measure. A mean of 0 gives r =
        0 in versions 2 and 3.

    Raises:
        ValueError: on shapes that are not boxes or do not broadcast, a mean that is no
            scalar, or parameters out of range.
        TypeError: on a measure that is not one, or a mask that is not boolean.

    Example:
        >>> import jaxiou
        >>> prediction, target = [0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]
        >>> loss, mean = jaxiou.wiou_loss(prediction, target, mean=1.0)
        >>> print(loss, mean)
        0.92265356 0.99785715

    Reference:
        Z. Tong, Y. Chen, Z. Xu, R. Yu, "Wise-IoU: Bounding Box Regression Loss with
        Dynamic Focusing Mechanism", 2023, arXiv:2301.10051. The authors' code hides the
        mean in a class; α, δ are 1.9, 3 in the paper's branch, 1.7, 2.7 in the later.
    """
    name = "wiou_loss"
    measure = _measure.as_measure(name, measure)
    _wiou_parameters(name, version, gamma, alpha, delta, momentum)
    state = _checks.as_real(name, "mean", mean)
    if state.shape != ():
        raise ValueError(
            f"jaxiou.{name}: `mean` has shape {state.shape}, wanted a scalar, one "
            "number for the whole training; start with `jnp.array(1.0)`."
        )
    boxes1, boxes2 = measure._inputs(
        name, ("predictions", "targets"), predictions, targets
    )
    dtype = _checks.result_dtype(boxes1, boxes2)
    wide = _checks.arithmetic_dtype(boxes1, boxes2)
    boxes1, boxes2 = boxes1.astype(wide), boxes2.astype(wide)

    loss = _distance(name, boxes1, boxes2, measure, where)
    quality = jax.lax.stop_gradient(_distance(name, boxes1, boxes2, iou, where))
    mask = True if where is None else jnp.broadcast_to(jnp.asarray(where), loss.shape)
    count = jnp.sum(jnp.broadcast_to(mask, loss.shape))
    fresh = jnp.sum(quality) / jnp.maximum(count, 1)
    state = jax.lax.stop_gradient(state.astype(wide))
    state = jnp.where(count > 0, state + momentum * (fresh - state), state)

    beta = jnp.minimum(divide(quality, state), largest(wide))
    if version == 2:
        loss = power(beta, gamma) * loss
    elif version == 3:
        loss = beta / delta * alpha ** (delta - beta) * loss
    return _measure.narrow(loss, dtype), state


def _wiou_parameters(
    name: str, version: int, gamma: float, alpha: float, delta: float, momentum: float
) -> None:
    if version not in (1, 2, 3):
        raise ValueError(f"jaxiou.{name}: `version` is {version!r}, wanted 1, 2 or 3.")
    _checks.number(name, "gamma", gamma, least=0, default="0.5")
    _checks.number(name, "alpha", alpha, above=1, default="1.9")
    _checks.number(name, "delta", delta, above=0, default="3.0")
    _checks.number(name, "momentum", momentum, least=0, most=1, default="0.01")


def _distance(
    function: str,
    predictions: _checks.Boxes,
    targets: _checks.Boxes,
    measure: Measure,
    where: _checks.Mask | None,
    transform: Callable[[Array], Array] | None = None,
) -> Array:
    """How much the measure falls short of its maximum."""

    def short(value: Array) -> Array:
        loss = measure.maximum - value
        return loss if transform is None else transform(loss)

    return _loss(function, predictions, targets, measure, where, short)


def _loss(
    function: str,
    predictions: _checks.Boxes,
    targets: _checks.Boxes,
    measure: Measure,
    where: _checks.Mask | None,
    transform: Callable[[Array], Array],
) -> Array:
    """`transform` of an aligned measure, in the arithmetic dtype until the end."""
    names = ("predictions", "targets")
    boxes1, boxes2 = measure._inputs(function, names, predictions, targets)
    dtype = _checks.result_dtype(boxes1, boxes2)
    shape = jnp.broadcast_shapes(boxes1.shape[:-1], boxes2.shape[:-1])
    if where is None:
        values = transform(_measure.aligned(measure, boxes1, boxes2))
        return _measure.narrow(values, dtype)
    mask = _checks.as_mask(function, "where", where, shape)
    boxes1, boxes2 = (
        _measure.select(mask, _measure.spread(measure, boxes, shape))
        for boxes in (boxes1, boxes2)
    )
    values = transform(_measure.aligned(measure, boxes1, boxes2))
    return _measure.narrow(jnp.where(mask, values, 0), dtype)
