"""The study command: what cannot be run is refused in one line, before anything is written."""

import dataclasses
import fcntl
import re
from pathlib import Path

import pytest

from configs import study, study_graded, study_mini
from tools import study as command
from tools.common import die_in_one_line
from tools.study import jobs
from tools.study.folder import LATER, content_hash
from tools.study.progress import Progress, jobs_ahead
from vvlm_jax.override import override
from vvlm_jax.sweep.jobs import train_config
from vvlm_jax.sweep.store import journal
from vvlm_jax.sweep.store.store import State
from vvlm_jax.sweep.worker import Context, Stop

MISTAKES = [
    ("world=globe", 'world = "globe": must be board or graded'),
    ("center=[8, 5]", "center = .8, 5.: must be one of num_frames_levels and one of tokens_levels"),
    ("train_video=3", "train_video: no such option; did you mean 'train_videos'"),
    ("train_videos=many", "train_videos = 'many': must be int, not str"),
    ("seed=-1", "seed = -1: must be 0 or above"),
    ("image_size=47", "image_size = 47: must be 48, the encoder's"),
    ("flash_lengths=[17]", "flash_lengths = .17.: must be 1 or more different values from 1 to 16"),
    ("captions=5", "captions = 5: must be at least 32"),
    ("val_videos=0", "val_videos = 0: must be at least 1"),
    ('turns=[["foo", 1]]', "turns = .*: must be pairs of a task"),
    ('llms=["study-s"]', "llms = .*: must be 3 or more different models"),
    ('llms=["study-x", "study-m", "study-l"]', "llms = 'study-x': unknown; did you mean"),
    ("num_examples=[]", "num_examples = ..: must be 3 or more different values"),
    ("num_examples=[64, 64, 128]", "num_examples = .*: must be 3 or more different values"),
    ("num_examples=[8, 16, 5000]", "num_examples = .*: must be .* from 8 to 4000"),
    ("isoflop_examples=750", "isoflop_examples = 750: .* none of num_examples"),
    ("num_frames_levels=[0, 1]", "num_frames_levels = .*: must be .* of at least 1"),
    ("tokens_levels=[1, 5]", "tokens_levels = 5: must be a perfect square from 1 to 4² = 16"),
    ("domain_tokens=[25]", "domain_tokens = .*: must be .* from 1 to 16"),
    ("budgets=[12e6, 12e6]", "budgets = .*: must be 2 or more different values"),
    ("budgets=[1, 2]", "no configuration costs within"),
    ("batch_size=7", "batch_size = 7: must be even"),
    ("rate=0", "rate = 0.0: must be above 0"),
    ("resamples=0", "resamples = 0: must be at least 1"),
    ("decision.seeds=1", "decision.seeds = 1: must be at least 2"),
    ("decision.spend=[1.0, 0.9]", "decision.spend = .*: must be two shares of the budget"),
    ('decision.rivals=["cheapest"]', "decision.rivals = .*: must be one or more of outside, add"),
    ("decision.budgets=[0.5, 1.5]", "decision.budgets = 0.5: is an isoFLOP budget, 1.2e.07"),
    ("decision.budgets=[0.01]", "decision.budgets = 0.01: 0 configurations cost 85% to 100% of"),
    ("decision.num_examples=5000", "decision.num_examples = 5000: must be from batch_size = 8"),
]


@pytest.fixture(autouse=True)
def _environment_stays(monkeypatch):
    """Restore the environment, which the command sets for its workers."""
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def run(out, *assignments, **options):
    args = command.Args(out=out, set=assignments, **options)
    die_in_one_line(lambda: command.main(args))


@pytest.mark.parametrize(("assignment", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, capsys, assignment, message):
    with pytest.raises(SystemExit) as e:
        run(tmp_path / "out", assignment)
    assert e.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: {message}", line), line
    assert not (tmp_path / "out").exists()


def test_a_negative_number_of_workers_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path / "out", workers=-1)
    assert "--workers -1: must be 0 (all cores) or above" in capsys.readouterr().err


def test_two_studies_in_one_folder_are_refused(tmp_path, capsys):
    config = Path("configs/study_mini.py")
    work = tmp_path / "work" / content_hash(study_mini.config())
    work.mkdir(parents=True)
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit):
            run(tmp_path, config=config)
    assert "another study is running there" in capsys.readouterr().err
    assert [p.name for p in work.iterdir()] == ["lock"]


def test_only_what_a_run_depends_on_names_its_folder():
    base = study.study()
    same = override(
        base, ["resamples=100", "budgets=[12e6, 24e6, 48e6]", "num_examples=[8, 16, 32]"]
    )
    assert content_hash(same) == content_hash(base)
    others = [
        override(base, [a])
        for a in (
            *("seed=1", "rate=1e-3", "train_videos=4001", "captions=99"),
            *("decision.questions=9", "decision.own_projectors=false"),
        )
    ]
    assert len({content_hash(s) for s in [base, *others]}) == 7
    later = override(base, ["decision.budgets=[0.8]", "decision.seeds=5", "decision.tolerance=2"])
    assert content_hash(later) == content_hash(base)


def test_a_later_option_is_an_option():
    assert {f.name for f in dataclasses.fields(study.StudyConfig)} >= LATER


# Its store.


@pytest.fixture
def store(tmp_path):
    return jobs.create(study_mini.config(), tmp_path / "work")


def ready(store):
    return {id for id, state in store.states().items() if state.phase == "ready"}


def end(store, *ids):
    for id in ids:
        store.end(store.claim(id), journal.DONE, result={})


def test_jobs_come_after_what_they_read(store):
    data = [f"data/{kind}" for kind in ("train", "val", "captions", "stories")]
    assert ready(store) == set(data)
    end(store, *data)
    lms = [f"lm-{llm}/train" for llm in ("study-s", "study-m", "study-l")]
    assert ready(store) == set(lms)
    end(store, *lms)
    assert ready(store) == {"vision/train"}
    end(store, "vision/train")
    center = "star-N147904-T4-V16-n64"
    stages_1 = {f"stage1-{llm}/train" for llm in ("study-s", "study-m", "study-l")}
    untrained = {f"{center}/untrained-{i}" for i in range(3)}
    assert ready(store) == stages_1 | untrained
    end(store, "stage1-study-l/train", f"{center}/train")
    (asked,) = [id for id in store.jobs if id.startswith(f"{center}/evaluate")]
    assert {asked, f"{center}/other-clip"} <= ready(store)
    assert "star-N24736-T4-V16-n64/train" not in ready(store)


def test_in_the_graded_world_the_encoder_comes_first(tmp_path):
    store = jobs.create(study_graded.config(), tmp_path / "work")
    data = [f"data/{kind}" for kind in ("train", "val", "pairs")]
    assert ready(store) == set(data)
    end(store, *data)
    assert ready(store) == {"vision/train"}
    end(store, "vision/train")
    lms = {f"lm-{llm}/train" for llm in ("graded-s", "graded-m", "graded-l")}
    assert ready(store) == lms
    end(store, *lms)
    stages_1 = {f"stage1-{llm}/train" for llm in ("graded-s", "graded-m", "graded-l")}
    center = "star-N98624-T8-V4-n2304"
    assert ready(store) == stages_1 | {f"{center}/untrained-{i}" for i in range(3)}
    stage = train_config(Context(store, store.job("lm-graded-s/train"), Stop()))
    assert {part: Path(folder).name for part, folder in stage.init} == {"vision": "vision"}


def test_every_stage_starts_from_what_was_made_for_its_language_model(store):
    def init(id):
        stage = train_config(Context(store, store.job(id), Stop()))
        return {part: Path(folder).name for part, folder in stage.init}

    assert init("lm-study-s/train") == {}
    assert init("vision/train") == {"llm": "lm-study-m"}
    assert init("stage1-study-s/train") == {"llm": "lm-study-s", "vision": "vision"}
    assert init("star-N24736-T4-V16-n64/train") == {
        "llm": "lm-study-s", "vision": "vision", "projector": "stage1-study-s",
    }  # fmt: skip


def test_phases_follow_one_another(store):
    def phase(*done):
        states = {id: State("ready", journal.NO_ENTRY) for id in store.jobs}
        states |= {id: State("done", journal.NO_ENTRY) for id in store.jobs if id.startswith(done)}
        return jobs.phase(store, states)

    data, preparing = jobs.DATA, jobs.PARTS
    assert phase("none") == phase("data/train", "lm-", "star") == data
    assert phase("data/") == phase("data/", "lm-", "vision") == preparing
    prepared = ("data/", "lm-", "vision", "stage1-")
    assert phase(*prepared) == phase(*prepared, "star") == jobs.SWEEP
    assert phase("") is None


def test_a_study_with_other_runs_shares_what_is_done(store):
    end(store, "data/train")
    other = override(study_mini.config(), ["num_examples=[24, 32, 64]", "resamples=5"])
    again = jobs.create(other, store.path)
    assert again.state("data/train").phase == "done"
    assert {run["num_examples"] for run in again.runs} == {24, 32, 64, 96}


# The decision test.

TESTED = [(54000, 4, 4), (147904, 2, 16), (54000, 4, 4)]


def test_tested_configurations_wait_for_a_stage_1_of_their_seed(tmp_path):
    study = override(study_mini.config(), ["decision.own_projectors=true", "decision.seeds=2"])
    store = jobs.create(study, tmp_path / "work", TESTED)
    run = "decision-N54000-T4-V4-n96-seed2000"
    argument = store.job(f"{run}/train").argument
    assert argument["projector"] == "seed2000-stage1-study-m"
    assert argument["seed"] == store.job("seed2000-stage1-study-m/train").argument["seed"] == 2000
    assert "seed2000-stage1-study-m/train" in store.job(f"{run}/train").after
    (asked,) = [id for id in store.jobs if id.startswith(f"{run}/evaluate")]
    assert store.job(asked).argument["evaluation"] == "test"
    assert "data/test" in store.job(asked).after
    assert store.shared["evaluations"].keys() == {"val", "test"}
    tested = [row for row in store.runs if row["sweep"] == "decision"]
    assert [row["seed"] for row in tested] == [1000, 2000] * 2, "none twice"
    repeated = [row["run_id"] for row in store.runs if row["sweep"] == "replicate"]
    isoflop = {row["run_id"].partition("-")[2] for row in store.runs if row["sweep"] == "isoflop"}
    assert len(repeated) == 2
    assert {
        name.removeprefix("replicate-").removesuffix("-seed1000") for name in repeated
    } <= isoflop
    more = {jobs.phase_of(job) for job in store.jobs.values() if "seed" in job.id}
    assert more == {jobs.TEST}


def test_a_shared_stage_1_serves_all_seeds_where_the_study_says_so(tmp_path):
    store = jobs.create(study_mini.config(), tmp_path / "work", TESTED)
    job = store.job("decision-N54000-T4-V4-n96-seed2000/train")
    assert job.argument["projector"] == "stage1-study-m"
    assert not [id for id in store.jobs if id.startswith("seed")]


def test_the_whole_study_repeats_enough_runs_for_ten_degrees_of_freedom():
    full = study.study()
    points = study.replicate_sweep(full, "").points
    assert len({(p.lm_params, p.num_frames, p.tokens_per_frame) for p in points}) >= 4
    assert len(points) >= 10
    assert full.decision.seeds == 3
    assert full.decision.questions >= 3000
    assert full.seed not in {p.seed for p in points}


def test_time_left_follows_the_costs_of_the_jobs_left(store):
    """If seconds are 2 + cost / 1e9, the estimate is right after a few jobs."""
    import numpy as np

    def seconds(job):
        return 2 + job.cost / 1e9

    done, rng = [], np.random.default_rng(0)
    took_of = {id: seconds(job) * rng.uniform(0.9, 1.1) for id, job in store.jobs.items()}
    line = Progress(store, workers=2)
    everything = sum(map(seconds, store.jobs.values()))
    phases = (jobs.DATA, jobs.PARTS, jobs.SWEEP)
    order = sorted(  # a worker takes the runs of a model one after another
        store.jobs.values(),
        key=lambda job: (phases.index(jobs.phase_of(job)), job.run.partition("-n")[0], -job.cost),
    )
    took = 0.0
    for job in order:
        states = {id: State("ready", journal.NO_ENTRY) for id in store.jobs}
        for id in done:
            body = {"seconds": took_of[id]}
            states[id] = State("done", journal.NO_ENTRY._replace(body=body))
        left = line.seconds_left(states)
        if took > everything / 4:
            assert left == pytest.approx((everything - took) / 2, rel=0.3)
        done.append(job.id)
        took += seconds(job)
    assert line(states).startswith("run 21 of 21 (21 trained)")
    assert "sweep and evaluation" in line(states)


def test_runs_that_the_law_has_not_named_yet_are_counted(store):
    mini = study_mini.config()
    ahead = jobs_ahead(mini, str(store.path))
    line = Progress(store, 2, ahead)
    runs = {job.run for job in ahead if job.kind == "train"}
    assert line.total == 21 + len(runs)
    assert 3 * 2 + 2 <= len(runs) <= 2 * 3 * 2 + 2, "the same one may be tested at both budgets"
    with_all = jobs.create(mini, store.path, [(54000, 4, 4), (147904, 2, 16), (24736, 4, 16)])
    assert {job.kind for job in ahead} == {"data", "train", "evaluate"}
    assert "data/test" in with_all.jobs
