"""Anchor grids, and boxes as offsets from anchors and points."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxiou.anchors import anchor_grid, decode, decode_ltrb, encode, encode_ltrb

BOX = [1.0, 1.0, 4.0, 4.0]  # centre (2.5, 2.5), sides 3 and 3
ANCHOR = [0.0, 0.0, 4.0, 2.0]  # centre (2, 1), sides 4 and 2
WEIGHTS = (10.0, 10.0, 5.0, 4.0)
# (2.5 - 2) / 4, (2.5 - 1) / 2, log(3 / 4), log(3 / 2)
OFFSETS = [0.125, 0.75, math.log(0.75), math.log(1.5)]

DEGENERATE = np.array(
    [
        [1, 2, 1, 8],  # without width
        [3, 5, 3, 5],  # a point
        [0, 0, 0, 0],
        [4, 8, 1, 2],  # inverted
        [0, 0, 1e-38, 1e-20],
        [1e-19, 0, 3e-19, 1e-18],
        [0, 0, 1e-30, 1e-25],
        [-1e15, -1e15, 1e15, 1e15],
        [-3e38, 0, 3e38, 3e38],
        [3e38, -3e38, 3e38, 3e38],
        [1, 2, 4, 8],
    ],
    np.float32,
)


def boxes_of(shape, seed=0, least=1.0):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-20, 60, (*shape, 2))
    sides = rng.uniform(least, 30, (*shape, 2))
    return np.concatenate([corners, corners + sides], axis=-1).astype(np.float32)


class TestAnchorGrid:
    def test_by_hand(self):
        # A level of one row and two columns, and one of a single cell. Ratio 4 makes a
        # side of 8 into height 16 and width 4, and scale 2 doubles both.
        anchors = anchor_grid(
            [(1, 2), (1, 1)],
            [8, 16],
            sizes=[8.0, 24.0],
            aspect_ratios=(1.0, 4.0),
            scales=(1.0, 2.0),
        )
        assert anchors.dtype == jnp.float32
        np.testing.assert_array_equal(
            anchors,
            [
                # cell centred on (4, 4): ratio 1 with both scales, then ratio 4
                [0, 0, 8, 8],
                [-4, -4, 12, 12],
                [2, -4, 6, 12],
                [0, -12, 8, 20],
                # (12, 4)
                [8, 0, 16, 8],
                [4, -4, 20, 12],
                [10, -4, 14, 12],
                [8, -12, 16, 20],
                # second level, (8, 8)
                [-4, -4, 20, 20],
                [-16, -16, 32, 32],
                [2, -16, 14, 32],
                [-4, -40, 20, 56],
            ],
        )

    def test_cells_are_row_by_row(self):
        anchors = anchor_grid([(2, 3)], [10.0], sizes=[4.0])
        centres = (anchors[:, :2] + anchors[:, 2:]) / 2
        wanted = [[5, 5], [15, 5], [25, 5], [5, 15], [15, 15], [25, 15]]
        np.testing.assert_array_equal(centres, wanted)

    def test_order_is_that_of_a_reshaped_head(self):
        ratios, scales = (0.5, 1.0, 2.0), (1.0, 1.5)
        anchors = anchor_grid(
            [(3, 5)], [8], sizes=[32], aspect_ratios=ratios, scales=scales
        )
        grid = anchors.reshape(3, 5, len(ratios), len(scales), 4)
        width, height = grid[..., 2] - grid[..., 0], grid[..., 3] - grid[..., 1]
        for k, ratio in enumerate(ratios):
            np.testing.assert_allclose((height / width)[:, :, k], ratio, rtol=1e-5)
        for k, scale in enumerate(scales):
            sides = jnp.sqrt(height * width)[..., k]
            np.testing.assert_allclose(sides, 32 * scale, rtol=1e-5)

    def test_inside_jit(self):
        assert jax.jit(lambda: anchor_grid([(2, 3)], [8], sizes=[4]))().shape == (6, 4)

    def test_lengths_differ(self):
        with pytest.raises(ValueError, match=r"lengths 1, 2 and 1, .*are `scales`"):
            anchor_grid([(2, 3)], [8, 16], sizes=[4])

    @pytest.mark.parametrize(
        "sizes", [(8, 8), [(8,)], [(8, 8), (4,)], [(0, 8)], [(2.5, 8)], []]
    )
    def test_bad_feature_sizes(self, sizes):
        with pytest.raises(ValueError, match=r"`feature_sizes` is .*\(height, width\)"):
            anchor_grid(sizes, [8], sizes=[4])

    @pytest.mark.parametrize("name", ["strides", "sizes", "aspect_ratios", "scales"])
    @pytest.mark.parametrize("value", [(0.0,), (-1.0,), (np.nan,), (), 8.0])
    def test_not_positive(self, name, value):
        arguments = {"strides": [8], "sizes": [4], name: value}
        with pytest.raises(ValueError, match=f"`{name}` is .*sequence of positive"):
            anchor_grid([(2, 3)], **arguments)


class TestEncode:
    def test_by_hand(self):
        np.testing.assert_allclose(encode(BOX, ANCHOR), OFFSETS, rtol=1e-6)

    def test_weights(self):
        offsets = encode(BOX, ANCHOR, weights=WEIGHTS)
        np.testing.assert_allclose(offsets, np.multiply(OFFSETS, WEIGHTS), rtol=1e-6)

    def test_the_anchor_itself_is_zero(self):
        anchors = boxes_of((50,))
        np.testing.assert_array_equal(encode(anchors, anchors), 0)

    def test_leading_axes_broadcast(self):
        boxes, anchors = boxes_of((2, 1, 4)), boxes_of((3, 1), seed=1)
        offsets = encode(boxes, anchors)
        assert offsets.shape == (2, 3, 4, 4)
        np.testing.assert_array_equal(
            offsets[1, 2, 3], encode(boxes[1, 0, 3], anchors[2, 0])
        )

    def test_empty_box_continues_the_logarithm(self):
        # At width 0: log(1e-6) - 1, with slope 1 / (1e-6 · 4).
        empty = jnp.array([1.0, 1.0, 1.0, 4.0])
        anchor = jnp.array(ANCHOR)
        lowest = math.log(1e-6) - 1
        np.testing.assert_allclose(encode(empty, anchor)[2], lowest, rtol=1e-6)
        gradient = jax.grad(lambda b: encode(b, anchor)[2])(empty)
        np.testing.assert_allclose(gradient, [-2.5e5, 0, 2.5e5, 0], rtol=1e-5)
        inverted = jnp.array([4.0, 1.0, 1.0, 4.0])
        np.testing.assert_allclose(encode(inverted, anchor)[2], lowest, rtol=1e-6)
        gradient = jax.grad(lambda b: encode(b, anchor)[2])(inverted)
        np.testing.assert_array_equal(gradient, 0)

    def test_the_continuation_is_smooth(self, x64):
        @jax.jit
        def offset(ratio):
            return encode(jnp.array([0.0, 0, 4 * ratio, 2]), jnp.array(ANCHOR))[2]

        below, above = 1e-6 * (1 - 1e-9), 1e-6 * (1 + 1e-9)
        for function in (offset, jax.grad(offset)):
            np.testing.assert_allclose(function(below), function(above), rtol=1e-8)
        np.testing.assert_allclose(offset(1e-6), math.log(1e-6))
        np.testing.assert_allclose(jax.grad(offset)(1e-6), 1e6)

    def test_anchor_without_width(self):
        anchor = jnp.array([2.0, 0.0, 2.0, 2.0])
        offsets = encode(BOX, anchor)
        np.testing.assert_allclose(offsets, [0, 0.75, 0, math.log(1.5)], rtol=1e-6)
        jacobian = jax.jacrev(encode)(jnp.array(BOX), anchor)
        np.testing.assert_array_equal(jacobian[0], 0)
        np.testing.assert_array_equal(jacobian[2], 0)

    def test_gradient(self, x64):
        boxes, anchors = boxes_of((3,)), boxes_of((3,), seed=1)
        check_grads(
            jax.jit(lambda b, a: encode(b, a, weights=WEIGHTS)),
            (boxes.astype(np.float64), anchors.astype(np.float64)),
            2,
        )


class TestDecode:
    def test_by_hand(self):
        np.testing.assert_allclose(decode(OFFSETS, ANCHOR), BOX, rtol=1e-6)
        offsets = np.multiply(OFFSETS, WEIGHTS)
        decoded = decode(offsets, ANCHOR, weights=WEIGHTS)
        np.testing.assert_allclose(decoded, BOX, rtol=1e-6)

    def test_round_trip(self):
        boxes, anchors = boxes_of((200,)), boxes_of((200,), seed=1)
        offsets = encode(boxes, anchors, weights=WEIGHTS)
        decoded = decode(offsets, anchors, weights=WEIGHTS)
        np.testing.assert_allclose(decoded, boxes, rtol=1e-5, atol=1e-4)

    def test_round_trip_at_any_scale(self):
        boxes, anchors = boxes_of((50,)), boxes_of((50,), seed=1)
        for scale in (1e-12, 1e-3, 1e6, 1e12):
            decoded = decode(encode(scale * boxes, scale * anchors), scale * anchors)
            np.testing.assert_allclose(decoded / scale, boxes, rtol=1e-5, atol=1e-4)

    def test_zero_is_the_anchor(self):
        anchors = boxes_of((50,))
        decoded = decode(np.zeros((50, 4)), anchors)
        np.testing.assert_allclose(decoded, anchors, rtol=1e-6, atol=1e-5)

    def test_never_inverted(self):
        rng = np.random.default_rng(0)
        deltas = rng.uniform(-30, 5, (500, 4)).astype(np.float32)
        decoded = decode(deltas, boxes_of((500,)))
        assert (decoded[:, 2:] >= decoded[:, :2]).all()

    def test_bound(self):
        # Sides of 4 and 2 grow at most by 1000 / 16 = 62.5, to 250 and 125.
        x1, y1, x2, y2 = decode([0.0, 0.0, 9.0, 9.0], ANCHOR)
        np.testing.assert_allclose([x2 - x1, y2 - y1], [250, 125], rtol=1e-6)
        # After the division by the weights, and on the upper side only.
        weighted = decode([0.0, 0.0, 9.0, -9.0], ANCHOR, weights=(1, 1, 3.0, 1))
        x1, y1, x2, y2 = weighted
        np.testing.assert_allclose(x2 - x1, 4 * math.exp(3), rtol=1e-6)
        np.testing.assert_allclose(y2 - y1, 2 * math.exp(-9), rtol=1e-3)
        x1, _, x2, _ = decode([0.0, 0.0, 3.0, 0.0], ANCHOR, max_log_scale=math.log(2))
        np.testing.assert_allclose(x2 - x1, 8, rtol=1e-6)

    def test_gradient_at_the_bound(self):
        def width(log_scale):
            x1, _, x2, _ = decode(
                jnp.array([0.0, 0, log_scale, 0]), jnp.array(ANCHOR), max_log_scale=1.0
            )
            return x2 - x1

        np.testing.assert_allclose(jax.grad(width)(1.0), 4 * math.e, rtol=1e-6)
        assert jax.grad(width)(1.001) == 0

    def test_anchor_without_width(self):
        decoded = decode([5.0, 0.0, 2.0, 0.0], [2.0, 0.0, 2.0, 3.0])
        np.testing.assert_array_equal(decoded, [2, 0, 2, 3])
        inverted = decode([5.0, 0.0, 2.0, 0.0], [3.0, 0.0, 1.0, 3.0])
        np.testing.assert_array_equal(inverted, [2, 0, 2, 3])

    def test_gradient(self, x64):
        deltas = np.random.default_rng(0).normal(size=(3, 4))
        anchors = boxes_of((3,)).astype(np.float64)
        weighted = jax.jit(lambda d, a: decode(d, a, weights=WEIGHTS))
        check_grads(weighted, (deltas, anchors), 2)

    @pytest.mark.parametrize("weight", [1.0, 1e-30])
    @pytest.mark.parametrize("bound", [4.0, math.inf])
    def test_huge_deltas_stay_finite(self, bound, weight):
        deltas = np.array([[9e37] * 4, [-3e38] * 4, [100.0] * 4], np.float32)

        @jax.jit
        def boxes(deltas, anchor):
            weights = (weight,) * 4
            return decode(deltas, anchor, weights=weights, max_log_scale=bound)

        pull = jax.jit(jax.grad(lambda *pair: boxes(*pair).sum(), (0, 1)))
        for anchor in DEGENERATE:
            assert jnp.isfinite(boxes(deltas, anchor[None])).all()
            for gradient in pull(deltas, anchor[None]):
                assert jnp.isfinite(gradient).all()


class TestDistances:
    def test_by_hand(self):
        box, point = [1.0, 1.0, 4.0, 6.0], [2.0, 3.0]
        np.testing.assert_array_equal(encode_ltrb(box, point), [1, 2, 2, 3])
        np.testing.assert_array_equal(decode_ltrb([1, 2, 2, 3], point), box)
        # Outside on the right.
        np.testing.assert_array_equal(encode_ltrb(box, [5, 3]), [4, 2, -1, 3])

    def test_round_trip(self):
        boxes, points = boxes_of((6, 1)), boxes_of((5,), seed=1)[:, :2]
        distances = encode_ltrb(boxes, points)
        assert distances.shape == (6, 5, 4)
        decoded = decode_ltrb(distances, points)
        np.testing.assert_allclose(
            decoded, np.broadcast_to(boxes, (6, 5, 4)), rtol=1e-5, atol=1e-5
        )

    @pytest.mark.parametrize("function", [encode_ltrb, decode_ltrb])
    def test_gradient(self, function, x64):
        boxes, points = boxes_of((3,)), boxes_of((3,), seed=1)[:, :2]
        operands = (boxes.astype(np.float64), points.astype(np.float64))
        check_grads(jax.jit(function), operands, 1)

    @pytest.mark.parametrize("function", [encode_ltrb, decode_ltrb])
    def test_finite(self, function):
        for point in ([3e38, -3e38], [0.0, 1e-38]):
            assert jnp.isfinite(function(DEGENERATE, np.float32([point]))).all()


CODERS = [encode, decode, encode_ltrb, decode_ltrb]
coders = pytest.mark.parametrize("coder", CODERS)


def operands_of(coder, shape=(5,)):
    """Arguments of ordinary size: every coder takes `(..., 4)` and boxes or points."""
    first, second = boxes_of(shape), boxes_of(shape, seed=1)
    if coder is decode:
        first = first / 30
    return first, (second[..., :2] if coder in CODERS[2:] else second)


class TestEveryCoder:
    @coders
    def test_jit_and_vmap(self, coder):
        first, second = operands_of(coder, (3, 5))
        wanted = coder(first, second)
        np.testing.assert_allclose(
            jax.jit(coder)(first, second), wanted, rtol=1e-6, atol=1e-5
        )
        mapped = jax.vmap(coder, in_axes=(0, None))(first, second[0])
        looped = np.stack([jax.jit(coder)(row, second[0]) for row in first])
        np.testing.assert_allclose(mapped, looped, rtol=1e-6, atol=1e-5)

    @coders
    @pytest.mark.parametrize(
        ("dtypes", "wanted"),
        [
            (("float16", "float16"), "float16"),
            (("bfloat16", "bfloat16"), "bfloat16"),
            (("bfloat16", "float32"), "float32"),
            (("int32", "float16"), "float16"),
            (("int32", "int32"), "float32"),
        ],
    )
    def test_dtypes(self, coder, dtypes, wanted):
        arrays = [
            jnp.asarray(x).astype(dtype)
            for x, dtype in zip(operands_of(coder), dtypes, strict=True)
        ]
        result = coder(*arrays)
        assert result.dtype == wanted
        # Computed in float32 and rounded once.
        exact = coder(*(x.astype(jnp.float32) for x in arrays))
        np.testing.assert_array_equal(result, exact.astype(wanted))

    @coders
    def test_x64(self, coder, x64):
        first, second = operands_of(coder)
        assert coder(first, second).dtype == jnp.float32
        assert coder(first.astype(np.float64), second).dtype == jnp.float64

    @coders
    def test_lists_and_no_boxes(self, coder):
        first, second = operands_of(coder)
        np.testing.assert_array_equal(
            coder(first.tolist(), second.tolist()), coder(first, second)
        )
        assert coder([], []).shape == (0, 4)

    @coders
    def test_forward_mode(self, coder):
        first, second = operands_of(coder)
        forward = jax.jit(jax.jacfwd(coder))(first, second)
        backward = jax.jit(jax.jacrev(coder))(first, second)
        np.testing.assert_allclose(forward, backward, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("coder", [encode, decode])
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_finite_on_every_degenerate_pair(self, coder, dtype):
        limit = float(jnp.finfo(dtype).max)
        boxes = jnp.array(np.clip(DEGENERATE, -limit, limit).astype(dtype))

        def total(first, second):
            return coder(first, second).astype(jnp.float32).sum()

        first, second = boxes[:, None], boxes[None, :]
        assert jnp.isfinite(coder(first, second)).all()
        pull = jax.vmap(jax.vmap(jax.grad(total, (0, 1)), (None, 0)), (0, None))
        with jax.debug_nans(True):
            for gradient in jax.jit(pull)(boxes, boxes):
                assert jnp.isfinite(gradient).all()

    @coders
    def test_nan_stays_in_its_row(self, coder):
        first, second = operands_of(coder)
        first[1] = np.nan
        rows = np.isnan(coder(first, second)).any(axis=-1)
        np.testing.assert_array_equal(rows, [False, True, False, False, False])

    @coders
    def test_shapes_in_errors(self, coder):
        first, second = operands_of(coder)
        with pytest.raises(
            ValueError, match=rf"{coder.__name__}: `\w+` has shape \(5,"
        ):
            coder(first[:, :3], second)
        with pytest.raises(ValueError, match=r"leading axes \(5,\) of .* do not broad"):
            coder(first, second[:4])

    def test_layouts_in_errors(self):
        with pytest.raises(ValueError, match=r"`deltas`.*\(dx, dy, dw, dh\).*reshape"):
            decode(np.zeros((3, 8)), ANCHOR)
        with pytest.raises(ValueError, match=r"`points` has shape \(3, 4\).*\(x, y\)"):
            encode_ltrb(BOX, np.zeros((3, 4)))

    @pytest.mark.parametrize("coder", [encode, decode])
    @pytest.mark.parametrize(
        "weights", [(1.0, 1.0), 1.0, (1, 1, 0, 1), (1, 1, 1, -1), (1, 1, 1, np.inf)]
    )
    def test_bad_weights(self, coder, weights):
        with pytest.raises(ValueError, match="wanted four positive numbers"):
            coder(BOX, ANCHOR, weights=weights)

    @pytest.mark.parametrize("coder", [encode, decode])
    def test_traced_weights(self, coder):
        for weights in (jnp.ones(4), [1.0, 1.0, 1.0, jnp.ones(())]):
            with pytest.raises(TypeError, match="`weights` is traced"):
                jax.jit(lambda w: coder(BOX, ANCHOR, weights=w))(weights)

    @pytest.mark.parametrize(
        "bounds",
        [{"max_log_scale": math.nan}, {"min_log_scale": 9.0}, {"max_shift": -1.0}],
    )
    def test_bad_bound(self, bounds):
        with pytest.raises(ValueError, match=r"decode: `min_log_scale` is .*, wanted"):
            decode(BOX, ANCHOR, **bounds)
