"""Losses: formulas by hand, exact masks, and what training does to them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import DEGENERATE, random_boxes, stacked

import jaxiou

LOSSES = {
    "iou_loss": jaxiou.iou_loss,
    "giou_loss": jaxiou.giou_loss,
    "diou_loss": jaxiou.diou_loss,
    "ciou_loss": jaxiou.ciou_loss,
    "log_iou_loss": jaxiou.log_iou_loss,
    "squared_iou_loss": jaxiou.squared_iou_loss,
    "box_loss": functools.partial(jaxiou.box_loss, measure=jaxiou.giou),
    "box_loss plain": functools.partial(jaxiou.box_loss, measure=jaxiou.giou.plain),
}
every = pytest.mark.parametrize("name", LOSSES)

# Widths 4 and 3, heights 2 and 3; they share the 3 × 1 rectangle (1, 1, 4, 2).
PREDICTION, TARGET = [0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 4.0, 4.0]
IOU = (3 * 1) / (4 * 2 + 3 * 3 - 3 * 1)
HULL = 4 * 4
GIOU = IOU - (HULL - 14) / HULL
# Centres (2, 1) and (2.5, 2.5); the diagonal of the hull.
DIOU = IOU - (0.5**2 + 1.5**2) / (4**2 + 4**2)
V = 4 / math.pi**2 * (math.atan(3 / 3) - math.atan(4 / 2)) ** 2
CIOU = DIOU - V / (1 - IOU + V) * V

BY_HAND = {
    "iou_loss": 1 - 3 / 14,
    "giou_loss": 1 - GIOU,
    "diou_loss": 1 - DIOU,
    "ciou_loss": 1 - CIOU,
    "log_iou_loss": -math.log(3 / 14),
    "squared_iou_loss": 1 - (3 / 14) ** 2,
    "box_loss": 1 - GIOU,
    "box_loss plain": 1 - GIOU,
}


def weighted_gradients(loss, weights, *arguments):
    """Gradients in both boxes of a weighted sum, and the values."""

    def total(predictions, targets, *rest):
        values = loss(predictions, targets, *rest)
        return jnp.sum(values * weights), values

    return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(*arguments)


@every
def test_the_formula_by_hand(name):
    value = LOSSES[name](PREDICTION, TARGET)
    np.testing.assert_allclose(value, BY_HAND[name], rtol=3e-7)
    assert value.shape == () and value.dtype == jnp.float32


@every
def test_is_zero_for_identical_boxes_and_in_range_elsewhere(name):
    boxes = random_boxes(0, 300)
    np.testing.assert_allclose(LOSSES[name](boxes, boxes), 0, atol=3e-7)
    for a, b in [(boxes, random_boxes(1, 300)), stacked(DEGENERATE)]:
        value = np.asarray(LOSSES[name](a, b))
        assert np.isfinite(value).all() and value.min() >= 0
        assert value.max() <= (7.91 if "log" in name else 2.5)


@every
def test_nothing_is_reduced_and_leading_axes_broadcast(name):
    a, b = random_boxes(0, 3, 1, extent=9), random_boxes(1, 5, extent=9)
    values = LOSSES[name](a, b)
    assert values.shape == (3, 5)
    np.testing.assert_allclose(values[2, 4], LOSSES[name](a[2, 0], b[4]), rtol=1e-6)
    mask = np.arange(15).reshape(3, 5) % 2 == 0
    masked = LOSSES[name](a, b, where=mask)
    np.testing.assert_array_equal(masked, np.where(mask, values, 0))
    assert LOSSES[name](np.zeros((0, 4)), np.zeros((0, 4))).shape == (0,)
    assert LOSSES[name]([], np.zeros((0, 4)), where=np.zeros(0, bool)).shape == (0,)


FILLINGS = {
    "nan": [np.nan] * 4,
    "infinity": [-np.inf, -np.inf, np.inf, np.inf],
    "one nan": [0, 0, np.nan, 1],
    "huge": [-3e38, -3e38, 3e38, 3e38],
    "tiny": [0, 0, 1e-30, 1e-30],
    "empty": [0, 0, 0, 0],
    "inverted": [9, 9, 1, 1],
}


@every
def test_masked_rows_are_exactly_zero_whatever_they_hold(name):
    boxes, targets = random_boxes(0, 24, extent=9), random_boxes(1, 24, extent=9)
    weights = np.random.default_rng(2).normal(size=24).astype(np.float32)
    mask = np.arange(24) % 3 != 0
    results = []
    loss = lambda a, b, where: LOSSES[name](a, b, where=where)  # noqa: E731
    compiled = jax.jit(lambda a, b: weighted_gradients(loss, weights, a, b, mask))
    for filling in FILLINGS.values():
        filling = np.float32(filling)
        for first, second in ((True, True), (True, False), (False, True)):
            a, b = boxes.copy(), targets.copy()
            a[~mask] = filling if first else a[~mask]
            b[~mask] = filling if second else b[~mask]
            results.append(compiled(a, b))
    wanted = results[0]
    for leaf in jax.tree.leaves(wanted):
        np.testing.assert_array_equal(np.asarray(leaf)[~mask], 0)
        assert np.isfinite(leaf).all()
    assert np.abs(wanted[1][mask]).min() > 0
    for result in results[1:]:
        for x, y in zip(*map(jax.tree.leaves, (result, wanted)), strict=True):
            np.testing.assert_array_equal(
                np.asarray(x).view(np.int32), np.asarray(y).view(np.int32)
            )


@every
def test_nan_outside_of_the_mask_shows(name):
    boxes = np.float32([PREDICTION, [np.nan, 0, 1, 1]])
    assert np.isnan(LOSSES[name](boxes, TARGET)).tolist() == [False, True]
    value = LOSSES[name](boxes, TARGET, where=[True, False])
    np.testing.assert_allclose(value, [BY_HAND[name], 0], rtol=3e-7)


@every
@pytest.mark.parametrize("mask", [np.array([1, 0]), np.array([1.0, 0.0]), [1, 0]])
def test_a_mask_of_numbers_is_refused(name, mask):
    with pytest.raises(TypeError, match=r"`where` has dtype .*, wanted bool"):
        LOSSES[name](np.zeros((2, 4)), np.zeros((2, 4)), where=mask)


@every
@pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 4)])
def test_a_mask_of_another_shape_is_refused(name, shape):
    with pytest.raises(ValueError, match="`where` has shape"):
        LOSSES[name](np.zeros((2, 4)), np.zeros((2, 4)), where=np.ones(shape, bool))


@every
def test_one_compilation_serves_every_count(name):
    traces = []

    @jax.jit
    def step(predictions, targets, where):
        traces.append(name)
        loss = LOSSES[name](predictions, targets, where=where)
        return jnp.sum(loss, where=where) / jnp.maximum(jnp.sum(where), 1)

    a, b = random_boxes(0, 8, extent=9), random_boxes(1, 8, extent=9)
    for count in range(9):
        where = np.arange(8) < count
        value, gradient = jax.value_and_grad(step)(a, b, where)
        each = np.asarray(LOSSES[name](a, b))[:count]
        np.testing.assert_allclose(value, each.mean() if count else 0, rtol=1e-6)
        np.testing.assert_array_equal(gradient[count:], 0)
    # One for the derivative, whose forward half is the same program.
    assert len(traces) == 1


@every
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "float32"])
def test_the_dtype_is_that_of_the_boxes(name, dtype):
    value = LOSSES[name](jnp.asarray(PREDICTION, dtype), jnp.asarray(TARGET, dtype))
    wanted = jnp.float32 if dtype == "int32" else jnp.dtype(dtype)
    assert value.dtype == wanted
    np.testing.assert_allclose(float(value), BY_HAND[name], rtol=jnp.finfo(wanted).eps)


@every
def test_works_below_every_transformation(name):
    loss = LOSSES[name]
    a, b = random_boxes(0, 6, extent=9), random_boxes(1, 6, extent=9)
    total = lambda a, b: jnp.sum(loss(a, b))  # noqa: E731
    wanted = jax.grad(total)(a, b)
    one = jax.grad(loss)
    found = [
        jax.jit(jax.grad(total))(a, b),
        jax.vmap(one)(a, b),
        jax.lax.map(lambda pair: one(*pair), (a, b)),
        jax.grad(jax.checkpoint(total))(a, b),
        jax.jit(jax.grad(lambda a, b: total(a, jax.lax.stop_gradient(b))))(a, b),
        -jax.grad(total)(-a[:, [2, 3, 0, 1]], -b[:, [2, 3, 0, 1]])[:, [2, 3, 0, 1]],
    ]
    for gradient in found:
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("floor", [1e-3, 0.2, 1.0])
def test_the_log_loss_goes_on_along_its_tangent(floor, x64):
    # A box of width 1 inside one of width 1 / u has IoU u.
    def loss(u):
        wide = jnp.stack([0.0, 0.0, 1 / u, 1.0])
        return jaxiou.log_iou_loss([0.0, 0.0, 1.0, 1.0], wide, floor=floor)

    for u in (floor * 0.5, floor * 0.999):
        line = -math.log(floor) + (floor - u) / floor
        np.testing.assert_allclose(loss(u), line, rtol=1e-12)
        np.testing.assert_allclose(jax.grad(loss)(u), -1 / floor, rtol=1e-9)
    if floor < 0.5:
        np.testing.assert_allclose(loss(2 * floor), -math.log(2 * floor), rtol=1e-12)
        np.testing.assert_allclose(jax.grad(loss)(2 * floor), -0.5 / floor, rtol=1e-9)
    if floor < 1:
        below, above = floor * (1 - 1e-9), floor * (1 + 1e-9)
        np.testing.assert_allclose(loss(below), loss(above), atol=1e-8)
        slopes = jax.grad(loss)(below), jax.grad(loss)(above)
        np.testing.assert_allclose(*slopes, rtol=1e-6)


def test_the_log_loss_of_disjoint_boxes_is_finite():
    value, gradient = jax.value_and_grad(jaxiou.log_iou_loss)(
        jnp.array(PREDICTION), jnp.array([9.0, 9.0, 12.0, 10.0])
    )
    np.testing.assert_allclose(value, 1 + math.log(1000), rtol=1e-6)
    np.testing.assert_array_equal(gradient, 0)


def test_the_log_loss_of_a_hair_has_a_gradient_that_saturates():
    # The IoU grows by 5e35 per unit of the empty box's width, the loss by 1000 per IoU.
    empty, hair = jnp.array([0.0, 0.0, 0.0, 1e8]), jnp.array([0.0, 0.0, 2e-36, 1e8])
    gradients = jax.grad(jaxiou.log_iou_loss, argnums=(0, 1))(empty, hair)
    assert np.isfinite(gradients).all()
    assert gradients[0][2] == -np.finfo(np.float32).max


@pytest.mark.parametrize("floor", [0, -1.0, 1.5, math.nan, math.inf])
def test_a_floor_outside_of_its_range_is_refused(floor):
    with pytest.raises(ValueError, match=r"jaxiou.log_iou_loss: `floor` is .*\(0, 1\]"):
        jaxiou.log_iou_loss(PREDICTION, TARGET, floor=floor)


def test_the_gradient_is_minus_that_of_the_measure():
    a, b = random_boxes(0, 9, extent=9), random_boxes(1, 9, extent=9)
    for measure in (jaxiou.iou, jaxiou.iof, jaxiou.giou, jaxiou.diou, jaxiou.ciou):
        loss = jax.grad(lambda a, m=measure: jaxiou.box_loss(a, b, measure=m).sum())
        plain = jax.grad(lambda a, m=measure: m(a, b).sum())
        np.testing.assert_array_equal(loss(a), -plain(a))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gradients_of_a_box_used_often_stay_finite(dtype):
    small = np.array([[0, 0, 1e-4, 1e-4]])
    one, many = jnp.asarray(small, dtype), jnp.asarray(np.tile(small, (99, 1)), dtype)
    many = many * jnp.asarray(1.3, dtype)
    where = np.arange(99) > 0

    def total(one, many):
        return jaxiou.giou_loss(one, many, where=where).astype(jnp.float32).sum()

    found = np.asarray(jax.grad(total)(one, many), np.float64)
    wide = (x.astype(jnp.float32) for x in (one, many))
    limit = float(jnp.finfo(dtype).max)
    wanted = np.clip(np.asarray(jax.grad(total)(*wide), np.float64), -limit, limit)
    # Cotangents of every pair come in half precision: 2 ulp of it each.
    np.testing.assert_allclose(found, wanted, rtol=2 * float(jnp.finfo(dtype).eps))

    def matrix(one, many):
        values = jaxiou.pairwise(one, many[:, None], measure=jaxiou.giou)
        return values.astype(jnp.float32).sum()

    assert np.isfinite(np.asarray(jax.grad(matrix)(one, many), np.float32)).all()


def test_the_focal_loss_is_the_efficient_one_weighted_by_a_constant(x64):
    a, b = np.array(PREDICTION), np.array(TARGET)
    wanted = IOU**0.5 * (1 - oracle.eiou(PREDICTION, TARGET))
    value, gradient = jax.value_and_grad(jaxiou.focal_eiou_loss)(a, b)
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    slope = -(IOU**0.5) * oracle.gradient(oracle.eiou, PREDICTION, TARGET)[0]
    # The right edges tie: there differences err by their step of 4e-6 times curvature.
    np.testing.assert_allclose(gradient, slope, atol=1e-7)
    np.testing.assert_array_equal(jaxiou.focal_eiou_loss(a, b + 20), 0)
    with pytest.raises(ValueError, match="focal_eiou_loss: `gamma` is -1"):
        jaxiou.focal_eiou_loss(a, b, gamma=-1)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_wise_iou_by_hand(version, x64):
    distance = (0.5**2 + 1.5**2) / (4**2 + 4**2)
    plain = math.exp(distance) * (1 - IOU)
    mean = 0.9 + 0.1 * (1 - IOU - 0.9)
    beta = (1 - IOU) / mean
    factor = {1: 1.0, 2: beta**0.5, 3: beta / (3 * 1.9 ** (beta - 3))}[version]
    loss, new = jaxiou.wiou_loss(
        np.array(PREDICTION), TARGET, mean=0.9, version=version, momentum=0.1
    )
    np.testing.assert_allclose(loss, factor * plain, rtol=1e-7)
    np.testing.assert_allclose(new, mean, rtol=1e-7)


def test_the_mean_of_wise_iou_is_state_of_a_train_step():
    boxes = np.float32([PREDICTION, [np.nan] * 4, PREDICTION])
    targets = np.float32([TARGET] * 3)

    @jax.jit
    def step(mean, where):
        def total(boxes):
            loss, new = jaxiou.wiou_loss(boxes, targets, mean=mean, where=where)
            return loss.sum(), new

        return jax.value_and_grad(total, has_aux=True)(boxes)

    (loss, mean), gradient = step(jnp.array(1.0), np.array([True, False, True]))
    np.testing.assert_allclose(mean, 1 + 0.01 * (1 - IOU - 1), rtol=1e-6)
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1], 0)
    # Without a box the mean stays, and nothing flows.
    (loss, mean), gradient = step(jnp.array(0.7), np.zeros(3, bool))
    assert loss == 0 and mean == np.float32(0.7)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"mean": np.ones(2)}, r"`mean` has shape \(2,\), wanted a scalar"),
        ({"mean": 1.0, "version": 4}, "`version` is 4, wanted 1, 2 or 3"),
        ({"mean": 1.0, "alpha": 1.0}, "`alpha` is 1.0, wanted"),
        ({"mean": 1.0, "delta": 0.0}, "`delta` is 0.0, wanted"),
        ({"mean": 1.0, "momentum": 2.0}, "`momentum` is 2.0, wanted"),
    ],
)
def test_wise_iou_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=rf"^jaxiou.wiou_loss: {message}"):
        jaxiou.wiou_loss(PREDICTION, TARGET, **options)


def test_a_transform_is_applied_before_the_mask_and_in_full_precision():
    boxes, targets = (
        jnp.asarray([box, box], jnp.bfloat16) for box in (PREDICTION, TARGET)
    )
    loss = jaxiou.box_loss(
        boxes,
        targets,
        measure=jaxiou.iou,
        transform=lambda x: 1e4 * x - 7857,
        where=[True, False],
    )
    assert loss.dtype == jnp.bfloat16
    # 0.142857 is what is left of 7857.142857 in float32; bfloat16 has no such digit.
    np.testing.assert_allclose(
        loss.astype(jnp.float32), [1e4 * (1 - IOU) - 7857, 0], 0.01
    )
