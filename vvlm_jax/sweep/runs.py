"""A point of a sweep → the config of its finetuning run; a finished run → rows of the runs
table.
"""

from dataclasses import dataclass, replace
from typing import Any

from vvlm_jax.config import TrainConfig


@dataclass(frozen=True)
class RunSpec:
    """One run of a sweep, ready to be trained and evaluated; crosses process borders."""

    run_id: str
    sweep: str
    lm_params: float
    train: TrainConfig
    questions: str
    """Validation question file."""
    eval_media_root: str
    max_new_tokens: int
    cost: float
    """Relative cost of the run, for scheduling and for estimating time left."""


def run_spec(
    point: Any,
    base: TrainConfig,
    out_dir: str,
    llm: str,
    init: tuple[tuple[str, str], ...],
    *,
    cost: float,
    questions: str,
    eval_media_root: str,
    max_new_tokens: int = 4,
) -> RunSpec:
    """Fills the base config with a point's x and n.

    Args:
      point: has run_id, sweep, lm_params, num_frames, tokens_per_frame, num_examples
        (as `fitting.sweeps.Point` does).
      llm: the variant whose size is `point.lm_params`.
      init: starting weights of the parts for that variant.
    """
    model = replace(
        base.model, llm=llm, num_frames=point.num_frames, tokens_per_frame=point.tokens_per_frame
    )
    train = replace(
        base,
        model=model,
        data=replace(base.data, num_examples=point.num_examples),
        init=init,
        out_dir=out_dir,
    )
    return RunSpec(
        point.run_id,
        point.sweep,
        point.lm_params,
        train,
        questions,
        eval_media_root,
        max_new_tokens,
        cost,
    )


def table_rows(spec: RunSpec, result: dict) -> list[dict]:
    """Rows of the runs table, one a metric, from a run's `result.json`."""
    model = spec.train.model
    return [
        dict(
            run_id=spec.run_id,
            sweep=spec.sweep,
            lm_params=spec.lm_params,
            num_frames=model.num_frames,
            tokens_per_frame=model.tokens_per_frame,
            num_examples=spec.train.data.num_examples,
            metric=metric,
            score=score,
        )
        for metric, score in result["scores"].items()
    ]
