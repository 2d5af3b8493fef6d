"""Model folders with other layouts than `models.tiny_model` writes: other modules, routes, graphs with other inputs."""

import json
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import reference
import typer
from models import bert_graph, bert_weights, tiny_model, write_json
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from penult.cli import app

PACKAGE = "sentence_transformers.models."
TEXTS = ["the cat sat on the mat", "", "dog", "a bright moon over the river " * 3, "日本 🎉 naïve", "fish"]


def list_modules(folder, *modules):
    """Write modules.json from (kind, folder) pairs; a kind with a dot is the full class path."""
    entries = [
        {"idx": number, "name": str(number), "path": path, "type": kind if "." in kind else PACKAGE + kind}
        for number, (kind, path) in enumerate(modules)
    ]
    write_json(folder / "modules.json", entries)


def change(path, **values):
    """Set keys of a JSON file."""
    write_json(path, (json.loads(path.read_text()) if path.exists() else {}) | values)


def add_dense(folder, given, made, *, seed=3, bias=True, residual=False, **config):
    """Write a Dense module and return its weight (D, H), its bias (D,) and the weight of its residual (D, H)."""
    rng = np.random.default_rng(seed)
    weight, shift, other = (
        rng.standard_normal(shape).astype(np.float32) / 4 for shape in ((made, given), (made,), (made, given))
    )
    stated = {
        "in_features": given,
        "out_features": made,
        "bias": bias,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    write_json(folder / "config.json", stated | config)
    tensors = {"linear.weight": weight} | ({"linear.bias": shift} if bias else {})
    save_file(tensors | ({"residual.weight": other} if residual else {}), folder / "model.safetensors")
    return weight, shift, other


def states_of(home, text, *, max_length=64, layer=-1, heads=4):
    """Return the oracle's hidden state (T, H) of a text, for a folder of a transformer."""
    weights = reference.read_weights(home / "onnx" / "model.onnx")
    return reference.bert(weights, reference.read_ids(home, text, max_length), heads)[layer]


def vector_of(home, text, *, pooling="mean", max_length=64):
    """Return the oracle's pooled and normalized vector (H,)."""
    return reference.normalize(reference.pool(states_of(home, text, max_length=max_length), pooling))


def difference(found, expected):
    """Return the largest difference of two arrays of one shape."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max(initial=0))


def two_routes(folder, *, router="", seeds=(0, 7), lengths=(64, 64), pooling="mean", normalize=True, prompts=None):
    """Write a model with a transformer for documents and another for queries."""
    for role, seed, length in zip(("document", "query"), seeds, lengths, strict=True):
        home = tiny_model(folder / router / f"{role}_0_Transformer", pooling=None)
        onnx.save(bert_graph(bert_weights(seed=seed), 4), home / "onnx" / "model.onnx")
        write_json(home / "sentence_bert_config.json", {"max_seq_length": length})
    write_json(folder / router / "router_config.json", {
        "types": {f"{role}_0_Transformer": f"{PACKAGE}Transformer" for role in ("query", "document")},
        "structure": {role: [f"{role}_0_Transformer"] for role in ("query", "document")},
        "parameters": {"default_route": "document", "allow_empty_key": True},
    })  # fmt: skip
    list_modules(folder, ("Router", router), ("Pooling", "1_Pooling"), *[("Normalize", "2_Normalize")] * normalize)
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": pooling, "embedding_dimension": 32})
    if prompts is not None:
        write_json(folder / "config_sentence_transformers.json", {"prompts": prompts})
    return folder


def replace_graph(home, graph):
    """Write a transformer's graph."""
    onnx.save(graph, home / "onnx" / "model.onnx")
    return home


def without_mask(graph, *, keep_input=False):
    """Return the graph with attention over padding too; `keep_input` keeps the mask as an unused input."""
    made_by = {node.output[0]: node for node in graph.graph.node}
    for node in graph.graph.node:
        if node.op_type == "Softmax":
            node.input[0] = made_by[node.input[0]].input[0]
    _drop_unread(graph.graph)
    if not keep_input:
        _drop_input(graph.graph, "attention_mask")
    return graph


def with_position_ids(graph, *, table=None):
    """Return the graph with positions as an input, and optionally another position table."""
    name = "embeddings.position_embeddings.weight"
    lookup = next(node for node in graph.graph.node if node.op_type == "Gather" and node.input[0] == name)
    lookup.input[1] = "position_ids"
    graph.graph.input.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch", "sequence"]))
    _drop_unread(graph.graph)
    if table is not None:
        next(i for i in graph.graph.initializer if i.name == name).CopyFrom(numpy_helper.from_array(table, name))
    return graph


def with_task_id(graph, rows, *, rank=0):
    """Return the graph with a row (H,) for each task, added to the word embeddings; with rank 1, each text has a task."""
    words = next(node for node in graph.graph.node if node.input[0] == "embeddings.word_embeddings.weight")
    words.output[0], summed = "words_alone", words.output[0]
    graph.graph.initializer.append(numpy_helper.from_array(rows.astype(np.float32), "tasks"))
    at = list(graph.graph.node).index(words) + 1
    graph.graph.node.insert(at, helper.make_node("Gather", ["tasks", "task_id"], ["task_row"]))
    if rank:
        graph.graph.initializer.append(numpy_helper.from_array(np.array([1]), "second_axis"))
        graph.graph.node.insert(at + 1, helper.make_node("Unsqueeze", ["task_row", "second_axis"], ["task_rows"]))  # (B, 1, H)
    last = "task_rows" if rank else "task_row"
    graph.graph.node.insert(at + 1 + rank, helper.make_node("Add", ["words_alone", last], [summed]))
    graph.graph.input.append(helper.make_tensor_value_info("task_id", TensorProto.INT64, ["batch"][:rank]))
    return graph


def static_model(folder, *, seed=5, dimension=8, prompts=None):
    """Write a static embedding in the folder of a module, and return its table (V, D)."""
    from models import VOCABULARY, tokenizer

    home = folder / "0_StaticEmbedding"
    home.mkdir(parents=True)
    table = np.random.default_rng(seed).standard_normal((len(VOCABULARY), dimension)).astype(np.float32)
    save_file({"embedding.weight": table}, home / "model.safetensors")
    made = tokenizer()
    made.no_truncation()
    made.save(str(home / "tokenizer.json"))
    list_modules(folder, ("StaticEmbedding", "0_StaticEmbedding"))
    if prompts is not None:
        write_json(folder / "config_sentence_transformers.json", {"prompts": prompts})
    return table


def bert(seed=0):
    """Return the graph of a tiny BERT."""
    return bert_graph(bert_weights(seed=seed), 4)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


def command(capsys, *arguments):
    """Run `penult` in this process."""
    with pytest.raises(SystemExit) as caught:
        typer.main.get_command(app).main([*map(str, arguments)], prog_name="penult")
    printed = capsys.readouterr()
    return Outcome(int(caught.value.code or 0), printed.out, printed.err)


def _drop_unread(graph):
    while True:
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        unread = [node for node in graph.node if not read & set(node.output)]
        if not unread:
            return
        for node in unread:
            graph.node.remove(node)


def _drop_input(graph, name):
    graph.input.remove(next(value for value in graph.input if value.name == name))
