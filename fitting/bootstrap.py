"""Resample runs as weights [B, R], so that array shapes never change, or as wild targets."""

import numpy as np

LEAST_CLUSTERS = 4  # of a stratum: fewer hardly show how they differ


def resample_weights(
    num_runs: int,
    resamples: int,
    seed: int,
    *,
    rows=None,
    strata=None,
    clusters=None,
    kind: str = "count",
    inflation: float = 1.0,
):
    """Return the weight of each run in each resample.

    An iid resample of a small star can lose a whole language-model size (8.5% of the resamples of
    the paper's 39 star runs); strata keep every group at its own size. Runs that share a cause (a
    seed, a parent run) form a cluster, which is drawn as a whole.

    Within a stratum of m units, and of m clusters, m - 1 units are drawn and count m / (m - 1)
    times each (Rao and Wu 1988): drawing m, as the iid bootstrap does, understates a variance by
    (m - 1) / m, a half where m is 2. Few clusters need more (see `freedom_of_clusters`).

    Args:
      num_runs: R.
      resamples: B.
      seed: of numpy's generator.
      rows: bool [R], the runs to draw from; the others get weight 0. All by default.
      strata: [R] labels; units are drawn within each label. One stratum by default.
      clusters: [R] labels; the runs of one are a unit. A run is a unit by default. A cluster with
        runs in several strata is of a stratum of all clusters with runs in these.
      kind: 'count', how often a unit is drawn (multinomial); or 'dirichlet', the Bayesian
        bootstrap's flat Dirichlet weights, of which none is 0 (of clusters: with variance 1).
      inflation: variance of the weights of clusters, 1 or more.

    Returns:
      [B, R] float64; without clusters each row sums to the number of runs drawn from.

    Raises:
      ValueError: no run to draw from.
    """
    rows = np.ones(num_runs, bool) if rows is None else np.asarray(rows, bool)
    if not rows.any():
        raise ValueError("a resample needs at least one run to draw from")
    used = np.flatnonzero(rows)
    unit_U = np.arange(len(used))
    if clusters is not None:
        unit_U = np.unique(np.asarray(clusters)[used], return_inverse=True)[1]
    corrected = strata is not None or clusters is not None
    strata = np.zeros(num_runs, int) if strata is None else np.asarray(strata)
    least = 2 if clusters is None else LEAST_CLUSTERS
    stratum_G = strata_of_units(strata[used], unit_U, least)
    rng = np.random.default_rng(seed)
    weights_BG = np.zeros((resamples, len(stratum_G)))
    for label in np.unique(stratum_G):
        members = np.flatnonzero(stratum_G == label)
        weights_BG[:, members] = _drawn(rng, len(members), resamples, kind, corrected, inflation)
    weights_BR = np.zeros((resamples, num_runs))
    weights_BR[:, used] = weights_BG[:, unit_U]
    return weights_BR


def _drawn(rng, size: int, resamples: int, kind: str, corrected: bool, inflation: float):
    """Return weights [B, m] of the m units of a stratum; a single one always has weight 1."""
    spare = (size - 1) / inflation  # draws that give the weights the variance `inflation`
    if kind == "dirichlet":
        alpha = max((spare - 1) / size, 0.1) if corrected and size > 2 else 1.0
        return size * rng.dirichlet(np.full(size, alpha), size=resamples)
    count = max(round(spare), 1) if corrected else size
    drawn = rng.multinomial(count, np.full(size, 1 / size), size=resamples)
    return drawn * (size / count)


def strata_of_units(strata_R, unit_R, least: int = 2) -> np.ndarray:
    """Return the stratum [G] of each unit (0 to G - 1 in unit_R), of `least` units or more.

    Smaller strata are pooled, and join the smallest of the others if they are too few even so.
    Otherwise a single unit would have weight 1 in every resample, as if its noise were known to be
    what it was.
    """
    touched = [set() for _ in range(unit_R.max() + 1)]
    for unit, label in zip(unit_R, strata_R, strict=True):
        touched[unit].add(label)
    keys = {key: i for i, key in enumerate(dict.fromkeys(map(frozenset, touched)))}
    stratum_G = np.array([keys[frozenset(labels)] for labels in touched])
    sizes = np.bincount(stratum_G)
    pooled = np.isin(stratum_G, np.flatnonzero(sizes < least))
    if 0 < pooled.sum() < least and not pooled.all():
        others = np.where(sizes < least, len(stratum_G), sizes)
        stratum_G[pooled] = others.argmin()
    elif pooled.any():
        stratum_G[pooled] = stratum_G[pooled][0]
    return stratum_G


def freedom_of_clusters(jacobian, weights, clusters) -> tuple[float, int]:
    """Return (degrees of freedom of the clusters' differences, number of clusters).

    A law spends parameters on differences between clusters: as many as the trace of the hat matrix
    times the projection on the clusters' means. What is left, often few, is what the spread between
    clusters is learnt from.

    Args:
      jacobian: [R, P]; weights: [R]; clusters: labels [R].
    """
    used = np.asarray(weights) > 0
    root = np.sqrt(np.asarray(weights)[used])
    basis = _basis(root[:, None] * jacobian[used])
    unit = np.unique(np.asarray(clusters)[used], return_inverse=True)[1]
    sums = np.zeros((unit.max() + 1, basis.shape[1]))
    np.add.at(sums, unit, root[:, None] * basis)
    spent = ((sums**2).sum(axis=1) / np.bincount(unit, root**2)).sum()
    count = int(unit.max() + 1)
    return float(max(count - spent, 1.0)), count


def inflation_of(freedom: float, count: int, kind: str) -> float:
    """Return the variance that weights of clusters need, so that 90% intervals are t intervals.

    Residuals understate the noise of clusters by freedom / count. Drawing clusters makes up for
    that, as a fit without a cluster moves by more than its residual; Dirichlet weights do not.
    """
    from scipy import stats

    wider = (stats.t.ppf(0.95, freedom) / stats.norm.ppf(0.95)) ** 2
    return float(wider * (count / freedom if kind == "dirichlet" else 1.0))


def _basis(jacobian) -> np.ndarray:
    """Return an orthonormal basis [R, rank] of the columns."""
    basis, singular, _ = np.linalg.svd(jacobian, full_matrices=False)
    return basis[:, singular > 1e-10 * singular.max(initial=1e-300)]


def wild_targets(
    fitted, target, jacobian, weights, resamples: int, seed: int, clusters=None
) -> np.ndarray:
    """Return targets [B, R] of the wild bootstrap: the fit plus residuals with random signs.

    The design stays as it is, so no level is ever lost, and each run keeps its own noise. A fitted
    residual is smaller than the noise, by sqrt(1 - leverage); HC2 makes up for that. The runs of a
    cluster get one sign, and their residuals are multiplied by (I - H_gg)^(-1/2), H_gg the block
    of the hat matrix (CR2, Bell and McCaffrey 2002), which is HC2 for a cluster of one run. All
    residuals of a resample are multiplied by a draw of sqrt(f / chi2_f), f the freedom of the
    clusters, since few clusters tell their spread roughly: members spread as a t variable does.

    Args:
      fitted, target: [R], both in the space of the loss.
      jacobian: of fitted by theta, [R, P].
      weights: [R], of the fit; runs with weight 0 keep their target.
      resamples: B.
      seed: of numpy's generator.
      clusters: [R] labels; None for runs that share nothing.
    """
    used = weights > 0
    root = np.sqrt(weights[used])
    basis = _basis(root[:, None] * jacobian[used])
    noise, rng = (target - fitted)[used], np.random.default_rng(seed)
    if clusters is None:
        leverage = np.minimum((basis**2).sum(axis=1), 1 - 1e-3)  # a run fitted exactly says nothing
        noise = noise / np.sqrt(1 - leverage)
        signs_BR = rng.choice([-1.0, 1.0], size=(resamples, used.sum()))
    else:
        unit = np.unique(np.asarray(clusters)[used], return_inverse=True)[1]
        for g in range(unit.max() + 1):
            rows = np.flatnonzero(unit == g)
            bend, axes = np.linalg.eigh(np.eye(len(rows)) - basis[rows] @ basis[rows].T)
            grown = (axes / np.sqrt(np.maximum(bend, 1e-3))) @ (axes.T @ (root * noise)[rows])
            noise[rows] = grown / root[rows]
        signs_BR = rng.choice([-1.0, 1.0], size=(resamples, unit.max() + 1))[:, unit]
        freedom, _ = freedom_of_clusters(jacobian, weights, clusters)
        signs_BR *= np.sqrt(freedom / rng.chisquare(freedom, size=(resamples, 1)))
    targets_BR = np.tile(np.asarray(target, float), (resamples, 1))
    targets_BR[:, used] = fitted[used] + signs_BR * noise
    return targets_BR


def mostly_single(values) -> bool:
    """Return whether most levels of a column [R] have one run, as those of a continuous one do."""
    counts = np.unique(np.asarray(values), return_counts=True)[1]
    return bool((counts == 1).mean() > 0.5)


def fewest_levels(x) -> int:
    """Return the index of the column of x [R, K] with the fewest levels, two or more."""
    counts = [len(np.unique(column)) for column in x.T]
    return min(range(len(counts)), key=lambda k: (counts[k] == 1, counts[k]))


def lost_levels(weights, levels) -> np.ndarray:
    """Return bool [B]: which resamples, weights [B, R], contain no run of some level [R].

    A level that no resample holds (left out on purpose) does not count.
    """
    held_BL = np.stack([weights[:, levels == level].sum(axis=1) for level in np.unique(levels)], 1)
    return (held_BL[:, held_BL.any(axis=0)] == 0).any(axis=1)
