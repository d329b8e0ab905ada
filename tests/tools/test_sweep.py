"""The sweep command: plans."""

import csv
import io
import json
from types import SimpleNamespace

import pytest

from configs.sweeps import star
from tools import sweep as command
from tools._shared import die_in_one_line

STAR, MINI = "configs/sweeps/star.py", "configs/sweeps/mini.py"


@pytest.fixture
def ask(capsys, monkeypatch):
    """ask("plan", …, code=0): (standard output, last line of standard error)."""

    def run(*argv, code=0):
        monkeypatch.setattr("sys.argv", ["tools.sweep", *map(str, argv)])
        ended = 0
        try:
            die_in_one_line(command.cli)
        except SystemExit as e:
            ended = e.code or 0
        out, err = capsys.readouterr()
        assert ended == code, err
        return out, (err.strip().splitlines() or [""])[-1]

    return run


def test_csv_is_a_header_and_a_row_a_run(ask):
    out, _ = ask("plan", STAR, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 39
    assert {(r["lm_params"], r["num_examples"]) for r in rows} >= {("7500000000", "250000")}
    assert all(float(r["device_hours"]) > 0 and r["cost"] == r["fits"] == "" for r in rows)


def test_json_has_the_same_rows_and_totals(ask):
    out, _ = ask("plan", STAR, "--json", "--price", "2", "--device", "TPU v5p", "--mfu", "0.5")
    found = json.loads(out)
    assert len(found["runs"]) == 39
    assert len(found["stage_1"]) == 3
    hours = sum(r["device_hours"] for r in found["runs"] + found["stage_1"])
    assert found["totals"]["cost"] == pytest.approx(2 * hours)
    assert found["assumed"] == {"device": "TPU v5p", "peak": 459e12, "mfu": 0.5, "price": 2.0}


def test_a_table_for_people_ends_with_totals_and_what_was_assumed(ask):
    out, _ = ask("plan", MINI, "--price", "2")
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["run", "x_N", "x_T", "x_V"]
    assert "total: 4 runs and 2 stages 1" in lines[-2]
    assert "40% of 9.89e+14 FLOP/s, 2 for an hour" in lines[-1]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--device", "H100"), "error: --device = 'H100': unknown; did you mean 'NVIDIA H100'?"),
        (("--mfu", "1.5"), "error: --mfu 1.5: must be a share above 0, at most 1"),
        (("--price", "0"), "error: --price 0: must be above 0"),
        (("--csv", "--json"), "error: --csv and --json: choose one"),
        (("--set", "data_size=9"), "num_examples = 12: above the 9 examples there are"),
        (("--set", "finetune.data.n=9"), "finetune.data.n: no such option"),
    ],
)
def test_bad_options_are_told_in_one_line(ask, options, line):
    assert line in ask("plan", MINI, *options, code=2)[1]


def test_a_budget_no_configuration_meets_is_told_in_one_line(ask, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs.sweeps import table6\n"
        "from fitting import cost, sweeps\n"
        "def sweep():\n"
        "    points = sweeps.isoflop_sweep(sweeps.PAPER_DOMAIN, [1e9], 10**6, cost.PAPER)\n"
        "    return table6.config('mine', points)\n"
    )
    line = ask("plan", file, code=2)[1]
    assert line.startswith(f"error: {file}, line 4: ValueError: no configuration costs within 3.0%")
    file.write_text("def config():\n    return 1\n")
    assert ask("plan", file, code=2)[1].endswith("must define sweep() -> SweepConfig")


def test_what_was_compiled_says_which_runs_fit(ask, tmp_path, monkeypatch):
    from tools import _compile_programs as programs
    from tools import _compile_sweep

    def compile_one(config, topology):  # 32 frames never fit
        need = config.model.num_frames * 4 * programs.GIB
        return programs.Measured(
            need < 100e9, 0, need, {"temporaries": 0.0}, {}, 1, [], 1.0, 1.0, 1.0, 1.0
        )

    options = ("--topology", "v5p:2x2x4", "--compiled", tmp_path)
    assert "has no v5p-2x2x4.jsonl; make it" in ask("plan", STAR, *options, code=2)[1]
    monkeypatch.setattr(_compile_sweep, "_compile", compile_one)
    monkeypatch.setattr(programs, "prepare_environment", lambda: None)
    args = SimpleNamespace(sweep="star", topology="v5p:2x2x4", out=tmp_path, table=False, hbm=None)
    _compile_sweep.run(star.sweep().finetune, args)
    out, _ = ask("plan", STAR, *options, "--csv")
    rows = list(csv.DictReader(io.StringIO(out[out.index("run_id,sweep") :])))
    fits = {(int(r["num_frames"]), r["fits"]) for r in rows}
    assert fits == {(32, "no"), (16, "yes"), (12, "yes"), (8, "yes"), (4, "yes")}
