"""Long texts: only a part is tokenized, and the tokens that are kept are those of the whole text, to the last one."""

import random
import unicodedata
from functools import partial
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from penult.core import text_cuts, truncation
from penult.core.tokenizer import _cuts_of, _word_places_of
from penult.core.truncation import Truncation, around

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
    """Make a text in which some words come often, so that runs of one script or of long words are common."""
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
    """BPE over the whole text, spaces replaced by the normalizer."""
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
    """The normalizer of a SentencePiece model, XLM-R's and T5's, with its map of characters."""
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
    """Cut the ids of the whole text."""
    encoding = tokenizer.encode(text)
    ids, over = encoding.ids, len(encoding.ids) - most
    if over <= 0:
        return ids, 0
    before, after = around(encoding.special_tokens_mask)
    start = before if side == "left" else len(ids) - after - over
    return ids[:start] + ids[start + over :], over


def check(tokenizer, texts, most, side):
    """Compare with the whole texts; return how many of them were not read whole."""
    rows = truncation_of(tokenizer, side).read(texts, most)
    for text, row in zip(texts, rows, strict=True):
        ids, over = expected(tokenizer, text, most, side)
        assert row.ids.tolist() == ids, (side, most, text)
        assert len(row.types) == len(ids)
        assert row.dropped == over if row.whole else 0 < row.dropped <= over
    return sum(not row.whole for row in rows)


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of a few characters, so that a short text has many places to cut."""
    monkeypatch.setattr(truncation, "_LEAST_PART", 16)
    monkeypatch.setattr(truncation, "_PART", 2)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_of_the_whole_text(kind, side):
    """Whatever the tokenizer and the text, the kept tokens are those of the whole text."""
    tokenizer, random_ = KINDS[kind](), random.Random(kind + side)
    cut = 0
    for _ in range(12):
        texts = [text_of(random_, random_.choice([40, 200, 900, 2500])) for _ in range(8)]
        cut += check(tokenizer, texts, random_.choice([3, 4, 7, 12, 30, 64]), side)
    assert cut > 30 or (side == "left" and kind in WITHIN_WORDS)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_map_of_characters(side, tmp_path):
    """The same for XLM-R's normalizer, which maps graphemes."""
    tokenizer, random_ = unigram(precompiled(tmp_path), pre_tokenizers.Metaspace()), random.Random(side)
    assert sum(check(tokenizer, [text_of(random_, 1500) for _ in range(8)], most, side) for most in (4, 12, 64)) > 10


def shared_tokenizers():
    """Every tokenizer of the shared models, once."""
    found = {}
    for path in sorted(SHARED.glob("gallery/**/tokenizer.json")) + sorted(SHARED.glob("zoo/*/tokenizer.json")):
        found.setdefault(path.read_bytes(), path)
    return [pytest.param(path, id=str(path.parent.relative_to(SHARED))) for path in found.values()]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("path", shared_tokenizers())
def test_the_tokens_of_the_whole_text_of_real_tokenizers(path):
    """The same for the tokenizers of real models."""
    tokenizer, random_ = Tokenizer.from_file(str(path)), random.Random(str(path))
    for side in ("right", "left"):
        texts = [text_of(random_, random_.choice([200, 900, 2500])) for _ in range(20)]
        check(tokenizer, texts, random_.choice([4, 12, 64]), side)


def test_the_letters_of_a_cut():
    """Each letter beside a cut is one under every normalization, and joins no other."""
    letters = [char for char in map(chr, range(0x10000)) if text_cuts.re.match(f"[{text_cuts._LETTERS}]", char)]
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert all(unicodedata.category(c)[0] == "L" for char in letters for c in unicodedata.normalize(form, char))
        random_ = random.Random(form)
        text = "".join(random_.choices(letters + list(text_cuts._WORD_ENDS), k=50_000))
        assert unicodedata.normalize(form, text) == "".join(unicodedata.normalize(form, char) for char in text)
    assert all(len(char.lower()) == 1 for char in letters)
