"""What runs in the process of one peer: penult.bench.worker's loop, in the peers' environment, which has no penult.

`tests/bench/peers.py` starts it.
"""

import os
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2] / "src" / "penult" / "bench"))
from worker import Run, main, padded


def openvino_fp32(job: dict[str, Any]) -> Run:
    return _openvino(job, "f32")


def openvino_bf16(job: dict[str, Any]) -> Run:
    return _openvino(job, "bf16")


def _openvino(job: dict[str, Any], precision: str) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": job["threads"], "INFERENCE_PRECISION_HINT": precision}
    compiled = openvino.Core().compile_model(job["graph"], "CPU", settings)
    names = [port.any_name for port in compiled.inputs]
    return padded(job, lambda feeds: compiled({name: feeds[name] for name in names})[0], tokens=1024)


def sentence_transformers(job: dict[str, Any]) -> Run:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(job["threads"])
    model = SentenceTransformer(job["folder"], device="cpu")
    model.max_seq_length = job["max_length"]
    return lambda texts: model.encode(list(texts), batch_size=32, normalize_embeddings=True)


def fastembed(job: dict[str, Any]) -> Run:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    kind = {"mean": PoolingType.MEAN, "cls": PoolingType.CLS}[job["pooling"]]
    graph = os.path.relpath(job["graph"], job["folder"])
    TextEmbedding.add_custom_model(
        model="bench/model", pooling=kind, normalization=True, sources=ModelSource(hf="bench/model"), dim=1, model_file=graph
    )
    model = TextEmbedding("bench/model", specific_model_path=job["folder"], threads=job["threads"])
    return lambda texts: list(model.embed(list(texts)))


def deepsparse(job: dict[str, Any]) -> Run:
    from deepsparse import Pipeline

    pipeline = Pipeline.create(
        task="transformers_embedding_extraction",
        model_path=job["graph"],
        emb_extraction_layer=None,
        extraction_strategy="reduce_mean",
        sequence_length=job["max_length"],
        batch_size=1,
        num_cores=job["threads"],
        return_numpy=True,
    )
    return lambda texts: pipeline(list(texts)).embeddings


SYSTEMS = {
    "openvino": openvino_fp32,
    "openvino-bf16": openvino_bf16,
    "sentence-transformers": sentence_transformers,
    "fastembed": fastembed,
    "deepsparse": deepsparse,
}

if __name__ == "__main__":
    main(SYSTEMS)
