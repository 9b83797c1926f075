"""Documents, files that hold them, and a stand-in for the hub, for the tests of corpora."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

TEXTS = [f"the cat {number} sat on the mat; hello world" for number in range(40)]


def write_jsonl(path, texts=TEXTS, field="text"):
    path.write_text("".join(json.dumps({"id": 1, field: text}) + "\n" for text in texts))
    return path


def write_zst(path, texts=TEXTS, *, frames=1):
    compressor, lines = zstandard.ZstdCompressor(), [json.dumps({"text": t}) + "\n" for t in texts]
    size = -(-len(lines) // frames)
    parts = ["".join(lines[i : i + size]) for i in range(0, len(lines), size)]
    path.write_bytes(b"".join(compressor.compress(part.encode()) for part in parts))
    return path


def write_parquet(path, texts=TEXTS, column="text"):
    pq.write_table(pa.table({"id": list(range(len(texts))), column: texts}), path)
    return path


def hub(monkeypatch, result):
    """Stand in for the hub up to the network call; returns what was asked of it."""
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        if isinstance(result, Exception):
            raise result
        return ({"text": text, "meta": {}} for text in result)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked
