"""The section "Embedding and settings" of the troubleshooting page: each message comes from a call that fails or warns."""

import messages_kit
import numpy as np
import pytest
from models import tiny_model

from penult import Embedder, Engine, TruncationWarning

SECTION = "Embedding and settings"
LONG = "cat " * 100


def one_text(tiny, tmp_path):
    """Pass a str where a list of texts belongs."""
    with Embedder.load(tiny) as embedder:
        embedder.embed("the cat sat")


def not_a_str(tiny, tmp_path):
    """Pass a missing value, as from an empty cell of a table."""
    with Embedder.load(tiny) as embedder:
        embedder.embed(["the cat sat", None])


def long_text(tiny, tmp_path):
    """Embed a text that is too long, with the default `truncate`."""
    with Embedder.load(tiny) as embedder, pytest.warns(TruncationWarning) as caught:
        embedder.embed(["the cat sat", LONG])
    raise caught[0].message


def long_text_is_an_error(tiny, tmp_path):
    """Embed a text that is too long with truncate="error"."""
    with Embedder.load(tiny, truncate="error") as embedder:
        embedder.embed(["the cat sat", LONG])


def max_length_too_long(tiny, tmp_path):
    """Exceed the position table."""
    Embedder.load(tiny, max_length=1024)


def dimensions_too_many(tiny, tmp_path):
    """Exceed the size of the model's vectors."""
    Embedder.load(tiny, dimensions=256)


def unknown_precision(tiny, tmp_path):
    """Pass a name that other libraries use."""
    Embedder.load(tiny, precision="float16")


def name_of_a_prompt(tiny, tmp_path):
    """Pass the name of a prompt, as to `prompt_name` of sentence-transformers."""
    folder = tiny_model(tmp_path / "model", prompts={"query": "query: ", "passage": "passage: "})
    with Embedder.load(folder) as embedder:
        embedder.embed(["the cat sat"], prompt="passage")


def another_fingerprint(tiny, tmp_path):
    """Load other settings than those of the stored vectors."""
    with Embedder.load(tiny) as embedder:
        stored = embedder.fingerprint
    try:
        Embedder.load(tiny, max_length=32, fingerprint=stored)
    except ValueError as error:
        now = Embedder.load(tiny, max_length=32).fingerprint
        raise ValueError(str(error).replace(stored, "STORED").replace(now, "PRESENT")) from error


def another_dtype(tiny, tmp_path):
    """Run a graph with NumPy's 32-bit ids."""
    ids = np.ones((1, 8), np.int32)
    with Engine(tiny / "onnx" / "model.onnx") as engine:
        engine([ids, ids, ids])


CASES = {
    "A str in place of a list of texts": one_text,
    "A value that is not a str": not_a_str,
    "Texts were truncated": long_text,
    "A text is too long": long_text_is_an_error,
    "max_length is too long": max_length_too_long,
    "dimensions is too large": dimensions_too_many,
    "Unknown precision": unknown_precision,
    "The name of a prompt in place of its text": name_of_a_prompt,
    "The fingerprint differs": another_fingerprint,
    "The dtype of an input is wrong": another_dtype,
}


@pytest.mark.parametrize("heading", CASES)
def test_message(heading, tiny, tmp_path):
    """The call fails or warns with the message on the page."""
    with pytest.raises((TypeError, ValueError, UserWarning)) as error:
        CASES[heading](tiny, tmp_path)
    messages_kit.check(SECTION, heading, str(error.value), FOLDER=tiny)


def test_every_entry_has_a_case():
    """The entries on the page are the cases here."""
    messages_kit.check_complete(SECTION, CASES)
