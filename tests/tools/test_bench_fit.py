"""`python -m tools.bench.bench_fit`: scipy's own gradient, one small run."""

import numpy as np
import pytest
import scipy.optimize

from fitting.config import FitConfig
from tools.bench import bench_fit as bench


def test_scipys_gradient_is_right(monkeypatch):
    seen = {}

    def keep(function, start, **options):
        seen.update(function=function, start=start)
        return scipy.optimize.OptimizeResult(fun=function(start)[0])

    monkeypatch.setattr(scipy.optimize, "minimize", keep)
    config = FitConfig(resamples=2, starts=3)
    case, problem, bounds = bench.setup(bench.twin(), config)
    design = case.layout.design(case.log_z)
    bench.scipy_fit((design, case.target, problem.weights[0], case.starts[0], *bounds))
    value, gradient = seen["function"](seen["start"])
    assert value > 0
    for p, step in enumerate(1e-6 * np.eye(len(gradient))):
        up, down = (seen["function"](seen["start"] + s)[0] for s in (step, -step))
        np.testing.assert_allclose(gradient[p], (up - down) / 2e-6, rtol=1e-5, atol=1e-7)


@pytest.mark.slow(reason="times both sides, and starts a process")
def test_a_small_run_prints_every_comparison(capsys):
    config = FitConfig(form="mult", resamples=2, starts=4)
    bench.speed(config, bench.Args(repeats=1, reference_starts=8, scipy_resamples=1))
    shown = capsys.readouterr().out
    assert "mult on a synthetic twin of 88 runs, 2 x 4" in shown
    assert "cold process" in shown
    assert "ours worse by more than 0.0001 in 0, better in 0" in shown
    assert "objective within 0.0001 in 2 of 2 resamples, lower by more in 0" in shown
    assert "0.0000 points root mean square" in shown
