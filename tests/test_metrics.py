"""Average precision on the device equals the tool of COCO."""

import contextlib
import functools
import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster

import jaxiou

pytestmark = pytest.mark.usefixtures("quick")

FOLDER = Path(__file__).parents[1] / "../shared/data/coco_eval_golden"
# What pycocotools 2.0.11 prints for these files, to six digits.
PRINTED = [
    *(0.504581, 0.696973, 0.572982, 0.585626, 0.519400, 0.501398),
    *(0.386813, 0.593680, 0.595353, 0.639811, 0.566421, 0.564291),
]

evaluate = jax.jit(jaxiou.average_precision, static_argnames="classes")


def padded(rows, size, shape=(), dtype=np.float32):
    """A list per image as one array, and which entries are real."""
    out = np.full((len(rows), size, *shape), np.nan if shape else 0, dtype)
    for k, row in enumerate(rows):
        out[k, : len(row)] = np.reshape(row, (-1, *shape))
    real = np.arange(size) < np.array([[len(row)] for row in rows])
    return out, real


def numbers_of(truth, answers, classes, slots):
    """COCO's twelve numbers by ours, of its annotations and results."""
    images = sorted({x["id"] for x in truth["images"]})
    names = {x["id"]: k for k, x in enumerate(truth["categories"])}

    def columns(entries, *keys):
        by_image = [[x for x in entries if x["image_id"] == k] for k in images]
        for key, shape, dtype in keys:
            rows = [[x[key] for x in row] for row in by_image]
            yield padded(rows, slots[len(keys) > 3], shape, dtype)

    entries = [
        [x | {"label": names[x["category_id"]]} for x in group]
        for group in (answers, truth["annotations"])
    ]
    box, label = ("bbox", (4,), np.float64), ("label", (), np.int32)
    (boxes, real), (scores, _), (labels, _) = columns(
        entries[0], box, ("score", (), np.float32), label
    )
    (targets, real_targets), (kinds, _), (crowd, _), (areas, _) = columns(
        entries[1], box, label, ("iscrowd", (), bool), ("area", (), np.float32)
    )
    found = evaluate(
        np.asarray(jaxiou.convert(boxes.astype("f4"), "xywh", "xyxy")),
        scores,
        labels,
        np.asarray(jaxiou.convert(targets.astype("f4"), "xywh", "xyxy")),
        kinds,
        classes=classes,
        where=real,
        where_targets=real_targets,
        crowd=crowd,
        target_areas=areas,
    )
    precision, recall = found.precision.mean(0), found.recall.mean(1)
    means = precision[0], found.precision[0, 0], found.precision[5, 0], *precision[1:]
    return np.array([*means, *recall[:, 0], *recall[-1, 1:]])


@pytest.mark.skipif(not FOLDER.exists(), reason="needs the files of COCO's own test")
def test_equals_pycocotools_on_its_own_files():
    read = lambda name: json.loads((FOLDER / name).read_text())  # noqa: E731
    truth = read("instances_val2014_100.json")
    answers = read("instances_val2014_fakebbox100_results.json")
    found = numbers_of(truth, answers, 80, (64, 72))
    np.testing.assert_allclose(found, PRINTED, atol=1.1e-6)


def random_set(seed, integer):
    """Annotations and results with crowds, ties of scores and boxes, and all sizes."""
    rng = np.random.default_rng(seed)
    annotations, answers = [], []

    def box():
        size = rng.choice([20, 60, 150], 2) * rng.uniform(0.5, 1.2, 2)
        corner = rng.uniform(0, 60, 2)
        values = np.concatenate([corner, size])
        return (np.round(values / 8) * 8 if integer else np.float32(values)).tolist()

    for image in range(1, 9):
        for _ in range(rng.integers(0, 7)):
            bbox = box()
            entry = {"image_id": image, "category_id": int(rng.integers(1, 4))}
            entry |= {"bbox": bbox, "area": bbox[2] * bbox[3] * rng.uniform(0.5, 1)}
            entry |= {"iscrowd": int(rng.random() < 0.2), "id": len(annotations) + 1}
            annotations.append(entry)
            for _ in range(rng.integers(0, 4)):
                near = np.array(bbox) + rng.integers(-1, 2, 4) * (8 if integer else 3.7)
                near[2:] = np.maximum(near[2:], 8)
                answer = {"image_id": image, "category_id": entry["category_id"]}
                answer |= {"bbox": np.float32(near).tolist()}
                answers.append(answer | {"score": float(rng.integers(1, 9) / 8)})
    categories = [{"id": k, "name": str(k)} for k in (1, 2, 3, 4)]
    images = [{"id": k, "height": 300, "width": 300} for k in range(1, 9)]
    truth = {"images": images, "categories": categories, "annotations": annotations}
    return truth, answers


def theirs(truth, answers):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(json.loads(json.dumps(truth)))
        test = COCOeval_faster(
            coco, coco.loadRes(answers), "bbox", print_function=print
        )
        test.run()
    return np.array(test.stats[:12])


@pytest.mark.parametrize("integer", [False, True], ids=["random", "ties"])
def test_equals_the_compiled_tool_on_random_sets(integer):
    for seed in range(6):
        truth, answers = random_set(seed, integer)
        found, wanted = numbers_of(truth, answers, 4, (24, 8)), theirs(truth, answers)
        # Nothing to find is -1 there.
        np.testing.assert_allclose(found, np.maximum(wanted, 0), atol=1e-6)
        assert wanted[0] > 0.05


def one_image():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (3, 9, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 90, (3, 9, 2))], -1)
    targets = boxes[:, :5] + rng.uniform(-4, 4, (3, 5, 4))
    labels = rng.integers(0, 2, (3, 9))
    scores = rng.uniform(size=(3, 9))
    boxes, targets, scores = (x.astype("f4") for x in (boxes, targets, scores))
    return [boxes, scores, labels, targets, labels[:, :5].copy()]


def run(arguments, where=True, where_targets=True, ignore=False):
    """Padded to one shape, so that one program serves all."""
    boxes, scores, labels, targets, kinds = arguments
    (images, d), t = scores.shape, kinds.shape[1]

    def fill(x, *shape):
        return np.pad(
            x, [(0, new - old) for new, old in zip(shape, x.shape, strict=True)]
        )

    return evaluate(
        fill(boxes, 3, 9, 4),
        fill(scores, 3, 9),
        fill(labels, 3, 9),
        fill(targets, 3, 5, 4),
        fill(kinds, 3, 5),
        classes=2,
        where=fill(np.broadcast_to(where, (images, d)), 3, 9),
        where_targets=fill(np.broadcast_to(where_targets, (images, t)), 3, 5),
        ignore=fill(np.broadcast_to(ignore, (images, t)), 3, 5),
    )


@pytest.mark.parametrize("content", [np.nan, np.inf, 7.0])
def test_contents_of_padding_change_no_bit(content):
    arguments = one_image()
    where, where_targets = np.arange(9) % 4 != 1, np.arange(5) != 2
    wanted = run(arguments, where, where_targets)
    left = [x[:, where if k < 3 else where_targets] for k, x in enumerate(arguments)]
    jax.tree.map(np.testing.assert_array_equal, run(left), wanted)
    for k, mask in enumerate([where] * 3 + [where_targets] * 2):
        whole = np.issubdtype(arguments[k].dtype, np.integer)
        arguments[k][:, ~mask] = -5 if whole else content
    found = run(arguments, where, where_targets)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert 0.2 < float(wanted.precision[0, 0]) < 1


def test_ignored_targets_count_neither_for_nor_against():
    boxes = np.array([[[0, 0, 40, 20], [50, 0, 90, 20], [0, 60, 40, 80]]], np.float32)
    scores, labels = np.array([[0.9, 0.8, 0.7]], np.float32), np.zeros((1, 3), int)
    arguments = boxes, scores, labels, boxes[:, :2], labels[:, :2]
    found = run(arguments)
    assert float(found.precision[0, 0]) == 1 and int(found.targets[0, 0]) == 2
    # The first detection would be wrong, were its target not there.
    found = run(arguments, ignore=[[True, False]])
    assert float(found.precision[0, 0]) == 1 and int(found.targets[0, 0]) == 1
    found = run(arguments, where_targets=[[False, True]])
    assert float(found.precision[0, 0]) == 0.5
    none = run((boxes, scores, labels, boxes, labels + 1))
    assert not any(np.any(x) for x in none[:3])


def test_images_spread_over_devices_give_the_same():
    arguments = [np.concatenate([x, x[::-1], x[:2]]) for x in one_image()]
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    wanted = evaluate(*arguments, classes=2)
    with jax.set_mesh(mesh):
        spread = jax.device_put(
            arguments, jax.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
        )
        found = jax.jit(functools.partial(jaxiou.average_precision, classes=2))(*spread)
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_errors_name_the_argument():
    arguments = one_image()
    call = functools.partial(jaxiou.average_precision, *arguments, classes=2)
    with pytest.raises(
        ValueError, match="precision: `max_detections` is \\(10, 1\\), "
    ):
        call(max_detections=(10, 1))
    with pytest.raises(ValueError, match="average_precision: `target_areas` has shape"):
        call(target_areas=np.zeros(3))
    arguments[2] = jnp.zeros((3, 9))
    with pytest.raises(TypeError, match="average_precision: `labels` has dtype float"):
        jaxiou.average_precision(*arguments, classes=2)
    with pytest.raises(
        ValueError, match=r"`boxes` and `targets` have leading axes \(\)"
    ):
        jaxiou.average_precision(*(x[0] for x in arguments), classes=2)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32"])
def test_labels_of_narrow_types_are_no_other_classes(dtype):
    boxes = np.array([[[0, 0, 4, 2], [1, 1, 4, 4]]], np.float32)
    labels = np.array([[5, 6]], dtype)
    found = jaxiou.average_precision(
        boxes, [[0.9, 0.8]], labels, boxes, labels, classes=300
    )
    assert np.flatnonzero(found.targets[0]).tolist() == [5, 6]
    assert found.precision[0, 0] == 1


def test_boxes_that_turn_have_a_precision_and_crowds_want_a_measure_of_theirs():
    boxes = np.array([[[2, 1, 4, 2, 0.1], [3, 3, 2, 2, 0.3]]], np.float32)
    given = boxes, [[0.9, 0.8]], [[0, 0]], boxes, [[0, 0]]
    run = functools.partial(
        jaxiou.average_precision, *given, classes=1, measure=jaxiou.rotated_iou
    )
    assert run().precision[0, 0] == 1
    with pytest.raises(ValueError, match="`crowd_measure` is iof, of boxes with 4"):
        run(crowd=[[True, False]])
    crowds = run(crowd=[[True, False]], crowd_measure=jaxiou.rotated_iof)
    assert crowds.targets[0, 0] == 1
    for limits in (100, (1.5,)):
        with pytest.raises(ValueError, match="`max_detections` is"):
            run(max_detections=limits)


def test_nothing_of_images_by_targets_by_classes_exists():
    images, boxes, classes = 40, 30, 1203
    of = functools.partial(jax.ShapeDtypeStruct, (images, boxes))
    corners = jax.ShapeDtypeStruct((images, boxes, 4), jnp.float32)
    run = functools.partial(jaxiou.average_precision, classes=classes)
    given = corners, of(jnp.float32), of(jnp.int32), corners, of(jnp.int32)
    used = jax.jit(run).lower(*given).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * images * boxes * classes
