"""Nodes on which no output depends are removed, and nothing else."""

import numpy as np
from graph_kit import Draft, run
from onnx import TensorProto, helper

from penult.graph.rewrite.prune import drop_unread


def test_unused_nodes_are_removed():
    """Of two branches of which one reaches the output, its nodes, weights and annotations stay, and so do all inputs."""
    d = Draft()
    kept = d.embed()
    lost = d.norm(d.embed())
    model = d.model(kept)
    model.graph.input.append(helper.make_tensor_value_info("unread", TensorProto.FLOAT, [1]))
    model.graph.value_info.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (kept, lost))
    given = {"input_ids": np.array([[3, 1, 4]]), "unread": np.zeros(1)}
    whole = run(model, given)
    drop_unread(model.graph)
    assert [list(node.output) for node in model.graph.node] == [[kept]]
    assert [tensor.name for tensor in model.graph.initializer] == ["w0"]
    assert [info.name for info in model.graph.value_info] == [kept]
    assert [value.name for value in model.graph.input] == ["input_ids", "unread"]
    assert np.array_equal(run(model, given), whole)
