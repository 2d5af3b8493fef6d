"""Small real models, made in memory: a BERT with seeded weights, a WordPiece tokenizer, the files of a Hub folder."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "the a cat dog sat on mat query passage of and is in bright moon river stone eats fish search document".split()
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789.,:!?")
VOCABULARY = SPECIALS + WORDS + LETTERS + ["##" + letter for letter in LETTERS]


@dataclass(frozen=True)
class Size:
    """H, layers, heads, positions of a tiny BERT."""

    hidden: int = 32
    layers: int = 2
    heads: int = 4
    positions: int = 128


def bert_weights(size: Size = Size(), seed: int = 0) -> dict[str, np.ndarray]:
    """Draw the weights of a BERT; matrices have the shape (in, out), under `NAME.weight_T`."""
    rng = np.random.default_rng(seed)

    def matrix(rows, columns):
        return (rng.standard_normal((rows, columns)) * 0.25).astype(np.float32)

    h, found = size.hidden, {}
    for table, rows in (("word", len(VOCABULARY)), ("position", size.positions), ("token_type", 2)):
        found[f"embeddings.{table}_embeddings.weight"] = matrix(rows, h) * 4
    norms = ["embeddings.LayerNorm"]
    for layer in range(size.layers):
        p = f"encoder.layer.{layer}."
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            found[f"{p}{name}.weight_T"], found[f"{p}{name}.bias"] = matrix(h, h), matrix(1, h)[0]
        found[f"{p}intermediate.dense.weight_T"], found[f"{p}intermediate.dense.bias"] = matrix(h, 4 * h), matrix(1, 4 * h)[0]
        found[f"{p}output.dense.weight_T"], found[f"{p}output.dense.bias"] = matrix(4 * h, h), matrix(1, h)[0]
        norms += [f"{p}attention.output.LayerNorm", f"{p}output.LayerNorm"]
    for norm in norms:
        found[f"{norm}.weight"], found[f"{norm}.bias"] = 1 + matrix(1, h)[0] / 4, matrix(1, h)[0] / 4
    return found


class _Graph:
    def __init__(self):
        self.nodes, self.constants, self.names = [], {}, 0

    def op(self, kind, *inputs, name=None, **attributes):
        self.names += 1
        output = name or f"t{self.names}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"{kind}_{self.names}", **attributes))
        return output

    def const(self, name, array):
        self.constants[name] = np.asarray(array)
        return name


def bert_graph(weights: dict[str, np.ndarray], heads: int, *, mlm_head: bool = False) -> onnx.ModelProto:
    """Build the graph: `last_hidden_state`, or `logits` behind a masked-language-model head with a tied decoder."""
    g, h = _Graph(), weights["embeddings.LayerNorm.weight"].shape[0]
    layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder"))

    def w(name):
        return g.const(name, weights[name])

    def linear(x, name):
        return g.op("Add", g.op("MatMul", x, w(f"{name}.weight_T")), w(f"{name}.bias"))

    def norm(x, name, output=None):
        return g.op("LayerNormalization", x, w(f"{name}.weight"), w(f"{name}.bias"), name=output, axis=-1, epsilon=1e-12)

    def gelu(x):
        half, root, one = g.const("half", np.float32(0.5)), g.const("root", np.float32(2**0.5)), g.const("one", np.float32(1))
        return g.op("Mul", g.op("Mul", x, half), g.op("Add", g.op("Erf", g.op("Div", x, root)), one))

    ids = g.op("Gather", w("embeddings.word_embeddings.weight"), "input_ids")
    types = g.op("Gather", w("embeddings.token_type_embeddings.weight"), "token_type_ids")
    length = g.op("Gather", g.op("Shape", "input_ids"), g.const("axis1", np.int64(1)))
    range_ = g.op("Range", g.const("zero", np.int64(0)), length, g.const("step", np.int64(1)))
    places = g.op("Gather", w("embeddings.position_embeddings.weight"), range_)
    x = norm(g.op("Add", g.op("Add", ids, types), places), "embeddings.LayerNorm")
    mask = g.op("Cast", g.op("Unsqueeze", "attention_mask", g.const("axes12", np.array([1, 2]))), to=TensorProto.FLOAT)
    low = g.const("low", np.float32(np.finfo(np.float32).min))
    mask = g.op("Mul", g.op("Sub", g.const("one", np.float32(1)), mask), low)
    split, merge = g.const("split", np.array([0, 0, heads, h // heads])), g.const("merge", np.array([0, 0, h]))
    scale = g.const("scale", np.float32((h // heads) ** -0.5))
    for layer in range(layers):
        p = f"encoder.layer.{layer}."
        q, k, v = (g.op("Reshape", linear(x, f"{p}attention.self.{n}"), split) for n in ("query", "key", "value"))
        q, v = (g.op("Transpose", y, perm=[0, 2, 1, 3]) for y in (q, v))
        scores = g.op("Mul", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 3, 1])), scale)
        mixed = g.op("MatMul", g.op("Softmax", g.op("Add", scores, mask), axis=-1), v)
        mixed = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), merge)
        x = norm(g.op("Add", linear(mixed, f"{p}attention.output.dense"), x), f"{p}attention.output.LayerNorm")
        wide = gelu(linear(x, f"{p}intermediate.dense"))
        last = "last_hidden_state" if layer == layers - 1 and not mlm_head else None
        x = norm(g.op("Add", linear(wide, f"{p}output.dense"), x), f"{p}output.LayerNorm", last)
    width = h
    if mlm_head:
        rng = np.random.default_rng(1)
        g.const("cls.transform", rng.standard_normal((h, h)).astype(np.float32))
        g.const("cls.norm.weight", np.ones(h, np.float32))
        g.const("cls.norm.bias", np.zeros(h, np.float32))
        y = gelu(g.op("MatMul", x, "cls.transform"))
        y = g.op("LayerNormalization", y, "cls.norm.weight", "cls.norm.bias", axis=-1)
        width = weights["embeddings.word_embeddings.weight"].shape[0]
        g.op("MatMul", y, g.op("Transpose", "embeddings.word_embeddings.weight", perm=[1, 0]), name="logits")
    names = ("input_ids", "attention_mask", "token_type_ids")
    graph = helper.make_graph(
        g.nodes,
        "bert",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names],
        [
            helper.make_tensor_value_info(
                "logits" if mlm_head else "last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", width]
            )
        ],
        [numpy_helper.from_array(array, name) for name, array in g.constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tokenizer() -> Tokenizer:
    """Make a BERT tokenizer over the tiny vocabulary, with padding and truncation switched on as some files have them."""
    made = Tokenizer(models.WordPiece({token: i for i, token in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    made.add_special_tokens(SPECIALS)
    made.enable_padding(length=16, pad_id=0, pad_token="[PAD]")
    made.enable_truncation(16)
    return made


def tiny_model(
    folder: Path,
    *,
    pooling: str | None = "mean",
    normalize: bool = True,
    mlm_head: bool = False,
    max_length: int = 64,
    prompts: dict[str, str] | None = None,
    size: Size = Size(),
) -> Path:
    """Write a whole model folder as sentence-transformers lays it out; `pooling=None` leaves out its modules."""
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    onnx.save(bert_graph(bert_weights(size), size.heads, mlm_head=mlm_head), folder / "onnx" / "model.onnx")
    tokenizer().save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"pad_token": "[PAD]", "cls_token": "[CLS]", "model_max_length": 512})
    write_json(
        folder / "config.json", {"max_position_embeddings": size.positions, "hidden_size": size.hidden, "pad_token_id": 0}
    )
    if pooling is not None:
        kinds = ["Transformer", "Pooling"] + ["Normalize"] * normalize
        paths = ["", "1_Pooling", "2_Normalize"]
        listed = [{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in zip(kinds, paths, strict=False)]
        write_json(folder / "modules.json", listed)
        flags = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "last": "lasttoken"}
        write_json(
            folder / "1_Pooling" / "config.json", {f"pooling_mode_{flag}": kind == pooling for kind, flag in flags.items()}
        )
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length})
    if prompts is not None:
        write_json(folder / "config_sentence_transformers.json", {"prompts": prompts})
    return folder


def write_json(path: Path, value: object) -> None:
    """Write a configuration file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
