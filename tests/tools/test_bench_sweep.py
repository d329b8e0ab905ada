from tools.bench import bench_sweep


def test_both_commands_are_timed_over_a_store_of_the_runs_asked_for(capsys):
    bench_sweep.main(bench_sweep.Args(runs=12, repeats=1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "12 runs, 25 jobs, 48 files of journals"
    assert [line.split(":")[0] for line in lines[1:]] == [
        "status without the index",
        "status with the index",
        "collect without the index",
        "collect with the index",
    ]
