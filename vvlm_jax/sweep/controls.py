"""Jobs of a sweep on synthetic data: the data, pretrained parts, controls that score chance."""

import dataclasses
import hashlib
from pathlib import Path

from vvlm_jax.config import ConfigError
from vvlm_jax.sweep import jobs
from vvlm_jax.sweep.worker import Context


def write_data(context: Context) -> dict:
    """Write one kind of synthetic data into the store, unless it is there.

    The job's argument is that of `write_kind`.
    """
    with context.stop.anywhere():
        return {"file": write_kind(context.store.path, **context.job.argument).name}


def write_kind(folder: Path, kind: str, **options) -> Path:
    """Write one kind of synthetic data with its tokenizer; return the file of annotations.

    That file is written last, and where it is there already, nothing is written.

    Args:
      kind: train, val, test, captions or stories; with `world="graded"` train, val, test or pairs.
      options: the arguments of the kind's function in `vvlm_jax.data.synthetic` or, with
        `world="graded"`, of `vvlm_jax.data.graded.write_clips`.
    """
    from vvlm_jax.data import graded, synthetic

    file = folder / f"{kind}.json{'l' * (kind in ('val', 'test'))}"
    if file.exists():
        return file
    if options.pop("world", "board") == "graded":
        graded.write_tokenizer(folder)
        graded.write_clips(folder, kind, **options)
        return file
    synthetic.write_tokenizer(folder)
    if kind == "stories":
        synthetic.write_stories(folder, **options)
    elif kind == "captions":
        synthetic.write_captions(folder, **options)
    else:
        synthetic.write_videos(folder, kind, **options)
    return file


def place_part(context: Context) -> dict:
    """Write a part of a model that was trained before, as the finished model of the job's run.

    The job's argument has `file`, an .npz of arrays by their path, and `sha256`, what it must be.
    """
    import numpy as np
    from flax.traverse_util import unflatten_dict

    from vvlm_jax.train import model_dir

    file, sha256 = Path(context.job.argument["file"]), context.job.argument["sha256"]
    if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        raise ConfigError(f"{file}: is not the file that the manifest names; make the parts again")
    with context.stop.anywhere():
        if not model_dir.is_finished(context.folder):
            with np.load(file) as arrays:
                params = unflatten_dict({path: arrays[path] for path in arrays.files}, sep="/")
            model_dir.save_params(context.folder, params)
    return {"steps": 0, "loss": None, "unreadable": []}


def ask_untrained(context: Context) -> dict:
    """Evaluate the model that finetuning starts from, with a random projector.

    It chooses among the valid answers: its free replies are often none of them, and would score
    less than guessing.
    """
    from vvlm_jax.data import synthetic, tokenizer
    from vvlm_jax.eval import runner
    from vvlm_jax.generate.video_vlm import VideoVLM
    from vvlm_jax.sharding import make_mesh
    from vvlm_jax.train import optim
    from vvlm_jax.train.compiled import initial_state
    from vvlm_jax.train.model_dir import build_model

    seed, run = context.job.argument["seed"], context.store.job(f"{context.job.run}/train")
    config = jobs.train_config(dataclasses.replace(context, job=run))
    init = tuple(i for i in config.init if i[0] != "projector")
    config = dataclasses.replace(config, init=init, seed=seed)
    asked = jobs.evaluation(context, "val")
    with context.stop.anywhere():
        tok = tokenizer.load(config.data.tokenizer)
        model = build_model(config, tok)
        state = initial_state(config, model, make_mesh(config.mesh))
        vlm = VideoVLM.from_params(config, optim.merge(state.trainable, state.frozen), tok)
        questions = [
            {**q, "choices": q.get("valid") or synthetic.valid_replies(q)}
            for q in runner.read_questions(asked.questions)
        ]
        return jobs.answer(context, asked, questions, vlm, f"untrained, seed {seed}")


def ask_about_others(context: Context) -> dict:
    """Ask a finished run every question about the next clip instead of its own.

    Only the format of such answers can be right, so the score should be that of guessing.
    """
    from vvlm_jax.eval import runner
    from vvlm_jax.generate.video_vlm import VideoVLM

    asked = jobs.evaluation(context, "val")
    with context.stop.anywhere():
        questions = runner.read_questions(asked.questions)
        clips = list(dict.fromkeys(q["video"] for q in questions))
        following = dict(zip(clips, clips[1:] + clips[:1], strict=True))
        questions = [{**q, "video": following[q["video"]]} for q in questions]
        vlm = VideoVLM.load(context.folder)
        return jobs.answer(context, asked, questions, vlm, f"{context.job.run}, other clip")


KINDS = {
    "data": write_data,
    "part": place_part,
    "untrained": ask_untrained,
    "other-clip": ask_about_others,
}
"""The functions of these jobs, by kind."""
