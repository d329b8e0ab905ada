"""`atomic`: what is replaced is whole, or as it was."""

import pytest

from vvlm_jax import atomic


def test_a_file_or_a_folder_appears_whole_and_alone(tmp_path):
    atomic.write_text(tmp_path / "a.json", "é", sync=True)
    with atomic.replacing(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "file").write_text("x")
        assert not (tmp_path / "folder").exists()
    assert (tmp_path / "a.json").read_bytes() == "é".encode()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.json", "file", "folder"]


@pytest.mark.parametrize("shared", [False, True])
def test_after_an_error_the_old_file_stays_and_nothing_beside_it(tmp_path, shared):
    path = tmp_path / "a.npz"
    path.write_text("old")

    def interrupted():
        with atomic.replacing(path, shared=shared) as partial:
            assert partial.suffix == ".npz"
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        atomic.write_text(tmp_path / "gone" / "a.json", "x")
    assert raised.value.filename == f"{tmp_path}/gone/a.json"
    with pytest.raises(FileNotFoundError) as raised, atomic.replacing(tmp_path / "a") as partial:
        (partial / "b").write_text("x")
    assert raised.value.filename == f"{tmp_path}/a/b"
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError) as raised:
        atomic.write_text(tmp_path / "taken", "x")
    assert (raised.value.filename, raised.value.filename2) == (f"{tmp_path}/taken", None)


def test_what_a_killed_writer_left_is_removed(tmp_path):
    left = tmp_path / f"{atomic.PREFIX}out"
    (left / "deep").mkdir(parents=True)
    with atomic.replacing(tmp_path / "out") as partial:
        assert partial == left
        partial.mkdir()
    assert list((tmp_path / "out").iterdir()) == []
    assert not left.exists()


def test_two_writers_of_a_shared_file_do_not_meet(tmp_path):
    path = tmp_path / "a"
    with atomic.replacing(path, shared=True) as one, atomic.replacing(path, shared=True) as two:
        assert one != two
        one.write_text("1")
        two.write_text("2")
    assert path.read_text() == "1"
