"""Losses and overlaps of pixel masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxiou
from jaxiou import jaccard_loss

LOSSES = {
    "jaccard": jaccard_loss,
    "jaccard product": functools.partial(jaccard_loss, soft_labels=False),
    "dice": jaxiou.dice_loss,
    "tversky": functools.partial(jaxiou.tversky_loss, alpha=0.3, beta=0.7),
    "lovasz_hinge": jaxiou.lovasz_hinge,
    "lovasz_softmax": jaxiou.lovasz_softmax,
}
every = pytest.mark.parametrize("name", LOSSES)


def tensorflow_form(y_true, y_pred):
    """The widely copied code in NumPy float64: targets first, axes (1, 2, 3)."""
    y_true, y_pred = np.float64(y_true), np.float64(y_pred)
    intersection = np.sum(y_true * y_pred, axis=(1, 2, 3))
    total = np.sum(y_true, axis=(1, 2, 3)) + np.sum(y_pred, axis=(1, 2, 3))
    return 1 - intersection / (total - intersection)


def masks_of(shape, seed=0):
    rng = np.random.default_rng(seed)
    predictions = rng.uniform(0, 1, shape).astype(np.float32)
    return predictions, (rng.uniform(size=shape) < 0.4).astype(np.float32)


def test_by_hand():
    # Σtp = 0.8 + 0.4 = 1.2, Σt = 2, Σp = 2; 1 - 1.2 / (2 + 2 - 1.2) = 1.6 / 2.8.
    predictions = [[0.8, 0.4, 0.0], [0.6, 0.2, 0.0]]
    targets = [[1, 1, 0], [0, 0, 0]]
    loss = jaccard_loss(predictions, targets, axis=None)
    np.testing.assert_allclose(loss, 1.6 / 2.8, rtol=1e-6)


def test_gradient_by_hand():
    # On a target pixel ∂L/∂p = -1 / U = -1 / 2.8, elsewhere I / U² = 1.2 / 7.84.
    predictions = jnp.array([[0.8, 0.4, 0.0], [0.6, 0.2, 0.0]])
    targets = jnp.array([[1, 1, 0], [0, 0, 0]])
    gradient = jax.grad(jaccard_loss)(predictions, targets, axis=None)
    wanted = np.where(targets == 1, -1 / 2.8, 1.2 / 7.84)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-6)


def test_hard_labels_give_the_iou_of_the_masks():
    # A 3 × 2 and a 2 × 3 rectangle that share 2 × 2 pixels: IoU = 4 / 8.
    predictions, targets = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    predictions[0:3, 1:3] = True
    targets[1:3, 1:4] = True
    for dtype in (bool, np.uint8, np.int32, np.float32):
        loss = jaccard_loss(predictions.astype(dtype), targets, axis=None)
        assert loss.dtype == jnp.float32
        assert loss == 0.5


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_tensorflow_form(soft):
    predictions, targets = masks_of((3, 7, 5, 2))
    if not soft:
        predictions = np.round(predictions)
    loss = jaccard_loss(predictions, targets, axis=(1, 2, 3), soft_labels=False)
    wanted = tensorflow_form(targets, predictions)
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, -1, (1, 2), (-3, -2), [0, 1, 2, 3], None, ()])
def test_axes(axis):
    predictions, targets = masks_of((3, 7, 5, 2))
    axes = tuple(axis) if isinstance(axis, list) else axis
    i = (predictions * targets).sum(axes)
    wanted = 1 - i / np.maximum(predictions.sum(axes) + targets.sum(axes) - i, 1e-9)
    loss = jaccard_loss(predictions, targets, axis=axis)
    assert loss.shape == wanted.shape
    np.testing.assert_allclose(loss, wanted, rtol=1e-5, atol=1e-6)


def test_equal_and_disjoint_labels_are_exact():
    _, targets = masks_of((6, 33, 21))
    np.testing.assert_array_equal(jaccard_loss(targets, targets, axis=(1, 2)), 0)
    np.testing.assert_array_equal(jaccard_loss(1 - targets, targets, axis=(1, 2)), 1)


def test_two_empty_masks():
    empty = jnp.zeros((2, 3, 4))
    loss, gradient = jax.value_and_grad(lambda p: jaccard_loss(p, empty, axis=None))(
        empty
    )
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


def test_empty_target():
    predictions, targets = masks_of((3, 4))
    loss, gradient = jax.value_and_grad(jaccard_loss)(
        predictions, np.zeros_like(targets), axis=None
    )
    assert loss == 1
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_sums_in_float32(dtype):
    # 512 · 512 = 262144 is infinite in float16; a quarter of it is right.
    targets = jnp.ones((512, 512), dtype)
    predictions = targets.at[:, :384].set(0)
    loss = jaccard_loss(predictions, targets, axis=None)
    assert loss.dtype == dtype
    assert loss == 0.75
    gradient = jax.grad(lambda p: jaccard_loss(p, targets, axis=None))(predictions)
    np.testing.assert_array_equal(gradient, -(2.0**-18))


def test_dtype_is_that_of_the_floating_inputs(x64):
    predictions, targets = masks_of((3, 4))
    for labels in (targets.astype(bool), targets.astype(np.int64), targets):
        assert jaccard_loss(predictions, labels, axis=0).dtype == jnp.float32
    wide = predictions.astype(np.float64)
    assert jaccard_loss(wide, targets, axis=0).dtype == jnp.float64


def test_gradient(x64):
    predictions, targets = (x.astype(np.float64) for x in masks_of((2, 5, 4)))
    where = masks_of((5, 4), seed=7)[1] == 0
    soft = 0.1 + 0.8 * targets
    for mask in (None, where):
        loss = jax.jit(lambda p, t, m=mask: jaccard_loss(p, t, axis=(1, 2), where=m))
        check_grads(loss, (predictions, soft), 2)


def test_finite_gradients_at_any_scale():
    predictions, targets = masks_of((3, 4))
    # The negative ones are logits given by mistake.
    for scale in (1e-38, 1e-30, 1e-15, 1.0, 1e15, 1e38, -1.0, -1e38):
        value, gradients = jax.value_and_grad(jaccard_loss, argnums=(0, 1))(
            scale * predictions, abs(scale) * targets, axis=None
        )
        assert jnp.isfinite(value)
        assert all(jnp.isfinite(g).all() for g in gradients)


class TestWhere:
    def test_equals_leaving_the_pixels_out(self):
        predictions, targets = masks_of((3, 6, 5))
        where = np.zeros((6, 5), bool)
        where[1:5, 2:] = True
        loss = jaccard_loss(predictions, targets, axis=(1, 2), where=where)
        wanted = jaccard_loss(predictions[:, 1:5, 2:], targets[:, 1:5, 2:], axis=(1, 2))
        np.testing.assert_allclose(loss, wanted, rtol=1e-6)

    def test_broadcasts_over_classes(self):
        predictions, targets = masks_of((3, 6, 2))
        where = masks_of((3, 6, 1), seed=5)[1] == 1
        loss = jaccard_loss(predictions, targets, axis=(0, 1), where=where)
        full = np.broadcast_to(where, predictions.shape)
        wanted = jaccard_loss(predictions, targets, axis=(0, 1), where=full)
        np.testing.assert_array_equal(loss, wanted)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 7.0])
    def test_what_is_left_out_changes_no_bit(self, value):
        predictions, targets = masks_of((3, 6, 5))
        where = masks_of((3, 6, 5), seed=5)[1] == 1

        @jax.value_and_grad
        def loss(arrays):
            return jaccard_loss(*arrays, axis=(1, 2), where=where).sum()

        wanted = loss((predictions, targets))
        spoilt = tuple(np.where(where, x, value) for x in (predictions, targets))
        with jax.debug_nans(not np.isnan(value)):
            got = loss(spoilt)
        jax.tree.map(np.testing.assert_array_equal, got, wanted)
        for gradient in got[1]:
            np.testing.assert_array_equal(gradient[~where], 0)
            assert (gradient[where] != 0).any()

    def test_nothing_left(self):
        predictions, targets = np.full((2, 3, 4), np.nan), np.ones((3, 4))
        value, gradient = jax.value_and_grad(
            lambda p: jaccard_loss(p, targets, axis=None, where=np.array(False))
        )(predictions[0])
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)

    def test_nan_that_counts_propagates(self):
        predictions, targets = masks_of((3, 4))
        predictions[1, 2] = np.nan
        loss = jaccard_loss(predictions, targets, axis=1)
        np.testing.assert_array_equal(np.isnan(loss), [False, True, False])

    def test_not_boolean(self):
        with pytest.raises(TypeError, match="`where` has dtype float32, wanted bool"):
            jaccard_loss(*masks_of((3, 4)), axis=0, where=np.ones(4, np.float32))

    def test_does_not_broadcast(self):
        with pytest.raises(ValueError, match=r"`where` has shape \(3,\)"):
            jaccard_loss(*masks_of((3, 4)), axis=0, where=np.ones(3, bool))


def test_jit_vmap_and_forward_mode():
    predictions, targets = masks_of((3, 6, 5))
    wanted = jaccard_loss(predictions, targets, axis=(1, 2))
    jitted = jax.jit(jaccard_loss, static_argnames="axis")
    np.testing.assert_allclose(
        jitted(predictions, targets, axis=(1, 2)), wanted, rtol=5e-7
    )
    mapped = jax.vmap(lambda p, t: jaccard_loss(p, t, axis=None))
    np.testing.assert_allclose(mapped(predictions, targets), wanted, rtol=5e-7)
    _, change = jax.jvp(mapped, (predictions, targets), (predictions, 0 * targets))
    gradient = jax.grad(lambda p: mapped(p, targets).sum())(predictions)
    np.testing.assert_allclose(
        change, (gradient * predictions).sum((1, 2)), rtol=1e-4, atol=1e-7
    )


class TestErrors:
    def test_shapes_must_be_equal(self):
        with pytest.raises(
            ValueError,
            match=r"jaccard_loss: `predictions` has shape \(2, 3, 1\) and `targets` "
            r"\(2, 3\), wanted equal shapes.*`targets\[\.\.\., None\]`",
        ):
            jaccard_loss(np.ones((2, 3, 1)), np.ones((2, 3)), axis=1)

    @pytest.mark.parametrize("axis", [2, -3, (0, 5), (0, 0), (0, -2)])
    def test_axis(self, axis):
        with pytest.raises(ValueError, match=r"`axis` is .*from -2 to 1"):
            jaccard_loss(*masks_of((3, 4)), axis=axis)

    def test_complex(self):
        with pytest.raises(TypeError, match="`predictions` has dtype complex64"):
            jaccard_loss(np.ones((3, 4), np.complex64), np.ones((3, 4)), axis=0)

    def test_axis_is_required(self):
        with pytest.raises(TypeError, match="axis"):
            jaccard_loss(*masks_of((3, 4)))


# The family


@every
def test_nothing_against_nothing_is_no_loss(name):
    empty = jnp.zeros((2, 3, 4))
    predictions = empty - 2 if name == "lovasz_hinge" else empty
    loss = lambda p: LOSSES[name](p, empty, axis=(1, 2)).sum()  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(predictions)
    assert value == 0 and np.isfinite(gradient).all()


@every
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_large_masks_in_half_precision(name, dtype):
    targets = jnp.ones((512, 512), dtype)
    predictions = targets.at[:, :384].set(0)
    value, gradient = jax.value_and_grad(LOSSES[name])(predictions, targets, axis=None)
    assert value.dtype == gradient.dtype == dtype
    found = {"dice": 0.6, "tversky": 0.75 * 0.7 / (0.25 + 0.75 * 0.7)}.get(name, 0.75)
    # Three quarters of the pixels have a hinge error of 1, the others none.
    np.testing.assert_allclose(float(value), found, rtol=float(jnp.finfo(dtype).eps))
    assert np.isfinite(np.float32(gradient)).all() and (gradient[:, :384] < 0).all()


@every
def test_pixels_left_out_change_no_bit_and_equal_pixels_that_are_not_there(name):
    predictions, targets = masks_of((3, 6, 5))
    where = np.zeros((6, 5), bool)
    where[1:5, 2:] = True

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(p, t):
        losses = LOSSES[name](p, t, axis=(1, 2), where=where)
        return losses.sum(), losses

    (_, wanted), gradient = loss(predictions, targets)
    inner = np.s_[:, 1:5, 2:]
    alone = LOSSES[name](predictions[inner], targets[inner], axis=(1, 2))
    np.testing.assert_allclose(wanted, alone, rtol=1e-6)
    np.testing.assert_array_equal(gradient[:, ~where], 0)
    for value in (np.nan, np.inf, -np.inf, 7.0):
        p, t = (np.where(where, x, np.float32(value)) for x in (predictions, targets))
        (_, found), other = loss(p, t)
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(other, gradient)
    nowhere = LOSSES[name](predictions, targets, axis=(1, 2), where=np.array(False))
    np.testing.assert_array_equal(nowhere, 0)


@every
def test_batches_and_masks_may_be_empty(name):
    for shape in ((0, 3, 4), (2, 0, 4)):
        loss = lambda p, s=shape: LOSSES[name](p, np.zeros(s, bool), axis=(1, 2))  # noqa: E731
        np.testing.assert_array_equal(loss(np.zeros(shape)), np.zeros(shape[0]))
        gradient = jax.grad(lambda p, f=loss: f(p).sum())(jnp.zeros(shape))
        assert gradient.shape == shape


@every
def test_nan_that_counts_shows(name):
    predictions, targets = masks_of((3, 4))
    predictions[1, 2] = np.nan
    found = LOSSES[name](predictions, targets, axis=1)
    np.testing.assert_array_equal(np.isnan(found), [False, True, False])


@every
def test_axes_batches_and_vmap_agree(name, x64):
    predictions, targets = (x.astype(float) for x in masks_of((3, 6, 5, 2)))
    loss = LOSSES[name]
    wanted = loss(predictions, targets, axis=(1, 2))
    turned = (np.moveaxis(x, 1, 3) for x in (predictions, targets))
    one = lambda p, t: loss(p, t, axis=None)  # noqa: E731
    mapped = jax.vmap(jax.vmap(one, -1), 0)(predictions, targets)
    for found in (loss(*turned, axis=(1, -1)), mapped):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert loss(predictions, targets, axis=()).shape == predictions.shape


@every
def test_gradients_agree_with_finite_differences(name, x64):
    predictions, targets = (x.astype(float) for x in masks_of((2, 5, 4)))
    loss = lambda p: LOSSES[name](p, targets, axis=(1, 2))  # noqa: E731
    check_grads(loss, (predictions,), 1, modes=("fwd", "rev"))


def test_dice_and_jaccard_are_tversky(x64):
    predictions, targets = (x.astype(float) for x in masks_of((4, 6, 5)))
    for t in (targets, 0.9 * targets + 0.05):
        jaccard, dice = (
            f(predictions, t, axis=(1, 2)) for f in (jaccard_loss, jaxiou.dice_loss)
        )
        np.testing.assert_allclose(dice, jaccard / (2 - jaccard), rtol=1e-12)
        for found, weight in ((jaccard, 1), (dice, 0.5)):
            wanted = jaxiou.tversky_loss(
                predictions, t, axis=(1, 2), alpha=weight, beta=weight
            )
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", ["jaccard", "dice", "tversky"])
def test_the_least_loss_of_soft_labels_is_at_the_target(name):
    targets = np.random.default_rng(0).uniform(0.1, 0.9, (6, 5)).astype(np.float32)
    loss = functools.partial(LOSSES[name], axis=None)
    assert loss(targets, targets) == 0
    # The product prefers predictions that are surer than the labels.
    product = functools.partial(loss, soft_labels=False)
    sure = np.round(targets)
    assert product(sure, targets) < product(targets, targets)
    assert loss(sure, targets) > 0.1
    # From anywhere, a step against the gradient leads towards the target.
    predictions = masks_of((6, 5))[0]
    gradient = jax.grad(loss)(predictions, targets)
    right = np.sign(gradient) == np.sign(predictions - targets)
    assert right.all()


def lovasz_extension(errors, labels):
    """By the definition: pixels go wrong one after the other, the worst first."""
    value, before, wrong = 0.0, 0.0, np.zeros(len(labels), bool)
    for k in np.argsort(-errors, kind="stable"):
        wrong[k] = True
        found = labels ^ wrong
        common, either = (found & labels).sum(), (found | labels).sum()
        loss = 1 - common / either if either else 0.0
        value += max(errors[k], 0) * (loss - before)
        before = loss
    return value


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 1.0])
def test_lovasz_losses_equal_the_definition(share, x64):
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=(5, 12)), rng.random((5, 12)) < share
    p = 1 / (1 + np.exp(-scores))
    found = jaxiou.lovasz_hinge(scores, labels, axis=1)
    errors = 1 - scores * np.where(labels, 1, -1)
    wanted = [lovasz_extension(*pair) for pair in zip(errors, labels, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-15)
    found = jaxiou.lovasz_softmax(p, labels, axis=1)
    errors = np.abs(labels - p)
    wanted = [lovasz_extension(*pair) for pair in zip(errors, labels, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-15)


def test_lovasz_of_hard_predictions_is_one_minus_iou():
    rng = np.random.default_rng(0)
    found, labels = rng.random((2, 4, 300, 300)) < 0.3
    loss = jaxiou.lovasz_softmax(found, labels, axis=(1, 2))
    wanted = 1 - jaxiou.mask_iou(found, labels, axis=(1, 2))
    np.testing.assert_allclose(loss, wanted, rtol=2e-6)


# Hard masks


def test_mask_iou_by_hand():
    a, b = np.zeros((2, 4, 5), bool)
    a[0:3, 1:3], b[1:3, 1:4] = True, True
    for dtype in (bool, np.uint8, np.int32):
        assert jaxiou.mask_iou(a.astype(dtype), 5 * b.astype(dtype), axis=None) == 0.5
    # Whatever is not 0 is foreground.
    assert jaxiou.mask_iou(-a.astype(int), b, axis=None) == 0.5
    np.testing.assert_array_equal(jaxiou.masks_to_boxes(-a.astype(int)), [1, 0, 3, 3])
    np.testing.assert_allclose(jaxiou.mask_iou(a, b, axis=1), [0, 2 / 3, 2 / 3, 0])
    assert jaxiou.mask_iou(a, b, axis=None, where=a) == np.float32(4 / 6)
    assert jaxiou.mask_iou(0 * a, 0 * b, axis=None) == 0


def test_every_pair_of_masks():
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 4, 9, 7)) < 0.4, rng.random((3, 5, 9, 7)) < 0.6
    a[0, 1] = b[2, 3] = False
    found = jax.jit(jaxiou.pairwise_mask_iou)(a, b)
    wanted = jaxiou.mask_iou(
        *np.broadcast_arrays(a[:, :, None], b[:, None]), axis=(-2, -1)
    )
    np.testing.assert_array_equal(found, wanted)
    repeated = jaxiou.pairwise_mask_iou(np.stack([a[0]] * 3), b)
    np.testing.assert_array_equal(jaxiou.pairwise_mask_iou(a[0], b), repeated)
    assert jaxiou.pairwise_mask_iou(a[:, :0], b).shape == (3, 0, 5)


def test_counts_are_exact_at_16_million_pixels():
    whole = np.ones((1, 4096, 4096), bool)
    less = whole.copy()
    less[0, -1, -1] = False
    found = jaxiou.pairwise_mask_iou(less, np.concatenate([whole, less]))
    np.testing.assert_array_equal(found, np.float32([[(2**24 - 1) / 2**24, 1]]))


@pytest.mark.parametrize("rows,kind", [(4096, "f32"), (4097, "i32")])
def test_counts_beyond_the_whole_numbers_of_a_float_are_integers(rows, kind):
    masks = jax.ShapeDtypeStruct((1, rows, 4096), bool)
    program = str(jax.make_jaxpr(jaxiou.pairwise_mask_iou)(masks, masks))
    assert f"{kind}[1,1] = dot_general" in program


def test_boxes_of_masks():
    rng = np.random.default_rng(0)
    start, size = rng.integers(0, 9, (40, 2)), rng.integers(1, 4, (40, 2))
    boxes = np.concatenate([start, start + size], axis=1)
    masks = np.zeros((40, 12, 11), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = rng.random((y2 - y1, x2 - x1)) < 0.5
        # Opposite corners, so that the box is certain.
        mask[y1, x1] = mask[y2 - 1, x2 - 1] = True
    np.testing.assert_array_equal(jax.jit(jaxiou.masks_to_boxes)(masks), boxes)
    empty = jaxiou.masks_to_boxes(np.zeros((2, 3, 4), int))
    np.testing.assert_array_equal(empty, np.zeros((2, 4)))


@pytest.mark.parametrize(
    "call",
    [
        lambda m: jaxiou.mask_iou(m, m > 0, axis=None),
        lambda m: jaxiou.pairwise_mask_iou(m > 0, m),
        lambda m: jaxiou.masks_to_boxes(m),
    ],
)
def test_soft_masks_are_refused_where_hard_ones_are_wanted(call):
    with pytest.raises(TypeError, match=r"dtype float32, wanted bool or.*> 0\.5"):
        call(np.ones((1, 2, 3), np.float32))


def test_images_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"pairwise_mask_iou: .*images of one size"):
        jaxiou.pairwise_mask_iou(np.ones((2, 3, 4), bool), np.ones((2, 4, 3), bool))
    with pytest.raises(ValueError, match=r"pairwise_mask_iou: .*do not broadcast"):
        jaxiou.pairwise_mask_iou(
            np.ones((2, 1, 3, 4), bool), np.ones((3, 1, 3, 4), bool)
        )
    with pytest.raises(ValueError, match=r"masks_to_boxes: `masks` has shape \(3,\)"):
        jaxiou.masks_to_boxes(np.ones(3, bool))
    with pytest.raises(ValueError, match=r"tversky_loss: `alpha` is -1"):
        jaxiou.tversky_loss([0.5], [1], axis=None, alpha=-1, beta=1)
