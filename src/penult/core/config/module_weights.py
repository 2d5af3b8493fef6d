"""Read the weights of a module as NumPy arrays: dense layers, layer norms and tables of static embeddings.

safetensors files are read directly. A pickled pytorch_model.bin is read only with torch, with weights_only=True. A missing or
unexpected key is an error, because ignoring a weight would change the vectors. Independent of onnx.
"""

import importlib.metadata
import importlib.util
import json
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import safetensors
from numpy.typing import NDArray

from penult.core.config.config_json import check_content
from penult.extras import install_hint

Floats = NDArray[np.float32]
Shape = tuple[str, ...]  # each letter is a size, the same wherever it occurs: ("D", "H"), ("D",)

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"  # in the order in which sentence-transformers looks for them
_MOST_BYTES = 2**33  # a static embedding of two million tokens has this size
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
          "BF16": "<u2"}  # fmt: skip
_SAFE_TORCH = (2, 6)  # in older versions a hostile pickle can run code despite weights_only=True (CVE-2025-32434)


def weights_path(folder: Path) -> Path:
    """Return the weight file of a module, as `read_weights` reads it.

    Raises:
        FileNotFoundError: the module has no weight file.
        ValueError: the weights are split into several files.
    """
    for name in (SAFETENSORS, PICKLE):
        if (folder / name).exists():
            return folder / name
    parts = sorted(path.name for path in folder.glob("*-of-*")) + sorted(path.name for path in folder.glob("*.index.json"))
    if parts:
        raise ValueError(f"{folder} has its weights in several files ({parts[0]}, ...). Save them as one {SAFETENSORS}.")
    raise FileNotFoundError(f"{folder} has neither {SAFETENSORS} nor {PICKLE}. Download the whole model.")


def read_weights(folder: Path, shapes: Mapping[str, Shape], optional: Shape = ()) -> dict[str, Floats]:
    """Read the weights of a module as float32; the file must have exactly the named keys.

    Args:
        folder: the module's folder.
        shapes: key -> its axes, one letter each; axes of the same letter have the same size.
        optional: keys that may be missing.

    Raises:
        FileNotFoundError: there are no weights, or they are pickled and torch is not installed.
        ValueError: the file is incomplete, a key is missing or unexpected, or a weight has another shape.
    """
    path = weights_path(folder)
    arrays = _read(path)
    _check_keys(path, arrays, required=[key for key in shapes if key not in optional], optional=optional)
    shapes = {key: axes for key, axes in shapes.items() if key in arrays}
    sizes: dict[str, int] = {}
    for key, axes in shapes.items():
        shape = arrays[key].shape
        fits = len(shape) == len(axes) and all(
            sizes.setdefault(axis, size) == size for axis, size in zip(axes, shape, strict=True)
        )
        if not fits or 0 in shape or not _is_real(arrays[key]):
            raise ValueError(
                f"{path} has {_listed(arrays)}; {key} must be numbers ({', '.join(axes)}). Download the file again."
            )
    return {key: np.ascontiguousarray(arrays[key], dtype=np.float32) for key in shapes}


def dense_weights(folder: Path, *, bias: bool | None, residual: bool) -> dict[str, Floats]:
    """Read the weights of a Dense module: linear.weight (D, H), as torch stores it, and those that its configuration states.

    Args:
        folder: the module's folder.
        bias: whether there is a linear.bias (D,), as the configuration's `bias` states. None: if the file has it.
        residual: whether there is a residual.weight (D, H); `use_residual` where in_features and out_features differ.

    Raises:
        FileNotFoundError: as `read_weights`.
        ValueError: as `read_weights`.
    """
    shapes: dict[str, Shape] = {"linear.weight": ("D", "H")}
    if bias is not False:
        shapes["linear.bias"] = ("D",)
    if residual:
        shapes["residual.weight"] = ("D", "H")
    return read_weights(folder, shapes, ("linear.bias",) if bias is None else ())


def layer_norm_weights(folder: Path) -> dict[str, Floats]:
    """Read the weights of a LayerNorm module: norm.weight (D,) and norm.bias (D,).

    Raises:
        FileNotFoundError: as `read_weights`.
        ValueError: as `read_weights`.
    """
    return read_weights(folder, {"norm.weight": ("D",), "norm.bias": ("D",)})


def static_table(folder: Path) -> Floats:
    """Read the table of a static embedding: (V, D), one row per token id.

    1. sentence-transformers stores it as embedding.weight.
    2. model2vec stores rows as embeddings, with a mapping (V,) from token ids to rows if tokens share rows, and weights (V,) if
       tokens are weighted. The row of a token is then embeddings[mapping[token]] * weights[token].

    Raises:
        FileNotFoundError: as `read_weights`.
        ValueError: as `read_weights`, or the mapping or the weights do not match the rows.
    """
    path = weights_path(folder)
    arrays = _read(path)
    if "embedding.weight" in arrays:
        _check_keys(path, arrays, required=("embedding.weight",))
        rows = arrays["embedding.weight"]
    else:
        _check_keys(path, arrays, required=("embeddings",), optional=("mapping", "weights"))
        rows = arrays["embeddings"]
    mapping, weights = arrays.get("mapping"), arrays.get("weights")
    tokens = (len(rows) if mapping is None else mapping.size) if rows.ndim == 2 else 0
    if not (
        tokens
        and rows.shape[1]
        and _is_real(rows)
        and (mapping is None or _are_rows(mapping, of=rows))
        and (weights is None or (weights.shape == (tokens,) and _is_real(weights)))
    ):
        raise ValueError(
            f"{path} has {_listed(arrays)}; a static embedding has rows (V, D), and optionally a mapping (V,) and weights "
            "(V,). Download the file again."
        )
    rows = rows if mapping is None else rows[mapping]
    if weights is not None:  # at least float32: half-precision products would change the vectors
        rows = np.asarray(rows, dtype=np.promote_types(rows.dtype, np.float32)) * weights[:, None]
    table = np.ascontiguousarray(rows, dtype=np.float32)
    if not np.isfinite(table).all():
        raise ValueError(f"{path} has NaN or infinite embeddings. Download the file again.")
    return table


def stored_table(folder: Path) -> tuple[int, int] | None:
    """Return offset and length of the table in its file, if it is stored in the form that `static_table` returns.

    Call it after `static_table`, which checks the file.
    """
    path = weights_path(folder)
    if path.name != SAFETENSORS:
        return None
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    stored = header.get("embedding.weight") or header.get("embeddings")
    if stored["dtype"] != "F32" or header.keys() & {"mapping", "weights"}:
        return None
    start, end = stored["data_offsets"]
    return 8 + size + start, end - start


def _check_keys(
    path: Path, arrays: Mapping[str, NDArray[np.generic]], *, required: Iterable[str], optional: Iterable[str] = ()
) -> None:
    required, optional = list(required), list(optional)
    if set(required) - set(arrays) or set(arrays) - set(required) - set(optional):
        raise ValueError(
            f"{path} has {_listed(arrays)}; this module needs {_named(required)}"
            f"{f' and optionally {_named(optional)}' if optional else ''}. Download the file and the "
            "module's config.json again."
        )


def _named(keys: list[str]) -> str:
    more = f" and {len(keys) - 8} more" if len(keys) > 8 else ""
    return ", ".join(key[:80] for key in keys[:8]) + more or "none"


def _listed(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    described = [f"{key[:80]} {array.dtype} {array.shape}" for key, array in sorted(arrays.items())[:8]]
    more = f" and {len(arrays) - 8} more" if len(arrays) > 8 else ""
    return ", ".join(described) + more or "nothing"


def _is_real(array: NDArray[np.generic]) -> bool:
    return array.dtype.kind in "fiu"


def _are_rows(mapping: NDArray[np.generic], *, of: NDArray[np.generic]) -> bool:
    """Return whether all values of a mapping are valid row indices."""
    if mapping.ndim != 1 or mapping.dtype.kind not in "iu" or not mapping.size:
        return False
    return bool(mapping.min() >= 0 and mapping.max() < len(of))


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    if not path.is_file():
        raise ValueError(f"{path} is not a file. Download it again.")  # reading a device or a pipe may never end
    check_content(path, "weights", may_be_empty=True)
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; the maximum is {_MOST_BYTES:,}. Download it again.")
    return _read_safetensors(path) if path.name == SAFETENSORS else _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        tensors = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call] # it has no annotations
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}). Download it again.") from error
    arrays: dict[str, NDArray[np.generic]] = {}
    for key, tensor in tensors:
        kind = tensor["dtype"]
        if kind not in _TYPES:
            raise ValueError(f"{path} has {key[:80]} as {kind}; penult supports {', '.join(_TYPES)}. Save it as one of these.")
        array = np.frombuffer(tensor["data"], dtype=_TYPES[kind]).reshape(tensor["shape"])
        # bfloat16 is the upper half of float32; NumPy does not support it.
        arrays[key] = (array.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else array
    return arrays


def _read_torch(path: Path) -> dict[str, NDArray[np.generic]]:
    version = _torch_version()
    if version is None:
        raise FileNotFoundError(
            f"{path.parent} has no {SAFETENSORS}, and reading the pickled weights {path} needs torch. Install "
            f"{install_hint('export')}, or save the weights once as {SAFETENSORS}."
        )
    if version < _SAFE_TORCH:
        raise ValueError(
            f"{path} has pickled weights, which torch reads safely from version {'.'.join(map(str, _SAFE_TORCH))} on. Upgrade "
            f"torch, or save the weights once as {SAFETENSORS}."
        )
    import torch  # noqa: PLC0415, TID251 - the only use at run time, and only for pickled weights

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        # bfloat16 is converted to float32, because NumPy does not support it.
        arrays = {key: (t.float() if t.dtype == torch.bfloat16 else t).detach().numpy() for key, t in state.items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise ValueError(
            f"{path} is not a complete file of named weights only ({reason}). Download it again, or save the weights "
            f"as {SAFETENSORS}."
        ) from error
    return {str(key): array for key, array in arrays.items()}


def _torch_version() -> tuple[int, ...] | None:
    """Return torch's version without importing it; None if torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    try:
        return tuple(map(int, re.findall(r"\d+", importlib.metadata.version("torch"))[:2]))
    except importlib.metadata.PackageNotFoundError:  # a folder of that name on sys.path
        return None
