"""Every property of every measure of boxes that are not xyxy.

The list drives the tests, as in test_measures.py. Compiling is what costs: the value
and gradient of a measure are compiled once per dtype, for `POOL` pairs, and every
property is read off that program.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle_turned
import pytest
from test_measures import assert_ulps
from turning import TURNED, boxes, degenerate, scaled, sides_of

import jaxiou

# Many compilations; the measures of `test_measures.py` stand for these elsewhere.
pytestmark = pytest.mark.slow

POOL = 1024
DISTANCES = [
    jaxiou.gwd_distance,
    jaxiou.kld_distance,
    jaxiou.jeffreys_distance,
    jaxiou.bhattacharyya_distance,
]
MEASURES = [
    jaxiou.rotated_iou,
    jaxiou.rotated_iof,
    jaxiou.rotated_giou,
    jaxiou.rotated_diou,
    jaxiou.nwd(12.8),
    jaxiou.rotated_nwd(12.8),
    jaxiou.probiou,
    jaxiou.kfiou,
    jaxiou.kfiou_raw,
    jaxiou.mgiou,
    jaxiou.similarity(jaxiou.gwd_distance, tau=2.0),
    jaxiou.similarity(jaxiou.kld_distance, log=True),
    jaxiou.similarity(jaxiou.jeffreys_distance, root=True),
    jaxiou.similarity(jaxiou.bhattacharyya_distance, root=True, log=True),
    jaxiou.interval_iou,
    jaxiou.iou_3d,
    jaxiou.giou_3d,
    jaxiou.diou_3d,
    jaxiou.yaw_iou_3d,
    jaxiou.yaw_giou_3d,
    jaxiou.bev_iou,
]
every = pytest.mark.parametrize("measure", MEASURES, ids=repr)
# What is a property of the machinery is tried on one measure of every kind.
one_of_each = pytest.mark.parametrize(
    "measure",
    [jaxiou.rotated_iou, jaxiou.probiou, jaxiou.giou_3d, jaxiou.interval_iou],
    ids=repr,
)


def gradients(function):
    return jax.grad(lambda a, b: jnp.sum(function(a, b)), argnums=(0, 1))


@functools.cache
def compiled(measure):
    """Value and gradients, `(a, b) -> (value, grad_a, grad_b)`, compiled per dtype."""
    return jax.jit(lambda a, b: (measure(a, b), *gradients(measure)(a, b)))


def evaluate(measure, a, b):
    """Value and gradients of up to `POOL` pairs."""
    n = len(a)
    pad = lambda x: np.concatenate([x, np.ones((POOL - n, x.shape[1]), x.dtype)])  # noqa: E731
    return tuple(np.asarray(x)[:n] for x in compiled(measure)(pad(a), pad(b)))


def angles_of(measure):
    """Which of the coordinates is an angle."""
    return measure.coordinates - 1 if measure.coordinates in (5, 7) else None


def expected(measure):
    """The oracle of a measure; of a similarity, that of its distance."""
    if measure.name != "similarity":
        return getattr(oracle_turned, measure.name)
    options = dict(measure.parameters)
    distance = getattr(oracle_turned, options["distance"].name)

    def value(a, b):
        d = max(distance(a, b), 0.0)
        d = np.sqrt(d) if options["root_first"] else d
        d = np.log1p(d) if options["log"] else d
        return options["tau"] / (options["tau"] + d)

    return value


def generic(measure, seed, n, dtype=np.float64):
    """Overlapping and disjoint pairs without any tie."""
    a, b = (boxes(measure.coordinates, seed + k, n, dtype=dtype) for k in (0, 1))
    half = n // 2
    # Half of the pairs near each other, as predictions are near their targets.
    rng = np.random.default_rng(seed)
    b[:half] = a[:half] + rng.normal(size=b[:half].shape) * 0.1
    return a, b


@every
def test_equals_the_oracle(measure, x64):
    a, b = generic(measure, 1, 300)
    oracle = expected(measure)
    wanted = [oracle(p, q) for p, q in zip(a, b, strict=True)]
    found = evaluate(measure, a, b)[0]
    # 1e-9 where matrices are rooted and inverted in the oracle, not where it clips.
    exact = measure.name.startswith(("rotated_i", "rotated_g", "rotated_d", "mg"))
    exact |= measure.coordinates not in (4, 5)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 if exact else 1e-7)
    a, b = a.astype(np.float32), b.astype(np.float32)
    wanted = evaluate(measure, a.astype(np.float64), b.astype(np.float64))[0]
    np.testing.assert_allclose(evaluate(measure, a, b)[0], wanted, rtol=0, atol=1e-6)


@every
def test_a_box_with_itself_has_the_maximum_at_any_scale(measure):
    a = boxes(measure.coordinates, 3, 70, dtype=np.float32)
    every_scale = [scaled(a, np.float32(10.0**k)) for k in range(-6, 7)]
    found = evaluate(measure, *[np.concatenate(every_scale)] * 2)[0]
    assert_ulps(found, np.full(len(found), measure.maximum), 2)


@every
def test_range_symmetry_and_finite_gradients(measure):
    rng = np.random.default_rng(0)
    k = measure.coordinates
    chaos = rng.normal(size=(2, 300, k)) * 10 ** rng.uniform(-6, 6, (2, 300, 1))
    a, b = degenerate(k)
    pairs = [chaos, (a, b), generic(measure, 5, 200)]
    for factor in (1e-38, 1e-30, 1e-20, 1e20, 1e30):
        pairs.append((scaled(a, factor), b))
        pairs.append((scaled(a, factor), scaled(b, factor)))
    biggest = float(np.finfo(np.float32).max)
    a, b = (
        np.clip(np.concatenate(x), -biggest, biggest).astype(np.float32)
        for x in zip(*pairs, strict=True)
    )
    results = evaluate(measure, a, b)
    back = evaluate(measure, b, a)
    for result in (*results, *back):
        finite = np.isfinite(result).reshape(len(a), -1).all(axis=1)
        assert finite.all(), (a[~finite][:3], b[~finite][:3])
    for value in (results[0], back[0]):
        assert value.min() >= measure.minimum
        assert value.max() <= np.float32(measure.maximum)
    a, b = (x.astype(np.float32) for x in generic(measure, 7, 400))
    one, other = evaluate(measure, a, b)[0], evaluate(measure, b, a)[0]
    if measure.symmetric:
        # The frames of both boxes round differently.
        assert_ulps(one, other, 12)
    else:
        assert np.abs(one - other).max() > 0.01


@every
def test_scale_freedom_is_as_claimed(measure):
    a, b = (x.astype(np.float32) for x in generic(measure, 9, 200))
    wanted = evaluate(measure, a, b)[0]
    for exponent in (-30, -3, 5, 30):
        factor = np.float32(2.0**exponent)
        found = evaluate(measure, scaled(a, factor), scaled(b, factor))[0]
        assert (np.abs(found - wanted).max() <= 1e-6) == measure.scale_free


@every
def test_gradients_agree_with_finite_differences(measure, x64):
    a, b = generic(measure, 11, 30)
    k = measure.coordinates
    _, *found = evaluate(measure, a, b)
    steps = 1e-6 * np.concatenate([np.eye(2 * k), -np.eye(2 * k)])
    pairs = np.concatenate([a, b], axis=1)
    moved = (pairs[:, None] + steps).reshape(-1, 2 * k)
    values = np.concatenate(
        [evaluate(measure, p[:, :k], p[:, k:])[0] for p in np.array_split(moved, 2)]
    ).reshape(len(a), 2, 2 * k)
    wanted = (values[:, 0] - values[:, 1]) / 2e-6
    # Rounding of differences, 1e-16 / 1e-6, and what of the third derivative is left.
    np.testing.assert_allclose(np.concatenate(found, axis=1), wanted, atol=2e-8)


@one_of_each
def test_derivatives_of_the_gradient(measure, x64):
    """Reverse over reverse, and forward over reverse of the plain form."""
    a, b = generic(measure, 13, 20)
    direction = np.random.default_rng(1).normal(size=a.shape)

    def slope(function):
        return lambda a: jnp.sum(gradients(function)(a, b)[0] * direction)

    found = jax.jit(jax.grad(slope(measure)))(a)
    plain = lambda a: gradients(measure.plain)(a, b)[0]  # noqa: E731
    forward = jax.jit(lambda a: jax.jvp(plain, (a,), (direction,)))
    first, along = forward(a)
    np.testing.assert_allclose(first, evaluate(measure, a, b)[1], atol=1e-12)
    np.testing.assert_allclose(found, along, atol=1e-10)
    step = 1e-6 * direction
    ends = [evaluate(measure, a + s, b)[1] for s in (step, -step)]
    np.testing.assert_allclose(along, (ends[0] - ends[1]) / 2e-6, atol=2e-7)


@one_of_each
def test_is_the_diagonal_of_the_matrix_with_its_gradient(measure):
    a, b = (x.astype(np.float32) for x in generic(measure, 15, 40))

    def diagonal(a, b):
        return jnp.diagonal(jaxiou.pairwise(a, b, measure=measure))

    value, *found = jax.jit(lambda a, b: (diagonal(a, b), *gradients(diagonal)(a, b)))(
        a, b
    )
    wanted, *slopes = evaluate(measure, a, b)
    assert_ulps(value, wanted, 8)
    size = 1 / np.minimum(sides_of(a).min(axis=1), sides_of(b).min(axis=1))[:, None]
    for g, w in zip(found, slopes, strict=True):
        # Angles move corners by half a diagonal, up to 14 short sides here.
        assert_ulps(g, w, 32, scale=np.maximum(size, 1))


@one_of_each
def test_half_precision_and_vmap(measure):
    a, b = generic(measure, 17, 50)
    lists = degenerate(measure.coordinates)
    pairs = [np.concatenate(x) for x in zip((a, b), lists, strict=True)]
    limit = float(jnp.finfo(jnp.float16).max)
    a, b = (jnp.asarray(np.clip(x, -limit, limit), jnp.float16) for x in pairs)
    mapped = jax.vmap(jax.value_and_grad(measure, argnums=(0, 1)))
    value, slopes = jax.jit(mapped)(a, b)
    assert value.dtype == jnp.float16
    wide = (np.asarray(x, np.float32) for x in (a, b))
    wanted = evaluate(measure, *wide)[0]
    np.testing.assert_allclose(np.asarray(value, np.float32), wanted, atol=1e-3)
    for g in (value, *slopes):
        assert g.dtype == jnp.float16
        assert np.isfinite(np.asarray(g, np.float32)).all()


@every
def test_nan_propagates(measure):
    k = measure.coordinates
    a, b = (x.astype(np.float32) for x in generic(measure, 19, k))
    broken = a.copy()
    broken[np.arange(k), np.arange(k)] = np.nan
    # KFIoU does not look at centres, nor a view from above at heights.
    unseen = {"kfiou": [0, 1], "kfiou_raw": [0, 1], "bev_iou": [2, 5]}
    seen = np.ones(k, bool)
    seen[unseen.get(measure.name, [])] = False
    for value in (evaluate(measure, broken, b)[0], evaluate(measure, b, broken)[0]):
        np.testing.assert_array_equal(np.isnan(value), seen)


@every
def test_wrong_boxes_are_refused_by_name(measure):
    k = measure.coordinates
    right, wrong = np.zeros((2, k), np.float32), np.zeros((2, k + 1), np.float32)
    start = rf"^jaxiou\.{measure.name}: "
    with pytest.raises(
        ValueError, match=rf"{start}`boxes2` has shape .*{k}\) boxes \("
    ):
        measure(right, wrong)
    with pytest.raises(TypeError, match=f"{start}`boxes1` has dtype bool"):
        measure(right > 0, right)
    with pytest.raises(ValueError, match=f"{start}.*do not broadcast"):
        measure(np.zeros((2, 3, k)), np.zeros((5, 3, k)))


@pytest.mark.parametrize("distance", DISTANCES, ids=repr)
def test_a_distance_is_no_measure(distance):
    a, b = (x.astype(np.float32) for x in generic(distance.values, 21, 6))
    for use in (
        lambda: jaxiou.pairwise(a, b, measure=distance),
        lambda: jaxiou.best_match(a, b, measure=distance),
        lambda: jaxiou.box_loss(a, b, measure=distance),
    ):
        with pytest.raises(TypeError, match=r"`jaxiou\.similarity"):
            use()
    with pytest.raises(TypeError, match="wanted a distance"):
        jaxiou.similarity(jaxiou.rotated_iou)
    with pytest.raises(ValueError, match="`tau` is 0"):
        jaxiou.similarity(distance, tau=0)
    assert jaxiou.similarity(distance, tau=2) == jaxiou.similarity(distance, tau=2.0)
    assert jaxiou.similarity(distance).name == "similarity"
    assert jaxiou.similarity(distance.plain) == jaxiou.similarity(distance).plain


@pytest.mark.parametrize("distance", DISTANCES, ids=repr)
def test_distances_equal_the_oracle_and_are_finite(distance, x64):
    a, b = generic(distance.values, 23, 100)
    oracle = getattr(oracle_turned, distance.values.name)
    wanted = [oracle(p, q) for p, q in zip(a, b, strict=True)]
    found = evaluate(distance.values, a, b)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-9)
    a, b = (x.astype(np.float32) for x in degenerate(5))
    for factor in (1e-30, 1e-12, 1.0, 1e12, 1e30):
        with np.errstate(over="ignore"):
            pair = [np.clip(scaled(x, np.float32(factor)), -3e38, 3e38) for x in (a, b)]
        for result in evaluate(distance.values, *pair):
            finite = np.isfinite(result).reshape(len(a), -1).all(axis=1)
            assert finite.all(), (factor, np.array([*TURNED])[~finite])
