"""Compare penult with sentence-transformers on tiny models of many architectures, each exported to ONNX in several ways.

    python tests/bench/architectures.py --penult .venv/bin/python [--only NAME ...] [--keep FOLDER]

Run it with an interpreter that has torch, transformers 5, sentence-transformers 6, onnx and onnxscript; `--penult` names the
interpreter that penult is installed in (default: this one). Nothing is downloaded: weights are random, tokenizers are trained on
a few lines of text here, and everything lies in a temporary folder. One line a graph: architecture, kind of graph, exporter,
graph inputs, and `equal 3e-07`, `refused: sentence`, `WRONG 0.12`, `CRASHED: error` (of penult, and no sentence) or `export
failed: reason`. Exit status 1 if any is WRONG or CRASHED.

Kinds of graph: `plain` (ids and mask in, last_hidden_state out), `head` (logits of the model with its language-model head),
`positions` (position_ids as an input), `cache` and `cache-head` (past_key_values in and out, as optimum exports decoders),
`cacheposition` (cache_position as an input), `encoder` (optimum's encoder_model.onnx of an encoder-decoder model).
`penult` as exporter is `penult export` on the folder without an ONNX file.
"""

import argparse
import contextlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
}

TOLERANCE = 1e-4  # relative to the largest value of sentence-transformers' vectors
SECONDS = 900  # a case that takes longer is ended
LENGTH = 96  # the most tokens of a text
TEXTS = [
    "The moon orbits the Earth in 27.3 days.",
    "hello",
    "The wide river carries stones, sand and silt to the sea near the harbour. " * 12,
    "",
    "月は地球の周りを回る 🙂",
    "MiXeD CaSe Ünïcödé Straße",
    "x = foo(bar)[0]  # snake_case_name",
    "A statement is a unit of code. The interpreter reads it and the object changes its value.",
]
CORPUS = [
    *TEXTS,
    "the river and the moon and the harbour carry stones to the sea of code",
    "an object is a value, and a statement changes the value of a name in the interpreter",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,:;!?()[]{}+-*/=_#",
]
# Sizes under the names that most configurations use; a case overrides what its own calls otherwise (None: leave it out).
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48}
SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 256,
    "decoder_start_token_id": 2,
}
T5 = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "num_decoder_layers": 2}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
MOE = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@dataclass(frozen=True)
class Case:
    """An architecture: model_type, tokenizer, settings, pooling and the kinds of graph to export."""

    name: str
    kind: str
    tokenizer: str = "wordpiece"
    settings: dict[str, Any] = field(default_factory=dict)
    pooling: str = "mean"
    graphs: tuple[str, ...] = ("plain",)

    @property
    def causal(self) -> bool:
        return self.tokenizer in ("bpe-eos", "bpe-qwen")


def decoder(
    name: str,
    settings: dict[str, Any],
    graphs: str = "plain cache",
    *,
    kind: str = "",
    pooling: str = "lasttoken",
    tokenizer: str = "bpe-eos",
) -> Case:
    return Case(name, kind or name, tokenizer, settings, pooling, tuple(graphs.split()))


CASES = (
    # Encoders of BERT's kind
    Case("albert", "albert", "unigram-bert", {"embedding_size": 16}, graphs=("plain",)),
    Case("albert-groups", "albert", "unigram-bert", {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}),
    Case("bert-generation", "bert-generation", "unigram-t5"),
    Case("bert-decoder", "bert", settings={"is_decoder": True}, pooling="lasttoken"),
    Case("electra", "electra", settings={"embedding_size": 16}, pooling="cls", graphs=("plain", "head")),
    Case("deberta", "deberta", "bpe-roberta", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}),
    Case(
        "deberta-v2", "deberta-v2", "unigram-bert",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16, "norm_rel_ebd": "layer_norm",
         "share_att_key": True, "conv_kernel_size": 3, "position_biased_input": False, "type_vocab_size": 0},
        "cls",
    ),
    Case("deberta-v3", "deberta-v2", "unigram-bert",
         {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16, "norm_rel_ebd": "layer_norm",
          "share_att_key": True, "position_biased_input": False, "type_vocab_size": 0}, graphs=("plain", "head")),
    Case("camembert", "camembert", "unigram-roberta", graphs=("plain", "head", "positions")),
    Case("xlm-roberta", "xlm-roberta", "unigram-roberta", graphs=("plain", "head", "positions")),
    Case("xlm-roberta-xl", "xlm-roberta-xl", "unigram-roberta", graphs=("plain", "positions")),
    Case("roberta-prelayernorm", "roberta-prelayernorm", "bpe-roberta", graphs=("plain", "head", "positions")),
    Case("mpnet", "mpnet", "bpe-roberta", graphs=("plain", "head", "positions")),
    Case("data2vec-text", "data2vec-text", "bpe-roberta", graphs=("plain", "positions")),
    Case("ibert", "ibert", "bpe-roberta"),
    Case("xmod", "xmod", "unigram-roberta", {"languages": ["en_XX"], "default_language": "en_XX"}),
    Case("mobilebert", "mobilebert",
         settings={"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16, "num_feedforward_networks": 2},
         graphs=("plain", "head")),
    Case("squeezebert", "squeezebert", settings={"embedding_size": 32, "q_groups": 2, "k_groups": 2, "v_groups": 2}),
    Case("convbert", "convbert", settings={"embedding_size": 16, "head_ratio": 2, "conv_kernel_size": 5}),
    Case("nystromformer", "nystromformer", settings={"num_landmarks": 8, "segment_means_seq_len": 8, "conv_kernel_size": 5}),
    Case("yoso", "yoso", settings={"use_expectation": True, "conv_window": 5}),
    Case("yoso-noconv", "yoso", settings={"use_expectation": True}),
    Case("fnet", "fnet", "unigram-bert", {"type_vocab_size": 4}),
    Case("megatron-bert", "megatron-bert", graphs=("plain", "head")),
    Case("rembert", "rembert", "unigram-bert", {"input_embedding_size": 16, "output_embedding_size": 24}, graphs=("plain", "head")),
    Case("big-bird", "big_bird", "unigram-bert", {"attention_type": "original_full"}, graphs=("plain", "head")),
    Case("big-bird-sparse", "big_bird", "unigram-bert", {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}),
    Case("longformer", "longformer", "bpe-roberta", {"attention_window": [16, 16], "max_position_embeddings": 258}),
    Case("longformer-wide", "longformer", "bpe-roberta", {"attention_window": [128, 128], "max_position_embeddings": 258}),
    Case("luke", "luke", "bpe-roberta", {"entity_vocab_size": 10, "entity_emb_size": 8, "use_entity_aware_attention": True}),
    Case("ernie", "ernie", settings={"use_task_id": True, "task_type_vocab_size": 3}, graphs=("plain", "head")),
    Case("esm", "esm", "bpe-roberta",
         {"position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": 4, "emb_layer_norm_before": False}),
    Case("esm-absolute", "esm", "bpe-roberta", {"position_embedding_type": "absolute", "mask_token_id": 4}),
    Case("flaubert", "flaubert", "bpe-roberta", {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "pad_index": 1, "n_langs": 1}),
    Case("xlm", "xlm", "bpe-roberta", {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "pad_index": 1, "n_langs": 1},
         graphs=("plain", "head")),
    Case("xlnet", "xlnet", "unigram-xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "max_position_embeddings": None}),
    Case("layoutlm", "layoutlm"),
    Case("canine", "canine", "characters",
         {"downsampling_rate": 4, "local_transformer_stride": 16, "num_hash_buckets": 64, "num_hash_functions": 4}),
    Case("roformer", "roformer", settings={"embedding_size": 16}, graphs=("plain", "head")),
    Case("roc-bert", "roc_bert", settings={"enable_pronunciation": False, "enable_shape": False}),
    Case("splinter", "splinter"),
    Case("mra", "mra", settings={"block_per_row": 2}),
    Case("nomic-bert", "nomic_bert", graphs=("plain",)),
    Case("modernbert", "modernbert",
         settings={"num_hidden_layers": 3, "global_attn_every_n_layers": 3, "local_attention": 16, "cls_token_id": 2,
                   "sep_token_id": 3}, pooling="cls", graphs=("plain", "head")),
    Case("modernbert-decoder", "modernbert-decoder", "bpe-eos",
         {"num_hidden_layers": 3, "global_attn_every_n_layers": 3, "local_attention": 16}, "lasttoken", ("plain", "head")),
    Case("eurobert", "eurobert", "bpe-roberta", GROUPED, graphs=("plain", "head")),
    Case("jina-embeddings-v3", "jina_embeddings_v3", "unigram-roberta"),
    Case("reformer", "reformer", "unigram-t5",
         {"attention_head_size": 8, "axial_pos_embds": False, "attn_layers": ["local", "local"], "local_attn_chunk_length": 16,
          "is_decoder": False, "feed_forward_size": 48}),
    # Encoder-decoder models: the encoder, or the decoder fed with the text, as sentence-transformers runs each
    Case("t5", "t5", "unigram-t5", T5),
    Case("t5-gated", "t5", "unigram-t5", T5 | {"feed_forward_proj": "gated-gelu", "is_gated_act": True}),
    Case("mt5", "mt5", "unigram-t5", T5 | {"feed_forward_proj": "gated-gelu"}),
    Case("umt5", "umt5", "unigram-t5", T5 | {"feed_forward_proj": "gated-gelu"}),
    Case("longt5", "longt5", "unigram-t5", T5 | {"local_radius": 15, "encoder_attention_type": "local"}),
    Case("switch-transformers", "switch_transformers", "unigram-t5", T5 | {"num_experts": 4, "num_sparse_encoder_layers": 1}),
    Case("t5gemma", "t5gemma", "unigram-t5"),
    Case("bart", "bart", "bpe-roberta", SEQ2SEQ, graphs=("plain", "encoder")),
    Case("mbart", "mbart", "unigram-roberta", SEQ2SEQ, graphs=("plain", "encoder")),
    Case("plbart", "plbart", "unigram-roberta", SEQ2SEQ),
    Case("led", "led", "bpe-roberta", SEQ2SEQ | {"attention_window": [16, 16], "max_encoder_position_embeddings": 256,
                                                "max_decoder_position_embeddings": 256}),
    Case("m2m-100", "m2m_100", "unigram-roberta", SEQ2SEQ),
    Case("marian", "marian", "unigram-t5", SEQ2SEQ | {"decoder_start_token_id": 0, "pad_token_id": 0}),
    Case("pegasus", "pegasus", "unigram-t5", SEQ2SEQ | {"decoder_start_token_id": 0}),
    Case("blenderbot", "blenderbot", "bpe-roberta", SEQ2SEQ),
    Case("prophetnet", "prophetnet",
         settings={"num_hidden_layers": None, "num_attention_heads": None, "num_encoder_layers": 2, "num_decoder_layers": 2,
                   "num_encoder_attention_heads": 4,
                   "num_decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}),
    # Decoders
    decoder("llama", GROUPED, "plain cache cache-head cacheposition"),
    decoder("llama3-rope", GROUPED | {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}}, kind="llama"),
    decoder("mistral", GROUPED | {"sliding_window": 16}, "plain cache head"),
    decoder("qwen2", GROUPED | {"use_sliding_window": False}, "plain cache cache-head", tokenizer="bpe-qwen"),
    decoder("qwen2-bidirectional", GROUPED | {"is_causal": False}, "plain", kind="qwen2", pooling="mean", tokenizer="bpe-qwen"),
    # transformers 5 splits words by the rules of Qwen2Tokenizer there, whatever tokenizer.json says
    decoder("qwen2-other-tokenizer", GROUPED, "plain", kind="qwen2"),
    decoder("qwen3", GROUPED, "plain cache cache-head cacheposition"),
    decoder("qwen2-moe", GROUPED | MOE | {"shared_expert_intermediate_size": 24, "decoder_sparse_step": 1}, kind="qwen2_moe"),
    decoder("qwen3-moe", GROUPED | MOE | {"decoder_sparse_step": 1}, kind="qwen3_moe"),
    decoder("mixtral", GROUPED | MOE),
    decoder("gemma", GROUPED, "plain cache head"),
    decoder("gemma2", GROUPED | {"sliding_window": 16, "query_pre_attn_scalar": 8}, "plain cache"),
    decoder("gemma3", GROUPED | {"sliding_window": 16, "query_pre_attn_scalar": 8}, "plain cache", kind="gemma3_text"),
    decoder("gemma3-bidirectional", GROUPED | {"sliding_window": 16, "query_pre_attn_scalar": 8,
            "use_bidirectional_attention": True}, "plain", kind="gemma3_text", pooling="mean"),
    decoder("phi", {}, "plain cache"),
    decoder("phi3", {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}, "plain cache"),
    decoder("phi3-longrope", {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
            "original_max_position_embeddings": 32, "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [1.0, 2.0, 3.0, 4.0], "original_max_position_embeddings": 32}}, "plain", kind="phi3"),
    decoder("olmo2", GROUPED, "plain cache"),
    decoder("granite", GROUPED | {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3}, "plain cache head"),
    decoder("smollm3", GROUPED | {"no_rope_layers": [1, 0], "pad_token_id": 0}, "plain cache"),
    decoder("stablelm", {"num_key_value_heads": 2, "use_parallel_residual": True}, "plain cache"),
    decoder("starcoder2", {"num_key_value_heads": 2}, "plain cache"),
    decoder("cohere", {"num_key_value_heads": 2}, "plain cache head"),
    decoder("cohere2", GROUPED | {"sliding_window": 16}, "plain"),
    decoder("glm", GROUPED | {"pad_token_id": 0}, "plain"),
    decoder("gpt-neox", {}, "plain cache cache-head", kind="gpt_neox"),
    decoder("gpt2", GPT, "plain cache head positions"),
    decoder("gptj", GPT | {"rotary_dim": 4}, "plain cache"),
    decoder("gpt-neo", {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16},
            "plain cache", kind="gpt_neo"),
    decoder("gpt-bigcode", GPT, "plain", kind="gpt_bigcode"),
    decoder("codegen", GPT | {"rotary_dim": 4, "n_ctx": 256}, "plain"),
    decoder("openai-gpt", GPT, "plain", kind="openai-gpt"),
    decoder("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": True}, "plain cache head positions"),
    decoder("opt-post", {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}, "plain", kind="opt"),
    decoder("bloom", {"n_layer": 2, "n_head": 4}, "plain cache head"),
    decoder("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}, "plain"),
    decoder("falcon", {"multi_query": True, "new_decoder_architecture": False, "parallel_attn": True}, "plain cache"),
    decoder("falcon-alibi", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}, "plain", kind="falcon"),
    decoder("xglm", {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48}, "plain"),
    decoder("biogpt", {}, "plain"),
    decoder("nemotron", GROUPED, "plain"),
    decoder("deepseek-v3", MOE | {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "q_lora_rank": 16,
            "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "first_k_dense_replace": 1,
            "num_key_value_heads": 4}, "plain", kind="deepseek_v3"),
    decoder("gpt-oss", GROUPED | MOE | {"sliding_window": 16}, "plain", kind="gpt_oss"),
    decoder("lfm2", GROUPED | {"layer_types": ["conv", "full_attention"]}, "plain"),
    decoder("mamba", {"state_size": 4, "num_hidden_layers": 2, "conv_kernel": 4, "expand": 2, "time_step_rank": 4}, "plain"),
    decoder("rwkv", {"attention_hidden_size": 32}, "plain"),
    decoder("ctrl", GPT | {"dff": 48}, "plain"),
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of cases")
    parser.add_argument("--keep", type=Path, help="folder for models and graphs (default: a temporary one)")
    parser.add_argument("--penult", default=sys.executable, help="the interpreter that has penult")
    parser.add_argument("--reuse", action="store_true", help="take the models and graphs that an earlier --keep left")
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(f"{case.name:26}{case.tokenizer:18}{case.pooling:11}{' '.join(case.graphs)}" for case in CASES))
        return 0
    if arguments.case:
        run_case(next(case for case in CASES if case.name == arguments.case), arguments.keep, arguments.penult)
        return 0
    if unknown := set(arguments.only or ()) - {case.name for case in CASES}:
        parser.error(f"no case is called {', '.join(sorted(unknown))}; --list shows the names")
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.keep or Path(scratch)
        rows = [row for case in CASES if not arguments.only or case.name in arguments.only
                for row in (again if arguments.reuse else in_child)(case, root, arguments.penult)]  # fmt: skip
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["result"]] = counts.get(row["result"], 0) + 1
    print(
        f"{len({row['name'] for row in rows})} cases, {len(rows)} graphs: {', '.join(f'{n} {k}' for k, n in sorted(counts.items()))}"
    )
    return 1 if counts.get("WRONG") or counts.get("CRASHED") else 0


def in_child(case: Case, root: Path, penult: str) -> list[dict[str, Any]]:
    """Run a case in a process of its own: exporters keep memory, and some never end."""
    folder = root / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, __file__, "--case", case.name, "--keep", str(folder), "--penult", penult]
    rows = []
    with (folder / "log.txt").open("w") as log:
        try:
            failure = f"status {subprocess.run(command, stdout=log, stderr=log, timeout=SECONDS).returncode}"
        except subprocess.TimeoutExpired:
            failure = f"took longer than {SECONDS} s"
    if (folder / "rows.json").exists():
        rows = json.loads((folder / "rows.json").read_text())
    else:
        lines = [line for line in (folder / "log.txt").read_text(errors="replace").splitlines() if line.strip()]
        rows = [{"name": case.name, "graph": "-", "exporter": "-", "inputs": "", "result": "no oracle",
                 "detail": f"{failure}: {(lines or [''])[-1][:150]}"}]  # fmt: skip
    show(rows)
    return rows


def again(case: Case, root: Path, penult: str) -> list[dict[str, Any]]:
    """Run penult on the graphs that an earlier run left."""
    import numpy as np

    folder = root / case.name
    if not (folder / "rows.json").exists():
        return []
    rows: list[dict[str, Any]] = [row for row in json.loads((folder / "rows.json").read_text()) if row["inputs"]]
    answers = run_penult(penult, [row["folder"] for row in rows], folder / "base")
    for row in rows:
        judge(row, answers.get(row["folder"], {"error": "no answer"}), np.load(folder / "expected.npz")["vectors"])
    show(rows)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        result = (
            f"{row['result']} {row['detail']}" if row["result"] in ("equal", "WRONG") else f"{row['result']}: {row['detail']}"
        )
        print(f"{row['name']:24}{row['graph']:15}{row['exporter']:16}{row['inputs'][:60]:62}{result}", flush=True)


# ---- in the child -------------------------------------------------------------------------------------------------------------


def run_case(case: Case, folder: Path, penult: str) -> None:
    """Make the model, its graphs and sentence-transformers' vectors; run penult on each graph; write rows.json."""
    import numpy as np

    warnings.simplefilter("ignore")
    base = folder / "base"
    make_model(case, base)
    oracle = Oracle(base)
    if type(oracle.transformer).__name__ not in (oracle.transformer.config.architectures or ()):
        # sentence-transformers loads the encoder alone; saved by itself, as SentenceTransformer.save does, it keeps its weights.
        randomize(oracle.transformer)
        for path in base.glob("*.safetensors"):
            path.unlink()
        oracle.transformer.save_pretrained(base)
        oracle = Oracle(base)
    expected, batched = oracle.vectors()
    np.savez(folder / "expected.npz", vectors=expected, batched=batched)
    rows: list[dict[str, Any]] = []
    for graph in case.graphs:
        for exporter in ("script", "dynamo"):
            out = folder / f"{graph}-{exporter}"
            row = {"name": case.name, "graph": graph, "exporter": exporter, "inputs": "", "folder": str(out)}
            try:
                row["exporter"] = export(case, oracle, base, out, graph, exporter)
                row["inputs"] = " ".join(shorten(graph_inputs(out)))
            except Exception as error:  # noqa: BLE001 - whatever an exporter raises
                row |= {"result": "export failed", "detail": first_line(error)}
            rows.append(row)
    if "plain" in case.graphs:
        rows.append({"name": case.name, "graph": "plain", "exporter": "penult", "inputs": "", "folder": str(folder / "own")})
    answers = run_penult(penult, [row["folder"] for row in rows if "result" not in row], base)
    for row in rows:
        if "result" not in row:
            judge(row, answers.get(row["folder"], {"error": "no answer"}), expected)
            if row["exporter"] == "penult" and (Path(row["folder"]) / "onnx" / "model.onnx").exists():
                row["inputs"] = " ".join(shorten(graph_inputs(Path(row["folder"]))))
    scale = float(np.nanmax(np.abs(expected)))
    own = float(np.nanmax(np.abs(batched - expected))) / scale
    if own > TOLERANCE:
        rows[0]["detail"] += f" (sentence-transformers batched and single differ by {own:.1e})"
    (folder / "rows.json").write_text(json.dumps(rows))


def judge(row: dict[str, Any], answer: dict[str, Any], expected: Any) -> None:
    import numpy as np

    if "failed" in answer:
        row |= {"result": "export failed", "detail": answer["failed"]}
    elif "crash" in answer:
        row |= {"result": "CRASHED", "detail": answer["crash"]}
    elif "error" in answer:
        row |= {"result": "refused", "detail": answer["error"]}
    else:
        vectors = np.array(answer["vectors"], np.float32)
        if vectors.shape != expected.shape:
            row |= {"result": "WRONG", "detail": f"shape {vectors.shape}, not {expected.shape}"}
            return
        known = np.isfinite(expected).all(1)
        differences = np.abs(vectors - expected)[known].max(1) / np.abs(expected[known]).max()
        worst = float(differences.max())
        texts = np.flatnonzero(known)[~(differences <= TOLERANCE)]
        row["result"] = "equal" if worst <= TOLERANCE else "WRONG"
        row["detail"] = f"{worst:.1e}" + (f" (texts {', '.join(map(str, texts))})" if len(texts) else "")


def run_penult(python: str, folders: list[str], base: Path) -> dict[str, dict[str, Any]]:
    """Load each folder with penult in its interpreter and embed all texts in one call."""
    code = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
job = json.loads(sys.stdin.read())
answers = os.fdopen(os.dup(1), "w"); os.dup2(2, 1)
from penult import Embedder
def one(folder):
    if folder.endswith("own") and not Path(folder).exists():
        try:
            from penult.core.export import export
            export(Path(job["base"]), Path(folder), python=job["python"], progress=False)
        except Exception as error:
            return {"failed": str(error)}
    try:
        with Embedder.load(folder, truncate="right") as embedder:
            return {"vectors": embedder.embed(job["texts"]).astype(float).tolist()}
    except (ValueError, OSError) as error:
        return {"error": str(error)}
    except BaseException as error:
        return {"crash": type(error).__name__ + ": " + str(error)}
for folder in job["folders"]:
    print(json.dumps([folder, one(folder)]), file=answers, flush=True)
"""
    job = {"texts": TEXTS, "folders": folders, "base": str(base), "python": sys.executable}
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"PENULT_CACHE": cache}
        done = subprocess.run([python, "-c", code], input=json.dumps(job), stdout=subprocess.PIPE, text=True, env=environment)
    return dict(map(json.loads, done.stdout.splitlines()))


def shorten(names: list[str]) -> list[str]:
    past = [name for name in names if "past" in name]
    short = {"input_ids": "ids", "attention_mask": "mask", "token_type_ids": "types", "position_ids": "positions"}
    return [short.get(name, name) for name in names if name not in past] + ([f"past*{len(past)}"] if past else [])


def graph_inputs(folder: Path) -> list[str]:
    import onnx

    path = next(path for path in sorted(folder.glob("onnx/*.onnx")))
    return [value.name for value in onnx.load(path, load_external_data=False).graph.input]


def first_line(error: BaseException) -> str:
    while error.__cause__ is not None:  # torch.onnx wraps the reason into pages of advice
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or [''])[0][:150]}"


# ---- models and tokenizers ----------------------------------------------------------------------------------------------------


def make_model(case: Case, folder: Path) -> None:
    """Save a sentence-transformers folder with random weights."""
    import torch
    import transformers

    torch.manual_seed(sum(map(ord, case.name)))
    tokenizer = make_tokenizer(case.tokenizer)
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config_class = type(transformers.AutoConfig.for_model(case.kind))
    values = SIZES | {"vocab_size": len(tokenizer)} | ids
    if case.tokenizer.endswith("-roberta"):
        values["max_position_embeddings"] += 2  # positions begin behind the padding id, 1
    values |= case.settings
    if case.kind == "t5gemma":
        part = SIZES | GROUPED | ids | {"vocab_size": len(tokenizer), "sliding_window": 16, "query_pre_attn_scalar": 8}
        values = {"encoder": part, "decoder": part, "vocab_size": len(tokenizer)} | ids
    config = config_class(**{name: value for name, value in values.items() if value is not None})
    auto = transformers.AutoModel
    if any("head" in graph for graph in case.graphs):
        auto = (
            transformers.AutoModelForCausalLM
            if case.tokenizer in ("bpe-eos", "bpe-qwen")
            else transformers.AutoModelForMaskedLM
        )
    model = auto.from_config(config).float().eval()
    randomize(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pooling = {"embedding_dimension": 32, "pooling_mode": case.pooling, "include_prompt": True}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    module = "sentence_transformers.models"
    modules = [{"idx": number, "name": str(number), "path": path, "type": f"{module}.{kind}"}
               for number, (kind, path) in enumerate((("Transformer", ""), ("Pooling", "1_Pooling")))]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LENGTH, "do_lower_case": False}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {}, "similarity_fn_name": "cosine"}))


def randomize(model: Any) -> None:
    """Draw weights large enough that attention matters and no two channels are alike."""
    import torch

    with torch.no_grad():
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                if not weight.is_floating_point() or "A_log" in name:
                    continue
                noise = torch.randn_like(weight)
                if isinstance(module, torch.nn.Embedding):
                    weight.copy_(noise)
                    if module.padding_idx is not None:  # training leaves it at zero
                        weight[module.padding_idx] = 0
                elif weight.ndim < 2 or float(weight.std()) == 0:  # gains, biases, and what starts as one value
                    weight.add_(noise.clamp(-2, 2), alpha=0.25)
                else:
                    weight.copy_(noise * 1.5 / weight.shape[-1] ** 0.5)
        if hasattr(model, "tie_weights"):
            model.tie_weights()


def make_tokenizer(kind: str) -> Any:
    """Train a tokenizer of about 300 tokens, with the special tokens of its kind at their usual ids."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    bert = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    roberta = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
    roberta |= {"cls_token": "<s>", "sep_token": "</s>"}
    named = {
        "wordpiece": bert,
        "characters": bert,
        "unigram-bert": bert,
        "unigram-roberta": roberta,
        "bpe-roberta": roberta,
        "unigram-t5": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
        "unigram-xlnet": {"unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<cls>", "sep_token": "<sep>"},
        "bpe-eos": dict.fromkeys(("pad_token", "eos_token", "bos_token"), "<|endoftext|>"),
        "bpe-qwen": dict.fromkeys(("pad_token", "eos_token", "bos_token"), "<|endoftext|>"),
    }[kind]
    specials = list(dict.fromkeys(named.values()))
    family, _, style = kind.partition("-")
    if family == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    elif family == "characters":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    elif family == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        if style == "qwen":
            like = transformers.Qwen2Tokenizer().backend_tokenizer
            tokenizer.normalizer, tokenizer.pre_tokenizer = like.normalizer, like.pre_tokenizer
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=specials, unk_token=named["unk_token"], show_progress=False
        )
    tokenizer.train_from_iterator(CORPUS, trainer)

    def template(single: str) -> None:
        tokens = [(token, tokenizer.token_to_id(token)) for token in specials]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=tokens)

    if named is bert:
        template("[CLS] $A [SEP]")
    elif named is roberta:
        template("<s> $A </s>")
    elif style == "xlnet":
        template("$A <sep> <cls>:2")
    else:
        template(f"$A {named['eos_token']}")
    inputs = ["input_ids", "attention_mask"]
    if named is bert or style == "xlnet":
        inputs.insert(1, "token_type_ids")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=LENGTH, model_input_names=inputs, **named
    )


# ---- the oracle and the exporters ---------------------------------------------------------------------------------------------


class Oracle:
    """sentence-transformers on torch, in fp32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32}).eval()
        self.transformer = self.model[0].model

    def vectors(self) -> tuple[Any, Any]:
        """Return (N, D) vectors of single texts, NaN where sentence-transformers fails, and those of one batch."""
        import numpy as np

        self.model.encode([TEXTS[1]], show_progress_bar=False)  # BigBird swaps its attention at the first text, dropout on
        rows: list[Any] = []
        for text in TEXTS:
            try:
                rows.append(self.model.encode([text], show_progress_bar=False)[0])
            except Exception:  # noqa: BLE001 - an empty text without special tokens, for one
                rows.append(None)
        width = next(len(row) for row in rows if row is not None)
        single = np.stack([np.full(width, np.nan, np.float32) if row is None else row for row in rows])
        try:
            batched = self.model.encode(TEXTS, batch_size=len(TEXTS), show_progress_bar=False)
        except Exception:  # noqa: BLE001
            batched = np.full_like(single, np.nan)
        if not np.isfinite(single).any():
            raise ValueError("sentence-transformers gives no vector that is a number")
        return single, batched

    def inputs(self) -> list[str]:
        """Return the tensors that the transformer is given for a text."""
        declared = set(inspect.signature(self.transformer.forward).parameters)
        features = self.model.preprocess(["a text"])
        return [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in features and name in declared]


def export(case: Case, oracle: Oracle, base: Path, out: Path, graph: str, exporter: str) -> str:
    """Write the folder with its graph; return the exporter, and the attention where it is not the default."""
    import torch

    shutil.copytree(base, out, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    (out / "onnx").mkdir()
    failure: Exception | None = None
    for attention in ("sdpa", "eager"):
        module = oracle.transformer
        if "head" in graph:
            import transformers

            auto = (
                transformers.AutoModelForCausalLM
                if case.tokenizer in ("bpe-eos", "bpe-qwen")
                else transformers.AutoModelForMaskedLM
            )
            module = auto.from_pretrained(base, dtype=torch.float32).eval()
        with contextlib.suppress(Exception):
            module.set_experts_implementation("batched_mm")
        try:
            module.set_attn_implementation(attention)
        except Exception as error:  # noqa: BLE001
            if attention == "sdpa":
                failure = error
                continue
        try:
            with torch.no_grad(), exporting():
                write_graph(module, oracle, out, graph, dynamo=exporter == "dynamo")
                check(module, oracle, out, graph)
        except Exception as error:  # noqa: BLE001
            failure = error
            continue
        return exporter if attention == "sdpa" else f"{exporter}/{attention}"
    raise failure or RuntimeError("no attention implementation")


def check(module: Any, oracle: Oracle, out: Path, graph: str) -> None:
    """Raise where onnxruntime gives another result than torch: what penult makes of such a graph tells nothing."""
    import numpy as np
    import onnxruntime
    import torch

    target = module.get_encoder() if graph == "encoder" else module
    declared = inspect.signature(target.forward).parameters
    session = onnxruntime.InferenceSession(next(out.glob("onnx/*.onnx")), providers=["CPUExecutionProvider"])
    for texts in ([TEXTS[1]], [TEXTS[2]], TEXTS[:2], [*TEXTS[:3], TEXTS[5]]):
        features = oracle.model.preprocess(texts)
        features = {name: value for name, value in features.items() if name in declared and isinstance(value, torch.Tensor)}
        options = {"use_cache": False} if "use_cache" in declared else {}
        expected = target(**features, **options)[0].numpy()
        feeds = {node.name: graph_feed(node, features, module) for node in session.get_inputs()}
        got = session.run(None, feeds)[0]
        if got.shape != expected.shape:
            raise ValueError(f"its result has the shape {got.shape}, torch's {expected.shape}")
        tokens = features["attention_mask"].numpy() > 0 if "attention_mask" in features else slice(None)
        difference = float(np.abs(got - expected)[tokens].max() / np.abs(expected[tokens]).max())
        if not difference <= TOLERANCE:
            raise ValueError(f"onnxruntime's result differs from torch's by {difference:.1e} over {got.shape[:2]} tokens")


def graph_feed(node: Any, features: dict[str, Any], module: Any) -> Any:
    import numpy as np

    rows, length = features["input_ids"].shape
    if node.name in features:
        return features[node.name].numpy()
    if node.name == "position_ids":
        return np.tile(np.arange(length) + first_position(module), (rows, 1))
    if node.name == "cache_position":
        return np.arange(length)
    shape = [rows, *(axis if isinstance(axis, int) else 0 for axis in node.shape[1:])]
    return np.zeros(shape, np.float32)


def first_position(module: Any) -> int:
    """Return the position of the first token: RoBERTa and similar models count from the padding id + 1."""
    kin = ("roberta", "xlmroberta", "camembert", "mpnet", "data2vec")
    return module.config.pad_token_id + 1 if type(module).__name__.lower().startswith(kin) else 0


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Stop an export after some minutes."""
    import signal

    def stop(*_: object) -> None:
        raise TimeoutError("the exporter took longer than 240 s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(240)
    try:
        yield
    finally:
        signal.alarm(0)


def write_graph(module: Any, oracle: Oracle, out: Path, graph: str, *, dynamo: bool) -> None:
    names = oracle.inputs()
    if graph.startswith("cache") and graph != "cacheposition":
        return write_cached(module, out, dynamo=dynamo)
    if graph == "encoder":
        module = module.get_encoder()
        names = [name for name in names if name in inspect.signature(module.forward).parameters]
    if graph in ("positions", "cacheposition"):
        names = [*names, {"positions": "position_ids", "cacheposition": "cache_position"}[graph]]
    file = out / "onnx" / ("encoder_model.onnx" if graph == "encoder" else "model.onnx")
    output = "logits" if graph == "head" else "last_hidden_state"
    declared = inspect.signature(module.forward).parameters
    options = {name: value for name, value in {"use_cache": False, "return_dict": True}.items() if name in declared}

    def call(*values: Any) -> Any:
        feeds = dict(zip(names, values, strict=True))
        if "cache_position" in feeds and "cache_position" not in declared:
            feeds["position_ids"] = feeds.pop("cache_position")[None]
        return module(**feeds, **options)[0]

    write(call, module, names, [output], file, dynamo=dynamo, pad=oracle.model.tokenizer.pad_token_id)
    return None


def write(
    call: Callable[..., Any], module: Any, names: list[str], outputs: list[str], file: Path, *, dynamo: bool, pad: int
) -> None:
    import torch

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *values: Any) -> Any:
            return call(*values)

    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [5, 6, 7, 8, 9, 10, 11, 12, pad, pad, pad]])
    mask = torch.tensor([[1] * 11, [1] * 8 + [0] * 3])
    first = first_position(module) if "position_ids" in names else 0
    example = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
        "position_ids": torch.arange(first, first + 11).expand(2, -1).contiguous(),
        "cache_position": torch.arange(11),
    }
    axes: dict[str, dict[int, str]] = {name: {0: "batch", 1: "sequence"} for name in names}
    axes |= {"cache_position": {0: "sequence"}} if "cache_position" in names else {}
    values = tuple(example[name] for name in names)
    torch_export(Wrapper().eval(), values, names, outputs, axes, file, dynamo=dynamo)


def torch_export(
    wrapper: Any,
    values: tuple[Any, ...],
    names: list[str],
    outputs: list[str],
    axes: dict[str, Any],
    file: Path,
    *,
    dynamo: bool,
) -> None:
    import torch

    if dynamo:
        shapes = (tuple(dict(axes[name]) for name in names),)
        torch.onnx.export(
            wrapper, values, file, input_names=names, output_names=outputs, dynamic_shapes=shapes, dynamo=True,
            external_data=False,
        )  # fmt: skip
        return
    named = {name: axes[name] for name in names} | {name: axes.get(name, {0: "batch", 1: "sequence"}) for name in outputs}
    torch.onnx.export(
        wrapper, values, file, input_names=names, output_names=outputs, dynamic_axes=named, dynamo=False, opset_version=17
    )


def write_cached(module: Any, out: Path, *, dynamo: bool) -> None:
    """Export a decoder as optimum does: past_key_values.N.key and .value in, present.N.key and .value out, position_ids."""
    import torch
    from transformers import DynamicCache

    config = module.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if getattr(config, "multi_query", False):
        heads = 1
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers
    positions = "position_ids" in inspect.signature(module.forward).parameters
    plain = ["input_ids", "attention_mask", *(["position_ids"] if positions else [])]
    past = [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    present = [f"present.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *values: Any) -> Any:
            feeds = dict(zip(plain, values, strict=False))
            pairs = values[len(plain) :]
            cache = DynamicCache([(pairs[2 * layer], pairs[2 * layer + 1]) for layer in range(layers)])
            result = self.module(**feeds, past_key_values=cache, use_cache=True, return_dict=True)
            states = [state for layer in result.past_key_values.layers for state in (layer.keys, layer.values)]
            return (result[0], *states)

    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 9, 0, 0]])
    values = [ids, torch.ones(2, 7 + 3, dtype=torch.int64)]
    values[1][1, -2:] = 0
    values += [torch.arange(3, 10).expand(2, -1).contiguous()] if positions else []
    values += [torch.randn(2, heads, 3, size) for _ in past]
    axes: dict[str, dict[int, str]] = {"input_ids": {0: "batch_size", 1: "sequence_length"}}
    axes["position_ids"] = axes["input_ids"]
    axes["attention_mask"] = {0: "batch_size", 1: "past_sequence_length + sequence_length"}
    axes |= {name: {0: "batch_size", 2: "past_sequence_length"} for name in past}
    axes |= {name: {0: "batch_size", 2: "past_sequence_length + sequence_length"} for name in present}
    if dynamo:  # names of dimensions must be identifiers there
        axes["attention_mask"] = {0: "batch_size", 1: "total_sequence_length"}
    output = "logits" if "LM" in type(module).__name__ else "last_hidden_state"
    names = [*plain, *past]
    torch_export(Wrapper().eval(), tuple(values), names, [output, *present], axes, out / "onnx" / "model.onnx", dynamo=dynamo)


if __name__ == "__main__":
    started = time.monotonic()
    status = main()
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    sys.exit(status)
