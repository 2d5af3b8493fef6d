"""The public surface."""

import subprocess
import sys

import langchain_penult

EXPECTED_ALL = ["PenultEmbeddings", "__version__"]


def test_all():
    """The package exports these names and no others."""
    assert sorted(langchain_penult.__all__) == sorted(EXPECTED_ALL)
    assert all(hasattr(langchain_penult, name) for name in EXPECTED_ALL)


def test_version_is_penults():
    """The adapter and the core are released together."""
    from penult._version import __version__

    assert langchain_penult.__version__ == __version__


def test_import_and_construction_load_nothing_heavy():
    """Building a chain loads neither a runtime nor a tokenizer: they are loaded with the first text."""
    code = (
        "import sys, langchain_penult as lp; lp.PenultEmbeddings(model='no-such-folder'); "
        "print(*sorted({'onnx', 'onnxruntime', 'tokenizers', 'transformers', 'torch'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []
