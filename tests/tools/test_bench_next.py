"""`tools.bench.bench_next`: it runs, goes on where it stopped, and compares like with like."""

import json

import numpy as np

from fitting import next_runs
from fitting.cost import PAPER
from fitting.sweeps import PAPER_DOMAIN
from tools.bench import bench_next


def test_it_compares_the_arms_and_goes_on(tmp_path, capsys):
    args = bench_next.Args(
        tables=2, batch=2, rounds=1, choices=2, resamples=3, starts=3, out=tmp_path / "next.jsonl"
    )
    bench_next.main(args)
    said = capsys.readouterr().out
    rows = [json.loads(line) for line in args.out.read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1]
    assert all(row[arm] >= 0 for row in rows for arm in bench_next.ARMS)
    assert all(row["next_spent"] <= 1 for row in rows)
    bench_next.main(args)
    assert capsys.readouterr().out == said
    assert "2 synthetic twins" in said


def test_twins_are_laws_with_errors_below_the_ceiling():
    offered = next_runs.candidates(PAPER_DOMAIN.configurations(), PAPER, bench_next.SIZES)
    for seed in range(4):
        twin = bench_next.Twin(seed, offered)
        error = twin.error(offered.x, offered.num_examples)
        assert 0 < error.min() < error.max() <= bench_next.HIGHEST + 1e-9
        table = twin.table([((1e9, 4.0, 9.0), 1e6)])
        right = twin.error(table.x, table.n)
        assert 0.005 < np.log(table.error / right).std() < 0.05
