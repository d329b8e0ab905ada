"""Vary one option of a fit at a time: the paper's ablations (Tables 8 and 9)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fitting.config import FitConfig
from fitting.runs import RunTable
from fitting.splits import Split
from fitting.validation import Comparison, Score, Validation, compare, predict_split, score_cells


def variations(config: FitConfig) -> dict[str, FitConfig]:
    """Return the config and the paper's variations of it (Table 8), by name."""
    few = max(1, config.starts // 5)  # the paper's 100 of 500
    return {
        "as asked": config,
        "huber": config.replace(loss="huber"),
        "zero init": config.replace(init="zero"),
        f"{few} starts": config.replace(starts=few),
        "exponents bounded": config.replace(bound_exponents=True),
        "not in log space": config.replace(space="linear"),
    }


class Bagging(NamedTuple):
    """One line of Table 9: how many members of the same fits, and how they are aggregated.

    Attributes:
      resamples: members used.
      aggregate: 'median' or 'mean'.
      train: `Score` of the fit to all runs, on these runs.
      cross_validation, extrapolation: of runs not seen; NaN without that split.
    """

    resamples: int
    aggregate: str
    train: Score
    cross_validation: Score
    extrapolation: Score


@dataclass(frozen=True, eq=False)
class Ablation:
    """Tables 8 and 9 as data.

    Attributes:
      variations: Table 8, the `Comparison` of `variations`.
      bagging: Table 9, from the members of the first variation.
    """

    variations: Comparison
    bagging: tuple[Bagging, ...]

    def rows(self) -> list[dict]:
        """Return `variations.rows()`, then a mapping for each line of `bagging` and split."""
        table, found = self.variations.table, self.variations.rows()
        first = self.variations.entries[0]
        head = {"parameters": first.num_parameters, "aicc": float("nan")}
        tests = {v.name: int(v.test.sum()) for v in first.validations}
        for line in self.bagging:
            named = {"name": f"{line.resamples} resamples, {line.aggregate}"} | head
            found.append(named | score_cells("all runs", len(table), line.train))
            for split, scored in (
                (self.variations.splits[0], line.cross_validation),
                (self.variations.extrapolation, line.extrapolation),
            ):
                if split is not None:
                    found.append(named | score_cells(split, tests[split], scored))
        return found


def ablate(table: RunTable, config: FitConfig | None = None, **options) -> Ablation:
    """Return the ablations of Tables 8 and 9 around a config.

    Table 8 changes one option at a time; Table 9 uses all, half or one of the resamples with the
    median, and all with the mean. Free exponents (`exponent_cap=None`) show how the mean breaks.

    Args:
      table: runs of one metric.
      config: the defaults if None; of several forms, the first.
      options: as in `compare`.

    Raises:
      ValueError: as `compare`.
    """
    config = (config or FitConfig()).forms[0]
    compared = compare(table, variations(config), **options)
    return Ablation(compared, bagging(compared))


def bagging(compared: Comparison) -> tuple[Bagging, ...]:
    """Return Table 9 from the first entry's members: all with the mean; one, half, all."""
    first, size, table = compared.entries[0], len(compared.entries[0].law.theta), compared.table
    everything = Split("all runs", *np.ones((2, 1, len(table)), bool))
    split = first.validation(compared.extrapolation)

    def scored(members: int, aggregate: str) -> Bagging:
        def predict(fit, x, n):
            predicted_BR = fit.predict_members(x, n)
            good_B = ~np.isnan(predicted_BR).any(axis=1)  # failed members are NaN
            return getattr(np, aggregate)(predicted_BR[good_B][:members], axis=0)

        def again(v: Split | Validation, fits) -> Score:
            return predict_split(table, Split(v.name, v.train, v.test), fits, predict).score

        return Bagging(
            members,
            aggregate,
            again(everything, (first.law,)),
            again(first.validations[0], first.validations[0].fits),
            again(split, split.fits) if split else compared.score(first.name, None),
        )

    medians = [scored(members, "median") for members in sorted({1, max(1, size // 2), size})]
    return scored(size, "mean"), *medians
