"""The train command: mistakes are one-line errors before anything is trained."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import FAST_TO_COMPILE
from tools import train
from tools.common import die_in_one_line, load_config
from vvlm_jax.config import TrainConfig
from vvlm_jax.config_check import validate
from vvlm_jax.models.variants import LLAMA, VISION
from vvlm_jax.override import override, to_json

ROOT = Path(__file__).parents[2]
TURNS = (("flash", 1), ("cell", 1), ("most", 1))

CONFIG = """
from vvlm_jax.config import DataConfig, ModelConfig, OptimConfig, TrainConfig

def config():
    return TrainConfig(
        model=ModelConfig("study/12", "study-s", 2, 4, dtype="float32", remat="none"),
        data=DataConfig("FOLDER/stories.json", "FOLDER", "FOLDER", max_text_tokens=200),
        optim=OptimConfig(((".*", 1e-3),)),
        out_dir="FOLDER/run", batch_size=4, checkpoint_every=0,
    )
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    from vvlm_jax.data import synthetic

    folder = tmp_path_factory.mktemp("tiny")
    synthetic.write_tokenizer(folder)
    synthetic.write_stories(folder, 8, TURNS, 0)
    file = folder / "tiny.py"
    file.write_text(CONFIG.replace("FOLDER", str(folder)))
    return file


def run(file, *assignments):
    die_in_one_line(lambda: train.main(train.Args(Path(file), assignments)))


MISTAKES = [
    (("model.num_frame=8",), "model.num_frame: no such option; did you mean 'num_frames'"),
    (("modle.num_frames=8",), "modle.num_frames: no such option .*did you mean 'model'"),
    (("epochs",), "'epochs': write an override as key=value"),
    (("batch_size=eight",), "batch_size = 'eight': must be int, not str"),
    (("model.num_frames=2.5",), r"model\.num_frames = 2\.5: must be int, not float"),
    (("model.tokens_per_frame=5",), r"model\.tokens_per_frame = 5: must be a perfect square .* 16"),
    (("model.tokens_per_frame=25",), r"model\.tokens_per_frame = 25: must be a .*4² = 16"),
    (("model.num_frames=0",), r"model\.num_frames = 0: must be at least 1"),
    (("model.llm=study-x",), r"model\.llm = 'study-x': unknown; did you mean 'study-"),
    (("model.vision=study/13",), r"model\.vision = 'study/13': unknown; did you mean 'study/12'"),
    (("data.num_examples=9",), r"data\.num_examples = 9: must be from 1 to 8"),
    (("data.annotations=gone.json",), r"no such file or folder: data\.annotations = gone\.json$"),
    (("seed=-1",), r"seed = -1: must be 0 or above"),
    ((f"seed={2**63}",), r"seed = 9223372036854775808: must be .*below 2\^63"),
    (("data.tokenizer=gone",), r"no such file or folder: data\.tokenizer = gone$"),
    (("data.annotations=a", "data.tokenizer=t"), r"data\.annotations = a, data\.tokenizer = t$"),
    (("data.tokenizer=gone", "model.llm=study-x"), r"model\.llm = 'study-x': unknown"),
    (("microbatches=3",), "microbatches = 3: must be a divisor of batch_size = 4"),
    (("batch_size=9",), "batch_size = 9: must be at most the number of examples, 8"),
    (('optim.learning_rates=[["llm/.*",1]]',), r"optim\.learning_rates: no pattern covers"),
    (("optim.b1=2",), r"optim\.b1 = 2\.0: must be from 0 to below 1"),
    (("optim.eps=-1",), r"optim\.eps = -1\.0: must be above 0"),
    (("data.max_unreadable=-1",), r"data\.max_unreadable = -1\.0: must be a share from 0 to 1"),
    (('optim.learning_rates=[["(",1]]',), r"optim\.learning_rates: '\(' is no regex"),
    pytest.param(
        ("data.max_text_tokens=3",),
        r"stories\.json: example 'story-\d': .*data\.max_text_tokens",
        marks=pytest.mark.slow(reason="found while training; data/test_pipeline.py has it, too"),
    ),
]


@pytest.mark.parametrize(("assignments", "message"), MISTAKES)
def test_a_mistake_is_one_line_that_names_the_field(
    config_file, tmp_path, capsys, assignments, message
):
    with pytest.raises(SystemExit) as e:
        run(config_file, f"out_dir={tmp_path}/runs/new", *assignments)
    assert e.value.code == 2
    if "max_text_tokens" not in message:  # examples are read once the run has begun
        assert list(tmp_path.iterdir()) == []
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line


def test_a_missing_config_names_those_that_are_there(config_file, capsys):
    with pytest.raises(SystemExit) as e:
        run(config_file.parent / "tini.py")
    assert e.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{config_file.parent / 'tini.py'}: no such Python file" in line
    assert str(config_file) in line


@pytest.mark.parametrize("text", ["", "def config():\n    return 1\n"])
def test_a_config_file_without_a_config_is_named(tmp_path, capsys, text):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(SystemExit) as e:
        run(tmp_path / "c.py")
    assert e.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("c.py: must define config() -> TrainConfig")


CONFIG_MISTAKES = [
    ("num_frame=8", r"c\.py, line 3: num_frame: no such option; did you mean 'num_frames'\?$"),
    ('num_frames="8"', r"c\.py: model\.num_frames = '8': must be int, not str$"),
    ("num_frames=1 / 0", r"c\.py, line 3: ZeroDivisionError: division by zero$"),
    ("num_frames=(", r"c\.py, line \d: SyntaxError: "),
]


@pytest.mark.parametrize(("option", "message"), CONFIG_MISTAKES)
def test_a_mistake_in_a_config_file_is_one_line(tmp_path, capsys, option, message):
    (tmp_path / "c.py").write_text(
        "from vvlm_jax.config import ModelConfig, TrainConfig\n"
        f"def config():\n    return TrainConfig(ModelConfig({option}))\n"
    )
    with pytest.raises(SystemExit) as e:
        run(tmp_path / "c.py")
    assert e.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line


def test_a_folder_that_cannot_be_written_is_one_line(config_file, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as e:
        run(config_file, f"out_dir={tmp_path / 'file' / 'run'}")
    assert e.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {tmp_path / 'file' / 'run'}: Not a directory"


def test_an_interruption_says_how_to_go_on(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as e:
        die_in_one_line(interrupted)
    assert e.value.code == 130
    assert "run the same command again" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        die_in_one_line(lambda: 1 / 0)


def test_print_config_prints_json_with_overrides_and_trains_nothing(config_file, capsys):
    args = train.Args(config_file, ("model.num_frames=7", "out_dir=nowhere"), print_config=True)
    die_in_one_line(lambda: train.main(args))
    out, err = capsys.readouterr()
    expected = override(load_config(config_file, TrainConfig), args.set)
    assert out == to_json(expected)
    assert json.loads(out)["model"]["num_frames"] == 7
    assert err == ""
    assert not Path("nowhere").exists()


def command(*args):
    return subprocess.run(
        [sys.executable, "-m", "tools.train", *args],
        cwd=ROOT, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "100", "XLA_FLAGS": FAST_TO_COMPILE},
    )  # fmt: skip


def test_the_real_command_trains(config_file, tmp_path):
    overrides = [f"out_dir={tmp_path / 'run'}", "log_every=1"]
    good = command("--config", str(config_file), "--set", *overrides)
    assert good.returncode == 0, good.stderr
    assert good.stdout.startswith(f"{tmp_path / 'run'}: 2 steps, loss ")
    assert good.stderr == ""


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_the_full_size_configs_are_valid(name):
    import jax

    from vvlm_jax.models import vlm
    from vvlm_jax.train import optim

    config = load_config(ROOT / "configs" / f"{name}.py", TrainConfig)
    validate(config, VISION[config.model.vision])
    shapes = vlm.shapes(vlm.build(config.model, 128002, LLAMA[config.model.llm].vocab))
    count = {part: sum(x.size for x in jax.tree.leaves(tree)) for part, tree in shapes.items()}
    assert count["llm"] == 1_235_814_400  # Llama-3.2-1B's
    assert 390e6 < count["vision"] < 430e6
    assert count["projector"] == (1152 + 1) * 2048 + (2048 + 1) * 2048
    trainable, frozen = optim.split(shapes, config.optim)
    parts = {path.split("/")[0] for path in trainable}
    assert parts == ({"projector"} if name == "pretrain" else {"vision", "projector", "llm"})
    assert len(trainable) + len(frozen) == len(jax.tree.leaves(shapes))
