import json
import os
from pathlib import Path

import pytest

from vvlm_jax.sweep.store.sweep_json import write_json


def test_a_value_is_read_back_and_nothing_else_is_left(tmp_path):
    write_json(tmp_path / "run" / "a.json", {"scores": {"avg": 1.5}})
    assert json.loads((tmp_path / "run" / "a.json").read_text()) == {"scores": {"avg": 1.5}}
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["a.json"]


@pytest.mark.parametrize("earlier", [None, {"scores": {"avg": 1.0}}])
def test_a_write_that_is_cut_short_leaves_what_was_there(tmp_path, monkeypatch, earlier):
    file = tmp_path / "a.json"
    if earlier:
        write_json(file, earlier)
    plain = Path.write_text

    def half(self, text, *args, **kwargs):
        plain(self, text[: len(text) // 2])
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        write_json(file, {"scores": {"avg": 2.0}})
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == (["a.json"] if earlier else [])
    assert (json.loads(file.read_text()) if file.exists() else None) == earlier


def test_what_json_cannot_hold_leaves_what_was_there(tmp_path):
    write_json(tmp_path / "a.json", {"loss": 1.0})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"loss": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": 1.0}
