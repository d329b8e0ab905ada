"""The table of Table 6 on a topology: for every configuration the largest microbatch, then the
least remat, that fits.

Every compile is a line of OUT/KIND-SHAPE.jsonl under a key of everything that it depends on: the
config, the topology, the versions, the code that is compiled; and so is every row that was chosen.
A table is made from those lines alone, so that an interrupted sweep continues and a changed program
starts afresh. Code that has changed without changing the program costs seconds: the line also has a
digest of what the compiler was given. Other topologies' files say where to look first.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from vvlm_jax.compile import programs
from vvlm_jax.compile.programs import GIB, Measured
from vvlm_jax.compile.search import Memory, search
from vvlm_jax.config import REMAT, ConfigError, TrainConfig, visual_length
from vvlm_jax.override import to_json
from vvlm_jax.sweep.config import SweepConfig

_CODE = (
    *("models/*.py", "sharding.py", "types.py"),
    *(f"train/{name}.py" for name in ("compiled", "loss", "optim", "shapes", "state", "step")),
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
    from vvlm_jax.progress import Progress

    progress = Progress(f"{args.sweep} on {args.topology}", len(configs), "rows")
    with file.open("a") as lock:
        _claim(lock, file)
        compiles, choices = Compiles(file, args, progress), []
        memory = None if args.table else remembered(config, compiles)
        try:
            for done, one in enumerate(configs):
                compiles.done = done
                row = compiles.choice(one)
                if row is None and args.table:
                    rest = f"{len(choices)} of {len(configs)} rows; the same command without"
                    raise ConfigError(f"{file}: {rest} --table goes on")
                choices.append(row or compiles.keep(one, choose_row(one, compiles, memory)))
        finally:
            progress.close()
    print(markdown(choices, args.topology))


def remembered(base: TrainConfig, compiles: "Compiles") -> Memory:
    """What Table 6's steps needed, as far as it is known of this topology and of others beside."""

    def of(known: Compiles, elsewhere: Memory | None) -> Memory:
        memory = Memory(math.prod(programs.parse_topology(known.args.topology)[1]), elsewhere)
        for config in (*configurations(base, "star"), *configurations(base, "isoflop")):
            parts = row_parts(config, known.args.topology)
            for rows in row_counts(config, parts):
                for remat in REMAT:
                    one = with_rows(config, parts, rows, remat)
                    if measured := known.known.get(known.key(one)):
                        memory.add(one, rows, measured.needed)
        return memory

    memory = None
    for file in sorted(compiles.file.parent.glob("*.jsonl")):
        topology = file.stem.replace("-", ":", 1)
        with contextlib.suppress(ConfigError):
            if file != compiles.file and base.batch_size % row_parts(base, topology) == 0:
                args = SimpleNamespace(**{**vars(compiles.args), "topology": topology})
                memory = of(Compiles(file, args, None), memory)
    return of(compiles, memory)


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
    programs.parse_topology(topology)
    file = out / f"{topology.replace(':', '-')}.jsonl"
    if not file.is_file():
        raise ConfigError(f"--compiled {out}: has no {file.name}; make it with tools.compile")
    args = SimpleNamespace(topology=topology, hbm=None, effort=0.0)
    compiles, fits = Compiles(file, args, None), {}
    for args.effort in sorted(compiles.efforts, reverse=True):
        for x, config in configurations_of(sweep, sweep.finetune).items():
            if row := compiles.choice(config):
                fits.setdefault(x, row.measured.fits)
    return fits


def choose_row(config: TrainConfig, compiles: "Compiles", memory: Memory) -> Choice:
    """The row of one configuration, by as few compiles as `memory`, which learns, makes do with."""
    parts = row_parts(config, compiles.args.topology)
    if config.batch_size % parts:
        raise ConfigError(
            f"batch_size = {config.batch_size}: must be divisible by the {parts} data-parallel "
            f"chips of {compiles.args.topology}"
        )

    def at(r: int, remat) -> Measured:
        one = with_rows(config, parts, r, remat)
        measured = compiles(one)
        memory.add(one, r, measured.needed)
        return measured

    def predict(r: int, remat) -> float | None:
        return memory.predict(with_rows(config, parts, r, remat), r)

    rows = row_counts(config, parts)
    r, remat, measured = search(rows, REMAT, compiles.limit, at, predict)
    return Choice(with_rows(config, parts, r, remat), r, measured)


def row_counts(config: TrainConfig, parts: int) -> list[int]:
    """What a microbatch may have of a batch's rows on each of its data-parallel parts."""
    most = config.batch_size // parts
    return [r for r in range(1, most + 1) if most % r == 0]


def with_rows(config: TrainConfig, parts: int, rows: int, remat) -> TrainConfig:
    """The config with so many rows a part and microbatch, and this remat."""
    model = dataclasses.replace(config.model, remat=remat)
    return dataclasses.replace(config, model=model, microbatches=config.batch_size // parts // rows)


def row_parts(config: TrainConfig, topology: str) -> int:
    """Data-parallel parts of the config's mesh on a topology: chips over tensor-parallel ones."""
    chips, axes = math.prod(programs.parse_topology(topology)[1]), dict(config.mesh)
    tensor = axes.get("tensor", 1)
    others = math.prod(size for name, size in config.mesh if name != "tensor")
    if -1 not in axes.values():
        return others
    return chips // tensor if tensor != -1 else others


# --- what is kept ---


class Compiles:
    """Compiles, and rows that were chosen, by their keys: looked up in a file, and written there
    when they are new.
    """

    def __init__(self, file: Path, args, progress):
        self.file, self.args, self.progress, self.done = file, args, progress, 0
        self.known, self.chosen, self.efforts = {}, {}, set()
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
                if "chosen" in row:
                    self.chosen[row["chosen"]] = row["rows"], row["remat"]
                else:
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
        if self.progress:
            self.progress.update(self.done, name)
        if key not in self.known:
            programs_known = {m.digest: m for m in self.known.values() if m.digest}
            measured = _compile(config, self.args, programs_known)
            self.known[key] = measured
            row = {"key": key, "name": name, "effort": self.args.effort}
            self._write(**row, measured=measured.as_dict())
        measured = self.known[key]
        fits = not measured.refusal and measured.needed < self.limit
        return dataclasses.replace(measured, hbm=self.limit, fits=fits)

    def choice(self, config: TrainConfig) -> Choice | None:
        """The row that was chosen for a configuration with this much memory."""
        rows, remat = self.chosen.get(self._row(config), (0, None))
        parts = row_parts(config, self.args.topology)
        one = rows and with_rows(config, parts, rows, remat)
        if not rows or self.key(one) not in self.known:
            return None
        return Choice(one, rows, self(one))

    def keep(self, config: TrainConfig, row: Choice) -> Choice:
        """Writes down that this row was chosen."""
        name = self._row(config)
        self.chosen[name] = row.rows, row.config.model.remat
        self._write(chosen=name, rows=row.rows, remat=row.config.model.remat)
        return row

    def _row(self, config: TrainConfig) -> str:
        return f"{self.key(with_rows(config, 1, 1, REMAT[0]))} of {self.limit:.0f} bytes"

    def _write(self, **row) -> None:
        text = self.file.read_bytes()
        cut = bool(text) and not text.endswith(b"\n")
        with self.file.open("a") as out:
            out.write("\n" * cut + json.dumps(row) + "\n")

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

    from vvlm_jax.train.compiled import compiled_step

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
