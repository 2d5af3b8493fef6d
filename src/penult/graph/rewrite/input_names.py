"""Rename a graph's inputs to the standard names that the rest of penult uses.

The role of an input follows from its name or, if the name is not informative, from its use in the graph: ids are looked up in a
table, a mask is added to attention scores. If two inputs match one role, both keep their names, and building the model inputs
raises an error that lists them. Weights are not read.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from penult.graph.find.flow import ACTIVE, FLOATS, MOVEMENT, TRANSPARENT, Flow, subgraphs
from penult.graph.find.graph_index import GraphIndex

_IDS, _MASK, _TYPES = "input_ids", "attention_mask", "token_type_ids"
# fmt: off
_NAMES: Mapping[str, frozenset[str]] = {
    _IDS: frozenset((
        "ids", "input_id", "input_word_ids", "word_ids", "token_ids", "input_token_ids", "tokens", "input_tokens", "src_tokens",
        "text", "texts", "input_text", "text_ids", "text_tokens", "tokenized_text", "tokens_tensor",
    )),
    _MASK: frozenset((
        "attn_mask", "attention_masks", "input_mask", "input_masks", "mask", "masks", "padding_mask", "pad_mask", "token_mask",
        "text_mask", "input_attention_mask", "attention", "key_padding_mask",
    )),
    _TYPES: frozenset((
        "token_type_id", "token_types", "token_type", "segment_ids", "segment_id", "segments", "segment", "type_ids",
        "input_type_ids", "input_segment_ids", "segments_tensor",
    )),
    "position_ids": frozenset(("position_id", "positions", "position", "pos_ids", "input_positions", "input_position_ids")),
    "offsets": frozenset(("offset",)),
}
# Words that do not indicate a role, as in `input_1`, `args_0`, `serving_default_x`.
_EMPTY_WORDS = frozenset((
    "input", "inputs", "in", "arg", "args", "x", "y", "tensor", "placeholder", "onnx", "serving", "default", "model", "",
))
# fmt: on
_PREFIXES = ("serving_default_", "encoder_", "text_", "model_")
_INTEGERS = frozenset((TensorProto.INT64, TensorProto.INT32, TensorProto.INT16, TensorProto.INT8))
_MASKS = _INTEGERS | FLOATS | {TensorProto.BOOL, TensorProto.UINT8}
_MOST_TYPES = 4  # rows of a token type table; vocabularies and position tables have more
_SHIFT = 1e3  # additive masks of attention scores are larger in magnitude, other additions smaller
_Pair = tuple[float, float]


def name_inputs(index: GraphIndex) -> None:
    """Rename the inputs of a graph to `input_ids`, `attention_mask`, `token_type_ids`, `position_ids`, `offsets`.

    1. `:0`, `serving_default_` and similar affixes are removed, also from inputs without a role.
    2. An informative name determines the role: `segment_ids`, `input_mask`. A mask that is 1 on padding has no role.
    3. The only integer input with two axes and without a role is `input_ids`, whatever its name.
    4. Other names: an input looked up in a table of at most 4 rows is `token_type_ids`, one looked up in a longer table is
       `input_ids`, and one that hides tokens from attention where it is 0 is `attention_mask`.
    5. If two inputs match one role, or an output already has the name, the inputs keep their names.

    Inner tensors that already have an input's new name are renamed. Outputs of the graph keep their names.
    """
    graph = index.model.graph
    weights = {tensor.name for tensor in graph.initializer} | {sparse.values.name for sparse in graph.sparse_initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    outputs = {value.name for value in graph.output}
    taken = {value.name for value in inputs}
    for old, new in _new_names(index, inputs).items():
        if new not in taken and new not in outputs:
            _rename_input(graph, old, new)
            taken = (taken - {old}) | {new}
            index.changed()


def _new_names(index: GraphIndex, inputs: list[ValueInfoProto]) -> dict[str, str]:
    """Return the new names: old -> new, for each input to rename."""
    names = {value.name: _plain(value.name) for value in inputs}
    packed = any(_rank(value) == 1 and _matches("offsets", names[value.name]) for value in inputs)
    roles: dict[str, str] = {}
    for role in _NAMES:
        fitting = [value for value in inputs if _fits(value, role, packed=packed)]
        exact = [value.name for value in fitting if names[value.name] == role]
        candidates = exact or [value.name for value in fitting if _matches(role, names[value.name])]
        if role in {value.name for value in inputs}:
            candidates = [role]
        if role == _MASK:
            candidates = [name for name in candidates if names[name] == role or _may_be_mask(index, name)]
        if len(candidates) == 1:
            roles[candidates[0]] = role
    claimed = set(roles) | {name for name, plain in names.items() if any(_matches(role, plain) for role in _NAMES)}
    _add_by_use(index, [value for value in inputs if value.name not in claimed], roles)
    renamed = {old: new for old, new in roles.items() if old != new}
    for name in names:
        base = re.sub(r":\d+$", "", name)
        if name not in roles and base != name and base:
            renamed[name] = base
    return renamed


def _may_be_mask(index: GraphIndex, name: str) -> bool:
    """Return whether a mask is or may be 1 on tokens; for a mask named after padding, the graph must show it."""
    kept = _kept_at_one(index, name)
    return kept is True or (kept is None and "pad" not in name.lower())


def _plain(name: str) -> str:
    """Return a name in snake case, without the affixes that exporters add: `serving_default_inputIds:0`."""
    name = re.sub(r"[:.]\d+$", "", name.rpartition("/")[2] or name)
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("-", "_").replace(".", "_").replace(" ", "_")
    for prefix in _PREFIXES:
        rest = name.removeprefix(prefix)
        if rest != name and any(_matches(role, rest) for role in _NAMES):
            return rest
    return name


def _matches(role: str, plain: str) -> bool:
    return plain == role or plain in _NAMES[role]


def _fits(value: ValueInfoProto, role: str, *, packed: bool) -> bool:
    """Return whether an input has the type and rank of a role; an unknown rank matches any."""
    kind, rank = value.type.tensor_type.elem_type, _rank(value)
    if role == _MASK:
        return kind in _MASKS and rank in {None, 2, 3, 4}
    if role == "offsets" or (role == _IDS and packed):
        return kind in _INTEGERS and rank == 1
    return kind in _INTEGERS and rank in ({None, 1, 2, 3} if role == "position_ids" else {None, 2})


def _rank(value: ValueInfoProto) -> int | None:
    kind = value.type.tensor_type
    return len(kind.shape.dim) if kind.HasField("shape") else None


def _add_by_use(index: GraphIndex, rest: list[ValueInfoProto], roles: dict[str, str]) -> None:
    """Add roles, by their use in the graph, for inputs whose name determines none."""
    pairs = [value.name for value in rest if value.type.tensor_type.elem_type in _INTEGERS and _rank(value) == 2]
    vacant = {_IDS, _MASK, _TYPES} - set(roles.values())
    if _IDS in vacant and len(pairs) == 1:
        roles[pairs[0]] = _IDS
        return
    silent = [value.name for value in rest if _rank(value) == 2 and _says_nothing(value.name)]
    if not vacant or not silent:
        return
    tables = _tables(index.flow, {value.name for value in rest})
    looked_up = [name for name in pairs if tables[name]]
    long = [name for name in looked_up if max(tables[name]) > _MOST_TYPES]
    short = [name for name in looked_up if max(tables[name]) <= _MOST_TYPES]
    unused = [value.name for value in rest if _rank(value) == 2 and value.name not in looked_up]
    masks = unused if len(unused) == 1 and unused[0] in silent and _kept_at_one(index, unused[0]) else []
    for role, candidates in ((_IDS, long), (_TYPES, short), (_MASK, masks)):
        if role in vacant and len(candidates) == 1 and candidates[0] in silent:
            roles[candidates[0]] = role


def _says_nothing(name: str) -> bool:
    """Return whether a name is not informative; an operator's name only shows which node reads the input."""
    words = re.split(r"[^A-Za-z]+", name)
    return all(word.lower() in _EMPTY_WORDS or onnx.defs.has(word) for word in words)


def _tables(flow: Flow, inputs: set[str]) -> defaultdict[str, list[int]]:
    """Return, for each input, the numbers of rows of the tables that its values index."""
    origin = {name: name for name in inputs}
    tables: defaultdict[str, list[int]] = defaultdict(list)
    for node, op, reads in zip(flow.nodes, flow.op, flow.reads, strict=True):
        if op in TRANSPARENT | MOVEMENT and reads and reads[0] in origin:
            origin.update(dict.fromkeys(node.output, origin[reads[0]]))
        elif "Gather" in node.op_type and len(reads) > 1 and reads[1] in origin and len(flow.dims.get(reads[0], ())) >= 2:
            tables[origin[reads[1]]].append(flow.dims[reads[0]][0])
        elif "EmbedLayerNorm" in node.op_type:
            # Ids, segment ids and their tables; an empty name is an omitted input.
            for place, table in ((0, 2), (1, 4)):
                if len(node.input) > table and node.input[place] in origin and flow.dims.get(node.input[table]):
                    tables[origin[node.input[place]]].append(flow.dims[node.input[table]][0])
    return tables


def _rename_input(graph: GraphProto, old: str, new: str) -> None:
    """Rename an input in a graph and its subgraphs; first rename a tensor that already has the new name."""
    taken = set(_every_name(graph))
    if new in taken:
        free = f"{new}/inner"
        while free in taken:
            free += "_"
        _replace(graph, new, free)
    _replace(graph, old, new)
    if old in {value.name for value in graph.output}:  # an input that is also an output keeps its name there
        graph.node.append(NodeProto(op_type="Identity", input=[new], output=[old]))


def _every_name(graph: GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.output, *graph.initializer))
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    for node in graph.node:
        yield from node.input
        yield from node.output
        for inner in subgraphs(node):
            yield from _every_name(inner)


def _replace(graph: GraphProto, old: str, new: str) -> None:
    """Replace a name everywhere in a graph and its subgraphs, except in the outputs of the outermost graph."""
    _replace_values((*graph.input, *graph.value_info, *graph.initializer), old, new)
    _replace_values((sparse.values for sparse in graph.sparse_initializer), old, new)
    for annotation in graph.quantization_annotation:
        if annotation.tensor_name == old:
            annotation.tensor_name = new
    for node in graph.node:
        for names in (node.input, node.output):
            if old in names:
                names[:] = [new if name == old else name for name in names]
        for inner in subgraphs(node):
            _replace_values(inner.output, old, new)
            _replace(inner, old, new)


def _replace_values(values: Iterable[ValueInfoProto | TensorProto], old: str, new: str) -> None:
    for value in values:
        if value.name == old:
            value.name = new


def _kept_at_one(index: GraphIndex, mask: str) -> bool | None:
    """Return whether tokens are attended to where a mask is 1 rather than where it is 0; None if the graph does not show it.

    The values for a mask of 0 and of 1 are propagated through element-wise operators until they reach other data: attention
    scores, where a large negative value hides tokens, or data that they multiply.
    """
    flow = index.flow
    scalars = _scalars(index.model, flow)
    pairs: dict[str, _Pair] = {mask: (0.0, 1.0)}
    for node, op, reads in zip(flow.nodes, flow.op, flow.reads, strict=True):
        if pairs.keys().isdisjoint(reads):
            continue
        operands = [pairs.get(name) or scalars.get(name) for name in node.input if name]
        value: _Pair | None = None
        if op in TRANSPARENT | MOVEMENT | {"ReduceSum"}:  # the number of tokens, an input of some fused operators
            value = pairs.get(reads[0])
        elif "EmbedLayerNorm" in node.op_type:
            pairs.update(dict.fromkeys(node.output[1:2], pairs[next(name for name in reads if name in pairs)]))
        elif op in _FOLDED and all(operands):
            value = _fold(op, [operand for operand in operands if operand])
        elif (verdict := _verdict(op, operands, active=any(flow.bits.get(name, 0) & ACTIVE for name in reads))) is not None:
            return verdict
        elif op in {"And", "Or", "Max", "Min", "Mul"} or (op == "Where" and reads[0] not in pairs):
            value = next(pairs[name] for name in reads if name in pairs)
        if value is not None and not np.isnan(value).any():
            pairs.update(dict.fromkeys(node.output, value))
    return None


def _verdict(op: str, operands: list[_Pair | None], *, active: bool) -> bool | None:
    """Return whether a mask keeps tokens at 1, from a node that combines it with other data; `active`: with token data."""
    pair = next((operand for operand in operands if operand and operand[0] != operand[1]), None)
    if pair is None:
        return None
    zero, one = pair
    if op == "Where" and len(operands) == 3 and operands[0] == pair:
        # Scores where the condition holds and a large negative value elsewhere, or vice versa.
        hidden = [operand is not None and max(operand) <= -_SHIFT for operand in operands[1:]]
        if hidden[0] == hidden[1]:
            return None
        return bool(one) == hidden[1] if bool(one) != bool(zero) else None
    if op in {"Add", "Sum"} or (op == "Sub" and operands[0] == pair):
        return one > zero if abs(one - zero) >= _SHIFT else None
    # Fused attention, standard or custom, takes 1 for tokens to attend to, or adds a large negative value.
    return one > zero if active and ((op == "Mul" and {zero, one} == {0.0, 1.0}) or op in {"", "Attention"}) else None


def _scalars(model: ModelProto, flow: Flow) -> dict[str, _Pair]:
    """Return the constants with a single value, and the tensors that repeat, cast or reshape one."""
    scalars = {tensor.name: pair for tensor in model.graph.initializer if (pair := _pair_of(tensor)) is not None}
    for node, op, reads in zip(flow.nodes, flow.op, flow.reads, strict=True):
        attribute = node.attribute[0] if node.attribute else None
        pair = None
        if op in TRANSPARENT | {"Expand"} and reads:
            pair = scalars.get(reads[0])
        elif op == "ConstantOfShape" and attribute is None:
            pair = (0.0, 0.0)
        elif op in {"Constant", "ConstantOfShape"} and attribute is not None:
            if attribute.name == "value":
                pair = _pair_of(attribute.t)
            elif attribute.name in {"value_float", "value_int"}:
                pair = (float(attribute.f or attribute.i),) * 2
        if pair is not None:
            scalars.update(dict.fromkeys(filter(None, node.output), pair))
    return scalars


def _pair_of(tensor: TensorProto) -> _Pair | None:
    """Return the value of a scalar tensor twice: it is the same for a mask of 0 and of 1."""
    if any(size != 1 for size in tensor.dims) or tensor.data_location == TensorProto.EXTERNAL:
        return None
    try:
        value = float(numpy_helper.to_array(tensor).reshape(-1)[0])
    except (ValueError, TypeError, KeyError, IndexError):
        return None  # not a number; ONNX Runtime reports it
    return value, value


def _fold(op: str, operands: list[_Pair]) -> _Pair | None:
    """Compute an operator on the values for a mask of 0 and of 1."""
    try:
        with np.errstate(all="ignore"):
            zero, one = (float(_FOLDED[op](*(operand[i] for operand in operands))) for i in (0, 1))
    except TypeError:  # wrong number of operands
        return None
    return zero, one


_FOLDED: Mapping[str, Callable[..., float]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Neg": np.negative,
    "Abs": np.abs,
    "Log": np.log,
    "Not": np.logical_not,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Max": np.maximum,
    "Min": np.minimum,
    "Where": lambda condition, chosen, other: chosen if condition else other,
}
