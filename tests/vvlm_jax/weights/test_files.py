"""Files that are not whole, or not weights, are one line that says what to do."""

import json
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from vvlm_jax.weights import files
from vvlm_jax.weights.files import Npz, Safetensors
from vvlm_jax.weights.mapping import Info, WeightsError

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(4).astype(jnp.bfloat16)


def write(file, **tensors):
    infos = {name: Info(str(x.dtype), x.shape) for name, x in tensors.items()}
    header = files.header_of(infos, {"format": "pt"})
    order = [name for name in json.loads(header) if name != "__metadata__"]
    files.write_safetensors(file, header, (tensors[name] for name in order))
    return file


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "model.safetensors", a=A, b=B)
    return tmp_path


def fails(folder, message):
    with pytest.raises(WeightsError, match=message) as raised:
        Safetensors(folder)
    assert "\n" not in str(raised.value)


def test_tensors_are_read_whole_and_in_parts(folder):
    reader = Safetensors(folder)
    assert reader.infos == {"a": Info("float32", (2, 3)), "b": Info("bfloat16", (4,))}
    np.testing.assert_array_equal(reader.read("a").reshape(2, 3), A)
    np.testing.assert_array_equal(reader.read("a", 2, 3), A.reshape(-1)[2:5])
    np.testing.assert_array_equal(reader.read("b"), B)
    assert reader.metadata == {"format": "pt"}


def test_the_safetensors_library_reads_and_writes_the_same_bytes(folder, tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    theirs = library.load_file(folder / "model.safetensors")
    np.testing.assert_array_equal(theirs["a"], A)
    library.save_file({"b": B, "a": A}, tmp_path / "theirs.safetensors", {"format": "pt"})
    ours, theirs = tmp_path / "model.safetensors", tmp_path / "theirs.safetensors"
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_truncated_file(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    fails(folder, r"model\.safetensors: .*(cut short|truncated).*; copy or download it again")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw + b"x", "longer than its header says"),
        (lambda raw: raw.replace(b"[2,3]", b"[3,3]"), "bytes do not match its shape"),
        (lambda raw: raw.replace(b"[0,24]", b"[8,32]"), "overlap or leave gaps"),
        (lambda raw: raw.replace(b'"shape"', b'"shapf"'), "its header is damaged"),
        (lambda raw: raw.replace(b'{"__m', b'["__m'), "its header is damaged"),
        (lambda raw: raw.replace(b'"b":', b'"a":'), "its header has 'a' twice"),
        (lambda raw: b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
    ],
)
def test_a_damaged_file(folder, change, message):
    file = folder / "model.safetensors"
    before = file.read_bytes()
    file.write_bytes(change(before))
    assert file.read_bytes() != before
    fails(folder, message)


def test_pickled_weights_are_not_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    fails(tmp_path, r"pytorch_model\.bin: pickled weights can execute code and are not read; save")


def test_an_empty_folder(tmp_path):
    fails(tmp_path, "has neither model.safetensors nor model.safetensors.index.json")


def shards(folder, **of):
    write(folder / "one.safetensors", a=A)
    write(folder / "two.safetensors", b=B)
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"} | of}
    (folder / files.INDEX).write_text(json.dumps(index))


def test_shards_and_their_index(tmp_path):
    shards(tmp_path)
    assert Safetensors(tmp_path).infos.keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (dict(c="two.safetensors"), r"1 tensors are not in the shard it names \(c\)"),
        (dict(b="one.safetensors"), r"index\.json: 1 tensors are not in the shard .*\(b\)"),
        (dict(b="three.safetensors"), "three.safetensors: no such file"),
        (dict(b="../two.safetensors"), "'../two.safetensors' is not the name of a file beside"),
        (dict(b=3), "3 is not the name of a file beside it"),
    ],
)
def test_an_index_that_does_not_match(tmp_path, of, message):
    shards(tmp_path, **of)
    fails(tmp_path, message)


def test_an_index_that_is_none(tmp_path):
    (tmp_path / files.INDEX).write_text('{"weights": 1}')
    fails(tmp_path, "not an index of shards")


def test_a_tensor_in_two_shards_is_noticed(tmp_path):
    shards(tmp_path, a="two.safetensors", c="one.safetensors")
    write(tmp_path / "one.safetensors", a=A, c=A)
    write(tmp_path / "two.safetensors", a=A, b=B)
    assert Safetensors(tmp_path).duplicates == ["a"]


def test_npz_in_parts_and_bfloat16_as_numpy_stores_it(tmp_path):
    np.savez(tmp_path / "x.npz", **{"params/a": A, "b": B})
    reader = Npz(tmp_path / "x.npz")
    assert reader.infos == {"params/a": Info("float32", (2, 3)), "b": Info("bfloat16", (4,))}
    np.testing.assert_array_equal(reader.read("params/a", 1, 4), A.reshape(-1)[1:5])
    np.testing.assert_array_equal(reader.read("b"), B)
    files.write_npz(tmp_path / "y.npz", [("params/a", A), ("b", B)])
    again = Npz(tmp_path / "y.npz")
    assert again.infos == reader.infos
    np.testing.assert_array_equal(again.read("b"), B)


def test_npz_with_objects_or_cut_short(tmp_path):
    file = tmp_path / "x.npz"
    np.savez(file, a=np.array([{}], object))
    with pytest.raises(WeightsError, match="a holds Python objects, which are not read"):
        Npz(file)
    np.savez(file, a=A)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(WeightsError, match=r"not a whole \.npz .*; copy or download it again"):
        Npz(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", b"nothing of the kind")
    with pytest.raises(WeightsError, match=r"not a whole \.npz"):
        Npz(file)
    with pytest.raises(WeightsError, match="no such file"):
        Npz(tmp_path / "y.npz")
