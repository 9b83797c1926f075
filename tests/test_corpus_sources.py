"""`load_corpus`: every kind of source, its provenance, and one error for each mistake."""

import gzip
import hashlib
import json
import socket
import warnings
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from corpora import TEXTS, hub, write_jsonl, write_parquet, write_zst
from datasets.exceptions import DatasetNotFoundError
from random_models import tiny_tokenizer

from mlp_interp.corpus import Corpus, files, load_corpus

TOKENIZER = tiny_tokenizer()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def load(source, **options):
    return load_corpus(source, TOKENIZER, **{"length": 16, **options})


@pytest.mark.parametrize("seed", [0, 5, None])
def test_every_way_to_hold_documents_gives_the_same(tmp_path, seed):
    expected = load(TEXTS, seed=seed)
    for path in (
        write_jsonl(tmp_path / "a.jsonl"),
        write_zst(tmp_path / "a.jsonl.zst"),
        write_zst(tmp_path / "b.jsonl.zst", frames=3),
        write_parquet(tmp_path / "a.parquet"),
        str(tmp_path / "A.JSONL"),
    ):
        if isinstance(path, str):
            (tmp_path / "a.jsonl").rename(path)
        corpus = load(path, seed=seed)
        assert torch.equal(corpus.tokens, expected.tokens)
        assert corpus.attrs["sha256"] == expected.attrs["sha256"]
        assert corpus.attrs["documents_used"] == expected.attrs["documents_used"]


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The documents in four files of as many kinds, and things beside them that are none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "deep").mkdir(parents=True)
    write_jsonl(tmp_path / "data" / "part-0.jsonl", TEXTS[:10])
    write_zst(tmp_path / "data" / "part-1.jsonl.zst", TEXTS[10:20])
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[20:30])
    (tmp_path / "data" / "part-2.json.gz").write_bytes(gzip.compress(lines.encode()))
    write_parquet(tmp_path / "data" / "deep" / "part-3.parquet", TEXTS[30:])
    (tmp_path / "data" / "README.md").write_text("no document")
    (tmp_path / "data" / ".part.jsonl").write_text("hidden")
    return ["data/part-0.jsonl", "data/part-1.jsonl.zst", "data/part-2.json.gz"], (
        "data/deep/part-3.parquet"
    )


@pytest.mark.parametrize(
    "source",
    [
        lambda names, last: [*names, last],
        lambda names, last: tuple(map(Path, (*names, last))),
        lambda names, last: map(Path, [*names, last]),
        lambda names, last: iter([*names, last]),
        lambda names, last: np.array([*names, last]),
        lambda names, last: pd.Series([*names, last]),
        lambda names, last: ["data/part-*", "data/deep/"],
        lambda names, last: ["data/part-?.json*", Path("data/deep")],
        lambda names, last: [str(Path(name).resolve()) for name in (*names, last)],
    ],
)
def test_several_files_are_one_corpus(parts, source):
    corpus = load(source(*parts), seed=None)
    assert torch.equal(corpus.tokens, load(TEXTS, seed=None).tokens)
    assert corpus.attrs["source"] == "part-0.jsonl … part-3.parquet (4 files)"
    assert corpus.attrs["files"] == 4
    names = [*parts[0], parts[1]]
    assert corpus.attrs["file_bytes"] == sum(Path(name).stat().st_size for name in names)
    each = " ".join(hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in names)
    assert corpus.attrs["file_sha256"] == hashlib.sha256(each.encode()).hexdigest()


@pytest.mark.parametrize("source", ["data", Path("data"), "./data", "data/", "data/**/*part-*"])
def test_a_folder_or_a_glob_is_all_files_in_it(parts, source):
    expected = load(sorted([*parts[0], parts[1]]), seed=None)
    assert torch.equal(load(source, seed=None).tokens, expected.tokens)
    assert load(source).attrs["documents_read"] == len(TEXTS)


def test_a_glob_of_one_file_is_that_file(parts):
    assert load("data/*-0.jsonl").attrs == load("data/part-0.jsonl").attrs


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (["data/part-0.jsonl", "data/part-9.jsonl"], "'data/part-9.jsonl' does not exist; wanted"),
        (["part-0.jsonl", "part-1.jsonl"], "'part-0.jsonl' does not exist"),
        (["data/README.md"], "has .md; wanted a file that ends in"),
        ("data/*", "has .md; wanted a file that ends in"),
        ("data/*.txt", r"source='data/\*.txt' matches no file"),
        (["data/none-*.jsonl"], "matches no file"),
        (["data/part-0.jsonl"] * 2, "names 'data/part-0.jsonl' more than once"),
        (["data", "the cat"], "found some text"),
        (
            ["the cat", "data/part-0.jsonl"],
            r"source\[1\]='data/part-0.jsonl' is a file among texts",
        ),
        (["the cat", Path("x.jsonl")], r"source\[1\]='x.jsonl' is a file among texts"),
    ],
)
def test_names_that_are_no_files(source, message):
    if message == "found some text":
        assert load(source, length=4).attrs["source"] == "strings"
    else:
        with pytest.raises(ValueError, match=message):
            load(source)


def test_what_is_wrong_in_one_of_several_files_says_which(parts):
    Path("data/part-1.jsonl").write_text('{"text": "a"}\n{"body": "a"}\n')
    with pytest.raises(ValueError, match=r"\(2 files\), part-1.jsonl, line 2: no field 'text'"):
        load(["data/part-0.jsonl", "data/part-1.jsonl"], seed=None)


def test_several_files_kept_on_disk_are_found_again_unless_one_changed(parts):
    names, _ = parts
    first = load(names, file="kept.npy")
    assert torch.equal(load(names, file="kept.npy").tokens, first.tokens)
    write_jsonl(Path(names[0]), ["other", *TEXTS[1:10]])
    with pytest.raises(ValueError, match=r"was made with file_bytes=.*wanted file_bytes="):
        load(names, file="kept.npy")


@pytest.mark.parametrize(
    "source",
    [
        lambda texts: np.array(texts),
        lambda texts: np.array(texts, dtype=object),
        lambda texts: pd.Series(texts, index=range(5, 5 + len(texts))),
        lambda texts: pd.Series(texts, dtype="string"),
        lambda texts: pd.DataFrame({"id": 1, "text": texts}),
        lambda texts: [{"id": 1, "text": text} for text in texts],
        lambda texts: ({"text": text} for text in texts),
        lambda texts: datasets.Dataset.from_dict({"text": texts}),
        tuple,
    ],
)
def test_arrays_series_frames_and_rows_are_corpora(source):
    corpus = load(source(TEXTS))
    assert torch.equal(corpus.tokens, load(TEXTS).tokens)
    assert corpus.attrs["documents_used"] == load(TEXTS).attrs["documents_used"]


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_missing_entries_of_a_series_are_empty(missing):
    assert load(pd.Series([*TEXTS, missing], dtype=object)).attrs["documents_empty"] == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            pd.DataFrame({"body": TEXTS}),
            "no column 'text' among 'body'; name the column that holds",
        ),
        (np.array([TEXTS]), r"source=\(1, 40\) of ndarray; wanted \[document\]"),
        (np.arange(3), r"source\[0\]: found int; wanted text"),
        (torch.arange(3), r"source=Tensor; wanted .* by Corpus\(tokens\)"),
        ([{"body": "a"}], r"source\[0\]: no field 'text' among 'body'"),
    ],
)
def test_tables_without_text(source, message):
    with pytest.raises(ValueError, match=message):
        load(source)


@pytest.mark.parametrize("log", [27, 28, 31])
def test_zst_with_a_long_window(tmp_path, log):
    """As ``zstd --long=31`` writes it: a frame that asks for a window of ``2**log`` bytes."""
    data = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    head = b"\x28\xb5\x2f\xfd\0" + bytes([(log - 10) << 3])
    block = ((len(data) << 3) | 1).to_bytes(3, "little")  # the last one, not compressed
    (tmp_path / "a.jsonl.zst").write_bytes(head + block + data)
    assert torch.equal(load(tmp_path / "a.jsonl.zst").tokens, load(TEXTS).tokens)


def test_seed_orders_documents_and_nothing_else_does():
    assert load(TEXTS).attrs["sha256"] == load(iter(TEXTS)).attrs["sha256"]
    assert load(TEXTS).attrs["sha256"] != load(TEXTS, seed=1).attrs["sha256"]
    before = torch.random.get_rng_state()
    load(TEXTS, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_provenance_of_a_file(tmp_path):
    path = write_jsonl(tmp_path / "cats.jsonl", [*TEXTS, "", "  "])
    corpus = load(path, seed=3, bos="documents")
    ids = corpus.tokens.numpy().astype("<i8").tobytes()
    expected = {
        "source": "cats.jsonl",
        "data": f"cats.jsonl, {len(corpus)} sequences of 16 tokens",
        "sequences": len(corpus),
        "length": 16,
        "tokens": corpus.tokens.numel(),
        "sha256": hashlib.sha256(ids).hexdigest(),
        "seed": 3,
        "bos": "documents",
        "tokenizer": "TokenizersBackend",
        "documents_read": 42,
        "documents_used": 39,  # of the last, nothing filled a row
        "documents_skipped": 2,
        "documents_empty": 2,
        "documents_broken_utf8": 0,
        "documents_bad_json": 0,
        "documents_not_objects": 0,
        "documents_without_field": 0,
        "documents_not_text": 0,
        "documents_of_one_token": 0,
        "file_bytes": path.stat().st_size,
        "file_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert corpus.attrs == expected
    assert all(isinstance(value, str | int | float) for value in corpus.attrs.values())
    assert load(path, seed=None).attrs["seed"] == "none"


def test_large_files_are_not_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr("mlp_interp.corpus.sources._HASHED", 10)
    attrs = load(write_jsonl(tmp_path / "a.jsonl")).attrs
    assert "file_sha256" not in attrs
    assert attrs["file_bytes"] > 10


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 20])
def test_txt_is_one_document_however_it_is_read(tmp_path, monkeypatch, piece):
    text = "Hello, world!\n\n  the cat’s mat — été 世界\r\n\r\nsat;  on\n\n\n the mat.\n" * 6
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8-sig", newline="")
    monkeypatch.setattr(files, "_PIECE", piece)
    corpus = load(path, bos="none", length=2)
    ids = TOKENIZER(text)["input_ids"]
    assert corpus.tokens.flatten().tolist() == ids[: len(ids) // 2 * 2]
    assert corpus.attrs["documents_read"] == corpus.attrs["documents_used"] == 1


def test_files_are_read_no_further_than_needed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"the cat sat " * 200_000 + b"\xff")  # the damage is 2 MB away
    assert len(load(path, sequences=5)) == 5
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS * 50) + "damage")
    assert len(load(lines, sequences=5)) == 5
    assert load(lines, sequences=5).attrs["documents_read"] < 1100


def test_field_names_the_text(tmp_path):
    expected = load(TEXTS).tokens
    assert torch.equal(
        load(write_jsonl(tmp_path / "a.jsonl", field="body"), field="body").tokens, expected
    )
    assert torch.equal(
        load(write_parquet(tmp_path / "a.parquet", column="b"), field="b").tokens, expected
    )


def test_documents_that_are_not_utf8_are_counted_and_reported(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b'{"text": "caf\xe9"}\n'
    path.write_bytes(b"".join(lines))
    message = r"a.jsonl: left out 1 of 40 documents: 1 not valid UTF-8 \(first: line 3\)"
    with pytest.warns(UserWarning, match=message):
        corpus = load(path)
    assert corpus.attrs["documents_skipped"] == 1


def test_nano(nano):
    corpus = load_corpus("nano", nano)
    assert corpus.tokens.shape == (64, 128)
    assert corpus.attrs["source"] == "nano's generated text (heldout)"
    assert corpus.attrs["tokenizer"] == "nano"
    assert (corpus.tokens[:, 0] == nano.tokenizer.bos_token_id).all()
    more = load_corpus("nano", nano, sequences=80)
    assert torch.equal(more.tokens[:64], corpus.tokens)
    assert not torch.equal(load_corpus("nano", nano, seed=1).tokens, corpus.tokens)
    assert not torch.equal(load_corpus("nano", nano, split="train").tokens, corpus.tokens)


def model_with(**cfg):
    return SimpleNamespace(tokenizer=TOKENIZER, cfg=SimpleNamespace(model_name="m", **cfg))


def test_default_length_fits_the_model():
    corpus = load_corpus(TEXTS * 9, model_with(n_ctx=40, d_vocab=300))
    assert corpus.attrs["length"] == 40
    assert load_corpus(TEXTS * 9, model_with(n_ctx=512, d_vocab=300)).attrs["length"] == 128


@pytest.mark.parametrize(
    ("cfg", "options", "message"),
    [
        (
            {"n_ctx": 40, "d_vocab": 300},
            {"length": 41},
            "length=41 is beyond the model's context of 40",
        ),
        ({"n_ctx": 40, "d_vocab": 99}, {}, "model='m': token .* is outside its vocabulary of 99"),
    ],
)
def test_model_that_does_not_fit(cfg, options, message):
    with pytest.raises(ValueError, match=message):
        load_corpus(TEXTS, model_with(**cfg), **options)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (TEXTS, {"sequences": 0}, "sequences=0; wanted at least 1, or None for all"),
        (TEXTS, {"length": 1}, "length=1; wanted at least 2"),
        (
            ["the cat"],
            {"sequences": 2},
            r"sequences=2, length=16: strings holds 2 tokens in 1 docu",
        ),
        (["the cat"], {}, "sequences=all, .* enough for 0 sequences; ask for a smaller length"),
        (TEXTS, {"sequences": 999}, r"enough for \d\d sequences; ask for sequences=\d\d or fewer"),
        ([], {}, "strings holds 0 tokens in 0 documents; wanted some text"),
        (["", " \n"], {}, r"0 documents \(2 more were left out: 2 empty\); wanted some text"),
        (TEXTS, {"split": "train"}, "split='train', subset=None: only datasets on the hub"),
        ("nano", {"split": "test"}, "split='test'; wanted 'heldout' or 'train' for 'nano'"),
        ("nano", {"subset": "x"}, "subset='x': 'nano' has none"),
        ("nano", {"seed": None}, "seed=None: the text of 'nano' is generated"),
        ("missing.txt", {}, "source='missing.txt' does not exist; wanted a file"),
        ("./missing", {}, "does not exist"),
        ("data/pile/part.jsonl.zst", {}, "does not exist"),
        ("a name with spaces", {}, "neither a file that is there nor the name of a dataset"),
    ],
)
def test_bad_sources_and_options(source, options, message):
    with pytest.raises(ValueError, match=message):
        load(source, **options)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (["the cat", 5], {}, r"strings, source\[1\]: found int; wanted text"),
        (5, {}, "source=int; wanted 'nano', a file, a list of strings, or the name of a dataset"),
        (b"the cat", {}, "source=bytes; wanted"),
        (TEXTS, {"bos": "some"}, "bos='some'; wanted 'each', 'documents' or 'none'"),
    ],
)
def test_sources_and_options_of_the_wrong_kind(source, options, message):
    with pytest.raises(ValueError, match=message):
        load(source, **options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            b"text\n",
            r"has .csv; wanted a file that ends in .txt, .jsonl, .jsonl.gz, .jsonl.zst, ",
        ),
        ("README", b"text\n", "has no suffix; wanted"),
        ("a.txt", b"", "a.txt holds 0 tokens in 0 documents .*; wanted some text"),
        ("a.txt", b" \n\n", "wanted some text"),
        ("a.txt", b"one\ntwo\nthr\xffee\n", "a.txt, line 3: not UTF-8 .*; wanted UTF-8: convert"),
        ("a.txt", "text".encode("utf-16"), "a.txt, line 1: not UTF-8"),
        ("a.jsonl", b"", "a.jsonl holds 0 tokens"),
        (
            "a.jsonl",
            b'{"text": "a"}\n\n{"text": \n',
            r"a.jsonl, line 3: not JSON \(Expecting value at",
        ),
        (
            "a.jsonl",
            b'{"text": "a"}\n"a"\n',
            "a.jsonl, line 2: found str; wanted an object with 'text'",
        ),
        (
            "a.jsonl",
            b'{"body": "a", "id": 1}\n',
            "line 1: no field 'text' among 'body', 'id'; name the",
        ),
        ("a.jsonl", b'{"text": 3}\n', "line 1: 'text' holds int; wanted text"),
        ("a.jsonl", b'{"text": null}\n', "1 more were left out: 1 empty"),
        ("a.jsonl.zst", b"not compressed", "could not be read as zstd: "),
        ("a.parquet", b"not parquet", "could not be read as parquet: "),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / name)


def test_bad_parquet_column_and_folder(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", column="body")
    with pytest.raises(
        ValueError, match=r"a.parquet: no column 'text' among 'id', 'body'; name the"
    ):
        load(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"is a folder without any file that ends in .txt, .jsonl"):
        load(tmp_path / "empty")


def test_truncated_zst_is_not_taken_for_the_end(tmp_path):
    path = write_zst(
        tmp_path / "a.jsonl.zst", [f"{t} {hashlib.sha256(t.encode())}" for t in TEXTS] * 90
    )
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"a.jsonl.zst.* ends in the middle of a frame"):
        load(path)


def test_hub_is_streamed(monkeypatch):
    asked = hub(monkeypatch, TEXTS)
    corpus = load("NeelNanda/pile-10k")
    assert asked == [(("NeelNanda/pile-10k", None), {"split": "train", "streaming": True})]
    assert torch.equal(corpus.tokens, load(TEXTS).tokens)
    assert corpus.attrs["source"] == "NeelNanda/pile-10k (train)"
    assert corpus.attrs["dataset"] == "NeelNanda/pile-10k"
    load("pile", split="validation", subset="all")
    assert asked[1] == (
        ("monology/pile-uncopyrighted", "all"),
        {"split": "validation", "streaming": True},
    )
    load("fineweb-2.0")
    assert asked[2][0] == ("fineweb-2.0", None)
    hub(monkeypatch, TEXTS * 2)
    assert load_corpus("pile", TOKENIZER).attrs["length"] == 600


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (
            ConnectionError("Couldn't reach 'a/b' on the Hub"),
            ConnectionError,
            r"could not get dataset 'a/b' .*\(Couldn't reach .* or use load_corpus\('nano'",
        ),
        (
            DatasetNotFoundError("Dataset 'a/b' doesn't exist"),
            ValueError,
            "source='a/b' is not a dataset on the Hugging Face hub that you may read, nor a file",
        ),
        (
            ValueError("Bad split: train. Available: ['test']\nmore"),
            ValueError,
            r"source='a/b', subset=None, split='train': Bad split: train. Available: \['test'\]$",
        ),
    ],
)
def test_hub_errors(monkeypatch, raised, expected, message):
    hub(monkeypatch, raised)
    with pytest.raises(expected, match=message):
        load("a/b")


def test_hub_without_the_field(monkeypatch):
    hub(monkeypatch, TEXTS)
    with pytest.raises(
        ValueError, match=r"a/b \(train\), row 0: no field 'content' among 'text', 'meta'"
    ):
        load("a/b", field="content")


def test_progress_can_be_switched_off(capfd, monkeypatch):
    monkeypatch.setattr("mlp_interp.corpus.job.BAR_AFTER", 0)
    load(TEXTS)
    assert "Reading strings" in capfd.readouterr().err
    load(TEXTS, progress=False)
    assert not capfd.readouterr().err


def test_corpus_of_own_tokens():
    tokens = torch.arange(12).reshape(4, 3)
    corpus = Corpus(tokens, attrs={"source": "mine"})
    assert len(corpus) == 4
    assert [row.tolist() for row in corpus] == tokens.tolist()
    assert corpus[1].tolist() == [3, 4, 5]
    assert [b.shape[0] for b in corpus.batches(3)] == [3, 1]
    assert torch.equal(torch.cat(list(corpus.batches(3))), tokens)
    part = corpus[1:3]
    assert part.attrs["data"] == "mine, 2 sequences of 3 tokens"
    assert part.attrs["sha256"] != corpus.attrs["sha256"]
    assert part.attrs["sha256"] == Corpus(tokens[1:3].int()).attrs["sha256"]
    assert corpus.text(0) == "#0 #1 #2"
    assert corpus.token_text(1) == ["#3", "#4", "#5"]


def test_sequences_are_chosen_by_indices_of_any_kind():
    tokens = torch.arange(12).reshape(4, 3)
    corpus = Corpus(tokens)
    for index in (np.int64(2), torch.tensor(2), -2):
        assert corpus[index].tolist() == [6, 7, 8]
    mask = [True, False, False, True]
    several = [[0, 3], (0, 3), np.array([0, -1]), torch.tensor([0, 3]), mask, np.array(mask)]
    for index in [*several, torch.tensor(mask), slice(None, None, 3)]:
        part = corpus[index]
        assert torch.equal(part.tokens, tokens[[0, 3]])
        assert part.attrs["sha256"] == Corpus(tokens[[0, 3]]).attrs["sha256"]
    assert torch.equal(corpus[::-1].tokens, tokens.flip(0))
    for wrong, message in ((4, "index=4; wanted integers from -4 to 3"), (mask[:2], "2 bools")):
        with pytest.raises(IndexError, match=message):
            corpus[wrong]
    with pytest.raises(ValueError, match="is empty"):
        corpus[[]]


def test_repr_and_text():
    corpus = load(TEXTS, seed=None)
    first, second = repr(corpus).splitlines()
    assert first.startswith(
        f"Corpus(strings, {len(corpus)} sequences of 16 tokens, bos='each', seed='none'"
    )
    assert second.startswith("  [0] '<|endoftext|>the cat")
    assert "".join(corpus.token_text(0)) == corpus.text(0)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(3).long(), r"tokens=\(3,\) of torch.int64; wanted integers \[sequence, pos"),
        (torch.zeros(1, 3), r"tokens=\(1, 3\) of torch.float32; wanted integers"),
        (torch.zeros(0, 3).long(), r"tokens=\(0, 3\) is empty"),
        (torch.tensor([[1, -2]]), "tokens holds -2; wanted token ids from 0"),
    ],
)
def test_bad_corpus(tokens, message):
    with pytest.raises(ValueError, match=message):
        Corpus(tokens)
    with pytest.raises(ValueError, match="size=0; wanted at least 1"):
        Corpus(torch.ones(1, 1).long()).batches(0)


def test_no_warnings_of_long_texts(caplog):
    short = tiny_tokenizer()
    short.model_max_length = 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_corpus(TEXTS, short, length=16)
    assert not caplog.records
