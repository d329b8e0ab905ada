"""Compare the bagged fit with scipy and with a far longer search: time and quality.

Example:
    python -m tools.bench.bench_fit --quick

On a synthetic twin of the paper's 88 runs (add-interact, 1% noise; what it says is not a result),
100 resamples x 500 starts. The bars, on 2 cores: 5 s once compiled, 12 s for a cold process, under
2 GiB; 200 times faster than scipy with analytic gradients on 2 processes; an objective within 1e-4
of that of 2,000 starts run to convergence for 95 of 100 resamples; a bagged-median prediction
within 0.05 points (root mean square) of theirs on every configuration up to 100 TFLOPs.

scipy runs on a few resamples with all starts, and its time is scaled to all of them.
"""

import dataclasses
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

from fitting import formatting
from fitting.config import FitConfig
from fitting.cost import PAPER
from fitting.sweeps import PAPER_DOMAIN
from tools.arguments import read_options
from tools.bench.bench_frontier import measure, peak_gib, twin
from tools.common import die_in_one_line

PROCESSES = 2
WORSE = 1e-4
SIZES = 1e6, 2e6, 5e6
COLD = "from tools.bench.bench_fit import once; once()"


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.bench.bench_fit`."""

    repeats: int = 3
    """Repetitions of each measurement; the median counts."""
    reference_starts: int = 2000
    """Starts of the long search, each run to convergence; 0 leaves it out."""
    scipy_resamples: int = 2
    """Resamples that scipy fits from all starts; 0 leaves it out."""
    quick: bool = False
    """10 resamples x 50 starts, one count, 100 reference starts, scipy on one resample."""


def main(args: Args) -> None:
    """Print one table per question."""
    config = FitConfig(resamples=10, starts=50) if args.quick else FitConfig()
    if args.quick:
        args = dataclasses.replace(args, repeats=1, reference_starts=100, scipy_resamples=1)
    speed(config, args)


def once() -> None:
    """Run a whole bagged fit in a fresh process and print its seconds and memory as JSON."""
    start = float(os.environ["BENCH_START"])
    from fitting.fits import fit

    fit(twin(), FitConfig(**json.loads(os.environ["BENCH_CONFIG"])))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    print(json.dumps([time.time() - start, cpu, peak_gib()]))


def cold(config: FitConfig) -> list[float]:
    """Return wall seconds, CPU seconds and peak GiB of `once`, start of the process included."""
    given = {"BENCH_START": repr(time.time()), "BENCH_CONFIG": json.dumps(config.to_dict())}
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | given
    done = subprocess.run(
        [sys.executable, "-c", COLD], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(f"the cold process failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def speed(config: FitConfig, args: Args) -> None:
    """Print times, memory and quality of the bagged fit, of scipy and of the long search."""
    colds = [cold(config) for _ in range(args.repeats)]
    import jax

    from fitting.fits import fit

    table = twin()
    fit(table, config)  # compiles
    law, wall, busy = measure(lambda: fit(table, config), args.repeats)
    size = f"{config.resamples} x {config.starts}"
    print(
        f"{config.form} on a synthetic twin of 88 runs, {size}, jax {jax.__version__} on "
        f"{jax.local_devices()[0].device_kind}, {os.cpu_count()} cores; median of {args.repeats}"
    )
    rows = [
        ("cold process", *map(statistics.median, zip(*colds, strict=True))),
        ("once compiled", wall, busy, float("nan")),
    ]
    case, problem, bounds = setup(table, config)
    if args.scipy_resamples:
        chosen = range(1, 1 + args.scipy_resamples)
        seconds, least = scipy_fits(case, problem, bounds, config, chosen)
        scaled = seconds * config.resamples / args.scipy_resamples
        rows.append((f"scipy L-BFGS-B, {PROCESSES} processes, scaled", scaled, float("nan"), 0.0))
    print(
        formatting.aligned(
            ("", "seconds", "CPU seconds", "peak GiB"),
            [(name, *(formatting.number(v or np.nan) for v in values)) for name, *values in rows],
        )
    )
    print(f"members: {np.bincount(law.status, minlength=3)} converged, stopped, failed")
    if args.scipy_resamples:
        excess = law.objective[: args.scipy_resamples] / least - 1
        print(
            f"scipy measured on {args.scipy_resamples} resamples from all {config.starts} starts: "
            f"{seconds:.0f} s; ours {scaled / wall:,.0f} times faster; ours worse by more than "
            f"{WORSE:g} in {(excess > WORSE).sum()}, better in {(excess < -WORSE).sum()}"
        )
    if args.reference_starts:
        quality(law, case, problem, bounds, config, args.reference_starts)


def setup(table, config: FitConfig):
    """Return what a fit gives its solver: the normalised case, its resamples and the bounds."""
    from fitting.bootstrap import resample_weights
    from fitting.fits import _case, bounds
    from fitting.optimise.lanes import Problem

    case = _case(table, None, config, len(table), table.scale)
    weights_BR = resample_weights(len(table), config.resamples, config.seed, rows=case.rows)
    target_BR = np.tile(case.target, (config.resamples, 1))
    problem = Problem(case.log_z, target_BR, weights_BR, case.starts)
    return case, problem, bounds(case.layout, config)


def quality(law, case, problem, bounds, config: FitConfig, count: int) -> None:
    """Print how a fit compares with `count` other starts per resample, run to convergence."""
    from fitting.fits import _case
    from fitting.optimise.search import solve

    other = _case(
        case.table,
        None,
        config.replace(starts=count, seed=config.seed + 1000),
        88,
        case.table.scale,
    )
    start = time.perf_counter()
    reference = solve(
        [problem._replace(starts=other.starts)],
        case.layout,
        *bounds,
        stages=((20, None), (380, None)),
        rounds=0,
        final=20,
    )[0]
    excess = law.objective / reference.objective - 1
    theta = case.to_outer(reference.theta, False)
    longer = dataclasses.replace(law, bag=law.bag._replace(theta=theta))
    x = PAPER_DOMAIN.configurations()
    x = x[PAPER(x) <= 100e12]
    gap = [law.predict(x, n) - longer.predict(x, n) for n in SIZES]
    print(
        f"against {count:,} other starts run to convergence ({time.perf_counter() - start:.0f} s): "
        f"objective within {WORSE:g} in {(excess <= WORSE).sum()} of {len(excess)} resamples, "
        f"lower by more in {(excess < -WORSE).sum()}; bagged median on {len(x):,} configurations "
        f"at n = 1, 2, 5M: {np.sqrt(np.mean(np.square(gap))):.4f} points root mean square"
    )


# --- scipy, as a researcher's script would have it: numpy and nothing of this package's solver ---


def scipy_fits(case, problem, bounds, config: FitConfig, chosen) -> tuple[float, np.ndarray]:
    """Return wall seconds of `PROCESSES` processes and the least objective per resample."""
    design = case.layout.design(case.log_z)
    jobs = [
        (design, case.target, problem.weights[b - 1], start, *bounds)
        for b in chosen
        for start in case.starts
    ]
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = "1"  # a process is one core
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        pool.map(scipy_fit, jobs[:PROCESSES])  # imports scipy
        start = time.perf_counter()
        values = pool.map(scipy_fit, jobs, chunksize=10)
        seconds = time.perf_counter() - start
    return seconds, np.reshape(values, (len(chosen), -1)).min(axis=1)


def scipy_fit(job) -> float:
    """Return the objective that L-BFGS-B reaches from one start, with tight tolerances."""
    import scipy.optimize

    design, target, weights, start, lower, upper = job
    used = weights > 0
    design, target, weights = design[used], target[used], weights[used] / weights.sum()

    def value_and_gradient(theta):
        log_terms = design @ theta
        top = log_terms.max(axis=1, keepdims=True)
        terms = np.exp(log_terms - top)
        total = terms.sum(axis=1, keepdims=True)
        miss = top[:, 0] + np.log(total[:, 0]) - target
        slopes = np.einsum("rm,rmp->rp", terms / total, design)
        return weights @ miss**2, 2 * slopes.T @ (weights * miss)

    return scipy.optimize.minimize(
        value_and_gradient,
        np.clip(start, lower, upper),
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(lower, upper, strict=True)),
        options=dict(maxiter=20_000, maxfun=40_000, ftol=1e-14, gtol=1e-10),
    ).fun


if __name__ == "__main__":
    die_in_one_line(lambda: main(read_options(Args, __doc__)), continues=False)
