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
    fails(folder, r"model\.safetensors: .*truncated.*; copy or download it again")


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


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('{"format":"pt"}', '"format"', "__metadata__ = 'format': must hold texts"),
        ('{"format":"pt"}', '{"format":1}', "__metadata__ = {'format': 1}: must hold texts"),
        ("[0,24]", "[0,24,32]", "tensor 'a' = .*24, 32.*: needs dtype, shape, two data_offsets"),
        ("[0,24]", "[0,Infinity]", "tensor 'a' = .*inf.*: needs dtype, shape, two data_offsets"),
        ("[2,3]", "[-2,-3]", "tensor 'a' = .*: needs dtype, shape, two data_offsets"),
        ("[2,3]", '"23"', "tensor 'a' = .*: needs dtype, shape, two data_offsets"),
        ('"F32"', "4", "tensor 'a' = .*: needs dtype, shape, two data_offsets"),
        ('"a":', '"\\u001b[2J\\n":', r"'\\x1b\[2J\\n' has control characters in its name"),
        ('"a":', '"\\ud800":', r"'\\ud800' has control characters in its name"),
        ("{", "\xff" * 5000 + "{", r"damaged \(not JSON\)"),
        ("{", "[" * 50_000 + "{", r"damaged \(not JSON\)"),
    ],
)  # fmt: skip
def test_a_header_that_is_wrong_is_one_short_line(folder, old, new, message):
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].decode("latin1")
    assert old in header
    header = header.replace(old, new, 1).encode("latin1")
    file.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    with pytest.raises(WeightsError, match=message) as raised:
        Safetensors(folder)
    said = str(raised.value)
    assert said.isprintable()
    assert said.startswith(str(file))
    assert len(said) < 300 + len(str(file))


def test_a_long_header_with_repeated_names_is_read_at_once(folder):
    file = folder / "model.safetensors"
    names = ",".join(f'"x{i % 50_000}":0' for i in range(100_000))
    file.write_bytes((len(names) + 2).to_bytes(8, "little") + b"{" + names.encode() + b"}")
    fails(folder, "its header has 'x0', 'x1', 'x2' twice")


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"weights": 1}', r"not an index of shards \(weight_map = None\)"),
        ('{"weight_map": {}}', r"not an index of shards \(weight_map = {}\)"),
        ('{"weight_map": ["a"]}', r"not an index of shards \(weight_map = \['a'\]\)"),
        ('{"weight_map": {"a": ["b"]}}', r"weight_map of 'a': \['b'\] is not the name of a file"),
        ("[1]", r"not an index of shards \(\[1\]\)"),
        ("", r"not an index of shards \(not JSON: "),
        ("[" * 50_000, r"not an index of shards \(not JSON: "),
    ],
)
def test_an_index_that_is_none(tmp_path, text, message):
    (tmp_path / files.INDEX).write_text(text)
    fails(tmp_path, message)


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


def test_npz_with_flipped_bytes_or_promises(tmp_path):
    file = tmp_path / "x.npz"
    np.savez_compressed(file, a=np.arange(1000, dtype=np.float32))
    raw = bytearray(file.read_bytes())
    raw[60:68] = b"\xff" * 8
    file.write_bytes(raw)
    with pytest.raises(WeightsError, match=r"not a whole \.npz .*; copy or download it again"):
        Npz(file)
    np.savez(file, a=A)
    raw = file.read_bytes().replace(b"(2, 3), }      ", b"(99999999, 3), }")
    with zipfile.ZipFile(file, "w") as archive:  # a shape that no machine could hold
        archive.writestr("a.npy", raw[raw.index(b"\x93NUMPY") :][:152])
    with pytest.raises(WeightsError, match="a: its bytes do not match its shape"):
        Npz(file)
