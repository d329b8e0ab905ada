"""Jobs of a sweep on synthetic data: the data itself, and controls that should score chance."""

import dataclasses

from vvlm_jax.sweep import jobs
from vvlm_jax.sweep.worker import Context


def write_data(context: Context) -> dict:
    """Write one kind of synthetic data into the store, unless it is there.

    The job's argument names the `kind` (train, val, test, captions or stories) and holds the
    arguments of its function in `vvlm_jax.data.synthetic`. The annotation file is written last.
    """
    from vvlm_jax.data import synthetic

    options = dict(context.job.argument)
    folder, kind = context.store.path, options.pop("kind")
    file = folder / f"{kind}.json{'l' * (kind in ('val', 'test'))}"
    with context.stop.anywhere():
        if file.exists():
            return {"file": file.name}
        synthetic.write_tokenizer(folder)
        if kind == "stories":
            synthetic.write_stories(folder, **options)
        elif kind == "captions":
            synthetic.write_captions(folder, **options)
        else:
            synthetic.write_videos(folder, kind, **options)
    return {"file": file.name}


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
            {**q, "choices": synthetic.valid_replies(q)}
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


KINDS = {"data": write_data, "untrained": ask_untrained, "other-clip": ask_about_others}
"""The functions of these jobs, by kind."""
