"""Quality of int8 vectors compared with fp32 vectors of the same texts.

    texts               cosine similarity of each text's two vectors: minimum, 1st percentile, mean
    pairs with scores   Spearman correlation of the cosine similarity with the score, as in the STS benchmark
    a search corpus     nDCG@10 of the queries over the documents, exact search

Handles these three kinds of data and embedders. Independent of graphs.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penult.data import calibration_texts
from penult.text_files import read_lines, read_objects
from penult.types import TextEmbedder, Vectors

_TOP = 10
_PAIRS = ("score", "sentence1", "sentence2")
_JUDGED = ("query-id", "corpus-id", "score")


@dataclass(frozen=True, slots=True)
class Data:
    """Evaluation data.

    Attributes:
        texts: every text once.
        pairs: for each pair, two indices in `texts` and a score; empty for other data.
        relevant: query index -> document index -> gain; indices are those of `texts`. Empty for other data.
        documents: indices of the documents.
        where: description of the file.
    """

    texts: tuple[str, ...]
    pairs: tuple[tuple[int, int, float], ...] = ()
    relevant: Mapping[int, Mapping[int, float]] | None = None
    documents: tuple[int, ...] = ()
    where: str = ""


@dataclass(frozen=True, slots=True)
class Quality:
    """Agreement of two precisions.

    Attributes:
        texts: number of texts compared.
        least: minimum cosine similarity of a text's two vectors.
        percentile: cosine similarity that 99 % of the texts exceed.
        mean: mean cosine similarity.
        spearman: Spearman correlation with the scores, (reference, other); None without pairs.
        ndcg: nDCG@10, (reference, other); None without queries.
    """

    texts: int
    least: float
    percentile: float
    mean: float
    spearman: tuple[float, float] | None
    ndcg: tuple[float, float] | None


def read_data(path: Path | None, limit: int | None = None) -> Data:
    """Read texts, scored pairs or a search corpus.

    1. None: the calibration texts that ship with penult. The scales were calibrated on them, so results are optimistic.
    2. A folder: `corpus.jsonl` and one each of `queries*.jsonl` and `qrels*.tsv`, as in BEIR data sets.
    3. A tab-separated table with the columns `score`, `sentence1`, `sentence2`.
    4. JSON lines with a `text`, or plain lines.

    Args:
        path: the file or folder.
        limit: maximum texts or pairs; a corpus is always read as a whole, since a part of it would be another task.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not of one of these kinds.
    """
    if path is None:
        return Data(
            calibration_texts()[:limit],
            where="penult's calibration texts (int8 was calibrated on them: results are optimistic)",
        )
    if path.is_dir():
        return _corpus(path)
    if path.suffix == ".jsonl":
        return Data(tuple(row["text"] for row in read_objects(path, "text")[:limit]), where=str(path))
    lines = read_lines(path)
    if lines and set(_PAIRS) <= set(lines[0].split("\t")):
        table = _table(path, lines, _PAIRS)[:limit]
        texts = tuple(text for row in table for text in (row["sentence1"], row["sentence2"]))
        return Data(texts, tuple((2 * i, 2 * i + 1, float(row["score"])) for i, row in enumerate(table)), where=str(path))
    return Data(tuple(line for line in lines if line)[:limit], where=str(path))


def measure(reference: TextEmbedder, other: TextEmbedder, data: Data) -> Quality:
    """Embed the data with both embedders and compare the vectors.

    Raises:
        ValueError: there are no texts.
    """
    if not data.texts:
        raise ValueError(f"{data.where or 'The data'} has no texts. Pass a file with texts.")
    queries = set(data.relevant or ())
    a, b = (_embed(embedder, data.texts, queries) for embedder in (reference, other))
    cosines = (a * b).sum(axis=1)
    return Quality(
        texts=len(data.texts),
        least=float(cosines.min()),
        percentile=float(np.quantile(cosines, 0.01)),
        mean=float(cosines.mean()),
        spearman=(_pairs(a, data), _pairs(b, data)) if data.pairs else None,
        ndcg=(_search(a, data), _search(b, data)) if data.relevant else None,
    )


def table(quality: Quality, data: Data) -> str:
    """Return the results as text."""
    lines = [
        f"{quality.texts} texts of {data.where}",
        f"cosine to fp32   mean {quality.mean:.5f}   1st percentile {quality.percentile:.5f}   minimum {quality.least:.5f}",
    ]
    for name, pair in (("Spearman", quality.spearman), ("nDCG@10", quality.ndcg)):
        if pair is not None:
            lines.append(f"{name:16} fp32 {pair[0]:.4f}   int8 {pair[1]:.4f}   difference {pair[1] - pair[0]:+.4f}")
    return "\n".join(lines)


def spearman(a: Sequence[float] | NDArray[np.floating], b: Sequence[float] | NDArray[np.floating]) -> float:
    """Return Spearman's rank correlation; ties get the mean of their ranks."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def ndcg(ranked: Sequence[float], gains: Sequence[float], top: int = _TOP) -> float:
    """Return the normalized discounted cumulative gain of one query.

    Args:
        ranked: gains of the retrieved documents, best first.
        gains: gains of all relevant documents, in any order.
        top: cutoff rank.
    """
    best = _discounted(sorted(gains, reverse=True)[:top])
    return _discounted(list(ranked)[:top]) / best if best else 0.0


def _embed(embedder: TextEmbedder, texts: Sequence[str], queries: set[int]) -> Vectors:
    documents = [i for i in range(len(texts)) if i not in queries]
    out = np.empty((len(texts), embedder.dimension), dtype=np.float32)
    for rows, role in ((documents, "document"), (sorted(queries), "query")):
        if rows:
            out[rows] = embedder.embed([texts[i] for i in rows], role="query" if role == "query" else "document")
    lengths = np.linalg.norm(out, axis=1, keepdims=True)
    return np.asarray(out / np.maximum(lengths, 1e-12), dtype=np.float32)


def _pairs(vectors: Vectors, data: Data) -> float:
    first, second, scores = zip(*data.pairs, strict=True)
    return spearman((vectors[list(first)] * vectors[list(second)]).sum(axis=1), scores)


def _search(vectors: Vectors, data: Data) -> float:
    documents = np.asarray(data.documents)
    per_query = []
    for query, gains in (data.relevant or {}).items():
        best = documents[np.argsort(-(vectors[documents] @ vectors[query]), kind="stable")[:_TOP]]
        per_query.append(ndcg([gains.get(int(document), 0.0) for document in best], list(gains.values())))
    return float(np.mean(per_query))


def _ranks(values: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / float(np.log2(place + 2)) for place, gain in enumerate(gains))


def _corpus(folder: Path) -> Data:
    corpus, queries, judged = (_only(folder, pattern) for pattern in ("corpus.jsonl", "queries*.jsonl", "qrels*.tsv"))
    documents, query_rows = (read_objects(path, "_id", "text") for path in (corpus, queries))
    texts = [f"{row.get('title') or ''} {row['text']}".strip() for row in documents] + [row["text"] for row in query_rows]
    place = {row["_id"]: i for i, row in enumerate(documents)}
    query = {row["_id"]: len(documents) + i for i, row in enumerate(query_rows)}
    relevant: dict[int, dict[int, float]] = {}
    for row in _table(judged, read_lines(judged), _JUDGED):
        if row["query-id"] in query and row["corpus-id"] in place:
            relevant.setdefault(query[row["query-id"]], {})[place[row["corpus-id"]]] = float(row["score"])
    return Data(tuple(texts), relevant=relevant, documents=tuple(range(len(documents))), where=str(folder))


def _only(folder: Path, pattern: str) -> Path:
    matches = sorted(folder.glob(pattern))
    if len(matches) != 1:
        raise FileNotFoundError(f"{folder} has {len(matches)} files {pattern}; a search corpus needs exactly one.")
    return matches[0]


def _table(path: Path, lines: Sequence[str], columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the rows of a tab-separated table; each has these columns, and `score` is a number."""
    rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    for number, row in enumerate(rows, 2):
        if any(row.get(column) is None for column in columns) or not _is_number(row["score"]):
            raise ValueError(
                f"{path}, line {number}: must have the tab-separated columns {', '.join(columns)}, with a number as score."
            )
    return rows


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
