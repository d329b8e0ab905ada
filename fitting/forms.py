"""The functional forms of the law f(x, n), and how to add one.

Every form is a sum of terms, each a coefficient times powers of the factors and of n:

    f = sum_k alpha_k x_k^-a_k + sum_k beta_k x_k^b_k n^-d + xi n^-d + epsilon       equation 3

In log space a term is linear in (log coefficient, exponents), so a form is a log-sum-exp of linear
functions: log f = logsumexp_m (A theta)_m, where A [R, M, P] depends on the runs alone. To add a
form, write the function that lists its terms for K factors and enter it in `FORMS`; parameter
names, starts, the fit, the form without n and the reports follow from the list.

Several powers of one factor make a break, and a term without a factor a plateau, as long as both
bend upwards in logs: gains may shrink along a factor, never grow. A product of sums is the sum of
its terms multiplied out, whose coefficients are products of fewer parameters (`mult-plateau`).
"""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from fitting.config import FitConfig
from fitting.formatting import nearest

N = -1  # the column of num_examples, after the K factors


@dataclass(frozen=True)
class Term:
    """One term of a form: coefficient x product of base^(sign x exponent).

    Attributes:
      coefficient: its name; the parameter is its log, so that the coefficient is positive. Several
        names are a product, shared with other terms.
      powers: (exponent name, +1 or -1, column of the factor, or `N`) for every power.
    """

    coefficient: str | tuple[str, ...]
    powers: tuple[tuple[str, int, int], ...] = ()

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Return the names whose product is the coefficient."""
        return (self.coefficient,) if isinstance(self.coefficient, str) else self.coefficient


class Layout(NamedTuple):
    """A form as plain indices: a hashable argument of compiled programs.

    Attributes:
      num_terms: M; theta's first Q entries are log coefficients, of which each term has its own
        (Q = M) unless they are shared.
      num_parameters: P.
      powers: (term, parameter, +1 or -1, column of log z) for every power.
      floor: index of the term without powers, or None.
      shared: for each term, the log coefficients that add up to its own; None where it has its own.
    """

    num_terms: int
    num_parameters: int
    powers: tuple[tuple[int, int, int, int], ...]
    floor: int | None
    shared: tuple[tuple[int, ...], ...] | None = None

    @property
    def num_coefficients(self) -> int:
        """Return Q, the number of log coefficients, which come first in theta."""
        return self.num_terms if self.shared is None else 1 + max(map(max, self.shared))

    def coefficients_of(self, m: int) -> tuple[int, ...]:
        """Return which log coefficients add up to that of term m."""
        return (m,) if self.shared is None else self.shared[m]

    @property
    def sharing(self) -> np.ndarray:
        """Return [M, Q]: 1 where a term has a coefficient."""
        sharing_MQ = np.zeros((self.num_terms, self.num_coefficients))
        for m in range(self.num_terms):
            sharing_MQ[m, list(self.coefficients_of(m))] = 1.0
        return sharing_MQ

    def solve_coefficients(self, log_terms) -> np.ndarray:
        """Return the log coefficients [..., Q] that give the terms these logs [..., M].

        Least squares, where coefficients are shared.
        """
        if self.shared is None:
            return log_terms
        return log_terms @ np.linalg.pinv(self.sharing).T

    def design(self, log_z) -> np.ndarray:
        """Return A [R, M, P] with log terms = A theta, from log_z [R, K] or, with n, [R, K + 1]."""
        design_RMP = np.zeros((len(log_z), self.num_terms, self.num_parameters))
        for m in range(self.num_terms):
            design_RMP[:, m, list(self.coefficients_of(m))] = 1.0
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
            if powers or not term.powers or len(term.coefficients) > 1:
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
        """Return the names of the first Q parameters, the log coefficients."""
        terms = self.terms(num_factors, with_n)
        return tuple(dict.fromkeys(name for term in terms for name in term.coefficients))

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
        return np.arange(layout.num_parameters) >= layout.num_coefficients

    @cache  # noqa: B019
    def layout(self, num_factors: int, with_n: bool = True) -> Layout:
        """Return the form as indices."""
        terms, names = self.terms(num_factors, with_n), self.parameters(num_factors, with_n)
        shared = tuple(tuple(map(names.index, term.coefficients)) for term in terms)
        alone = shared == tuple((m,) for m in range(len(terms)))
        floors = () if not alone else (m for m, term in enumerate(terms) if not term.powers)
        return Layout(
            len(terms),
            len(names),
            tuple(
                (m, names.index(name), sign, num_factors if column == N else column)
                for m, term in enumerate(terms)
                for name, sign, column in term.powers
            ),
            next(iter(floors), None),
            None if alone else shared,
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


def _multiplied(labels, slow) -> tuple[Term, ...]:
    """List the terms of alpha Π_k (x_k^-a_k + gamma_k slow(k)) n^-d, multiplied out.

    Args:
      labels: of the factors.
      slow: (label, column) -> powers of the second part of a factor's sum.
    """
    sides = [
        (((), ((f"a_{s}", -1, k),)), ((f"gamma_{s}",), slow(s, k))) for k, s in enumerate(labels)
    ]
    terms = []
    for chosen in itertools.product(*sides):
        names = sum((names for names, _ in chosen), ("alpha",))
        terms.append(Term(names, (*sum((powers for _, powers in chosen), ()), ("d", -1, N))))
    return tuple(terms)


def _plateau(labels):
    """List the terms of alpha Π_k (x_k^-a_k + gamma_k) n^-d.

    Each factor's gain levels off by itself, whatever the others are: main effects in log space, as
    `add` has them in the error.
    """
    return _multiplied(labels, lambda s, k: ())


def _product_break(labels):
    """List the terms of alpha Π_k (x_k^-a_k + gamma_k x_k^-g_k) n^-d: two powers of each factor."""
    return _multiplied(labels, lambda s, k: ((f"g_{s}", -1, k),))


def _break(labels):
    """List the terms of `add` with two powers of each factor and of n, fast and slow.

    Where the slow one is absent, the factor's gain is a single power.
    """
    slow = tuple(Term(f"gamma_{s}", ((f"g_{s}", -1, k),)) for k, s in enumerate(labels))
    return (*_fall(labels), *slow, _DATA, Term("zeta", (("h", -1, N),)), _FLOOR)


def _cross(labels):
    """List the terms of `add-interact` and the product of the falls of each pair of factors."""
    pairs = itertools.combinations(enumerate(labels), 2)
    cross = tuple(
        Term(f"gamma_{s}{t}", ((f"a_{s}", -1, j), (f"a_{t}", -1, k))) for (j, s), (k, t) in pairs
    )
    return (*_fall(labels), *cross, *_interact(labels), _DATA, _FLOOR)


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
        Form("add-break", _break, frontier_moves=False),
        Form("add-interact-cross", _cross, frontier_moves=True),
        Form("mult-plateau", _plateau, frontier_moves=False),
        Form("mult-break", _product_break, frontier_moves=False),
        Form("li", _li, frontier_moves=False),
    )
}
"""The paper's four forms (6, 9, 14 and 15 parameters with three factors), four that go beyond
them (17, 18, 8 and 11), and Li et al.'s."""

OWN: dict[str, Form] = {}
"""Forms of users' files, by FILE.py:NAME#DIGEST; `fitting.own_forms` fills it."""

PAPER_FORMS = ("mult", "add", "add-interact-s", "add-interact")


def usable_forms(names, with_n: bool) -> list[str]:
    """Return the forms among `names` that can be fitted to runs with or without n."""
    return [name for name in names if with_n or not get_form(name).frontier_moves]


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


def decisive_form(config: FitConfig, num_factors: int, with_n: bool) -> tuple[str, int]:
    """Return the form of most parameters, and how many; of `auto`, which drops forms, of fewest."""
    names = [one.form for one in config.forms]
    if config.is_auto:
        names = usable_forms(names, with_n)
    sizes = {name: len(get_form(name).parameters(num_factors, with_n)) for name in names}
    name = (min if config.is_auto else max)(sizes, key=sizes.get)
    return name, sizes[name]
