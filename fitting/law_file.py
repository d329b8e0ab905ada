"""`fit.json`: the records that a fit consists of, and how they are written and read.

The file holds all that is needed to predict and to audit: the options, the members, the fitted
runs, the versions of the packages, and a checksum of it all.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fitting import own_forms
from fitting.atomic import replacing
from fitting.config import FitConfig
from fitting.optimise.lanes import FAILED, STATUSES
from fitting.verdict import Verdict

FORMAT = 2  # of fit.json


class FittedRuns(NamedTuple):
    """The runs of a fit, as they were fitted.

    Attributes:
      run_id: [R] names.
      z: [R, C], the K factors and, with examples, n; in the CSV's units.
      error: [R], on the fitted scale.
      weights: [R].
      noise: [R], standard deviations of the scores, on the fitted scale, or None.
      cluster: [R], labels of runs that share a cause, or None.
    """

    run_id: np.ndarray
    z: np.ndarray
    error: np.ndarray
    weights: np.ndarray
    noise: np.ndarray | None = None
    cluster: np.ndarray | None = None

    @property
    def sha256(self) -> str:
        """Return the hash of factors, n, error and weight, little-endian float64, row by row."""
        rows = np.column_stack([self.z, self.error, self.weights]).astype("<f8")
        return hashlib.sha256(rows.tobytes()).hexdigest()


class Members(NamedTuple):
    """Fits of one law, one per row.

    Attributes:
      theta: [B, P], log coefficients (the floor itself, if it is free) and exponents, with every
        factor measured in `BaggedFit.units`; NaN where the fit failed.
      objective: [B], sum of w (log f_hat - log f)^2 over sum of w, or the like for another loss.
      gradient_norm: [B], relative to the objective, without what presses on a bound.
      status: [B], CONVERGED, STOPPED or FAILED of `fitting.optimise.lanes`.
      basin_share: [B], share of the starts followed to the end that reached this optimum.
    """

    theta: np.ndarray
    objective: np.ndarray
    gradient_norm: np.ndarray
    status: np.ndarray
    basin_share: np.ndarray


def write(law, folder) -> Path:
    """Write `fit.json` of a law into the folder and return its path."""
    path = Path(folder) / "fit.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = law.to_fields()
    fields["checksum"] = _checksum(fields)
    text = json.dumps(fields, indent=1, allow_nan=False) + "\n"
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def to_fields(law) -> dict:
    """Return a `BaggedFit` as JSON-ready fields."""
    kinds = ["exponent" if e else "log coefficient" for e in law.is_exponent]
    if law.config.free_floor:
        kinds[law.layout.floor] = "coefficient"
    own = own_forms.to_json(law.form, len(law.factors))
    fields = {
        "format": FORMAT,
        "form": law.config.form,
        **({"own_form": own} if own else {}),
        "metric": law.metric,
        "factors": list(law.factors),
        "examples": law.examples,
        "scale": finite(law.scale),
        "aggregate": law.config.aggregate,
        "parameters": [
            {"name": name, "kind": kind} for name, kind in zip(law.parameters, kinds, strict=True)
        ],
        "units": dict(zip(law.columns, law.units.tolist(), strict=True)),
        "normalisation": f"theta describes {_described(law)}(column / unit); no other",
        "settings": law.config.to_dict(),
        "whole": to_rows(law.whole)[0],
        "members": law.members,
        "failures": law.failures,
        "lost_levels": law.lost,
        "degenerate": law.degenerate,
        "data": {
            "source": law.source,
            "sha256": law.runs.sha256,
            "columns": [*law.columns, "error", "weight"],
            "run_id": law.runs.run_id.tolist(),
            "rows": np.column_stack([law.runs.z, law.runs.error, law.runs.weights]).tolist(),
            **_optional(law.runs),
        },
        "versions": law.versions,
    }
    if law.verdict is not None:
        fields["lack_of_fit"] = law.verdict.to_json()
    return fields


def _described(law) -> str:
    if not law.space.linked:
        return "error"
    return f"{law.space.kind} of error / {law.space.ceiling:g}, as a sum of terms "


def read(folder) -> tuple[Path, dict]:
    """Return (path, fields as written) from a folder or a file.

    Raises:
      FileNotFoundError, ValueError: one line; no fit there, not one, or one that was changed by
        hand or cut short.
    """
    path = Path(folder)
    path = path / "fit.json" if path.is_dir() or path.suffix != ".json" else path
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; vvlm fit writes it") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a fit: it holds no text") from None
    try:
        fields = json.loads(text)
    except ValueError as e:
        raise ValueError(f"{path}: not a whole fit: {e}") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        there = fields.get("format") if isinstance(fields, dict) else None
        raise ValueError(
            f"{path}: not a fit of format {FORMAT} but {there!r}; fit again with this version"
        )
    if fields.pop("checksum", None) != _checksum(fields):
        raise ValueError(f"{path}: changed since it was written; fit again")
    return path, fields


def from_fields(path, fields: dict) -> tuple[dict, tuple[str, ...]]:
    """Return (arguments of `BaggedFit`, names of its parameters) of what `to_fields` gave.

    Raises:
      ValueError: one line; not of this version.
    """
    try:
        if "own_form" in fields:
            own_forms.from_json(fields["own_form"], len(fields["factors"]))
        data = fields["data"]
        rows = np.array(data["rows"], float).reshape(len(data["run_id"]), -1)
        kwargs = dict(
            config=FitConfig(**fields["settings"]),
            metric=fields["metric"],
            factors=tuple(fields["factors"]),
            examples=fields["examples"],
            scale=float("inf") if fields["scale"] is None else fields["scale"],
            source=data["source"],
            units=np.array(list(fields["units"].values()), float),
            bag=from_rows(fields["members"]),
            whole=from_rows([fields["whole"]]),
            runs=FittedRuns(
                np.array(data["run_id"]),
                rows[:, :-2],
                rows[:, -2],
                rows[:, -1],
                np.array(data["noise"], float) if "noise" in data else None,
                np.array(data["cluster"]) if "cluster" in data else None,
            ),
            lost=fields["lost_levels"],
            versions=fields["versions"],
            verdict=Verdict.from_json(fields.get("lack_of_fit")),
        )
        names = tuple(parameter["name"] for parameter in fields["parameters"])
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path}: not a fit of this version: {type(e).__name__} {e}") from None
    return kwargs, names


def _optional(runs: FittedRuns) -> dict:
    """Return noise and clusters where they are known, JSON-ready."""
    named = {"noise": runs.noise, "cluster": runs.cluster}
    return {name: values.tolist() for name, values in named.items() if values is not None}


def to_rows(members: Members) -> list[dict]:
    """Return one JSON-ready dict per member; None for NaN."""
    return [
        {
            "theta": None if status == FAILED else theta.tolist(),
            "objective": finite(value),
            "gradient_norm": finite(norm),
            "status": STATUSES[status],
            "basin_share": float(share),
        }
        for theta, value, norm, status, share in zip(*members, strict=True)
    ]


def from_rows(rows: list[dict]) -> Members:
    """Return the members that `to_rows` turned into JSON."""
    width = max(len(row["theta"] or ()) for row in rows)
    missing = [float("nan")] * width
    return Members(
        np.array([row["theta"] or missing for row in rows], float),
        np.array([number(row["objective"]) for row in rows]),
        np.array([number(row["gradient_norm"]) for row in rows]),
        np.array([STATUSES.index(row["status"]) for row in rows]),
        np.array([row["basin_share"] for row in rows], float),
    )


def _checksum(fields: dict) -> str:
    """Return the sha256 of everything else in the file."""
    text = json.dumps(fields, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def finite(value):
    """Return a number for JSON; None for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def number(value) -> float:
    """Return what `finite` was given; NaN for None."""
    return float("nan") if value is None else value
