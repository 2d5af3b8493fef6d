"""Recorded answers of DeepSparse 1.8.0, compared with Pipeline. Not every checkout has the recordings: see `shared`."""

import ast
import json
import re

import numpy as np
import onnx
import pytest
from models import Size, tiny_model

from penult import Pipeline

RUNS = ["a_none_s32", "a_name2_s32", "a2_last_s32", "a2_last_s128"]
STRATEGIES = ["per_token", "reduce_mean", "reduce_max", "cls_token"]
# Both engines round differently: their largest difference at fp32 was measured as 1.3e-5 on a text's own rows and 4.5e-4
# on rows of padding, which attend to everything with nothing to say.
OWN, PADDING = 5e-5, 1e-3


@pytest.fixture(scope="module")
def manifest(shared):
    return json.loads((shared / "golden" / "manifest.json").read_text())


def layer_of(run, minilm):
    """Return the layer of a recorded run; a node's name becomes the name of the same tensor in our own export."""
    layer = run["emb_extraction_layer"]
    if not isinstance(layer, str):
        return layer
    weight = re.sub(r"^/(.*)/LayerNorm/Add_1$", r"\1", layer).replace("/", ".") + ".LayerNorm.weight"
    graph = onnx.load(minilm / "onnx" / "model.onnx", load_external_data=False).graph
    return next(node.name for node in graph.node if weight in node.input)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", RUNS)
def test_the_recorded_vectors(minilm, shared, manifest, name, strategy):
    """Every recorded vector is reproduced: to 5e-5 for tokens, to 1e-3 for rows of padding."""
    run = manifest["runs"][name]
    with np.load(shared / "golden" / run["file"]) as recorded:
        expected, own = recorded[strategy], recorded["attention_mask"].astype(bool)
    with Pipeline.create(
        task="transformers_embedding_extraction",
        model_path=minilm,
        emb_extraction_layer=layer_of(run, minilm),
        extraction_strategy=strategy,
        sequence_length=run["sequence_length"],
        return_numpy=True,
    ) as pipeline:
        actual = np.stack(pipeline(manifest["texts"]).embeddings)
        one = pipeline(manifest["texts"][0]).embeddings
    assert actual.shape == expected.shape == tuple(run["shapes"][strategy])
    assert np.abs(one[0] - expected[0]).max() <= (PADDING if strategy == "per_token" else OWN)
    apart = np.abs(actual - expected)
    if strategy == "per_token":
        apart = apart.reshape(*own.shape, run["hidden"])
        assert apart[~own].max() <= PADDING
        apart = apart[own]
    assert apart.max() <= OWN


def test_buckets_give_the_recorded_vectors(minilm, shared, manifest):
    """Buckets change the cost of a text and none of its values."""
    with np.load(shared / "golden" / manifest["runs"]["a2_last_s128"]["file"]) as recorded:
        expected = recorded["reduce_mean"]
    with Pipeline.create(
        model_path=minilm, extraction_strategy="reduce_mean", sequence_length=[16, 32, 128], return_numpy=True
    ) as pipeline:
        assert np.abs(np.stack(pipeline(manifest["texts"]).embeddings) - expected).max() <= OWN


_LITERAL = re.compile(
    r"(emb_extraction_layer|extraction_strategy|sequence_length|batch_size|num_cores|scheduler|model_size)=(.+)"
)


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory):
    """A model of the size that the recorded cases used."""
    return tiny_model(tmp_path_factory.mktemp("four"), size=Size(layers=4, positions=512))


def test_arguments_are_accepted_as_recorded(shared, four_layers):
    """Each recorded value of a constructor's argument is accepted if DeepSparse accepted it, and rejected if not."""
    log = json.loads((shared / "golden" / "behaviour_log.json").read_text())
    tried = []
    for case, printed in ((case, printed) for group in log.values() for case, printed in group.items()):
        match = _LITERAL.fullmatch(case)
        if match is None or match[2].startswith(("<", "'/")):
            continue  # an object of DeepSparse's, or a node of the model that was used
        then = "EmbeddingExtractionOutput" in " ".join(printed)
        options = {"extraction_strategy": "reduce_mean", "sequence_length": 16} | {match[1]: ast.literal_eval(match[2])}
        try:
            with Pipeline.create(model_path=four_layers, **options) as pipeline:
                now = len(pipeline("the cat").embeddings) == 1
        except (TypeError, ValueError):
            now = False
        tried.append((case, then, now))
    assert len(tried) > 50
    assert [case for case, then, now in tried if then != now] == []
