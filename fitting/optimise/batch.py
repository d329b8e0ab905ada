"""The fits of several problems as one batch: their data, and programs run over lanes of them.

Lanes are cut into chunks of one shape, so that a single compiled program serves every stage, and
chunks go to all local devices; on the CPU, to one thread per core. Everything is float64, without
changing the precision of the process.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from fitting.forms import Layout
from fitting.optimise import levenberg_marquardt, objective
from fitting.optimise.lanes import Lanes, Problem, lowest_distinct, start_lanes
from fitting.optimise.levenberg_marquardt import EXACT
from fitting.optimise.objective import Loss

BASIN = 1e-3  # relative difference of objectives within one basin
CPU_LANES = 64  # lanes of a chunk that stays in a core's cache
ACCELERATOR_LANES = 8192  # lanes of a chunk that fills a GPU
JACOBIAN_BYTES = 2**28  # of a chunk, at most: large tables go in smaller chunks


class Batch:
    """All resamples of all problems as one flat list of fits.

    Attributes:
      problems: as given.
      layout, loss: of all fits.
      lower, upper: bounds [P] of theta.
      problem_of_fit: int [B], B fits in all.
      first_fit: int [G + 1], where the fits of each of G problems begin.
      log_z: [G, C, R].
      root: [B, R], square roots of the weights, which sum to 1.
      target: [B, R]; 0 where the weight is 0.
      devices: that the chunks go to, in turn.
      chunk: lanes of one program.
    """

    def __init__(self, problems: Sequence[Problem], layout: Layout, lower, upper, loss: Loss):
        self.problems, self.layout, self.loss = problems, layout, loss
        self.lower, self.upper = np.asarray(lower, float), np.asarray(upper, float)
        sizes = [len(problem.weights) for problem in problems]
        self.problem_of_fit = np.repeat(np.arange(len(problems)), sizes)
        self.first_fit = np.cumsum([0, *sizes])
        self.log_z = np.stack([np.asarray(problem.log_z, float).T for problem in problems])
        weights = np.concatenate([problem.weights for problem in problems])
        self.root = np.sqrt(weights / weights.sum(axis=1, keepdims=True))
        target = np.concatenate([problem.target for problem in problems])
        self.target = np.where(self.root > 0, target, 0.0)
        self.devices, chunk = devices_and_chunk()
        room = JACOBIAN_BYTES // (8 * self.log_z.shape[-1] * len(self.lower))
        self.chunk = max(1, min(chunk, room))

    # --- lanes ---

    def rank(self, g: int, candidates, kept: int | None, exclude=None) -> Lanes:
        """Return lanes of each resample of problem g at its `kept` best candidates.

        Args:
          g: index of the problem.
          candidates: theta [C, P].
          kept: None keeps all.
          exclude: int [C], a fit that the candidate is not tried on.
        """
        fits = np.arange(self.first_fit[g], self.first_fit[g + 1])
        count = len(candidates)
        if kept is None or kept >= count:
            chosen = np.broadcast_to(np.arange(count), (len(fits), count))
        else:
            value_BC = self._values(g, candidates, fits)
            if exclude is not None:
                value_BC = np.where(fits[:, None] == exclude, np.inf, value_BC)
            chosen = lowest_distinct(value_BC, kept)
        return start_lanes(np.repeat(fits, chosen.shape[1]), candidates[chosen.ravel()])

    def _values(self, g: int, candidates, fits) -> np.ndarray:
        """Return the objective [B, C] of candidates [C, P] on the fits; inf where not finite."""
        with np.errstate(all="ignore"):
            value_CR, _ = objective.model(candidates, self.log_z[g][None], self.layout, self.loss)
            parts = [
                objective.transform(value_CR - self.target[fit], self.loss)[0] ** 2
                @ self.root[fit] ** 2
                for fit in fits
            ]
        return np.nan_to_num(np.stack(parts), nan=np.inf)

    def all_starts(self, kept: int | None = None) -> list[Lanes]:
        """Return, for each problem, lanes of its fits at its starts, or at the `kept` best."""
        return [self.rank(g, problem.starts, kept) for g, problem in enumerate(self.problems)]

    def by_problem(self, fit) -> Iterator[tuple]:
        """Yield (rows, what `objective.derivatives` takes after theta) of each problem in fit."""
        for g in np.unique(self.problem_of_fit[fit]):
            rows = np.flatnonzero(self.problem_of_fit[fit] == g)
            data = self.target[fit[rows]], self.root[fit[rows]], self.layout, self.loss
            yield rows, (self.log_z[g], *data)

    def converged(self, lanes: Lanes) -> np.ndarray:
        """Return bool [N]: the gradient is within tolerance, or the fit is exact."""
        with np.errstate(invalid="ignore"):
            small = lanes.slope <= levenberg_marquardt.GRADIENT_TOLERANCE * lanes.objective
        return small | (lanes.objective <= EXACT)

    def least(self, lanes: Lanes) -> np.ndarray:
        """Return the least objective [B] among the lanes of each fit; inf without one."""
        least = np.full(len(self.root), np.inf)
        np.minimum.at(least, lanes.fit, np.nan_to_num(lanes.objective, nan=np.inf))
        return least

    def basin_share(self, lanes: Lanes) -> np.ndarray:
        """Return the share [B] of each fit's lanes that reached its least objective."""
        total, reached = np.zeros(len(self.root)), np.zeros(len(self.root))
        close = lanes.objective <= (1 + BASIN) * self.least(lanes)[lanes.fit] + EXACT
        np.add.at(total, lanes.fit, 1.0)
        np.add.at(reached, lanes.fit, close)
        return reached / total

    # --- programs ---

    def descend(self, lanes: Lanes, iterations: int) -> Lanes:
        """Return the lanes after at most `iterations` Levenberg-Marquardt steps."""
        out = self.run(
            functools.partial(levenberg_marquardt.descend, layout=self.layout, loss=self.loss),
            dict(lower=self.lower, upper=self.upper, iterations=np.int64(iterations)),
            lanes,
        )
        return Lanes(lanes.fit, *(out[name] for name in Lanes._fields[1:]))

    def run(self, program: Callable, shared: dict, lanes: Lanes, *, threads: bool = True) -> dict:
        """Run a program over all lanes, chunk by chunk, on all devices.

        Args:
          program: takes theta, damping, log_z, target and root of one chunk, and `shared`; returns
            {name: array [chunk, ...]}.
          shared: arguments that are the same for all chunks.
          lanes: N descents.
          threads: False runs one chunk at a time, on the first device.

        Returns:
          {name: array [N, ...]}, on the host.
        """
        count, devices = len(lanes.fit), self.devices if threads else self.devices[:1]

        def work(job):
            number, first = job
            rows = np.arange(first, first + self.chunk)
            rows = np.where(rows < count, rows, first)  # a padded lane repeats a real one
            fit = lanes.fit[rows]
            arrays = dict(
                theta=lanes.theta[rows],
                damping=lanes.damping[rows],
                log_z=self.log_z[self.problem_of_fit[fit]],
                target=self.target[fit],
                root=self.root[fit],
            )
            device = devices[number % len(devices)]
            with jax.enable_x64(True), jax.default_device(device):
                return jax.device_get(program(**arrays, **shared))

        jobs = list(enumerate(range(0, count, self.chunk)))
        if len(jobs) == 1 or len(devices) == 1:
            parts = [work(job) for job in jobs]
        else:
            with ThreadPoolExecutor(len(devices)) as pool:
                parts = list(pool.map(work, jobs))
        return {name: np.concatenate([p[name] for p in parts])[:count] for name in parts[0]}


def devices_and_chunk() -> tuple[list, int]:
    """Return the devices that lanes run on and how many lanes go at once.

    These are jax's default devices (`JAX_PLATFORMS`, `jax.default_device`), except that TPUs have
    no float64. One CPU device appears once for every core, for as many threads.
    """
    devices = [jax.config.jax_default_device]
    if not isinstance(devices[0], jax.Device):
        devices = jax.local_devices()
    if devices[0].platform == "tpu":
        devices = jax.local_devices(backend="cpu")
    if devices[0].platform != "cpu":
        return devices, ACCELERATOR_LANES
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return devices * max(1, cores // len(devices)), CPU_LANES
