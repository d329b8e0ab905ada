"""Names of a law's parameters: after the user's columns, or N, T, V for the default ones."""

from fitting.config import FACTORS
from fitting.forms import Form, factor_labels


def labels(factors: tuple[str, ...]) -> tuple[str, ...]:
    """Return the labels of factors: N, T, V for the default columns, else the columns."""
    return factor_labels(len(factors)) if tuple(factors) == FACTORS else tuple(factors)


def parameters(form: Form, factors: tuple[str, ...], with_n: bool) -> tuple[str, ...]:
    """Return the names of all P parameters, such as a_params for the column 'params'.

    Names that would then not be told apart stay those of the form.
    """
    plain = form.parameters(len(factors), with_n)
    renamed = tuple(_replaced(name, factor_labels(len(factors)), labels(factors)) for name in plain)
    return renamed if len(set(renamed)) == len(renamed) else plain


def in_form(name: str, factors: tuple[str, ...]) -> str:
    """Return a parameter's name as its form has it; the inverse of `parameters` for one name."""
    return _replaced(name, labels(factors), factor_labels(len(factors)))


def _replaced(name: str, old: tuple[str, ...], new: tuple[str, ...]) -> str:
    for before, after in zip(old, new, strict=True):
        if name.endswith(f"_{before}"):
            return name.removesuffix(before) + after
    return name
