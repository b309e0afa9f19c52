"""The contract over the whole API: names, documentation, arguments, inputs, imports."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import TELL_APART, stacked

import jaxiou

FOLDER = Path(jaxiou.__file__).parent
NAMES = [m.name for m in pkgutil.iter_modules(jaxiou.__path__)]
MODULES = {n: importlib.import_module(f"jaxiou.{n}") for n in NAMES if n[0] != "_"}
PUBLIC = {
    name: value
    for name, value in vars(jaxiou).items()
    if name[0] != "_" and not inspect.ismodule(value)
}
FUNCTIONS = {
    name: value
    for name, value in PUBLIC.items()
    if callable(value) and not inspect.isclass(value)
}
MEASURES = {n: v for n, v in FUNCTIONS.items() if isinstance(v, jaxiou.Measure)}
# What is tried on `BOXES`; boxes of other layouts have tests/test_turned.py.
XYXY = {n: v for n, v in MEASURES.items() if v.coordinates == 4}
DISTANCES = {n: v for n, v in FUNCTIONS.items() if isinstance(v, jaxiou.Distance)}
every_function = pytest.mark.parametrize("name", FUNCTIONS)
every_measure = pytest.mark.parametrize("measure", XYXY.values(), ids=repr)

# Whoever comes later may import those before, never the other way round.
ORDER = [
    "_checks",
    "_loops",
    "_numerics",
    "_measure",
    "_turned",
    "boxes",
    "anchors",
    "coders",
    "measures",
    "variants",
    "combinators",
    "rotated",
    "gaussian",
    "distances",
    "volumes",
    "masks",
    "mask_overlaps",
    "losses",
    "kernels",
    "matrix",
    "matching",
    "_points",
    "_top",
    "_given",
    "assigners",
    "one_to_one",
    "suppression",
    "rescoring",
    "metrics",
]


# Names and modules


def test_the_package_exports_what_its_modules_declare():
    declared = {"Measure": jaxiou.Measure}
    for name, module in MODULES.items():
        if name != "kernels":
            declared |= {key: getattr(module, key) for key in module.__all__}
    assert declared == PUBLIC


def test_no_module_has_the_name_of_a_public_object():
    assert not set(PUBLIC) & set(NAMES)


def test_what_a_module_declares_is_sorted_and_its_own():
    for module in MODULES.values():
        declared = list(getattr(module, "__all__", []))
        assert declared == sorted(declared)
        for key in declared:
            if key != "measure":  # the decorator is at home in `_measure`
                assert getattr(module, key).__module__ == module.__name__


def imported(path):
    """Names of the jaxiou modules that the file at `path` imports."""
    package = path.relative_to(FOLDER).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1]]
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                yield ([*base, alias.name])[0]
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [a.name for a in node.names]
            names = [node.module] if isinstance(node, ast.ImportFrom) else names
            assert not any(n.split(".")[0] == "jaxiou" for n in names), path


def test_imports_point_one_way_only():
    assert set(NAMES) <= set(ORDER)
    for path in FOLDER.rglob("*.py"):
        if path == FOLDER / "__init__.py":
            continue
        own = path.relative_to(FOLDER).parts[0].removesuffix(".py")
        for other in imported(path):
            assert ORDER.index(other) < ORDER.index(own) or other == own == "kernels", (
                f"{own} imports {other}"
            )


def test_importing_starts_no_backend():
    """A module-level `jnp` array would keep `jax.config` from being set afterwards."""
    for path in FOLDER.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            value = getattr(node, "value", None)
            if isinstance(node, ast.Assign | ast.AnnAssign) and value is not None:
                calls = [n for n in ast.walk(value) if isinstance(n, ast.Call)]
                assert not any("jnp." in ast.unparse(c.func) for c in calls), path


def test_files_stay_readable():
    for path in FOLDER.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 520, path.name


# Documentation and arguments


@every_function
def test_is_documented(name):
    value = FUNCTIONS[name]
    text = inspect.cleandoc(value.__doc__)
    first = text.splitlines()[0]
    assert first.endswith(".") and len(first) < 88
    parameters = list(inspect.signature(value).parameters)
    for section in ("Args:", "Returns:", "Raises:", "Example:"):
        if section != "Returns:" or name != "check_boxes":
            assert f"\n{section}\n" in text, section
    assert ">>>" in text
    if name in MEASURES or name.endswith("_loss"):
        for section in ("Reference:", "At the edge:"):
            assert f"\n{section}\n" in text, section
    arguments = text[text.index("\nArgs:") :].split("\n\n")[0]
    if name != "measure":
        for parameter in parameters:
            assert f"\n    {parameter}: " in arguments, parameter


@every_function
def test_options_are_given_by_keyword_and_there_is_no_eps(name):
    signature = inspect.signature(FUNCTIONS[name])
    for parameter in signature.parameters.values():
        optional = parameter.default is not parameter.empty
        positional = parameter.kind is parameter.POSITIONAL_ONLY  # @measure's formula
        assert not optional or positional or parameter.kind is parameter.KEYWORD_ONLY
        forbidden = {"eps", "epsilon", "reduction", "mode", "aligned", "is_aligned"}
        assert parameter.name not in forbidden
    if name != "measure":
        call = FUNCTIONS[name]
        annotations = inspect.get_annotations(
            type(call).__call__ if name in MEASURES | DISTANCES else call
        )
        # A family has the annotations of its formula, planes included.
        planes = {"a", "b"} if hasattr(call, "measure_family") else set()
        assert set(annotations) - planes == {*signature.parameters, "return"}


@pytest.mark.parametrize("name", [n for n, v in PUBLIC.items() if inspect.isclass(v)])
def test_classes_describe_their_fields(name):
    text = inspect.cleandoc(PUBLIC[name].__doc__)
    assert "\nAttributes:\n" in text
    fields = getattr(PUBLIC[name], "_fields", ()) or PUBLIC[name].__dataclass_fields__
    for field in set(fields) - {"name"}:
        assert f"\n    {field}: " in text, field


BOXES = np.zeros((2, 4), np.float32)
PAIRS = {
    **XYXY,
    **{
        n: v
        for n, v in FUNCTIONS.items()
        if n.endswith("_loss") and v.__module__ != "jaxiou.masks"
    },
    "box_loss": lambda a, b, **k: jaxiou.box_loss(a, b, measure=jaxiou.iou, **k),
    "wiou_loss": lambda a, b, **k: jaxiou.wiou_loss(a, b, mean=1.0, **k),
    "pairwise": jaxiou.pairwise,
    "best_match": jaxiou.best_match,
    "match_anchors": jaxiou.match_anchors,
    "encode": jaxiou.encode,
    "decode": jaxiou.decode,
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize(
    "wrong,error,message",
    [
        (np.zeros((2, 3), np.float32), ValueError, r"has shape \(2, 3\), wanted .*4\)"),
        (np.zeros((2, 4), bool), TypeError, "has dtype bool, wanted a floating"),
        (np.zeros((2, 4), np.complex64), TypeError, "has dtype complex64, wanted"),
    ],
    ids=["shape", "bool", "complex"],
)
def test_wrong_boxes_are_refused_by_name(name, position, wrong, error, message):
    arguments = [BOXES, BOXES]
    arguments[position] = wrong
    signature = inspect.signature(FUNCTIONS[name])
    parameter = list(signature.parameters)[position]
    with pytest.raises(error, match=rf"^jaxiou\.{name}: `{parameter}` {message}"):
        PAIRS[name](*arguments)
    with pytest.raises(error, match=rf"^jaxiou\.{name}: "):
        jax.eval_shape(PAIRS[name], *arguments)


@pytest.mark.parametrize("wrong", [None, [[0, 0, 1, 1], [0, 0, 1]]], ids=type)
def test_what_is_no_array_is_refused_by_name(wrong):
    with pytest.raises(
        (TypeError, ValueError), match=r"^jaxiou\.iou: `boxes2` is a .*pad"
    ):
        jaxiou.iou(BOXES, wrong)


@pytest.mark.parametrize("name", PAIRS)
def test_leading_axes_that_clash_are_refused(name):
    with pytest.raises(ValueError, match=rf"^jaxiou\.{name}: .*do not broadcast"):
        PAIRS[name](np.zeros((2, 3, 4)), np.zeros((5, 3, 4)))


def test_a_measure_that_is_none_is_refused_with_a_hint():
    @jaxiou.measure
    def family(a, b, *, power):
        return (a[0] - b[0]) ** power

    call = lambda measure: jaxiou.pairwise(BOXES, BOXES, measure=measure)  # noqa: E731
    for wrong, hint in [
        ("giou", "measure=jaxiou.giou"),
        (lambda a, b: a, "@jaxiou.measure"),
        (family, "call it with its parameters"),
    ]:
        with pytest.raises(TypeError, match=f"jaxiou.pairwise: `measure` is .*{hint}"):
            call(wrong)
    assert call(family(2)).shape == (2, 2)


# Measures are values


@jaxiou.measure(maximum=0.0)
def nearness(a, b, *, power, weight=1.0):
    """Minus a power of the distance of the left edges."""
    return -weight * jnp.abs(a[0] - b[0]) ** power


def test_equal_parameters_are_equal_measures_and_compile_once():
    assert nearness(2) == nearness(2.0) == nearness(power=2, weight=1)
    assert hash(nearness(2)) == hash(nearness(2.0, weight=1.0))
    assert nearness(2) != nearness(3) and nearness(2) != nearness(2).plain
    assert jaxiou.iou != jaxiou.giou and jaxiou.iou.plain == jaxiou.iou.plain
    assert len({jaxiou.iou, jaxiou.iou.plain, jaxiou.iou.plain.plain}) == 2
    traces = []

    def counted(a, b, measure):
        traces.append(measure)
        return measure(a, b)

    compiled = jax.jit(counted, static_argnames="measure")
    for measure in (nearness(2), nearness(2.0), nearness(power=2)):
        compiled(BOXES, BOXES, measure=measure)
    assert len(traces) == 1
    compiled(BOXES, BOXES, measure=nearness(3))
    assert len(traces) == 2


@pytest.mark.parametrize("array", [jnp.float32(2), np.ones(2), jnp.ones(3)], ids=str)
def test_array_parameters_are_refused(array):
    with pytest.raises(TypeError, match="parameter `power` is an array"):
        nearness(array)
    with pytest.raises(TypeError, match="parameter `power` is an array"):
        jax.jit(lambda p: nearness(p)(BOXES, BOXES))(2.0)


def test_a_measure_cannot_be_changed():
    with pytest.raises(AttributeError):
        jaxiou.iou.minimum = 2.0


@jaxiou.measure
def height_ratio(a, b):
    ha, hb = a[3] - a[1], b[3] - b[1]
    return jnp.minimum(ha, hb) / jnp.maximum(ha, hb)


def closed(a, b, cotangent):
    zero = jnp.zeros_like(cotangent)
    return (zero, 7 * cotangent, zero, zero), (zero, zero, zero, zero)


def shared(a, b):
    # Of pairs, of one side, and no number at all.
    return {"seven": 7 + 0 * (a[0] + b[0]), "one": 1 + 0 * a[1], "left": a[0] < b[0]}


def made_of_it(a, b, cotangent, shared):
    zero = jnp.zeros_like(cotangent)
    seven = jnp.where(shared["left"], shared["seven"], 7 * shared["one"])
    return (zero, seven * cotangent, zero, zero), (zero, zero, zero, zero)


def test_a_measure_of_two_lines_works_everywhere():
    a, b = stacked(TELL_APART)
    ha, hb = a[:, 3] - a[:, 1], b[:, 3] - b[:, 1]
    matrix = np.minimum.outer(ha, hb) / np.maximum.outer(ha, hb)
    for measure in (height_ratio, height_ratio.plain):
        np.testing.assert_allclose(measure(a, b), matrix.diagonal(), rtol=1e-6)
        found = jaxiou.pairwise(a, b, measure=measure)
        np.testing.assert_allclose(found, matrix, rtol=1e-6)
        best = jaxiou.best_match(a, b, measure=measure)
        np.testing.assert_allclose(best.values1, matrix.max(1), rtol=1e-6)
        np.testing.assert_array_equal(best.indices1, matrix.argmax(1))
        loss = jaxiou.box_loss(a, b, measure=measure)
        np.testing.assert_allclose(loss, 1 - matrix.diagonal(), rtol=1e-5)
        total = lambda a, m=measure: jaxiou.pairwise(a, b, measure=m).sum()  # noqa: E731
        gradient = jax.grad(total)(a)
        assert gradient.shape == a.shape and np.abs(gradient[:, 1]).min() > 0


@pytest.mark.parametrize("vjp", [closed, (shared, made_of_it)], ids=["one", "two"])
def test_a_closed_form_takes_the_place_of_the_derivative(vjp):
    measure = jaxiou.measure(vjp=vjp)(height_ratio.formula)
    a, b = stacked(TELL_APART)
    total = lambda f: jax.grad(lambda a: f(a, b).sum())(a)  # noqa: E731
    np.testing.assert_array_equal(total(measure)[:, 1], 7)
    matrix = lambda a, b: jaxiou.pairwise(a, b, measure=measure)  # noqa: E731
    np.testing.assert_array_equal(total(matrix)[:, 1], 7 * len(b))
    # `.plain` differentiates the formula.
    np.testing.assert_allclose(total(measure.plain), total(height_ratio.plain))


# Inputs

DTYPES = [
    ("float16", "float16", "float16"),
    ("bfloat16", "bfloat16", "bfloat16"),
    ("float32", "float32", "float32"),
    ("float64", "float64", "float64"),
    ("int32", "int32", "float32"),
    ("int64", "int64", "float32"),
    ("uint8", "int16", "float32"),
    ("float16", "int32", "float16"),
    ("int64", "bfloat16", "bfloat16"),
    ("float16", "float32", "float32"),
    ("float16", "bfloat16", "float32"),
    ("float32", "float64", "float64"),
]


@every_measure
@pytest.mark.parametrize("dtype1,dtype2,wanted", DTYPES)
def test_the_result_has_the_floating_dtype_of_the_input(
    measure, dtype1, dtype2, wanted, x64
):
    a, b = stacked([TELL_APART[1]])
    a, b = jnp.asarray(a, dtype1), jnp.asarray(b, dtype2)
    value = measure(a, b)
    assert value.dtype == wanted
    eps = float(jnp.finfo(wanted).eps)
    expected = getattr(oracle, measure.name)(*TELL_APART[1])
    # Terms up to 1 are subtracted: the rounding is that of the terms.
    tolerance = {"rtol": 4 * eps, "atol": 0.5 * eps}
    np.testing.assert_allclose(np.asarray(value, float), [expected], **tolerance)
    matrix = jaxiou.pairwise(a, b, measure=measure)
    assert matrix.dtype == wanted and matrix.shape == (1, 1)


@every_measure
def test_numpy_arrays_lists_and_integers_are_boxes(measure):
    a, b = TELL_APART[0]
    wanted = measure(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    for convert in (list, tuple, np.array, np.float32, jnp.array, np.float64):
        np.testing.assert_array_equal(measure(convert(a), convert(b)), wanted)


# Boxes on which other libraries return NaN or 0: 600 * 600 is beyond float16.
HALF = {
    "float16": (
        [0, 0, 600, 600],
        [10, 10, 610, 610],
        (0.9360043, 0.9354668, 0.9357356),
    ),
    "bfloat16": (
        [0, 0, 600, 600],
        [10, 10, 608, 608],
        (0.9420737, 0.9416409, 0.9418546),
    ),
}


@pytest.mark.parametrize("dtype", HALF)
def test_areas_beyond_half_precision(dtype):
    a, b, wanted = HALF[dtype]
    a, b = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    for measure, value in zip(
        (jaxiou.iou, jaxiou.giou, jaxiou.diou, jaxiou.ciou),
        (*wanted, wanted[-1]),
        strict=True,
    ):
        eps = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(float(measure(a, b)), value, rtol=eps)
        # With one operand in float32 the result is, and all digits are there.
        np.testing.assert_allclose(measure(a, b.astype(jnp.float32)), value, rtol=1e-6)
        for g in jax.grad(measure, argnums=(0, 1))(a, b):
            assert np.isfinite(np.asarray(g, np.float32)).all()


def test_docstrings_name_the_arguments_there_are():
    for name in filter(str.islower, dir(jaxiou)):
        value = getattr(jaxiou, name)
        if not getattr(value, "__module__", "").startswith("jaxiou.") or not (
            inspect.isfunction(value)
        ):
            continue
        section = re.search(r"\n    Args:\n(.*?)\n\n", value.__doc__, re.DOTALL)
        written = re.findall(r"^        (\w+):", section[1], re.M) if section else []
        assert written == list(inspect.signature(value).parameters), name
