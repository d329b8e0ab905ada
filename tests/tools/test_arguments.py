"""Command lines that no command can read: one line, the nearest name, exit code 2."""

import sys

import pytest

from tools.__main__ import main


@pytest.fixture
def says(capsys, monkeypatch):
    """Return says("fit --ot x") -> the line that the command ends with."""

    def run(line):
        monkeypatch.setattr(sys, "argv", ["vvlm", *line.split()])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


@pytest.mark.parametrize(
    ("line", "wrong", "nearest"),
    [
        ("trian", "trian", "train"),
        ("sweep plna sweeps/star", "sweep plna", "plan"),
        ("sweep plan sweeps/star --devce x", "--devce", "--device"),
        ("train --confg finetune", "--confg", "--config"),
        ("train --config finetune --proces=3", "--proces", "--process"),
        ("fit runs.csv --seeds=3", "--seeds", "--seed"),
        ("plan law --budget_tflop 3", "--budget-tflop", "--budget-tflops"),
        ("evaluate --model m --judge-at.modl x", "--judge-at.modl", "--judge-at.model"),
        ("compile --toplogy v5p:2x2x4", "--toplogy", "--topology"),
        ("study --worker 2", "--worker", "--workers"),
    ],
)
def test_an_unknown_name_is_named_with_the_nearest(says, line, wrong, nearest):
    assert f"{wrong}: no such" in (found := says(line))
    assert f"did you mean '{nearest}'?" in found


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sweep", "plan, launch, work"),
        ("sweep plan", "SWEEP is missing"),
        ("convert", "SRC and DST are missing"),
        ("prepare --source x", "--mixture and --out are missing"),
        ("convert a b c", "c: one word too many"),
        ("convert a b --to x", "--to x: must be one of hf, model, npz"),
        ("convert a b --part x", "--part x: must be one of llm, vision;"),
        ("sweep plan sweeps/star --device", "--device: has no value"),
        ("sweep plan sweeps/star --mfu x", "--mfu x: must be a number"),
        ("generate --model m --prompt p --frames 2.5", "--frames 2.5: must be a whole number"),
        ("plan law --examples x", "--examples x: must be a number"),
    ],
)
def test_missing_and_wrong_values_say_what_is_allowed(says, line, words):
    assert words in says(line)
