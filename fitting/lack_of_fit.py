"""Test whether the runs contradict the form of a law, and whether it matters.

A law of the wrong form fits with a high R^2 and narrow intervals that do not hold the truth: random
resamples see noise, not the form. What the form leaves behind is structure in the residuals, and
several statistics look for it: curvature in the log of each factor and in their products, offsets
of a sweep, of a budget or of the largest n, residuals that resemble their neighbours', and, where
runs are repeated, more spread between configurations than within (the classical F test).

Their distribution under a right form is simulated: the fitted law plus the runs' residuals with
random signs, so that unequal noise and heavy tails stay where they are (the wild bootstrap, as
Stute, Gonzalez Manteiga and Presedo Quindimil, JASA 1998, for tests of regression), and a refit of
each simulated table. The least p of all statistics is compared with the least p of each simulation,
so that all of them together err at the stated level.

Large tables find any form wrong. So a significant lack of fit must also matter: the error that it
adds on the runs is held against the width of the law's own interval and against the noise.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy import stats

from fitting.bootstrap import wild_targets
from fitting.fits import Refits, refit
from fitting.law import BaggedFit
from fitting.runs import RunTable
from fitting.verdict import DOUBTFUL, HOLDS, NO_LAW, Test, Verdict

LEVEL = 0.05  # share of right laws that are found significantly wrong
SIMULATIONS = 199
OF_WIDTH = 0.5  # of the law's 90% interval: a misfit below this is inside what it says
OF_NOISE = 0.5  # of the run noise: such a misfit widens a new run's interval by a ninth
HALF = 0.5  # of the weight of a law of several forms: it holds if forms of so much weight hold
SPARE = 4  # runs beyond parameters below which nothing can be tested
REPLICATED = 10  # degrees of freedom within configurations from which the F test is made
SKILL = 0.2  # R^2 of leave-one-out below which there is no law
NEIGHBOURS = 3
SEEN = 0.03  # share of a direction's length outside the law's tangents below which it is not tested
MOST_OFFSETS = 8  # levels of a column of text beyond which it is a name, not a kind


class Directions(NamedTuple):
    """Ways in which residuals may depend on the runs.

    Attributes:
      columns: [R, Q], centred.
      tests: name -> indices of columns tested together.
      curved: indices of the columns that estimate the size of the misfit.
      near: [R, R], 1 for neighbours.
      replicate: int [R], equal for runs of one configuration and n.
    """

    columns: np.ndarray
    tests: dict[str, list[int]]
    curved: list[int]
    near: np.ndarray
    replicate: np.ndarray


class Finding(NamedTuple):
    """Outcome of all tests of one law.

    Attributes:
      tests: the statistics.
      p: of the least p of them all; NaN where nothing could be tested.
      misfit: root mean square error that the form adds on the runs, in the table's unit.
      width: median width of the law's 90% interval on the runs; 0 with a single member.
      noise: standard deviation of a run around the law without the misfit, in the table's unit.
      skill: R^2 of leave-one-out predictions.
      spare: runs beyond parameters.
    """

    tests: tuple[Test, ...]
    p: float
    misfit: float
    width: float
    noise: float
    skill: float
    spare: int

    @property
    def significant(self) -> bool:
        """Return whether chance alone seldom leaves such residuals."""
        return self.p <= LEVEL

    @property
    def holds(self) -> bool:
        """Return whether the runs do not contradict the law, or by too little to matter."""
        known = self.spare >= SPARE and not self.skill < SKILL
        return known and not (self.significant and self.matters)

    @property
    def matters(self) -> bool:
        """Return whether the misfit is more than the intervals allow for."""
        return self.misfit > OF_WIDTH * self.width and self.misfit > OF_NOISE * self.noise


def check(law: BaggedFit, table: RunTable, *, simulations: int = SIMULATIONS) -> Verdict:
    """Return whether the runs contradict the law.

    A law of several forms holds if forms with half of its weight do; a misfit of one of them counts
    against the interval of all.

    Args:
      law: fitted to all rows of the table that have a weight.
      table: the runs; its columns `sweep` and `budget`, where it has them, name groups of runs.
      simulations: tables that are simulated from the law and refitted.

    Raises:
      ValueError: the table is not the one that was fitted.
    """
    table = table.take(table.weights > 0)
    if not np.array_equal(table.error, law.runs.error):
        raise ValueError(f"{table.source}: these are not the runs that the law was fitted to")
    components = getattr(law, "components", (law,))
    weights = getattr(law, "weights", (1.0,))
    holding, found = 0.0, []
    for one, weight in zip(components, weights, strict=True):
        found.append(examine(one, table, simulations, whole=law))
        holding += weight * found[-1].holds
        if holding >= HALF or sum(weights[: len(found)]) - holding > HALF:
            break
    chosen = 0  # the component of most weight speaks, or, where the law holds, the first that does
    if holding >= HALF:
        chosen = next(i for i, one in enumerate(found) if one.holds)
    verdict = conclude(found[chosen], components[chosen], table)
    return verdict._replace(misfit=found[chosen].misfit)


def judged(law: BaggedFit, table: RunTable) -> BaggedFit:
    """Return the law with the verdict of `check`."""
    return dataclasses.replace(law, verdict=check(law, table))


# --- one law ---


def examine(
    law: BaggedFit, table: RunTable, simulations: int = SIMULATIONS, *, whole=None
) -> Finding:
    """Return what the tests say of one law and the runs it was fitted to.

    Args:
      whole: the law of several forms that this one is part of: its interval counts.
    """
    observed = refit(law, table)
    spare = len(table) - int(observed.rank[0])
    leverage_R = (observed.basis[0] ** 2).sum(axis=1)
    skill = _skill(observed, leverage_R)
    width_R = np.zeros(len(table))
    whole = law if whole is None else whole
    if len(whole.status) - whole.failures > 1:
        low, high = whole.interval(table.x, table.n)
        width_R = high - low
    per_unit_R = _points(law, table)
    if spare < SPARE:
        noise = float(np.sqrt((observed.residual[0] ** 2).sum() / max(spare, 1)))
        return Finding((), np.nan, 0.0, 0.0, noise * float(np.median(per_unit_R)), skill, spare)
    look = directions(table, spare)
    targets = wild_targets(
        observed.fitted[0],
        observed.target[0],
        observed.jacobian[0],
        law.runs.weights,
        simulations,
        law.config.seed,
        *([table.cluster] if getattr(table, "cluster", None) is not None else []),
    )
    simulated = refit(law, table, targets)
    found, chance = _statistics(observed, look), _statistics(simulated, look)
    p_T, p_ST = _p_values(found, chance)
    least = (1 + (p_ST.min(axis=1) <= p_T.min()).sum()) / (1 + simulations)
    share_R, noise = _misfit(observed, look)
    excess = np.mean((share_R * per_unit_R) ** 2) - np.mean((noise[1] * per_unit_R) ** 2)
    tests = [
        Test(name, float(value[0, 0]), float(p))
        for (name, value), p in zip(found.items(), p_T, strict=True)
    ]
    return Finding(
        tuple(sorted(tests, key=lambda test: test.p)),
        float(least),
        float(np.sqrt(max(excess, 0.0))),
        float(np.median(width_R)),
        float(noise[0] * np.median(per_unit_R)),
        skill,
        spare,
    )


def directions(table: RunTable, spare: int) -> Directions:
    """Return where to look for structure: curvature, products, offsets, neighbours, replicates."""
    names = [*table.factors, *([table.examples] if table.examples else [])]
    z_RC = table.x if table.n is None else np.column_stack([table.x, table.n])
    log_RC = np.log(z_RC)
    spread_C = log_RC.std(axis=0)
    varies = [c for c in range(len(names)) if spread_C[c] > 1e-12]
    log_RC = (log_RC - log_RC.mean(axis=0)) / np.where(spread_C > 1e-12, spread_C, 1.0)
    columns, tests, curved = [], {}, []
    squares = [(a, a) for a in varies if len(np.unique(z_RC[:, a])) > 2]
    products = [(a, b) for i, a in enumerate(varies) for b in varies[i + 1 :]]
    # Half of the spare runs at most, so that noise can still be told.
    pairs = [*squares, *products][: max(1, spare // 2)]
    for a, b in pairs:
        curved.append(len(columns))
        columns.append(log_RC[:, a] * log_RC[:, b])
    if curved:
        tests["curvature"] = curved
    for a in varies:
        own = [i for i, pair in zip(curved, pairs, strict=True) if a in pair]
        if len(own) > 1:
            tests[f"curvature in {names[a]}"] = own
    for name, group_R in _groups(table):
        tests[name] = [len(columns)]
        columns.append(group_R.astype(float))
    stacked = np.array(columns).T.reshape(len(table), -1)
    replicate = np.unique(z_RC, axis=0, return_inverse=True)[1].reshape(-1)
    return Directions(
        stacked - stacked.mean(axis=0), tests, curved, _near(log_RC[:, varies]), replicate
    )


def _groups(table: RunTable) -> list[tuple[str, np.ndarray]]:
    """Return (name, bool [R]) of groups of runs that may lie beside the law."""
    found = []
    for column in ("sweep", "budget"):
        values_R = table.columns.get(column, np.full(len(table), ""))
        levels = np.unique(values_R)
        for level in levels if len(levels) <= MOST_OFFSETS else ():
            found.append((f"{column} {level or 'none'} against the others", values_R == level))
    if table.n is not None:
        name = f"the largest {table.examples} against the others"
        found.append((name, table.n == table.n.max()))
    kept, seen = [], set()
    for name, group_R in found:
        key = min(group_R.tobytes(), (~group_R).tobytes())  # two groups, one contrast
        if 3 <= group_R.sum() <= len(table) - 3 and key not in seen:
            kept.append((name, group_R))
            seen.add(key)
    return kept


def _near(log_RC) -> np.ndarray:
    """Return [R, R]: 1/2 where one run is among the nearest of another, 1 if both are."""
    distance_RR = ((log_RC[:, None] - log_RC[None]) ** 2).sum(axis=-1)
    np.fill_diagonal(distance_RR, np.inf)
    near_RR = np.zeros(distance_RR.shape)
    count = min(NEIGHBOURS, len(log_RC) - 1)
    order = np.argsort(distance_RR, axis=1, kind="stable")[:, :count]
    np.put_along_axis(near_RR, order, 1.0, axis=1)
    return (near_RR + near_RR.T) / 2


# --- statistics; S refits at once ---


def _statistics(fits: Refits, look: Directions) -> dict[str, np.ndarray]:
    """Return {name: [S, 3]}: a value, and the degrees of freedom of an F (NaN for no F)."""
    residual_SR = _off(fits.basis, fits.residual[..., None])[..., 0]
    total_S = (residual_SR**2).sum(axis=1)
    spare_S = residual_SR.shape[1] - fits.rank
    found = {}
    for name, chosen in look.tests.items():
        explained_SR, freedom_S = _explained(fits, look.columns[:, chosen], residual_SR)
        square_S = (explained_SR**2).sum(axis=1)
        rest_S = np.maximum(spare_S - freedom_S, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            value_S = (square_S / freedom_S) / ((total_S - square_S) / rest_S)
        value_S = np.where(freedom_S > 0, value_S, 0.0)
        found[name] = np.stack([value_S, np.maximum(freedom_S, 1), rest_S], axis=1)
    unit_SR = residual_SR / np.sqrt(np.maximum(total_S, 1e-300))[:, None]
    alike_S = ((unit_SR @ look.near) * unit_SR).sum(axis=1)
    nothing = np.full(len(alike_S), np.nan)
    found["neighbours alike"] = np.stack([alike_S, nothing, nothing], axis=1)
    within_SR, within = _within(residual_SR, look.replicate, fits.root)
    if within >= REPLICATED:
        square_S = (within_SR**2).sum(axis=1)
        rest_S = np.maximum(spare_S - within, 1)
        value_S = np.maximum(total_S - square_S, 0) / rest_S / (square_S / within)
        found["replicates"] = np.stack([value_S, rest_S, np.full(len(rest_S), within)], axis=1)
    return found


def _within(residual_SR, replicate_R, root_R) -> tuple[np.ndarray, int]:
    """Return residuals [S, R] around the (weighted) mean of their replicates, and their freedom."""
    member_RG = (replicate_R[:, None] == np.unique(replicate_R)) * root_R[:, None]
    member_RG /= np.linalg.norm(member_RG, axis=0)
    return residual_SR - (residual_SR @ member_RG) @ member_RG.T, len(root_R) - member_RG.shape[1]


def _explained(fits: Refits, columns_RQ, residual_SR) -> tuple[np.ndarray, np.ndarray]:
    """Return the part [S, R] of the residuals that columns explain, and its freedom [S]."""
    columns_RQ = columns_RQ * fits.root[:, None]
    columns_RQ = columns_RQ / np.linalg.norm(columns_RQ, axis=0)
    left, length, _ = np.linalg.svd(_off(fits.basis, columns_RQ[None]), full_matrices=False)
    seen = length > SEEN  # a direction within the law's own tangents says nothing of its form
    left = left * seen[:, None]
    return _on(left, residual_SR[..., None])[..., 0], seen.sum(axis=1)


def _on(basis_SRP, columns):
    """Project columns [S, R, Q] on a basis."""
    return basis_SRP @ (np.swapaxes(basis_SRP, 1, 2) @ columns)


def _off(basis_SRP, columns):
    """Return what the projection leaves of the columns [S, R, Q]."""
    return columns - _on(basis_SRP, columns)


def _p_values(found: dict, chance: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return p [T] of what was found and [S, T] of the simulations.

    An F has its own distribution, which only orders the statistics among themselves: the level is
    set by the simulations.
    """
    p_T, p_ST = [], []
    for name, value in found.items():
        if np.isnan(value[0, 1]):
            middle, spread = chance[name][:, 0].mean(), chance[name][:, 0].std()
            scaled = [(v[:, 0] - middle) / max(spread, 1e-300) for v in (value, chance[name])]
            both = [stats.norm.sf(v) for v in scaled]
        else:
            both = [stats.f.sf(*v.T) for v in (value, chance[name])]
        p_T.append(both[0][0])
        p_ST.append(both[1])
    return np.array(p_T), np.array(p_ST).T


def _misfit(fits: Refits, look: Directions) -> tuple[np.ndarray, tuple[float, np.ndarray]]:
    """Return the misfit [R] that curvature explains, the noise without it, and by how much noise
    alone would seem to be misfit, [R], all in the space of the fit.
    """
    residual_SR = _off(fits.basis[:1], fits.residual[:1, :, None])[..., 0]
    one = Refits(*(v if k == "root" else v[:1] for k, v in fits._asdict().items()))
    explained_SR, freedom = _explained(one, look.columns[:, look.curved], residual_SR)
    rest = max(residual_SR.shape[1] - int(fits.rank[0]) - int(freedom[0]), 1)
    noise = np.sqrt(((residual_SR - explained_SR) ** 2).sum() / rest)
    share = np.sqrt(freedom[0] / residual_SR.shape[1])
    return explained_SR[0] / fits.root, (float(noise), noise * share / fits.root)


def _skill(fits: Refits, leverage_R) -> float:
    """Return R^2 of predicting each run from the others; runs that decide their own fit apart."""
    free_R = leverage_R < 0.9
    target_R, residual_R = fits.target[0], fits.residual[0] / fits.root
    spread = ((target_R - target_R.mean()) ** 2)[free_R].sum()
    if free_R.sum() < 3 or spread <= 0:
        return float("nan")
    left_out_R = residual_R / (1 - np.minimum(leverage_R, 0.9))
    return float(1 - (left_out_R[free_R] ** 2).sum() / spread)


def _points(law: BaggedFit, table: RunTable) -> np.ndarray:
    """Return by how much the error [R] changes a unit of the solver's space, at the whole fit."""
    if law.config.space == "linear":
        return np.full(len(table), law.reference)
    fitted = law.predict_whole(law.runs.z)
    return 1 / law.space.slope(fitted) if law.space.linked else fitted


# --- words ---


def conclude(found: Finding, law: BaggedFit, table: RunTable) -> Verdict:
    """Return the verdict on one law in words."""
    if found.spare < SPARE:
        reason = (
            f"{len(table)} runs for {len(law.parameters)} parameters leave nothing to test the "
            "form with."
        )
        return Verdict(DOUBTFUL, (reason,), "More runs, or a form with fewer parameters.")
    notes = _chance_notes(law, table, found.noise)
    if found.skill < SKILL:
        reason = (
            "The law predicts left-out runs hardly better than their mean does (R² "
            f"{found.skill:.2f}): these runs follow no law of this kind."
        )
        help = (
            "Check the column that is fitted; drop factors or runs without an effect; measure with "
            "more questions or repeat runs, if noise hides the effect."
        )
        return Verdict(NO_LAW, (reason, *notes), help, found.tests)
    if not found.significant:
        return Verdict(HOLDS, notes, "", found.tests)
    worst = found.tests[0]
    seen = f"most of all as {_what(worst.name)} (all tests together: p = {found.p:.2g})"
    size = f"{_number(found.misfit)} on the fitted scale"
    if not found.matters:
        reason = (
            f"Runs deviate from the form, {seen}, but by little: {size}, against a noise of "
            f"{_number(found.noise)} and an interval {_number(found.width)} wide."
        )
        return Verdict(HOLDS, (reason, *notes), "", found.tests)
    times = "" if not found.width else f", {found.misfit / found.width:.1f} times its 90% interval"
    reason = (
        f"The form is wrong by more than noise: the law misses its own runs by {size}{times}; it "
        f"shows {seen}."
    )
    help = (
        "Try other forms (--form auto, vvlm fit --compare), or fit only the region that you will "
        "choose from; do not trust intervals or P(best)."
    )
    return Verdict(DOUBTFUL, (reason, *notes), help, found.tests)


def _what(name: str) -> str:
    """Return the name of a test as part of a sentence."""
    return {
        "neighbours alike": "residuals that resemble their neighbours'",
        "replicates": "more spread between configurations than between repeats",
        "curvature": "curvature in the logs of the factors",
    }.get(name, name)


def _chance_notes(law: BaggedFit, table: RunTable, noise: float) -> tuple[str, ...]:
    """Return a note where scores are hardly above chance."""
    chance = getattr(law.config, "chance", 0.0)
    if not chance:
        return ()
    near = int((law.scale - table.error < chance + 2 * noise).sum())
    if not near:
        return ()
    return (
        f"{near} of {len(table)} scores are within noise of chance ({chance:g}); they say little.",
    )


def _number(value: float) -> str:
    return f"{value:.2g}"
