"""Bad input: each kind in each format is counted, reported or refused, as the table says."""

import gzip
import json
import re
import warnings
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from corpora import TEXTS, hub, write_parquet, write_zst
from random_models import tiny_tokenizer, unchecked

from mlp_interp.corpus import files, load_corpus
from mlp_interp.corpus.files import _lines

TOKENIZER = tiny_tokenizer()
GOOD = [json.dumps({"text": text}).encode() for text in TEXTS]
FORMATS = [".jsonl", ".jsonl.gz", ".jsonl.zst"]

# What a line is, how it is counted, and what errors="raise" says of it (None: it goes on).
LINES = {
    "blank": (b"", "empty", None),
    "spaces": (b" \t\r", "empty", None),
    "no text": (b'{"text": ""}', "empty", None),
    "whitespace": (b'{"text": " \\n\\t\\u00a0"}', "empty", None),
    "null": (b'{"text": null}', "empty", None),
    "broken utf-8": (b'{"text": "caf\xe9"}', "broken_utf8", None),
    "utf-16": ('{"text": "a"}'.encode("utf-16"), "broken_utf8", None),
    "half a surrogate pair": (b'{"text": "a \\ud83d b"}', "broken_utf8", None),
    "not json": (b'{"text": "a"', "bad_json", r"not JSON \(Expecting ',' delimiter at column 13"),
    "two rows": (b'{"text": "a"}{"text": "b"}', "bad_json", r"not JSON \(Extra data at column 14"),
    "nul outside": (b'\x00{"text": "a"}', "bad_json", r"not JSON \(Expecting value at column 1"),
    "too deep": (b"[" * 100_000, "bad_json", r"not JSON \(maximum recursion"),
    "too long a number": (b'{"text": ' + b"1" * 5000 + b"}", "bad_json", r"not JSON \(Exceeds the"),
    "array": (b'["text"]', "not_objects", "found list; wanted an object with 'text'"),
    "string": (b'"text"', "not_objects", "found str; wanted an object with 'text'"),
    "null row": (b"null", "not_objects", "found NoneType; wanted an object with 'text'"),
    "other field": (b'{"body": "a"}', "without_field", "no field 'text' among 'body'; name the"),
    "no fields": (b"{}", "without_field", "no field 'text' among none; name the field"),
    "number": (b'{"text": 3}', "not_text", "'text' holds int; wanted text"),
    "list": (b'{"text": ["a"]}', "not_text", "'text' holds list; wanted text"),
}


def write(path, lines):
    data = b"\n".join(lines) + b"\n"
    if path.name.endswith(".gz"):
        data = gzip.compress(data)
    if path.name.endswith(".zst"):
        data = zstandard.ZstdCompressor().compress(data)
    path.write_bytes(data)
    return path


def load(source, **options):
    # Unchecked, so that a warning points to who called.
    return unchecked(load_corpus)(source, TOKENIZER, **{"length": 16, "seed": None, **options})


def silent(source, **options):
    """Load, where a warning is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load(source, **options)


def counts(corpus):
    found = {k.removeprefix("documents_"): v for k, v in corpus.attrs.items() if "documents" in k}
    assert found.pop("skipped") == sum(v for k, v in found.items() if k not in ELSE)
    return {kind: count for kind, count in found.items() if count and kind not in ELSE}


ELSE = ("read", "used", "of_one_token")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", LINES)
def test_lines(tmp_path, suffix, name):
    line, kind, message = LINES[name]
    path = write(tmp_path / f"a{suffix}", [*GOOD[:2], line, *GOOD[2:], line])
    expected = load(TEXTS)
    # UTF-16 holds no line feed here, and so is one line.
    if message is not None:
        with pytest.raises(ValueError, match=rf"^a{suffix}, line 3: {message}") as raised:
            load(path)
        assert "errors='skip' leaves such documents out" in str(raised.value)
    for errors in ("skip",) if message else ("raise", "skip"):
        if kind == "empty":
            corpus = silent(path, errors=errors)
        else:
            warning = rf"a{suffix}: left out 2 of 42 documents: 2 [\w -]+ \(first: line 3\)$"
            with pytest.warns(UserWarning, match=warning) as caught:
                corpus = load(path, errors=errors)
            assert len(caught) == 1
            assert caught[0].filename == __file__
        assert counts(corpus) == {kind: 2}
        assert corpus.attrs["documents_read"] == 42
        assert torch.equal(corpus.tokens, expected.tokens)


def test_all_kinds_are_in_one_warning(tmp_path):
    path = write(tmp_path / "a.jsonl", [*(line for line, _, _ in LINES.values()), *GOOD])
    message = (
        "a.jsonl: left out 20 of 60 documents: 5 empty, 3 not valid UTF-8 (first: line 6), "
        "5 not JSON (first: line 9), 3 not objects (first: line 14), "
        "2 without the field (first: line 17), 2 not text (first: line 19)"
    )
    with pytest.warns(UserWarning, match=rf"^{re.escape(message)}$") as caught:
        corpus = load(path, errors="skip")
    assert len(caught) == 1
    assert all(isinstance(value, str | int) for value in corpus.attrs.values())
    with pytest.warns(UserWarning, match="left out 20 of 60"):
        kept = load(path, errors="skip", file=tmp_path / "a.npy")
    assert kept.attrs == corpus.attrs
    again = silent(path, errors="skip", file=tmp_path / "a.npy")  # said once; attrs still hold it
    assert again.attrs == corpus.attrs


def test_nothing_left(tmp_path):
    path = write(tmp_path / "a.jsonl", [b"damage", b'{"text": 3}', b""])
    with pytest.raises(ValueError, match=r"a.jsonl holds 0 tokens in 0 documents \(3 more were le"):
        load(path, errors="skip")


@pytest.mark.parametrize("suffix", FORMATS)
def test_byte_order_marks_line_ends_and_nul(tmp_path, suffix):
    mark = b"\xef\xbb\xbf"
    expected = load([*TEXTS, "the\0cat"])
    nul = b'{"text": "the\\u0000cat"}'
    lines = [mark + GOOD[0], *(line + b"\r" for line in GOOD[1:-1]), mark + GOOD[-1], nul]
    corpus = silent(write(tmp_path / f"a{suffix}", lines))
    assert counts(corpus) == {}
    assert torch.equal(corpus.tokens, expected.tokens)
    text = "".join(corpus.text(row) for row in range(len(corpus)))
    assert "\ufeff" not in text
    assert "\r" not in text
    kept = silent(["\ufeffthe\0cat"] * 9, bos="none", length=5)
    assert kept.text().startswith("\ufeffthe\0")


def test_last_line_without_its_end(tmp_path):
    path, data = tmp_path / "a.jsonl", b"\n".join(GOOD)
    path.write_bytes(data)
    assert torch.equal(silent(path).tokens, load(TEXTS).tokens)
    path.write_bytes(data[:-3])
    with pytest.raises(ValueError, match="line 40: not JSON"):
        load(path)


@pytest.mark.parametrize("errors", ["raise", "skip"])
@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_truncated_and_damaged_files_are_refused(tmp_path, suffix, errors):
    path, texts = tmp_path / f"a{suffix}", [f"{n} {Random(n).random()}" for n in range(900)]
    if suffix == ".parquet":
        write_parquet(path, texts)
        message = "could not be read as parquet"
    else:
        write(path, [json.dumps({"text": text}).encode() for text in texts])
        message = "ends in the middle of a frame; wanted a whole file"
    data = path.read_bytes()
    for cut in (1, 200, len(data) // 2):
        path.write_bytes(data[:-cut])
        with pytest.raises(ValueError, match=message):
            load(path, errors=errors)
    path.write_bytes(data[:1000] + bytes(len(data) - 1000))
    with pytest.raises(ValueError, match=r"could not be read as|ends in the middle"):
        load(path, errors=errors)
    path.write_bytes(b"something else altogether")
    with pytest.raises(ValueError, match="could not be read as"):
        load(path, errors=errors)


def test_gzip_may_have_several_members(tmp_path):
    path, expected = tmp_path / "a.jsonl.gz", load(TEXTS)
    parts = (b"\n".join(GOOD[:9]) + b"\n", b"\n".join(GOOD[9:]))
    path.write_bytes(b"".join(map(gzip.compress, parts)))
    assert torch.equal(load(path).tokens, expected.tokens)


def test_parquet(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [*TEXTS, "", " \n", None])
    assert counts(silent(path)) == {"empty": 3}
    broken = pa.array([b"the cat", b"caf\xe9", *(t.encode() for t in TEXTS)]).view(pa.string())
    pq.write_table(pa.table({"text": broken}), path)
    warning = r"a.parquet: left out 1 of 42 documents: 1 not valid UTF-8 \(first: row 1\)"
    with pytest.warns(UserWarning, match=warning):
        corpus = load(path)
    assert torch.equal(corpus.tokens, load(["the cat", *TEXTS]).tokens)
    pq.write_table(pa.table({"text": [1, 2]}), path)
    with pytest.raises(ValueError, match=r"a.parquet, row 0: 'text' holds int; wanted text; err"):
        load(path)
    with pytest.raises(ValueError, match="2 not text"):
        load(path, errors="skip")
    with pytest.raises(ValueError, match="no column 'body' among 'text'"):
        load(path, errors="skip", field="body")


@pytest.mark.parametrize("errors", ["raise", "skip"])
def test_txt(tmp_path, errors):
    path = tmp_path / "a.txt"
    for content in (b"", b" \n\r\n", b"\xef\xbb\xbf\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a.txt holds 0 tokens in 0 documents \(1 more were "):
            load(path, errors=errors)
    path.write_bytes(b"the cat\n" * 9 + b"sat \xff\n")
    with pytest.raises(ValueError, match=r"a.txt, line 10: not UTF-8"):
        load(path, errors=errors, length=2, bos="none")
    path.write_bytes(b"the\0cat\r\n\r\nsat")
    corpus = silent(path, errors=errors, length=2, bos="none")
    ids = TOKENIZER("the\0cat\r\n\r\nsat")["input_ids"]
    assert corpus.tokens.flatten().tolist() == ids[: len(ids) // 2 * 2]


def test_strings():
    texts = [*TEXTS[:3], "", " \n", "half \ud83d", *TEXTS[3:]]
    with pytest.warns(UserWarning, match=r"strings: left out 3 of 43 documents: 2 empty, 1 not va"):
        corpus = load(texts)
    assert counts(corpus) == {"empty": 2, "broken_utf8": 1}
    mixed = [*TEXTS, 5, None]
    function = unchecked(load_corpus)
    with pytest.raises(ValueError, match=r"strings, source\[40\]: found int; wanted text"):
        function(mixed, TOKENIZER, length=16)
    with pytest.warns(UserWarning, match=r"1 empty, 1 not text \(first: source\[40\]\)"):
        corpus = function(mixed, TOKENIZER, length=16, errors="skip")
    assert torch.equal(corpus.tokens, load(TEXTS, seed=0).tokens)


@pytest.mark.usefixtures("without_type_checks")
def test_what_shall_become_of_errors():
    with pytest.raises(ValueError, match="errors='ignore'; wanted 'raise' or 'skip'"):
        load(TEXTS, errors="ignore")


def test_hub(monkeypatch):
    hub(monkeypatch, [*TEXTS, "", None, 3])
    with pytest.raises(ValueError, match=r"a/b \(train\), row 42: 'text' holds int"):
        load("a/b")
    with pytest.warns(UserWarning, match="left out 3 of 43 documents: 2 empty, 1 not text"):
        assert counts(load("a/b", errors="skip")) == {"empty": 2, "not_text": 1}


@pytest.mark.parametrize("bos", ["each", "documents", "none"])
def test_documents_of_one_token(bos):
    texts = ["a", "the cat sat on the mat", "b", "c", "", "d"] * 4
    corpus = silent(texts, bos=bos, length=4)
    assert corpus.attrs["documents_of_one_token"] == 16
    assert corpus.attrs["documents_empty"] == corpus.attrs["documents_skipped"] == 4
    ids = [TOKENIZER(text)["input_ids"] for text in texts]
    packed = [
        token for token in corpus.tokens.flatten().tolist() if token != TOKENIZER.bos_token_id
    ]
    assert packed == [token for document in ids for token in document][: len(packed)]
    assert silent(["a"] * 9, bos="none", length=2, sequences=2).attrs["documents_of_one_token"] == 4


@pytest.mark.parametrize("pieces", [[64, 1000], [1 << 20]], ids=["short", "long"])
def test_very_long_lines(tmp_path, monkeypatch, pieces):
    """Cut into short pieces as it is read, a shorter one does."""
    repeats = 9_000 if pieces == [1 << 20] else 1_000  # more than one chunk of any reader
    text = "Hello,  the cat’s mat — été\n\n 世界 sat " * repeats
    expected = load([*TEXTS, text, *TEXTS])
    for suffix in FORMATS:
        path = write(tmp_path / f"a{suffix}", [*GOOD, json.dumps({"text": text}).encode(), *GOOD])
        for piece in pieces:
            monkeypatch.setattr(files, "_PIECE", piece)
            corpus = silent(path)
            assert torch.equal(corpus.tokens, expected.tokens)
            assert corpus.attrs["documents_used"] == expected.attrs["documents_used"]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize("data", [b"", b"\n", b"a", b"a\n", b"\na\n\nbcdefghijk\nl", b"abcdef\n\n"])
def test_lines_of_chunks(data, size):
    chunks = (data[i : i + size] for i in range(0, len(data), size))
    assert list(_lines(chunks)) == data.removesuffix(b"\n").split(b"\n") * bool(data)


def test_frames_of_zstd(tmp_path):
    path = write_zst(tmp_path / "b.jsonl.zst", frames=5)
    assert torch.equal(silent(path).tokens, load(TEXTS).tokens)
