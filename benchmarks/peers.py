"""Other libraries at their best, each imported only when it is asked to take part.

What a library takes at its best (xywh in float64, tensors on the GPU) is prepared
beforehand and not timed.
"""

import contextlib
import functools
import importlib.metadata

import jax
import numpy as np

import jaxiou

from . import plain, plain_assigners, plain_masks
from .in_jax import CHOSEN, LARGE, THRESHOLD, plain_assigner, refuse_large
from .timing import Call, Skip, to_numpy
from .workloads import CLASSES


def on_cpu():
    if jax.default_backend() != "cpu":
        raise Skip


def refuse_slow(job, pairs):
    if job.pairs > pairs:
        raise Skip("left out, one call takes many seconds")


def with_numpy(job, inputs):
    on_cpu()
    match job.family, job.case:
        case "pairwise", "forward":
            return Call(lambda: plain.matrix(np, *inputs))
        case "match", "best_match":
            refuse_slow(job, 1e8)

            def best(a, b):
                matrix = plain.matrix(np, a, b)
                return matrix.max(1), matrix.argmax(1), matrix.max(0), matrix.argmax(0)

            return Call(lambda: stacked(best(*x) for x in zip(*inputs, strict=True)))
        case "nms", _:
            return Call(lambda: every(numpy_nms, *inputs), read=numbered)
        case "rescoring", "soft":
            return Call(lambda: numpy_soft_nms(*inputs))
    raise Skip


def stacked(results):
    return [np.stack(x) for x in zip(*results, strict=True)]


def every(function, boxes, scores):
    """Image by image, as these libraries have it."""
    return [function(*image) for image in zip(boxes, scores, strict=True)], len(
        scores[0]
    )


def numbered(result):
    """Kept boxes of several images counted through."""
    kept, n = result
    return np.concatenate([to_numpy(x) + k * n for k, x in enumerate(kept)])


def numpy_nms(boxes, scores):
    x1, y1, x2, y2 = boxes.T
    areas, kept = (x2 - x1) * (y2 - y1), []
    order = np.argsort(-scores, kind="stable")
    while order.size:
        first, rest = order[0], order[1:]
        kept.append(first)
        width = np.minimum(x2[first], x2[rest]) - np.maximum(x1[first], x1[rest])
        height = np.minimum(y2[first], y2[rest]) - np.maximum(y1[first], y1[rest])
        shared = width.clip(0) * height.clip(0)
        order = rest[shared <= THRESHOLD * (areas[first] + areas[rest] - shared)]
    return np.asarray(kept)


def numpy_soft_nms(boxes, scores):
    boxes, scores, found = boxes.T, scores.copy(), []
    for _ in range(min(CHOSEN, scores.size)):
        best = scores.argmax()
        found.append(scores[best])
        overlap = plain.iou(np, boxes[:, best, None], boxes)
        scores *= np.exp(-(overlap**2) / plain_assigners.SIGMA)
        scores[best] = -1
    return np.stack(found)


def to_torch(inputs):
    import torch

    device = "cpu"
    if jax.default_backend() == "gpu":
        if not torch.cuda.is_available():
            raise Skip("this torch has no CUDA")
        device = "cuda"

    def timed(function):
        if device == "cpu":
            return Call(function)
        return Call(function, wait=lambda _: torch.cuda.synchronize())

    # JAX reads a NumPy array in place: torch has its own.
    return torch, [torch.tensor(x, device=device) for x in inputs], timed


def torch_best(matrix):
    (values1, indices1), (values2, indices2) = matrix.max(1), matrix.max(0)
    return values1, indices1, values2, indices2


def each_image(torch, function, inputs):
    return lambda: [
        torch.stack(x)
        for x in zip(*(function(*x) for x in zip(*inputs, strict=True)), strict=True)
    ]


def autograd(torch, function, a, *rest, both=False):
    """Value and gradients; `rest` ends in the cotangent where both sides want one."""
    a = a.detach().requires_grad_()
    if both:
        b, cotangent = rest
        b = b.detach().requires_grad_()
        return torch.autograd.grad(function(a, b), (a, b), cotangent)
    value = function(a, *rest)
    return value.detach(), torch.autograd.grad(value, a)[0]


def with_torchvision(job, inputs):
    import torchvision.ops as ops

    torch, tensors, timed = to_torch(inputs)
    match job.family, job.case:
        case "pairwise", "forward":
            return timed(lambda: ops.box_iou(*tensors))
        case "pairwise", "vjp":
            return timed(lambda: autograd(torch, ops.box_iou, *tensors, both=True))
        case "match", "best_match":
            refuse_large(job)
            best = lambda a, b: torch_best(ops.box_iou(a, b))  # noqa: E731
            return timed(each_image(torch, best, tensors))
        case "match", "match_anchors":
            from torchvision.models.detection._utils import Matcher

            matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)

            def assign(anchors, targets):
                matrix = ops.box_iou(targets, anchors)
                return matcher(matrix), matrix.max(0).values

            return timed(each_image(torch, assign, tensors))
        case "losses", "decoded giou":
            from torchvision.models.detection._utils import BoxCoder

            coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

            def decoded(deltas, anchors, targets):
                boxes = coder.decode_single(deltas, anchors)
                return ops.generalized_box_iou_loss(boxes, targets, reduction="sum")

            return timed(lambda: autograd(torch, decoded, *tensors))
        case "losses", name if name != "iou":
            long = {"g": "generalized", "d": "distance", "c": "complete"}[name[0]]
            loss = getattr(ops, f"{long}_box_iou_loss")
            total = lambda a, b: loss(a, b, reduction="sum")  # noqa: E731
            return timed(lambda: autograd(torch, total, *tensors))
        case "nms", _:
            nms = functools.partial(ops.nms, iou_threshold=THRESHOLD)
            return timed(lambda: every(nms, *tensors))._replace(read=numbered)
        case "rotated", "forward":
            for tensor in tensors:
                tensor[:, 4] *= -180 / np.pi  # degrees, counter-clockwise
            return timed(lambda: ops.box_iou(*tensors, fmt="cxcywhr"))
        case "rotated", _:
            raise Skip("its operator has no derivative")
    raise Skip


def with_masks(library, job, inputs):
    """A library's published formula for masks, in torch; it need not be installed."""
    formula = getattr(plain_masks, f"{library}_{job.case}", None)
    if job.family != "masks" or formula is None:
        raise Skip
    torch, tensors, timed = to_torch([x.swapaxes(1, 2).copy() for x in inputs])
    total = lambda p, t: formula(torch, p, t).sum()  # noqa: E731
    call = timed(lambda: autograd(torch, total, *tensors))
    return call._replace(read=pixels_first)


def torch_top(x, k):
    return x.topk(k, dim=0).values


def with_mmdet(job, inputs):
    """Its published formulas, in torch; it need not be installed."""
    torch, tensors, timed = to_torch(inputs)
    match job.family, job.case:
        case "assigners", _:
            one = plain_assigner(job, torch, torch_top)
            return timed(each_image(torch, as_tuple(one), tensors))
        case "rescoring", "matrix":
            return timed(lambda: plain_assigners.matrix_nms(torch, *tensors))
    raise Skip


def as_tuple(function):
    def run(*inputs):
        result = function(*inputs)
        return result if isinstance(result, tuple) else (result,)

    return run


def pixels_first(result):
    value, gradient = result
    return value, gradient.swapaxes(1, 2)


def with_compile(job, inputs):
    """The whole workload as one graph of the clean formula."""
    if job.family == "masks":
        return compiled_masks(job, inputs)
    torch, tensors, timed = to_torch(inputs)
    torch._dynamo.reset()
    matrix = lambda a, b: plain.matrix(torch, a, b)  # noqa: E731
    match job.family, job.case:
        case "pairwise", "forward":
            whole = matrix
        case "pairwise", "vjp":
            whole = lambda a, b, g: torch.func.vjp(matrix, a, b)[1](g)  # noqa: E731
        case "match", "best_match":
            refuse_large(job)
            best = lambda a, b: torch_best(matrix(a, b))  # noqa: E731
            if tensors[0].is_cuda and 4 * job.pairs <= LARGE:
                whole = torch.compile(torch.vmap(best), dynamic=False)
                return timed(lambda: whole(*tensors))
            whole = torch.compile(best, dynamic=False)
            return timed(each_image(torch, whole, tensors))
        case "assigners", _:
            one = as_tuple(plain_assigner(job, torch, torch_top))
            whole = torch.compile(one, dynamic=False)
            return timed(each_image(torch, whole, tensors))
        case "rescoring", "matrix":
            whole = functools.partial(plain_assigners.matrix_nms, torch)
        case "losses", name:

            def total(*inputs):
                stop = torch.Tensor.detach
                a, *rest = [x.unbind(1) for x in inputs]  # their gradient is one stack
                if job.case == "decoded giou":
                    a, rest = plain.decoded(torch, a, rest[0]), rest[1:]
                formula = getattr(plain, name.removeprefix("decoded "))
                return (1 - formula(torch, a, *rest, stop)).sum()

            def whole(*inputs):
                gradient, value = torch.func.grad_and_value(total)(*inputs)
                return value, gradient

        case _:
            raise Skip
    whole = torch.compile(whole, dynamic=False)
    return timed(lambda: whole(*tensors))


def compiled_masks(job, inputs):
    """The formula of the library that has the fewest passes, as one graph."""
    library = "kornia" if job.case == "lovasz" else "monai"
    formula = getattr(plain_masks, f"{library}_{job.case}")
    torch, tensors, timed = to_torch([x.swapaxes(1, 2).copy() for x in inputs])
    torch._dynamo.reset()
    whole = torch.func.grad_and_value(lambda p, t: formula(torch, p, t).sum())
    whole = torch.compile(whole, dynamic=False)
    return timed(lambda: whole(*tensors)[::-1])._replace(read=pixels_first)


def with_powerboxes(job, inputs, nms="nms"):
    import powerboxes

    on_cpu()
    match job.family, job.case:
        case "pairwise", "forward" if nms == "nms":
            run = lambda: powerboxes.parallel_iou_distance(*inputs)  # noqa: E731
            return Call(run, read=lambda distance: 1 - distance)
        case "rotated", "forward" if nms == "nms":
            a, b = (in_degrees(x) for x in inputs)
            run = lambda: powerboxes.parallel_rotated_iou_distance(a, b)  # noqa: E731
            return Call(run, read=lambda distance: 1 - distance)
        case "nms", _:
            boxes, scores = inputs[0], inputs[1].astype(np.float64)
            one = getattr(powerboxes, nms)
            function = lambda *image: one(*image, THRESHOLD, -1.0)  # noqa: E731
            return Call(lambda: every(function, boxes, scores), read=numbered)
    raise Skip


def in_degrees(boxes):
    boxes = boxes.astype(np.float64)
    boxes[:, 4] *= 180 / np.pi
    return boxes


def with_rtree(job, inputs):
    return with_powerboxes(job, inputs, "rtree_nms")


def with_pycocotools(job, inputs):
    from pycocotools import mask

    on_cpu()
    if job.family == "evaluation":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return coco_evaluation(COCO, COCOeval, job, inputs)
    if (job.family, job.case) != ("pairwise", "forward"):
        raise Skip
    sides = (np.concatenate([x[:, :2], x[:, 2:] - x[:, :2]], 1) for x in inputs)
    a, b = (x.astype(np.float64) for x in sides)
    crowd = np.zeros(job.m, np.uint8)
    return Call(lambda: mask.iou(a, b, crowd))


def with_faster_coco_eval(job, inputs):
    on_cpu()
    if job.family != "evaluation":
        raise Skip
    from faster_coco_eval import COCO, COCOeval_faster

    return coco_evaluation(COCO, COCOeval_faster, job, inputs)


def coco_evaluation(dataset, evaluation, job, inputs):
    """From the loaded data on: matching, and the precision at every recall."""
    boxes, scores, labels, targets, target_labels, real, crowd = inputs

    def entries(boxes, labels, key, values, where):
        for image, k in zip(*np.nonzero(where), strict=True):
            x1, y1, x2, y2 = map(float, boxes[image, k])
            yield {
                "image_id": int(image) + 1,
                "category_id": int(labels[image, k]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                key: values[image, k].item(),
            }

    truth = entries(targets, target_labels, "iscrowd", crowd.astype(int), real)
    found = entries(boxes, labels, "score", scores, np.full(scores.shape, True))
    with contextlib.redirect_stdout(None):
        loaded = dataset()
        loaded.dataset = {
            "images": [{"id": k + 1} for k in range(job.images)],
            "categories": [{"id": k + 1, "name": str(k)} for k in range(CLASSES)],
            "annotations": [{**x, "id": k} for k, x in enumerate(truth, 1)],
        }
        loaded.createIndex()
        answers = loaded.loadRes(list(found))

    def run():
        with contextlib.redirect_stdout(None):
            whole = evaluation(loaded, answers, "bbox")
            whole.evaluate()
            whole.accumulate()
        return whole.eval["precision"]

    def read(precision):
        # By threshold, recall, class, area, number of detections; -1 is undefined.
        precision = precision[..., -1].mean(1)
        defined = precision > -1
        return np.where(defined, precision, 0).sum(1) / defined.sum(1).clip(1)

    return Call(run, read=read)


def with_pykeops(job, inputs):
    """A symbolic matrix reduced in tiles: the nearest ancestor of `best_match`."""
    if (job.family, job.case) != ("match", "best_match") or job.images > 1:
        raise Skip
    refuse_slow(job, 1e9)
    _, (a, b), timed = to_torch([x[0] for x in inputs])
    from pykeops.torch import LazyTensor

    a = [LazyTensor(a[:, None, k : k + 1].contiguous()) for k in range(4)]
    b = [LazyTensor(b[None, :, k : k + 1].contiguous()) for k in range(4)]
    larger = lambda x, y: x + (y - x).relu()  # noqa: E731
    smaller = lambda x, y: x - (x - y).relu()  # noqa: E731
    width = (smaller(a[2], b[2]) - larger(a[0], b[0])).relu()
    height = (smaller(a[3], b[3]) - larger(a[1], b[1])).relu()
    areas = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    matrix = width * height / (sum(areas) - width * height)

    def best():
        both = (*matrix.max_argmax(axis=1), *matrix.max_argmax(axis=0))
        return [x.reshape(1, -1) for x in both]

    return timed(best)


def with_shapely(job, inputs):
    """Polygons made beforehand; the whole matrix in three calls on arrays."""
    import shapely

    on_cpu()
    if (job.family, job.case) != ("rotated", "forward"):
        raise Skip
    a, b = (shapely.polygons(np.asarray(jaxiou.corners(x), np.float64)) for x in inputs)
    areas = shapely.area(a)[:, None] + shapely.area(b)

    def matrix():
        shared = shapely.area(shapely.intersection(a[:, None], b[None, :]))
        return shared / (areas - shared)

    return Call(matrix)


# Name: the distribution it comes in, and the implementation.
PEERS = {
    "torchvision": ("torchvision", with_torchvision),
    "torch.compile": ("torch", with_compile),
    **{
        f"{library} (formula)": ("torch", functools.partial(with_masks, library))
        for library in ("monai", "smp", "kornia")
    },
    "powerboxes": ("powerboxes", with_powerboxes),
    "powerboxes r-tree": ("powerboxes", with_rtree),
    "mmdet (formula)": ("torch", with_mmdet),
    "pycocotools": ("pycocotools", with_pycocotools),
    "faster-coco-eval": ("faster-coco-eval", with_faster_coco_eval),
    "pykeops": ("pykeops", with_pykeops),
    "shapely": ("shapely", with_shapely),
    "numpy": ("numpy", with_numpy),
}


def version(distribution):
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
