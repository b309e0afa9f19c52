"""Offsets of boxes that turn, and distances as distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiou

WEIGHTS = (10.0, 10.0, 5.0, 5.0, 3.0)


def turned_boxes(seed, n=40):
    rng = np.random.default_rng(seed)
    centre, sides = rng.uniform(-50, 50, (n, 2)), rng.uniform(2, 40, (n, 2))
    angle = rng.uniform(-7, 7, (n, 1))
    return np.concatenate([centre, sides, angle], 1).astype(np.float32)


def same_rectangles(a, b):
    """The corners of each, in whatever order, are those of the other."""
    a, b = (np.asarray(jaxiou.corners(x)) for x in (a, b))
    distance = np.linalg.norm(a[:, :, None] - b[:, None], axis=-1)
    return (distance.min(1).max(1) < 1e-3) & (distance.min(2).max(1) < 1e-3)


@pytest.mark.parametrize("exchange", [False, True])
def test_decoding_inverts_encoding(exchange):
    boxes, anchors = turned_boxes(0), turned_boxes(1)
    offsets = jaxiou.encode_rotated(
        boxes, anchors, weights=WEIGHTS, exchange_sides=exchange
    )
    decoded = jaxiou.decode_rotated(offsets, anchors, weights=WEIGHTS)
    assert same_rectangles(decoded, boxes).all()
    widest = np.pi / (4 if exchange else 2)
    turned = offsets[:, 4] / 3
    assert (turned >= -widest - 1e-6).all() and (turned <= widest + 1e-6).all()
    assert turned.max() > 0.8 * widest and turned.min() < -0.8 * widest
    # Some boxes are exchanged, some are not.
    kept = np.isclose(decoded[:, 2], boxes[:, 2], rtol=1e-4)
    assert kept.all() != exchange and kept.any()


def test_offsets_lie_along_the_sides_of_the_anchor(x64):
    boxes, anchors = turned_boxes(2).astype(float), turned_boxes(3).astype(float)
    boxes[:, 4] = anchors[:, 4] + 0.2
    offsets = jaxiou.encode_rotated(boxes, anchors)
    for offset, box, anchor in zip(np.asarray(offsets), boxes, anchors, strict=True):
        axes = np.array([[np.cos(anchor[4]), np.sin(anchor[4])]] * 2)
        axes[1] = -axes[1, 1], axes[1, 0]
        wanted = axes @ (box[:2] - anchor[:2]) / anchor[2:4]
        np.testing.assert_allclose(offset[:2], wanted, rtol=1e-9)
        np.testing.assert_allclose(offset[2:4], np.log(box[2:4] / anchor[2:4]))
        np.testing.assert_allclose(offset[4], 0.2, rtol=1e-9)


def test_without_angles_they_are_those_of_axis_aligned_boxes():
    boxes, anchors = turned_boxes(4), turned_boxes(5)
    boxes[:, 4] = anchors[:, 4] = 0
    aligned = [jaxiou.convert(x[:, :4], "cxcywh", "xyxy") for x in (boxes, anchors)]
    offsets = jaxiou.encode_rotated(boxes, anchors)
    # Corners of up to 70 lose what centres and sides keep.
    np.testing.assert_allclose(
        offsets[:, :4], jaxiou.encode(*aligned), rtol=1e-4, atol=1e-5
    )
    bounds = {"max_log_scale": 0.3, "min_log_scale": -0.2, "max_shift": 5.0}
    decoded = jaxiou.decode_rotated(offsets, anchors, **bounds)
    wanted = jaxiou.decode(offsets[:, :4], aligned[1], **bounds)
    found = jaxiou.convert(decoded[:, :4], "cxcywh", "xyxy")
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    shift = np.abs(np.asarray(decoded - anchors))[:, :2]
    assert shift.max() < 5.001 and np.isclose(shift, 5, atol=1e-4).any()


def test_finite_on_degenerate_boxes():
    extreme = [0.0, -3.0, 1e-30, 1e30]
    boxes = np.array(
        [[x, 1, w, 2, a] for x in extreme for w in extreme for a in (0, 1)]
    )
    boxes = jnp.asarray(boxes, jnp.float32)
    first, second = boxes[:, None], boxes[None]
    for coder in (jaxiou.encode_rotated, jaxiou.decode_rotated):
        total = lambda a, b, coder=coder: coder(a, b).sum()  # noqa: E731
        pull = jax.vmap(jax.vmap(jax.grad(total, (0, 1)), (None, 0)), (0, None))
        assert jnp.isfinite(jax.jit(coder)(first, second)).all()
        for gradient in jax.jit(pull)(boxes, boxes):
            assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "float32"])
def test_distributions_have_the_distance_as_expectation(dtype):
    distances = jnp.asarray([[0, 1.25, 2.5], [7, 6.875, 3]]).astype(dtype)
    target = jaxiou.encode_dfl(distances, bins=8)
    wanted = jnp.float32 if dtype == "int32" else distances.dtype
    assert target.dtype == wanted and target.shape == (2, 3, 8)
    np.testing.assert_array_equal(target.sum(-1), 1)
    assert ((target > 0).sum(-1) <= 2).all()
    logits = jnp.log(jnp.maximum(target.astype(jnp.float32), 1e-30))
    back = jaxiou.decode_dfl(logits.astype(wanted))
    assert back.dtype == wanted
    # Logits of log(1/4) in half precision are off by 2^-12 or 2^-9.
    np.testing.assert_allclose(
        np.asarray(back, np.float32), np.asarray(distances, np.float32), atol=2e-2
    )


def test_distances_are_clipped_and_logits_are_not():
    far = jaxiou.encode_dfl([-1.0, 9.0], bins=3)
    np.testing.assert_array_equal(far, [[1, 0, 0], [0, 0, 1]])
    for logits in ([3e38, -3e38, 0.0], [3e38, 3e38, 3e38], [-1e30, 0.0, 1e30]):
        value, gradient = jax.value_and_grad(jaxiou.decode_dfl)(jnp.array(logits))
        assert 0 <= value <= 2 and jnp.isfinite(gradient).all()
    with pytest.raises(ValueError, match="encode_dfl: `bins` is 0, wanted an integer"):
        jaxiou.encode_dfl([1.0], bins=0)
    with pytest.raises(ValueError, match=r"decode_dfl: `logits` has shape \(\), want"):
        jaxiou.decode_dfl(1.0)
    with pytest.raises(ValueError, match=r"encode_rotated: `weights` .* five positive"):
        jaxiou.encode_rotated(np.zeros(5), np.zeros(5), weights=(1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"`deltas` has shape .* da"):
        jaxiou.decode_rotated(np.zeros(4), np.zeros(5))
