"""The table of Table 6 on a topology: for every configuration the largest microbatch, then the
least remat, that fits.

Every compile is a line of OUT/KIND-SHAPE.jsonl under a key of everything that it depends on: the
config, the topology, the versions, the code that is compiled. A table is made from those lines
alone, so that an interrupted sweep continues and a changed program starts afresh. Code that has
changed without changing the program costs seconds: the line also has a digest of what the compiler
was given.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from configs.sweeps import isoflop, star
from tools import _compile_programs as programs
from tools._compile_programs import GIB, Measured
from tools._compile_search import Memory, search
from vvlm_jax.config import REMAT, ConfigError, TrainConfig, to_json, visual_length
from vvlm_jax.sweep.config import SweepConfig

_CODE = (
    *("models/*.py", "sharding.py", "types.py"),
    *(f"train/{name}.py" for name in ("abstract", "loss", "optim", "program", "state", "step")),
)


class Choice(NamedTuple):
    """A row of the table."""

    config: TrainConfig
    rows: int
    """Of a microbatch, on each data-parallel chip."""
    measured: Measured


def run(config: TrainConfig, args) -> None:
    """Compiles what is missing, row by row, and prints the table."""
    configs = list(configurations(config, args.sweep))
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"{args.topology.replace(':', '-')}.jsonl"
    if not args.table:
        programs.prepare_environment()
    from vvlm_jax.train.metrics import Progress

    progress = Progress(f"{args.sweep} on {args.topology}", len(configs), "rows")
    with file.open("a") as lock:
        _claim(lock, file)
        compiles, memory, choices = Compiles(file, args, progress), Memory(), []
        try:
            for done, one in enumerate(configs):
                compiles.done = done
                choices.append(choice(one, args.topology, compiles.limit, compiles, memory))
        except _Missing:
            command = "the same command without --table goes on"
            raise ConfigError(f"{file}: {len(choices)} of {len(configs)} rows; {command}") from None
        finally:
            progress.close()
    print(markdown(choices, args.topology))


def configurations(base: TrainConfig, sweep: str):
    """The distinct configurations of a sweep of Table 6 on the base config, in its order."""
    table = (isoflop if sweep == "isoflop" else star).sweep()
    return configurations_of(table, base).values()


def configurations_of(sweep: SweepConfig, base: TrainConfig) -> dict[tuple, TrainConfig]:
    """{x: the base config with it} of a sweep's distinct configurations, in its order."""
    found = {}
    for p in sweep.points:
        x = dict(num_frames=p.num_frames, tokens_per_frame=p.tokens_per_frame)
        model = dataclasses.replace(base.model, llm=sweep.size(p).llm, **x)
        found[p.lm_params, p.num_frames, p.tokens_per_frame] = dataclasses.replace(
            base, model=model
        )
    return found


def known_fits(sweep: SweepConfig, topology: str, out: Path) -> dict[tuple, bool]:
    """{x: whether its train step fits} of the configurations that `tools.compile --sweep` has kept
    in `out` for this topology, this base config and today's code; others are left out. What the
    compiler found with more effort is believed first.
    """
    from vvlm_jax.train.metrics import Progress

    programs.parse_topology(topology)
    file = out / f"{topology.replace(':', '-')}.jsonl"
    if not file.is_file():
        raise ConfigError(f"--compiled {out}: has no {file.name}; make it with tools.compile")
    args = SimpleNamespace(topology=topology, table=True, hbm=None, effort=0.0)
    compiles, fits = Compiles(file, args, Progress("plan", 0)), {}
    for args.effort in sorted(compiles.efforts, reverse=True):
        memory = Memory()
        for x, config in configurations_of(sweep, sweep.finetune).items():
            with contextlib.suppress(_Missing):
                found = choice(config, topology, compiles.limit, compiles, memory).measured.fits
                fits.setdefault(x, found)
    return fits


def choice(
    config: TrainConfig,
    topology: str,
    limit: float,
    measure: Callable[[TrainConfig], Measured],
    memory: Memory,
) -> Choice:
    """The row of one configuration, on chips of `limit` bytes. `memory` learns from it."""
    parts = row_parts(config, topology)
    if config.batch_size % parts:
        raise ConfigError(
            f"batch_size = {config.batch_size}: must be divisible by the {parts} data-parallel "
            f"chips of {topology}"
        )
    most = config.batch_size // parts
    rows = [r for r in range(1, most + 1) if most % r == 0]

    def with_(r: int, remat) -> TrainConfig:
        model = dataclasses.replace(config.model, remat=remat)
        return dataclasses.replace(config, model=model, microbatches=most // r)

    def at(r: int, remat) -> Measured:
        measured = measure(with_(r, remat))
        memory.add(with_(r, remat), r, measured.needed)
        return measured

    def predict(r: int, remat) -> float | None:
        return memory.predict(with_(r, remat), r)

    r, remat, measured = search(rows, REMAT, limit, at, predict)
    return Choice(with_(r, remat), r, measured)


def row_parts(config: TrainConfig, topology: str) -> int:
    """Data-parallel parts of the config's mesh on a topology: chips over tensor-parallel ones."""
    chips, axes = math.prod(programs.parse_topology(topology)[1]), dict(config.mesh)
    tensor = axes.get("tensor", 1)
    others = math.prod(size for name, size in config.mesh if name != "tensor")
    if -1 not in axes.values():
        return others
    return chips // tensor if tensor != -1 else others


# --- what is kept ---


class _Missing(Exception):
    """A compile that a table needs is not there."""


class Compiles:
    """Compiles by their key: looked up in a file, and written there when they are new."""

    def __init__(self, file: Path, args, progress):
        self.file, self.args, self.progress, self.done = file, args, progress, 0
        self.known, self.efforts = {}, set()
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
                self.known[row["key"]] = Measured(**row["measured"])
                self.efforts.add(row["effort"])
            except (json.JSONDecodeError, KeyError, TypeError):
                continue  # a line that an interruption cut
        self.code = _digest()
        chip = programs.CHIPS[programs.parse_topology(args.topology)[0]]
        self.limit = (chip.hbm if args.hbm is None else args.hbm) * GIB
        """Bytes of a chip."""

    def __call__(self, config: TrainConfig) -> Measured:
        """The measurement of a train step, with `--hbm` as it is now."""
        key = self.key(config)
        c, rows = config.model, config.batch_size // config.microbatches
        name = f"{c.llm} {c.num_frames} x {c.tokens_per_frame}, {rows} rows, remat {c.remat}"
        self.progress.update(self.done, name)
        if key not in self.known:
            if self.args.table:
                raise _Missing
            programs_known = {m.digest: m for m in self.known.values() if m.digest}
            measured = _compile(config, self.args, programs_known)
            self.known[key] = measured
            row = {"key": key, "name": name, "effort": self.args.effort}
            row["measured"] = measured.as_dict()
            with self.file.open("a") as out:
                out.write("\n" * self._cut() + json.dumps(row) + "\n")
        measured = self.known[key]
        fits = not measured.refusal and measured.needed < self.limit
        return dataclasses.replace(measured, hbm=self.limit, fits=fits)

    def _cut(self) -> bool:
        text = self.file.read_bytes()
        return bool(text) and not text.endswith(b"\n")

    def key(self, config: TrainConfig) -> str:
        """Of all that the compiled program depends on."""
        own = json.loads(to_json(config))
        own["data"] = config.data.max_text_tokens
        for name in ("out_dir", "init", "seed", "epochs", "log_every", "checkpoint_every"):
            own.pop(name, None)
        text = json.dumps([own, self.args.topology, self.code, self.args.effort])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest() -> str:
    """The code that is compiled, and what compiles it."""
    from importlib import metadata

    root, digest = Path(__file__).parents[1] / "vvlm_jax", hashlib.sha256()
    for pattern in _CODE:
        for path in sorted(root.glob(pattern)):
            digest.update(path.read_bytes())
    for package in ("jax", "flax", "optax", "libtpu"):
        try:
            digest.update(f"{package} {metadata.version(package)}".encode())
        except metadata.PackageNotFoundError:
            continue
    return digest.hexdigest()


def _compile(config: TrainConfig, args, known: dict[str, Measured]) -> Measured:
    """One compile, whose memory is given back, unless its program is known. A failure of the
    compiler is a result.
    """
    import jax

    from vvlm_jax.train.program import compiled_step

    try:
        measured = programs.measure(config, args.topology, "train", known=known, effort=args.effort)
    except jax.errors.JaxRuntimeError as e:
        limit = programs.CHIPS[programs.parse_topology(args.topology)[0]].hbm * GIB
        measured = programs.refused(f"{e}", limit, 0, 0, 0)
    compiled_step.cache_clear()
    jax.clear_caches()
    return dataclasses.replace(measured, refusal=measured.refusal[:400])


def _claim(lock, file: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"{file}: another sweep writes there; wait, or choose another --out"
        ) from None


# --- the table ---


def markdown(choices: list[Choice], topology: str) -> str:
    """A Markdown table, one row a configuration."""
    head = (
        *("x_N", "x_T", "x_V", "positions", "rows a chip x microbatches", "remat"),
        *("needed, GiB a chip", "of HBM", "temporaries", "between chips, GiB a step"),
        *("PFLOPs a step", "compile, s"),
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for config, rows, m in choices:
        c = config.model
        length = visual_length(c.num_frames, c.tokens_per_frame, c.newline)
        moved = sum(size for _, size in m.collectives.values())
        cells = (
            c.llm, c.num_frames, c.tokens_per_frame,
            f"{length + config.data.max_text_tokens:,}",
            f"{rows} x {config.microbatches}" if m.fits else "does not fit",
            c.remat,
            f"{m.needed / GIB:.1f}" if math.isfinite(m.needed) else "?",
            f"{m.needed / m.hbm:.0%}" if math.isfinite(m.needed) else "?",
            "" if m.refusal else f"{m.memory['temporaries'] / GIB:.1f}",
            "" if m.refusal else f"{moved / GIB:,.0f}",
            f"{m.flops / 1e15:.2f}",
            f"{m.compile_s:.0f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
