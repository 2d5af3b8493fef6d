"""Replicas of popular models give the vectors of sentence-transformers, or an error that names the reason.

`data/gallery` has 30 of them with their vectors (its README says how they were made); if the whole gallery, or other cases
of public bug reports, are in a folder next to the repository, they are tested too.
"""

import importlib.util
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import data_folder

from penult import Embedder

OWN = Path(__file__).parent / "data" / "gallery"
NEEDS_TORCH = ("dense-pickle", "safetensors-only")
# The card of nomic-embed-text-v1.5 puts a layer norm before the leading values, which no file of the model says: it is asked for.
BY_CARD = {"card_dim16": {"layer_norm": True}}
REPORTED = ("02", "03", "04", "06", "08", "10", "27", "28", "29", "30", "35")


def calls(root: Path) -> list[tuple[Path, dict]]:
    """List (folder, call) of a gallery."""
    actual = []
    for path in sorted(root.glob("*/manifest.json")):
        actual += [(path.parent, call) for call in json.loads(path.read_text(encoding="utf-8"))["calls"]]
    return actual


def name(value: object) -> str:
    if isinstance(value, Path):
        return value.name
    return f"{value['key']}-{value['role']}-{json.dumps(value['load'])[:40]}" if isinstance(value, dict) else str(value)


def check(folder: Path, call: dict) -> None:
    """Compare one call with its expected vectors."""
    load = dict(call["load"]) | BY_CARD.get(call["key"], {})
    tolerance, graph, before = load.pop("tol", 1e-5), load.pop("file", None), load.pop("prepend", "")
    arrays = np.load(folder / "expected.npz")
    wanted = [arrays[key] for key in call["key"].split("|") if key in arrays.files]
    texts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["texts"]
    model = folder / graph if graph else folder
    if folder.name in NEEDS_TORCH and importlib.util.find_spec("torch") is None:
        with pytest.raises(FileNotFoundError, match=r"penult\[export\]"):
            Embedder.load(model, **load)
        return
    if call.get("expect") == "refuse" and (not wanted or ("pooling" not in load and folder.name == "qdrant-root")):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            Embedder.load(model, **load)
        assert str(folder) in str(caught.value)
        assert len(str(caught.value)) < 700
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some texts are meant to be cut
        with Embedder.load(model, threads=1, **load) as embedder:
            vectors = embedder.embed([before + text for text in texts], role=call["role"])
    known = [(array, ~np.isnan(array).any(1)) for array in wanted if array.shape == vectors.shape]
    assert known, f"vectors of {vectors.shape}, expected {[array.shape for array in wanted]}"
    assert min(np.abs(vectors[rows] - array[rows]).max() for array, rows in known) <= tolerance


@pytest.mark.parametrize(("folder", "call"), calls(OWN), ids=name)
def test_the_gallery(folder, call):
    """Each call gives sentence-transformers' vectors to 1e-5, or an error if the model has no text vector."""
    check(folder, call)


def test_the_whole_gallery(shared):
    """The same for all 48 replicas, quantized and half-precision variants too."""
    wrong = []
    for folder, call in calls(shared / "gallery"):
        try:
            check(folder, call)
        except AssertionError as error:
            wrong.append(f"{folder.name} {call['key']} {call['load']}: {str(error)[:200]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("number", [number for number in REPORTED if any(data_folder("bugcases").glob(f"{number}-*"))])
def test_cases_of_public_reports(number):
    """Small inputs that once failed: correct vectors, or an error if a file is missing or torch is needed."""
    cases = sorted(data_folder("bugcases").glob(f"{number}-*/case-*"))
    assert cases
    torch = importlib.util.find_spec("torch") is not None
    refused = {"case-G13-pooling-folder-missing": "1_Pooling", "case-G9-tokenizer-lfs-pointer": "git lfs pull"}
    if not torch:
        refused["case-M11-dense-bin-only"] = "penult[export]"
    for case in cases:
        wanted = json.loads((case / "expected.json").read_text(encoding="utf-8"))
        if case.name in refused:
            with pytest.raises((ValueError, FileNotFoundError)) as caught:
                Embedder.load(case / "model")
            assert refused[case.name] in str(caught.value)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Embedder.load(case / "model", threads=1) as embedder:
                vectors = embedder.embed(wanted["texts"])
        # Its expected vector of the long text was made of the first 64 ids, without the [SEP] that truncation keeps.
        rows = [row for row in range(len(vectors)) if (case.name, row) != ("case-M32-full-export-modules-without-weights", 4)]
        np.testing.assert_allclose(vectors[rows], np.array(wanted["vectors"])[rows], rtol=0, atol=2e-5, err_msg=case.name)
