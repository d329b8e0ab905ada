"""`vvlm generate` on a model of random parameters."""

import shutil
from pathlib import Path

import pytest
import tyro

from tests.vvlm_jax.byte_level import save_byte_level
from tools import generate
from tools.common import die_in_one_line
from vvlm_jax.data import tokenizer

VIDEOS = Path(__file__).parents[1] / "testdata" / "videos"
CLIP = str(VIDEOS / "h264_one_gop.mp4")


@pytest.fixture
def run(model_folder, capsys):
    """Return run("--prompt", "x", …) -> what it prints."""

    def run(*arguments, model=model_folder):
        given = ["--model", str(model), "--max-tokens", "12", *arguments]
        die_in_one_line(lambda: generate.main(tyro.cli(generate.Args, args=given)))
        return capsys.readouterr().out

    return run


def test_streaming_prints_the_same_reply(run):
    drawn = ("--temperature", "0.8", "--top-p", "0.9", "--seed", "2")
    asked = ("--video", CLIP, "--prompt", "What?", *drawn)
    reply = run(*asked)
    assert reply.strip()
    assert run(*asked, "--stream") == reply


def test_several_prompts_stand_above_their_replies(run):
    asked = ("--video", CLIP, "--prompt", "What?", "--prompt", "Who is it?")
    shown = run(*asked)
    alone = [run("--video", CLIP, "--prompt", p).strip() for p in ("What?", "Who is it?")]
    assert shown == f"> What?\n{alone[0]}\n\n> Who is it?\n{alone[1]}\n\n"
    assert run(*asked, "--stream").split() == shown.split()


@pytest.mark.slow(reason="compiles for five shapes; generate/test_video_vlm.py has three")
def test_frames_tokens_and_videos_are_the_models_to_see(run):
    replies = {
        run("--prompt", "What?", *more)
        for more in (
            (),
            ("--video", CLIP),
            ("--video", CLIP, "--frames", "2"),
            ("--video", CLIP, "--tokens-per-frame", "9"),
            ("--video", CLIP, "--video", CLIP),
        )
    }
    assert len(replies) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--video", "gone.mp4", "--prompt", "x"), "gone.mp4: no such file"),
        (
            ("--video", CLIP, "--prompt", "x" * 600),
            "12 of them visual; with --max-tokens 12 that is more than the 512 of the model's "
            "context: take fewer frames or tokens a frame, a shorter text or less room for the re",
        ),
        (
            ("--prompt", "x" * 600),
            "tokens; with --max-tokens 12 that is more than the 512 of the model's context: take a "
            "shorter text",
        ),
        (("--video", CLIP, "--prompt", "x", "--frames", "0"), "error: --frames 0: must be at"),
        (("--prompt", "x", "--tokens-per-frame", "5"), "error: --tokens-per-frame 5: must be a pe"),
        (("--prompt", "x", "--max-tokens", "0"), "error: --max-tokens 0: must be at least 1"),
        (("--prompt", "x", "--temperature", "-1"), "error: --temperature -1.0: must be 0"),
        (("--prompt", "x", "--top-p", "0"), "error: --top-p 0.0: must be a share"),
        (("--prompt", "x", "--seed", "-1"), "error: --seed -1: must be"),
        (("--prompt", "x", "--seed", str(10**30)), f"error: --seed {10**30}: must be"),
        (
            ("--video", CLIP, "--prompt", "x", "--frames", str(10**12)),
            "4,000,000,000,000 visual to",
        ),
        (("--prompt", "a\udcff"), "error: prompt 1 is not text in UTF-8"),
        (("--prompt", ""), "error: prompt 1 is empty: say what to ask"),
        (("--video", CLIP, "--prompt", "x", "--prompt", " \n"), "error: prompt 2 is empty"),
    ],
)
def test_a_mistake_is_one_line(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as e:
        run(*arguments)
    assert e.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_folder_without_a_model_is_one_line(run, capsys, tmp_path):
    with pytest.raises(SystemExit):
        run("--prompt", "x", model=tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert "no config.json, so not a finished model" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"model_type": "llama"}',
            "a Hugging Face directory; make it a model: vvlm co",
        ),
        ("{", "config.json: not JSON: "),
        ('{"modle": {}}', "modle: no such option; did you mean 'model'?"),
    ],
)
def test_a_folder_of_another_kind_is_told_what_it_is(run, capsys, tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SystemExit):
        run("--prompt", "x", model=tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_tokenizer_of_another_chat_format_is_one_line(run, capsys, tmp_path, model_folder):
    folder = shutil.copytree(model_folder, tmp_path / "m")
    save_byte_level(folder, tokenizer.FAMILIES["chatml"].values())
    with pytest.raises(SystemExit) as e:
        run("--prompt", "x", model=folder)
    assert e.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folder}/tokenizer.json: has the special tokens of chatml, and lacks <|start" in line
    assert "put the model's own tokenizer.json in its place" in line


def test_a_terminal_is_not_told_what_to_do(monkeypatch):
    assert generate.tame("a\x1b[2J") == "a\x1b[2J"  # a file gets what was said
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert generate.tame("é\n\ta\x1b[2J") == "é\n\ta�[2J"
