"""What `tools.sweep` prints."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from vvlm_jax.progress import duration
from vvlm_jax.sweep.plan import COLUMNS
from vvlm_jax.sweep.status import Overview, overview

from .common import printable

_HEAD = (
    *("run", "x_N", "x_T", "x_V", "n", "c(x), TFLOPs", "parameters", "train FLOPs", "steps"),
    *("device-hours", "cost", "fits"),
)
_FITS = {True: "yes", False: "no", None: "?"}


def plan_csv(rows: list[dict]) -> None:
    """A header and one row a run on standard output; what is not known is empty."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = {**row, "fits": "" if row["fits"] is None else _FITS[row["fits"]]}
        writer.writerow(["" if values[k] is None else _plain(values[k]) for k in COLUMNS])


def plan_json(rows: list[dict], stage_1: list[dict], totals: dict, assumed: dict) -> None:
    """The same with stage 1, totals, and what was assumed, as one JSON value."""
    found = {"assumed": assumed, "runs": rows, "stage_1": stage_1, "totals": totals}
    print(json.dumps(found, indent=1))


def plan_text(rows: list[dict], stage_1: list[dict], totals: dict, assumed: dict) -> None:
    """A table for people."""
    lines = [
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
            "" if r["cost"] is None else _money(r["cost"]),
            _FITS[r["fits"]],
        )
        for r in rows
    ]
    for line in columns(_HEAD, lines):
        print(line)
    for r in stage_1:
        print(
            f"stage 1 of {r['llm']}, once: {r['num_examples']:,} examples, {r['steps']:,} steps, "
            f"{_work(r)}"
        )
    print(f"total: {totals['runs']} runs and {totals['stage_1']} stages 1, {_work(totals)}")
    if totals["unfit"]:
        print(f"{totals['unfit']} runs do not fit their devices")
    price = assumed["price"]
    print(
        f"assumed: {assumed['device']} at {assumed['mfu']:.0%} of {assumed['peak']:.4g} FLOP/s, "
        + (f"{price:g} for an hour of one" if price is not None else "no price (--price)")
    )


def _work(r: dict) -> str:
    cost = "" if r["cost"] is None else f", cost {_money(r['cost'])}"
    return f"{r['train_flops']:.3g} FLOPs, {r['device_hours']:,.4g} device-hours{cost}"


def _money(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _plain(value):
    """Integers without a point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def columns(head, rows) -> list[str]:
    """Aligned text, the first column and columns of words to the left, numbers to the right."""
    table = [tuple(head), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in table
    ]


# --- a sweep that runs ---


def note(line: str) -> None:
    """One line of the log."""
    print(line, file=sys.stderr, flush=True)


def dry_run(name: str, path, jobs, done: int, shares: list[str]) -> None:
    """What a launch would do."""
    count = Counter(job.kind for job in jobs)
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(count.items()))
    print(f"{name}: {len(jobs)} jobs ({kinds}), {done} done, in {path}")
    print(f"{len(shares)} workers: {'; '.join(shares)}")


class Watch:
    """The line of a launch: rewritten on a terminal, else a line for each run that ends."""

    def __init__(self, store):
        self.store, self.live = store, sys.stderr.isatty()
        self.told: dict[str, str] | None = None

    def __call__(self, states) -> None:
        """Shows what has changed."""
        found = overview(self.store, states)
        ended = {r.run: r for r in found.runs if r.phase in ("done", "failed", "cancelled")}
        if self.told is None:  # what had ended before is no news
            self.told = {run: r.phase for run, r in ended.items()}
        for run, r in ended.items():
            if self.told.get(run) != r.phase:
                self.told[run] = r.phase
                if not self.live or r.error:
                    self.close()
                    error = f": {r.doing}: {r.error}" if r.error else ""
                    note(f"{len(ended)}/{len(found.runs)} {run} {r.phase}{error}")
        if self.live:
            running = next((r for r in found.runs if r.phase == "running"), None)
            now = ""
            if running:
                loss = f" loss {running.loss:.3f}" if running.loss is not None else ""
                now = f" · {running.run} {running.progress:.0%}{loss}"
            sys.stderr.write(f"\r\x1b[K{_summary(found)}{now}")
            sys.stderr.flush()

    def close(self) -> None:
        """Clears the line."""
        if self.live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _summary(found: Overview) -> str:
    phases = ", ".join(f"{n} {phase}" for phase, n in sorted(found.phases.items()))
    left = f" · {duration(found.seconds_left)} left" if found.seconds_left is not None else ""
    return f"{len(found.runs)} runs: {phases} · {found.workers} workers{left}"


_SHOWN = 100
"""Runs of a sweep that are all shown; of a larger one, those that run or have failed."""


def status(
    name: str,
    found: Overview,
    everything: bool,
    clear: bool = False,
    slurm: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> None:
    """A table of runs and a summary.

    Args:
      slurm: {run: (its job there, Slurm's word for it)}, shown of runs that have not ended.
    """
    left = {r.run for r in found.runs if r.phase not in ("done", "cancelled")}
    there = {run: job for run, job in slurm.items() if run in left}
    few = everything or len(found.runs) <= _SHOWN
    shown = [r for r in found.runs if few or r.phase in ("running", "failed")]
    lines = [
        (
            r.run,
            r.phase,
            f"{r.progress:.0%}",
            "" if r.loss is None else f"{r.loss:.4f}",
            "" if r.seconds_left is None else duration(r.seconds_left),
        )
        for r in shown
    ]
    table = columns(("run", "state", "progress", "loss", "left"), lines)
    more = ["", *(f"{r.doing}: {r.error}" if r.error else r.doing for r in shown)]
    if there:
        words = ["Slurm", *(" ".join(there.get(r.run, ())) for r in shown)]
        width = max(map(len, words))
        more = [f"{word:{width}s}  {extra}" for word, extra in zip(words, more, strict=True)]
    text = [f"{line}  {extra}".rstrip() for line, extra in zip(table, more, strict=True)]
    if not few:
        text.append(f"{len(found.runs) - len(shown)} others are done or wait (--all shows them)")
    count = Counter(word for _, word in there.values())
    asked = ", ".join(f"{n} {word}" for word, n in sorted(count.items()))
    text.append(f"{name}: {_summary(found)}" + (f" · Slurm: {asked}" if asked else ""))
    if clear and sys.stdout.isatty():
        print("\x1b[H\x1b[2J", end="")
    print("\n".join(printable(line) for line in text), flush=True)


def job_lines(states) -> None:
    """One line a job."""
    print("\n".join(f"{state.phase:9s} {id}" for id, state in states.items()))


def failures(store, states) -> None:
    """What went wrong, a line each, and what to do."""
    for id, state in states.items():
        if state.phase == "failed":
            note(printable(f"failed: {id}: {state.entry.body.get('error', '?')}"))
    count = Counter(state.phase for state in states.values())
    note(
        f"{count['failed']} failed, {count['blocked']} blocked by them, {count['cancelled']} "
        f"cancelled; when it is mended: python -m tools.sweep retry {store.path}"
    )
