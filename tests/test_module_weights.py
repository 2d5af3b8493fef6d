"""Weights of a module are read as its configuration names them, in any float type, or rejected in one error."""

import importlib.metadata
import importlib.util
import json
import struct

import numpy as np
import pytest
from conftest import SHARED, data_file, data_folder
from safetensors.numpy import save_file

from penult.core.config import module_weights
from penult.core.config.module_weights import dense_weights, layer_norm_weights, read_weights, static_table, weights_path

RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.normal(size=(4, 6)).astype(np.float32), RNG.normal(size=4).astype(np.float32)
ROWS = RNG.normal(size=(3, 2)).astype(np.float32)
NO_TORCH = importlib.util.find_spec("torch") is None


def folder_of(tmp_path, **arrays):
    """Save weights as safetensors; two underscores in a name become a dot."""
    save_file({key.replace("__", "."): np.ascontiguousarray(a) for key, a in arrays.items()}, tmp_path / "model.safetensors")
    return tmp_path


def raw_file(path, kind, shape, data):
    """Write a safetensors file with one tensor `linear.weight`, byte by byte, for types that NumPy does not have."""
    header = json.dumps({"linear.weight": {"dtype": kind, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_a_dense_layer(tmp_path):
    """Weight and bias are stored as in torch, returned as float32."""
    weights = dense_weights(folder_of(tmp_path, linear__weight=WEIGHT, linear__bias=BIAS), bias=True, residual=False)
    assert list(weights) == ["linear.weight", "linear.bias"]
    np.testing.assert_array_equal(weights["linear.weight"], WEIGHT)
    np.testing.assert_array_equal(weights["linear.bias"], BIAS)
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in weights.values())


def test_a_dense_layer_with_a_residual_projection(tmp_path):
    """The projection has the shape of the weight."""
    folder = folder_of(tmp_path, linear__weight=WEIGHT, residual__weight=WEIGHT + 1)
    np.testing.assert_array_equal(dense_weights(folder, bias=False, residual=True)["residual.weight"], WEIGHT + 1)


def test_a_layer_norm(tmp_path):
    """Weight and bias have the same size."""
    weights = layer_norm_weights(folder_of(tmp_path, norm__weight=BIAS, norm__bias=BIAS + 1))
    np.testing.assert_array_equal(weights["norm.weight"], BIAS)
    np.testing.assert_array_equal(weights["norm.bias"], BIAS + 1)


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int8])
def test_other_types(tmp_path, kind):
    """Numbers of another type are converted to float32, as torch does."""
    given = (WEIGHT * 10).astype(kind)
    weights = dense_weights(folder_of(tmp_path, linear__weight=given), bias=False, residual=False)
    np.testing.assert_array_equal(weights["linear.weight"], given.astype(np.float32))


def test_bfloat16(tmp_path):
    """Every value keeps its sign, exponent and 7 bits: 1, -2.5, the largest, the smallest and infinity."""
    raw_file(tmp_path / "model.safetensors", "BF16", [1, 5], struct.pack("<5H", 0x3F80, 0xC020, 0x7F7F, 0x0001, 0x7F80))
    weights = dense_weights(tmp_path, bias=False, residual=False)
    np.testing.assert_array_equal(weights["linear.weight"], np.array([[1, -2.5, 3.3895314e38, 9.1835e-41, np.inf]], np.float32))


def test_an_unsupported_type(tmp_path):
    """The error names the type and the supported types."""
    raw_file(tmp_path / "model.safetensors", "F8_E4M3", [1, 2], b"\0\0")
    with pytest.raises(ValueError, match=r"model\.safetensors has linear\.weight as F8_E4M3; penult supports F64, .*BF16\."):
        dense_weights(tmp_path, bias=False, residual=False)


@pytest.mark.parametrize(("keys", "bias", "residual", "wanted"), [
    (("linear.weight",), True, False, "linear.weight, linear.bias"),
    (("linear.weight", "linear.bias"), False, False, "linear.weight"),
    (("linear.weight", "linear.bias"), True, True, "linear.weight, linear.bias, residual.weight"),
    (("linear.weight", "residual.weight"), False, False, "linear.weight"),
    (("weight", "bias"), None, False, "linear.weight and optionally linear.bias"),
    ((), True, False, "linear.weight, linear.bias"),
])  # fmt: skip
def test_keys_that_do_not_fit(tmp_path, keys, bias, residual, wanted):
    """The error lists the keys of the file and those that the module needs."""
    save_file({key: BIAS if key.endswith("bias") else WEIGHT for key in keys}, tmp_path / "model.safetensors")
    shapes = [f"{key} float32 \\({'4,' if key.endswith('bias') else '4, 6'}\\)" for key in sorted(keys)]
    held = ", ".join(shapes) or "nothing"
    with pytest.raises(ValueError, match=f"has {held}; this module needs {wanted}\\. Download"):
        dense_weights(tmp_path, bias=bias, residual=residual)


def test_many_keys_that_do_not_fit(tmp_path):
    """The error stays short: it does not list the weights of a whole transformer."""
    save_file({f"layer.{i:03}.{'x' * 200}": BIAS for i in range(300)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="and 292 more") as caught:
        dense_weights(tmp_path, bias=True, residual=False)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("weights", [
    {"linear.weight": WEIGHT[0], "linear.bias": BIAS},
    {"linear.weight": WEIGHT, "linear.bias": BIAS[:3]},
    {"linear.weight": WEIGHT, "linear.bias": BIAS[:, None]},
    {"linear.weight": WEIGHT[:, :0], "linear.bias": BIAS},
])  # fmt: skip
def test_shapes_that_do_not_fit(tmp_path, weights):
    """The error states the shapes of the file and those that are needed."""
    save_file({key: np.ascontiguousarray(array) for key, array in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors has linear\..* must be numbers \(D(, H)?\)\. Download"):
        dense_weights(tmp_path, bias=True, residual=False)


def test_incomplete_files(tmp_path):
    """A file that is cut off, empty or not a file is an error that names it."""
    folder = folder_of(tmp_path, linear__weight=WEIGHT)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for broken in (whole[:-1], whole[:20], b"", b"version https://git-lfs.github.com/spec/v1\n", b"\xff" * 8 + whole):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=r"model\.safetensors is (not a complete safetensors file|a Git LFS pointer)"):
            dense_weights(folder, bias=False, residual=False)
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match=r"model\.safetensors is not a file"):
        dense_weights(folder, bias=False, residual=False)


def test_which_file_is_read(tmp_path):
    """Safetensors take precedence over a pickle; sharded or missing weights are errors."""
    with pytest.raises(FileNotFoundError, match=r"has neither model\.safetensors nor pytorch_model\.bin\. Download"):
        weights_path(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    (tmp_path / "model.safetensors.index.json").touch()
    with pytest.raises(ValueError, match=r"in several files \(model-00001-of-00002\.safetensors, \.\.\.\)\. Save them as one"):
        weights_path(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert weights_path(tmp_path).name == "pytorch_model.bin"
    (tmp_path / "model.safetensors").touch()
    assert weights_path(tmp_path).name == "model.safetensors"


def test_a_pickle_without_torch(tmp_path, monkeypatch):
    """The error names the file and both options; the file is not read."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    monkeypatch.setattr(module_weights, "_torch_version", lambda: None)
    with pytest.raises(
        FileNotFoundError,
        match=r"pytorch_model\.bin needs torch\. Install the extra penult\[export\] \(pip install .*\), or save",
    ):
        dense_weights(tmp_path, bias=True, residual=False)


def test_a_pickle_with_a_torch_that_is_not_safe(tmp_path, monkeypatch):
    """Versions before 2.6 run code from a pickle even with weights_only."""
    (tmp_path / "pytorch_model.bin").touch()
    monkeypatch.setattr(module_weights, "_torch_version", lambda: (2, 5))
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin has pickled weights, which torch reads safely from version 2\.6 on"
    ):
        dense_weights(tmp_path, bias=True, residual=False)


def test_the_version_of_torch(monkeypatch):
    """The version is read without importing torch; a folder named torch is not torch."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert module_weights._torch_version() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0+cpu")
    assert module_weights._torch_version() == (2, 13)

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert module_weights._torch_version() is None


@pytest.mark.skipif(NO_TORCH, reason="pickled weights need torch, which is not installed here")
def test_a_pickle_with_torch(tmp_path):
    """Only weights are read, of any float type; a pickle with code is rejected and not run."""
    import torch

    weight = torch.arange(6.0).reshape(2, 3)
    file = tmp_path / "pytorch_model.bin"
    for kind in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        torch.save({"linear.weight": torch.nn.Parameter(weight.to(kind))}, file)
        actual = dense_weights(tmp_path, bias=False, residual=False)["linear.weight"]
        assert actual.dtype == np.float32
        np.testing.assert_array_equal(actual, weight.numpy())
    marker = tmp_path / "ran"
    for hostile in (f"cos\nsystem\n(S'touch {marker}'\ntR.".encode(), b"", file.read_bytes()[:100]):
        file.write_bytes(hostile)
        with pytest.raises(ValueError, match=r"pytorch_model\.bin is not a whole file of weights by name"):
            dense_weights(tmp_path, bias=False, residual=False)
    assert not marker.exists()
    for other in ([weight], {"linear.weight": [1.0]}, weight):
        torch.save(other, file)
        with pytest.raises(ValueError, match=r"pytorch_model\.bin is not a whole file of weights by name"):
            dense_weights(tmp_path, bias=False, residual=False)


@pytest.mark.skipif(NO_TORCH, reason="pickled weights need torch, which is not installed here")
def test_a_pickle_of_the_gallery():
    """An older folder has its dense layer only in a pickle."""
    weights = dense_weights(data_file("gallery/dense-pickle/2_Dense"), bias=True, residual=False)
    assert weights["linear.weight"].shape[1] == 32


def test_dense_layers_of_the_gallery():
    """All with safetensors are read as their configurations state."""
    count = 0
    for config in data_folder("gallery").glob("*/*Dense*/config.json"):
        if (config.parent / "model.safetensors").exists():
            stated = json.loads(config.read_text())
            weights = dense_weights(config.parent, bias=stated.get("bias", True), residual=False)
            assert weights["linear.weight"].shape == (stated["out_features"], stated["in_features"])
            count += 1
    assert count >= (10 if data_folder("gallery").is_relative_to(SHARED) else 2)


def test_a_static_table(tmp_path):
    """Both layouts give one row per token."""
    np.testing.assert_array_equal(static_table(folder_of(tmp_path, embedding__weight=ROWS)), ROWS)
    np.testing.assert_array_equal(static_table(folder_of(tmp_path, embeddings=ROWS)), ROWS)


def test_a_static_table_with_a_mapping(tmp_path):
    """A token's row is embeddings[mapping[token]] * weights[token], as in model2vec and sentence-transformers."""
    mapping, weights = np.array([2, 0, 0, 1, 2]), np.array([0.5, 1, 2, 0, -1])
    np.testing.assert_array_equal(static_table(folder_of(tmp_path, embeddings=ROWS, mapping=mapping)), ROWS[mapping])
    table = static_table(folder_of(tmp_path, embeddings=ROWS, mapping=mapping.astype(np.int32), weights=weights))
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, (ROWS[mapping] * weights[:, None]).astype(np.float32))
    table = static_table(folder_of(tmp_path, embeddings=ROWS, weights=weights[:3].astype(np.float32)))
    np.testing.assert_array_equal(table, ROWS * weights[:3, None].astype(np.float32))


@pytest.mark.parametrize("kind", [np.float16, np.int8])
def test_a_static_table_of_another_type(tmp_path, kind):
    """Half precision and 8 bits are converted before they are weighted, so that no product is rounded to them."""
    rows = (ROWS * 50).astype(kind)
    np.testing.assert_array_equal(static_table(folder_of(tmp_path, embeddings=rows)), rows.astype(np.float32))
    weights = np.array([0.3, 1 / 3, 0.001])
    wanted = (rows.astype(np.float32) * weights[:, None]).astype(np.float32)
    np.testing.assert_array_equal(static_table(folder_of(tmp_path, embeddings=rows, weights=weights)), wanted)


@pytest.mark.parametrize("arrays", [
    {"embeddings": ROWS[0]},
    {"embeddings": ROWS[:0]},
    {"embeddings": ROWS, "mapping": np.array([0, 3])},
    {"embeddings": ROWS, "mapping": np.array([0, -1])},
    {"embeddings": ROWS, "mapping": np.array([[0, 1]])},
    {"embeddings": ROWS, "mapping": np.array(1)},
    {"embeddings": ROWS, "mapping": np.array([0.0, 1.0])},
    {"embeddings": ROWS, "mapping": np.array([], np.int64)},
    {"embeddings": ROWS, "weights": np.ones(2)},
    {"embeddings": ROWS, "weights": np.ones((3, 1))},
    {"embeddings": ROWS, "mapping": np.array([0, 1]), "weights": np.ones(3)},
])  # fmt: skip
def test_static_tables_that_do_not_fit(tmp_path, arrays):
    """A mapping with invalid rows, and weights of another size, are errors that state the file's shapes."""
    save_file(
        {key: np.ascontiguousarray(array).reshape(array.shape) for key, array in arrays.items()}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"has embeddings float32 .*; a static embedding has rows \(V, D\)"):
        static_table(tmp_path)


def test_a_static_table_with_other_keys(tmp_path):
    """A transformer's weights are not a table, and keys that only one of two libraries reads are errors."""
    with pytest.raises(
        ValueError, match=r"has encoder\.weight .*; this module needs embeddings and optionally mapping, weights"
    ):
        static_table(folder_of(tmp_path, encoder__weight=WEIGHT))
    with pytest.raises(ValueError, match=r"weights float.*; this module needs embedding\.weight\."):
        static_table(folder_of(tmp_path, embedding__weight=ROWS, weights=np.ones(3)))


def test_a_static_table_with_nan(tmp_path):
    """One row of NaN would turn the zeros of padding into NaN."""
    with pytest.raises(ValueError, match="NaN or infinite embeddings"):
        static_table(folder_of(tmp_path, embeddings=ROWS * np.array([1, np.nan], np.float32)))


def test_shapes_by_letters(tmp_path):
    """The same letter is the same size in every weight."""
    folder = folder_of(tmp_path, a=WEIGHT, b=WEIGHT.T)
    assert set(read_weights(folder, {"a": ("D", "H"), "b": ("H", "D")})) == {"a", "b"}
    with pytest.raises(ValueError, match=r"b must be numbers \(D, H\)"):
        read_weights(folder, {"a": ("D", "H"), "b": ("D", "H")})
