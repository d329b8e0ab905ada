"""Report one fit as text: settings, values, convergence and residuals.

Takes a `fitting.fits.BaggedFit`; pure text, no computation that the fit does not keep the data for.
"""

import numpy as np

from fitting.naming import labels as labels_of
from fitting.optimise import objective
from fitting.optimise.objective import Loss

WIDE = 2.0  # 90% range of a log coefficient from which it counts as undetermined: a factor e^2
WIDE_EXPONENT = 1.0  # the same of an exponent, as a multiple of its size: half of it to either side
ZERO = 0.1  # |exponent| below which a range this wide is small: over a decade of x, a quarter
WIDE_FLOOR = 0.25  # the same of the floor, as a share of the least error of the runs
Z90 = 3.29  # width of a 90% interval in standard errors
SELDOM = 0.05  # share of members: a term absent in fewer is there, in all but so few is not
CORRELATED = 0.95  # |correlation| over members worth a line
SHOWN_TESTS = 3  # of the lack of fit
MOST_LEVELS = 12  # of a factor, shown one by one; more are cut into quarters


def report(law) -> str:
    """Return the report."""
    sections = _card, _verdict, _values, _correlations, _members, _residuals, _ranges
    return "\n\n".join(text for text in (section(law) for section in sections) if text)


def parameter_rows(law) -> list[tuple]:
    """Return (name, whole fit, median, 5%, 95%, note) of every parameter, in readable form."""
    good_BP = np.where(law.absent, 0.0, law.values)[np.isfinite(law.theta).all(axis=1)]
    low, mid, high = np.quantile(good_BP, [0.05, 0.5, 0.95], axis=0)
    whole = np.where(law.absent_in(law.whole.theta)[0], 0.0, law.readable(law.whole.theta[0]))
    return list(zip(law.parameters, whole, mid, low, high, _notes(law), strict=True))


def standard_errors(law) -> tuple[np.ndarray, np.ndarray]:
    """Return standard errors [P] and singular values of the whole fit, from its scaled Jacobian.

    Columns are scaled to length 1, so that a singular value near 0 is a combination of parameters
    that the runs do not see; its parameters get an infinite standard error.
    """
    root = np.sqrt(law.runs.weights)
    residual, jacobian = (root * part.T for part in linearised(law))
    free_P = ~law.fixed
    jacobian = jacobian.T[:, free_P]
    length = np.linalg.norm(jacobian, axis=0)
    _, singular, rotation = np.linalg.svd(jacobian / np.maximum(length, 1e-300), False)
    freedom = max(len(residual) - jacobian.shape[1], 1)
    seen = singular > 1e-7 * singular.max(initial=1e-300)
    variance = ((rotation[seen] / singular[seen, None]) ** 2).sum(axis=0)
    blind = np.vstack([rotation[~seen], np.zeros((1, jacobian.shape[1]))])
    unseen = (length < 1e-9) | ((blind**2).sum(axis=0) > 1e-2)
    unseen |= len(residual) < jacobian.shape[1]
    error = np.sqrt(variance * (residual**2).sum() / freedom) / np.maximum(length, 1e-300)
    error_P = np.zeros(len(free_P))
    error_P[free_P] = np.where(unseen, np.inf, error)
    return error_P, singular


def undetermined(law) -> np.ndarray:
    """Return bool [P]: parameters that the runs do not determine.

    The 90% range of the members, or that of the whole fit's standard error, is wider than the
    parameter's own measure: a factor of e^2 for a coefficient; for an exponent its own size, so
    that a range which leaves its sign open is always too wide (`ZERO` where it is next to none);
    for the floor a quarter of the least error. Or the members do not agree on whether the term is
    there at all. A coefficient that is 0 in nearly all of them is an answer.
    """
    good_B = np.isfinite(law.theta).all(axis=1)
    good_BP, absent_BP = law.theta[good_B], law.absent[good_B]
    absent_P = absent_BP.mean(axis=0)
    good_BP = np.where(absent_BP, np.median(good_BP, axis=0), good_BP)  # its log is arbitrary
    low, mid, high = np.quantile(good_BP, [0.05, 0.5, 0.95], axis=0)
    most = np.where(law.is_exponent, np.maximum(WIDE_EXPONENT * np.abs(mid), ZERO), WIDE)
    wide = np.maximum(high - low, Z90 * standard_errors(law)[0]) > most
    wide |= absent_P > SELDOM  # a range from 0 up
    wide &= absent_P < 1 - SELDOM
    floor = law.layout.floor
    if floor is not None:  # 0 is one of its values
        value_B = np.where(law.absent, 0.0, law.values)[good_B, floor]
        low, high = np.quantile(value_B, [0.05, 0.95])
        least = WIDE_FLOOR * law.runs.error.min()
        wide[floor] = high - low > (law.reference / 10 if law.config.free_floor else least)
    return wide


def excluded(law) -> np.ndarray:
    """Return bool [P]: exponents whose 90% range ends at a bound, which then cuts it off.

    What lies beyond is excluded by the bound, not by the runs.
    """
    return law.at_cap > SELDOM * max(1, int(np.isfinite(law.theta).all(axis=1).sum()))


def linearised(law) -> tuple[np.ndarray, np.ndarray]:
    """Return the whole fit's residuals [R] and Jacobian [R, P], unweighted, in its space."""
    loss = Loss(law.config.space, None, law.config.free_floor)
    target = law.space.forward(law.runs.error)
    log_z = np.log(law.runs.z / law.units).T[None]
    residual, jacobian = objective.residuals_and_jacobian(
        law.whole.theta, log_z, target[None], np.ones((1, len(target))), law.layout, loss
    )
    return residual[0], jacobian[0].T


def _notes(law) -> list[str]:
    size = int(np.isfinite(law.theta).all(axis=1).sum())
    absent_P, unknown_P, excluded_P = law.absent.sum(axis=0), undetermined(law), excluded(law)
    notes = []
    columns = law.at_cap, absent_P, unknown_P, excluded_P, law.fixed
    for capped, absent, unknown, more, fixed in zip(*columns, strict=True):
        note = [f"at its bound{_of(capped, size)}"] * bool(capped)
        note += [f"at its bound 0 (absent){_of(absent, size)}"] * bool(absent)
        if more:
            note.append("the bound excludes values that the runs allow")
        elif unknown:
            note.append("not determined by the data")
        notes.append("fixed" if fixed else ", ".join(note))
    return notes


def _of(count: int, size: int) -> str:
    return f" in {count} of {size}" if size > 1 else ""


def _card(law) -> str:
    config = law.config
    loss = "squares" if config.loss == "mse" else f"Huber (delta {config.huber_delta:g})"
    starts = f"{config.starts} starts ({config.init})"
    if config.init == "zero":
        starts = "one start at zero"
    bag = f"{len(law.theta)} resamples ({config.resampling}), {config.aggregate} of predictions"
    if config.resampling == "none":
        bag = "no resampling: one fit, no spread"
    units = ", ".join(f"{u:g} {name}" for name, u in zip(law.columns, law.units, strict=True))
    labels = zip(labels_of(law.factors), law.factors, strict=True)
    weighted = ", weighted" * bool(np.ptp(law.runs.weights))
    rows = [
        ("law", f"{config.form}, {len(law.parameters)} parameters, of {law.metric}"),
        ("factors", ", ".join(k if k == name else f"{k} = {name}" for k, name in labels)),
        ("runs", f"{law.num_runs} from {law.source}{weighted}, sha256 {law.runs.sha256[:12]}"),
        ("loss", f"{loss} of {law.space.name}; {_exponents(config)}"),
        *[("link", _link(law))] * law.space.linked,
        ("search", f"{starts}, {config.solver}, seed {config.seed}"),
        ("bag", bag),
        ("units", units),
    ]
    if law.runs.noise is not None or law.runs.cluster is not None:
        rows.insert(3, ("noise", _scatter(law)))
    if law.tiny_noise:
        rows.append(("warning", law.tiny_noise))
    if law.num_runs <= len(law.parameters):
        rows.append(("warning", "no more runs than parameters: nothing is left to check the law"))
    return "\n".join(f"{name:<8} {text}" for name, text in rows)


def _link(law) -> str:
    share = f"e = error / {law.space.ceiling:g}"
    terms = "e / (1 - e)" if law.space.kind == "logit" else "-log(1 - e)"
    return f"{law.space.kind}: terms add up to {terms}, {share}; chance {law.config.chance:g}"


def _verdict(law) -> str:
    """Return whether the runs contradict the form; '' where it was not tested."""
    if law.verdict is None:
        return ""
    found = law.verdict
    lines = [f"lack of fit: {found.verdict}", *found.reasons, *[found.help] * bool(found.help)]
    seen = [f"{test.name} {test.p:.2g}" for test in found.tests[:SHOWN_TESTS]]
    if seen:
        lines.append(f"least of {len(found.tests)} p values: {', '.join(seen)}")
    return "\n  ".join(lines)


def _scatter(law) -> str:
    """Return the parts of the runs' scatter: evaluation, training, clusters."""
    found, log = law.scatter, law.config.space == "log"
    unit, size = ("% of the error", 100.0) if log else (" points", 1.0)
    parts = []
    if law.runs.noise is not None:
        known = np.median(law.in_fitted_space(law.runs.noise))
        shared = f", {found.share:.0%} of its square between runs" * (found.share < 1)
        parts.append(f"evaluation {size * known:.2g}{unit} (median{shared})")
    parts.append(f"training {size * np.sqrt(found.training):.2g}{unit}")
    if law.runs.cluster is not None:
        count = len(np.unique(law.runs.cluster))
        parts.append(f"between {count} clusters {size * np.sqrt(found.cluster):.2g}{unit}")
    return ", ".join(parts)


def _exponents(config) -> str:
    low = "0 <= " if config.bound_exponents else ""
    if config.exponent_cap is None:
        return "exponents >= 0, without a cap" if low else "exponents free"
    return f"{low or '|'}exponent{'' if low else '|'} <= {config.exponent_cap:g}"


def _values(law) -> str:
    if law.degenerate:
        return (
            f"DEGENERATE: {law.degenerate}.\nThe parameters mean nothing and are not shown. Keep "
            "the floor at 0 or above (no free floor), or add runs that reach it."
        )
    shown = 1 if law.config.resampling == "none" else 4  # without a bag there is no spread
    heads = ("all runs", "median", "5%", "95%")[:shown]
    measure = f"error points (of {law.scale:g})" if np.isfinite(law.scale) else "units of the loss"
    if law.space.linked:
        measure = "odds" if law.space.kind == "logit" else "-log accuracy"
    lines = [f"coefficients in {measure} where each factor is one unit"]
    width = max(10, *map(len, law.parameters))
    lines.append(" " * width + "".join(f" {head:>10}" for head in heads))
    for name, *values, note in law.parameter_rows():
        cells = "".join(f" {value:>10.4g}" for value in values[:shown])
        lines.append(f"{name:<{width}}{cells}  {note}".rstrip())
    return "\n".join(lines)


def _correlations(law) -> str:
    good_BP = law.theta[np.isfinite(law.theta).all(axis=1)]
    moving = np.flatnonzero(np.ptp(good_BP, axis=0) > 1e-9)
    if law.degenerate or len(good_BP) < 10 or len(moving) < 2:
        return ""
    matrix = np.corrcoef(good_BP[:, moving].T)
    rows, columns = np.triu_indices(len(moving), 1)
    strength = np.abs(matrix[rows, columns])
    pairs = [
        f"{law.parameters[moving[rows[i]]]}, {law.parameters[moving[columns[i]]]} "
        f"{matrix[rows[i], columns[i]]:+.2f}"
        for i in np.argsort(-strength)[:6]
        if strength[i] >= CORRELATED
    ]
    return "correlated over members: " + "; ".join(pairs) if pairs else ""


def _members(law) -> str:
    good = np.isfinite(law.objective)
    whole, bagged = law.whole, law.config.resampling != "none"
    fits = "Huber loss" if law.config.loss == "huber" else "mean squared residual"
    fits = f"{fits}: all runs {whole.objective[0]:.4g}"
    fits += f" (gradient {whole.gradient_norm[0]:.0e} of it)"
    lines = [f"status     {law.status_names[whole.status[0]]}", f"objective  {fits}"]
    basin = f"{whole.basin_share[0]:.1%} of the starts reach the optimum of all runs"
    if bagged:
        counts = np.bincount(law.status, minlength=3)
        status = ", ".join(f"{c} {t}" for c, t in zip(counts, law.status_names, strict=True))
        ends = np.min(law.objective[good]), np.max(law.objective[good])
        lines = [f"members    {status}", lines[1] + ", members {:.4g} to {:.4g}".format(*ends)]
        basin += f"; members' candidates {np.median(law.bag.basin_share):.0%} (median)"
    if law.config.init == "zero":
        basin = "not known: one start, at zero"
    lines.append(f"basin      {basin}")
    if law.lost_levels:
        lines.append(
            f"lost       {law.lost_levels} of {len(law.theta)} resamples hold no run of some level "
            f"of {law.level_factor}; resampling 'stratified' or 'wild' avoids it"
        )
    _, singular = standard_errors(law)
    blind = int((singular <= 1e-7 * singular[0]).sum())
    if blind:
        lines.append(f"blind      {blind} combinations of parameters change no fitted run")
    return "\n".join(lines)


def _residuals(law) -> str:
    """Return mean and root mean square of the relative residuals, by level of each column."""
    fitted = law.predict_whole(law.runs.z)
    miss = 100 * (fitted - law.runs.error) / np.maximum(np.abs(law.runs.error), 1e-300)
    total = ((law.runs.error - law.runs.error.mean()) ** 2).sum()
    r2 = 1 - ((fitted - law.runs.error) ** 2).sum() / total if total > 0 else np.nan
    worst = int(np.argmax(np.abs(miss)))
    plain = ", unweighted" * bool(np.ptp(law.runs.weights))
    lines = [
        f"residuals  of all runs{plain}: {np.sqrt(np.mean(miss**2)):.2f}% root mean square, "
        f"R² {r2:.3f}, AICc {_aicc_text(law)}; "
        f"worst {law.runs.run_id[worst]} {miss[worst]:+.1f}%",
        f"{'':<28} {'runs':>5} {'mean %':>8} {'rms %':>8}",
    ]
    for name, column in zip(law.columns, law.runs.z.T, strict=True):
        for label, rows in _levels(column):
            lines.append(
                f"  {name + ' ' + label:<26} {rows.sum():>5} {miss[rows].mean():>+8.2f} "
                f"{np.sqrt(np.mean(miss[rows] ** 2)):>8.2f}"
            )
    return "\n".join(lines)


def _aicc_text(law) -> str:
    if law.config.loss == "huber":
        return "- (Huber's loss is no likelihood)"
    return f"{law.aicc:.1f}" if np.isfinite(law.aicc) else "- (too few runs)"


def _levels(column) -> list[tuple]:
    """Return (label, rows) of each level, or of each quarter where there are many."""
    levels = np.unique(column)
    if len(levels) <= MOST_LEVELS:
        return [(f"{level:g}", column == level) for level in levels]
    edges = np.quantile(column, [0, 0.25, 0.5, 0.75, 1])
    quarter = np.clip(np.searchsorted(edges, column, side="right") - 1, 0, 3)
    return [
        (f"{column[quarter == q].min():g} to {column[quarter == q].max():g}", quarter == q)
        for q in np.unique(quarter)
    ]


def _ranges(law) -> str:
    spans = ", ".join(
        f"{name} {low:g} to {high:g}"
        for name, (low, high) in zip(law.columns, law.ranges, strict=True)
    )
    return f"fitted on {spans}; beyond that a prediction extrapolates"
