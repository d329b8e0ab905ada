import dataclasses
import json

import pytest

from configs.sweeps import mini, star
from tests.buckets import FolderClient
from vvlm_jax.config import ConfigError, TrainConfig
from vvlm_jax.config_check import validate
from vvlm_jax.models.variants import VISION
from vvlm_jax.storage.bucket import CLIENTS
from vvlm_jax.sweep import jobs
from vvlm_jax.sweep.store.store import Store
from vvlm_jax.sweep.worker import Context, Stop

SWEEP = star.sweep()
RUN = "star-N2.8e9-T32-V196-n250000"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    config = dataclasses.replace(SWEEP, exports=("hf-llm",))
    return jobs.create(tmp_path_factory.mktemp("star") / "s", config)


def test_stage_1_comes_once_a_size_and_what_follows_a_run_after_it(store):
    kinds = [job.kind for job in store.jobs.values()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "train": 3 + 39, "evaluate": 39, "export": 39,
    }  # fmt: skip
    stage_1 = "stage1-llama3.2-3b/train"
    assert store.jobs[f"{RUN}/train"].after == (stage_1,)
    for name in ("evaluate-s976-val", "export-s976-hf-llm"):
        assert store.jobs[f"{RUN}/{name}"].after == (f"{RUN}/train",), "keyed by its last step"
    assert [run["run_id"] for run in store.runs] == [p.run_id for p in SWEEP.points]


def test_a_training_job_is_its_runs_config(store):
    def config(id):
        return jobs.train_config(Context(store, store.jobs[id], Stop()))

    stage = config(f"{RUN}/train")
    assert (stage.model.llm, stage.model.num_frames) == ("llama3.2-3b", 32)
    assert stage.data.num_examples == 250_000
    assert stage.out_dir == str(store.path / "runs" / RUN)
    assert dict(stage.init) == {
        "vision": "weights/siglip-so400m-patch14-384",
        "llm": "weights/llama3.2-3b",
        "projector": str(store.path / "runs" / "stage1-llama3.2-3b"),
    }
    first = config("stage1-llama3.2-3b/train")
    assert dict(first.init).keys() == {"vision", "llm"}
    assert first.model.tokens_per_frame == 729
    assert first.batch_size == 512
    for one in (stage, first):
        assert isinstance(validate(one, VISION["so400m/14-384"]), TrainConfig)


def test_a_seed_reaches_the_training_and_leaves_other_jobs_as_they_were(tmp_path):
    config = mini.sweep()
    again = dataclasses.replace(config.points[0], run_id="again", seed=7)
    both = dataclasses.replace(config, points=(*config.points, again))
    jobs.create(tmp_path / "s", config)
    store = jobs.create(tmp_path / "s", both)  # adds jobs, and refuses any that would change
    stages = [
        jobs.train_config(Context(store, store.jobs[f"{run}/train"], Stop()))
        for run in (config.points[0].run_id, "again")
    ]
    assert [stage.seed for stage in stages] == [config.finetune.seed, 7]
    assert stages[0].model == stages[1].model
    assert [run["seed"] for run in store.runs] == [config.finetune.seed] * 4 + [7]


def test_costs_are_the_plans_flops(store):
    by_steps = store.jobs["star-N7.5e9-T32-V196-n1000000/train"]
    assert by_steps.cost / 3906 / 256 == pytest.approx(3.65e14, rel=0.02)
    assert by_steps == max(store.jobs.values(), key=lambda job: job.cost)


def test_another_sweep_is_refused_by_the_option_that_differs(tmp_path):
    jobs.create(tmp_path / "s", mini.sweep())
    stage = dataclasses.replace(mini.sweep().finetune, seed=1)
    with pytest.raises(ConfigError, match=r"with shared.finetune.seed = 0, not 1"):
        jobs.create(tmp_path / "s", dataclasses.replace(mini.sweep(), finetune=stage))


def test_a_store_knows_equation_1_of_its_sweep_and_one_of_before_learns_it(tmp_path):
    config = mini.sweep()
    own = {"vision_params": 59_472, "features_per_frame": 16}
    assert jobs.create(tmp_path / "s", config).encoder == own
    file = tmp_path / "s" / "sweep.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in before.items() if k != "encoder"}))
    assert Store.open(tmp_path / "s").encoder is None
    assert jobs.create(tmp_path / "s", config, dry_run=True).encoder is None
    assert jobs.create(tmp_path / "s", config).encoder == own
    assert json.loads(file.read_text()) == before
    paper = jobs.create(tmp_path / "star", SWEEP).encoder
    assert paper == {"vision_params": 0.43e9, "features_per_frame": 768}


def test_milestones_are_evaluated_by_jobs_of_their_own(tmp_path):
    config = mini.sweep()
    finetune = dataclasses.replace(config.finetune, checkpoint_every=1, keep_every=2)
    found = jobs.jobs_of(dataclasses.replace(config, finetune=finetune))
    run = config.points[0].run_id  # of three steps
    asked = {job.name: job.argument for job in found if job.run == run and job.kind == "evaluate"}
    assert asked == {
        "evaluate-s2-val": {"evaluation": "val", "step": 2, "milestone": True},
        "evaluate-s3-val": {"evaluation": "val", "step": 3},
    }


BUCKET = "a-lab"  # no other test's, as a process keeps its buckets


def test_data_in_a_bucket_are_looked_for_there(tmp_path, monkeypatch):
    monkeypatch.setitem(CLIENTS, "s3", lambda name: FolderClient(tmp_path / name))
    sweep = mini.sweep()
    data = dataclasses.replace(sweep.finetune.data, annotations=f"s3://{BUCKET}/train.json")
    sweep = dataclasses.replace(sweep, finetune=dataclasses.replace(sweep.finetune, data=data))
    missing = f"s3://{BUCKET}/train.json: no such file or folder (finetune.data.annotations)"
    assert missing in jobs.missing_inputs(sweep)
    (tmp_path / BUCKET).mkdir()
    (tmp_path / BUCKET / "train.json").touch()
    assert missing not in jobs.missing_inputs(sweep)
