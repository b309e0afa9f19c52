"""The matrix and the best partners: against loops, at every size, in little memory."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import DEGENERATE, TELL_APART, random_boxes, stacked

import jaxiou
from benchmarks.workloads import WORKLOADS
from jaxiou.kernels import xla

MEASURES = [jaxiou.iou, jaxiou.iof, jaxiou.giou, jaxiou.diou, jaxiou.ciou]
every = pytest.mark.parametrize("measure", MEASURES, ids=repr)
# The machinery knows of a measure no more than its formula: what is a property of the
# machinery is tried with the plainest measure and the one of the most terms.
some = pytest.mark.parametrize("measure", [jaxiou.iou, jaxiou.ciou], ids=repr)
SIZES = [(1, 1), (1, 7), (13, 1), (17, 5), (32, 8), (33, 9)]


def sized(*names, sizes, usual):
    """One measure at every size, and every measure at the usual one."""
    cases = [(jaxiou.giou, *size) for size in sizes]
    cases += [(measure, *usual) for measure in MEASURES if measure is not jaxiou.giou]
    return pytest.mark.parametrize(("measure", *names), cases)


every_size = sized("n", "m", sizes=SIZES, usual=(17, 5))


def of(function, measure, **options):
    """A fresh jitted function, without what was compiled for another block size."""
    return jax.jit(functools.partial(function, measure=measure, **options))


def integer_boxes(seed, *shape):
    """Few different boxes, so that there are ties, identical and touching ones."""
    rng = np.random.default_rng(seed)
    corner, size = rng.integers(0, 4, (*shape, 2)), rng.integers(0, 4, (*shape, 2))
    return np.concatenate([corner, corner + size], -1).astype(np.float32)


@pytest.fixture(params=[1 << 16, 64, 1], ids=["one block", "blocks", "single rows"])
def block(request, monkeypatch):
    monkeypatch.setattr(xla, "_BLOCK", request.param)


# pairwise


@every_size
def test_is_every_pair_of_a_loop(measure, n, m):
    a, b = random_boxes(1, n, extent=30), random_boxes(2, m, extent=30)
    found = jaxiou.pairwise(a, b, measure=measure)
    assert found.shape == (n, m)
    rows = [[measure(x, y) for y in b] for x in a[:4]]
    np.testing.assert_allclose(found[:4], rows, atol=5e-7)
    wanted = oracle.matrix(getattr(oracle, measure.name), a, b)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(of(jaxiou.pairwise, measure)(a, b), found, atol=5e-7)


@pytest.mark.parametrize("n,m", [(0, 3), (3, 0), (0, 0)])
def test_a_set_may_be_empty(n, m):
    a, b = np.zeros((2, n, 4), np.float32), np.zeros((2, m, 4), np.float32)
    assert jaxiou.pairwise(a, b).shape == (2, n, m)
    gradient = jax.grad(lambda a, b: jaxiou.pairwise(a, b).sum(), (0, 1))(a, b)
    assert [g.shape for g in gradient] == [a.shape, b.shape]
    best = jaxiou.best_match(a, b)
    assert [x.shape for x in best] == [(2, n), (2, n), (2, m), (2, m)]
    assert np.all(best.indices1 == -1) and np.all(best.values2 == -np.inf)
    assert jaxiou.pairwise([], b[0]).shape == (0, m)


@every
def test_leading_axes_broadcast(measure):
    a, b = random_boxes(1, 3, 1, 6, extent=20), random_boxes(2, 2, 5, extent=20)
    found = jaxiou.pairwise(a, b, measure=measure)
    assert found.shape == (3, 2, 6, 5)
    wanted = measure(a[..., :, None, :], b[..., None, :, :])
    np.testing.assert_allclose(found, wanted, atol=5e-7)
    mapped = jax.vmap(lambda a: of(jaxiou.pairwise, measure)(a[0], b[1]))(a)
    np.testing.assert_allclose(mapped, found[:, 1], atol=5e-7)

    def dense(a, b):
        return measure(a[..., :, None, :], b[..., None, :, :])

    found, wanted = (
        jax.grad(lambda a, b, f=f: jnp.sum(jnp.sin(f(a, b))), (0, 1))(a, b)
        for f in (functools.partial(jaxiou.pairwise, measure=measure), dense)
    )
    for g, w in zip(found, wanted, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)


@some
def test_masks_leave_rows_and_columns_out(measure, block):
    a, b = random_boxes(1, 19, extent=20), random_boxes(2, 6, extent=20)
    where1, where2 = np.arange(19) % 3 != 1, np.arange(6) != 2
    keep = where1[:, None] & where2
    weights = np.random.default_rng(0).normal(size=keep.shape).astype(np.float32)

    def total(a, b):
        values = jaxiou.pairwise(a, b, measure=measure, where1=where1, where2=where2)
        return jnp.sum(values * weights), values

    results = []
    compiled = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    for filling in (0.0, np.nan, np.inf, -3e38, 1e-30):
        x, y = a.copy(), b.copy()
        x[~where1], y[~where2] = filling, filling
        results.append(jax.tree.leaves(compiled(x, y)))
    grad1, grad2, values = results[0]
    np.testing.assert_array_equal(grad1[~where1], 0)
    np.testing.assert_array_equal(grad2[~where2], 0)
    plain = jaxiou.pairwise(a, b, measure=measure)
    np.testing.assert_allclose(values, np.where(keep, plain, 0), atol=5e-7)
    np.testing.assert_array_equal(np.asarray(values)[~keep], 0)
    for other in results[1:]:
        for x, y in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(
                np.asarray(x).view(np.int32), np.asarray(y).view(np.int32)
            )


@sized("n", sizes=[(5,), (17,), (24,), (32,)], usual=(17,))
def test_the_gradient_by_blocks_is_that_of_the_plain_matrix(
    measure, n, x64, monkeypatch
):
    monkeypatch.setattr(xla, "_BLOCK", 64)  # 8 rows of 8
    a, b = (random_boxes(k, s, extent=9, dtype=float) for k, s in ((1, n), (2, 8)))
    cotangent = np.random.default_rng(0).normal(size=(n, 8))
    found, wanted = (
        jax.jit(lambda a, b, c, m=m: jax.vjp(of(jaxiou.pairwise, m), a, b)[1](c))(
            a, b, cotangent
        )
        for m in (measure, measure.plain)
    )
    for g, w in zip(found, wanted, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "measure,n", [*[(jaxiou.giou, n) for n in (5, 17, 24)], (jaxiou.ciou, 17)]
)
def test_second_order_by_blocks(measure, n, x64, monkeypatch):
    monkeypatch.setattr(xla, "_BLOCK", 64)
    a, b = (random_boxes(k, s, extent=9, dtype=float) for k, s in ((1, n), (2, 8)))
    weights = np.random.default_rng(0).normal(size=(n, 8))

    def second(m):
        matrix = of(jaxiou.pairwise, m)
        first = jax.grad(lambda a, b: jnp.sum(matrix(a, b) ** 2 * weights), (0, 1))
        scalar = lambda a, b: sum(jnp.sum(jnp.sin(g)) for g in first(a, b))  # noqa: E731
        return jax.jit(jax.grad(scalar, (0, 1)))(a, b)

    for g, w in zip(second(measure), second(measure.plain), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-11)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="how a CPU is served")
def test_what_the_gradients_share_is_computed_by_one_loop():
    n, m = 150, 1024

    def pullback(a, b, cotangent):
        return jax.vjp(of(jaxiou.pairwise, jaxiou.rotated_iou), a, b)[1](cotangent)

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, 5), (m, 5), (n, m))]
    program = jax.jit(pullback).lower(*shapes).compile().as_text()
    plane = r"f32\[1,16,1024\]\S*"
    assert re.search(rf"= \({plane}( /\*index=5\*/)?.* fusion\(", program)
    # Divisions have loops of their own. Left to XLA there would be thirty.
    assert len(re.findall(rf"= {plane} fusion\(", program)) <= 8


@every
def test_the_gradient_of_degenerate_boxes_is_finite(measure, block):
    a, b = stacked(DEGENERATE)
    total = lambda a, b: jnp.sum(jaxiou.pairwise(a, b, measure=measure))  # noqa: E731
    for g in jax.jit(jax.grad(total, (0, 1)))(a, b):
        assert np.isfinite(g).all()


def temporary(function, *shapes):
    """Bytes of temporary memory of a compiled function of boxes; nothing is run."""
    boxes = [jax.ShapeDtypeStruct((s, 4), jnp.float32) for s in shapes]
    return (
        jax.jit(function).lower(*boxes).compile().memory_analysis().temp_size_in_bytes
    )


@sized("less", sizes=[(0,), (37,)], usual=(37,))
def test_the_gradient_stores_no_matrix(measure, less):
    n, m = WORKLOADS["long"]
    n -= less

    def pullback(a, b, cotangent):
        return jax.vjp(of(jaxiou.pairwise, measure), a, b)[1](cotangent)

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, 4), (m, 4), (n, m))]
    compiled = jax.jit(pullback).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * n * m * 4


# best_match


def best_of(matrix, where1, where2):
    """Maximum and first argmax of a matrix over both axes, -inf and -1 for none."""
    keep = where1[:, None] & where2[None, :] & ~np.isnan(matrix)
    matrix = np.where(keep, matrix, -np.inf)
    return [
        x
        for axis in (1, 0)
        for x in (
            matrix.max(axis),
            np.where(matrix.max(axis) > -np.inf, matrix.argmax(axis), -1),
        )
    ]


@every_size
def test_best_match_is_maximum_and_argmax(measure, n, m, block):
    a, b = random_boxes(1, n, extent=30), random_boxes(2, m, extent=30)
    rng = np.random.default_rng(3)
    where1, where2 = rng.random(n) < 0.8, rng.random(m) < 0.8
    for masks in ({}, {"where1": where1, "where2": where2}):
        found = of(jaxiou.best_match, measure)(a, b, **masks)
        matrix = oracle.matrix(getattr(oracle, measure.name), a, b)
        full = np.ones(n, bool), np.ones(m, bool)
        wanted = best_of(matrix, *(masks.values() if masks else full))
        for k in (0, 2):
            np.testing.assert_allclose(found[k], wanted[k], atol=1e-6)
        for k in (1, 3):
            assert found[k].dtype == jnp.int32
        # Disjoint boxes tie in IoU, contained ones in IoF: the index is certain only
        # where the best is clearly better than the second.
        for axis, k in ((1, 1), (0, 3)):
            wide = np.moveaxis(matrix, axis, 1)
            if masks:
                wide = np.where(where2 if axis else where1, wide, -np.inf)
            padded = np.pad(np.sort(wide), ((0, 0), (1, 0)), constant_values=-np.inf)
            with np.errstate(invalid="ignore"):
                clear = padded[:, -1] - padded[:, -2] > 1e-5
            np.testing.assert_array_equal(np.asarray(found[k])[clear], wanted[k][clear])


@pytest.mark.parametrize("measure", MEASURES[:3], ids=repr)
@pytest.mark.parametrize("n,m", [*SIZES, (150, 40)])
def test_ties_go_to_the_lowest_index(measure, n, m, block):
    a, b = integer_boxes(1, n), integer_boxes(2, m)
    found = of(jaxiou.best_match, measure)(a, b)
    # Small integers: equal fractions are equal numbers, whatever the compiler does.
    matrix = oracle.matrix(getattr(oracle, measure.name), a, b).astype(np.float32)
    if measure is jaxiou.giou:
        matrix = np.asarray(of(jaxiou.pairwise, measure)(a, b))
    wanted = best_of(matrix, np.ones(n, bool), np.ones(m, bool))
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-7)


def same_in_two_programs(found, wanted):
    """Equal indices, values to 4 ulp of their terms, which are up to 1 (float32)."""
    exact = np.issubdtype(found.dtype, np.integer)
    tolerance = 0 if exact else 4 * np.finfo(np.float32).eps
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


@every
def test_nan_never_matches(measure, block):
    a, b = random_boxes(1, 9, extent=5), random_boxes(2, 4, extent=5)
    b[3] = b[3, 0]  # a point
    a[2, 1] = a[5] = b[1, 3] = np.nan
    found = of(jaxiou.best_match, measure)(a, b)
    assert found.indices1[2] == found.indices1[5] == found.indices2[1] == -1
    assert found.values1[2] == found.values2[1] == -np.inf
    keep1, keep2 = np.isfinite(a).all(1), np.isfinite(b).all(1)
    masked = of(jaxiou.best_match, measure)(a, b, where1=keep1, where2=keep2)
    for x, y in zip(found, masked, strict=True):
        same_in_two_programs(x, y)


def test_without_a_partner_there_is_no_index(block):
    a, b = random_boxes(1, 9), random_boxes(2, 4)
    for masks in ({"where1": np.zeros(9, bool)}, {"where2": np.zeros(4, bool)}):
        found = jaxiou.best_match(a, b, **masks)
        for k in (0, 2):
            np.testing.assert_array_equal(found[k], -np.inf)
            np.testing.assert_array_equal(found[k + 1], -1)


@some
def test_a_batch_is_a_vmap(measure, block):
    a, b = random_boxes(1, 3, 1, 17, extent=20), random_boxes(2, 2, 5, extent=20)
    where = np.random.default_rng(0).random((3, 2, 17)) < 0.7
    found = of(jaxiou.best_match, measure)(a, b, where1=where)
    assert found.indices1.shape == (3, 2, 17) and found.values2.shape == (3, 2, 5)
    one = of(jaxiou.best_match, measure)
    mapped = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(a[:, 0], b)
    unmasked = of(jaxiou.best_match, measure)(a, b)
    for x, y in zip(mapped, unmasked, strict=True):
        same_in_two_programs(x, y)
    for i, j in np.ndindex(3, 2):
        alone = one(a[i, 0], b[j], where1=where[i, j])
        for x, y in zip(found, alone, strict=True):
            same_in_two_programs(x[i, j], y)


@every
@pytest.mark.parametrize("workload", ["dense", "long", "lopsided"])
def test_best_match_writes_no_matrix(measure, workload):
    n, m = WORKLOADS[workload]
    used = temporary(of(jaxiou.best_match, measure), n, m)
    assert used < 0.1 * n * m * 4
    assert used < 64 * (n + m) + 8 * 4 * xla._BLOCK


@pytest.mark.parametrize("lift", [lambda f: f, jax.vmap], ids=["batch", "vmap"])
def test_a_batch_of_crowded_images_needs_the_memory_of_one(lift):
    sides = [jax.ShapeDtypeStruct((128, s, 4), jnp.float32) for s in (8400, 4967)]
    compiled = jax.jit(lift(jaxiou.best_match)).lower(*sides).compile()
    # 21 GB as matrices; the results alone are 14 MB.
    assert compiled.memory_analysis().temp_size_in_bytes < 50e6


@pytest.mark.parametrize("function", [jaxiou.pairwise, jaxiou.best_match])
def test_one_compilation_serves_every_count(function):
    traces = []

    @jax.jit
    def counted(a, b, where1, where2):
        traces.append(a)
        return function(a, b, where1=where1, where2=where2)

    a, b = random_boxes(1, 12, extent=9), random_boxes(2, 5, extent=9)
    for n, m in [(12, 5), (7, 0), (0, 3), (1, 1)]:
        found = counted(a, b, np.arange(12) < n, np.arange(5) < m)
        if function is jaxiou.best_match:
            exact = function(a[:n], b[:m])
            np.testing.assert_array_equal(found.indices1[:n], exact.indices1)
            np.testing.assert_array_equal(found.indices2[:m], exact.indices2)
            np.testing.assert_array_equal(found.indices1[n:], -1)
    assert len(traces) == 1


def test_masked_slots_change_no_bit_of_the_best_match(block):
    a, b = random_boxes(1, 30, extent=9), random_boxes(2, 7, extent=9)
    where1, where2 = np.arange(30) < 21, np.arange(7) < 4
    compiled = of(jaxiou.best_match, jaxiou.giou)
    results = []
    for filling in (0.0, np.nan, np.inf, 3e38, a[0]):
        a[21:], b[4:] = filling, filling
        results.append(compiled(a, b, where1=where1, where2=where2))
    for other in results[1:]:
        for x, y in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "float32"])
def test_best_values_come_in_the_arithmetic_dtype(dtype):
    a, b = (jnp.asarray(x, dtype) for x in stacked(TELL_APART))
    found = jaxiou.best_match(a, b)
    assert found.values1.dtype == found.values2.dtype == jnp.float32
    wanted = jaxiou.best_match(*(x.astype(jnp.float32) for x in (a, b)))
    np.testing.assert_array_equal(found.values1, wanted.values1)


def test_best_match_carries_no_gradient():
    a, b = (jnp.asarray(x) for x in stacked(TELL_APART))
    total = lambda a, b: jaxiou.best_match(a, b).values1.sum()  # noqa: E731
    for g in jax.jit(jax.grad(total, (0, 1)))(a, b):
        np.testing.assert_array_equal(g, 0)


@pytest.mark.parametrize("function", [jaxiou.pairwise, jaxiou.best_match])
def test_an_unknown_implementation_is_an_error(function):
    boxes = np.zeros((2, 4), np.float32)
    assert function(boxes, boxes, implementation="xla") is not None
    with pytest.raises(ValueError, match=r"jaxiou\.\w+: `implementation` is 'cuda'"):
        function(boxes, boxes, implementation="cuda")
