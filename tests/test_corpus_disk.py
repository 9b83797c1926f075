"""Corpora on disk: the same tokens, found again, flat in memory, and never half of one."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from random_models import tiny_tokenizer

import mlp_interp as mi
from mlp_interp.corpus import Corpus, disk, load_corpus, loading, open_corpus
from mlp_interp.models import Weights
from mlp_interp.models._fingerprint import fingerprint, id_blocks

TOKENIZER = tiny_tokenizer()
TEXTS = [f"the cat {number} sat on the mat; hello world" for number in range(40)]
ROOT = Path(__file__).parent


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "cats.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture
def no_tokenising(monkeypatch):
    """After this is called, whoever tokenises fails."""

    def refuse(*args):
        raise AssertionError("tokenised again")

    return lambda: monkeypatch.setattr(loading.Job, "run", refuse)


def load(source, path=None, **options):
    return load_corpus(source, TOKENIZER, **{"length": 16, "file": path, **options})


@pytest.mark.parametrize("bos", ["each", "documents", "none"])
@pytest.mark.parametrize("block", [1, 50, 1 << 18])
def test_tokens_and_provenance_are_those_in_memory(tmp_path, monkeypatch, source, bos, block):
    monkeypatch.setattr(disk, "_BLOCK", block)
    expected, path = load(source, bos=bos), tmp_path / "a.npy"
    corpus = load(source, path, bos=bos)
    assert torch.equal(corpus.tokens.long(), expected.tokens)
    assert corpus.attrs == expected.attrs
    assert corpus.path == path
    assert corpus.tokenizer is TOKENIZER
    assert corpus.tokens.dtype == torch.int32
    corpus.verify()
    assert np.array_equal(np.load(path), expected.tokens.numpy())  # a plain .npy
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "a.npy.json", "cats.jsonl"]


def test_tokens_are_mapped_and_writing_to_them_stays_in_memory(tmp_path, source):
    corpus = load(source, tmp_path / "a.npy")
    before = (tmp_path / "a.npy").read_bytes()
    assert str(tmp_path / "a.npy") in Path("/proc/self/maps").read_text()
    corpus.tokens[0, 0] = 7
    assert int(corpus.tokens[0, 0]) == 7
    assert (tmp_path / "a.npy").read_bytes() == before
    with pytest.raises(ValueError, match=r"tokens in .*a.npy' have sha256=.*: they are damaged"):
        corpus.verify()


def test_finished_file_is_found_again(tmp_path, source, no_tokenising):
    first = load(source, tmp_path / "a.npy", sequences=5)
    no_tokenising()
    again = load(source, str(tmp_path / "a.npy"), sequences=5)
    assert again.attrs == first.attrs
    assert torch.equal(again.tokens, first.tokens)
    os.utime(source, ns=(1, 1))  # touched, but the same by its hash
    assert load(source, tmp_path / "a.npy", sequences=5).attrs == first.attrs


def test_texts_and_nano_are_found_again(tmp_path, nano, no_tokenising):
    first = load(TEXTS, tmp_path / "a.npy")
    second = load_corpus("nano", nano, sequences=3, file=tmp_path / "b.npy")
    assert len(load_corpus("nano", nano, file=tmp_path / "c.npy")) == 64  # endless otherwise
    no_tokenising()
    assert torch.equal(load(TEXTS, tmp_path / "a.npy").tokens, first.tokens)
    found = load_corpus("nano", nano, sequences=3, file=tmp_path / "b.npy")
    assert torch.equal(found.tokens, second.tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, r"a.npy' was made with seed=0; wanted seed=1: give another name, delete it"),
        ({"length": 8, "bos": "none"}, "made with length=16, bos='each'; wanted length=8, bos='no"),
        ({"sequences": 3}, "made with sequences=None; wanted sequences=3"),
        ({"errors": "skip"}, "made with errors='raise'; wanted errors='skip'"),
    ],
)
def test_other_options_are_refused(tmp_path, source, options, message):
    load(source, tmp_path / "a.npy")
    before = (tmp_path / "a.npy").read_bytes()
    with pytest.raises(ValueError, match=message):
        load(source, tmp_path / "a.npy", **options)
    assert (tmp_path / "a.npy").read_bytes() == before


def test_other_sources_and_tokenizers_are_refused(tmp_path, source, nano, monkeypatch):
    path = tmp_path / "a.npy"
    load(source, path)
    with pytest.raises(ValueError, match=r"made with source='cats.jsonl', .*wanted source='str"):
        load(TEXTS, path)
    with pytest.raises(ValueError, match=r"made with .*tokenizer_sha256=.*; wanted"):
        load_corpus(source, nano, length=16, file=path)
    text = source.read_text()
    source.write_text(text.replace("cat 7", "dog 7"))
    os.utime(source, ns=(1, 1))
    with pytest.raises(ValueError, match="made with file_mtime_ns="):
        load(source, path)
    source.write_text(text + "\n")
    with pytest.raises(ValueError, match=r"made with file_bytes=\d+, file_mtime_ns="):
        load(source, path)
    load(TEXTS, tmp_path / "b.npy")
    with pytest.raises(ValueError, match="made with strings_sha256="):
        load([*TEXTS, "more"], tmp_path / "b.npy")


def test_large_files_are_told_by_size_and_time(tmp_path, source, monkeypatch):
    monkeypatch.setattr("mlp_interp.corpus.sources._HASHED", 10)
    load(source, tmp_path / "a.npy")
    load(source, tmp_path / "a.npy")
    os.utime(source, ns=(1, 1))
    with pytest.raises(ValueError, match="made with file_mtime_ns="):
        load(source, tmp_path / "a.npy")


def test_what_can_be_read_once_is_not_taken_for_the_same(tmp_path):
    load(iter(TEXTS), tmp_path / "a.npy")
    with pytest.raises(ValueError, match="can only be read once, so whether it is the same cannot"):
        load(iter(TEXTS), tmp_path / "a.npy")


def test_names_that_are_taken_or_have_no_folder(tmp_path, source):
    before = source.read_bytes()
    with pytest.raises(ValueError, match=r"cats.jsonl' is there already, and is not overwritten"):
        load(source, source)
    assert source.read_bytes() == before
    with pytest.raises(ValueError, match=r"there is no folder '.*nowhere'"):
        load(source, tmp_path / "nowhere" / "a.npy")
    with pytest.raises(ValueError, match="is there already"):
        load(source, tmp_path)


def test_nothing_is_left_of_what_failed(tmp_path, source):
    with pytest.raises(ValueError, match=r"sequences=9999, length=16: cats.jsonl holds"):
        load(source, tmp_path / "a.npy", sequences=9999)
    source.write_text(source.read_text() + "damage\n")
    with pytest.raises(ValueError, match="line 41: not JSON"):
        load(source, tmp_path / "a.npy")
    assert [p.name for p in tmp_path.iterdir()] == ["cats.jsonl"]


def test_two_at_once(tmp_path, source):
    path = tmp_path / "a.npy"
    with disk.TokenWriter(path, 4), pytest.raises(ValueError, match="written by another process"):
        load(source, path)
    assert len(load(source, path)) > 1


def test_writer_that_was_overtaken_touches_nothing(tmp_path, monkeypatch):
    # Another process finished between this one's look at the file and its lock.
    path, lock = tmp_path / "a.npy", disk.FileLock.acquire

    def finished_meanwhile(self):
        path.write_bytes(b"finished")
        return lock(self)

    monkeypatch.setattr(disk.FileLock, "acquire", finished_meanwhile)
    with pytest.raises(ValueError, match="is there already, and is not overwritten"):
        disk.TokenWriter(path, 4)
    assert path.read_bytes() == b"finished"
    assert [file.name for file in tmp_path.iterdir()] == ["a.npy"]


def test_a_writer_lets_go_of_its_lock_at_the_end(tmp_path):
    for name in ("a.npy", "b.npy"):
        with disk.TokenWriter(tmp_path / name, 4) as rows:
            rows.append(np.arange(4))
            rows.finish({})
        assert not list(tmp_path.glob("*.lock"))
    assert np.load(tmp_path / "b.npy").tolist() == [[0, 1, 2, 3]]


SLOW = """
    import sys, time
    sys.path.insert(0, {root!r})
    from random_models import tiny_tokenizer
    from mlp_interp.corpus import disk, load_corpus
    disk._BLOCK = 16

    def texts():
        for number in range(1_000_000):
            time.sleep(0.001)
            yield f"the cat {{number}} sat on the mat; hello world"

    load_corpus(texts(), tiny_tokenizer(), length=16, seed=None, file={path!r})
"""


def test_killed_and_begun_anew(tmp_path):
    path = tmp_path / "a.npy"
    script = textwrap.dedent(SLOW).format(root=str(ROOT), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", script])
    part = tmp_path / "a.npy.part"
    while process.poll() is None and not (part.exists() and part.stat().st_size > 300):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert part.exists()
    assert not path.exists()
    with pytest.raises(ValueError, match="does not exist; wanted a token file"):
        open_corpus(path)
    corpus = load(TEXTS, path, seed=None)
    assert torch.equal(corpus.tokens.long(), load(TEXTS, seed=None).tokens)
    assert not part.exists()


def test_killed_before_the_last_step(tmp_path, monkeypatch):
    path, replace = tmp_path / "a.npy", Path.replace

    def killed(part, target):
        if target == path:
            raise KeyboardInterrupt
        return replace(part, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        load(TEXTS, path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy.json"]
    monkeypatch.undo()
    assert torch.equal(load(TEXTS, path).tokens.long(), load(TEXTS).tokens)


MEMORY = """
    import json, sys
    from pathlib import Path
    sys.path.insert(0, {root!r})
    from random_models import tiny_tokenizer
    from mlp_interp.corpus import job, load_corpus

    def peak():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

    job.encode = lambda tokenizer, text, **_: list(text.encode())  # a token a byte: quick
    folder, tokenizer = Path({folder!r}), tiny_tokenizer()
    with (folder / "a.jsonl").open("w") as file:
        for number in range(10_000):
            file.write(json.dumps({{"text": f"{{number}} " + "the cat sat " * 90}}) + "\\n")
    load_corpus(folder / "a.jsonl", tokenizer, sequences=2000, file=folder / "warm.npy")
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    corpus = load_corpus(folder / "a.jsonl", tokenizer, file=folder / "b.npy")
    print(corpus.attrs["tokens"], peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_is_flat(tmp_path):
    script = textwrap.dedent(MEMORY).format(root=str(ROOT), folder=str(tmp_path))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    tokens, megabytes = run.stdout.split()
    assert int(tokens) > 10_000_000  # 40 MB as 32-bit integers, 120 MB on the way of an array
    assert float(megabytes) < 16


def test_limit_is_for_memory_alone(tmp_path, monkeypatch):
    real = loading.open_source
    monkeypatch.setattr(loading, "open_source", lambda *args: replace(real(*args), sequences=3))
    assert len(load(TEXTS)) == 3
    assert len(load(TEXTS, tmp_path / "a.npy")) > 3
    assert len(load(TEXTS, tmp_path / "b.npy", sequences=2)) == 2


def test_save_and_open(tmp_path, nano):
    corpus = load_corpus("nano", nano, sequences=4, length=32)
    path = corpus.save(tmp_path / "a.npy")
    opened = open_corpus(path, nano)
    assert opened.attrs == corpus.attrs
    assert torch.equal(opened.tokens.long(), corpus.tokens)
    assert opened.text(1) == corpus.text(1)
    assert open_corpus(str(path)).tokenizer is None
    with pytest.raises(ValueError, match="is there already, and is not overwritten"):
        corpus.save(path)
    with pytest.raises(ValueError, match="was not written by load_corpus; open it by open_corpus"):
        load_corpus("nano", nano, sequences=4, length=32, file=path)
    again = open_corpus(opened[1:3].save(tmp_path / "b.npy"))
    assert opened[1:3].path is None
    assert torch.equal(again.tokens.long(), corpus.tokens[1:3])
    assert again.attrs == corpus[1:3].attrs
    Corpus(torch.tensor([[2**31 - 1]])).save(tmp_path / "c.npy")
    with pytest.raises(ValueError, match=r"tokens holds 2147483648; wanted ids up to 2147483647"):
        Corpus(torch.tensor([[2**31]])).save(tmp_path / "d.npy")


def test_files_that_are_not_whole_or_not_ours(tmp_path, source, nano):
    path, beside = tmp_path / "a.npy", tmp_path / "a.npy.json"
    load(source, path)
    with pytest.raises(ValueError, match=r"model='nano' has another tokenizer than .*TokenizersB"):
        open_corpus(path, nano)
    known = json.loads(beside.read_text())
    big = {**known, "highest": 300}
    for changed, message in (
        ({**known, "format": "x"}, "has format 'x'; wanted 'mlp_interp tokens 1'"),
        ({**known, "shape": [1, 2]}, r"holds int32 \(\d+, 16\); wanted int32 \(1, 2\)"),
        ({"format": "x"}, "is damaged"),
        ([], "is damaged"),
    ):
        beside.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            open_corpus(path)
    beside.write_text(json.dumps(big))
    with pytest.raises(ValueError, match="holds token 300, outside its vocabulary of 278"):
        open_corpus(path, TOKENIZER)
    beside.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        open_corpus(path)
    beside.write_text(json.dumps(known))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"has \d+ bytes; wanted \d+, as its JSON says"):
        open_corpus(path)
    beside.unlink()
    with pytest.raises(ValueError, match=r"has no 'a.npy.json' beside it"):
        open_corpus(path)


def test_opening_reads_no_tokens(tmp_path, source, monkeypatch):
    load(source, tmp_path / "a.npy")

    def refuse(tokens):
        raise AssertionError("read")

    monkeypatch.setattr("mlp_interp.corpus.corpus._digest", refuse)
    assert open_corpus(tmp_path / "a.npy").attrs["source"] == "cats.jsonl"


def test_analyses_take_what_is_on_disk(tmp_path, nano):
    expected = load_corpus("nano", nano, sequences=4, length=12)
    corpus = load_corpus("nano", nano, sequences=4, length=12, file=tmp_path / "a.npy")
    assert Weights.of(nano).checked(corpus).dtype == torch.int64
    batches = list(corpus.batches(3))
    assert [batch.dtype for batch in batches] == [torch.int64] * 2
    assert torch.equal(torch.cat(batches), expected.tokens)
    for analysis in (mi.norms, mi.subupdate_importance):
        assert analysis(nano, corpus).identical(analysis(nano, expected))
    for tokens in (corpus.tokens, expected.tokens):
        cache = mi.cache_for(nano, tokens)
        direct = mi.ablate_direct(nano, cache, ["3.mlp"], tokens=tokens)
        total = mi.ablate_total(nano, tokens, ["3.mlp"])
        np.testing.assert_allclose(total.delta_loss, direct.delta_loss, atol=1e-5)
    assert fingerprint(nano, corpus.tokens) == fingerprint(nano, expected.tokens)


def test_id_blocks_are_the_tokens():
    tokens = torch.arange(60).reshape(12, 5)[::2]
    for size in (1, 5, 12, 1000):
        blocks = list(id_blocks(tokens.int(), size=size))
        assert np.array_equal(np.concatenate(blocks), tokens.numpy())
        assert all(block.dtype == np.dtype("<i8") for block in blocks)
        assert max(block.size for block in blocks) <= max(size, 5)
