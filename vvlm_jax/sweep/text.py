"""Plans and the state of a sweep as text."""

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from vvlm_jax.progress import duration
from vvlm_jax.sweep.plan import COLUMNS
from vvlm_jax.sweep.status import Overview
from vvlm_jax.sweep.store.store import State, Store

_HEAD = (
    *("run", "x_N", "x_T", "x_V", "n", "c(x), TFLOPs", "parameters", "train FLOPs", "steps"),
    "device-hours",
)
_FITS = {True: "yes", False: "no", None: "?"}
_SHOWN = 100
"""A status of more runs than this shows only those that are running or have failed."""


def plan_csv(rows: list[dict]) -> str:
    """Return a header and a line for each run; unknown values are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = {**row, "fits": "" if row["fits"] is None else _FITS[row["fits"]]}
        writer.writerow(["" if values[k] is None else _plain(values[k]) for k in COLUMNS])
    return text.getvalue()


def plan_json(rows: list[dict], stage_1: list[dict], totals: dict, assumed: dict) -> str:
    """Return the runs, stage 1, totals and assumptions as one JSON value."""
    found = {"assumed": assumed, "runs": rows, "stage_1": stage_1, "totals": totals}
    return json.dumps(found, indent=1) + "\n"


def plan_text(rows: list[dict], stage_1: list[dict], totals: dict, assumed: dict) -> str:
    """Return a table of the runs, with stage 1, totals and assumptions below it.

    It has a column `cost` with a price, and `fits` with a topology.
    """
    price, topology = assumed["price"], assumed["topology"]
    head = (*_HEAD, *["cost"] * (price is not None), *["fits"] * (topology is not None))
    table = [
        (
            r["run_id"],
            f"{r['lm_params']:.3g}",
            str(r["num_frames"]),
            str(r["tokens_per_frame"]),
            f"{r['num_examples']:,}",
            f"{r['inference_flops'] / 1e12:.4g}",
            f"{r['parameters']:.3g}",
            f"{r['train_flops']:.3g}",
            f"{r['steps']:,}",
            f"{r['device_hours']:,.4g}",
            *([] if price is None else [_money(r["cost"])]),
            *([] if topology is None else [_FITS[r["fits"]]]),
        )
        for r in rows
    ]
    lines = columns(head, table)
    for r in stage_1:
        lines.append(
            f"stage 1 of {r['llm']}, once: {r['num_examples']:,} examples, {r['steps']:,} steps, "
            f"{_work(r)}"
        )
    lines.append(
        f"total: {totals['runs']} runs and {totals['stage_1']} stage-1 runs, {_work(totals)}"
    )
    if topology is not None:
        lines.append(
            f"fits: whether a train step fits {topology}, ? where vvlm compile --sweep has not "
            f"compiled it; {totals['unfit']} runs do not fit"
        )
    lines.append(
        f"assumed: {assumed['device']} at {assumed['mfu']:.0%} of {assumed['peak']:.4g} FLOP/s, "
        + (f"{price:g} for an hour of one" if price is not None else "no price (--price)")
    )
    return "\n".join(lines) + "\n"


def _work(r: dict) -> str:
    cost = "" if r["cost"] is None else f", cost {_money(r['cost'])}"
    return f"{r['train_flops']:.3g} FLOPs, {r['device_hours']:,.4g} device-hours{cost}"


def _money(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _plain(value):
    """Return integers without a point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def columns(head, rows) -> list[str]:
    """Return aligned lines of a table: the first column left-aligned, the others right-aligned."""
    table = [tuple(head), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in table
    ]


def launch_plan(name: str, path, kinds: Counter, done: int, shares: list[str]) -> list[str]:
    """Return what a launch would do: jobs by kind, and the workers' shares of this machine."""
    counts = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
    return [
        f"{name}: {kinds.total()} jobs ({counts}), {done} done, in {path}",
        f"{len(shares)} workers: {'; '.join(shares)}",
    ]


def summary(found: Overview) -> str:
    """Return the number of runs in each phase, of workers, and the time left."""
    phases = ", ".join(f"{n} {phase}" for phase, n in sorted(found.phases.items()))
    left = f" · {duration(found.seconds_left)} left" if found.seconds_left is not None else ""
    return f"{len(found.runs)} runs: {phases} · {found.workers} workers{left}"


def status(
    name: str,
    found: Overview,
    show_all: bool,
    slurm: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> list[str]:
    """Return a table of runs and a summary.

    Args:
      show_all: show every run of a large sweep.
      slurm: {run: (id of its Slurm job, Slurm's state)}; shown for runs that have not ended.
    """
    left = {r.run for r in found.runs if r.phase not in ("done", "cancelled")}
    submitted = {run: job for run, job in slurm.items() if run in left}
    everything = show_all or len(found.runs) <= _SHOWN
    shown = [r for r in found.runs if everything or r.phase in ("running", "failed")]
    table = columns(
        ("run", "state", "progress", "loss", "left"),
        [
            (
                r.run,
                r.phase,
                f"{r.progress:.0%}",
                "" if r.loss is None else f"{r.loss:.4f}",
                "" if r.seconds_left is None else duration(r.seconds_left),
            )
            for r in shown
        ],
    )
    more = ["", *(f"{r.doing}: {r.error}" if r.error else r.doing for r in shown)]
    if submitted:
        words = ["Slurm", *(" ".join(submitted.get(r.run, ())) for r in shown)]
        width = max(map(len, words))
        more = [f"{word:{width}s}  {extra}" for word, extra in zip(words, more, strict=True)]
    lines = [f"{line}  {extra}".rstrip() for line, extra in zip(table, more, strict=True)]
    if not everything:
        lines.append(f"{len(found.runs) - len(shown)} others are done or waiting (--all)")
    count = Counter(word for _, word in submitted.values())
    states = ", ".join(f"{n} {word}" for word, n in sorted(count.items()))
    return [*lines, f"{name}: {summary(found)}" + (f" · Slurm: {states}" if states else "")]


def job_lines(states: Mapping[str, State]) -> list[str]:
    """Return a line for each job: its phase and id."""
    return [f"{state.phase:9s} {id}" for id, state in states.items()]


def failures(store: Store, states: Mapping[str, State]) -> list[str]:
    """Return a line for each failed job, and one that says what to do."""
    lines = [
        f"failed: {id}: {state.entry.body.get('error', '?')}"
        for id, state in states.items()
        if state.phase == "failed"
    ]
    count = Counter(state.phase for state in states.values())
    lines.append(
        f"{count['failed']} failed, {count['blocked']} blocked by them, {count['cancelled']} "
        f"cancelled; when the cause is removed: vvlm sweep retry {store.path}"
    )
    return lines
