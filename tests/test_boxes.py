"""Formats, area, clipping, validity, and the names of the usual mistakes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxiou.boxes import area, check_boxes, clip, convert, is_valid

# One box in every format: 3 wide and 6 high, so that no two formats agree.
FORMATS = {
    "xyxy": [1.0, 2.0, 4.0, 8.0],
    "xywh": [1.0, 2.0, 3.0, 6.0],
    "cxcywh": [2.5, 5.0, 3.0, 6.0],
    "yxyx": [2.0, 1.0, 8.0, 4.0],
}
PAIRS = list(itertools.product(FORMATS, FORMATS))
DEGENERATE = np.array(
    [
        [1, 2, 1, 8],  # without width
        [3, 5, 3, 5],  # a point
        [4, 8, 1, 2],  # inverted
        [-1e38, 0, 1e38, 1e38],
        [0, 0, 1e-38, 1e-20],
        [3e38, -3e38, 3e38, 3e38],
    ],
    np.float32,
)


def boxes_of(shape, seed=0):
    corners = np.random.default_rng(seed).uniform(-5, 30, (*shape, 2, 2))
    return np.sort(corners, axis=-2).reshape(*shape, 4).astype(np.float32)


class TestConvert:
    @pytest.mark.parametrize(("source", "target"), PAIRS)
    def test_every_pair_by_hand(self, source, target):
        converted = convert(FORMATS[source], source, target)
        np.testing.assert_array_equal(converted, FORMATS[target])

    @pytest.mark.parametrize(("source", "target"), PAIRS)
    def test_there_and_back(self, source, target):
        boxes = boxes_of((3, 5))
        back = convert(convert(boxes, source, target), target, source)
        np.testing.assert_allclose(back, boxes, rtol=0, atol=1e-5)

    def test_equal_formats_change_nothing(self):
        boxes = jnp.array([[3e38, jnp.nan, -jnp.inf, 1.0]])
        np.testing.assert_array_equal(convert(boxes, "xywh", "xywh"), boxes)

    def test_inverted_boxes_survive(self):
        boxes = jnp.array([4.0, 8.0, 1.0, 2.0])
        np.testing.assert_array_equal(convert(boxes, "xyxy", "xywh"), [4, 8, -3, -6])
        back = convert(convert(boxes, "xyxy", "cxcywh"), "cxcywh", "xyxy")
        np.testing.assert_array_equal(back, boxes)

    @pytest.mark.parametrize(
        ("given", "wanted"),
        [
            ("float16", "float16"),
            ("bfloat16", "bfloat16"),
            ("int32", "float32"),
            ("uint8", "float32"),
        ],
    )
    def test_dtypes(self, given, wanted):
        boxes = jnp.array(FORMATS["xyxy"]).astype(given)
        for target, values in FORMATS.items():
            converted = convert(boxes, "xyxy", target)
            assert converted.dtype == wanted
            np.testing.assert_array_equal(converted.astype(jnp.float32), values)

    def test_float64_stays(self, x64):
        # 2**-40 is lost in float32.
        boxes = np.array([1.0, 2.0, 4.0 + 2.0**-40, 8.0])
        converted = convert(boxes, "xyxy", "xywh")
        assert converted.dtype == jnp.float64
        np.testing.assert_array_equal(converted, [1, 2, 3 + 2.0**-40, 6])

    def test_half_precision_does_not_overflow_on_the_way(self):
        # x1 + x2 = 100032 is infinite in float16, the centre 50016 is not.
        boxes = jnp.array([40000, 10, 60032, 30], jnp.float16)
        centre = convert(boxes, "xyxy", "cxcywh")
        np.testing.assert_array_equal(centre, [50016, 20, 20032, 20])

    def test_finite_where_float32_would_overflow(self):
        for source, target in PAIRS:
            if source != target:
                assert jnp.isfinite(convert(DEGENERATE, source, target)).all()

    @pytest.mark.parametrize(("source", "target"), PAIRS)
    def test_gradient(self, source, target, x64):
        boxes = boxes_of((3,)).astype(np.float64)
        check_grads(jax.jit(lambda b: convert(b, source, target)), (boxes,), 1)

    def test_jit_and_vmap(self):
        boxes = boxes_of((3, 5))
        wanted = convert(boxes, "xyxy", "cxcywh")
        jitted = jax.jit(convert, static_argnums=(1, 2))(boxes, "xyxy", "cxcywh")
        mapped = jax.vmap(lambda b: convert(b, "xyxy", "cxcywh"))(boxes)
        np.testing.assert_array_equal(jitted, wanted)
        np.testing.assert_array_equal(mapped, wanted)

    def test_no_boxes(self):
        assert convert([], "xywh", "xyxy").shape == (0, 4)

    def test_unknown_format(self):
        with pytest.raises(ValueError, match=r"`target` is 'ltwh'.*'cxcywh', 'yxyx'"):
            convert(FORMATS["xyxy"], "xyxy", "ltwh")
        with pytest.raises(ValueError, match="`source` is 'XYXY'"):
            convert(FORMATS["xyxy"], "XYXY", "xywh")

    def test_not_boxes(self):
        with pytest.raises(ValueError, match=r"jaxiou.convert: `boxes` has shape \(3,"):
            convert(np.zeros((3, 5)), "xyxy", "xywh")


class TestArea:
    def test_by_hand(self):
        # 3 · 6; inverted in x, in y, and in both (where a product would be positive).
        boxes = [[1, 2, 4, 8], [4, 2, 1, 8], [1, 8, 4, 2], [4, 8, 1, 2]]
        np.testing.assert_array_equal(area(boxes), [18, 0, 0, 0])

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_half_precision(self, dtype):
        result = area(jnp.array([0, 0, 600, 640], dtype))
        assert result.dtype == jnp.float32
        assert result == 600 * 640

    def test_integers_do_not_wrap(self):
        result = area(np.array([0, 0, 50000, 50000], np.int32))
        assert result.dtype == jnp.float32
        assert result == 2.5e9

    def test_x64(self, x64):
        assert area(np.array([0, 0, 3, 1 / 3])).dtype == jnp.float64
        assert area(np.array([0, 0, 3, 2], np.float32)).dtype == jnp.float32

    def test_finite_everywhere(self):
        values, gradients = jax.vmap(jax.value_and_grad(area))(DEGENERATE)
        assert jnp.isfinite(values).all()
        assert jnp.isfinite(gradients).all()

    def test_finite_gradient_in_half_precision(self):
        # The derivative in x2 is the height, 120000: more than float16 holds.
        box = jnp.array([0, -60000, 4, 60000], jnp.float16)
        np.testing.assert_array_equal(jax.grad(area)(box), [-65504, -4, 65504, 4])

    def test_a_line_can_grow(self):
        # Width 0 and height 6: the area grows by 6 with x2, one-sided.
        gradient = jax.grad(area)(jnp.array([1.0, 2.0, 1.0, 8.0]))
        np.testing.assert_array_equal(gradient, [-6, 0, 6, 0])

    def test_an_inverted_box_has_no_gradient(self):
        gradient = jax.grad(area)(jnp.array([4.0, 8.0, 1.0, 2.0]))
        np.testing.assert_array_equal(gradient, [0, 0, 0, 0])

    def test_gradient(self, x64):
        check_grads(jax.jit(area), (boxes_of((3,)).astype(np.float64),), 2)

    def test_jit_and_vmap(self):
        boxes = boxes_of((3, 5))
        np.testing.assert_array_equal(jax.jit(area)(boxes), area(boxes))
        np.testing.assert_array_equal(jax.vmap(area)(boxes), area(boxes))


class TestClip:
    def test_by_hand(self):
        boxes = [[-2.0, 3.0, 7.0, 9.0], [1.0, -4.0, 2.0, 6.0], [8.0, 7.0, 9.0, 8.0]]
        wanted = [[0, 3, 5, 6], [1, 0, 2, 6], [5, 6, 5, 6]]
        np.testing.assert_array_equal(clip(boxes, 6, 5), wanted)

    def test_one_size_per_image(self):
        boxes = jnp.broadcast_to(jnp.array([-1.0, -1.0, 9.0, 9.0]), (2, 3, 4))
        height, width = jnp.array([[6.0], [4.0]]), jnp.array([[5.0], [8.0]])
        clipped = clip(boxes, height, width)
        np.testing.assert_array_equal(clipped[0], [[0, 0, 5, 6]] * 3)
        np.testing.assert_array_equal(clipped[1], [[0, 0, 8, 4]] * 3)
        mapped = jax.vmap(clip)(boxes, height[:, 0], width[:, 0])
        np.testing.assert_array_equal(mapped, clipped)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "uint8", "int8"])
    def test_dtype_stays(self, dtype):
        # As an 8-bit number 480 would be 224 or -32.
        boxes = jnp.array([3, 5, 120, 100]).astype(dtype)
        for sizes in [(480, 110), (np.int64(480), jnp.int32(110))]:
            clipped = clip(boxes, *sizes)
            assert clipped.dtype == dtype
            np.testing.assert_array_equal(clipped.astype(int), [3, 5, 110, 100])
        clipped = jax.jit(clip)(boxes, 480, 110)
        np.testing.assert_array_equal(clipped.astype(int), [3, 5, 110, 100])

    def test_gradient(self):
        # Cut on the left and below; x2 lies on the border.
        gradient = jax.grad(lambda b: clip(b, 6, 5).sum())(
            jnp.array([-2.0, 3.0, 5.0, 9.0])
        )
        np.testing.assert_array_equal(gradient, [0, 1, 1, 0])
        # All four on the border.
        border = jnp.array([0.0, 0.0, 5.0, 6.0])
        gradient = jax.grad(lambda b: clip(b, 6, 5).sum())(border)
        np.testing.assert_array_equal(gradient, 1)

    def test_infinite_and_nan(self):
        clipped = clip([-jnp.inf, jnp.nan, jnp.inf, 3.0], 6, 5)
        np.testing.assert_array_equal(clipped, [0, jnp.nan, 5, 3])

    def test_jit(self):
        boxes = boxes_of((3, 5))
        np.testing.assert_array_equal(jax.jit(clip)(boxes, 9, 7), clip(boxes, 9, 7))

    def test_sizes_that_do_not_fit(self):
        with pytest.raises(ValueError, match=r"`height` has shape \(2,\).*\[:, None\]"):
            clip(np.zeros((2, 3, 4)), np.array([6, 4]), 5)
        with pytest.raises(ValueError, match=r"has shape \(2, 3\), wanted one that"):
            clip(np.zeros((3, 4)), np.full((2, 3), 6), 5)
        with pytest.raises(ValueError, match=r"has shape \(4, 3\), wanted one that"):
            clip(np.zeros((3, 4)), np.full((4, 3), 6), 5)

    def test_integer_boxes_want_integer_sizes(self):
        with pytest.raises(TypeError, match="`width` is float32, wanted an integer"):
            clip(np.array([1, 2, 3, 4]), 6, 5.5)


class TestIsValid:
    def test_by_hand(self):
        boxes = [[1, 2, 4, 8], [1, 2, 1, 8], [4, 2, 1, 8], [1, 8, 4, 2]]
        for min_size, wanted in [
            (0, [True, True, False, False]),
            (0.5, [True, False, False, False]),
            (3, [True, False, False, False]),  # the width itself is allowed
            (4, [False, False, False, False]),
        ]:
            valid = is_valid(boxes, min_size=min_size)
            assert valid.dtype == jnp.bool_
            np.testing.assert_array_equal(valid, wanted)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, value):
        boxes = np.tile(np.float32([1, 2, 4, 8]), (4, 1))
        np.fill_diagonal(boxes, value)
        assert not is_valid(boxes, min_size=0).any()

    def test_half_precision_is_compared_in_float32(self):
        # 2049 does not exist in float16: 2050 - 1 rounds to 2048.
        assert is_valid(jnp.array([1, 0, 2050, 4000], jnp.float16), min_size=2049)

    def test_jit_and_vmap(self):
        boxes = boxes_of((3, 5))
        wanted = is_valid(boxes, min_size=6.0)
        assert 0 < wanted.sum() < wanted.size
        jitted = jax.jit(lambda b, s: is_valid(b, min_size=s))(boxes, 6.0)
        mapped = jax.vmap(lambda b: is_valid(b, min_size=6.0))(boxes)
        np.testing.assert_array_equal(jitted, wanted)
        np.testing.assert_array_equal(mapped, wanted)

    @pytest.mark.parametrize("min_size", [-1, float("nan"), [1.0, 2.0]])
    def test_bad_min_size(self, min_size):
        with pytest.raises(ValueError, match=r"`min_size` is .*wanted one number"):
            is_valid([1, 2, 4, 8], min_size=min_size)


GOOD = [[30.0, 20.0, 50.0, 60.0], [0.0, 0.0, 100.0, 80.0], [70.0, 5.0, 90.0, 15.0]]
SIZE = (80, 100)


class TestCheckBoxes:
    @pytest.mark.parametrize("size", [None, SIZE, np.array(SIZE)])
    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32"])
    def test_good_boxes(self, size, dtype):
        assert check_boxes(jnp.array(GOOD).astype(dtype), image_size=size) is None

    def test_good_in_other_shapes(self):
        for boxes in (GOOD, GOOD[0], [GOOD, GOOD], []):
            check_boxes(boxes, image_size=SIZE)
        normalised = np.array(GOOD) / [100, 80, 100, 80]
        check_boxes(normalised, image_size=(1, 1))
        # Rounding does not count as reaching over the image.
        check_boxes([[0.0, 0.0, 100.001, 80.001]], image_size=SIZE)
        check_boxes([[0.0, -1.0, 10001.0, 1e4]], image_size=(10_000, 10_000))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_not_finite_is_first(self, value):
        boxes = np.array([*GOOD, [value, 5, 3, 1]])
        with pytest.raises(ValueError, match=r"NaN or infinity: 1 of 4, .*boxes\[3\]"):
            check_boxes(boxes, image_size=SIZE)

    def test_encoded_offsets(self):
        boxes = [[0.3, 0.1, -0.2, 0.4], [-0.1, -0.5, 0.1, -0.3], [1.5, 0.2, 0.1, 0.3]]
        for size in (None, SIZE, (1, 1)):
            with pytest.raises(ValueError, match=r"encoded offsets.*jaxiou\.decode"):
                check_boxes(boxes, image_size=size)

    def test_small_numbers_of_one_sign_are_no_offsets(self):
        with pytest.raises(ValueError, match=r"jaxiou\.check_boxes: .*") as error:
            check_boxes([[-0.3, -0.1, -0.5, -0.4], [-0.5, -0.9, -0.4, -0.3]])
        assert "offsets" not in str(error.value)
        with pytest.raises(ValueError, match="look like xywh given as xyxy: 2 of 2"):
            check_boxes([[5, 5, 2, 2], [6, 6, 1, 3]])

    def test_normalised_against_pixels(self):
        boxes = np.array(GOOD) / [100, 80, 100, 80]
        check_boxes(boxes)
        with pytest.raises(ValueError, match=r"normalised.*by \(100, 80, 100, 80\)"):
            check_boxes(boxes, image_size=SIZE)

    def test_pixels_against_normalised(self):
        with pytest.raises(ValueError, match=r"pixels.*\[30.0, 20.0, 50.0, 60.0\]"):
            check_boxes(GOOD, image_size=(1, 1))

    def test_up_to_two_sides_of_the_image_are_no_pixels(self):
        with pytest.raises(ValueError, match="pixels"):
            check_boxes([[0.0, 0.0, 2.01, 1.0]], image_size=(1, 1))
        with pytest.raises(ValueError, match=r"jaxiou\.check_boxes") as error:
            check_boxes([[0.0, 0.0, 2.0, 1.0]], image_size=(1, 1))
        assert "pixels" not in str(error.value)

    def test_small_boxes_and_small_images_are_taken_at_their_word(self):
        check_boxes([[0.2, 0.2, 1.5, 1.8]], image_size=(10, 10))
        with pytest.raises(ValueError, match="reach over the image"):
            check_boxes([[0.0, 0.0, 3.0, 3.0]], image_size=(2, 2))

    def test_negative_sides_are_no_xywh(self):
        with pytest.raises(ValueError, match="are inverted"):
            check_boxes([[5.0, 50.0, -20.0, 20.0]])
        with pytest.raises(ValueError, match="look like xywh"):
            check_boxes([[20.0, -1.0, 5.0, 5.0], [30.0, 8.0, 6.0, 3.0]])

    def test_nothing_above_zero_is_no_offset(self):
        with pytest.raises(ValueError, match="are inverted"):
            check_boxes([[0.0, 0.0, -1.0, -2.0]])

    @pytest.mark.parametrize("layout", ["xywh", "cxcywh"])
    def test_other_layouts(self, layout):
        boxes = convert(GOOD, "xyxy", layout)
        with pytest.raises(
            ValueError,
            match=rf"like {layout} given as xyxy: 2 of 3, first `boxes\[0\]`.*"
            rf'`jaxiou.convert\(boxes, "{layout}", "xyxy"\)`',
        ):
            check_boxes(boxes, image_size=SIZE)

    def test_xywh_without_the_image(self):
        boxes = [[30, 20, 20, 40], [60, 50, 30, 10], [5, 5, 20, 20]]
        with pytest.raises(ValueError, match="look like xywh given as xyxy: 2 of 3"):
            check_boxes(boxes)

    def test_y_first(self):
        boxes = convert(GOOD, "xyxy", "yxyx")
        check_boxes(boxes)
        with pytest.raises(ValueError, match=r'y-first.*boxes\[1\].*"yxyx"'):
            check_boxes(boxes, image_size=SIZE)

    def test_inverted(self):
        # All would fit the image as xywh, but only one in seven is inverted.
        boxes = [*[[10, 5, 40, 30]] * 6, [50, 60, 30, 20]]
        for size in (None, SIZE):
            with pytest.raises(ValueError, match=r"inverted .*: 1 of 7, .*boxes\[6\]"):
                check_boxes(boxes, image_size=size)

    @pytest.mark.parametrize("box", [[30, 20, 30, 60], [30, 20, 50, 20], [0, 0, 0, 0]])
    def test_no_area(self, box):
        for boxes in ([*GOOD, box], [box]):
            with pytest.raises(ValueError, match=r"no area.*`boxes\[where\]`"):
                check_boxes(boxes, image_size=SIZE)

    def test_outside(self):
        boxes = [GOOD, [*GOOD[:2], [70.0, 5.0, 101.0, 15.0]]]
        check_boxes(boxes)
        with pytest.raises(
            ValueError,
            match=r"reach over the image: 1 of 6, first `boxes\[1, 2\]` = \[70.0, 5.0, "
            r"101.0, 15.0\] in an image of \(height, width\) \(80.0, 100.0\)",
        ):
            check_boxes(boxes, image_size=SIZE)

    def test_traced(self):
        with pytest.raises(TypeError, match=r"`boxes` is traced.*before `jit`"):
            jax.jit(check_boxes)(jnp.array(GOOD))
        with pytest.raises(TypeError, match="`boxes` is traced"):
            jax.jit(lambda x: check_boxes([[x, 2.0, 3.0, 4.0]]))(1.0)

    def test_constants_inside_jit(self):
        @jax.jit
        def double(x):
            check_boxes(np.array(GOOD), image_size=SIZE)
            return 2 * x

        assert double(1.0) == 2

    @pytest.mark.parametrize("size", [(80, 100, 3), 80, (0, 100), (80, np.nan)])
    def test_bad_image_size(self, size):
        with pytest.raises(ValueError, match=r"`image_size` is .*`image.shape\[:2\]`"):
            check_boxes(GOOD, image_size=size)

    def test_not_boxes(self):
        with pytest.raises(
            ValueError, match=r"check_boxes: `boxes` has shape \(3, 5\)"
        ):
            check_boxes(np.zeros((3, 5)))
