"""Long texts: only a part is tokenized, and the kept tokens are exactly those of the whole text."""

import random
import re
import subprocess
import sys
import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from models import tiny_model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from penult import Embedder
from penult.core import text_cuts, truncation
from penult.core.tokenized import Tokenized
from penult.core.tokenizer import _cuts_of, _word_places_of
from penult.core.truncation import Truncation, around
from penult.types import TextError

SHARED = Path(__file__).parents[2] / "shared"
GPT2 = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = [
    "the", "river", "It's", "don't", "we'LL", "Straße", "café", "cafe\u0301", "naïve", "ΟΔΟΣ", "Москва", "й", "שלום", "مرحبا",
    "हिन्दी", "ไทยไม่มีช่องว่าง", "日本語のテキスト", "がぎぐ", "か\u3099", "中国人民", "北京，上海。", "한국어", "\u1112\u1161\u11ab", "ﬁne", "１２３ＡＢＣ", "㌔", "ﷺ",
    "x" * 7, "y" * 120, "a1b2c3d4", "2024", "3.14", "e=mc^2", "http://a.b/c?d=e&f", "user@host.org", "--", "...", "``so''", "<b>",
    "``", "''", "_under_score_", "C++", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u200b",
    "\u200d", "\ufeff", "\x00", "\x07", "\ud7a3", "İ", "ǆ", "\u0345", "[MASK]", "[SEP]", "<mask>", "<s>", "</s>", "<|endoftext|>",
    "<unk>", "[ unusual ]", "NUL", "\u2581", "\u2581\u2581x", "e\u0338", "=\u0338", "Zz", "I", "a", "q", "\U00020000", "豈",
]  # fmt: skip
SPACES = [
    " ",
    " ",
    " ",
    " ",
    "  ",
    "     ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    " \n ",
    "\u00a0",
    "\u3000",
    "\u2003",
    "",
    "",
    "\x85",
    "\u2028",
]
SEEN = "the river carries stones to the sea and it's don't 2024 日本語のテキスト 中国人民 北京，上海。 Москва café 한국어 x y a1b2 [ ] _ < > / = & ? ' ` . - "


def text_of(random_: random.Random, size: int) -> str:
    """Return a text with some frequent words, so that runs of one script or of long words are common."""
    parts, length = [], 0
    while length < size:
        words, spaces = random_.choices(WORDS, k=random_.randint(1, 6)), random_.choices(SPACES, k=random_.randint(1, 3))
        if random_.random() < 0.3:
            words = ["the", "river", "sea"]
            spaces = [random_.choice([" ", " ", "\n", "", ", "])]
        for _ in range(random_.randint(1, 30)):
            parts += [random_.choice(words), random_.choice(spaces)]
            length += len(parts[-1]) + len(parts[-2])
    return "".join(parts)[:size]


NOISE = [" "] * 6 + list("abthe[]<>_'.,-\n1") + ["日", "中", "、", "。", "か", "\u0301", "\u3099", "[MASK]", "</s>", "<mask>", "<unk>",
                                                     "``", "\u2581", "\u200d"]  # fmt: skip
CHARACTERS = "the river sea 日本語 x"  # enough in a row for a place within a word


def texts_of(random_: random.Random) -> list[str]:
    """Return texts of three kinds."""
    return [
        *(text_of(random_, random_.choice([40, 200, 900, 2500])) for _ in range(5)),
        *("".join(random_.choices(NOISE, k=random_.choice([50, 300, 1000]))) for _ in range(3)),
        "".join(random_.choices(CHARACTERS, k=900)),
    ]


def trained(model, trainer, *, normalizer=None, pre_tokenizer=None, template=("[CLS]", "[SEP]"), added=()):
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator([SEEN, *WORDS] * 5, trainer)
    tokenizer.add_tokens(list(added))
    ids = [(token, tokenizer.token_to_id(token)) for token in template]
    single = f"{template[0]} $A {template[1]}" if template else "$A"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


def wordpiece(normalizer, pre_tokenizer):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=special),
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
        added=[AddedToken("[MASK]", lstrip=True, special=True)],
    )


def bpe(normalizer, pre_tokenizer, *, alphabet=True, **settings):
    special = ["[CLS]", "[SEP]", "<unk>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    return trained(models.BPE(**settings), trainer, normalizer=normalizer, pre_tokenizer=pre_tokenizer)


def unigram(normalizer, pre_tokenizer, *, lstrip=True):
    special = ["<s>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=260, special_tokens=special, unk_token="<unk>")
    return trained(
        models.Unigram(),
        trainer,
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
        template=("<s>", "</s>"),
        added=[AddedToken("<mask>", lstrip=lstrip, special=True)],
    )


def split(pattern):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


def gemma(**settings):
    """Return a BPE over the whole text, with spaces replaced by the normalizer."""
    tokenizer = bpe(
        normalizers.Replace(" ", "\u2581"),
        pre_tokenizers.Split(" ", "merged_with_previous"),
        alphabet=False,
        unk_token="<unk>",
        **settings,
    )
    tokenizer.decoder = decoders.Replace("\u2581", " ")
    return tokenizer


def precompiled(folder):
    """Return the normalizer of a SentencePiece model (XLM-R, T5), with its character map."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from sentencepiece import sentencepiece_model_pb2

    model = folder / "m.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([SEEN] * 9), model_prefix=str(folder / "m"), vocab_size=90, hard_vocab_limit=False, minloglevel=2
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.read_bytes())
    return normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)


KINDS = {
    "bert": lambda: wordpiece(normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()),
    "bert-cased": lambda: wordpiece(
        normalizers.BertNormalizer(lowercase=False, handle_chinese_chars=False), pre_tokenizers.BertPreTokenizer()
    ),
    "whitespace": lambda: wordpiece(normalizers.NFKC(), pre_tokenizers.Whitespace()),
    "words": lambda: trained(
        models.WordLevel(unk_token="[UNK]"),
        trainers.WordLevelTrainer(vocab_size=60, special_tokens=["[UNK]", "[CLS]", "[SEP]"]),
        normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]),
        pre_tokenizer=pre_tokenizers.WhitespaceSplit(),
    ),
    "gpt2": lambda: bpe(None, pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "gpt2-nfd": lambda: bpe(normalizers.NFD(), pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "roberta": lambda: bpe(None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "llama3": lambda: bpe(None, split(GPT2)),
    "qwen": lambda: bpe(normalizers.NFC(), split(QWEN)),
    "xlm-r": lambda: unigram(
        normalizers.Sequence(
            [
                normalizers.Nmt(),
                normalizers.NFKC(),
                normalizers.Strip(left=False, right=True),
                normalizers.Replace(Regex(" {2,}"), " "),
            ]
        ),
        pre_tokenizers.Metaspace(),
    ),
    "t5": lambda: unigram(None, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])),
    "albert": lambda: unigram(
        normalizers.Sequence(
            [
                normalizers.Replace("``", '"'),
                normalizers.Replace("''", '"'),
                normalizers.NFKD(),
                normalizers.StripAccents(),
                normalizers.Lowercase(),
            ]
        ),
        pre_tokenizers.Metaspace(),
    ),
    "gemma": gemma,
    "gemma-fused": partial(gemma, fuse_unk=True),
    "llama2": lambda: bpe(
        normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]),
        None,
        alphabet=False,
        unk_token="<unk>",
        fuse_unk=True,
    ),
    "unigram-unsplit": lambda: unigram(None, pre_tokenizers.Metaspace(split=False), lstrip=False),
}
# Kinds that have no place to cut where the start of a text is cut off.
WITHIN_WORDS = ("gemma", "gemma-fused", "llama2", "unigram-unsplit")


def truncation_of(tokenizer, side):
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Truncation(
        tokenizer.encode_batch_fast,
        partial(_cuts_of, tokenizer),
        partial(_word_places_of, tokenizer),
        side=side,
        special_tokens=tokenizer.num_special_tokens_to_add(is_pair=False),
    )


def expected(tokenizer, text, most, side):
    """Return the truncated ids of the whole text."""
    encoding = tokenizer.encode(text)
    ids, over = encoding.ids, len(encoding.ids) - most
    if over <= 0:
        return ids, 0
    before, after = around(encoding.special_tokens_mask)
    start = before if side == "left" else len(ids) - after - over
    return ids[:start] + ids[start + over :], over


def check(tokenizer, texts, most, side):
    """Compare with the whole texts; return how many were not read completely."""
    rows = truncation_of(tokenizer, side).read(texts, most)
    for text, row in zip(texts, rows, strict=True):
        ids, over = expected(tokenizer, text, most, side)
        assert row.ids.tolist() == ids, (side, most, text)
        assert len(row.types) == len(ids)
        assert row.dropped == over if row.whole else 0 < row.dropped <= over
    return sum(not row.whole for row in rows)


@pytest.fixture
def small_parts(monkeypatch):
    """Set parts to a few characters, so that a short text has many cuts."""
    monkeypatch.setattr(truncation, "_LEAST_PART", 8)
    monkeypatch.setattr(truncation, "_PART", 1)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_of_the_whole_text(kind, side):
    """Whatever the tokenizer and the text, the kept tokens are those of the whole text."""
    tokenizer, random_ = KINDS[kind](), random.Random(kind + side)
    cut = 0
    for _ in range(12):
        cut += check(tokenizer, texts_of(random_), random_.choice([3, 4, 7, 12, 30, 64]), side)
    assert cut > 30 or (side == "left" and kind in WITHIN_WORDS)


ADDED = [
    AddedToken("river", single_word=True), AddedToken("the sea", normalized=True), AddedToken("a,"), AddedToken("中国"),
    AddedToken("NUL", rstrip=True), AddedToken("x\n"), AddedToken("  "),
    AddedToken("a1", single_word=True, normalized=True), AddedToken("日本", single_word=True), AddedToken("語x"),
]  # fmt: skip


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_of_every_kind(kind):
    """The same where words, spaces and parts of words are added tokens, with each of their properties."""
    random_ = random.Random(kind)
    for _ in range(6):
        tokenizer = KINDS[kind]()
        tokenizer.add_tokens(random_.sample(ADDED, 3))
        for side in ("right", "left"):
            texts = ["".join(random_.choices(["the", "river", "sea", "NUL", "a", "1", ",", "，", " ", " ", "  ", "\n", "中", "国", "日", "本語", "x", "."],
                                             k=k)) for k in (40, 200, 200, 200)]  # fmt: skip
            check(tokenizer, texts, random_.choice([4, 12, 40]), side)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_character_map(side, tmp_path):
    """The same for XLM-R's normalizer, which maps graphemes."""
    tokenizer, random_ = unigram(precompiled(tmp_path), pre_tokenizers.Metaspace()), random.Random(side)
    assert sum(check(tokenizer, [text_of(random_, 1500) for _ in range(8)], most, side) for most in (4, 12, 64)) > 10


def shared_tokenizers():
    """Every tokenizer of the shared models, once."""
    actual = {}
    for path in sorted(SHARED.glob("gallery/**/tokenizer.json")) + sorted(SHARED.glob("zoo/*/tokenizer.json")):
        actual.setdefault(path.read_bytes(), path)
    return [pytest.param(path, id=str(path.parent.relative_to(SHARED))) for path in actual.values()]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("path", shared_tokenizers())
def test_the_tokens_of_the_whole_text_of_real_tokenizers(path):
    """The same for the tokenizers of real models."""
    tokenizer, random_ = Tokenizer.from_file(str(path)), random.Random(str(path))
    for side in ("right", "left"):
        for most in (4, 12, 64):
            check(tokenizer, texts_of(random_), most, side)


def test_a_text_that_cannot_be_cut(monkeypatch):
    """Such a text is an error that names its row if it exceeds the limit; otherwise it is read completely."""
    monkeypatch.setattr(truncation, "MOST_CHARACTERS", 4096)
    with monkeypatch.context() as small:
        small.setattr(truncation, "_LEAST_PART", 16)
        small.setattr(truncation, "_PART", 2)
        tokenizer = KINDS["bert"]()
        texts = ["river " * 5000, "\u0e33" * 4096, "\u0e33" * 4097, "sea", "\u0e33" * 9000 + " river sea" * 9]
        with pytest.raises(TextError, match="2 of 5 texts") as caught:
            truncation_of(tokenizer, "right").read(texts, 8)
        assert list(caught.value.rows) == [2, 4]
        assert (
            "has 4,097 characters, and the tokenizer cannot process it in parts of at most 4,096 characters; split it"
            in str(caught.value)
        )
        assert check(tokenizer, [texts[0], texts[1], texts[3]], 8, "right") == 1
        backwards = [texts[4], "river " * 5000]
        assert check(tokenizer, backwards, 8, "left") == 2  # what is read of them, their ends, has places


def test_a_tokenizer_of_unknown_parts(monkeypatch):
    """A tokenizer with an unknown part reads texts completely, up to the limit."""
    monkeypatch.setattr(truncation, "MOST_CHARACTERS", 4096)
    for normalizer, pre_tokenizer in (
        (normalizers.Replace(Regex("(e) (r)"), "x"), pre_tokenizers.WhitespaceSplit()),
        (normalizers.Replace("e r", "x"), pre_tokenizers.WhitespaceSplit()),
        (None, pre_tokenizers.Split(Regex(r"\w+ \w+|\s+"), "isolated")),
        (None, pre_tokenizers.Split(Regex(r"(?<=r)e|\s+"), "isolated")),
        (None, pre_tokenizers.UnicodeScripts()),
        (normalizers.BertNormalizer(), pre_tokenizers.ByteLevel()),
        (None, None),
    ):
        tokenizer = wordpiece(normalizer, pre_tokenizer)
        assert check(tokenizer, ["the river " * 400], 8, "right") == 0
        with pytest.raises(TextError, match="cannot process it in parts"):
            truncation_of(tokenizer, "right").read(["the river " * 500], 8)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("model", "pre_tokenizer"),
    [
        ("words", pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")),
        ("words", pre_tokenizers.Split(Regex(r"\s+|\p{N}"), "isolated")),
        ("words", pre_tokenizers.Split(Regex(r"\s+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"),
                                       "isolated")),
        ("words", pre_tokenizers.Split(" ", "merged_with_next", invert=True)),
        ("words", pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(use_regex=False), pre_tokenizers.Whitespace()])),
        ("words", pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(use_regex=False), pre_tokenizers.Metaspace()])),
        ("words", pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.WhitespaceSplit()])),
        ("words", pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Metaspace(prepend_scheme="first")])),
        ("bpe", pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\p{N}|\s+(?!\S)"), "isolated"),
                                         pre_tokenizers.ByteLevel(use_regex=False)])),
    ],
)  # fmt: skip
@pytest.mark.parametrize("normalizer", [None, normalizers.Replace(" ", "\u2581")])
def test_pre_tokenizers_that_split_less_than_they_seem_to(model, pre_tokenizer, normalizer):
    """A pattern without letters, an inverted pattern, and steps after one that replaces spaces allow few cuts."""
    special = ["[UNK]", "[CLS]", "[SEP]"]
    if model == "words":
        tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        trainer = trainers.WordLevelTrainer(vocab_size=500, special_tokens=special)
    else:
        tokenizer, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(vocab_size=500, special_tokens=special)
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(["the.sea the river, the sea\nthe.river"] * 5, trainer)
    random_ = random.Random(0)
    for side in ("right", "left"):
        texts = ["".join(random_.choices(["the", "river", "sea", " ", " ", ".", ", ", "\n", "1"], k=300)) for _ in range(6)]
        check(tokenizer, texts, 12, side)


def test_counts_of_truncated_tokens(tmp_path):
    """The count of truncated tokens of a long text is a lower bound and marked as one; kept tokens are counted exactly."""
    with Embedder.load(tiny_model(tmp_path), truncate="right") as e:
        tokenized = e.tokenize(["cat " * 100, "cat", "cat " * 100_000])
        assert tokenized.counts.tolist() == [64, 3, 64]
        assert e.count_tokens(["cat " * 100_000]) == [64]
        assert tokenized.at_least.tolist() == [False, False, True]
        assert tokenized.dropped[0] == 38
        assert 0 < tokenized.dropped[2] < 100_000 - 62
        assert tokenized.truncated.tolist() == [0, 2]
        assert tokenized.select([2, 1]).at_least.tolist() == [True, False]
        whole = tokenized.select([0, 1])
        assert Tokenized.join([whole, tokenized]).at_least.tolist() == [False] * 4 + [True]
        assert Tokenized.join([whole, whole]) != Tokenized.join([whole, tokenized.select([2, 1])])
        assert e.tokenize(["cat"]).at_least is None
    with Embedder.load(tmp_path, truncate="error") as e:
        with pytest.raises(TextError) as caught:
            e.embed(["cat " * 100, "cat", "cat " * 100_000])
        assert caught.value.rows[0] == "has 102 tokens, the model's maximum is 64"
        assert caught.value.rows[2].startswith("has at least ")
    with Embedder.load(tmp_path, truncate="left") as e:
        assert np.array_equal(e.embed(["dog " + "cat " * 100_000]), e.embed(["cat " * 62]))
        texts = ["cat"] * 5000 + ["\u0e33" * 2**21]
        with pytest.raises(TextError, match="1 of 5001") as caught:
            e.embed(texts)
        assert list(caught.value.rows) == [5000]


def test_the_page_of_long_texts(tiny, capsys):
    """The example on the page runs, and prints what the page shows."""
    page = (Path(__file__).parents[1] / "docs" / "long-texts.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    exec(code.replace("sentence-transformers/all-MiniLM-L6-v2", tiny.as_posix()), {})
    assert capsys.readouterr().out.splitlines()[1] == "[1]"


def test_memory_and_time_of_long_texts(tiny):
    """33 texts of a million characters need little memory in addition to the texts."""
    script = (
        "import resource, sys, time, warnings; from penult import Embedder\n"
        "warnings.simplefilter('ignore')\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "e = Embedder.load(sys.argv[1], threads=1); e.embed(['a'])\n"
        "texts = [f'{i} the river and the sea ' * 40_000 for i in range(33)]\n"
        "before = peak(); e.embed(texts); print(peak() - before)\n"
    )
    grown = subprocess.run([sys.executable, "-c", script, str(tiny)], capture_output=True, text=True, timeout=120, check=True)
    assert int(grown.stdout) < 150


def test_the_letters_of_a_cut():
    """Each letter beside a cut is a letter under every normalization, and merges with no other."""
    letters = [char for char in map(chr, range(0x10000)) if text_cuts.re.match(f"[{text_cuts._LETTERS}]", char)]
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert all(unicodedata.category(c)[0] == "L" for char in letters for c in unicodedata.normalize(form, char))
        random_ = random.Random(form)
        text = "".join(random_.choices(letters + list(text_cuts._WORD_ENDS), k=50_000))
        assert unicodedata.normalize(form, text) == "".join(unicodedata.normalize(form, char) for char in text)
    assert all(len(char.lower()) == 1 for char in letters)
