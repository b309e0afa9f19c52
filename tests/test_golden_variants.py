"""Variants against the authors' own code, mmdetection, mmyolo and ultralytics.

Theirs adds an eps to denominators, sides or powers, ours does not. `close` allows what
this changes to first order, eps over the denominators of the pair, besides 1e-10 + 1e-9
|expected| + 20 noise. Where conventions differ on purpose they are rebuilt from ours.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from goldens import cases, load

import jaxiou

# Many compilations; the measures of `test_measures.py` stand for these elsewhere.
pytestmark = pytest.mark.slow


def pairs(name, box_format="xyxy"):
    """Predictions, targets (as xyxy), categories and the rows with sound gradients."""
    inputs = load(name)["inputs"]
    entry = inputs[f"pairs_{box_format}" if "pairs" not in inputs else "pairs"]
    boxes = []
    for key in ("pred", "target"):
        x = entry[key]
        if box_format == "cxcywh":
            half = x[:, 2:] / 2
            x = np.concatenate([x[:, :2] - half, x[:, :2] + half], axis=1)
        boxes.append(x)
    return *boxes, entry["category"], entry["smooth_all"]


def change(a, b, eps):
    """What an eps does to a value and to a gradient, and where that is known."""
    sides = np.concatenate([a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]], axis=1)
    area = sides[:, 0] * sides[:, 1] + sides[:, 2] * sides[:, 3]
    known = (sides > 0).all(axis=1)
    short = np.where(known, sides.min(axis=1), 1.0)
    value = 8 * eps * (1 + 1 / np.where(known, area / 2, 1.0) + 1 / short)
    return value, value[:, None] * 20 / short[:, None], known


def check(case, name, value, gradient, *, eps, rows=None, gradients=True):
    """Our values and gradients in xyxy against a case of a file."""
    box_format = case.get("box_format", "xyxy")
    box_format = "xyxy" if isinstance(box_format, np.ndarray) else str(box_format)
    a, b, _, smooth = pairs(name, box_format)
    slack, slope, known = change(a, b, eps)
    wanted = case["output"]
    keep = known & np.isfinite(wanted) & (case["out_noise"] < 1e-9)
    keep = keep if rows is None else keep & rows
    assert keep.sum() > 60
    bound = 1e-10 + 1e-9 * np.abs(wanted) + 20 * case["out_noise"] + slack
    excess = np.abs(value - wanted) - bound
    worst = np.argmax(np.where(keep, excess, -1))
    assert (excess[keep] <= 0).all(), (worst, value[worst], wanted[worst])
    if not gradients:
        return
    if box_format == "cxcywh":
        low, high = gradient[:, :2], gradient[:, 2:]
        gradient = np.concatenate([low + high, (high - low) / 2], axis=1)
    wanted, noise = case["grad_pred"], case["grad_noise"][:, None]
    keep &= smooth & np.isfinite(wanted).all(axis=1) & (noise[:, 0] < 1e-6)
    assert keep.sum() > 30
    bound = 1e-10 + 1e-9 * np.abs(wanted) + 20 * noise + slope
    excess = np.where(keep[:, None], np.abs(gradient - wanted) - bound, -1)
    worst = np.unravel_index(np.argmax(excess), excess.shape)
    assert (excess <= 0).all(), (worst, gradient[worst[0]], wanted[worst[0]])


def computed(function, boxes):
    """Values and gradients in the predictions, operation by operation.

    Compiling each of a hundred functions would cost more than all they compute.
    """
    values, pull = jax.vjp(lambda a: function(a, boxes[1]), jnp.asarray(boxes[0]))
    return np.asarray(values), np.asarray(pull(jnp.ones_like(values))[0])


def measured(measure):
    return lambda a, b: measure(a, b)


def lost(measure):
    return lambda a, b: jaxiou.box_loss(a, b, measure=measure)


def focused(measure, **options):
    return lambda a, b: jaxiou.wiou_loss(a, b, measure=measure, momentum=0, **options)[
        0
    ]


def weighted(measure, gamma):
    """A loss weighted by a power of the IoU that is held constant."""

    def loss(a, b):
        weight = jax.lax.stop_gradient(jaxiou.iou(a, b) ** gamma)
        return weight * jaxiou.box_loss(a, b, measure=measure)

    return loss


BASES = {
    "IoU": jaxiou.iou,
    "GIoU": jaxiou.giou,
    "DIoU": jaxiou.diou,
    "CIoU": jaxiou.ciou,
    "SIoU": jaxiou.siou,
    "EIoU": jaxiou.eiou,
    "WIoU": jaxiou.wiou,
}


def variant(case):
    """Ours for a case of `iou_variants`, and the eps theirs has."""
    head, *tail = case["id"].split("/")
    options = case["kwargs"]
    eps = float(options.get("eps", 1e-7))
    family, _, kind = head.partition(".")
    if family in ("wiou", "wiou_paper"):
        version, mean = int(tail[0][1]), float(options["iou_mean"])
        shape = {"alpha": float(options["alpha"]), "delta": float(options["delta"])}
        # Their CIoU adds 1e-4 to the heights. Their SIoU guards its angle: the gradient
        # of an elongated pair is off by 6e-5, ours there is that of finite differences
        # of the oracle, and of objdet's SIoU.
        eps = {"CIoU": 1e-4, "SIoU": 1e-6}.get(kind, 0.0)
        return focused(BASES[kind], version=version, mean=mean, **shape), eps
    if family == "objdet" and kind == "WIoU":
        return focused(jaxiou.wiou, mean=float(options["iou_mean"])), 1e-7
    if family == "objdet" and kind.startswith("Focal"):
        gamma = float(options["gamma"])
        if kind == "Focal_EIoU":
            return functools.partial(jaxiou.focal_eiou_loss, gamma=gamma), eps
        return weighted(BASES[kind.removeprefix("Focal_")], gamma), eps
    if family == "objdet":
        alpha = float(options["alpha"])
        return measured(jaxiou.alpha_iou(alpha=alpha, base=BASES[kind])), eps
    if head == "bbox_alpha_iou":
        alpha = float(options["alpha"])
        return measured(jaxiou.alpha_iou(alpha=alpha, base=BASES[tail[0]])), eps
    if head == "piou":
        made = jaxiou.piou
        if tail[0] == "PIoU2":
            made = jaxiou.piou_v2(attention=float(options["Lambda"]))
        return lost(made), eps
    if head in ("inner_ciou", "inner_siou"):
        base = jaxiou.ciou if head == "inner_ciou" else jaxiou.siou
        return measured(jaxiou.inner_iou(ratio=float(options["ratio"]), base=base)), eps
    if head == "shape_iou":
        return measured(jaxiou.shape_iou(scale=float(options["scale"]))), eps
    if head == "focaler_iou":
        limits = {"lower": float(options["d"]), "upper": float(options["u"])}
        return measured(jaxiou.focaler(**limits)), eps
    if head == "mpdiou":
        size = float(options["w"]), float(options["h"])
        return measured(jaxiou.mpdiou(image_size=size)), eps
    assert family == "mmyolo"
    base = BASES[f"{tail[0][:-3].upper()}IoU"]
    return lambda a, b: jnp.clip(base(a, b), -1, 1), eps


# The reasons why a case is not as ours are in the tests further down.
OTHERS = ("wiou.EIoU", "objdet.EIoU/alpha=3", "objdet.CIoU/alpha=3")
VARIANTS = [
    case
    for case in cases("iou_variants")
    if "output" in case and not case["id"].startswith(OTHERS)
]


@pytest.mark.parametrize("case", VARIANTS, ids=lambda case: case["id"])
def test_variants(case, x64):
    function, eps = variant(case)
    boxes = pairs("iou_variants", str(case["box_format"]))[:2]
    value, gradient = computed(function, boxes)
    # objdet lets the gradient into the hull of WIoU, the authors do not.
    free = not case["id"].startswith("objdet.WIoU")
    check(case, "iou_variants", value, gradient, eps=eps, gradients=free)


def test_the_running_mean_of_wise_iou(x64):
    a, b, _, _ = pairs("iou_variants")
    for case in cases("iou_variants", "wiou.running", "wiou_paper.running"):
        rows = case["rows"].astype(int)
        mean = jnp.asarray(float(case["kwargs"]["init"]))
        momentum = float(case["kwargs"]["momentum"])
        for wanted in case["iou_mean_after_each_call"]:
            _, mean = jaxiou.wiou_loss(a[rows], b[rows], mean=mean, momentum=momentum)
            np.testing.assert_allclose(mean, wanted, rtol=1e-12)


def test_the_eiou_of_the_wise_iou_code_has_centre_offsets_for_sides(x64):
    """Instinct323/wiou: (dx / W)² + (dy / H)² where the paper has the sides."""
    a, b, _, _ = pairs("iou_variants")
    (case,) = cases("iou_variants", "wiou.EIoU/v1")
    known = change(a, b, 0.0)[2] & np.isfinite(case["output"])
    ours = 1 - np.asarray(jaxiou.eiou(a, b))
    exact = 1 - oracle.elementwise(oracle.eiou, a, b)
    np.testing.assert_allclose(ours[known], exact[known], atol=1e-12)
    rebuilt = []
    for x, y in zip(a[known], b[known], strict=True):
        (dx, dy), (width, height) = oracle.offset(x, y), oracle.hull(x, y)
        rebuilt.append(1 - oracle.diou(x, y) + (dx / width) ** 2 + (dy / height) ** 2)
    np.testing.assert_allclose(case["output"][known], rebuilt, atol=1e-9)
    assert np.median(np.abs(ours - case["output"])[known]) > 0.05


def test_objdet_powers_only_the_denominators_of_the_sides_in_eiou(x64):
    """(w₁ - w₂)² / W⁶ for α = 3, which depends on the unit of the boxes."""
    a, b, _, _ = pairs("iou_variants")
    (case,) = cases("iou_variants", "objdet.EIoU/alpha=3")
    slack, _, known = change(a, b, 1e-7)
    wide, high = (
        np.maximum(a[:, k + 2], b[:, k + 2]) - np.minimum(a[:, k], b[:, k])
        for k in (0, 1)
    )
    sides = (a[:, 2:] - a[:, :2]) - (b[:, 2:] - b[:, :2])
    base = np.asarray(jaxiou.alpha_iou(alpha=3, base=jaxiou.diou)(a, b))
    # Where the hull is long enough for their 1e-7 beside its sixth power.
    rows = known & (wide > 1) & (high > 1)
    cost = (sides[rows] ** 2 / np.stack([wide, high], axis=1)[rows] ** 6).sum(axis=1)
    error = np.abs(base[rows] - cost - case["output"][rows])
    assert (error <= 1e-6 + slack[rows]).all() and rows.sum() > 60
    ours = np.asarray(jaxiou.alpha_iou(alpha=3, base=jaxiou.eiou)(a, b))
    exact = oracle.elementwise(
        lambda x, y: (
            oracle.alpha_iou(x, y, alpha=3, base="diou")
            - oracle.ratio(
                abs(oracle.sides(x)[0] - oracle.sides(y)[0]), oracle.hull(x, y)[0]
            )
            ** 6
            - oracle.ratio(
                abs(oracle.sides(x)[1] - oracle.sides(y)[1]), oracle.hull(x, y)[1]
            )
            ** 6
        ),
        a,
        b,
    )
    np.testing.assert_allclose(ours, exact, atol=1e-12)
    assert np.abs(ours - case["output"])[rows].max() > 0.1


def test_objdet_has_the_powered_iou_in_the_weight_of_ciou(x64):
    """α_v = v / (1 - IoU³ + v) for α = 3, where the authors have the IoU itself."""
    a, b, _, _ = pairs("iou_variants")
    (case,) = cases("iou_variants", "objdet.CIoU/alpha=3")
    slack, _, known = change(a, b, 1e-7)
    iou, diou, ciou = (
        np.asarray(m(a, b))[known] for m in (jaxiou.iou, jaxiou.diou, jaxiou.ciou)
    )
    term = diou - ciou
    # v of α v = v² / (1 - IoU + v).
    v = (term + np.sqrt(term**2 + 4 * term * (1 - iou))) / 2
    weight = v / np.where(v > 0, 1 - iou**3 + v, 1)
    theirs = iou**3 - (iou - diou) ** 3 - (weight * v) ** 3
    error = np.abs(theirs - case["output"][known])
    assert (error <= 1e-8 + slack[known]).all()


# mmdetection


def mmdet(case):
    """Ours for a functional case, and the eps theirs has."""
    name, options = case["function"].split(".")[-1], case["kwargs"]
    eps = float(options["eps"])
    if name == "iou_loss":
        # Overlaps below eps count as eps, and have no gradient there.
        of = {
            "linear": lambda v: 1 - v,
            "square": lambda v: 1 - v * v,
            "log": lambda v: -jnp.log(v),
        }[options["mode"]]
        return lambda a, b: of(jnp.maximum(jaxiou.iou(a, b), eps)), eps
    made = {
        "giou_loss": jaxiou.giou,
        "diou_loss": jaxiou.diou,
        # The aspect counts above an IoU of one half.
        "ciou_loss": jaxiou.gated_ciou(gate=0.5),
        # Their "EIoU" is the extended one.
        "eiou_loss": jaxiou.smooth_iou(point=float(options.get("smooth_point", 1))),
        "siou_loss": jaxiou.siou,
    }[name]
    if name in ("ciou_loss", "siou_loss"):
        return lambda a, b: 1 - jnp.clip(made(a, b), -1, 1), eps
    return lost(made), eps


FUNCTIONAL = [
    case
    for case in cases("mmdet_losses")
    if case["kwargs"]["reduction"] == "none"
    and "bounded" not in case["id"]
    and case["id"] != "siou_loss/neg_gamma=False"
]


@pytest.mark.parametrize("case", FUNCTIONAL, ids=lambda case: case["id"])
def test_mmdet_losses(case, x64):
    function, eps = mmdet(case)
    a, b, _, _ = pairs("mmdet_losses")
    value, gradient = computed(function, (a, b))
    rows = None
    if case["id"].startswith("iou_loss/log"):
        # -log multiplies what eps does to the IoU by up to 1 / IoU.
        rows = (np.asarray(jaxiou.iou(a, b)) > 0.01) | (case["output"] > 13.8)
        eps *= 100
    check(case, "mmdet_losses", value, gradient, eps=eps, rows=rows)


def bounds(a, b):
    """The four bounds, each from a box that differs in one number from the target."""
    centre = lambda x: (x[:, :2] + x[:, 2:]) / 2  # noqa: E731
    size = lambda x: x[:, 2:] - x[:, :2]  # noqa: E731
    columns = []
    for part, changed in ((0, centre(a)), (1, size(a))):
        for axis in (0, 1):
            numbers = [centre(b), size(b)]
            numbers[part] = numbers[part].at[:, axis].set(changed[:, axis])
            (c, s) = numbers
            one = jnp.concatenate([c - s / 2, c + s / 2], axis=1)
            # The mean of four of which three are 1.
            columns.append(4 * jaxiou.bounded_iou(one, b) - 3)
    return jnp.stack(columns, axis=1)


@pytest.mark.parametrize(
    "case", cases("mmdet_losses", "bounded"), ids=lambda c: c["id"]
)
def test_mmdet_returns_four_numbers_for_the_bounded_iou(case, x64):
    """A smooth L1 of each of the four bounds; ours is the mean of the bounds."""
    a, b, _, _ = pairs("mmdet_losses")
    a, b = jnp.asarray(a), jnp.asarray(b)
    beta, eps = float(case["kwargs"]["beta"]), float(case["kwargs"]["eps"])
    short = 1 - np.asarray(bounds(a, b))
    rebuilt = np.where(short < beta, short**2 / (2 * beta), short - beta / 2)
    slack, _, known = change(np.asarray(a), np.asarray(b), eps)
    # eps inside of a quotient of lengths: eps over the length.
    error = np.abs(rebuilt - case["output"])
    assert (error[known] <= 1e-10 + slack[known, None]).all()
    assert known.sum() > 60
    np.testing.assert_allclose(
        1 - jaxiou.bounded_iou(a, b)[known], short[known].mean(axis=1), atol=1e-12
    )


def test_mmdet_siou_rewards_distance_by_default(x64):
    """`neg_gamma=False` has exp(+γρ): a box far away has loss 0 there."""
    a, b, category, _ = pairs("mmdet_losses")
    (theirs,) = cases("mmdet_losses", "siou_loss/neg_gamma=False")
    ours = np.asarray(jaxiou.box_loss(a, b, measure=jaxiou.siou))
    apart = category == "no_overlap"
    exact = 1 - oracle.elementwise(oracle.siou, a[apart], b[apart])
    np.testing.assert_allclose(ours[apart], exact, atol=1e-12)
    assert theirs["output"][apart].min() < 0.5 < ours[apart].min()
    # The one sign is the difference: our Δ turned around gives their number.
    known = change(a, b, 0.0)[2]
    slack = change(a, b, 1e-7)[0]
    for x, y, wanted, room in zip(
        a[known], b[known], theirs["output"][known], slack[known], strict=True
    ):
        dx, dy = oracle.offset(x, y)
        width, height = oracle.hull(x, y)
        square = dx * dx + dy * dy
        gamma = 2 - (2 * abs(dx * dy) / square if square else 0)
        costs = [(d / c) ** 2 for d, c in ((dx, width), (dy, height))]
        right = sum(1 - np.exp(-gamma * c) for c in costs) / 2
        wrong = sum(1 - np.exp(gamma * c) for c in costs) / 2
        turned = oracle.siou(x, y) + right - wrong
        assert abs(1 - np.clip(turned, -1, 1) - wanted) <= 1e-9 + room


def test_mmdet_eiou_loss_is_not_the_efficient_iou(x64):
    a, b, category, _ = pairs("mmdet_losses")
    (theirs,) = cases("mmdet_losses", "eiou_loss/smooth_point=0.1")
    row = int(np.flatnonzero(category == "generic_overlap")[0])
    exact = float(load("exact_axis_aligned")["metrics"]["eiou"][row])
    x, y = (
        load("exact_axis_aligned")["inputs"]["pairs"][k] for k in ("pred", "target")
    )
    np.testing.assert_allclose(jaxiou.eiou(x[row], y[row]), exact, rtol=1e-12)
    efficient = 1 - np.asarray(jaxiou.eiou(a[row], b[row]))
    extended = 1 - np.asarray(jaxiou.smooth_iou(point=0.1)(a[row], b[row]))
    np.testing.assert_allclose(theirs["output"][row], extended, rtol=1e-7)
    assert abs(theirs["output"][row] - efficient) > 1e-2


def test_mmdet_gates_the_aspect_of_ciou(x64):
    """Below an IoU of one half their CIoU is DIoU, ours is CIoU at any IoU."""
    a, b, _, _ = pairs("mmdet_losses")
    iou = np.asarray(jaxiou.iou(a, b))
    below = (iou < 0.5) & change(a, b, 0.0)[2]
    gated, plain = (
        np.asarray(m(a, b))[below] for m in (jaxiou.gated_ciou(gate=0.5), jaxiou.ciou)
    )
    np.testing.assert_array_equal(gated, np.asarray(jaxiou.diou(a, b))[below])
    exact = oracle.elementwise(oracle.ciou, a[below], b[below])
    np.testing.assert_allclose(plain, exact, atol=1e-12)
    assert np.abs(gated - plain).max() > 0.01


MODULES = [c for c in cases("mmdet_losses") if c["kwargs"]["reduction"] != "none"]


@pytest.mark.parametrize(
    "kind", ["IoULoss", "GIoULoss", "DIoULoss", "CIoULoss", "EIoULoss"]
)
def test_mmdet_weights_and_averages_are_the_callers(kind, x64):
    """weight, avg_factor and loss_weight are arithmetic on what is not reduced."""
    a, b, _, _ = pairs("mmdet_losses")
    chosen = [c for c in MODULES if c["id"].startswith(f"{kind}/")]
    assert len(chosen) == 5
    rows = chosen[0]["rows"].astype(int)
    names = {"IoULoss": "iou_loss"}
    options = {"smooth_point": 0.1, **chosen[0]["kwargs"]}
    functional = names.get(kind, kind.replace("Loss", "_loss").lower())
    function, eps = mmdet({"function": functional, "kwargs": options})
    loss = np.asarray(function(a[rows], b[rows]))
    slack = change(a[rows], b[rows], eps)[0]
    slack = slack * (100 if kind == "IoULoss" else 1)
    for case in chosen:
        settings = case["kwargs"]
        weight = case["weight"]
        weight = np.ones(len(rows)) if weight is None else weight
        scale = float(settings["loss_weight"])
        if settings["reduction"] == "mean":
            count = settings["avg_factor"]
            # torch adds the machine epsilon of float32 to a given count.
            scale /= len(rows) if count is None else float(count) + 2.0**-23
        np.testing.assert_allclose(
            scale * (weight * loss).sum(),
            float(case["output"]),
            rtol=1e-9,
            atol=scale * (weight * slack).sum(),
        )


@pytest.mark.parametrize("case", cases("suites_mmdet"), ids=lambda case: case["id"])
def test_mmdet_suite(case):
    boxes1, boxes2 = (
        case["inputs"][k].astype("f4").reshape(-1, 4) for k in ("boxes1", "boxes2")
    )
    measure = {"iou": jaxiou.iou, "iof": jaxiou.iof, "giou": jaxiou.giou}[
        case["kwargs"]["mode"]
    ]
    if case["kwargs"]["is_aligned"]:
        got = measure(boxes1, boxes2)
        np.testing.assert_allclose(got, case["expected"], atol=float(case["atol"]))
    else:
        assert jaxiou.pairwise(boxes1, boxes2, measure=measure).shape == (0, 1)


# ultralytics: eps on both heights, the union, the diagonal and in α.

ULTRALYTICS = cases("ultralytics_iou", "bbox_iou")


@pytest.mark.parametrize("case", ULTRALYTICS, ids=lambda case: case["id"])
def test_ultralytics(case, x64):
    boxes = pairs("ultralytics_iou", str(case["box_format"]))[:2]
    measure = BASES[case["id"].split("/")[1]]
    value, gradient = computed(measure, boxes)
    check(case, "ultralytics_iou", value, gradient, eps=1e-7)


def test_ultralytics_ioa_divides_by_the_second_area(x64):
    a, b, _, _ = pairs("ultralytics_iou")
    for case in cases("ultralytics_iou", "bbox_ioa"):
        x, y = a[case["rows1"].astype(int)], b[case["rows2"].astype(int)]
        measure = jaxiou.iou if case["kwargs"]["iou"] else jaxiou.iof
        got = jaxiou.pairwise(y, x, measure=measure).T
        np.testing.assert_allclose(got, case["output"], rtol=1e-6, atol=1e-9)


def test_an_exact_match_is_no_nan():
    """mmdetection's CIoU is 0/0 for identical float32 boxes, loss and gradient."""
    boxes = np.float32([[10, 20, 110, 80], [3, 4, 5, 7]])
    for measure in (jaxiou.gated_ciou(gate=0.5), jaxiou.ciou, jaxiou.siou):
        total = lambda a, m=measure: jaxiou.box_loss(a, boxes, measure=m).sum()  # noqa: E731
        value, gradient = jax.value_and_grad(total)(jnp.asarray(boxes))
        np.testing.assert_allclose(value, 0, atol=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)
