"""Choose the runs to train next: those that lower the expected regret of a decision most a FLOP.

A team asks questions: which configuration is best within a budget, at n examples. Its answer x* has
an expected regret over the members of the law, E[f(x*) - min f]. A further run at z tells about the
members through their covariance with its own error, so the answer may change for the better. How
much better, on average over what the run may show, is the value of that run; it is computed for all
candidates at once and for several repeats, and divided by the cost of training.

Beliefs move by linear regression on what a run shows, as in a Kalman filter. After a choice the
members are updated as if the run had been made, so the next choice knows of it (Matheron's rule).
The criterion is the knowledge gradient with correlated beliefs (Frazier et al., 2009), averaged
over the members and not over a Gaussian.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fitting.frontiers import by_cost
from fitting.intervals import run_noise
from fitting.law import BaggedFit
from fitting.optimise.lanes import FAILED

REPEATS = (1, 2, 4)
"""How often a candidate may be trained (with other seeds) in one choice."""

MOST_LEVELS = 8  # of a factor among the candidates, evenly spaced in logs
CONTENDERS = 60  # configurations followed for each question
PROMISING = 150  # candidates looked at again after the first choice: a gain seldom grows later
_NODES = ((-(3.0**0.5), 1 / 6), (0.0, 2 / 3), (3.0**0.5, 1 / 6))  # Gauss-Hermite, of a normal
_NOTHING = 1e-9  # of the scale: a gain that is rounding


class Question(NamedTuple):
    """A decision to be made: the best configuration within `budget`, at `num_examples`."""

    budget: float
    num_examples: float | None


class Run(NamedTuple):
    """A run to train.

    Attributes:
      x: configuration [K].
      num_examples: n; None for a law without n.
      repeats: how many trainings, with different seeds.
      cost: of all repeats, in the unit of the training cost.
      gain: by how much it lowers the expected regret, summed over the questions, in error points,
        after the runs chosen before it.
    """

    x: np.ndarray
    num_examples: float | None
    repeats: int
    cost: float
    gain: float


@dataclass(frozen=True, eq=False)
class Candidates:
    """Runs that could be trained.

    Attributes:
      x: configurations [Q, K].
      num_examples: [Q], or None for a law without n.
      cost: of training each once, [Q].
    """

    x: np.ndarray
    num_examples: np.ndarray | None
    cost: np.ndarray

    def affordable(self, spend: float) -> "Candidates":
        """Return those that cost at most `spend`."""
        keep = self.cost <= spend
        n = None if self.num_examples is None else self.num_examples[keep]
        return Candidates(self.x[keep], n, self.cost[keep])


def training_cost(cost: Callable, x, num_examples) -> np.ndarray:
    """Return 3 c(x) n: a forward pass costs c, its backward pass twice that (Appendix A.1)."""
    n = 1.0 if num_examples is None else num_examples
    return 3.0 * np.asarray(cost(x), float) * n


def candidates(domain, cost: Callable, num_examples=None) -> Candidates:
    """Return a spread of the domain's configurations at every n, with their training costs.

    Args:
      domain: configurations [X, K]; of a factor with more than `MOST_LEVELS` levels, that many are
        kept, evenly spaced in logs.
      cost: x [X, K] -> inference cost [X].
      num_examples: [M]; None for a law without n.
    """
    x = np.asarray(domain, float)
    keep = np.ones(len(x), bool)
    for column in x.T:
        keep &= np.isin(column, spread_levels(np.unique(column), MOST_LEVELS))
    x = x[keep]
    if num_examples is None:
        return Candidates(x, None, training_cost(cost, x, None))
    n = np.repeat(np.asarray(num_examples, float), len(x))
    x = np.tile(x, (len(np.atleast_1d(num_examples)), 1))
    return Candidates(x, n, training_cost(cost, x, n))


def spread_levels(levels, most: int) -> np.ndarray:
    """Return at most `most` of the sorted levels [M], evenly spaced in logs, both ends too."""
    if len(levels) <= most:
        return levels
    aims = np.geomspace(levels[0], levels[-1], most)
    return levels[np.unique(np.abs(np.log(levels) - np.log(aims)[:, None]).argmin(axis=1))]


def next_runs(
    law: BaggedFit,
    questions: Sequence[Question],
    domain,
    cost: Callable,
    offered: Candidates,
    *,
    count: int,
    spend: float,
) -> tuple[Run, ...]:
    """Return at most `count` runs whose training costs at most `spend` in all, the best first.

    Each choice lowers the expected regret most for its price, which is its share of the purse plus
    one of `count`: a choice uses up both.

    Args:
      law: a fitted law with several members.
      questions: the decisions that count, all alike.
      domain, cost: what a decision chooses from, as in `fitting.uncertainty.decide`.
      offered: the runs that could be trained.
      count: how many choices; a choice may train its configuration several times.
      spend: purse, in the unit of `offered.cost`.

    Raises:
      ValueError: a law with a single member, or no candidate within the purse.
    """
    beliefs = _Beliefs.of(law, questions, domain, cost, offered)
    if not (offered.cost <= spend).any():
        raise ValueError(
            f"no run can be trained for {spend:.4g}: the cheapest costs {offered.cost.min():.4g}"
        )
    price_RQ = np.array(REPEATS)[:, None] * offered.cost
    chosen, left, rows = [], spend, np.arange(len(offered.cost))
    for _ in range(count):
        gain_RQ = beliefs.gains(rows)
        worth_RQ = gain_RQ / (price_RQ[:, rows] / spend + 1 / count)
        worth_RQ[(price_RQ[:, rows] > left) | (gain_RQ <= _NOTHING * law.reference)] = -np.inf
        r, best = np.unravel_index(worth_RQ.argmax(), worth_RQ.shape)
        if worth_RQ[r, best] == -np.inf:
            break
        q, price = rows[best], float(price_RQ[r, rows[best]])
        n = None if offered.num_examples is None else float(offered.num_examples[q])
        chosen.append(Run(offered.x[q], n, REPEATS[r], price, float(gain_RQ[r, best])))
        beliefs, left = beliefs.after(q, REPEATS[r]), left - price
        rows = rows[np.argsort(-worth_RQ.max(axis=0), kind="stable")[:PROMISING]]
    return tuple(chosen)


class _Beliefs(NamedTuple):
    """The members' errors where they matter.

    Attributes:
      contenders: for each question, errors [X, B] of the configurations that may be the best.
      runs: errors [Q, B] of the candidates.
      noise: variance [Q] of a run around the law, in error points squared.
    """

    contenders: tuple[np.ndarray, ...]
    runs: np.ndarray
    noise: np.ndarray

    @classmethod
    def of(cls, law, questions, domain, cost, offered: Candidates) -> "_Beliefs":
        good = law.status != FAILED
        if good.sum() < 3:
            raise ValueError(
                "the next run is chosen by the spread of the members; this law has "
                f"{good.sum()}: fit it with --resamples 100"
            )

        least = 0.0 if np.isfinite(law.scale) else -np.inf  # a loss may be below 0

        def members(x, n):
            return np.clip(law.predict_members(x, n)[good].T, least, law.scale)

        contenders = []
        for question in questions:
            x, price = by_cost(domain, cost, question.budget)
            x = x[price <= question.budget]
            if not len(x):
                raise ValueError(f"no configuration costs {question.budget:.4g} or less")
            contenders.append(_contenders(members(x, question.num_examples)))
        runs_QB = members(offered.x, offered.num_examples)
        noise = run_noise(law)
        spread_Q = noise / law.space.slope(runs_QB.mean(axis=1))
        return cls(tuple(contenders), runs_QB, np.nan_to_num(spread_Q) ** 2 + 1e-12)

    def gains(self, rows) -> np.ndarray:
        """Return by how much candidates [Q] lower the expected regret, [REPEATS, Q].

        Each member in turn is the truth: the run shows its error with noise, the mean of the
        members moves by their regression on that error, and the choice with it.
        """
        gains_RQ, runs_QB = np.zeros((len(REPEATS), len(rows))), self.runs[rows]
        offset_QB = runs_QB - runs_QB.mean(axis=1, keepdims=True)
        variance_Q = (offset_QB**2).mean(axis=1)
        for error_XB in self.contenders:
            mean_X = error_XB.mean(axis=1)
            saved_XB = error_XB[mean_X.argmin()] - error_XB
            slope_QX = offset_QB @ (error_XB - mean_X[:, None]).T / error_XB.shape[1]
            for r, repeats in enumerate(REPEATS):
                noise_Q = self.noise[rows] / repeats
                gain_QX = slope_QX / (variance_Q + noise_Q)[:, None]
                for node, weight in _NODES:
                    seen_QB = offset_QB + node * np.sqrt(noise_Q)[:, None]
                    gains_RQ[r] += weight * _saved(mean_X, gain_QX, seen_QB, saved_XB)
        return np.maximum(gains_RQ, 0.0)

    def after(self, q: int, repeats: int) -> "_Beliefs":
        """Return the beliefs once candidate q is trained and shows what the members predict."""
        noise = self.noise[q] / repeats
        offset_B = self.runs[q] - self.runs[q].mean()
        draw_B = np.random.default_rng(q).standard_normal(len(offset_B)) * np.sqrt(noise)
        surprise_B = offset_B + draw_B - draw_B.mean()
        total = (offset_B**2).mean() + noise

        def update(error):
            gain = (error - error.mean(axis=1, keepdims=True)) @ offset_B / len(offset_B) / total
            return error - gain[:, None] * surprise_B

        return _Beliefs(tuple(map(update, self.contenders)), update(self.runs), self.noise)


def _saved(mean_X, gain_QX, seen_QB, saved_XB) -> np.ndarray:
    """Return what is saved [Q], on average over members, by choosing again after each showing."""
    saved_Q = np.empty(len(gain_QX))
    for q, (gain_X, seen_B) in enumerate(zip(gain_QX, seen_QB, strict=True)):
        chosen_B = (mean_X[:, None] + gain_X[:, None] * seen_B).argmin(axis=0)
        saved_Q[q] = saved_XB[chosen_B, np.arange(len(seen_B))].mean()
    return saved_Q


def _contenders(error_XB) -> np.ndarray:
    """Return the rows of configurations that are the best of a member or nearly so on average."""
    winners = np.unique(error_XB.argmin(axis=0))
    order = np.argsort(error_XB.mean(axis=1), kind="stable")
    rows = list(dict.fromkeys([*order[: CONTENDERS // 2], *winners, *order[:CONTENDERS]]))
    return error_XB[rows[:CONTENDERS]]
