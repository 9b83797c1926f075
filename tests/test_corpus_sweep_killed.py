"""Sweeps that are killed, on one process and on Ray: nothing is lost and no bit changes."""

import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from processes import begin, end
from random_models import BACKENDS, VOCABULARY, parallel

import mlp_interp as mi
from mlp_interp.checkpoint import Checkpoint
from mlp_interp.corpus import SweepOptions, sweep
from mlp_interp.corpus.reducers import Fraction, Histogram, Loss, Moments, TopExamples
from mlp_interp.corpus.shards import STATES

REDUCERS = [Fraction(), Moments(order=4), Histogram(), TopExamples(k=3), Loss()]


@pytest.fixture
def many():
    return torch.randint(VOCABULARY, (96, 12), generator=torch.Generator().manual_seed(3))


def same(found, wanted):
    for name in wanted:
        for variable in wanted[name].variables:
            np.testing.assert_array_equal(
                found[name][variable].values, wanted[name][variable].values, err_msg=name
            )


@pytest.mark.skipif(sys.platform == "win32", reason="kills with SIGKILL")
def test_ten_kills_lose_nothing(kind, many, tmp_path):
    """Killed ten times at random moments, the sweep ends with the bits of one that was not."""
    model = kind()
    options = {"batch_size": 2, "shard": 3}
    wanted = sweep(model, many, REDUCERS, options=SweepOptions(**options))
    rng, done = random.Random(0), []
    start = time.perf_counter()
    sweep(model, many, REDUCERS, options=SweepOptions(**options))
    whole = time.perf_counter() - start
    for _ in range(10):
        child = begin(
            sweep,
            many,
            REDUCERS,
            make=parallel,
            options=SweepOptions(checkpoint=tmp_path, **options),
        )
        time.sleep(rng.uniform(0, whole / 6))
        os.kill(child.pid, signal.SIGKILL)
        end(child)
        done.append(_shards_done(tmp_path))
    assert done == sorted(done)  # it never goes back
    same(sweep(model, many, REDUCERS, options=SweepOptions(checkpoint=tmp_path, **options)), wanted)
    assert _shards_done(tmp_path) == 32


def _shards_done(folder: Path) -> int:
    files = list(folder.rglob("merged.safetensors"))
    merged = Checkpoint(files[0].parent, STATES).read("merged") if files else None
    return merged.shards if merged else 0


@dataclass(frozen=True, kw_only=True)
class KillsItsWorker(Fraction):
    """Kills the process that comes to one sequence, once (or always)."""

    marker: str = ""
    always: bool = False

    def finish(self, state, batch):
        super().finish(state, batch)
        if batch.first <= 40 < batch.first + len(batch.tokens):
            if not self.always and Path(self.marker).exists():
                return
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    environment = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    # Ray's workers give way to everything else: beside another test process they would starve.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - so Ray spells it
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
class TestRay:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_two_workers_give_the_same_bits_as_one_process(self, cluster, kind, backend, many):
        model = kind("parallel", backend)
        options = {"batch_size": 4, "shard": 10}
        wanted = sweep(model, many, REDUCERS, options=SweepOptions(**options))
        found = sweep(
            model, many, REDUCERS, options=SweepOptions(backend="ray", workers=2, **options)
        )
        same(found, wanted)

    @pytest.mark.parametrize("baseline", ["mean", "resample"])
    def test_analyses_that_run_the_model_themselves_may_be_sent(
        self, cluster, kind, many, baseline
    ):
        model, options = kind(), {"batch_size": 4, "shard": 4}
        for analysis in (
            partial(mi.subupdate_importance, level="head", baseline=baseline),
            partial(mi.ablate_ranges, baseline=baseline),
            mi.neurons.update_shares,
        ):
            found, wanted = (
                analysis(model, many[:12], sweep=SweepOptions(backend=backend, **options))
                for backend in ("ray", "local")
            )
            xr.testing.assert_equal(found, wanted)

    def test_a_killed_worker_is_survived(self, cluster, kind, many, tmp_path):
        model, options = kind(), {"batch_size": 4, "shard": 10}
        marker = tmp_path / "killed"
        wanted = sweep(model, many, {"fraction": Fraction()}, options=SweepOptions(**options))
        kills = {"fraction": KillsItsWorker(marker=str(marker))}
        found = sweep(
            model,
            many,
            kills,
            options=SweepOptions(backend="ray", checkpoint=tmp_path / "kept", **options),
        )
        assert marker.exists()
        same(found, wanted)

    def test_what_goes_wrong_in_a_worker_is_said(self, cluster, kind, many):
        bad = many.clone()
        bad[50, 2] = VOCABULARY
        with pytest.raises(ValueError, match="tokens hold 300; wanted ids from 0 to 299"):
            sweep(
                kind(), bad, Fraction(), options=SweepOptions(backend="ray", batch_size=4, shard=10)
            )

    def test_resources_that_are_not_there_are_refused(self, cluster, kind, many):
        with pytest.raises(ValueError, match=r"num_cpus.*the cluster has 2 processors"):
            sweep(
                kind(),
                many,
                Fraction(),
                options=SweepOptions(backend="ray", resources={"num_cpus": 3}),
            )

    # Each worker that is started anew imports everything; the usual number of trials takes long.
    @pytest.mark.slow
    def test_a_shard_that_kills_every_worker_ends_the_sweep_but_keeps_the_rest(
        self, cluster, kind, many, tmp_path
    ):
        model, options = kind(), {"batch_size": 4, "shard": 10}
        marker = str(tmp_path / "killed")
        kills = {"fraction": KillsItsWorker(marker=marker, always=True)}
        options |= {"checkpoint": tmp_path / "kept", "resources": {"max_retries": 1}}
        with pytest.raises(RuntimeError, match="workers died over shard 4, 2 in a row"):
            sweep(model, many, kills, options=SweepOptions(backend="ray", **options))
        assert _shards_done(tmp_path) == 4


def test_ray_is_optional(kind, many, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'mlp-interp\[ray\]'"):
        sweep(kind(), many, Fraction(), options=SweepOptions(backend="ray"))
