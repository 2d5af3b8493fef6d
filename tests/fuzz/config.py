"""A server's YAML: a configuration, or one error that names the file."""

import logging
import tempfile
from pathlib import Path

from penult.deepsparse.config_file import read
from penult.server.config import ConfigError

logging.disable()
SEEDS = [
    b"endpoints:\n  - task: embeddings\n    model: m\n",
    b"""integration: local
host: 0.0.0.0
port: 5543
num_cores: 2
num_workers: 1
log_json: true
limits: {max_body_bytes: 100, max_client_batch_size: 2}
endpoints:
  - &a
    task: transformers_embedding_extraction
    name: e
    route: /r
    model: hf:x/y
    bucketing: {sequence_lengths: [16, 32]}
    pooling: mean
    precision: int8
    dimensions: 8
    normalize: no
    kwargs: {extraction_strategy: reduce_mean, emb_extraction_layer: -1, sequence_length: 64}
  - <<: *a
    name: f
    route: !!str /q
    max_length: 0x20
    middlewares: []
""",
    b"threads: 1\nendpoints:\n  - {model: m, layer: 0, aliases: [n], prompts: {query: q, document: }, open_at_start: no}\n",
    b"a: !!int x\nb: !!bool y\nc: !!timestamp 2\nd: !!float e\nf: !!binary =\ng: !!set {a}\nh: 2001-13-40\ni: 1:90\nj: 0b\n",
    b"? [a, b]\n: *c\n--- \n{}\n",
]
PATH = Path(tempfile.mkdtemp()) / "config.yaml"


def one(data: bytes) -> None:
    """Read a file of these bytes."""
    PATH.write_bytes(data)
    try:
        config = read(PATH)
    except ConfigError as error:
        assert str(PATH) in str(error)
        assert len(str(error)) < 100_000
        return
    assert all(endpoint.model for endpoint in config.endpoints)
