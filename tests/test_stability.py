"""The public interface is the one on file, so that no change of it goes unnoticed.

python tests/test_stability.py > tests/api.txt
"""

import difflib
import inspect
from pathlib import Path

import pytest

import jaxiou

FILE = Path(__file__).parent / "api.txt"
ADVICE = """tests/api.txt says otherwise. If the change is meant, renew the file,

    python tests/test_stability.py > tests/api.txt

and write it into CHANGELOG.md: a new name under "Added"; one that is removed or changed
under "Removed" or "Changed", which takes a version that allows it: the next major one,
or before 1.0 the next minor one (https://semver.org).

"""
ATTRIBUTES = "coordinates", "minimum", "maximum", "symmetric", "scale_free"
# For parameters of families that have no default.
GIVEN = {"constant": 12.8, "image_size": (640, 480), "ratio": 0.7}


class Text(str):
    """A string that `inspect` prints as it is."""

    __repr__ = str.__str__


def shown(value):
    """A default as text that no process, version of JAX or mathematical library alters.

    What could have an address in it is refused.
    """
    if isinstance(value, float):
        return Text(float(f"{value:.12g}"))
    if hasattr(value, "_asdict"):
        fields = (f"{k}={shown(v)}" for k, v in value._asdict().items())
        return Text(f"{type(value).__name__}({', '.join(fields)})")
    if isinstance(value, tuple):
        return Text(tuple(map(shown, value)))
    if isinstance(value, bool | int | str | None | jaxiou.Measure | jaxiou.Distance):
        return Text(repr(value))
    if inspect.isfunction(value):
        return Text(value.__qualname__)
    raise TypeError(f"{value!r} has no text that stays")


def signature(value):
    """Names, kinds and defaults of the parameters."""
    parameters = [
        p.replace(
            annotation=p.empty,
            default=p.empty if p.default is p.empty else shown(p.default),
        )
        for p in inspect.signature(value).parameters.values()
        if p.name != "self"
    ]
    return str(inspect.Signature(parameters))


def attributes(measure):
    return ", ".join(f"{name}={shown(getattr(measure, name))}" for name in ATTRIBUTES)


def of_class(name, cls):
    """The line of the class, whose fields are its parameters, and its methods."""
    yield f"class {name}{signature(cls)}"
    fields = inspect.signature(cls).parameters
    for key, value in sorted(vars(cls).items()):
        if key == "__call__" or (key[0] != "_" and key not in fields):
            arguments = "" if isinstance(value, property) else signature(value)
            yield f"    .{key}{arguments}"


def described(name, value):
    """The lines of one public name."""
    if inspect.isclass(value):
        yield from of_class(name, value)
    elif isinstance(value, jaxiou.Measure):
        yield f"measure {name}: {attributes(value)}"
    elif isinstance(value, jaxiou.Distance):
        yield f"distance {name}: {attributes(value.values)}"
    elif hasattr(value, "measure_family"):
        parameters = inspect.signature(value).parameters.values()
        required = (p.name for p in parameters if p.default is p.empty)
        member = value(**{key: GIVEN[key] for key in required})
        yield f"family {name}{signature(value)}: {attributes(member)}"
    else:
        yield f"{name}{signature(value)}"


def interface():
    """Everything public, by name."""
    return "".join(
        f"{line}\n"
        for name, value in sorted(vars(jaxiou).items())
        if name[0] != "_" and not inspect.ismodule(value)
        for line in described(name, value)
    )


def test_the_public_interface_is_the_one_on_file():
    texts = FILE.read_text(), interface()
    lines = (text.splitlines(keepends=True) for text in texts)
    difference = "".join(difflib.unified_diff(*lines, FILE.name, "jaxiou", n=0))
    assert not difference, ADVICE + difference


@pytest.mark.parametrize(
    "change",
    [
        lambda boxes1, boxes2, *, measure=jaxiou.giou, where=None: None,
        lambda boxes1, boxes2, measure=jaxiou.iou, where=None: None,
        jaxiou.iou,
        None,
    ],
    ids=["a default", "a kind", "a measure", "gone"],
)
def test_changes_are_seen(change, monkeypatch):
    def before(boxes1, boxes2, *, measure=jaxiou.iou, where=None):
        pass

    monkeypatch.setattr(jaxiou, "pairwise", before)
    was = interface()
    assert "\npairwise(boxes1, boxes2, *, measure=iou, where=None)\n" in was
    if change:
        monkeypatch.setattr(jaxiou, "pairwise", change)
    else:
        monkeypatch.delattr(jaxiou, "pairwise")
    assert interface() != was


def test_defaults_with_an_address_are_refused(monkeypatch):
    monkeypatch.setattr(jaxiou, "area", lambda boxes, key=object(): None)  # noqa: B008
    with pytest.raises(TypeError, match="has no text that stays"):
        interface()


if __name__ == "__main__":
    print(interface(), end="")
