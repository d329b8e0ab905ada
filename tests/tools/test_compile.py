"""`vvlm compile`: bad input, the search for what fits, what is kept; and, where libtpu is there,
real programs compiled for TPUs.
"""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fitting import sweeps
from tools import compile as command
from tools.common import die_in_one_line
from vvlm_jax.compile import programs, search, table
from vvlm_jax.compile.programs import Measured, Target
from vvlm_jax.config import TrainConfig
from vvlm_jax.devices import GIB, TPUS, parse_topology
from vvlm_jax.override import override

ROOT = Path(__file__).parents[2]
FINETUNE = ROOT / "configs" / "finetune.py"

SMALL = """
from vvlm_jax.config import DataConfig, LlamaConfig, ModelConfig, TrainConfig, VisionConfig

def config():
    vision = VisionConfig(
        width=144, depth=3, mlp_dim=256, num_heads=2, patch_size=14, image_size=238
    )
    llm = LlamaConfig(
        vocab=1024, width=256, depth=2, mlp_dim=512, num_heads=4, num_kv_heads=2, head_dim=64,
        tie_embeddings=False,
    )
    return TrainConfig(
        ModelConfig(vision, llm, num_frames=2, tokens_per_frame=144),
        DataConfig(max_text_tokens=40), batch_size=16, microbatches=2,
    )
"""


def ask(capsys, *arguments, code=2):
    """Run a command that must end with `code`; return (stdout, stderr)."""
    import tyro

    def run():
        command.main(tyro.cli(command.Args, args=list(map(str, arguments))))

    if code:
        with pytest.raises(SystemExit) as e:
            die_in_one_line(run)
        assert e.value.code == code
    else:
        run()
    return capsys.readouterr()


MISTAKES = [
    (("--topology", "v5q:2x2x4"), r"--topology v5q:2x2x4: unknown .* did you mean 'v5p:2x2x4'"),
    (("--topology", "v5p"), "--topology v5p: must be like v5p:2x2x1, v5p:2x2x2"),
    (("--topology", "v5p:2x2"), "--topology v5p:2x2: must be like v5p:"),
    (("--topology", "v6e:0x4"), "--topology v6e:0x4: must be like v6e:"),
    (("--topology", "v6e:4x4", "--hbm", "0"), r"--hbm 0\.0: must be above 0"),
    (("--topology", "v6e:4x4", "--prompts", "0"), "--prompts 0: must be at least 1"),
    (("--topology", "v6e:4x4", "--effort", "2"), r"--effort 2\.0: must be between -1 and 1"),
    (("--topology", "v6e:4x4", "--table"), "--table: needs --sweep star or"),
    (("--topology", "v6e:4x4", "--sweep", "star", "--program", "decode"), "compiles train steps"),
    (("--topology", "v6e:4x4", "--set", "model.llm=llama3.2-2b"), r"unknown; did you mean 'llama3"),
    (("--topology", "v6e:4x4", "--set", "model.num_frame=2"), "model.num_frame: no such option"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_line(capsys, arguments, message):
    out, err = ask(capsys, "--config", FINETUNE, *arguments)
    (line,) = err.splitlines()
    assert not out
    assert re.search(message, line), line


def test_an_unknown_config_names_those_there_are(capsys):
    _, err = ask(capsys, "--config", ROOT / "configs" / "fine.py", "--topology", "v6e:4x4")
    assert "no such Python file" in err
    assert "finetune.py" in err


def test_missing_libtpu_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    _, err = ask(capsys, "--config", FINETUNE, "--topology", "v6e:4x4")
    (line,) = err.splitlines()
    assert "pip install 'vvlm_jax[libtpu]'" in line


# --- the sweep ---


def measured(needed, limit=10.0, refusal=""):
    return Measured(
        needed < limit and not refusal, limit, needed, {"temporaries": needed}, {}, 1, [], 1.0, 1.0,
        1.0, 1.0, refusal,
    )  # fmt: skip


class Machine:
    """Memory by rows and remat; counts compiles."""

    def __init__(self, need):
        self.need, self.asked = need, []

    def __call__(self, rows, remat):
        assert (rows, remat) not in self.asked, "compiled twice"
        self.asked.append((rows, remat))
        return measured(self.need(rows, remat))


AFFINE = [
    (lambda r, remat: 1 + r * (0.5 if remat else 3), 16, True),
    (lambda r, remat: 1 + r * (0.1 if remat else 0.5), 16, False),
    (lambda r, remat: 1 + r * (2 if remat else 4), 4, True),
    (lambda r, remat: 9.9 + r * 0.05, 1, False),
    (lambda r, remat: 11 + r, None, True),
    # Not affine: the compiler rematerialises when memory is short, or one microbatch is cheaper.
    (lambda r, remat: 1 + min(r * 0.6, 8.5) if remat else 20, 16, True),
    (lambda r, remat: 1 + r**1.3 * 0.4, 8, False),
]


@pytest.mark.parametrize(("need", "rows", "remat"), AFFINE)
def test_the_largest_microbatch_comes_first_then_the_least_remat(need, rows, remat):
    choices = [1, 2, 4, 8, 16]
    machine = Machine(need)
    found, chosen, result = search.search(choices, (False, True), 10.0, machine)
    fitting = [r for r in choices if need(r, True) < 10]
    assert (max(fitting) if fitting else None) == rows
    assert found == (rows or 1)
    assert chosen == remat
    assert result.fits == bool(rows)
    assert (found, chosen) in machine.asked, "what is chosen has been compiled"
    assert len(machine.asked) <= 5


def test_what_is_far_too_large_is_not_compiled():
    machine = Machine(lambda r, remat: 1 + 4 * r)
    search.search([1, 2, 4, 8, 16], (True,), 10.0, machine)
    assert machine.asked == [(1, True), (2, True)]


def test_a_compiler_that_says_no_number_is_asked_step_by_step():
    machine = Machine(lambda r, remat: 1.0 if r < 4 else math.nan)
    assert search.search([1, 2, 4, 8], (True,), 10.0, machine)[0] == 2


def test_policies_are_tried_from_the_smallest_on_until_one_does_not_fit():
    machine = Machine(lambda r, remat: {"most": 4, "more": 8, "some": 11, "none": 20}[remat] * r)
    found = search.search([1, 2], ("none", "some", "more", "most"), 10.0, machine)
    assert found[:2] == (2, "most")
    assert machine.asked == [(1, "most"), (2, "most"), (2, "more")]
    machine = Machine(lambda r, remat: {"most": 4, "more": 8, "some": 11, "none": 20}[remat])
    assert search.search([1], ("none", "some", "more", "most"), 10.0, machine)[:2] == (1, "more")
    assert machine.asked == [(1, "most"), (1, "more"), (1, "some")]


def test_a_good_prediction_saves_compiles_and_a_bad_one_changes_nothing():
    need = AFFINE[0][0]
    choices = [1, 2, 4, 8, 16]
    machine = Machine(need)
    assert search.search(choices, (False, True), 10.0, machine, need)[:2] == (16, True)
    assert machine.asked == [(16, True)]
    for wrong in (lambda r, remat: 1.0, lambda r, remat: 10.5 + r / 100):
        machine = Machine(AFFINE[2][0])
        assert search.search(choices, (False, True), 10.0, machine, wrong)[:2] == (4, True)


def test_where_all_rows_are_foreseen_to_fit_with_little_remat_that_is_compiled_first():
    policies = ("none", "some", "more", "most")
    need = {"most": 4, "more": 6, "some": 8, "none": 20}
    known = {**need, "none": None}
    machine = Machine(lambda r, remat: need[remat] * r / 2)

    def predict(r, remat):
        return known[remat] and known[remat] * r / 2

    assert search.search([1, 2], policies, 10.0, machine, predict)[:2] == (2, "some")
    assert machine.asked == [(2, "some"), (2, "none")]
    # Though nothing is known of most.
    known["most"] = None
    machine = Machine(lambda r, remat: need[remat] * r / 2)
    assert search.search([1, 2], policies, 10.0, machine, predict)[:2] == (2, "some")
    assert machine.asked == [(2, "some"), (2, "none")]
    # Foreseen wrongly, it is found all the same.
    known["none"] = 9
    machine = Machine(lambda r, remat: need[remat] * r / 2)
    assert search.search([1, 2], policies, 10.0, machine, predict)[:2] == (2, "some")
    known = dict.fromkeys(policies, 1)
    machine = Machine(lambda r, remat: need[remat] * r)
    assert search.search([1, 2], policies, 10.0, machine, predict)[:2] == (2, "most")


def test_memory_is_predicted_from_what_was_measured_of_the_same_model():
    base, memory = command.load_config(FINETUNE, TrainConfig), search.Memory(16)

    def config(frames, tokens, llm="llama3.2-1b"):
        return override(
            base, [f"model.num_frames={frames}", f"model.tokens_per_frame={tokens}",
                   f"model.llm={llm}"],
        )  # fmt: skip

    def need(frames, tokens, rows):
        return 5.0 + rows * (0.1 * frames + 0.001 * (frames * tokens + 512))

    for frames, tokens, rows in ((32, 196, 1), (32, 196, 2), (8, 49, 4)):
        memory.add(config(frames, tokens), rows, need(frames, tokens, rows))
        assert memory.predict(config(16, 100), 2) is None
    memory.add(config(16, 4), 8, need(16, 4, 8))
    assert memory.predict(config(16, 100), 2) == pytest.approx(need(16, 100, 2))
    assert memory.predict(config(16, 100, "llama3.2-3b"), 2) is None
    assert memory.predict(config(128, 625), 16) is None, "far from all that was measured"
    # On another topology, too, until more is known there; more chips share what they share.
    larger = search.Memory(64, memory)
    assert larger.predict(config(16, 100), 2) == pytest.approx(need(16, 100, 2) - 5.0 * 3 / 4)
    for frames, tokens, rows in ((32, 196, 1), (32, 196, 2), (8, 49, 4), (16, 4, 8)):
        larger.add(config(frames, tokens), rows, 2 * need(frames, tokens, rows))
    assert larger.predict(config(16, 100), 2) == pytest.approx(2 * need(16, 100, 2))


def test_the_sweeps_are_the_62_configurations_of_table_6():
    base = command.load_config(FINETUNE, TrainConfig)
    star, isoflop = (command.configurations(base, s) for s in ("star", "isoflop"))
    assert (len(star), len(isoflop)) == (13, 49)
    distinct = {(c.model.llm, c.model.num_frames, c.model.tokens_per_frame) for c in star + isoflop}
    assert len(distinct) == 62
    centre = star[0].model
    assert (centre.llm, centre.num_frames, centre.tokens_per_frame) == ("llama3.1-8b", 32, 196)
    assert sweeps.PAPER_STAR.center[1:] == (32, 196)


def test_an_interrupted_sweep_continues_and_a_table_compiles_nothing(tmp_path, capsys, monkeypatch):
    compiled, stop = [], 7

    def compile_one(config, target, known):
        if len(compiled) == stop:
            raise KeyboardInterrupt
        compiled.append(config)
        rows = config.batch_size // config.microbatches / 16
        need = (8 if config.model.remat == "none" else 2) * rows * config.model.num_frames / 4
        return measured(need * GIB, TPUS["v5p"].usable_memory * GIB)

    monkeypatch.setattr(table, "compile_step", compile_one)
    monkeypatch.setattr(programs, "prepare_environment", lambda: None)
    arguments = ("--config", FINETUNE, "--topology", "v5p:2x2x4", "--sweep", "star", "--out")
    ask(capsys, *arguments, tmp_path, code=130)
    file = tmp_path / "v5p-2x2x4.jsonl"
    assert file.read_text().count("needed") == stop
    with file.open("a") as cut:
        cut.write('{"key": "half of a li')
    _, err = ask(capsys, *arguments, tmp_path, "--table")
    assert re.search(r"\d of 13 rows; run the same command without --table", err)
    stop = 1000
    out, _ = ask(capsys, *arguments, tmp_path, code=0)
    assert len(compiled) == len(set(compiled)), "each shape once"
    rows = [line.split(" | ") for line in out.splitlines()]
    assert len(rows) == 2 + 13
    assert rows[2][4:6] == ["4 x 4", "products"], rows[2]
    again, _ = ask(capsys, *arguments, tmp_path, "--table", code=0)
    assert again == out
    # Half the memory: the same compiles give another table.
    half, _ = ask(capsys, *arguments, tmp_path, "--hbm", "48", code=0)
    assert "2 x 8" in half.splitlines()[2]
    again, _ = ask(capsys, *arguments, tmp_path, "--table", code=0)
    assert again == out
    # Another topology with chips as large: what this one needed says where to look first.
    first = len(compiled)
    compiled.clear()
    arguments = [a.replace("v5p:2x2x4", "v5p:4x2x2") for a in map(str, arguments)]
    there, _ = ask(capsys, *arguments, tmp_path, code=0)
    assert there == out
    assert len(compiled) < first / 2


def test_a_key_depends_on_the_program_and_not_on_where_it_is_written(tmp_path):
    target = Target(parse_topology("v5p:2x2x4"))
    (tmp_path / "file").touch()
    compiles = table.Compiles(tmp_path / "file", target)
    base = command.load_config(FINETUNE, TrainConfig)

    def key(*assignments):
        return compiles.key(override(base, assignments))

    assert key("out_dir=elsewhere", "seed=3", "data.annotations=x.json") == key()
    for other in ("model.num_frames=8", "microbatches=32", "data.max_text_tokens=128",
                  "optim.b1=0.8", 'mesh=[["data",2],["fsdp",-1],["tensor",1]]'):  # fmt: skip
        assert key(other) != key(), other
    for other in (Target(parse_topology("v5e:4x4")), dataclasses.replace(target, effort=-1.0)):
        assert table.Compiles(tmp_path / "file", other).key(base) != key()
    code = {path.name for path in table.compiled_files()}
    assert {"vlm.py", "llama.py", "attention.py", "sharding.py", "step.py", "optim.py"} <= code


# --- real compiles ---


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    file = tmp_path_factory.mktemp("small") / "small.py"
    file.write_text(SMALL)
    return file


COMMANDS = """
import contextlib, io, json, sys
import tyro
from tools import compile as command
from tools.common import die_in_one_line

for arguments in json.loads(sys.argv[1]):
    shown, code = [io.StringIO(), io.StringIO()], 0
    with contextlib.redirect_stdout(shown[0]), contextlib.redirect_stderr(shown[1]):
        try:
            die_in_one_line(lambda: command.main(tyro.cli(command.Args, args=arguments)))
        except SystemExit as e:
            code = e.code
    print(json.dumps([code, *(text.getvalue() for text in shown)]))
"""


def in_a_process(code, *arguments):
    """Run code in a process of its own: libtpu loads once a process, and here jax is at work."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environ = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"} | {"PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=environ, capture_output=True,
        text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def compile_small(small, *commands):
    """Return (exit code, stdout, stderr) of `vvlm compile` with each command's arguments."""
    asked = [["--config", str(small), *arguments] for arguments in commands]
    return [json.loads(line) for line in in_a_process(COMMANDS, json.dumps(asked)).splitlines()]


@pytest.mark.tpu
def test_a_train_step_fits_and_holds_kernels_in_place_of_scores(small):
    [(code, out, err)] = compile_small(small, ("--topology", "v5e:2x2"))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "in 2 microbatches of 8" in lines[0]
    assert lines[-1].startswith("fits: ")
    for kind in ("arguments", "temporaries", "code", "HBM", "all-gather", "all-reduce"):
        assert re.search(rf"^{kind} .*\d", out, re.MULTILINE), kind
    # Forward, forward again, and two backward: for the encoder's 289 patches and for the LM.
    assert "8 Pallas kernels" in out
    assert "written out" not in out


KNOWN = """
import dataclasses, sys
from pathlib import Path
from vvlm_jax.compile import programs
from vvlm_jax.devices import parse_topology
from tools.common import load_config
from vvlm_jax.config import TrainConfig
from vvlm_jax.override import override

programs.prepare_environment()
config = load_config(Path(sys.argv[1]), TrainConfig)


def measure(program, known, *changes):
    target = programs.Target(parse_topology("v5e:2x2"))
    return programs.measure(override(config, changes), target, program, known=known)


class All(dict):  # so that nothing is compiled
    __contains__ = lambda self, digest: True
    __missing__ = lambda self, digest: dataclasses.replace(first, digest=digest)


first = measure("encode", {})
assert first.fits and first.digest
known = {first.digest: dataclasses.replace(first, needed=1.0)}
assert measure("encode", known, "seed=3").needed == 1.0
other = measure("encode", known, "model.num_frames=1")
assert other.needed != 1.0 and other.digest != first.digest
step = measure("train", All()).digest
assert measure("train", All(), "seed=3").digest == step
assert measure("train", All(), "microbatches=1").digest != step
"""


@pytest.mark.tpu
def test_a_program_that_is_known_is_not_compiled_again(small):
    in_a_process(KNOWN, str(small))


TOO_LARGE = ("--topology", "v5e:2x2", "--set", "batch_size=16384", "microbatches=1")
IMPOSSIBLE = [
    (("--topology", "v5p:9x9x9"), "--topology v5p:9x9x9: .*; known: v5p:2x2x1"),
    (
        ("--topology", "v5e:2x2", "--set", 'mesh=[["data",3],["fsdp",-1],["tensor",1]]'),
        "mesh .*does not divide the 4 devices",
    ),
    (("--topology", "v5e:4x4"), "batch_size = 8.*: must be divisible by"),
]


@pytest.mark.tpu
def test_what_does_not_fit_and_what_a_topology_cannot_do_is_told(small):
    """Decoding's arguments are what prefill gives: both are compiled."""
    decode = ("--topology", "v6e:2x2", "--program", "decode", "--hbm", "1")
    encode = ("--topology", "v5e:2x2", "--program", "encode", "--hbm", "0.0001")
    reference = (*encode, "--set", "model.attention=reference")
    impossible = [arguments for arguments, _ in IMPOSSIBLE]
    large, fits, small_hbm, *refused = compile_small(
        small, TOO_LARGE, decode, reference, *impossible
    )
    code, out, err = large
    assert (code, err) == (1, "")
    assert "RESOURCE_EXHAUSTED" in out  # by the compiler
    needed = re.match(r"does not fit: ([\d.]+) of 15.75 GiB", out.splitlines()[-1])
    assert float(needed[1]) > 15.75
    assert fits[0] == 0
    code, out, _ = small_hbm
    assert code == 1
    assert "0 Pallas kernels in the program; attention scores written out: " in out
    assert re.search(r"\[\d+,\d+,289,289\]", out), out
    for (code, out, err), (_, message) in zip(refused, IMPOSSIBLE, strict=True):
        assert (code, out) == (2, "")
        (line,) = err.splitlines()
        assert re.search(message, line), line
