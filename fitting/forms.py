"""The functional forms of the law f(x, n), and how to add one.

Every form is a sum of terms, each a coefficient times powers of the factors and of n:

    f = sum_k alpha_k x_k^-a_k + sum_k beta_k x_k^b_k n^-d + xi n^-d + epsilon       equation 3

In log space a term is linear in (log coefficient, exponents), so a form is a log-sum-exp of linear
functions: log f = logsumexp_m (A theta)_m, where A [R, M, P] depends on the runs alone. To add a
form, write the function that lists its terms for K factors and enter it in `FORMS`; parameter
names, starts, the fit and the reports follow from the list.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

N = -1  # the column of num_examples, after the K factors


@dataclass(frozen=True)
class Term:
    """coefficient x product of base^(sign x exponent).

    Attributes:
      coefficient: its name; the parameter is its log, so that the coefficient is positive.
      powers: (exponent name, +1 or -1, column of the factor, or `N`) for every power.
    """

    coefficient: str
    powers: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True)
class Form:
    """A named list of terms for any number of factors; parameters theta [P] = logs, exponents.

    Attributes:
      name: the paper's name (table of forms, Appendix D).
      list_terms: labels of the K factors -> tuple of `Term`.
      frontier_moves: whether the best x at a budget depends on n.
    """

    name: str
    list_terms: Callable[[tuple[str, ...]], tuple[Term, ...]]
    frontier_moves: bool

    @cache  # noqa: B019  forms live as long as the process
    def terms(self, num_factors: int) -> tuple[Term, ...]:
        """The M terms."""
        return self.list_terms(factor_labels(num_factors))

    def coefficients(self, num_factors: int) -> tuple[str, ...]:
        """Names of the first M parameters, log coefficients, one a term."""
        return tuple(term.coefficient for term in self.terms(num_factors))

    def exponents(self, num_factors: int) -> tuple[str, ...]:
        """Names of the other parameters, exponents; that of n comes last."""
        powers = [power for term in self.terms(num_factors) for power in term.powers]
        return tuple(dict.fromkeys(p[0] for p in sorted(powers, key=lambda p: p[2] == N)))

    def parameters(self, num_factors: int) -> tuple[str, ...]:
        """Names of all P parameters, in the order of theta."""
        return self.coefficients(num_factors) + self.exponents(num_factors)

    def is_exponent(self, num_factors: int) -> np.ndarray:
        """Bool [P]: True where theta holds an exponent, False where a log coefficient."""
        return np.arange(len(self.parameters(num_factors))) >= len(self.terms(num_factors))

    def design(self, log_x, log_n) -> np.ndarray:
        """A [R, M, P] with log f = logsumexp over M of A theta, from log_x [R, K], log_n [R]."""
        log_z = np.concatenate([log_x, np.asarray(log_n)[:, None]], axis=1)
        num_factors = log_x.shape[1]
        terms, names = self.terms(num_factors), self.parameters(num_factors)
        design_RMP = np.zeros((len(log_z), len(terms), len(names)))
        for m, term in enumerate(terms):
            design_RMP[:, m, m] = 1.0
            for exponent, sign, column in term.powers:
                design_RMP[:, m, names.index(exponent)] += sign * log_z[:, column]
        return design_RMP

    def log_error(self, theta, log_x, log_n):
        """log f [R] of one theta [P] at log_x [R, K], log_n [R]; pure, for numpy or jax theta."""
        return log_sum_exp(self.design(log_x, log_n) @ theta)


def log_sum_exp(log_terms):
    """log of the sum of exponentials over the last axis; the arrays' own library does the work."""
    xp = log_terms.__array_namespace__()
    top = xp.max(log_terms, axis=-1, keepdims=True)
    return (top + xp.log(xp.sum(xp.exp(log_terms - top), axis=-1, keepdims=True)))[..., 0]


def factor_labels(num_factors: int) -> tuple[str, ...]:
    """N, T, V (language model, frames, tokens) for three factors, else 1, 2, ..., K."""
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
    )
}
"""The paper's four forms, by name: 6, 9, 14 and 15 parameters with three factors."""


def get_form(name: str) -> Form:
    """The form of that name; ValueError names the nearest one."""
    if name in FORMS:
        return FORMS[name]
    near = difflib.get_close_matches(name, FORMS, n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"no form {name!r}{hint} Forms: {', '.join(FORMS)}")
