"""Messages of the command line: options instead of Python arguments, and extras instead of modules."""

import warnings

import pytest

from penult import cli_words, extras
from penult.cli_options import layer_of, pooling_of, prompts_of, task_of
from penult.cli_words import in_options, sentence_of
from penult.extras import install_hint


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Pass pooling='mean', 'cls', 'max' or 'last', as", "Pass --pooling mean, 'cls', 'max' or 'last', as"),
        ("pass files_from='ORG/ORIGINAL' to use", "pass --files-from ORG/ORIGINAL to use"),
        ("max_length=600 exceeds 512. Pass max_length<=512.", "--max-length 600 exceeds 512. Pass --max-length <= 512."),
        ("pass normalize=True, or layer_norm=True for", "pass --normalize, or --layer-norm for"),
        ("pass normalize=False", "pass --no-normalize"),
        ("first (text_embeds), and pass layer=None.", "first (text_embeds), and pass --layer none."),
        ("Load it with layer=-1.", "Load it with --layer -1."),
        ("max_length is 0; it must be", "--max-length is 0; it must be"),
        ("its own pooling. Omit layer and pooling.", "its own pooling. Omit --layer and --pooling."),
        ("Omit pooling, or pass the name of a hidden state as layer=.", "Omit --pooling, or pass the name of a hidden state as --layer."),
        ("Omit normalize, or export", "Omit --normalize, or export"),
        ("task was passed, but the graph", "--task was passed, but the graph"),
        ("card does, pass prompts=", "card does, pass --query-prompt or --document-prompt"),
        ("pass model_file='onnx/m.onnx'; for BART", "pass --model-file onnx/m.onnx; for BART"),
        ("max_batch_tokens is 0; it", "--batch-tokens is 0; it"),
        ("Pass texts as calibration=, or", "Pass texts as calibration=, or"),
        ("a file says that a layer is odd; its pooling and layer norm are", "a file says that a layer is odd; its pooling and layer norm are"),
        ("tokenizer.json: truncation is wrong", "tokenizer.json: truncation is wrong"),
    ],
)  # fmt: skip
def test_messages_name_options(message, expected):
    """A value follows its option as in a shell; similar words are unchanged."""
    assert in_options(message) == expected


@pytest.mark.parametrize(("name", "extra"), [("pyarrow", "parquet"), ("pyarrow.parquet", "parquet"), ("uvicorn", "server")])
def test_a_missing_package_is_its_extra(name, extra):
    """One sentence with the command to install it; unknown modules keep Python's message."""
    error = ModuleNotFoundError(f"No module named {name!r}", name=name)
    assert sentence_of(error) == f"{name} is not installed. Install {install_hint(extra)}."
    assert sentence_of(ModuleNotFoundError("No module named 'other'", name="other")) == "No module named 'other'"


def test_every_extra_exists():
    """The extras in messages are in pyproject.toml."""
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert {*extras._EXTRAS.values()} <= {*project["optional-dependencies"]}


def test_values():
    """Numbers, names and several names."""
    assert [layer_of(text) for text in ("-1", "3", "none", "None", "/encoder/x")] == [-1, 3, None, None, "/encoder/x"]
    assert [pooling_of(text) for text in (None, "cls", "mean, max")] == [None, "cls", ("mean", "max")]
    assert [task_of(text) for text in (None, "3", "name")] == [None, 3, "name"]
    assert [prompts_of(None, None), prompts_of("", None), prompts_of("q", "d")] == [
        None, {"query": ""}, {"query": "q", "document": "d"},
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"--pooling is 'mean,'\. Pass one of mean, max"):
        pooling_of("mean,")


def test_warnings_are_one_line(capsys):
    """They name options, without the file and line of the code."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli_words.show_warnings()
        warnings.warn("dimensions=16: pass normalize=True", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "penult: --dimensions 16: pass --normalize\n"
