"""A new model that must not serve: the old one goes on, and no part notices."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Trial
from rig import Rig
from support.daemon_process import STATION
from support.tiny_bundle import build_bundle, describe_again, flip_byte, seal

AT_ONCE_S = 1.0


def edit(bundle: Path, **changes: object) -> None:
    """Another manifest, with its digest made right again."""
    manifest = bundle / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))
    seal(bundle)


def bad_seal(bundle: Path) -> None:
    """Another threshold and a manifest to match, but not its digest."""
    thresholds = bundle / "thresholds.json"
    thresholds.write_text(thresholds.read_text().replace("0.5", "0.99"))
    digest = (bundle / "manifest.sha256").read_text()
    describe_again(bundle)
    (bundle / "manifest.sha256").write_text(digest)


def downgrade(bundle: Path) -> None:
    edit(bundle, version="0.9")


def wrong_engine(bundle: Path) -> None:
    edit(bundle, backend="tensorrt")


def golden_failure(bundle: Path) -> None:
    golden = bundle / "golden" / "golden.json"
    golden.write_text(golden.read_text().replace('"score": 0.0', '"score": 0.3'))
    describe_again(bundle)


def missing(bundle: Path) -> None:
    shutil.rmtree(bundle)


FAULTS: dict[Callable[[Path], None], str] = {
    flip_byte: "was changed",
    bad_seal: "manifest",
    downgrade: "older",
    wrong_engine: "TensorRT",
    golden_failure: "golden",
    missing: "bundle",
}


@pytest.mark.fault(
    "bad signature, downgrade, wrong engine, golden failure",
    "`cmd/recipe` names a bundle with one byte changed, with a forged manifest, an older one, one"
    " for TensorRT, one whose golden score does not come out, and none at all; parts flow",
    limit_s=AT_ONCE_S,
)
def test_bad_models(rig: Rig, trial: Trial) -> None:
    recipes = {}
    for spoil in FAULTS:
        bundle = build_bundle(rig.folder / spoil.__name__)
        spoil(bundle)
        recipes[f"recipes.{spoil.__name__}"] = {"bundle": str(bundle)}
    rig.start(**recipes)
    serving = rig.recorder.all("decision")[-1].data["model"]["sha256"]
    for spoil, why in FAULTS.items():
        asked = time.monotonic_ns()
        name = spoil.__name__
        command = json.dumps({"recipe": name}).encode()
        rig.recorder.command(STATION, command, name.encode(), verb="recipe")
        answer = rig.recorder.wait("replies", lambda h, n=name: h.correlation == n.encode(), 20)
        assert answer.data["status"] in {"failed", "refused"}, answer.data
        assert why in answer.data["reason"], answer.data
        trial.recovered(rig.recovery_s(asked, 20))
    rig.wait_parts(10)
    audit = trial.judge(rig.finish())
    models = {h.data["model"]["sha256"] for h in rig.recorder.all("decision")}
    assert models == {serving}
    assert audit.passed > audit.parts // 2


@pytest.mark.fault(
    "recipe changed while parts flow",
    "`cmd/recipe` to a sound bundle and back, six times",
    limit_s=5.0,
)
def test_changeover_under_way(rig: Rig, trial: Trial) -> None:
    other = build_bundle(rig.folder / "other", threshold=0.45)
    rig.start(**{"recipes.other": {"bundle": str(other)}})
    for number in range(6):
        name, threshold = ("other", 0.45) if number % 2 == 0 else ("default", 0.5)
        mark = f"change-{number}".encode()
        command = json.dumps({"recipe": name}).encode()
        rig.recorder.command(STATION, command, mark, verb="recipe")
        answer = rig.recorder.wait("replies", lambda h, m=mark: h.correlation == m, 20)
        assert answer.data["status"] == "done", answer.data
        trial.recovered(rig.recovery_s(round(answer.at * 1e9), 20))
        last = rig.recorder.all("decision")[-1].data
        assert last["threshold"] == threshold
    rig.wait_parts(10)
    trial.judge(rig.finish())
    digest = {0.5: set(), 0.45: set()}
    for heard in rig.recorder.all("decision"):
        digest[heard.data["threshold"]].add(heard.data["model"]["sha256"])
    assert all(len(models) == 1 for models in digest.values()), "one's threshold, another's model"
