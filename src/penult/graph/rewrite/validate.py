"""Validate a ModelProto before any other code reads it.

A file that parses may still be incomplete, inconsistent, or never terminate: its author may be careless or hostile. Weights
are not read. What ONNX Runtime rejects itself is not checked here.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from penult.graph.find.flow import every_node, read_by
from penult.graph.rewrite.loops import MOST_RUNS, EndlessError, Work, work_of

# The largest known export, 80 layers of decomposed operators, has about 16,000. `Flow` stores dependencies as bit sets, whose
# size is quadratic in the number of nodes: 0.4 GB for 50,000.
_MOST_NODES = 50_000
_Key = tuple[str, str]


def check_whole(model: ModelProto, path: Path, real: Mapping[str, Path]) -> None:
    """Raise for a model that parses but is not a complete numeric graph.

    Args:
        model: loaded without its external data.
        path: its file, for error messages.
        real: external data location in the graph -> real file.

    Raises:
        ValueError: a part is missing, a name is not valid UTF-8, nodes form a cycle or produce the same tensor, there are more
            nodes than in any transformer, or external data is not at the stated location.
    """
    graph = model.graph
    if not graph.node or not graph.output:
        raise ValueError(f"{path} has no graph. Download it again, or pass another file.")
    if not any(opset.domain in ("", "ai.onnx") for opset in model.opset_import):
        raise ValueError(f"{path} has no ONNX opset version. Download it again.")
    texts = [node.name for node in graph.input if node.type.tensor_type.elem_type == TensorProto.STRING]
    if texts:
        raise ValueError(
            f"{path} contains a tokenizer: its input {texts[0]!r} takes strings. Export the transformer without the tokenizer."
        )
    if not all(isinstance(name, str) for name in _names(model)):
        raise ValueError(f"{path} has a name that is not valid UTF-8. Download it again.")
    _check_size(model, path)
    _check_order(graph, path)
    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            _check_data(tensor, path, real)


def check_inner(model: ModelProto, path: Path) -> None:
    """Raise for external data outside the graph's own initializers, because its location is not checked.

    Raises:
        ValueError: a constant, a sparse tensor or a subgraph has its data in another file.
    """
    for tensor in _inner_tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ValueError(
                f"{path} has external data for {tensor.name!r}, a constant or a tensor of a subgraph. Save the graph with "
                "external data for its initializers only."
            )


def _names(model: ModelProto) -> Iterator[object]:
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    for tensor in graph.initializer:
        yield tensor.name
        yield from (text for entry in tensor.external_data for text in (entry.key, entry.value))
    yield from (opset.domain for opset in model.opset_import)
    for function in model.functions:
        yield from (function.name, function.domain, *function.input, *function.output)
    bodies = [graph.node, *(function.node for function in model.functions)]
    for node in (inner for body in bodies for inner in every_node(body)):
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def _check_size(model: ModelProto, path: Path) -> None:
    """Raise for a graph with more nodes or node runs than a transformer, counted with local functions inlined."""
    bodies: dict[_Key, list[FunctionProto]] = {}  # several may differ only in their overload
    for function in model.functions:
        bodies.setdefault((function.domain, function.name), []).append(function)
    calls = {
        key: Counter(_key(node) for function in functions for node in every_node(function.node))
        for key, functions in bodies.items()
    }
    try:
        order = list(TopologicalSorter({key: bodies.keys() & called for key, called in calls.items()}).static_order())
    except CycleError as error:
        raise ValueError(f"{path} has a local function that calls itself. Download it again.") from error
    sizes: dict[_Key, int] = {}
    for key in order:
        sizes[key] = sum(count * sizes.get(called, 1) for called, count in calls[key].items())
    size = sum(sizes.get(_key(node), 1) for node in every_node(model.graph.node))
    if size > _MOST_NODES:
        raise ValueError(f"{path} has {size:,} nodes; at most {_MOST_NODES:,} are allowed.")
    work: dict[_Key, Work] = {}
    try:
        for key in order:
            works = [work_of(function, work) for function in bodies[key]]
            work[key] = Work(sum(each.runs for each in works), max(each.depth for each in works))
        runs = work_of(model.graph, work).runs
    except EndlessError as error:
        raise ValueError(f"{path} {error}.") from error
    if runs > MOST_RUNS:
        raise ValueError(f"{path} has loops that run {runs:,} nodes; at most {MOST_RUNS:,} are allowed.")


def _key(node: NodeProto) -> _Key:
    return node.domain, node.op_type


def _check_order(graph: GraphProto, path: Path) -> None:
    counts = Counter({value.name for value in (*graph.input, *graph.initializer)})
    counts.update(output for node in graph.node for output in node.output if output)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"{path} has several nodes that output the tensor {twice[0]!r}. Download it again.")
    made_by = {output: i for i, node in enumerate(graph.node) for output in node.output if output}
    needs = {i: {made_by[name] for name in read_by(node) if name in made_by} for i, node in enumerate(graph.node)}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        node = graph.node[error.args[1][0]]
        raise ValueError(
            f"{path} has a cycle: the {node.op_type} node {node.name!r} depends on its own output. Download it again."
        ) from error


def _check_data(tensor: TensorProto, path: Path, real: Mapping[str, Path]) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    place = real.get(entries.get("location", ""))
    start, length = entries.get("offset", "0"), entries.get("length", "0")
    if place is None or not (start.isdecimal() and length.isdecimal()):
        raise ValueError(f"{path} has no location for the external weights {tensor.name!r}. Download it again.")
    size = place.stat().st_size
    if int(start) + int(length) > size:
        raise ValueError(
            f"{place} is incomplete: it has {size} bytes, and the weights {tensor.name!r} of {path} end at byte "
            f"{int(start) + int(length)}. Download it again."
        )


def _inner_tensors(graph: GraphProto, *, outermost: bool = True) -> Iterator[TensorProto]:
    if not outermost:
        yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    yield from (attribute.t, *attribute.tensors)
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)
    for graph in (attribute.g, *attribute.graphs):
        yield from _inner_tensors(graph, outermost=False)
