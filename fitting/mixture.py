"""A law whose members come from several forms, in proportion to how well each predicts.

The family of a law is part of the doubt. Forms are weighed by their predictions of the same runs,
held out in random parts, and the bag holds members of each in proportion: intervals, P(best) and
regret sets then carry the doubt about the form.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fitting import formatting, law_file
from fitting.config import FitConfig
from fitting.law import BaggedFit
from fitting.link import Space
from fitting.noise import UNKNOWN, Scatter
from fitting.optimise.lanes import FAILED
from fitting.predictions import Law
from fitting.verdict import Verdict

DRAWS = 400  # of weights of runs, over which the weights of forms are averaged


class Weighed(NamedTuple):
    """One form that was tried.

    Attributes:
      label: NAME or NAME@LINK.
      weight: share of the members.
      held_out: root mean square log error of runs that a fit has not seen; NaN where unknown.
    """

    label: str
    weight: float
    held_out: float


@dataclass(frozen=True, eq=False, repr=False)
class MixedLaw(Law):
    """A law of several forms. Predictions are errors on the fitted scale.

    Attributes:
      config: how it was fitted, with all forms.
      components: `BaggedFit`s of the forms that have members in the law, the weightiest first,
        with as many members as the law has of each.
      weights: [F] of the components; they add up to 1.
      tried: every form, the weightiest first, also those without a member.
      verdict: whether the runs contradict the weightiest form; None if not tested.
    """

    config: FitConfig
    components: tuple[BaggedFit, ...]
    weights: np.ndarray
    tried: tuple[Weighed, ...]
    verdict: Verdict | None = None

    # --- what all components share ---

    @property
    def lead(self) -> BaggedFit:
        """Return the component of most weight, whose parameters are reported."""
        return self.components[0]

    @property
    def metric(self) -> str:
        """Return what the error is of."""
        return self.lead.metric

    @property
    def factors(self) -> tuple[str, ...]:
        """Return the names of the K columns of a configuration."""
        return self.lead.factors

    @property
    def examples(self) -> str | None:
        """Return the name of the column of n; None for a law without n."""
        return self.lead.examples

    @property
    def scale(self) -> float:
        """Return the error of a complete failure."""
        return self.lead.scale

    @property
    def source(self) -> str:
        """Return the name of the file of the runs."""
        return self.lead.source

    @property
    def runs(self):
        """Return the fitted runs."""
        return self.lead.runs

    @property
    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that computed it."""
        return self.lead.versions

    @property
    def space(self) -> Space:
        """Return the space in which residuals and run noise are told: that of all, or log error."""
        kinds = {one.space for one in self.components}
        return kinds.pop() if len(kinds) == 1 else Space("log", self.reference, self.scale)

    @property
    def label(self) -> str:
        """Return the forms with members and their weights, in words."""
        return ", ".join(
            f"{one.config.label} {weight:.0%}"
            for one, weight in zip(self.components, self.weights, strict=True)
        )

    @cached_property
    def scatter(self) -> Scatter:
        """Return the variances of a run around the law, in `space`.

        Of the residuals of the averaged fits, with a degree of freedom off for each parameter of a
        form, by its weight; NaN where parameters exhaust the runs. What the noise column holds is
        not the training's.
        """
        counts = [one.theta.shape[1] for one in self.components]
        spare = self.num_runs - np.average(counts, weights=self.weights)
        if spare <= 0:
            return UNKNOWN
        residual = self.space.forward(self.predict_whole(self.runs.z)) - self.space.forward(
            self.runs.error
        )
        square = np.average(residual**2, weights=self.runs.weights) * self.num_runs / spare
        if self.runs.noise is not None:
            square -= float(np.mean(self.in_fitted_space(self.runs.noise) ** 2))
        return Scatter(max(float(square), 0.0), 0.0, 1.0)

    def in_fitted_space(self, noise) -> np.ndarray:
        """Return standard deviations [R] of the runs' scores as those of what was fitted."""
        return np.asarray(noise) * self.space.slope(self.predict_whole(self.runs.z))

    @property
    def tiny_noise(self) -> str:
        """Return a sentence where the known noise is a hundredth of the residuals, or ''."""
        return self.lead.tiny_noise

    # --- members ---

    @property
    def pooled(self) -> tuple[BaggedFit, ...]:
        """Return the fits of one form each whose members are those of the law."""
        return self.components

    @property
    def status(self) -> np.ndarray:
        """Return the status [B] of the members, as `pooled` has them."""
        return np.concatenate([one.status for one in self.pooled])

    @property
    def failures(self) -> int:
        """Return the number of members without a finite start; predictions leave them out."""
        return int((self.status == FAILED).sum())

    @property
    def degenerate(self) -> str | None:
        """Return why the parameters of the weightiest form mean nothing, or None."""
        return self.lead.degenerate

    def member_errors(self, z) -> np.ndarray:
        """Return the error [B', X] at z [X, C] of the members that did not fail."""
        return np.concatenate([one.member_errors(z) for one in self.pooled])

    def predict_members(self, x, n=None) -> np.ndarray:
        """Return the error [B, ...] of every member; NaN for those that failed."""
        return np.concatenate([one.predict_members(x, n) for one in self.pooled])

    def predict_members_grid(self, x, n):
        """Yield errors [X, B'] of the members that did not fail, for one n [M] at a time."""
        for parts in zip(*(one.predict_members_grid(x, n) for one in self.pooled), strict=True):
            yield np.concatenate(parts, axis=1)

    def predict_whole(self, z) -> np.ndarray:
        """Return the error [X] of the fits to all runs, averaged by weight in `space`."""
        values = [self.space.forward(one.predict_whole(z)) for one in self.components]
        return self.space.back(np.average(values, axis=0, weights=self.weights))

    # --- report and file ---

    def __repr__(self) -> str:
        return f"MixedLaw({self.label}; of {self.metric}, {self.num_runs} runs)"

    def to_frame(self):
        """Return the parameters of the weightiest form, as `BaggedFit.to_frame`."""
        return self.lead.to_frame()

    def report(self) -> str:
        """Return the forms with their weights, and the report of the weightiest."""
        rows = [[one.label, f"{one.weight:.0%}", _percent(one.held_out)] for one in self.tried]
        table = formatting.aligned(["form", "weight", "error on held-out runs"], rows)
        head = "forms in one bag, weighed by their predictions of the same held-out runs"
        lead = dataclasses.replace(self.lead, verdict=self.verdict)
        return f"{head}\n{table}\n\nThe form of most weight:\n{lead.report()}"

    def save(self, folder) -> Path:
        """Write `fit.json` into the folder and return its path; the same fit, the same bytes."""
        return law_file.write(self, folder)

    def to_fields(self) -> dict:
        """Return the law as JSON-ready fields, of which `from_fields` makes it again."""
        fields = {
            "format": law_file.FORMAT,
            "form": self.config.form,
            "settings": self.config.to_dict(),
            "weights": self.weights.tolist(),
            "tried": [[one.label, one.weight, law_file.finite(one.held_out)] for one in self.tried],
            "components": [one.to_fields() for one in self.components],
        }
        if self.verdict is not None:
            fields["lack_of_fit"] = self.verdict.to_json()
        return fields

    @classmethod
    def from_fields(cls, path, fields: dict) -> "MixedLaw":
        """Return the law of what `to_fields` gave.

        Raises:
          ValueError: one line; not of this version.
        """
        components = tuple(BaggedFit.from_fields(path, one) for one in fields["components"])
        try:
            return cls(
                FitConfig(**fields["settings"]),
                components,
                np.array(fields["weights"], float),
                tuple(
                    Weighed(label, weight, law_file.number(error))
                    for label, weight, error in fields["tried"]
                ),
                Verdict.from_json(fields.get("lack_of_fit")),
            )
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"{path}: not a law of this version: {e}") from None


def load_law(folder) -> Law:
    """Return the law of one or of several forms that `save` wrote into the folder.

    Raises:
      FileNotFoundError, ValueError: as `BaggedFit.load`.
    """
    path, fields = law_file.read(folder)
    kind = MixedLaw if "components" in fields else BaggedFit
    return kind.from_fields(path, fields)


def share_out(weights, size: int) -> np.ndarray:
    """Return int [F] that add up to `size` in proportion to the weights (largest remainders)."""
    exact = np.asarray(weights) / np.sum(weights) * size
    counts = np.floor(exact).astype(int)
    left = size - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
    return counts


def form_weights(square_FR, seed: int = 0, cluster=None) -> np.ndarray:
    """Return weights [F] of forms by their squared log errors of held-out runs.

    Each draw of weights of the runs (Bayesian bootstrap) gives each form a likelihood, that of
    normal errors of its own size; the weights are the mean over draws of the forms' shares
    (pseudo-BMA+, Yao et al. 2018), so that a form which is better on a few runs does not win all.

    Args:
      square_FR: [F, R] squared errors; inf or NaN for a form that failed to predict.
      seed: of the draws.
      cluster: [R] labels of runs that are drawn together.
    """
    square_FR = np.nan_to_num(np.asarray(square_FR, float), nan=np.inf)
    groups = np.arange(square_FR.shape[1]) if cluster is None else cluster
    _, group_R = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng([seed, 3])
    draws_DG = rng.dirichlet(np.ones(group_R.max() + 1), DRAWS)
    draws_DR = draws_DG[:, group_R]
    draws_DR /= draws_DR.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        mean_DF = np.nan_to_num(draws_DR @ square_FR.T, nan=np.inf)
    score_DF = -len(group_R) / 2 * np.log(np.maximum(mean_DF, 1e-30))
    score_DF -= score_DF.max(axis=1, keepdims=True)
    share_DF = np.exp(score_DF)
    return (share_DF / share_DF.sum(axis=1, keepdims=True)).mean(axis=0)


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}%"
