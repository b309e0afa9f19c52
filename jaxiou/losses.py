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
    "giou_loss",
    "iou_loss",
    "log_iou_loss",
    "squared_iou_loss",
]

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from . import _checks, _measure
from ._measure import Measure
from .measures import ciou, diou, giou, iou


def box_loss(
    predictions: _checks.Boxes,
    targets: _checks.Boxes,
    *,
    measure: Measure,
    where: _checks.Mask | None = None,
) -> Float[Array, "*batch"]:
    """The loss of a measure: its maximum minus its value.

    Args:
        predictions: `(*batch, 4)`, or as many coordinates as the measure takes.
        targets: `(*batch, 4)`; leading axes broadcast.
        measure: any measure; `measure.plain` where forward mode is wanted.
        where: `(*batch)`, False for pairs to leave out.

    Returns:
        `(*batch)`, in [0, measure.maximum - measure.minimum], 0 for identical boxes, in
        the boxes' floating dtype (float32 for integers).

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
    return _distance("box_loss", predictions, targets, measure, where)


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
    if not 0 < floor <= 1:
        raise ValueError(
            f"jaxiou.log_iou_loss: `floor` is {floor!r}, wanted a number in (0, 1]; "
            "the default is 1e-3."
        )

    def continued(value: Array) -> Array:
        safe = jnp.maximum(value, floor)
        return -jnp.log(safe) + jnp.maximum(floor - value, 0) / floor

    return _loss("log_iou_loss", predictions, targets, iou, where, continued)


def _distance(
    function: str,
    predictions: _checks.Boxes,
    targets: _checks.Boxes,
    measure: Measure,
    where: _checks.Mask | None,
) -> Array:
    """How much the measure falls short of its maximum."""
    maximum = measure.maximum
    return _loss(
        function, predictions, targets, measure, where, lambda value: maximum - value
    )


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
        return transform(_measure.aligned(measure, boxes1, boxes2)).astype(dtype)
    mask = _checks.as_mask(function, "where", where, shape)
    boxes1, boxes2 = (
        _measure.select(mask, _measure.spread(measure, boxes, shape))
        for boxes in (boxes1, boxes2)
    )
    values = transform(_measure.aligned(measure, boxes1, boxes2))
    return jnp.where(mask, values, 0).astype(dtype)
