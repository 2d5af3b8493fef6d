"""Make the graphs of this folder: tiny transformers with random weights, exported by PyTorch, with torch's hidden states.

Needs torch 2.13, transformers 5.23, onnxscript 0.7 and onnxruntime 1.32, which penult's own environment does not have:
`python make_graphs.py` writes NAME.onnx and NAME.npz (inputs, h0 ... hn) for every entry of GRAPHS beside itself.
"""

import inspect
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
import transformers
from onnxruntime.transformers import optimizer
from torch.nn.functional import gelu, normalize

HERE = Path(__file__).parent
BASE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
BASE |= {"max_position_embeddings": 32, "pad_token_id": 1}
DECODER = BASE | {"num_key_value_heads": 1, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3}
BOTH = {"vocab_size": 40, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24}
BOTH |= {"decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 1}
BOTH |= {"max_position_embeddings": 32, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8}
CONVOLUTION = {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}
DISENTANGLED = {"relative_attention": True, "position_buckets": 4, "pos_att_type": ["p2c", "c2p"], "conv_kernel_size": 3}
BOTTLENECK = {"embedding_size": 8, "intra_bottleneck_size": 8, "num_feedforward_networks": 2, "true_hidden_size": 8}

# name: (model type, configuration, head, exporter)
GRAPHS = {
    "mobilebert-mlm": ("mobilebert", BASE | BOTTLENECK, "MaskedLM", "script"),
    "xlnet": ("xlnet", {"vocab_size": 40, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}, "", "script"),
    "gpt-neox-lm": ("gpt_neox", BASE, "CausalLM", "dynamo"),
    "mistral-opset23": ("mistral", DECODER | {"sliding_window": 4}, "", "opset 23"),
    "bart-seq2seq": ("bart", BOTH, "Seq2SeqLM", "script"),
    "mixtral-lm": ("mixtral", DECODER | EXPERTS, "CausalLM", "script"),
    "opt-lm": ("opt", BASE | {"ffn_dim": 24, "word_embed_proj_dim": 16}, "CausalLM", "script"),
    "deberta-v2-conv-mlm": ("deberta-v2", BASE | DISENTANGLED, "MaskedLM", "script"),
    "lfm2-lm": ("lfm2", DECODER | CONVOLUTION, "CausalLM", "script"),
    "gpt-neo-lm-fused": (
        "gpt_neo",
        BASE | {"num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]},
        "CausalLM",
        "fused",
    ),
    "ernie-attention-pooling": ("ernie", BASE, "pooling", "dynamo"),
    "megatron-bert-splade": ("megatron-bert", BASE, "splade", "script"),
    "nomic-bert-layer-mix": ("nomic_bert", BASE, "mix", "dynamo"),
}


class Model(torch.nn.Module):
    """One model with its head: transformers' own, or one often seen on top."""

    def __init__(self, inner, head, names):
        """Put `head` on `inner`; `names` are the model's arguments in order."""
        super().__init__()
        self.inner, self.head, self.names = inner, head, names
        self.one, self.two = torch.nn.Linear(16, 16), torch.nn.Linear(16, 40)
        self.norm, self.shares = torch.nn.LayerNorm(16), torch.nn.Parameter(torch.randn(3))
        cached = "use_cache" in inspect.signature(inner.forward).parameters or head in {"CausalLM", "Seq2SeqLM"}
        self.options = {"use_cache": False} if cached else {}

    def forward(self, *values):
        """Return the output of the head."""
        inputs = dict(zip(self.names, values, strict=True))
        out = self.inner(**inputs, **self.options, output_hidden_states=self.head == "mix", return_dict=True)
        if self.head == "mix":
            states = (*out.hidden_states[:-1], out.last_hidden_state)
            return self.two(sum(share * state for share, state in zip(self.shares.softmax(0), states, strict=True)))
        if self.head == "":
            return out.last_hidden_state
        if self.head not in {"pooling", "splade"}:
            return out.logits
        states, mask = out.last_hidden_state, inputs["attention_mask"]
        if self.head == "pooling":
            scores = self.two(torch.tanh(self.one(states)))[..., 0].masked_fill(mask == 0, -1e4)
            return normalize((torch.softmax(scores, -1).unsqueeze(1) @ states).squeeze(1), dim=-1)
        scores = torch.log1p(torch.relu(self.two(self.norm(gelu(self.one(states))))))
        return (scores * mask.unsqueeze(-1)).amax(1)


def make(name):
    """Write one graph and its reference."""
    kind, options, head, exporter = GRAPHS[name]
    torch.manual_seed(sum(map(ord, name)))
    auto = getattr(transformers, f"AutoModelFor{head}" if head[:1].isupper() else "AutoModel")
    config = transformers.AutoConfig.for_model(kind, **options)
    inner = auto.from_config(config, attn_implementation="sdpa" if exporter == "opset 23" else "eager")
    if "Mixtral" in type(inner).__name__:
        inner.set_experts_implementation("eager")
    rows = 1 if exporter == "opset 23" else 2  # PyTorch's rotary operator at opset 23 takes one row only
    inputs = {"input_ids": torch.randint(4, 40, (rows, 9)), "attention_mask": torch.ones(rows, 9, dtype=torch.long)}
    inputs["attention_mask"][1:, -3:] = 0
    if head == "Seq2SeqLM":
        inputs["decoder_input_ids"] = torch.randint(4, 40, (rows, 3))
    model = Model(inner, head, list(inputs)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.25) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) * 0.15)
        base = inner.get_encoder() if head == "Seq2SeqLM" else getattr(inner, inner.base_model_prefix, inner)
        given = {k: v for k, v in inputs.items() if not k.startswith("decoder")}
        out = base(**given, **(model.options if head != "Seq2SeqLM" else {}), output_hidden_states=True, return_dict=True)
        states = [*out.hidden_states[:-1], out.last_hidden_state]
        np.savez_compressed(
            HERE / f"{name}.npz",
            **{k: v.numpy() for k, v in inputs.items()},
            **{f"h{i}": s.numpy() for i, s in enumerate(states)},
        )
        export(model, inputs, exporter, HERE / f"{name}.onnx")


def export(model, inputs, exporter, file):
    """Export, fuse if asked to, and drop every name but those of inputs and outputs: none may matter."""
    values, names = tuple(inputs.values()), list(inputs)
    if exporter in {"script", "fused"}:
        axes = {n: {0: "batch", 1: "decoder_sequence" if n.startswith("decoder") else "sequence"} for n in names}
        torch.onnx.export(model, values, file, input_names=names, dynamic_axes=axes, opset_version=17, dynamo=False)
    else:
        free = (tuple({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for _ in names),)
        opset = 23 if exporter == "opset 23" else 18
        torch.onnx.export(
            model, values, file, input_names=names, dynamic_shapes=free, dynamo=True, external_data=False, opset_version=opset
        )
    proto = onnx.load(file)
    if exporter == "fused":
        proto = optimizer.optimize_model(str(file), model_type="gpt2", num_heads=2, hidden_size=16, opt_level=0).model
    del proto.graph.value_info[:], proto.metadata_props[:], proto.graph.metadata_props[:]
    kept = {"": ""} | {value.name: value.name for value in (*proto.graph.input, *proto.graph.output)}
    rename(proto.graph, kept)
    onnx.save(proto, file)


def rename(graph, names):
    """Number the tensors of a graph and of those inside it; forget the names of its nodes."""
    for tensor in graph.initializer:
        tensor.name = names.setdefault(tensor.name, f"t{len(names)}")
    for node in graph.node:
        node.name = node.doc_string = ""
        del node.metadata_props[:]
        node.input[:] = [names[i] for i in node.input]
        for attribute in node.attribute:
            rename(attribute.g, names)
        node.output[:] = [names.setdefault(o, f"t{len(names)}") for o in node.output]
    for value in (*graph.input, *graph.output):
        value.name = names[value.name]


if __name__ == "__main__":
    for wanted in sys.argv[1:] or GRAPHS:
        make(wanted)
