"""Places where a long text may be cut without changing the tokens before or after the cut.

A cut is allowed only if the normalizer, the pre-tokenizer and the added tokens are all known to process both sides
independently. Each part is JSON here, as in tokenizer.json. An unknown part allows no cut.

Every cut is between a letter and a single character that cannot belong to its word and is followed by another letter ("a b"
between "a" and " b"). The allowed letters are a conservative set: each is a letter under every Unicode normalization and in
every version of Unicode, combines with neither neighbor, and is a grapheme of its own. So no normalizer acts across the cut.
"""

import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Part = Mapping[str, Any]

IDEOGRAPHS = "\u4e00-\u9fa5"
# Latin, Greek and Cyrillic without letters that decompose; Hebrew, Arabic, Thai, kana without voiced ones, Hangul.
_LETTERS = (
    "A-Za-z\u0391-\u03a1\u03a3-\u03a9\u03b1-\u03c9\u0410-\u0418\u041a-\u042f\u0430-\u0438\u043a-\u044f"
    "\u05d0-\u05ea\u0627-\u063a\u0641-\u064a\u0e01-\u0e30"
    "\u3042\u3044\u3046\u3048\u304a\u304b\u304d\u304f\u3051\u3053\u3055\u3057\u3059\u305b\u305d\u305f\u3061\u3063\u3064\u3066"
    "\u3068\u306a-\u306f\u3072\u3075\u3078\u307b\u307e-\u3093"
    "\u30a2\u30a4\u30a6\u30a8\u30aa\u30ab\u30ad\u30af\u30b1\u30b3\u30b5\u30b7\u30b9\u30bb\u30bd\u30bf\u30c1\u30c3\u30c4\u30c6"
    "\u30c8\u30ca-\u30cf\u30d2\u30d5\u30d8\u30db\u30de-\u30f3"
    "\uac00-\ud7a3"
) + IDEOGRAPHS  # fmt: skip
# The apostrophe begins the suffix of a word in some patterns, and the underscore is a letter in others.
_PUNCTUATION = "".join(sorted({*string.punctuation} - {"'", "_"})) + "\uff0c\u3002\uff01\uff1f\u3001\uff1b\uff1a"
_SPACES = " \n"
_WORD_ENDS = _SPACES + _PUNCTUATION + string.digits

# Normalizers that map each character, or each composed character, independently of its neighbors.
_LOCAL = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "BertNormalizer", "Precompiled")
_MAPS = ("ByteLevel", "Metaspace")  # pre-tokenizers that replace spaces by other characters
_REMOVES_SPACES = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
# Runs of two or more spaces; no such run is next to a cut.
_SPACE_RUNS = (" {2,}", "\\s{2,}")
# Alternatives of the patterns of byte-level tokenizers (GPT-2, CLIP, cl100k, o200k, Llama 3, Qwen). None of them matches a
# letter and, after it, white space, a digit or punctuation other than the apostrophe; none of them looks behind.
_ALTERNATIVES = frozenset((
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?i:[sdmt]|ll|ve|re)",
    "'(?i:[sdmt]|ll|ve|re)", " ?\\p{L}+", " ?\\p{N}+", " ?[^\\s\\p{L}\\p{N}]+", "\\s+(?!\\S)", "\\s+", "\\p{L}+", "[\\p{L}]+",
    "\\p{N}", "[\\p{N}]", "\\p{N}{1,3}", "[^\\s\\p{L}\\p{N}]+", "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+",
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*", " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*", "\\s*[\\r\\n]+", "\\s*[\\r\\n]",
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+",
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*",
    "<\\|startoftext\\|>", "<\\|endoftext\\|>",
))  # fmt: skip
# Those of them that match any letter. A pattern without one does not split letters from the next character.
_ANY_LETTER = frozenset((" ?\\p{L}+", "\\p{L}+", "[\\p{L}]+", "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"))
_CASES = ("\\p{M}]+[\\p{Ll}", "\\p{M}]*[\\p{Ll}")  # o200k has separate alternatives for uppercase words and for all others


@dataclass(frozen=True, slots=True)
class Cuts:
    """The places at which a tokenizer allows a cut.

    Attributes:
        place: pattern that matches the empty string at each place. None: no cut is allowed.
        apart: whether the text after a cut, tokenized on its own, has the same tokens as in the whole text. The tokens of the
            text before a cut are always the same.
        plain: characters, in the syntax of a regular expression's class, that the normalizer maps one by one within a word that
            no pre-tokenizer splits; only the model determines the tokens there. Empty: unknown.
    """

    place: re.Pattern[str] | None = None
    apart: bool = False
    plain: str = ""


@dataclass(frozen=True, slots=True)
class AddedText:
    """An added token as it is matched in a text: its content, or its normalized content."""

    content: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


def cuts_of(normalizer: Part | None, pre_tokenizer: Part | None, added: Sequence[AddedText]) -> Cuts:
    """Return the cuts that all parts of a tokenizer allow."""
    normalizers, steps = _flat(normalizer, "normalizers"), _flat(pre_tokenizer, "pretokenizers")
    # The spaces that BertNormalizer puts around an ideograph must be removed by the pre-tokenizer.
    bert = any(part["type"] == "BertNormalizer" for part in normalizers)
    if not all(_is_local(part) for part in normalizers) or (bert and not (steps and steps[0]["type"] in _REMOVES_SPACES)):
        return Cuts()
    replaced = [part["pattern"].get("String") for part in normalizers if part["type"] == "Replace"]
    used = {char for pattern in replaced if pattern not in (None, " ") for char in pattern}
    spaces_replaced = " " in replaced
    behind = _without(_behind(steps, spaces_replaced=spaces_replaced), used)
    # No cut within an added token, such as before the "]" of "[MASK]".
    within = {pair[1] for token in added for pair in re.findall(f"(?=([{_LETTERS}].))", token.content, re.DOTALL)}
    single_words = any(
        token.single_word for token in added
    )  # whether such a token matches depends on the next character, such as a digit
    behind = _without(behind, within | set(string.digits if single_words else ""))
    if not within.isdisjoint(_SPACES + "\u2581"):
        behind = _without(behind, set(_SPACES))
    places = [f"(?<=[{_LETTERS}])(?=[{re.escape(behind)}][{_LETTERS}])"] if behind else []
    isolated = any(part["type"] == "BertNormalizer" and part["handle_chinese_chars"] for part in normalizers)
    joined = any(re.search(f"[{IDEOGRAPHS}][{_LETTERS}]", token.content) for token in added)
    if behind and isolated and not joined and not single_words:
        places.append(f"(?<=[{IDEOGRAPHS}])(?=[{_LETTERS}])")
    # Metaspace puts a space before the first word of a text only; "a" and ".b" become "▁a" and ".b", but ".b" becomes "▁.b".
    first = any(step["type"] == "Metaspace" and step.get("prepend_scheme") == "first" for step in steps[1:])
    one_sided = any(part["type"] == "Prepend" or (part["type"] == "Strip" and part["strip_left"]) for part in normalizers)
    sticky = any(token.rstrip and re.search(f"[{_LETTERS}]\\Z", token.content) for token in added)
    strips = any(token.lstrip or token.rstrip for token in added)
    plain = _plain(normalizers, steps, used, spaces_replaced=spaces_replaced, strips=strips)
    return Cuts(
        re.compile("|".join(places)) if places else None,
        apart=not (first or one_sided or sticky or single_words),
        plain="" if single_words else plain,
    )


def _without(characters: str, used: set[str]) -> str:
    """Return the characters that are not in `used`, nor any character of their NFKC form."""
    return "".join(char for char in characters if used.isdisjoint(char + unicodedata.normalize("NFKC", char)))


def _flat(part: Part | None, key: str) -> list[Part]:
    """Return the parts of a sequence, nested ones flattened."""
    if part is None:
        return []
    return [inner for item in part[key] for inner in _flat(item, key)] if part["type"] == "Sequence" else [part]


def _is_local(part: Part) -> bool:
    """Return whether a normalizer processes both sides of a cut independently."""
    if part["type"] != "Replace":
        return part["type"] in (*_LOCAL, "Strip", "Prepend")
    pattern = part["pattern"]
    if "Regex" in pattern:
        return pattern["Regex"] in _SPACE_RUNS
    text = pattern["String"]
    if text == " ":
        return bool(part["content"] == "\u2581")
    return bool(text) and not re.search(f"[{_LETTERS}{_SPACES}0-9]", text)


def _behind(steps: list[Part], *, spaces_replaced: bool) -> str:
    """Return the characters before which the pre-tokenizers split a word; empty if there are none or a part is unknown."""
    best, mapped = "", False
    for step in steps:
        behind = _split_before(step)
        if behind is None:
            return ""
        # Only Metaspace splits at a replaced space; the steps after one that maps characters see the mapped ones.
        if not mapped and (step["type"] == "Metaspace" or not spaces_replaced):
            best = max(best, behind, key=len)
        mapped = mapped or step["type"] in _MAPS
    if best and any(step["type"] == "Punctuation" and step["behavior"] not in ("Isolated", "Removed") for step in steps):
        best = "".join(char for char in best if char in _SPACES)
    if any(step["type"] == "ByteLevel" and step["add_prefix_space"] for step in steps):
        return " " if best else ""  # a part that begins with a space does not get a second one
    return best


def _split_before(step: Part) -> str | None:
    """Return the characters before which a pre-tokenizer splits a word; None if it is unknown."""
    kind = step["type"]
    if kind == "Split":
        return _split_by_pattern(step)
    if kind == "Metaspace":
        return " " if step["split"] and step["replacement"] == "\u2581" else None
    if kind == "ByteLevel":
        return _WORD_ENDS if step["use_regex"] else ""
    known = {"BertPreTokenizer": _SPACES + _PUNCTUATION, "Whitespace": _SPACES + _PUNCTUATION, "WhitespaceSplit": _SPACES}
    return (known | {"Digits": "", "Punctuation": ""}).get(kind)


def _split_by_pattern(step: Part) -> str | None:
    pattern, behavior = step["pattern"], step["behavior"]
    if "String" in pattern:
        split = behavior in ("Isolated", "Removed", "MergedWithNext") and not step["invert"]
        return " " if pattern["String"] == " " and split else None
    alternatives = _alternatives(pattern["Regex"])
    if (behavior, step["invert"]) not in (("Isolated", False), ("Removed", True)) or not alternatives <= _ALTERNATIVES:
        return None
    letters = not _ANY_LETTER.isdisjoint(alternatives) or all(case in pattern["Regex"] for case in _CASES)
    return _WORD_ENDS if letters else ""


def _alternatives(pattern: str) -> set[str]:
    """Split a regular expression at each | outside groups and character classes."""
    parts, depth, in_class, escaped = [""], 0, False, False
    for char in pattern:
        if char == "|" and not (depth or in_class or escaped):
            parts.append("")
            continue
        parts[-1] += char
        if not escaped:
            in_class = (in_class or char == "[") and char != "]"
            depth += 0 if in_class else (char == "(") - (char == ")")
        escaped = char == "\\" and not escaped
    return set(parts)


def _plain(normalizers: list[Part], steps: list[Part], used: set[str], *, spaces_replaced: bool, strips: bool) -> str:
    """Return the class of characters for which only the model determines the tokens; see `Cuts.plain`."""
    kinds = [step["type"] for step in steps]
    if kinds in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]) and steps[-1]["split"]:
        space = ""  # words are tokenized separately: only within a word
    elif (spaces_replaced or kinds == ["Metaspace"]) and not strips and all(_never_splits(step) for step in steps):
        # Several spaces may become one, and trailing spaces may be removed.
        space = "" if any(part["type"] == "Strip" or "Regex" in part.get("pattern", ()) for part in normalizers) else " "
    else:
        return ""
    marks = _without("'_" + _PUNCTUATION + string.digits, used)
    return _LETTERS + re.escape(marks) + space


def _never_splits(step: Part) -> bool:
    """Return whether a pre-tokenizer does not split a text in which every space is replaced."""
    if step["type"] == "Metaspace":
        return not step["split"] and step["replacement"] == "\u2581"
    return bool(step["type"] == "Split" and step["pattern"].get("String") == " ")
