"""A small design: a star and isoFLOP runs of three language models, as tables and CSV rows."""

from fitting.cost import CostConstants
from fitting.sweeps import Domain, isoflop_sweep, star_sweep
from tests.fitting.synthetic import synthetic_table

COST = CostConstants(vision_params=60_000, features_per_frame=16)
DOMAIN = Domain((20_000, 120_000, 700_000), (1, 2, 3, 4, 6, 8, 12, 16), (1, 4, 9, 16))
LEVELS = Domain(DOMAIN.lm_params, (1, 2, 4, 8), (1, 4, 9))
STAR = star_sweep((700_000, 8, 9), LEVELS, (1000, 2000, 4000))
POINTS = STAR + isoflop_sweep(DOMAIN, (8e6, 1.6e7, 3.2e7, 6.4e7), 8000, COST, tolerance=0.15)
UNITS = [120_000, 5, 5, 3000.0]
HEADER = "run_id,sweep,lm_params,num_frames,tokens_per_frame,num_examples,metric,score"


def lines_of(points, metric, seed=0):
    """Return rows of a CSV under `HEADER`, with quotes where a name needs them."""
    table = synthetic_table("add", points, noise=0.01, seed=seed, units=UNITS, metric=metric)
    quoted = '"' + metric.replace('"', '""') + '"'
    return [
        f"<b>{point.run_id}</b>,{point.sweep},{point.lm_params},{point.num_frames},"
        f"{point.tokens_per_frame},{point.num_examples},{quoted},{100 - error:.6f}"
        for point, error in zip(points, table.error, strict=True)
    ]


def write(path, lines, comment="# synthetic\n"):
    """Write a CSV of such rows; return its path."""
    path.write_text(comment + "\n".join([HEADER, *lines]) + "\n")
    return path
