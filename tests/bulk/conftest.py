"""Bulk jobs in this process: the pool of worker processes takes a second to start."""

import pytest

from penult.bulk import embed
from penult.bulk.embed import Request, embed_files
from penult.bulk.options import Columns, Model
from penult.bulk.tables import metadata_of
from penult.bulk.takeover import Old
from penult.bulk.work import make_shard
from penult.bulk.worker import Ready


class InProcess:
    """Stands for the pool of worker processes, whose start takes a second: does their work in this one."""

    def __init__(self, model, role, workers, say):
        self._embedder = model.load(threads=1)
        self.facts = Ready(self._embedder.dimension, self._embedder.recipe.max_length, metadata_of(self._embedder, "m", role))

    def run(self, tasks):
        for task in tasks:
            old = None if task.old is None else Old(task.old, self._embedder.dimension)
            yield make_shard(self._embedder, task.shard, task.folder, task.columns, old)

    def close(self):
        self._embedder.close()


@pytest.fixture
def job(tiny, tmp_path, monkeypatch):
    """Run a job in this process and give its summary."""
    monkeypatch.setattr(embed, "Pool", InProcess)

    def start(*given, out="out.parquet", text="text", role="document", **options):
        model = {"truncate": "right"} | {
            key: options.pop(key) for key in ("truncate", "max_length", "dimensions") if key in options
        }
        model = Model(str(options.pop("model", tiny)), **model)
        columns = Columns(text, options.pop("vector", "embedding"), role)
        shown = options.pop("shown", "off")
        return embed_files(Request(tuple(map(str, given)), tmp_path / out, model, columns, shown=shown, **options))

    return start
