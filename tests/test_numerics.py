"""Arithmetic at its degenerate points, where a measure would leave its range."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiou
from jaxiou import _numerics

ZEROS = np.array([0.0, -0.0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_angles_lie_between_zero_and_a_right_angle(dtype, x64):
    y, x = (z.ravel().astype(dtype) for z in np.meshgrid(ZEROS, ZEROS))
    # -0.0 - 0.0 is a side of a point; its angle is 0, not π.
    np.testing.assert_array_equal(jax.jit(_numerics.angle)(y, x), 0)
    tiny, huge = float(jnp.finfo(dtype).tiny), 1e18
    y, x = np.array([[1, 0, 1, huge, 3], [0, 1, tiny, 1, -0.0]], dtype)
    found = np.asarray(_numerics.angle(y, x), np.float64)
    assert found.max() <= math.pi / 2
    wanted = [math.pi / 2, 0, math.pi / 2, math.pi / 2, math.pi / 2]
    np.testing.assert_allclose(found, wanted, rtol=float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize(
    ("length", "ends", "wanted"),
    [
        # A point inside an interval grows by what its own ends move apart.
        (_numerics.overlap, (0.0, 4.0, 2.0, 2.0), (0, 0, -1, 1)),
        (_numerics.overlap, (2.0, 2.0, 0.0, 4.0), (-1, 1, 0, 0)),
        # Intervals that touch: halfway between no overlap and all of it.
        (_numerics.overlap, (0.0, 2.0, 2.0, 4.0), (0, 0.5, -0.5, 0)),
        # A point at the end of a hull pulls at its outer end alone.
        (_numerics.hull, (0.0, 0.0, 1.0, 2.0), (-1, 0, 0, 1)),
        (_numerics.hull, (3.0, 3.0, 1.0, 2.0), (0, 1, -1, 0)),
        (_numerics.hull, (1.0, 2.0, 0.0, 0.0), (0, 1, -1, 0)),
        (_numerics.hull, (1.0, 2.0, 3.0, 3.0), (-1, 0, 0, 1)),
    ],
)
def test_the_slopes_of_lengths_where_an_interval_is_a_point(length, ends, wanted):
    slopes = jax.grad(length, argnums=(0, 1, 2, 3))(*ends)
    np.testing.assert_array_equal(slopes, wanted)


@pytest.mark.parametrize("one", [_numerics.larger, _numerics.smaller])
def test_the_larger_of_two_is_a_selection(one):
    """One instruction of a CPU, where `jnp.maximum` is five."""
    text = str(jax.make_jaxpr(one)(1.0, 2.0))
    assert "select_n" in text and " max " not in text and " min " not in text


def test_the_root_has_no_slope_at_zero():
    roots = jnp.array([0.0, 0.25, 4.0, 1e12])
    slopes = jax.vmap(jax.grad(_numerics.root))(roots)
    np.testing.assert_allclose(slopes, [0, 1, 0.25, 5e-7], rtol=1e-6)
    curved = jax.grad(jax.grad(_numerics.root))
    np.testing.assert_allclose(curved(4.0), -1 / 32, rtol=1e-6)


def test_the_angle_has_the_digits_of_its_type():
    rng = np.random.default_rng(0)
    ratios = [10 ** rng.uniform(-12, 12, 20_000), rng.uniform(0, 3, 20_000)]
    # Where one piece of it ends and the next begins.
    for seam in (math.tan(math.pi / 8), 1.0, math.tan(3 * math.pi / 8)):
        ratios.append(seam * (1 + 1e-6 * rng.normal(size=5_000)))
    ratios = np.concatenate(ratios)
    x = (10 ** rng.uniform(-3, 3, ratios.size)).astype(np.float32)
    y = (ratios * x).astype(np.float32)
    wanted = np.arctan2(y.astype(np.float64), x.astype(np.float64))
    ulp = np.spacing(wanted.astype(np.float32))
    for angle in (_numerics.angle, jax.jit(_numerics.angle)):
        assert np.max(np.abs(np.asarray(angle(y, x), np.float64) - wanted) / ulp) <= 3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("form", [jaxiou.ciou, jaxiou.ciou.plain], ids=repr)
def test_ciou_stays_in_its_range_at_signed_zeros_and_thin_crosses(form, dtype):
    signed = [(a, b) for a in ZEROS for b in ZEROS]
    points = np.array([[a, c, b, d] for a, b in signed for c, d in signed])
    first = np.repeat(points, 3, axis=0)
    second = np.tile([[0, 0, 5, 0], [-7, 2, -3, 9], [1, 1, 1, 8]], (16, 1))
    # A line across and a line down far away: distance 1, aspect term 1/2.
    wide, tall = [[0, 0, 1, 0]], [[6e4, 6e4, 6e4, 6.4e4]]
    a, b = np.concatenate([first, wide]), np.concatenate([second, tall])
    a, b = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    for x, y in ((a, b), (b, a)):
        value = np.asarray(jax.jit(form)(x, y), np.float64)
        assert value.min() >= -1.5 and value.max() <= 1


@pytest.mark.parametrize("exponent", [0.25, 0.5, 0.9])
def test_a_power_begins_as_a_parabola_that_joins_it(exponent, x64):
    """Through 0, with the value and the slope of the power where it begins, at 1e-6."""
    power = jax.vmap(jax.value_and_grad(lambda x: _numerics.power(x, exponent)))
    seam = 1e-6
    x = np.array([0.0, seam / 2, seam * (1 - 1e-12), seam * (1 + 1e-12), 0.3])
    values, slopes = power(x)
    assert values[0] == 0
    np.testing.assert_allclose(values[2:], x[2:] ** exponent, rtol=1e-9)
    np.testing.assert_allclose(
        slopes[2:], exponent * x[2:] ** (exponent - 1), rtol=1e-9
    )
    # A parabola's slope falls evenly, from 2 - exponent times the height of the seam.
    first = (2 - exponent) * seam ** (exponent - 1)
    np.testing.assert_allclose(slopes[0], first, rtol=1e-9)
    np.testing.assert_allclose(slopes[1], (slopes[0] + slopes[2]) / 2, rtol=1e-9)
