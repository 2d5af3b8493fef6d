"""tokenizer_config.json over tokenizer.json: each setting that decides ids is applied as in transformers, or rejected."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from models import VOCABULARY, tokenizer, write_json
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from penult.core.config.tokenizer_config import decisive_files, padding_side, read_config, stated_side
from penult.core.tokenizer import Tokenizer
from penult.types import PromptError

BERT = {"tokenizer_class": "BertTokenizer"}
SIZE = tokenizer().get_vocab_size()
LONG = "the cat sat on the mat and the dog is in the river"


def saved(folder, fast=None, config=None, **model):
    """Write a folder with a tokenizer, its tokenizer_config.json and a config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (fast or tokenizer()).save(str(folder / "tokenizer.json"))
    if config is not None:
        write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "config.json", {"vocab_size": SIZE, **model})
    return folder


def tokens(folder, text, **arguments):
    """Return the tokens of one text with a folder's tokenizer."""
    built = Tokenizer(folder, max_length=64, **arguments)
    names = {index: token for token, index in FastTokenizer.from_file(str(folder / "tokenizer.json")).get_vocab().items()}
    return [names.get(index, index) for index in built.tokenize([text]).ids[0]]


def cased(**flags):
    """Return the tiny tokenizer with other flags of its BertNormalizer."""
    built = tokenizer()
    built.normalizer = normalizers.BertNormalizer(**{"lowercase": False, "strip_accents": False} | flags)
    return built


def bytes_tokenizer(processor=None, *, add_prefix_space=False):
    """Return a byte-level tokenizer without merges."""
    alphabet = [*pre_tokenizers.ByteLevel.alphabet()]
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<|endoftext|>", *sorted(alphabet)])}
    built = FastTokenizer(models.BPE(vocab=vocabulary, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens(["<s>", "</s>", "<|endoftext|>"])
    if processor is not None:
        built.post_processor = processor
    return built


def pieces_tokenizer(*steps, scheme="always"):
    """Return a tokenizer of single characters with a Metaspace, as SentencePiece's."""
    letters = [("<s>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((chr(i), -2.0) for i in range(33, 400))]
    built = FastTokenizer(models.Unigram(letters, unk_id=2))
    built.normalizer = normalizers.Sequence(list(steps))
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme=scheme)]
    )
    return built


def template(single, **ids):
    """Return a post-processor from its template."""
    names = {"bos": "<s>", "eos": "</s>", "end": "<|endoftext|>"}
    return processors.TemplateProcessing(single=single, special_tokens=[(names[name], index) for name, index in ids.items()])


@pytest.mark.parametrize("name", ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "MPNetTokenizer"])
@pytest.mark.parametrize(
    ("file", "config", "text", "expected"),
    [
        ({}, {"do_lower_case": True}, "The Cat", ["the", "cat"]),
        ({}, {}, "The", ["the"]),  # the default of these classes
        ({"lowercase": True}, {"do_lower_case": False}, "The cat", ["[UNK]", "cat"]),
        ({}, {"do_lower_case": False, "strip_accents": True}, "cät", ["cat"]),
        ({}, {"do_lower_case": True, "strip_accents": False}, "cät", ["[UNK]"]),
        ({"lowercase": True, "strip_accents": True}, {"do_lower_case": False}, "cät", ["[UNK]"]),
        ({}, {"tokenize_chinese_chars": True}, "the中cat", ["the", "[UNK]", "cat"]),
        ({}, {"tokenize_chinese_chars": False}, "the中cat", ["[UNK]"]),
    ],
)
def test_flags_of_a_bert_normalizer(tmp_path, name, file, config, text, expected):
    """do_lower_case, strip_accents and tokenize_chinese_chars override the file, and so do their defaults."""
    folder = saved(tmp_path, cased(**file), {"tokenizer_class": name, **config})
    assert tokens(folder, text) == ["[CLS]", *expected, "[SEP]"]


def test_a_bert_normalizer_inside_a_sequence(tmp_path):
    """The flags reach a BertNormalizer that follows another normalizer."""
    built = cased()
    built.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.BertNormalizer(lowercase=False)])
    assert tokens(saved(tmp_path, built, BERT), "The Cat") == ["[CLS]", "the", "cat", "[SEP]"]


@pytest.mark.parametrize("stated", [{"tokenizer_class": "PreTrainedTokenizerFast"}, {"tokenizer_class": "OwnTokenizer"}, {}])
def test_a_generic_class_changes_nothing(tmp_path, stated):
    """A generic class, an unknown one and none use the normalizer of the file."""
    folder = saved(tmp_path, cased(), {**stated, "do_lower_case": True, "strip_accents": True})
    assert tokens(folder, "The cät") == ["[CLS]", "[UNK]", "[UNK]", "[SEP]"]


@pytest.mark.parametrize("model", [{"model_type": "bert"}, {"tokenizer_class": "BertTokenizer"}])
def test_the_class_from_the_models_config(tmp_path, model):
    """If tokenizer_config.json states no class, config.json does, directly or by its model type."""
    assert tokens(saved(tmp_path, cased(), {"do_lower_case": True}, **model), "The Cat") == ["[CLS]", "the", "cat", "[SEP]"]


@pytest.mark.parametrize(
    ("file", "config", "expected"),
    [
        ([], {"do_lower_case": True}, ["▁", "é", "a"]),
        ([normalizers.Lowercase()], {"do_lower_case": False}, ["▁", "É", "A"]),
        ([], {"keep_accents": False}, ["▁", "E", "A"]),
        ([normalizers.NFKD(), normalizers.StripAccents()], {"keep_accents": True}, ["▁", "É", "A"]),
        ([normalizers.NFKD(), normalizers.StripAccents()], {"do_lower_case": True}, ["▁", "e", "a"]),
        ([normalizers.Lowercase()], {}, ["▁", "é", "a"]),
    ],
)
def test_flags_of_a_sequence_of_normalizers(tmp_path, file, config, expected):
    """ALBERT and its variants: do_lower_case and keep_accents, if stated."""
    folder = saved(tmp_path, pieces_tokenizer(*file), {"tokenizer_class": "AlbertTokenizer", **config})
    assert tokens(folder, "ÉA") == expected


@pytest.mark.parametrize(
    ("name", "in_file", "config", "expected"),
    [
        ("RobertaTokenizer", False, {"add_prefix_space": True}, ["Ġ", "a"]),
        ("RobertaTokenizer", True, {}, ["a"]),
        ("BlenderbotTokenizer", False, {}, ["Ġ", "a"]),
        ("PreTrainedTokenizerFast", False, {"add_prefix_space": True}, ["a"]),
    ],
)
def test_a_space_before_the_first_word_of_bytes(tmp_path, name, in_file, config, expected):
    """add_prefix_space overrides the ByteLevel of the file, and so does the default of its class."""
    folder = saved(tmp_path, bytes_tokenizer(add_prefix_space=in_file), {"tokenizer_class": name, **config})
    assert tokens(folder, "a") == expected


@pytest.mark.parametrize(
    ("in_file", "config", "expected"),
    [("always", {"add_prefix_space": False}, ["a"]), ("never", {"add_prefix_space": True}, ["▁", "a"]), ("never", {}, ["a"])],
)
def test_a_space_before_the_first_word_of_pieces(tmp_path, in_file, config, expected):
    """add_prefix_space overrides the Metaspace of the file if stated."""
    folder = saved(tmp_path, pieces_tokenizer(scheme=in_file), {"tokenizer_class": "XLMRobertaTokenizer", **config})
    assert tokens(folder, "a") == expected


LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
QWEN = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "</s>", "bos_token": None}


@pytest.mark.parametrize(
    ("processor", "config", "expected"),
    [
        (template("<s> $A", bos=0), LLAMA | {"add_eos_token": True}, ["<s>", "a", "</s>"]),  # e5-mistral
        (template("<s> $A </s>", bos=0, eos=1), LLAMA | {"add_eos_token": True}, ["<s>", "a", "</s>"]),
        (template("<s> $A", bos=0), LLAMA | {"add_bos_token": False}, ["a"]),
        (template("<s> $A </s>", bos=0, eos=1), LLAMA, ["<s>", "a", "</s>"]),
        (None, LLAMA | {"add_bos_token": True, "add_eos_token": True}, ["<s>", "a", "</s>"]),
        (processors.ByteLevel(), LLAMA | {"add_eos_token": True}, ["a", "</s>"]),
        (template("$A <|endoftext|>", end=2), QWEN | {"add_bos_token": False}, ["a", "<|endoftext|>"]),  # Qwen3-Embedding
        (template("$A </s>", eos=1), QWEN | {"add_eos_token": False}, ["a", "</s>"]),  # the class has no such flag
        (None, {"add_eos_token": True, "eos_token": "</s>"}, ["a", "</s>"]),
        (None, {"add_eos_token": True}, ["a"]),  # no token is named for it
        (template("<|endoftext|> $A", end=2), {"tokenizer_class": "GPTNeoXTokenizer"}, ["a"]),
        (
            processors.Sequence([processors.ByteLevel(), template("<s> $A", bos=0)]),
            LLAMA | {"add_eos_token": True},
            ["<s>", "a", "</s>"],
        ),
        (
            processors.RobertaProcessing(("</s>", 1), ("<s>", 0)),
            {"tokenizer_class": "RobertaTokenizer", "bos_token": "<|endoftext|>", "add_bos_token": True},
            ["<s>", "a", "</s>"],
        ),
        (
            template("<s> $A </s>", bos=0, eos=1),
            {"cls_token": "<s>", "sep_token": "</s>", "eos_token": "<|endoftext|>", "add_eos_token": True},
            ["<s>", "a", "</s>"],
        ),
    ],
)
def test_special_tokens_at_the_ends(tmp_path, processor, config, expected):
    """add_bos_token and add_eos_token apply if stated; a template with CLS or SEP, or with other tokens, stays."""
    assert tokens(saved(tmp_path, bytes_tokenizer(processor), config), "a") == expected


def test_an_eos_token_without_an_id(tmp_path):
    """A text cannot end with a token without an id: the error names the file, the key and the token."""
    folder = saved(tmp_path, bytes_tokenizer(), LLAMA | {"eos_token": "<eos>", "add_eos_token": True}, vocab_size=3)
    with pytest.raises(
        ValueError, match=r"tokenizer_config\.json: add_eos_token is true, but the vocabulary has no eos_token '<eos>'"
    ):
        Tokenizer(folder, max_length=8)


def test_named_tokens_that_the_file_does_not_list(tmp_path):
    """A special token of the vocabulary is one id in a text even if tokenizer.json does not list it."""
    built = FastTokenizer(models.WordPiece({token: i for i, token in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    folder = saved(tmp_path / "a", built, {"mask_token": "[MASK]", "additional_special_tokens": ["cat"]})
    assert tokens(folder, "[MASK] cats") == ["[MASK]", "cat", "s"]
    folder = saved(tmp_path / "b", built, {"tokenizer_class": "BertTokenizer"})
    assert tokens(folder, "[MASK]") == ["[MASK]"]
    folder = saved(tmp_path / "c", built, {"extra_special_tokens": {"image_token": "cat"}})
    assert tokens(folder, "cats") == ["cat", "s"]


@pytest.mark.parametrize("rows", [0, 1])
def test_a_named_token_beyond_the_vocabulary(tmp_path, rows):
    """A token gets a new id only if the model has a row for it."""
    folder = saved(tmp_path, config={"pad_token": "<new>"}, vocab_size=SIZE + rows)
    built = Tokenizer(folder, max_length=16)
    assert (SIZE in built.tokenize(["the <new>"]).ids[0]) == bool(rows)
    assert built.token_id("<new>") == (SIZE if rows else None)


def test_properties_of_added_tokens(tmp_path):
    """added_tokens_decoder overrides how a token of tokenizer.json matches in a text."""
    built = bytes_tokenizer()
    stated = {"content": "</s>", "lstrip": True, "rstrip": True, "normalized": False, "single_word": False, "special": True}
    assert tokens(saved(tmp_path, built, {}), "a </s> b") == ["a", "Ġ", "</s>", "Ġ", "b"]
    assert tokens(saved(tmp_path, built, {"added_tokens_decoder": {"1": stated}}), "a </s> b") == ["a", "</s>", "b"]


def test_special_tokens_as_text(tmp_path):
    """split_special_tokens tokenizes a special token in a text as its characters."""
    assert "[MASK]" in tokens(saved(tmp_path, config={}), "a [MASK]")
    assert "[MASK]" not in tokens(saved(tmp_path, config={"split_special_tokens": True}), "a [MASK]")


def test_the_older_map_of_special_tokens(tmp_path):
    """special_tokens_map.json overrides tokenizer_config.json, unless that states added_tokens_decoder."""
    folder = saved(tmp_path, config={"pad_token": "[MASK]"})
    write_json(folder / "special_tokens_map.json", {"pad_token": {"content": "[UNK]"}})
    assert Tokenizer(folder, max_length=8).pad_id == VOCABULARY.index("[UNK]")
    write_json(folder / "tokenizer_config.json", {"pad_token": "[MASK]", "added_tokens_decoder": {}})
    assert Tokenizer(folder, max_length=8).pad_id == VOCABULARY.index("[MASK]")
    assert Tokenizer(folder, max_length=8, settings={"pad_token": "[CLS]"}).pad_id == VOCABULARY.index("[CLS]")


@pytest.mark.parametrize(
    ("config", "settings", "expected"),
    [
        ({}, None, ("left", "tokenizer.json")),
        ({"truncation_side": "right"}, None, ("right", "tokenizer_config.json")),
        ({"truncation_side": "right"}, {"truncation_side": "left"}, ("left", "argument")),
    ],
)
def test_the_side_of_truncation(tmp_path, config, settings, expected):
    """The side in tokenizer.json applies if no setting over it states one."""
    built = tokenizer()
    built.enable_truncation(16, direction="left")
    assert stated_side(saved(tmp_path, built, config), settings) == expected


def test_sides_of_a_file_in_another_order(tmp_path):
    """Sides are read in any order and spacing of tokenizer.json, and missing ones are reported as missing."""
    built = tokenizer()
    built.enable_truncation(16, direction="left")
    folder = saved(tmp_path, built)
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(dict(reversed(whole.items())), indent=1))
    assert stated_side(folder) == ("left", "tokenizer.json")
    assert padding_side(folder) == ("right", "tokenizer.json")
    (folder / "tokenizer.json").write_text(json.dumps(whole | {"truncation": None, "padding": None}))
    assert stated_side(folder) == padding_side(folder) == (None, "default")


def test_the_side_of_padding(tmp_path):
    """padding.direction of tokenizer.json applies, and padding_side of the settings overrides it."""
    built = tokenizer()
    built.enable_padding(direction="left", pad_id=0, pad_token="[PAD]")
    folder = saved(tmp_path, built, {})
    assert Tokenizer(folder, max_length=8).pad_side == "left"
    assert Tokenizer(folder, max_length=8, settings={"padding_side": "right"}).pad_side == "right"


def test_lowercase_before_a_cased_tokenizer(tmp_path):
    """`lowercase` lowercases for a cased tokenizer, and does not change a normalizer with a Lowercase."""
    folder = saved(tmp_path, cased(), {"tokenizer_class": "PreTrainedTokenizerFast"})
    assert tokens(folder, "The [MASK] Cat", lowercase=True) == ["[CLS]", "the", "[MASK]", "cat", "[SEP]"]
    built = cased()
    built.normalizer = normalizers.Sequence([normalizers.Replace("The", "a"), normalizers.Lowercase()])
    assert tokens(saved(tmp_path, built, {}), "The Cat", lowercase=True) == ["[CLS]", "a", "cat", "[SEP]"]


def test_without_special_tokens(tmp_path):
    """`add_special_tokens=False` omits CLS and SEP, which leaves their places to the text."""
    built = Tokenizer(saved(tmp_path, config={}), max_length=4, add_special_tokens=False)
    encoded = built.tokenize([LONG], "query: ")
    assert built.special_tokens == 0
    assert [VOCABULARY[index] for index in encoded.ids[0]] == ["query", ":", "the", "cat"]
    assert (encoded.dropped.tolist(), encoded.prompt_tokens.tolist()) == ([11], [2])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("prompt", ["", "query: "])
@pytest.mark.parametrize("limit", [5, 6, 7, 9, 40])
def test_a_limit_truncates_like_max_length(tmp_path, side, prompt, limit):
    """`limit` gives the ids, segment ids and counts of a tokenizer with that max_length, and changes no other call."""
    folder = saved(tmp_path, config={})
    built, short = (Tokenizer(folder, max_length=length, side=side) for length in (9, min(limit, 9)))
    texts = [LONG, "", "cat", "the [SEP] cat [CLS] sat on the mat [SEP]"]
    before = built.tokenize(texts, prompt)
    assert built.tokenize(texts, prompt, limit=limit) == short.tokenize(texts, prompt)
    assert built.tokenize(texts, prompt) == before


def test_limits_of_several_threads(tmp_path):
    """Calls with different limits at once do not change each other."""
    built = Tokenizer(saved(tmp_path, config={}), max_length=12)
    limits = [3 + i % 10 for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        lengths = pool.map(lambda limit: len(built.tokenize([LONG], limit=limit).ids[0]), limits)
    assert list(lengths) == [min(limit, 12) for limit in limits]


def test_a_limit_without_room(tmp_path):
    """A limit or max_length that only fits the special tokens is an error; one more token is enough."""
    folder = saved(tmp_path, config={})
    built = Tokenizer(folder, max_length=12)
    for limit in (1, 2):
        refused = f"is {limit}, but every text has 2 special tokens, which leaves no room for the text. Pass {{}}>=3"
        with pytest.raises(ValueError, match=f"limit {refused.format('limit')}"):
            built.tokenize(["cat"], limit=limit)
        with pytest.raises(ValueError, match=f"max_length {refused.format('max_length')}"):
            Tokenizer(folder, max_length=limit)
    assert built.tokenize(["cat dog"], limit=3).counts == [3]
    assert Tokenizer(folder, max_length=1, add_special_tokens=False).tokenize(["cat dog"]).counts == [1]


def test_a_prompt_without_room(tmp_path):
    """A prompt that fills the length is an error if texts are truncated on the right; on the left, the prompt is truncated."""
    folder = saved(tmp_path, config={})
    built = Tokenizer(folder, max_length=12)
    for limit in (3, 4):
        with pytest.raises(PromptError, match=rf"'query: ' has 4 tokens .* maximum is {limit}, .* pass max_length>=5"):
            built.tokenize(["cat"], "query: ", limit=limit)
    assert built.tokenize(["cat"], "query: ", limit=5).counts == [5]
    left = Tokenizer(folder, max_length=3, side="left").tokenize(["cat dog"], "query: ")
    assert [VOCABULARY[index] for index in left.ids[0]] == ["[CLS]", "dog", "[SEP]"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"do_upper_case": True}, r"setting 'do_upper_case' is not supported; supported: do_lower_case, "),
        ({"subfolder": "x"}, r"setting 'subfolder' is not supported"),
        ({"tokenizer_class": "T5Tokenizer"}, r"tokenizer_class is 'T5Tokenizer', but .* states 'BertTokenizer'"),
        ({"do_lower_case": "no"}, r"the tokenizer settings: do_lower_case is 'no'; it must be true or false"),
        ({"truncation_side": "up"}, r"truncation_side is 'up'; it must be 'right' or 'left'"),
    ],
)
def test_unsupported_settings(tmp_path, settings, words):
    """An unsupported setting, or one of a wrong type, is an error that states what is allowed."""
    folder = saved(tmp_path, config=BERT)
    with pytest.raises(ValueError, match=words):
        stated_side(folder, settings), Tokenizer(folder, max_length=8, settings=settings)


def test_harmless_settings(tmp_path):
    """Settings that decide no ids are skipped, the others are applied."""
    folder = saved(tmp_path, cased(), BERT)
    harmless = {"use_fast": True, "trust_remote_code": True, "cache_dir": "x", "tokenizer_class": "BertTokenizerFast"}
    assert tokens(folder, "The", settings=harmless) == ["[CLS]", "the", "[SEP]"]
    assert tokens(folder, "The", settings=harmless | {"do_lower_case": False}) == ["[CLS]", "[UNK]", "[SEP]"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_lower_case", "yes"),
        ("strip_accents", 1),
        ("add_eos_token", "false"),
        ("pad_token", 7),
        ("cls_token", {"lstrip": True}),
        ("additional_special_tokens", "x"),
        ("extra_special_tokens", [7]),
        ("added_tokens_decoder", {"x": {"content": "a"}}),
        ("added_tokens_decoder", {"0": "a"}),
    ],
)
def test_values_of_the_wrong_type(tmp_path, key, value):
    """A value of the wrong type is an error that names the file and the key."""
    folder = saved(tmp_path, config={key: value})
    with pytest.raises(ValueError, match=rf"tokenizer_config\.json: {key} is .*; it must be ") as caught:
        read_config(folder)
    assert str(folder) in str(caught.value)


def test_a_pointer_to_the_tokenizer(tmp_path):
    """A tokenizer.json that is a Git LFS pointer is reported as one, whichever code reads it first."""
    folder = saved(tmp_path, config={})
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    for read in (stated_side, lambda path: Tokenizer(path, max_length=8)):
        with pytest.raises(ValueError, match=r"tokenizer\.json is a Git LFS pointer, not the tokenizer\. Run `git lfs pull`"):
            read(folder)


def names(folder):
    """Return the names of the files that decide ids."""
    return [path.name for path in decisive_files(folder)]


def test_files_that_decide_ids_beside_tokenizer_json(tmp_path):
    """Beside tokenizer.json, the older files only count if they change something."""
    folder = saved(tmp_path, config={})
    for name in ("vocab.txt", "merges.txt", "vocab.json"):
        (folder / name).write_text("{}")
    always = ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    write_json(folder / "special_tokens_map.json", {"pad_token": "[PAD]", "mask_token": "[MASK]", "cls_token": "[CLS]"})
    write_json(folder / "added_tokens.json", {"[MASK]": 4})
    assert names(folder) == always
    for older in (
        {"pad_token": "[MASK]"},
        {"cls_token": "[SEP]"},
        {"mask_token": "cat"},
        {"additional_special_tokens": ["dog"]},
    ):
        write_json(folder / "special_tokens_map.json", older)
        assert names(folder) == [*always, "special_tokens_map.json"]
    write_json(folder / "tokenizer_config.json", {"additional_special_tokens": ["dog"], "added_tokens_decoder": {}})
    assert names(folder) == always
    write_json(folder / "tokenizer_config.json", {})
    write_json(folder / "special_tokens_map.json", {"eos_token": "[SEP]"})
    assert names(folder) == always
    write_json(folder / "tokenizer_config.json", {"add_eos_token": True})
    assert names(folder) == [*always, "special_tokens_map.json"]
    write_json(folder / "added_tokens.json", {"cat": 6})
    assert "added_tokens.json" in names(folder)


def test_files_that_decide_ids_without_tokenizer_json(tmp_path):
    """Without tokenizer.json every vocabulary, every SentencePiece model and the older files count."""
    every = ["tokenizer_config.json", "vocab.txt", "spiece.model", "vocab.json", "merges.txt", "bpe.codes", "added_tokens.json"]
    every += ["special_tokens_map.json", "tekken.json", "own.model"]
    for name in [*every, "config.json", "README.md"]:
        (tmp_path / name).write_text("{}")
    assert names(tmp_path) == every


@pytest.mark.parametrize("name", ["BertTokenizer", "MPNetTokenizer", "RobertaTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize(
    "stated",
    [{}, {"do_lower_case": False}, {"strip_accents": True}, {"tokenize_chinese_chars": False}, {"split_special_tokens": True},
     {"mask_token": "[MASK]", "additional_special_tokens": ["cat"]}, {"truncation_side": "left"}],
)  # fmt: skip
def test_the_same_ids_as_transformers(tmp_path, name, stated):
    """Over texts with accents, capitals, Chinese and special tokens: ids are those of transformers."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    named = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if name == "MPNetTokenizer":
        stated = {key: value for key, value in stated.items() if key != "tokenize_chinese_chars"}  # 5 obeys it, 4 does not
        named |= {"bos_token": "[CLS]", "eos_token": "[SEP]", "mask_token": "[MASK]"}
    if name == "RobertaTokenizer":
        named = {"unk_token": "<s>", "pad_token": "<s>", "cls_token": "<s>", "sep_token": "</s>", "bos_token": "<s>"}
        named |= {"eos_token": "</s>", "mask_token": "<|endoftext|>"}
        stated = {key: value for key, value in stated.items() if key != "mask_token"}
        built = bytes_tokenizer(processors.RobertaProcessing(("</s>", 1), ("<s>", 0)), add_prefix_space=True)
    else:
        built = cased(strip_accents=None)
    folder = saved(tmp_path, built, {"tokenizer_class": name, **named, **stated}, vocab_size=300)
    oracle = AutoTokenizer.from_pretrained(str(folder))
    texts = ["The Cat sät", "the中cat", " a  [MASK] cat [SEP] </s>", "", LONG]
    expected = [oracle(text, truncation=True, max_length=9)["input_ids"] for text in texts]
    assert Tokenizer(folder, max_length=9, side=stated_side(folder)[0] or "right").tokenize(texts).ids == expected
