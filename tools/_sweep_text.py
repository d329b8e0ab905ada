"""What `tools.sweep` prints."""

import csv
import json
import sys

from vvlm_jax.sweep.plan import COLUMNS

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
            "" if r["cost"] is None else f"{r['cost']:,.0f}",
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
    cost = "" if r["cost"] is None else f", cost {r['cost']:,.0f}"
    return f"{r['train_flops']:.3g} FLOPs, {r['device_hours']:,.4g} device-hours{cost}"


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
