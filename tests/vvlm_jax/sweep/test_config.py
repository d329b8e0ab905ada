import dataclasses

import pytest

from configs.sweeps import mini, star
from vvlm_jax.config import ConfigError
from vvlm_jax.override import from_json, to_json
from vvlm_jax.sweep import config as sweep_config
from vvlm_jax.sweep.config import SweepConfig, check


def changed(point=0, **values):
    """Return the miniature with one point changed."""
    config = mini.sweep()
    points = list(config.points)
    points[point] = dataclasses.replace(points[point], **values)
    return dataclasses.replace(config, points=tuple(points))


def with_(**values):
    return dataclasses.replace(mini.sweep(), **values)


def first(**values):
    """Return the miniature with other data of stage 1."""
    stage = mini.sweep().pretrain
    stage = dataclasses.replace(stage, data=dataclasses.replace(stage.data, **values))
    return dataclasses.replace(mini.sweep(), pretrain=stage)


def test_a_sweep_comes_back_from_its_json():
    for config in (mini.sweep(), star.sweep()):
        assert from_json(SweepConfig, to_json(config)) == config
        check(config, config.data_size)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            lambda: changed(1, lm_params=54_000),
            r"are the same run, x = \(54000, 2, 4\) with n = 12 and seed 0",
        ),
        (lambda: changed(seed=-1), "seed = -1: must be 0 or above"),
        (lambda: changed(seed=2**70), "0 or above, below 2"),
        (lambda: changed(num_examples=17), "num_examples = 17: above the 16 examples"),
        (lambda: changed(num_examples=3), "must be at least one batch, 4"),
        (lambda: changed(lm_params=1e9), r"lm_params = 1e\+09: sizes has 24736, 54000"),
        (lambda: changed(tokens_per_frame=5), "model.tokens_per_frame = 5: must be a perfect"),
        (lambda: changed(run_id="../x"), "run_id = '../x': must be letters"),
        (lambda: changed(run_id="x" * 121), "at most 120 of them"),
        (lambda: changed(run_id="stage1-study-m"), "'stage1-study-m': is the name of a stage 1"),
        (lambda: with_(text_tokens=0), "text_tokens = 0: must be above 0"),
        (lambda: with_(vision_params=float("nan")), "vision_params = nan: must be above 0"),
        (lambda: with_(init=(("visoin", "x"),)), "init = 'visoin': unknown; did you mean 'vision'"),
        (lambda: changed(1, run_id=mini.sweep().points[0].run_id), "appears 2 times"),
        (lambda: first(num_examples=3), "pretrain: num_examples = 3: must be at least one batch"),
        (lambda: dataclasses.replace(mini.sweep(), points=()), "needs at least one run"),
        (lambda: dataclasses.replace(mini.sweep(), exports=("h5",)), "exports: 'h5': unknown"),
    ],
)
def test_a_sweep_that_cannot_be_run_is_told_in_one_line(config, message):
    with pytest.raises(ConfigError, match=message) as e:
        check(config(), 16)
    assert "\n" not in str(e.value)


def test_the_generators_points_are_taken_as_they_are():
    points = [p for p in star.sweep().points if p.num_examples == 250_000]
    assert len(points) == 13
    assert points[0].run_id == "star-N7.5e9-T32-V196-n250000"
    assert isinstance(star.sweep(), SweepConfig)


def test_a_point_may_have_a_seed_of_its_own():
    config = mini.sweep()
    other = dataclasses.replace(config.points[0], seed=7, run_id="again")
    config = dataclasses.replace(config, points=(*config.points, other))
    check(config, 16)
    assert sweep_config.finetune_config(config, other).seed == 7
    assert sweep_config.row(config, other)["seed"] == 7
    assert sweep_config.row(config, config.points[0])["seed"] == config.finetune.seed
    assert from_json(SweepConfig, to_json(config)) == config


def test_stages_get_x_and_n():
    config = star.sweep()
    point = config.points[1]
    stage = sweep_config.finetune_config(config, point)
    assert (stage.model.llm, stage.model.num_frames) == ("llama3.2-1b", 32)
    assert stage.data.num_examples == 250_000
    first = sweep_config.pretrain_config(config, config.size(point))
    assert (first.model.num_frames, first.model.tokens_per_frame) == (1, 729), "unpooled features"
    assert sweep_config.trained_towers(first) == {"projector"}
    assert sweep_config.trained_towers(stage) == {"vision", "projector", "llm"}
