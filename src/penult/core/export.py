"""Export a folder without an ONNX file, as `SentenceTransformer.save` writes it, with torch in a child process.

This module finds the transformers of a folder, copies all other files and starts `export_worker.py`; it never imports torch.
An exported folder is complete: `onnx/model.onnx` beside each transformer's config.json, and all other files of the model except
the weights that the graph contains.
"""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from penult.core.cache import ADVICE, disk_errors, hash_files
from penult.core.cache_entry import checksums, install, is_complete, making
from penult.core.config.config_json import check_content, read_json, read_object
from penult.core.memory import check_memory
from penult.extras import install_hint

# Record of an export's sources and versions, beside the configuration of the exported folder.
RECORD = "penult_export.json"
_LOGGER = logging.getLogger(__name__)
_FORMAT = 1  # increment when exports of older versions must not be used anymore
_WORKER = Path(__file__).with_name("export_worker.py")
_SECONDS = 3600.0  # maximum time of the child process
_MEMORY = 8.0  # peak memory, as a multiple of the weights
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "pytorch_model.bin", "pytorch_model-*.bin")
# Files of weights and graphs. They are not copied from a transformer's folder, but are copied for other modules.
_WEIGHT_SUFFIXES = frozenset(
    (
        *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".gguf", ".npz", ".pkl"),
        *(".onnx", ".onnx_data", ".data", ".tflite", ".mlmodel"),
    )
)
_MODULE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_NO_KEY = frozenset((".md", ".png", ".jpg", ".csv", ".log"))  # files that do not affect vectors


def torch_available() -> bool:
    """Return whether torch is installed, without importing it."""
    return importlib.util.find_spec("torch") is not None


def exportable(folder: Path) -> bool:
    """Return whether a folder has a transformer with weights that `export` reads."""
    return bool(_transformers(folder))


def export(folder: Path, out: Path, *, python: str = sys.executable, progress: bool = True) -> Path:
    """Export a model folder to ONNX, and return the new folder.

    Args:
        folder: a folder with config.json, weights (safetensors or pytorch_model.bin) and a tokenizer, or with modules that are
            such folders.
        out: the new folder; it must be empty or not exist.
        python: interpreter with torch, transformers and onnxruntime.
        progress: whether to print progress on standard error.

    Raises:
        FileNotFoundError: the folder has no transformer with weights, or torch is not installed.
        FileExistsError: `out` is not empty.
        ValueError: the model cannot be exported; the message says why and what to do.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder. Pass a new folder.")
    advice = "Pass a new folder on a writable disk with free space."
    return _export(folder, out, python, advice, progress=progress, replaces=False)


def exported(folder: Path, cache: Path, *, python: str = sys.executable, progress: bool = True, reread: bool = False) -> Path:
    """Return the exported form of a folder from the cache; the first call exports it.

    Args:
        folder: as in `export`.
        cache: penult's cache folder.
        python: as in `export`.
        progress: as in `export`.
        reread: whether to compare every byte of a cached export with its checksum.

    Raises:
        FileNotFoundError: as in `export`.
        OSError: the cache cannot be written.
        ValueError: as in `export`.
    """
    if (cached := find_export(folder, cache, reread=reread)) is not None:
        return cached
    out = _place(folder, cache)
    if os.path.lexists(out):
        _LOGGER.warning("The cached export in %s is damaged or incomplete; exporting again.", out)
    return _export(folder, out, python, ADVICE, progress=progress, replaces=True)


def find_export(folder: Path, cache: Path, *, reread: bool = False) -> Path | None:
    """Return the exported form of a folder from the cache; None if it is missing or damaged.

    Raises:
        FileNotFoundError: as in `export`.
        ValueError: as in `export`.
    """
    out = _place(folder, cache)
    return out if _is_complete(out, reread=reread) else None


def _place(folder: Path, cache: Path) -> Path:
    return cache / "exports" / source_sha256(folder)[:32]


def _is_complete(out: Path, *, reread: bool = False) -> bool:
    try:
        record = read_object(out / RECORD)
    except (OSError, ValueError):
        return False
    return is_complete(out, record.get("files"), reread=reread)


def source_sha256(folder: Path) -> str:
    """Return the sha256 of all files that determine an export: configurations, tokenizer, weights."""
    _check_exportable(folder)
    names = sorted({path.as_posix() for path in _copied(folder) if path.suffix not in _NO_KEY} | set(_weights(folder)))
    digests = [(name, hash_files([folder / name])) for name in names]
    return hashlib.sha256(json.dumps([_FORMAT, digests]).encode()).hexdigest()


def _export(folder: Path, out: Path, python: str, advice: str, *, progress: bool, replaces: bool) -> Path:
    _check_exportable(folder)
    if python == sys.executable and not torch_available():
        raise FileNotFoundError(_without_torch(str(folder)))
    weights = sum((folder / name).stat().st_size for name in _weights(folder))
    elsewhere = "Run `penult export` on a larger machine and copy the folder here."
    check_memory(f"The export of {folder}", weights, _MEMORY, elsewhere, held=True)
    with disk_errors(out.parent, advice), making(out.parent, "exporting") as aside, disk_errors(out.parent, advice):
        records = {}
        for name in _transformers(folder):
            graphs = aside / name / "onnx"
            graphs.mkdir(parents=True)
            records[name] = _run(folder / name, graphs, python, progress=progress)
        for path in _copied(folder):
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / path, aside / path)
        record = {"format": _FORMAT, "source_sha256": source_sha256(folder), "transformers": records, "files": checksums(aside)}
        (aside / RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")
        aside.chmod(0o755)  # a temporary folder is private to its owner, but this one may be copied
        install(aside, out, lambda: _is_complete(out), replaces=replaces)
    return out


def _without_torch(name: str) -> str:
    return (
        f"{name} has weights but no ONNX file, and the export needs torch, which is not installed. Install "
        f"{install_hint('export')}, or run `penult export MODEL OUT` or `optimum-cli export onnx --task "
        "feature-extraction -m MODEL OUT` on another machine and copy the folder OUT."
    )


def _check_exportable(folder: Path) -> None:
    names = _transformers(folder)
    if not names:
        raise FileNotFoundError(
            f"{folder} has no transformer to export: it needs a config.json with a model_type, and model.safetensors or "
            "pytorch_model.bin. Pass a folder that SentenceTransformer.save or save_pretrained wrote."
        )
    for name in _weights(folder):
        check_content(folder / name, "weights")


def _transformers(folder: Path) -> list[str]:
    """Return the relative folders of transformers with weights; "" is the folder itself."""
    return [name for name in _module_folders(folder) if _is_transformer(folder / name)]


def _is_transformer(folder: Path) -> bool:
    return "model_type" in read_object(folder / "config.json") and any(any(folder.glob(pattern)) for pattern in _WEIGHTS)


def _module_folders(folder: Path) -> list[str]:
    """Return the relative folders of all modules, including those inside a Router or an Asym; "" comes first."""
    listed = read_json(folder / "modules.json") or []
    paths = [module.get("path") for module in listed if isinstance(module, dict)] if isinstance(listed, list) else []
    names = ["", *(path for path in paths if isinstance(path, str))]
    for name in tuple(names):
        for file in ("router_config.json", "config.json"):
            types = read_object(folder / name / file).get("types")
            names += [str(PurePath(name) / sub) for sub in types] if isinstance(types, dict) else []
    for name in names:
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts or "\0" in name or len(name) > 255:
            raise ValueError(f"{folder} names the module folder {name[:80]!r}, outside the model. Put the module inside.")
    return list(dict.fromkeys("" if name == "." else name for name in names))


def _weights(folder: Path) -> list[str]:
    """Return the relative paths of the transformers' weight files."""
    paths = [path for name in _transformers(folder) for pattern in _WEIGHTS for path in (folder / name).glob(pattern)]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _copied(folder: Path) -> list[PurePath]:
    """Return the relative paths of the files to copy: all files of the modules except weights that a graph contains."""
    paths: list[PurePath] = []
    for name in _module_folders(folder):
        own = not _is_transformer(folder / name)
        for path in sorted((folder / name).glob("*")):
            weights = path.suffix in _WEIGHT_SUFFIXES or path.name.endswith(".index.json")
            if path.name.startswith(".") or path.name == RECORD or (weights and not (own and path.name in _MODULE_WEIGHTS)):
                continue
            if path.is_file():
                paths.append(path.relative_to(folder))
    return paths


def _run(folder: Path, out: Path, python: str, *, progress: bool) -> Mapping[str, Any]:
    """Export one transformer in a child process, and return the child's answer.

    Raises:
        ValueError: the export failed, or the child ended without an answer.
    """
    env = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(  # noqa: S603 - the caller chooses the interpreter
            # -P: else the script's folder is first on sys.path, and a module of penult may shadow the standard library's
            [python, "-P", str(_WORKER), str(folder.resolve()), str(out.resolve())],
            stdin=subprocess.PIPE,  # kept open: the child ends when this process does
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env=env,
        )
        clock = threading.Timer(_SECONDS, process.kill)
        clock.daemon = True
        clock.start()
        try:
            answer = _answer(process, progress=progress)
            process.wait()
        finally:
            in_time = clock.is_alive()
            clock.cancel()
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        log.seek(0)
        if "done" in answer:
            return dict(answer["done"])
        raise ValueError(answer.get("error") or _failure(folder, python, process.returncode, log.read(), in_time=in_time))


def _answer(process: "subprocess.Popen[str]", *, progress: bool) -> Mapping[str, Any]:
    """Return the child's answer, read line by line; {} if it ends without one."""
    for line in process.stdout or ():
        try:
            message = json.loads(line)
        except ValueError:
            continue  # output of a library that writes to the descriptor directly
        if "progress" not in message:
            return dict(message)
        if progress:
            sys.stderr.write(f"penult: {message['progress']}\n")
            sys.stderr.flush()
    return {}


def _failure(folder: Path, python: str, status: int, log: str, *, in_time: bool) -> str:
    if not in_time:
        return f"The export of {folder} took longer than {_SECONDS / 60:.0f} minutes and was stopped. Use a faster machine."
    if status < 0:
        size = sum(path.stat().st_size for pattern in _WEIGHTS for path in folder.glob(pattern))
        return (
            f"The export of {folder} was killed by signal {-status}, probably because memory ran out: it takes up to eight "
            f"times the {size / 1e9:.1f} GB of the weights. Export it on a larger machine."
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else f"status {status}"
    if "No module named" in last:
        return f"{python} cannot export: {last}. For that Python, install {install_hint('export')}."
    return f"The export of {folder} failed: {last}"
