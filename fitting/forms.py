"""The functional forms of the law f(x, n), and how to add one.

Every form is a sum of terms, each a coefficient times powers of the factors and of n:

    f = sum_k alpha_k x_k^-a_k + sum_k beta_k x_k^b_k n^-d + xi n^-d + epsilon       equation 3

In log space a term is linear in (log coefficient, exponents), so a form is a log-sum-exp of linear
functions: log f = logsumexp_m (A theta)_m, where A [R, M, P] depends on the runs alone. To add a
form, write the function that lists its terms for K factors and enter it in `FORMS`; parameter
names, starts, the fit, the form without n and the reports follow from the list.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from fitting.formatting import nearest

N = -1  # the column of num_examples, after the K factors


@dataclass(frozen=True)
class Term:
    """One term of a form: coefficient x product of base^(sign x exponent).

    Attributes:
      coefficient: its name; the parameter is its log, so that the coefficient is positive.
      powers: (exponent name, +1 or -1, column of the factor, or `N`) for every power.
    """

    coefficient: str
    powers: tuple[tuple[str, int, int], ...] = ()


class Layout(NamedTuple):
    """A form as plain indices: a hashable argument of compiled programs.

    Attributes:
      num_terms: M; theta's first M entries are the terms' log coefficients.
      num_parameters: P.
      powers: (term, parameter, +1 or -1, column of log z) for every power.
      floor: index of the term without powers, or None.
    """

    num_terms: int
    num_parameters: int
    powers: tuple[tuple[int, int, int, int], ...]
    floor: int | None

    def design(self, log_z) -> np.ndarray:
        """Return A [R, M, P] with log terms = A theta, from log_z [R, K] or, with n, [R, K + 1]."""
        design_RMP = np.zeros((len(log_z), self.num_terms, self.num_parameters))
        for m in range(self.num_terms):
            design_RMP[:, m, m] = 1.0
        for m, p, sign, column in self.powers:
            design_RMP[:, m, p] += sign * np.asarray(log_z)[:, column]
        return design_RMP


@dataclass(frozen=True)
class Form:
    """A named list of terms for any number of factors; theta [P] = log coefficients, exponents.

    Attributes:
      name: the paper's name (table of forms, Appendix D).
      list_terms: labels of the K factors -> tuple of `Term`.
      frontier_moves: whether the best x at a budget depends on n; such a form needs n.
    """

    name: str
    list_terms: Callable[[tuple[str, ...]], tuple[Term, ...]]
    frontier_moves: bool

    @cache  # noqa: B019  forms live as long as the process
    def terms(self, num_factors: int, with_n: bool = True) -> tuple[Term, ...]:
        """Return the M terms; without n, terms that depend on n alone are left out.

        Raises:
          ValueError: an interaction form without n, or no factor.
        """
        if num_factors < 1:
            raise ValueError(f"form {self.name!r} needs one or more factors, got {num_factors}")
        terms = self.list_terms(factor_labels(num_factors))
        if with_n:
            return terms
        if self.frontier_moves:
            separable = ", ".join(f.name for f in FORMS.values() if not f.frontier_moves)
            raise ValueError(
                f"form {self.name!r} describes how factors and examples interact, and the runs "
                f"have no examples column; forms without n: {separable}"
            )
        kept = []
        for term in terms:
            powers = tuple(power for power in term.powers if power[2] != N)
            if powers or not term.powers:
                kept.append(Term(term.coefficient, powers))
        return tuple(kept)

    @property
    def has_n(self) -> bool:
        """Return whether the number of examples appears in the form."""
        return any(power[2] == N for term in self.terms(1) for power in term.powers)

    def check_examples(self, with_n: bool) -> None:
        """Raise ValueError, beginning with the form's name, where n is missing or not wanted."""
        if not with_n and self.frontier_moves:
            raise ValueError(
                f"{self.name!r} needs the number of examples: give --examples COLUMN, such as "
                f"num_examples; forms that can do without: {', '.join(usable_forms(FORMS, False))}"
            )
        if with_n and not self.has_n:
            raise ValueError(f"{self.name!r} has no number of examples; leave --examples out")

    def coefficients(self, num_factors: int, with_n: bool = True) -> tuple[str, ...]:
        """Return the names of the first M parameters, one log coefficient per term."""
        return tuple(term.coefficient for term in self.terms(num_factors, with_n))

    def exponents(self, num_factors: int, with_n: bool = True) -> tuple[str, ...]:
        """Return the names of the other parameters, exponents; that of n comes last."""
        powers = [power for term in self.terms(num_factors, with_n) for power in term.powers]
        return tuple(dict.fromkeys(p[0] for p in sorted(powers, key=lambda p: p[2] == N)))

    def parameters(self, num_factors: int, with_n: bool = True) -> tuple[str, ...]:
        """Return the names of all P parameters, in the order of theta."""
        return self.coefficients(num_factors, with_n) + self.exponents(num_factors, with_n)

    def is_exponent(self, num_factors: int, with_n: bool = True) -> np.ndarray:
        """Return bool [P]: True where theta holds an exponent, False for a log coefficient."""
        layout = self.layout(num_factors, with_n)
        return np.arange(layout.num_parameters) >= layout.num_terms

    @cache  # noqa: B019
    def layout(self, num_factors: int, with_n: bool = True) -> Layout:
        """Return the form as indices."""
        terms, names = self.terms(num_factors, with_n), self.parameters(num_factors, with_n)
        return Layout(
            len(terms),
            len(names),
            tuple(
                (m, names.index(name), sign, num_factors if column == N else column)
                for m, term in enumerate(terms)
                for name, sign, column in term.powers
            ),
            next((m for m, term in enumerate(terms) if not term.powers), None),
        )

    def design(self, log_x, log_n=None) -> np.ndarray:
        """Return A [R, M, P] with log f = logsumexp_M (A theta), from log_x [R, K], log_n [R]."""
        log_x = np.asarray(log_x)
        log_z = log_x if log_n is None else np.c_[log_x, np.asarray(log_n)]
        return self.layout(log_x.shape[1], log_n is not None).design(log_z)

    def log_error(self, theta, log_x, log_n=None):
        """Return log f [R] of theta [P] (numpy or jax) at log_x [R, K], log_n [R]."""
        return log_sum_exp(self.design(log_x, log_n) @ theta)


def log_sum_exp(log_terms):
    """Return log(sum(exp(...))) over the last axis, of numpy or jax arrays."""
    xp = log_terms.__array_namespace__()
    top = xp.max(log_terms, axis=-1, keepdims=True)
    return (top + xp.log(xp.sum(xp.exp(log_terms - top), axis=-1, keepdims=True)))[..., 0]


def factor_labels(num_factors: int) -> tuple[str, ...]:
    """Return N, T, V (language model, frames, tokens) for three factors, else 1, 2, ..., K."""
    return tuple("NTV") if num_factors == 3 else tuple(str(k + 1) for k in range(num_factors))


def _fall(labels) -> tuple[Term, ...]:
    return tuple(Term(f"alpha_{s}", ((f"a_{s}", -1, k),)) for k, s in enumerate(labels))


def _interact(labels) -> tuple[Term, ...]:
    return tuple(Term(f"beta_{s}", ((f"b_{s}", 1, k), ("d", -1, N))) for k, s in enumerate(labels))


_DATA = Term("xi", (("d", -1, N),))
_FLOOR = Term("epsilon")


def _mult(labels):
    powers = tuple((f"a_{s}", -1, k) for k, s in enumerate(labels))
    return (Term("alpha", (*powers, ("d", -1, N))), _FLOOR)


def _li(labels):
    """List the terms of Li et al. (arXiv 2411.03312): A N^-alpha T^-beta + D, no n."""
    greek = ("alpha", "beta", "gamma", "delta")
    names = greek if len(labels) <= len(greek) else tuple(f"alpha_{s}" for s in labels)
    return (Term("A", tuple((names[k], -1, k) for k in range(len(labels)))), Term("D"))


FORMS = {
    form.name: form
    for form in (
        Form("mult", _mult, frontier_moves=False),
        Form("add", lambda s: (*_fall(s), _DATA, _FLOOR), frontier_moves=False),
        Form("add-interact-s", lambda s: (*_fall(s), *_interact(s), _FLOOR), frontier_moves=True),
        Form(
            "add-interact",
            lambda s: (*_fall(s), *_interact(s), _DATA, _FLOOR),
            frontier_moves=True,
        ),
        Form("li", _li, frontier_moves=False),
    )
}
"""The paper's four forms (6, 9, 14 and 15 parameters with three factors) and Li et al.'s."""

OWN: dict[str, Form] = {}
"""Forms of users' files, by FILE.py:NAME#DIGEST; `fitting.own_forms` fills it."""

PAPER_FORMS = ("mult", "add", "add-interact-s", "add-interact")


def usable_forms(names, with_n: bool) -> list[str]:
    """Return the forms among `names` that can be fitted to runs with or without n."""
    return [name for name in names if with_n or not FORMS[name].frontier_moves]


def get_form(name: str) -> Form:
    """Return the form of that name; ValueError names the nearest one.

    `NAME~a_T=a_V` has two exponents tied, `FILE.py:NAME#…` is a user's (`fitting.own_forms`).
    """
    base, *ties = name.split("~")
    if ties:
        return _tied(get_form(base), tuple(ties))
    if name in FORMS or name in OWN:
        return FORMS.get(name) or OWN[name]
    raise ValueError(f"no form {name!r}{nearest(name, FORMS)}; there are {', '.join(FORMS)}")


@cache
def _tied(form: Form, ties: tuple[str, ...]) -> Form:
    """Return the form in which the exponents of a tie are one parameter, called as its first."""
    pairs = dict(reversed(tie.split("=")) for tie in ties)

    def list_terms(labels):
        return tuple(
            Term(
                term.coefficient,
                tuple((pairs.get(name, name), sign, column) for name, sign, column in term.powers),
            )
            for term in form.list_terms(labels)
        )

    name = "~".join([form.name, *ties])
    return dataclasses.replace(form, name=name, list_terms=list_terms)
