"""Every property of every measure: one list of measures, one test per property."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import (
    DEGENERATE,
    ORDINARY,
    TELL_APART,
    grid_boxes,
    random_boxes,
    stacked,
)
from jax.test_util import check_grads

import jaxiou

# One after the other, in every form; test_variants.py has all measures at once.
MEASURES = [jaxiou.iou, jaxiou.iof, jaxiou.giou, jaxiou.diou, jaxiou.ciou]
every = pytest.mark.parametrize("measure", MEASURES, ids=repr)
both_forms = pytest.mark.parametrize("form", ["custom", "plain"])


def form_of(measure, form):
    return measure.plain if form == "plain" else measure


def assert_ulps(found, wanted, ulps=4, scale=1.0):
    """Equal to some units in the last place of `scale` or the value, what is larger."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape
    eps = float(jnp.finfo(found.dtype).eps)
    size = np.maximum(np.abs(wanted.astype(np.float64)), scale)
    error = np.abs(found.astype(np.float64) - wanted.astype(np.float64)) / size / eps
    assert np.all(error <= ulps), f"{np.nanmax(error)} ulp"


def gradients(function, *arguments):
    """Gradients in both boxes of the sum, which are those of every value."""
    total = lambda a, b: jnp.sum(function(a, b))  # noqa: E731
    return jax.grad(total, argnums=(0, 1))(*arguments)


def shortest(a, b):
    """Shortest side of each pair, `(n, 1)`: gradients are of the size 1 / side."""
    both = np.stack([a, b]).astype(np.float64)
    return np.abs(both[..., 2:] - both[..., :2]).min(axis=(0, 2))[:, None]


def mixed_boxes(dtype=np.float32):
    """Random pairs that overlap or not, ordinary ones and degenerate ones."""
    a, b = random_boxes(1, 200, dtype=dtype), random_boxes(2, 200, dtype=dtype)
    lists = [stacked(pairs, dtype) for pairs in (TELL_APART, ORDINARY, DEGENERATE)]
    return tuple(np.concatenate(parts) for parts in zip((a, b), *lists, strict=True))


def smooth_pairs():
    """Ordinary pairs without ties, at which derivatives jump."""
    smooth = [
        (a, b)
        for a, b in ORDINARY.values()
        if len({*a[::2], *b[::2]}) == len({*a[1::2], *b[1::2]}) == 4
    ]
    assert len(smooth) > 5
    return stacked(smooth, np.float64)


# Values


@every
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_box_with_itself_has_the_maximum(measure, jit):
    function = jax.jit(measure) if jit else measure
    boxes = np.concatenate([stacked(TELL_APART)[0], random_boxes(3, 500, extent=3)])
    for exponent in range(-6, 7):
        scaled = boxes * np.float32(10.0**exponent)
        assert_ulps(function(scaled, scaled), np.full(len(boxes), measure.maximum), 2)


@every
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_values_stay_in_their_range(measure, dtype, jit, x64):
    function = jax.jit(measure) if jit else measure
    rng = np.random.default_rng(0)
    # Corners in any order: three quarters of these boxes are inverted.
    chaos = rng.normal(size=(2, 2000, 4)) * 10 ** rng.uniform(-6, 6, (2, 2000, 1))
    same = random_boxes(5, 1000, dtype=np.float64)
    nearly = same * (1 + rng.integers(-2, 3, (1000, 4)) * 2.0**-23)
    far = np.array([[[0, 0, 1e9, 1e-9]], [[1e15, 1e15, 1e15 + 1e3, 2e15]]])
    sets = [chaos, mixed_boxes(np.float64), (same, nearly), far]
    a, b = (np.concatenate(parts) for parts in zip(*sets, strict=True))
    limit = float(jnp.finfo(dtype).max)
    first, second = (jnp.asarray(np.clip(x, -limit, limit), dtype) for x in (a, b))
    for values in (function(first, second), function(second, first)):
        assert values.dtype == dtype
        values = np.asarray(values, np.float64)
        assert values.min() >= measure.minimum and values.max() <= measure.maximum


@every
def test_symmetry_is_as_claimed(measure):
    a, b = mixed_boxes()
    if measure.symmetric:
        assert_ulps(measure(a, b), measure(b, a))
    else:
        a, b = stacked(TELL_APART)
        assert np.abs(measure(a, b) - measure(b, a)).min() > 0.01


@every
def test_scale_freedom_is_as_claimed(measure):
    a, b = stacked(ORDINARY)
    wanted = measure(a, b)
    for factor in np.float32(2.0) ** np.array([-40, -3, 5, 40]):
        error = np.abs(measure(a * factor, b * factor) - wanted)
        assert (error.max() <= 1e-6) == measure.scale_free


@every
def test_a_shift_of_both_boxes_changes_nothing(measure):
    a, b = stacked(ORDINARY)
    for shift in ([4096, -512], [-3, 77]):
        moved = [x + np.float32([*shift, *shift]) for x in (a, b)]
        assert_ulps(measure(*moved), measure(a, b))


@every
def test_equals_the_oracle(measure, x64):
    wanted = getattr(oracle, measure.name)
    a, b = mixed_boxes(np.float64)
    np.testing.assert_allclose(
        measure(a, b), oracle.elementwise(wanted, a, b), rtol=1e-13, atol=2e-14
    )
    a, b = mixed_boxes(np.float32)
    np.testing.assert_allclose(
        measure(a, b), oracle.elementwise(wanted, a, b), rtol=1e-6, atol=5e-7
    )


@every
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_exact_fractions_on_every_pair_of_grid_intervals(measure, dtype, x64):
    if measure.name == "ciou":
        pytest.skip("angles are no fractions")
    a, b = grid_boxes()
    exactly = getattr(oracle, measure.name)
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    wanted = [float(exactly(oracle.exact(x), oracle.exact(y))) for x, y in pairs]
    # One division of exact integers is right to half an ulp, two and a sum to two.
    ulps = 1 if measure.name in ("iou", "iof") else 2
    found = jax.jit(measure)(a.astype(dtype), b.astype(dtype))
    assert_ulps(found, np.array(wanted), ulps, scale=0.25)


def test_no_two_measures_agree_on_the_tell_apart_boxes():
    a, b = stacked(TELL_APART)
    values = np.stack([m(a, b) for m in MEASURES])
    differences = (
        np.abs(values[:, None] - values[None]) + np.eye(len(values))[..., None]
    )
    assert differences.min() > 1e-4


@every
@pytest.mark.parametrize("partner", [[0, 0, 4, 5], [1, 1, 1, 3], [3, 3, 1, 1], [9] * 4])
def test_nan_propagates(measure, partner):
    partner = np.float32(partner)
    for coordinate in range(4):
        broken = np.float32([0, 0, 2, 2])
        broken[coordinate] = np.nan
        assert np.isnan(measure(broken, partner)), coordinate
        assert np.isnan(measure(partner, broken)), coordinate


# Shapes


@every
def test_jit_vmap_and_a_loop_agree_with_eager(measure):
    a, b = mixed_boxes()
    size = 1 / np.maximum(shortest(a, b), 1e-30)
    wanted = measure(a, b)
    assert_ulps(jax.jit(measure)(a, b), wanted)
    assert_ulps(jax.vmap(measure)(a, b), wanted)
    assert_ulps(jax.lax.map(lambda pair: measure(*pair), (a, b)), wanted)
    rows = [measure(x, y) for x, y in zip(a[:20], b[:20], strict=True)]
    assert_ulps(jnp.stack(rows), wanted[:20])
    for function in (jax.vmap(measure), jax.jit(measure)):
        found = jax.jit(lambda a, b, f=function: gradients(f, a, b))(a, b)
        for g, w in zip(found, gradients(measure, a, b), strict=True):
            assert_ulps(g, w, scale=size)


@every
def test_is_the_diagonal_of_the_matrix(measure):
    a, b = random_boxes(1, 64, extent=20), random_boxes(2, 64, extent=20)
    diagonal = lambda a, b: jnp.diagonal(jaxiou.pairwise(a, b, measure=measure))  # noqa: E731
    assert_ulps(diagonal(a, b), measure(a, b))
    found, wanted = gradients(diagonal, a, b), gradients(measure, a, b)
    for g, w in zip(found, wanted, strict=True):
        assert_ulps(g, w, scale=1 / shortest(a, b))


@every
@pytest.mark.parametrize(
    "shapes", [((), ()), ((), (3,)), ((2, 1), (3,)), ((2, 3), (2, 1)), ((0,), ())]
)
def test_leading_axes_broadcast(measure, shapes):
    a, b = (
        random_boxes(k, *s, extent=9, side=20)
        for k, s in zip((4, 5), shapes, strict=True)
    )
    shape = np.broadcast_shapes(*shapes)
    full = [np.broadcast_to(x, (*shape, 4)) for x in (a, b)]
    assert measure(a, b).shape == shape
    assert_ulps(measure(a, b), measure(*full))
    for g, x, w in zip(
        gradients(measure, a, b), (a, b), gradients(measure, *full), strict=True
    ):
        assert g.shape == x.shape
        axes = tuple(range(len(shape) - x.ndim + 1))
        ones = [k for k, size in enumerate(x.shape[:-1], len(axes)) if size == 1]
        folded = np.sum(w, axis=(*axes, *ones)).reshape(x.shape)
        np.testing.assert_allclose(g, folded, rtol=1e-5, atol=1e-6)


# Gradients


@pytest.mark.parametrize("measure", [m for m in MEASURES if m.name != "ciou"], ids=repr)
def test_gradients_agree_with_finite_differences(measure, x64):
    a, b = smooth_pairs()
    check_grads(measure, (a, b), order=2, modes=["rev"], atol=2e-6, rtol=2e-6)
    check_grads(measure.plain, (a, b), order=2, atol=2e-6, rtol=2e-6)


def test_the_ciou_gradient_is_that_with_alpha_held_constant(x64):
    for a, b in zip(
        *stacked({**ORDINARY, "turned": TELL_APART[4]}, float), strict=True
    ):
        alpha = oracle.aspect(a, b)[1]

        def frozen(a, b, alpha=alpha):
            return oracle.diou(a, b) - alpha * oracle.aspect(a, b)[0]

        pair = np.stack([a, b])
        steps = 1e-6 * np.eye(8).reshape(8, 2, 4)
        wanted = [(frozen(*(pair + s)) - frozen(*(pair - s))) / 2e-6 for s in steps]
        for form in (jaxiou.ciou, jaxiou.ciou.plain):
            found = np.concatenate(gradients(form, a, b))
            np.testing.assert_allclose(found, wanted, atol=1e-8)


@every
def test_reverse_over_reverse_equals_the_hessian_of_the_plain_form(measure, x64):
    a, b = (x[0] for x in stacked(TELL_APART, np.float64))
    found = jax.jacrev(jax.jacrev(measure))(a, b)
    np.testing.assert_allclose(found, jax.hessian(measure.plain)(a, b), atol=1e-14)
    np.testing.assert_allclose(found, np.transpose(found), atol=1e-14)


@every
def test_the_plain_form_has_the_same_gradients(measure):
    a, b = mixed_boxes()
    size = 1 / np.maximum(shortest(a, b), 1e-30)
    assert_ulps(measure.plain(a, b), measure(a, b))
    found, wanted = gradients(measure.plain, a, b), gradients(measure, a, b)
    for g, w in zip(found, wanted, strict=True):
        assert_ulps(g, w, scale=size)


@every
def test_forward_mode_needs_the_plain_form(measure):
    a, b = (jnp.asarray(x[1]) for x in stacked(TELL_APART))
    t = jnp.arange(4.0)
    wanted = jax.grad(measure)(a, b) @ t
    plain = lambda a: measure.plain(a, b)  # noqa: E731
    tangents = [
        jax.jvp(plain, (a,), (t,))[1],
        jax.linearize(plain, a)[1](t),
        jax.jacfwd(plain)(a) @ t,
    ]
    for tangent in tangents:
        np.testing.assert_allclose(tangent, wanted, rtol=1e-5)
    assert jax.hessian(plain)(a).shape == (4, 4)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda a: measure(a, b), (a,), (t,))


EXTREMES = [1.0, 1e15, 1e-15, 1e23, 1e-20, 1e30, 1e-30, 1e38, 1e-38, 1e-42]


@every
@both_forms
def test_finite_input_has_finite_value_and_gradient(measure, form):
    used = form_of(measure, form)
    function = jax.jit(lambda a, b: (used(a, b), *gradients(used, a, b)))
    pairs = {**DEGENERATE, **ORDINARY}
    unit = {k: v for k, v in pairs.items() if np.abs(v).max() < 1e4}
    a, b = stacked(pairs)
    for first, second in [(a, b), (-b[:, [2, 3, 0, 1]], -a[:, [2, 3, 0, 1]])]:
        assert all(np.isfinite(x).all() for x in function(first, second))
    a, b = stacked(unit)
    biggest = np.finfo(np.float32).max
    for factor in EXTREMES:
        for other in (1.0, factor):
            with np.errstate(over="ignore"):
                scaled = a * np.float32(factor), b * np.float32(other)
            scaled = [np.clip(x, -biggest, biggest) for x in scaled]
            for first, second in (scaled, scaled[::-1]):
                for result in function(first, second):
                    bad = ~np.isfinite(result).reshape(len(unit), -1).all(axis=1)
                    assert not bad.any(), (factor, other, np.array([*unit])[bad])


@every
@both_forms
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_of_small_boxes_are_finite_in_half_precision(measure, form, dtype):
    used, smallest = form_of(measure, form), float(jnp.finfo(dtype).tiny)
    for a, b in (stacked(ORDINARY), stacked(TELL_APART)):
        scaled = [jnp.asarray(x * smallest, dtype) for x in (a, b)]
        for g in gradients(used, *scaled):
            assert g.dtype == dtype and np.isfinite(np.asarray(g, np.float32)).all()


@every
def test_gradients_saturate_in_half_precision(measure):
    # Sides of 1e-7, the smallest there are: their inverse is beyond 65504.
    smallest = float(jnp.finfo(jnp.float16).smallest_subnormal)
    scaled = [jnp.asarray(x * smallest, jnp.float16) for x in stacked(TELL_APART)]
    found = np.abs(np.asarray(gradients(measure, *scaled), np.float64))
    assert np.isfinite(found).all() and found.max() == 65504


def one_sided(function, box, coordinate, sign, step=1e-7):
    moved = np.array(box)
    moved[coordinate] += sign * step
    return sign * (float(function(moved)) - float(function(box))) / step


@every
@pytest.mark.parametrize("axis", [0, 1])
def test_an_empty_prediction_has_the_gradient_that_makes_it_grow(measure, axis, x64):
    target = np.array([1.0, 2, 6, 8])
    box = np.array([2.0, 3, 5, 7])
    box[2 + axis] = box[axis]
    alpha = oracle.aspect(box, target)[1]

    def value(x):
        # CIoU with alpha held constant, as its gradient has it.
        if measure.name == "ciou":
            return oracle.diou(x, target) - alpha * oracle.aspect(x, target)[0]
        return getattr(oracle, measure.name)(x, target)

    if measure.name == "iof":
        pytest.skip("jumps from 0 to 1: nothing divided by nothing")
    found = jax.grad(measure)(box, target)
    for coordinate, sign in ((axis, -1), (2 + axis, 1)):
        slope = one_sided(value, box, coordinate, sign)
        assert sign * slope > 0
        np.testing.assert_allclose(found[coordinate], slope, rtol=1e-5)


def test_touching_edges_get_half_of_the_one_sided_gradient(x64):
    a, b = np.array([0.0, 0, 4, 3]), np.array([4.0, 1, 6, 7])
    slope = one_sided(lambda x: oracle.iou(x, b), a, 2, 1)
    np.testing.assert_allclose(jax.grad(jaxiou.iou)(a, b), [0, 0, slope / 2, 0], 1e-6)


@pytest.mark.parametrize("name", ["iou", "giou", "diou", "ciou"])
def test_identical_boxes_have_no_gradient(name):
    a, _ = stacked(TELL_APART)
    for g in gradients(getattr(jaxiou, name), a, a):
        np.testing.assert_allclose(g, 0, atol=1e-7)
