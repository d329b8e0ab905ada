"""Commands, asked as a person would."""

import pytest

from tools import sweep as command
from tools.common import die_in_one_line


@pytest.fixture
def ask(capsys, monkeypatch):
    """Return ask("plan", …, code=0) -> (standard output, last line of standard error)."""

    def run(*argv, code=0):
        monkeypatch.setattr("sys.argv", ["tools.sweep", *map(str, argv)])
        ended = 0
        try:
            die_in_one_line(command.cli)
        except SystemExit as e:
            ended = e.code or 0
        out, err = capsys.readouterr()
        assert ended == code, err
        return out, (err.strip().splitlines() or [""])[-1]

    return run
