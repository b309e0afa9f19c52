"""Assigners against loops over targets, and what all of them promise."""

import functools

import assigning
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiou
from jaxiou import _top

N, M, CLASSES, LEVELS = 60, 7, 3, (35, 20, 5)


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Several blocks of anchors and of targets, the last of both early."""
    before = _top._COLUMNS, _top._PAIRS
    _top._COLUMNS, _top._PAIRS = 3, 48
    yield
    _top._COLUMNS, _top._PAIRS = before


@functools.cache
def compiled(name):
    function = getattr(jaxiou, name)
    if name == "match_atss":
        return jax.jit(
            lambda x, *, topk, **masks: function(
                x["boxes"], x["targets"], level_sizes=LEVELS, topk=topk, **masks
            ),
            static_argnames="topk",
        )

    def match(x, *, topk, **masks):
        arguments = (x[k] for k in ("scores", "boxes", "points", "labels", "targets"))
        extra = {"strides": x["strides"]} if name == "match_simota" else {}
        return function(*arguments, topk=topk, **extra, **masks)

    return jax.jit(match, static_argnames="topk")


def assign(name, x, where=True, where_anchors=True, topk=4):
    masks = np.broadcast_to(where, M), np.broadcast_to(where_anchors, N)
    return compiled(name)(x, topk=topk, where=masks[0], where_anchors=masks[1])


def scene(seed, integer=False):
    """Predictions round points on a grid of three levels, and targets."""
    rng = np.random.default_rng(seed)
    strides = np.repeat([4, 8, 16], LEVELS).astype("f4")
    grids = [(5, 7), (4, 5), (1, 5)]
    points = np.concatenate(
        [
            (np.stack(np.mgrid[:r, :c][::-1], -1).reshape(-1, 2) + 0.5) * s
            for (r, c), s in zip(grids, (4, 8, 16), strict=True)
        ]
    )
    sides = rng.uniform(0.6, 1.8, (N, 4)) * strides[:, None]
    boxes = np.concatenate([points - sides[:, :2], points + sides[:, 2:]], 1)
    corner, size = rng.uniform(0, 16, (M, 2)), rng.uniform(3, 20, (M, 2))
    targets = np.concatenate([corner, corner + size], 1)
    scores = rng.uniform(0.05, 0.95, (N, CLASSES))
    if integer:
        boxes, targets = np.round(boxes / 4) * 4, np.round(targets / 4) * 4
        targets[:, 2:] = np.maximum(targets[:, 2:], targets[:, :2] + 4)
        scores = np.round(scores * 4) / 4
    return {
        "boxes": boxes.astype("f4"),
        "targets": targets.astype("f4"),
        "points": points.astype("f4"),
        "strides": strides,
        "scores": scores.astype("f4"),
        "labels": rng.integers(0, CLASSES, M),
    }


def loop(name, x, topk=4, rows=slice(None), columns=slice(None)):
    boxes, targets = x["boxes"][rows], x["targets"][columns]
    if name == "match_atss":
        return assigning.atss(boxes, targets, LEVELS, topk)
    predicted = x["scores"][rows], boxes, x["points"][rows]
    arguments = *predicted, x["labels"][columns], targets
    if name == "match_task_aligned":
        return assigning.task_aligned(*arguments, topk=topk)[0]
    return assigning.simota(*arguments, topk=topk, strides=x["strides"][rows])


NAMES = ["match_atss", "match_task_aligned", "match_simota"]
every_assigner = pytest.mark.parametrize("name", NAMES)


@every_assigner
def test_equals_the_loop(name):
    for seed in range(6):
        x = scene(seed)
        found, wanted = assign(name, x), loop(name, x)
        np.testing.assert_array_equal(found.indices, wanted)
        overlaps = assigning.matrix_of(x["boxes"], x["targets"])
        own = np.where(wanted >= 0, overlaps[np.arange(N), wanted], -np.inf)
        np.testing.assert_allclose(found.values, own, rtol=1e-5)
        assert 5 < (wanted >= 0).sum() < N - 5


@pytest.mark.parametrize("name", NAMES[1:])
def test_equals_the_loop_at_ties(name):
    """Integer boxes and scores in quarters: many values are equal exactly."""
    for seed in range(20):
        x = scene(seed, integer=True)
        x["scores"] = np.clip(x["scores"], 0.25, 0.75)
        np.testing.assert_array_equal(assign(name, x).indices, loop(name, x))


@every_assigner
@pytest.mark.parametrize("content", [np.nan, np.inf, 0.0, -1.0, 5.0])
def test_contents_of_padding_change_no_bit(name, content):
    x = scene(1)
    where = np.arange(M) % 3 != 1
    where_anchors = np.arange(N) % 5 != 2
    wanted = assign(name, x, where, where_anchors)
    for key in ("targets", "labels"):
        x[key][~where] = 99 if key == "labels" else content
    for key in ("boxes", "points", "scores", "strides"):
        x[key][~where_anchors] = content
    found = assign(name, x, where, where_anchors)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert (found.indices[~where_anchors] == -2).all()
    assert set(np.unique(found.indices)) <= {-2, -1, *np.flatnonzero(where)}
    if name != "match_atss":  # Its levels would have other sizes.
        left = loop(name, scene(1), rows=where_anchors, columns=where)
        left = np.where(left >= 0, np.flatnonzero(where)[left], -1)
        np.testing.assert_array_equal(found.indices[where_anchors], left)


def test_no_anchor():
    boxes, points, targets = jnp.zeros((0, 4)), jnp.zeros((0, 2)), jnp.ones((2, 4))
    predicted = jnp.zeros((0, CLASSES)), boxes, points, jnp.zeros(2, int), targets
    found = [
        jaxiou.match_atss(boxes, targets, level_sizes=[0]),
        jaxiou.match_task_aligned(*predicted),
        jaxiou.match_simota(*predicted, strides=jnp.zeros(0)),
    ]
    for each in found:
        assert each.indices.shape == each.values.shape == (0,)


@every_assigner
def test_no_target_and_nan(name):
    x = scene(2)
    none = assign(name, x, where=False)
    assert (none.indices == -1).all() and np.isneginf(none.values).all()
    before = assign(name, x, where=np.arange(M) != 3, where_anchors=np.arange(N) != 20)
    x["targets"][3, 1], x["boxes"][20, 2] = np.nan, np.nan
    found = assign(name, x)
    np.testing.assert_array_equal(found.indices, np.maximum(before.indices, -1))


@every_assigner
def test_images_are_independent(name):
    """Images in one call, under `vmap`, and one by one."""
    images = [scene(seed) for seed in (3, 4)]
    both = jax.tree.map(lambda *x: np.stack(x), *images)
    masks = {"where": np.ones((2, M), bool), "where_anchors": np.ones((2, N), bool)}
    found = compiled(name)(both, topk=4, **masks)
    for k, image in enumerate(images):
        wanted = assign(name, image)
        np.testing.assert_array_equal(found.indices[k], wanted.indices)
        np.testing.assert_allclose(found.values[k], wanted.values, rtol=1e-6)
    if name == "match_task_aligned":
        mapped = jax.vmap(lambda x, m: compiled(name)(x, topk=4, **m))(both, masks)
        np.testing.assert_array_equal(mapped.indices, found.indices)


def test_soft_scores_of_the_best_prediction_are_its_overlap():
    x = scene(5)
    found = assign("match_task_aligned", x)
    _, soft = assigning.task_aligned(
        *(x[k] for k in ("scores", "boxes", "points", "labels", "targets")), topk=4
    )
    np.testing.assert_allclose(found.scores, soft, rtol=1e-5, atol=1e-30)
    indices = np.asarray(found.indices)
    for j in set(indices[indices >= 0]):
        own = indices == j
        assert found.scores[own].max() == found.values[own].max()


@jaxiou.measure(coordinates=5)
def nearness(a, b):
    return 1 / (1 + (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2)


def test_points_lie_inside_of_boxes_that_turn():
    x = scene(6)
    boxes = np.concatenate([x["points"], np.ones((N, 3))], 1)
    target = np.array([[16, 16, 26, 6, np.pi / 4]], np.float32)
    found = jax.jit(
        functools.partial(jaxiou.match_task_aligned, measure=nearness, topk=N)
    )(x["scores"][:, :1], boxes, x["points"], np.zeros(1, int), target)
    offset = x["points"] - 16
    along, across = offset.sum(1), offset[:, 1] - offset[:, 0]
    inside = (np.abs(along) < 13 * 2**0.5) & (np.abs(across) < 3 * 2**0.5)
    assert 3 < inside.sum() < 20
    np.testing.assert_array_equal(found.indices == 0, inside)


def test_nothing_of_the_size_of_all_pairs_exists():
    """A million anchors and two thousand targets, of which nothing is computed."""
    n, m = 1_000_000, 2_000
    assert temporaries([(n, 1), (n, 4), (n, 2), (m,), (m, 4)]) < 200e6
    # 128 images: their matrices would be 21 GB.
    b, n, m = 128, 8_400, 4_967
    assert temporaries([(b, n, 8), (b, n, 4), (n, 2), (b, m), (b, m, 4)]) < 100e6


def temporaries(shapes):
    """Bytes that the compiled assignment takes beside its inputs and results."""
    before = _top._COLUMNS, _top._PAIRS
    _top._COLUMNS, _top._PAIRS = 32, 1 << 17
    kinds = [jnp.float32] * 3 + [jnp.int32, jnp.float32]
    arguments = map(jax.ShapeDtypeStruct, shapes, kinds)
    program = jax.jit(jaxiou.match_task_aligned).lower(*arguments).compile()
    _top._COLUMNS, _top._PAIRS = before
    return program.memory_analysis().temp_size_in_bytes


def test_errors_name_the_argument():
    x = scene(0)
    arguments = [x[k] for k in ("scores", "boxes", "points", "labels", "targets")]

    def wrong(k, value, error, message, function=jaxiou.match_task_aligned, **options):
        given = [value if i == k else y for i, y in enumerate(arguments)]
        with pytest.raises(error, match=message):
            function(*given, **options)

    wrong(0, np.zeros((5, 3)), ValueError, r"aligned: `scores` has shape \(5, 3\), wa")
    wrong(2, np.zeros((N, 3)), ValueError, r"`anchor_points` has shape \(60, 3\), wan")
    wrong(3, np.zeros(M), TypeError, "match_task_aligned: `labels` has dtype float32")
    wrong(9, 0, ValueError, "match_task_aligned: `topk` is 0, wanted an in", topk=0)
    wrong(9, 0, ValueError, "match_task_aligned: `alpha` is -1, wanted", alpha=-1)
    simota = jaxiou.match_simota
    wrong(9, 0, ValueError, "simota: `strides` has shape", simota, strides=np.ones(3))
    with pytest.raises(ValueError, match=r"`level_sizes` is \[3\], which adds up to 3"):
        jaxiou.match_atss(x["boxes"], x["targets"], level_sizes=[3])


def test_candidates_of_one_measure_are_all_of_the_threshold():
    """The mean of nine equal numbers may be rounded to above them."""
    for width in range(1, 41):
        middle = 20.5
        box = [middle - width / 2, 0, middle + width / 2, 10]
        anchors = np.tile(np.array(box, np.float32), (9, 1))
        found = jaxiou.match_atss(anchors, [[0.0, 0, 41, 10]], level_sizes=[9])
        assert (np.asarray(found.indices) == 0).all(), width


def test_what_is_nan_takes_no_place():
    boxes = np.array([[np.nan] * 4, [0, 0, 4, 4]], np.float32)
    real = np.array([[0, 0, 4, 4], [0, 0, 4, 3]], np.float32)
    points, targets = np.full((2, 2), 2, np.float32), [[0.0, 0, 4, 4]]
    rest = points, [0], targets
    run = functools.partial(jaxiou.match_task_aligned, topk=1)
    scores = np.array([[0.9], [0.5]], np.float32)
    assert run(scores, boxes, *rest, beta=0).indices.tolist() == [-1, 0]
    scores = np.array([[np.nan], [0.5]], np.float32)
    assert run(scores, real, *rest, alpha=0).indices.tolist() == [-1, 0]
    turned = np.array([[2, 2, 4, 4, np.nan], [2.1, 2, 4, 4, 0]], np.float32)
    found = jaxiou.match_atss(
        turned,
        [[2.0, 2, 4, 4, 0]],
        level_sizes=[2],
        topk=1,
        measure=jaxiou.rotated_iou,
    )
    assert found.indices.tolist() == [-1, 0]


def test_empty_lists_and_wrong_numbers():
    boxes = np.array([[0, 0, 4, 2], [1, 1, 4, 4]], np.float32)
    assert jaxiou.match_atss([], boxes, level_sizes=[]).indices.shape == (0,)
    found = jaxiou.match_task_aligned(np.ones((2, 3)), boxes, boxes[:, :2], [], [])
    assert found.indices.tolist() == [-1, -1]
    with pytest.raises(ValueError, match="`level_sizes` is"):
        jaxiou.match_atss(boxes, boxes, level_sizes=[1.9, 1.2])
    with pytest.raises(ValueError, match=r"`scores` has shape \(2, 0\)"):
        jaxiou.match_task_aligned(np.ones((2, 0)), boxes, boxes[:, :2], [0, 0], boxes)
    with pytest.raises(ValueError, match=r"`measure_weight` is -1.*3 is usual"):
        jaxiou.match_simota(
            np.ones((2, 1)),
            boxes,
            boxes[:, :2],
            [0, 0],
            boxes,
            strides=np.ones(2),
            measure_weight=-1.0,
        )
