"""Check the numbers of a study before it starts. Imports no jax."""

import json
import math

from vvlm_jax.config import ConfigError
from vvlm_jax.config_check import choose, tokens_side
from vvlm_jax.models.variants import LLAMA, VISION
from vvlm_jax.sweep import config as sweep_config

from ..common import shipped

study_lib = shipped("study")
StudyConfig = study_lib.StudyConfig


def check(study: StudyConfig) -> None:
    """Raise ConfigError for a study that cannot be run; nothing is written before."""

    def require(name: str, ok: bool, allowed: str):
        if not ok:
            value = json.dumps(getattr(study, name))
            raise ConfigError(f"{name} = {value}: must be {allowed}")

    def levels(name: str, least: float, most: float, count: int = 1):
        values = getattr(study, name)
        good = len(set(values)) == len(values) >= count and all(least <= v <= most for v in values)
        span = f"from {least:g} to {most:g}" if most < math.inf else f"of at least {least:g}"
        require(name, good, f"{count} or more different values {span}")

    require("world", study.world in ("board", "graded"), "board or graded")
    world = study_lib.world(study)
    vision = choose(VISION, study.vision, "vision")
    for llm in study.llms:
        choose(LLAMA, llm, "llms")
    prepared = study_lib.lm_stage(study, study.llms[0], "").batch_size if study.llms else 1
    require("seed", study.seed >= 0, "0 or above")
    require("num_frames", study.num_frames >= 1, "at least 1")
    require(
        "image_size", study.image_size == vision.image_size, f"{vision.image_size}, the encoder's"
    )
    require("image_size", study.image_size % world.SIDE == 0, f"a multiple of {world.SIDE}")
    levels("flash_lengths", 1, study.num_frames)
    require("batch_size", study.batch_size >= 2 and study.batch_size % 2 == 0, "even, at least 2")
    levels("num_examples", study.batch_size, study.train_videos, count=3)
    n = study.isoflop_examples
    require(
        "isoflop_examples",
        study.batch_size <= n <= study.train_videos and n not in study.num_examples,
        f"from batch_size = {study.batch_size} to train_videos = {study.train_videos}, and none of "
        "num_examples",
    )
    require("val_videos", study.val_videos >= 1, "at least 1")
    for name in ("captions", "stories"):
        require(name, getattr(study, name) >= prepared, f"at least {prepared}, one batch")
    tasks = [task for task, _ in study.turns]
    require(
        "turns",
        set(tasks) <= set(world.TASKS) and tasks and all(count >= 1 for _, count in study.turns),
        f"pairs of a task ({', '.join(world.TASKS)}) and how often it is asked",
    )
    require("llms", len(set(study.llms)) == len(study.llms) >= 3, "3 or more different models")
    for name in ("num_frames_levels", "domain_frames"):
        levels(name, 1, math.inf)
    for name in ("tokens_levels", "domain_tokens"):
        levels(name, 1, vision.out_grid**2)
        for tokens in getattr(study, name):
            tokens_side(tokens, vision.out_grid, name)
    measured = study.num_frames_levels, study.tokens_levels
    require(
        "center",
        study.center is None or all(x in xs for x, xs in zip(study.center, measured, strict=True)),
        "one of num_frames_levels and one of tokens_levels",
    )
    levels("budgets", 1, math.inf, count=2)
    require("tolerance", 0 < study.tolerance < 1, "between 0 and 1")
    for name in ("max_per_curve", "resamples", "starts"):
        require(name, getattr(study, name) >= 1, "at least 1")
    require("rate", study.rate > 0, "above 0")
    sweep_config.check(study_lib.sweep(study, ""), study.train_videos)
    _check_decision(study)


def _check_decision(study: StudyConfig) -> None:
    """Raise ConfigError for a test that cannot be done: too few rivals within reach above all."""
    from fitting.rivals import RULES, within

    rule, cost = study.decision, study_lib.inference_cost(study)
    spend, n = rule.spend, rule.num_examples
    values = (
        ("budgets", all(share > 0 for share in rule.budgets), "shares above 0"),
        (
            "rivals",
            set(rule.rivals) <= set(RULES) and len(set(rule.rivals)) == len(rule.rivals) > 0,
            f"one or more of {', '.join(RULES)}",
        ),
        ("spend", 0 < spend[0] < spend[1] <= 1, "two shares of the budget, at most 1"),
        ("seeds", rule.seeds >= 2, "at least 2"),
        (
            "num_examples",
            n is None or study.batch_size <= n <= study.train_videos,
            f"from batch_size = {study.batch_size} to train_videos = {study.train_videos}",
        ),
        ("questions", rule.questions >= 1, "at least 1"),
        ("tolerance", rule.tolerance >= 0, "0 or above"),
        ("level", 0 < rule.level < 1, "between 0 and 1"),
        ("replicated", rule.replicated >= 0, "0 or above"),
        ("replicates", rule.replicates >= 0, "0 or above"),
    )
    for name, ok, allowed in values:
        if not ok:
            value = json.dumps(getattr(rule, name))
            raise ConfigError(f"decision.{name} = {value}: must be {allowed}")
    costs, wanted = cost(study_lib.domain(study).configurations()), 1 + len(rule.rivals)
    for share, budget in zip(rule.budgets, study_lib.tested_budgets(study), strict=True):
        if budget in study.budgets:
            raise ConfigError(
                f"decision.budgets = {share:g}: is an isoFLOP budget, {budget:g} FLOPs; a test "
                "needs budgets that no run has seen"
            )
        if (there := int(within(costs, budget, spend).sum())) < wanted:
            raise ConfigError(
                f"decision.budgets = {share:g}: {there} configurations cost {spend[0]:.0%} to "
                f"{spend[1]:.0%} of {budget:g} FLOPs, and x* and its rivals need {wanted}; change "
                "the budget, spend, rivals or the domain"
            )
