"""Every property of every public measure, families included, all of them at once.

`members.evaluate` compiles one program per dtype that computes the values and gradients
of all members: a property is a look at its arrays.
"""

import functools

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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from members import MEMBERS, RATIONAL, ROWS, evaluate, expected

import jaxiou

# Many compilations; the measures of `test_measures.py` stand for these elsewhere.
pytestmark = pytest.mark.slow

DTYPES = ["float32", "float64", "bfloat16", "float16"]


def each(*arrays):
    """Members with their rows of the arrays."""
    return zip(MEMBERS, *arrays, strict=True)


def mixed(dtype=np.float64):
    """Random pairs, mostly overlapping and mostly not, ordinary and degenerate ones."""
    near = random_boxes(1, 150, extent=9), random_boxes(2, 150, extent=9)
    far = random_boxes(3, 100), random_boxes(4, 100)
    lists = [stacked(pairs, dtype) for pairs in (TELL_APART, ORDINARY, DEGENERATE)]
    return tuple(
        np.concatenate(parts).astype(dtype)
        for parts in zip(near, far, *lists, strict=True)
    )


def smooth_pairs():
    """Pairs without ties, at which derivatives jump, of the kinds that differ."""
    pairs = [*ORDINARY.values(), *TELL_APART]
    pairs = [
        (a, b)
        for a, b in pairs
        if len({*a[::2], *b[::2]}) == len({*a[1::2], *b[1::2]}) == 4
        and 2 * (a[2] - b[0]) != a[2] - a[0]
    ]
    assert len(pairs) > 10
    # Different centres, sides and offsets: absolute values have no kink there.
    a, b = stacked(pairs, np.float64)
    return a + np.array([0.05, 0.02, 0.11, 0.17]), b


def inside(measure, values):
    return measure.minimum <= values.min() and values.max() <= measure.maximum


def test_every_public_measure_is_a_member():
    public = {
        name
        for name, value in vars(jaxiou).items()
        if isinstance(value, jaxiou.Measure) or hasattr(value, "measure_family")
    }
    members = {m.name for m in MEMBERS if m.coordinates == 4}
    assert members <= public
    # Measures of other boxes (rotated, Gaussian, 3D) have tests of their own.
    for module in (jaxiou.measures, jaxiou.variants, jaxiou.combinators):
        assert {n for n in module.__all__ if n != "measure"} <= members
    assert len({repr(m) for m in MEMBERS}) == len(MEMBERS) == len({*MEMBERS})


# Values


def test_equals_the_oracle(x64):
    a, b = mixed()
    ordinary = np.abs([a, b]).max(axis=(0, 2)) < 1e4
    for dtype, atol, rtol in (("float64", 3e-14, 1e-13), ("float32", 1e-6, 1e-6)):
        rounded = [x.astype(dtype).astype(float) for x in (a, b)]
        for measure, found in each(evaluate(a, b, dtype)[0]):
            wanted = oracle.elementwise(expected(measure), *rounded)
            # Sides of inner boxes are differences of rounded coordinates, the roots
            # of `alpha=0.5` double the relative error of a small term.
            off = measure.name in ("inner_iou", "siou") or "0.5" in repr(measure)
            tolerance = {"atol": 10 * atol if off else atol, "rtol": rtol}
            keep = ordinary if off else ...
            np.testing.assert_allclose(
                found[keep], wanted[keep], err_msg=repr(measure), **tolerance
            )


def test_equals_exact_fractions_on_a_grid_of_touching_edges(x64):
    a, b = (x[::5].astype(float) for x in grid_boxes())
    values = dict(zip(MEMBERS, evaluate(a, b, "float64")[0], strict=True))
    pairs = [
        (oracle.exact(x), oracle.exact(y))
        for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    for measure in RATIONAL:
        exactly = expected(measure)
        for key in ("ratio", "upper", "point"):
            if key in exactly.keywords:
                exactly.keywords[key] = oracle.exact([exactly.keywords[key]])[0]
        wanted = np.array([float(exactly(x, y)) for x, y in pairs])
        # At most half a dozen roundings of numbers up to 3.
        np.testing.assert_allclose(
            values[measure], wanted, rtol=4e-16, atol=8e-16, err_msg=repr(measure)
        )


def test_a_box_with_itself_has_the_maximum():
    boxes = np.concatenate([stacked(TELL_APART)[0], random_boxes(3, 72, extent=3)])
    scaled = np.concatenate([boxes * np.float32(10.0**k) for k in range(-6, 7)])
    for measure, found in each(evaluate(scaled, scaled)[0]):
        np.testing.assert_allclose(
            found, measure.maximum, rtol=2.4e-7, err_msg=repr(measure)
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_stay_in_their_range(dtype, x64):
    rng = np.random.default_rng(0)
    # Corners in any order: three quarters of these boxes are inverted.
    chaos = rng.normal(size=(2, 500, 4)) * 10 ** rng.uniform(-6, 6, (2, 500, 1))
    same = random_boxes(5, 300, dtype=np.float64)
    nearly = same * (1 + rng.integers(-2, 3, (300, 4)) * 2.0**-23)
    far = np.array([[[0, 0, 1e9, 1e-9]], [[1e15, 1e15, 1e15 + 1e3, 2e15]]])
    sets = [chaos, mixed(), (same, nearly), far]
    a, b = (np.concatenate(parts) for parts in zip(*sets, strict=True))
    limit = float(jnp.finfo(dtype).max)
    a, b = (np.clip(x, -limit, limit) for x in (a, b))
    values = evaluate(np.concatenate([a, b]), np.concatenate([b, a]), dtype)[0]
    for measure, found in each(values.astype(float)):
        assert inside(measure, found), (measure, found.min(), found.max())


def test_symmetry_is_as_claimed():
    a, b = mixed(np.float32)
    there, back = evaluate(a, b)[0], evaluate(b, a)[0]
    a, b = stacked(TELL_APART)
    apart = np.abs(evaluate(a, b)[0] - evaluate(b, a)[0])
    for measure, x, y, difference in each(there, back, apart):
        if measure.symmetric:
            np.testing.assert_allclose(x, y, atol=1e-6, rtol=1e-6, err_msg=str(measure))
        else:
            assert difference.min() > 1e-4, measure


def test_scale_freedom_is_as_claimed():
    a, b = stacked(ORDINARY)
    wanted = evaluate(a, b)[0]
    for factor in np.float32(2.0) ** np.array([-40, -3, 5, 40]):
        for measure, x, y in each(evaluate(a * factor, b * factor)[0], wanted):
            assert (np.abs(x - y).max() <= 1e-6) == measure.scale_free, measure


def test_a_shift_of_both_boxes_changes_nothing():
    a, b = stacked(ORDINARY)
    for shift in ([4096, -512], [-3, 77]):
        moved = [x + np.float32([*shift, *shift]) for x in (a, b)]
        for measure, x, y in each(evaluate(*moved)[0], evaluate(a, b)[0]):
            np.testing.assert_allclose(x, y, atol=5e-7, err_msg=repr(measure))


def test_no_two_measures_agree_on_the_tell_apart_boxes(x64):
    # `extended_iou` is the IoU where boxes overlap: a pair that does not joins in.
    a, b = stacked([*TELL_APART, ORDINARY["disjoint"]], np.float64)
    values = evaluate(a, b, "float64")[0]
    differences = np.abs(values[:, None] - values[None]).max(axis=-1)
    assert (differences + np.eye(len(values))).min() > 1e-4


def test_nan_propagates():
    rows = []
    for partner in ([0, 0, 4, 5], [1, 1, 1, 3], [3, 3, 1, 1], [9] * 4):
        for coordinate in range(4):
            broken = np.float32([0, 0, 2, 2])
            broken[coordinate] = np.nan
            rows += [(broken, partner), (partner, broken)]
    for measure, values in each(evaluate(*stacked(rows))[0]):
        assert np.isnan(values).all(), measure


def test_vmap_a_loop_and_the_diagonal_of_the_matrix_agree():
    a, b = random_boxes(1, 24, extent=20), random_boxes(2, 24, extent=20)

    @jax.jit
    def forms(a, b):
        stack = lambda f: jnp.stack([f(m) for m in MEMBERS])  # noqa: E731
        matrix = stack(lambda m: jaxiou.pairwise(a, b, measure=m))
        loop = jax.lax.map(lambda ab: stack(lambda m: m(*ab)), (a, b)).T
        return stack(lambda m: jax.vmap(m)(a, b)), loop, matrix

    vmapped, loop, matrix = forms(a, b)
    wanted = evaluate(a, b)[0]
    for found in (vmapped, loop, jnp.diagonal(matrix, axis1=1, axis2=2)):
        np.testing.assert_allclose(found, wanted, rtol=5e-7, atol=5e-7)
    # Their maxima are what the fused matching finds: one that is not symmetric, one
    # of a combinator.
    for measure in (jaxiou.piou, jaxiou.inner_iou(ratio=0.7, base=jaxiou.siou)):
        row = matrix[MEMBERS.index(measure)]
        best = jaxiou.best_match(a, b, measure=measure)
        np.testing.assert_allclose(best.values1, row.max(1), rtol=5e-7, atol=5e-7)
        np.testing.assert_array_equal(best.indices1, row.argmax(1))
        np.testing.assert_array_equal(best.indices2, row.argmax(0))


def test_a_variant_is_a_criterion_of_suppression():
    boxes = np.concatenate([stacked(TELL_APART)[k] for k in (0, 1)])
    scores = np.linspace(1, 0.1, len(boxes)).astype(np.float32)
    for measure in (jaxiou.siou, jaxiou.alpha_iou(alpha=3, base=jaxiou.diou)):
        kept = jaxiou.nms(
            boxes, scores, threshold=0.05, max_outputs=len(boxes), measure=measure
        )
        wanted = oracle.nms(boxes, scores, 0.05, measure=expected(measure))
        assert 1 < len(wanted) < len(boxes)
        assert [int(i) for i in kept.indices if i >= 0] == wanted


# Gradients


def test_gradients_agree_with_finite_differences(x64):
    a, b = smooth_pairs()
    _, grad1, grad2 = evaluate(a, b, "float64")
    for measure, g1, g2 in each(grad1, grad2):
        for x, y, *found in zip(a, b, g1, g2, strict=True):
            # What the authors hold constant is held at the pair itself.
            function = expected(measure, held=(x.tolist(), y.tolist()))
            wanted = oracle.gradient(function, x, y)
            np.testing.assert_allclose(
                found, wanted, atol=3e-8, rtol=1e-6, err_msg=f"{measure} {x} {y}"
            )


def test_forward_mode_of_the_plain_form_agrees_with_the_gradient(x64):
    a, b = smooth_pairs()
    t = np.random.default_rng(0).normal(size=(2, *a.shape))

    def along(a, b, s, t):
        return jnp.stack(
            [jax.jvp(m.plain, (a, b), (s, t))[1] for m in MEMBERS if m.parameters]
        )

    found = jax.jit(along)(a, b, *t)
    _, grad1, grad2 = evaluate(a, b, "float64")
    wanted = np.sum(grad1 * t[0] + grad2 * t[1], axis=-1)
    wanted = wanted[[bool(m.parameters) for m in MEMBERS]]
    np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-13)


EXTREMES = [1.0, 1e15, 1e-15, 1e23, 1e-20, 1e30, 1e-30, 1e38, 1e-38, 1e-42]


def test_finite_input_has_finite_value_and_gradient():
    a, b = stacked({**DEGENERATE, **ORDINARY})
    pairs = [(a, b), (-b[:, [2, 3, 0, 1]], -a[:, [2, 3, 0, 1]])]
    unit = np.abs([a, b]).max(axis=(0, 2)) < 1e4
    biggest = np.finfo(np.float32).max
    for factor in EXTREMES:
        for other in (1.0, factor):
            with np.errstate(over="ignore"):
                scaled = a[unit] * np.float32(factor), b[unit] * np.float32(other)
            scaled = tuple(np.clip(x, -biggest, biggest) for x in scaled)
            pairs += [scaled, scaled[::-1]]
    a, b = (np.concatenate(x) for x in zip(*pairs, strict=True))
    values, grad1, grad2 = evaluate(a, b)
    for measure, *results in each(values, grad1, grad2):
        for result in results:
            bad = ~np.isfinite(result).reshape(len(a), -1).all(axis=1)
            assert not bad.any(), (measure, a[bad][0], b[bad][0])


@pytest.mark.parametrize(
    "measure", [jaxiou.extended_iou, jaxiou.smooth_iou()], ids=repr
)
def test_a_gap_beside_a_hair_has_a_finite_gradient(measure):
    # The gap of 3e32 in y times a width of 0: its slope over an area of 4e-31.
    a = jnp.array([2.28e-31, 2.65e32, 2.28e-31, 2.28e-31])
    b = jnp.array([2.28e-31, 0.0, 1.9375, 2.28e-31])
    for gradient in jax.grad(measure, argnums=(0, 1))(a, b):
        assert np.isfinite(gradient).all()


# A slope of 1e3 on top of the 1 / side of the IoU overflows for sides below 1e-30 (in
# float32), as the docstring of `alpha_iou` says.
STEEP = jaxiou.alpha_iou(alpha=0.5, base=jaxiou.diou)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    # Compiling takes part in the first example: time must not decide.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_finite_boxes(dtype, x64, data):
    """Values in range and finite gradients over all of the dtype, denormals and ±0."""
    bits = jnp.finfo(dtype).bits
    pattern = npst.arrays(
        np.dtype(f"uint{bits}"), 16, elements=st.integers(0, 2**bits - 1)
    )
    seed = data.draw(pattern)
    # Coordinates of one pair meet in every order: ties, shared edges and inversions.
    rng = np.random.default_rng(seed.astype(np.uint64).tolist())
    raw = rng.choice(seed, (2, ROWS, 4)).view(jnp.dtype(dtype)).astype(np.float64)
    limit = float(jnp.finfo(dtype).max)
    a, b = np.nan_to_num(raw, nan=1.0, posinf=limit, neginf=-limit)
    x = np.sort(np.concatenate([a, b], axis=1).reshape(ROWS, 4, 2), axis=1)
    steps = np.diff(x, axis=1).reshape(ROWS, -1)
    least = 1e8 * float(jnp.finfo(jnp.promote_types(dtype, "float32")).tiny)
    hair = ((steps > 0) & (steps < least)).any(axis=1)
    results = evaluate(a, b, dtype)
    for measure, *arrays in each(*results):
        values, *gradients = (x.astype(np.float64) for x in arrays)
        bad = ~np.isfinite(values)
        for g in gradients:
            bad |= ~np.isfinite(g).all(axis=-1)
        if measure == STEEP:
            bad &= ~hair
        assert not bad.any(), (measure, a[bad][0], b[bad][0])
        assert inside(measure, values), (measure, values.min(), values.max())


def apart():
    """Predictions that miss a target, at distances from half a side to 1e5 sides."""
    target = np.array([10.0, 20, 16, 29])
    places = [(-1, 0.2), (1, -0.3), (0.1, -1), (-0.2, 1), (-1, -1), (1, 1), (1, -1)]
    rows = []
    for size in (0.5, 1.0, 3.0):
        sides = size * np.array([6.0, 9.0])
        for distance in (0.5, 2.0, 50.0, 1e3, 1e5):
            for place in np.array(places):
                reach = (sides + np.array([6.0, 9.0])) / 2
                outer = np.abs(place) == 1
                move = np.where(outer, np.sign(place) * (reach + distance * 6), place)
                centre = np.array([13.0, 24.5]) + move
                box = np.concatenate([centre - sides / 2, centre + sides / 2])
                rows.append((box, target, np.where(outer, np.sign(place), 0)))
    a, b, away = (np.array(x) for x in zip(*rows, strict=True))
    return a, b, away


def test_boxes_apart_are_drawn_together_at_any_distance(x64):
    a, b, away = apart()
    _, grad1, _ = evaluate(a, b, "float64")
    # What moving the prediction does to the measure, per axis.
    pull = grad1[..., :2] + grad1[..., 2:]
    cured = ("extended_iou", "smooth_iou")
    for measure, towards in each(-pull * away):
        if measure.name in cured:
            assert (towards[away != 0] > 0).all(), measure
        if measure.name == "iou":
            assert (towards == 0).all()


def test_a_constant_added_to_both_areas_cures_nothing(x64):
    a, b, _ = apart()

    def padded(a, b):
        edges = jnp.minimum(a[:, 2:], b[:, 2:]) - jnp.maximum(a[:, :2], b[:, :2])
        shared = jnp.maximum(edges, 0).prod(-1)
        union = jaxiou.area(a) + jaxiou.area(b) - shared
        return ((shared + 1) / (union + 1)).sum()

    gradient = jax.grad(padded)(jnp.asarray(a), b)
    np.testing.assert_allclose(gradient[:, :2] + gradient[:, 2:], 0, atol=1e-15)


def test_the_loss_of_siou_grows_with_the_distance(x64):
    steps = np.array([2.0, 5, 8, 12, 20, 40])
    target = np.array([0.0, 0, 10, 10])
    boxes = target + steps[:, None] * np.array([1.0, 0, 1, 0])
    loss = np.asarray(jaxiou.box_loss(boxes, target, measure=jaxiou.siou))
    assert (np.diff(loss) > 0).all() and loss[-1] > 1.3


# Combinators and parameters


def test_combinators_with_neutral_parameters_are_their_base(x64):
    a, b = mixed()
    for base in (jaxiou.iou, jaxiou.diou, jaxiou.ciou, jaxiou.siou):
        for made in (
            jaxiou.alpha_iou(alpha=1, base=base),
            jaxiou.inner_iou(ratio=1, base=base),
            jaxiou.focaler(lower=0, upper=1, base=base),
        ):
            ordinary = np.abs([a, b]).max(axis=(0, 2)) < 1e4
            x, y = a[ordinary], b[ordinary]
            np.testing.assert_allclose(made(x, y), base(x, y), atol=1e-12)


def test_combinators_compose():
    inner = jaxiou.inner_iou(ratio=0.75, base=jaxiou.diou)
    made = jaxiou.focaler(lower=0, upper=0.5, base=inner)
    a, b = stacked(TELL_APART)
    overlap = jaxiou.inner_iou(ratio=0.75)(a, b)
    penalty = jaxiou.iou(a, b) - jaxiou.diou(a, b)
    wanted = np.clip(overlap / 0.5, 0, 1) - penalty
    np.testing.assert_allclose(made(a, b), wanted, atol=3e-7)
    assert repr(made) == (
        "focaler(base=inner_iou(base=diou, ratio=0.75), lower=0.0, upper=0.5)"
    )


def test_flags_are_those_of_the_base():
    shape, image = jaxiou.shape_iou(scale=1), jaxiou.mpdiou(image_size=(9, 9))
    assert not jaxiou.focaler(base=shape).symmetric
    assert not jaxiou.inner_iou(ratio=0.8, base=image).scale_free
    assert jaxiou.inner_iou(ratio=0.8, base=jaxiou.eiou).minimum == -2.25


@jaxiou.measure
def one_number(a, b):
    return jnp.abs(a[0] - b[0])


REFUSED = [
    (lambda: jaxiou.alpha_iou(base=one_number), "alpha_iou: `base` is one_number"),
    (lambda: jaxiou.inner_iou(0.7, base=jaxiou.wiou), "inner_iou: `base` is wiou"),
    (lambda: jaxiou.focaler(base=jaxiou.bounded_iou), "focaler: `base` is bounded"),
    (
        lambda: jaxiou.alpha_iou(base=jaxiou.mpdiou(image_size=(4, 4))),
        "alpha_iou: .*have no bound",
    ),
    (
        lambda: jaxiou.inner_iou(0.7, base=jaxiou.focaler()),
        r"inner_iou: .*put inner_iou inside, as in `focaler\(base=inner_iou",
    ),
    (lambda: jaxiou.alpha_iou(alpha=0), r"alpha_iou: `alpha` is 0.0, wanted"),
    (lambda: jaxiou.inner_iou(ratio=-1), r"inner_iou: `ratio` is -1.0, wanted"),
    (lambda: jaxiou.focaler(lower=0.5, upper=0.5), r"focaler: `upper` is 0.5, wanted"),
    (lambda: jaxiou.focaler(lower=-0.1), r"focaler: `lower` is -0.1, wanted"),
    (lambda: jaxiou.smooth_iou(point=0), r"smooth_iou: `point` is 0.0, wanted"),
    (lambda: jaxiou.mpdiou(image_size=(640,)), r"mpdiou: `image_size` is \(640.0,\)"),
    (lambda: jaxiou.mpdiou(image_size=640), r"mpdiou: `image_size` is 640.0, wanted"),
    (lambda: jaxiou.mpdiou(image_size=(0, 4)), r"mpdiou: `image_size` is 0.0, wanted"),
    (lambda: jaxiou.shape_iou(scale=-1), r"shape_iou: `scale` is -1.0, wanted"),
    (lambda: jaxiou.piou_v2(attention=0), r"piou_v2: `attention` is 0.0, wanted"),
    (lambda: jaxiou.gated_ciou(gate=2), r"gated_ciou: `gate` is 2.0, wanted"),
    (lambda: jaxiou.alpha_iou(alpha=float("nan")), r"alpha_iou: `alpha` is nan"),
    (lambda: jaxiou.alpha_iou(alpha="3"), r"alpha_iou: `alpha` is '3', wanted"),
]


@pytest.mark.parametrize("make,message", REFUSED)
def test_parameters_without_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=rf"^jaxiou\.{message}"):
        make()


def test_a_base_that_is_no_measure_is_refused():
    for wrong in ("diou", lambda a, b: a, jaxiou.shape_iou):
        with pytest.raises(TypeError, match=r"jaxiou\.alpha_iou: `base` is"):
            jaxiou.alpha_iou(base=wrong)
    with pytest.raises(TypeError, match="image_size"):
        jaxiou.mpdiou()


def test_equal_parameters_are_equal_measures():
    assert jaxiou.mpdiou(image_size=[640, 480]) == jaxiou.mpdiou((640.0, 480.0))
    assert jaxiou.alpha_iou() == jaxiou.alpha_iou(alpha=3, base=jaxiou.iou)
    assert jaxiou.alpha_iou(alpha=3) != jaxiou.alpha_iou(alpha=3, base=jaxiou.diou)
    assert hash(jaxiou.inner_iou(ratio=1)) == hash(jaxiou.inner_iou(1.0))


@jaxiou.measure(minimum=-1.0)
def hulls(a, b):
    """A measure of two lines that returns terms: everything else is derived."""
    wide = jnp.maximum(a[2], b[2]) - jnp.minimum(a[0], b[0])
    return jnp.minimum(a[2] - a[0], b[2] - b[0]) / wide, jnp.abs(a[1] - b[1]) / 100


def test_a_measure_of_two_lines_gets_everything():
    a, b = stacked(TELL_APART)
    wide = np.maximum.outer(a[:, 2], b[:, 2]) - np.minimum.outer(a[:, 0], b[:, 0])
    shared = np.minimum.outer(a[:, 2] - a[:, 0], b[:, 2] - b[:, 0]) / wide
    matrix = shared - np.abs(np.subtract.outer(a[:, 1], b[:, 1])) / 100
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(hulls(a, b), matrix.diagonal())
    close(jaxiou.pairwise(a, b, measure=hulls), matrix)
    close(jaxiou.box_loss(a, b, measure=hulls), 1 - matrix.diagonal())
    best = jaxiou.best_match(a, b, measure=hulls)
    np.testing.assert_array_equal(best.indices1, matrix.argmax(1))
    gradient = jax.grad(lambda a: jaxiou.box_loss(a, b, measure=hulls).sum())(a)
    close(gradient[:, 1], np.sign(a[:, 1] - b[:, 1]) / 100)
    kept = jaxiou.nms(a, np.arange(6.0), threshold=0.6, max_outputs=6, measure=hulls)
    square = np.minimum.outer(a[:, 2] - a[:, 0], a[:, 2] - a[:, 0])
    hull = np.maximum.outer(a[:, 2], a[:, 2]) - np.minimum.outer(a[:, 0], a[:, 0])
    own = square / hull - np.abs(np.subtract.outer(a[:, 1], a[:, 1])) / 100
    lookup = {tuple(box): k for k, box in enumerate(a.tolist())}
    wanted = oracle.nms(
        a,
        np.arange(6),
        0.6,
        measure=lambda x, y: own[lookup[tuple(x)], lookup[tuple(y)]],
    )
    assert [int(i) for i in kept.indices if i >= 0] == wanted
    # Its terms are at the disposal of the combinators.
    cubed = jaxiou.alpha_iou(alpha=3, base=hulls)
    close(cubed(a, b), shared.diagonal() ** 3 - (np.abs(a[:, 1] - b[:, 1]) / 100) ** 3)
