"""Implementations of the matrix and its reductions, and the choice between them.

Every implementation is a module with the functions of `xla`, which is the specification
and runs anywhere. One that cannot serve a call refuses with `NotImplementedError`.
"""

from types import ModuleType

from . import xla

IMPLEMENTATIONS: dict[str, ModuleType] = {"xla": xla}


def pick(function: str, implementation: str | None) -> ModuleType:
    """The named implementation, or the fastest one that runs here."""
    if implementation is None:
        return xla
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"jaxiou.{function}: `implementation` is {implementation!r}, wanted None "
            f"(the fastest that runs here) or one of {sorted(IMPLEMENTATIONS)}."
        )
    return IMPLEMENTATIONS[implementation]
