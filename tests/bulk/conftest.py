"""Fixtures for bulk jobs in this process: starting a pool of worker processes takes a second."""

from dataclasses import fields

import pytest
from bulk.jobs import InProcess

from penult.bulk import embed
from penult.bulk.embed import embed_files
from penult.bulk.options import Columns, Model
from penult.bulk.request import Request


@pytest.fixture
def job(tiny, tmp_path, monkeypatch):
    """Return a function that runs a job in this process and returns its summary."""
    monkeypatch.setattr(embed, "Pool", InProcess)

    def start(*given, out="out.parquet", text="text", role="document", **options):
        words = {field.name for field in fields(Model)} - {"reference"}
        model = {"truncate": "right"} | {key: options.pop(key) for key in words & {*options}}
        model = Model(str(options.pop("model", tiny)), **model)
        columns = Columns(text, options.pop("vector", "embedding"), role)
        shown = options.pop("shown", "off")
        return embed_files(Request(tuple(map(str, given)), tmp_path / out, model, columns, shown=shown, **options))

    return start
