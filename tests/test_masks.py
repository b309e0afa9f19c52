"""The soft Jaccard loss of pixel masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxiou.masks import jaccard_loss


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
    loss = jaccard_loss(predictions, targets, axis=(1, 2, 3))
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
