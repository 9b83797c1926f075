"""Rows of ``make bench``: how they are measured, printed as one table, kept and compared."""

import ctypes
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

SHAPES = {
    "14m": {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4},
    "70m": {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8},
    "160m": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "410m": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 8},
}
VOCABULARY = 50_304


@dataclass(frozen=True)
class Setting:
    """Where and how large: `small` tries every line in a minute and measures nothing."""

    root: Path
    shape: str = "70m"
    device: str = "cpu"
    small: bool = False
    repeats: int = 3


@dataclass(frozen=True)
class Row:
    """One comparison: `ratio` is the time of theirs over ours; NaN where nothing compares."""

    work: str
    ratio: float
    ours: float
    theirs: float
    bound: str
    bar: float | None = None
    memory: float = float("nan")
    error: float = float("nan")


def random_model(shape: str) -> GPTNeoXForCausalLM:
    """A random model of a Pythia shape."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        **SHAPES[shape],
        intermediate_size=4 * SHAPES[shape]["hidden_size"],
        vocab_size=VOCABULARY,
        rotary_pct=0.25,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        max_position_embeddings=2048,
    )
    return GPTNeoXForCausalLM(config)


def directory(shape: str, root: Path) -> Path:
    """A random model of a Pythia shape, saved as a Hugging Face directory."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from random_models import tiny_tokenizer

    path = root / f"pythia-{shape}-random"
    if path.exists():
        return path
    random_model(shape).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def compare(
    work: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    repeats: int,
    bound: str,
    bar: float | None = None,
    every: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Row:
    """Run both in turn: medians, the median ratio, memory of ours, the largest difference.

    Where `theirs` does one in `every` entries of what `ours` gives, its time counts so often. What
    one of them gives no number of is not compared but in time.
    """
    found, wanted = _ended(ours), _ended(theirs)
    error = float("nan")
    if found is not None and wanted is not None:
        error = float((found.flatten()[::every] - wanted.flatten()).abs().max())
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        for name, function in (("ours", ours), ("theirs", theirs)):
            gc.collect()
            start = clock()
            _ended(function)
            times[name].append(clock() - start)
    ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True)) * every
    fast, slow = (statistics.median(each) for each in times.values())
    return Row(work, ratio, fast, slow * every, bound, bar, peak(ours), error)


def _ended(run: Callable[[], Any]) -> torch.Tensor | None:
    """What a call gives, when a GPU is done with it."""
    found = run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return None if found is None else torch.as_tensor(found).cpu()


def allowed(
    work: str,
    ours: Callable[[], Any],
    *,
    repeats: int,
    seconds: float = float("nan"),
    bound: str = "nothing to compare with",
) -> Row:
    """What has no counterpart: processor time, beside the seconds that it may take, if it is said.

    Arguments as of `compare`.
    """
    ours()
    took = statistics.median(processor_time(ours) for _ in range(repeats))
    bar = None if math.isnan(seconds) else 1.0
    return Row(work, seconds / took, took, seconds, bound, bar, peak(ours))


def processor_time(run: Callable[[], Any]) -> float:
    """Seconds of one call, of all threads."""
    start = time.process_time()
    run()
    return time.process_time() - start


def peak(run: Callable[[], Any]) -> float:
    """How far a call takes memory above what the process holds before it, MB.

    On a GPU its memory; else that of the process, on Linux with glibc. The kernel's peak is set
    back before, as that of loading a model is above all that follows; and what was freed goes back
    to the system, for it would be used again unseen.
    """
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    if not Path("/proc/self/clear_refs").exists():
        run()
        return float("nan")
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _held("VmRSS")
    run()
    return max(0.0, _held("VmHWM") - before)


def _held(name: str) -> float:
    """The kernel's number for the process, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


HEAD = f"{'ratio':>8} {'bar':>5} {'ours':>9} {'theirs':>9} {'memory':>8} {'apart':>6}  work (bound)"


def line(row: Row) -> str:
    """One line of the table; a bar that is missed has a mark."""
    bar = "" if row.bar is None else f"{row.bar:.3g}" + "!" * (row.ratio < row.bar)
    compared = f"{row.ratio:7.2f}x", f"{row.theirs:8.3f}s"
    ratio, theirs = (" " * len(x) if math.isnan(row.ratio) else x for x in compared)
    apart = " " * 6 if math.isnan(row.error) else f"{row.error:6.0e}"
    return (
        f"{ratio} {bar:>5} {row.ours:8.3f}s {theirs} {row.memory:5.0f} MB "
        f"{apart}  {row.work} ({row.bound})"
    )


def keep(rows: Sequence[Row], path: Path, about: dict[str, Any]) -> None:
    """Write rows and what they were measured on as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {"about": about, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def beside(old: Path, new: Path) -> str:
    """Two files of rows side by side, with the change of the ratio and of our time."""
    before, after = (
        {row["work"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
        for path in (old, new)
    )
    lines = [f"{'ratio':>8} {'was':>8} {'change':>7} {'ours':>9} {'was':>9} {'change':>7}  work"]
    for work, now in after.items():
        if (was := before.get(work)) is None:
            lines.append(
                f"{now['ratio']:7.2f}x {'new':>8} {'':7} {now['ours']:8.3f}s {'':17}  {work}"
            )
            continue
        ratio, ours = (now[name] / was[name] - 1 for name in ("ratio", "ours"))
        lines.append(
            f"{now['ratio']:7.2f}x {was['ratio']:7.2f}x {ratio:+7.0%} "
            f"{now['ours']:8.3f}s {was['ours']:8.3f}s {ours:+7.0%}  {work}"
        )
    return "\n".join([*lines, *(f"    gone: {work}" for work in before if work not in after)])
