"""Table of what fits: for every configuration of a sweep the largest microbatch, then the least
remat, that fits a topology.

Every compile is one line of OUT/KIND-SHAPE.jsonl under a key of everything that it depends on: the
config, the topology, the versions, the code that is compiled; and so is every chosen row. The table
is made of these lines alone, so that an interrupted run continues and a changed program is compiled
again. When code changes but the program does not, a line's digest of the lowered program saves the
compile. Files of other topologies in the same folder serve to predict where to search first.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from vvlm_jax.compile import programs
from vvlm_jax.compile.programs import Measured, Target
from vvlm_jax.compile.search import Memory, search
from vvlm_jax.config import REMAT, ConfigError, TrainConfig, visual_length
from vvlm_jax.devices import GIB, Topology, parse_topology
from vvlm_jax.override import to_json
from vvlm_jax.progress import Progress

_CODE = (
    *("models/*.py", "sharding.py", "types.py"),
    *(f"train/{name}.py" for name in ("compiled", "loss", "optim", "shapes", "step")),
)
X = TypeVar("X")


class Choice(NamedTuple):
    """A row of the table."""

    config: TrainConfig
    rows: int
    """Rows of a microbatch on each data-parallel chip."""
    measured: Measured


def run(
    name: str,
    configs: Sequence[TrainConfig],
    target: Target,
    out: Path,
    related: Iterable[TrainConfig] = (),
) -> list[Choice]:
    """Choose a row for every config, compiling what `out` does not have yet.

    Args:
      name: of the sweep, for the progress line.
      related: configs whose compiles in `out`, if any, predict the memory that these need.

    Raises ConfigError when another process writes to the same file, or a config cannot be divided
    among the chips.
    """
    programs.prepare_environment()
    out.mkdir(parents=True, exist_ok=True)
    file = file_of(out, target.topology)
    progress = Progress(f"{name} on {target.topology}", len(configs), "rows")
    with file.open("a") as lock:
        _claim(lock, file)
        compiles, choices = Compiles(file, target, progress), []
        memory = remembered([*configs, *related], compiles)
        try:
            for compiles.done, config in enumerate(configs):
                row = compiles.choice(config)
                choices.append(row or compiles.keep(config, choose_row(config, compiles, memory)))
        finally:
            progress.close()
    return choices


def read(configs: Sequence[TrainConfig], target: Target, out: Path) -> list[Choice]:
    """Read the chosen rows from `out` without compiling. Raises ConfigError when some are
    missing.
    """
    file = file_of(out, target.topology)
    compiles = Compiles(file, target) if file.is_file() else None
    rows = [compiles.choice(config) if compiles else None for config in configs]
    if None in rows:
        done = f"{len(rows) - rows.count(None)} of {len(rows)} rows"
        raise ConfigError(f"{file}: {done}; run the same command without --table for the rest")
    return rows


def known_fits(configs: Mapping[X, TrainConfig], topology: str, out: Path) -> dict[X, bool]:
    """Return whether the train step of each config fits, for those of which `out` has the chosen
    row for this topology and today's code. Rows found with the most compiler effort count.

    Raises ConfigError for an unknown topology, or when `out` has no file for it.
    """
    file = file_of(out, place := parse_topology(topology))
    if not file.is_file():
        raise ConfigError(f"--compiled {out}: has no {file.name}; make it with vvlm compile")
    fits = {}
    for effort in sorted(Compiles(file, Target(place)).efforts, reverse=True):
        compiles = Compiles(file, Target(place, effort=effort))
        for x, config in configs.items():
            if row := compiles.choice(config):
                fits.setdefault(x, row.measured.fits)
    return fits


def file_of(out: Path, topology: Topology) -> Path:
    """Return the file of a topology's compiles."""
    return out / f"{topology}.jsonl".replace(":", "-")


def remembered(configs: Iterable[TrainConfig], compiles: "Compiles") -> Memory:
    """Return a predictor of memory from all kept compiles of `configs`, for this topology and for
    others in the same folder.
    """
    configs = list(configs)

    def of(known: Compiles, elsewhere: Memory | None) -> Memory:
        memory = Memory(known.target.topology.chips, elsewhere)
        for config in configs:
            parts = row_parts(config, known.target.topology)
            for rows in row_counts(config, parts) if config.batch_size % parts == 0 else ():
                for remat in REMAT:
                    one = with_rows(config, parts, rows, remat)
                    if measured := known.find(one):
                        memory.add(one, rows, measured.needed)
        return memory

    memory = None
    for file in sorted(compiles.file.parent.glob("*.jsonl")):
        with contextlib.suppress(ConfigError):  # another kind of file
            topology = parse_topology(file.stem.replace("-", ":", 1))
            if file != compiles.file:
                target = dataclasses.replace(compiles.target, topology=topology)
                memory = of(Compiles(file, target), memory)
    return of(compiles, memory)


def choose_row(config: TrainConfig, compiles: "Compiles", memory: Memory) -> Choice:
    """Choose the row of one config. `memory` saves compiles, and learns from each."""
    parts = row_parts(config, compiles.target.topology)
    if config.batch_size % parts:
        raise ConfigError(
            f"batch_size = {config.batch_size}: must be divisible by the {parts} data-parallel "
            f"chips of {compiles.target.topology}"
        )

    def at(r: int, remat) -> Measured:
        one = with_rows(config, parts, r, remat)
        measured = compiles(one)
        memory.add(one, r, measured.needed)
        return measured

    def predict(r: int, remat) -> float | None:
        return memory.predict(with_rows(config, parts, r, remat), r)

    rows = row_counts(config, parts)
    r, remat, measured = search(rows, REMAT, compiles.target.limit, at, predict)
    return Choice(with_rows(config, parts, r, remat), r, measured)


def row_counts(config: TrainConfig, parts: int) -> list[int]:
    """Return the rows that a microbatch may have on each data-parallel chip: the divisors of the
    batch's rows there.
    """
    most = config.batch_size // parts
    return [r for r in range(1, most + 1) if most % r == 0]


def with_rows(config: TrainConfig, parts: int, rows: int, remat) -> TrainConfig:
    """Return the config with so many rows on each data-parallel chip of a microbatch, and this
    remat.
    """
    model = dataclasses.replace(config.model, remat=remat)
    return dataclasses.replace(config, model=model, microbatches=config.batch_size // parts // rows)


def row_parts(config: TrainConfig, topology: Topology) -> int:
    """Return how many chips of a topology the config's mesh divides a batch's rows among."""
    chips, axes = topology.chips, dict(config.mesh)
    tensor = axes.get("tensor", 1)
    others = math.prod(size for name, size in config.mesh if name != "tensor")
    if -1 not in axes.values():
        return others
    return chips // tensor if tensor != -1 else others


class Compiles:
    """Compiles and chosen rows of one topology, kept in a file under their keys."""

    def __init__(self, file: Path, target: Target, progress: Progress | None = None):
        self.file, self.target, self.progress, self.done = file, target, progress, 0
        self.known, self.chosen, self.efforts, self._names = {}, {}, set(), set()
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
                if "chosen" in row:
                    self.chosen[row["chosen"]] = row["rows"], row["remat"]
                else:
                    self.known[row["key"]] = Measured(**row["measured"])
                    self.efforts.add(row["effort"])
                    self._names.add(row["name"])
            except (json.JSONDecodeError, KeyError, TypeError):
                continue  # a line that an interruption truncated
        self.code = _code_digest()

    def __call__(self, config: TrainConfig) -> Measured:
        """Return the measurement of a train step, compiling it if it is new. Whether it fits is
        decided by the target's memory now, not by that of the time it was compiled.
        """
        key, name = self.key(config), _name(config)
        if self.progress:
            self.progress.update(self.done, name)
        if key not in self.known:
            by_digest = {m.digest: m for m in self.known.values() if m.digest}
            measured = compile_step(config, self.target, by_digest)
            self.known[key] = measured
            row = {"key": key, "name": name, "effort": self.target.effort}
            self._write(**row, measured=measured.as_dict())
        measured = self.known[key]
        limit = self.target.limit
        fits = not measured.refusal and measured.needed < limit
        return dataclasses.replace(measured, hbm=limit, fits=fits)

    def find(self, config: TrainConfig) -> Measured | None:
        """Return the kept measurement of a train step; None when there is none."""
        # Names first: they are cheap to make, keys are not, and most configs have no measurement.
        return self.known.get(self.key(config)) if _name(config) in self._names else None

    def choice(self, config: TrainConfig) -> Choice | None:
        """Return the row chosen for a config with this much memory; None when there is none."""
        rows, remat = self.chosen.get(self._row(config), (0, None))
        parts = row_parts(config, self.target.topology)
        one = rows and with_rows(config, parts, rows, remat)
        if not rows or self.key(one) not in self.known:
            return None
        return Choice(one, rows, self(one))

    def keep(self, config: TrainConfig, row: Choice) -> Choice:
        """Write this row to the file as the chosen one, and return it."""
        name = self._row(config)
        self.chosen[name] = row.rows, row.config.model.remat
        self._write(chosen=name, rows=row.rows, remat=row.config.model.remat)
        return row

    def _row(self, config: TrainConfig) -> str:
        return f"{self.key(with_rows(config, 1, 1, REMAT[0]))} of {self.target.limit:.0f} bytes"

    def _write(self, **row) -> None:
        text = self.file.read_bytes()
        truncated = bool(text) and not text.endswith(b"\n")
        with self.file.open("a") as out:
            out.write("\n" * truncated + json.dumps(row) + "\n")

    def key(self, config: TrainConfig) -> str:
        """Return a hash of everything that the compiled program depends on."""
        own = json.loads(to_json(config))
        own["data"] = config.data.max_text_tokens
        for name in ("out_dir", "init", "seed", "epochs", "log_every", "checkpoint_every"):
            own.pop(name, None)
        text = json.dumps([own, str(self.target.topology), self.code, self.target.effort])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _name(config: TrainConfig) -> str:
    c, rows = config.model, config.batch_size // config.microbatches
    return f"{c.llm} {c.num_frames} x {c.tokens_per_frame}, {rows} rows, remat {c.remat}"


def compiled_files() -> list[Path]:
    """Return the source files that a train step is compiled from."""
    root = Path(__file__).parents[1]
    return [path for pattern in _CODE for path in sorted(root.glob(pattern))]


def _code_digest() -> str:
    """Hash the code that is compiled, and the versions of what compiles it."""
    from importlib import metadata

    digest = hashlib.sha256()
    for path in compiled_files():
        digest.update(path.read_bytes())
    for package in ("jax", "flax", "optax", "libtpu"):
        try:
            digest.update(f"{package} {metadata.version(package)}".encode())
        except metadata.PackageNotFoundError:
            continue
    return digest.hexdigest()


def compile_step(config: TrainConfig, target: Target, known: dict[str, Measured]) -> Measured:
    """Compile a train step, unless its program is in `known` (by digest), and free the compiler's
    memory. A failure of the compiler is returned as a step that does not fit.
    """
    import jax

    from vvlm_jax.train.compiled import compiled_step

    try:
        measured = programs.measure(config, target, "train", known=known)
    except jax.errors.JaxRuntimeError as e:
        measured = programs.refused(f"{e}", target.limit, 0, 0, 0)
    compiled_step.cache_clear()
    jax.clear_caches()
    return dataclasses.replace(measured, refusal=measured.refusal[:400])


def _claim(lock, file: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"{file}: another process writes to it; wait for it, or choose another --out"
        ) from None


def markdown(choices: Sequence[Choice]) -> str:
    """Return a Markdown table with one row for each choice."""
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
