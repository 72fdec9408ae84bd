"""A sample of the trials that tools/fault_campaign.py carries out in full, and two runs at once."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_injection import (
    ROOT,
    FaultServer,
    Scenario,
    fault_server,
    is_clean,
    make_scenarios,
    rerun,
    shard_checkpoint,
)
from fault_kinds import campaign

SAMPLE = {
    "kill": 4, "kill_twice": 2, "kill_by_clock": 1, "fail": 4, "fail_to_write": 2, "write_short": 1,
    "interrupt": 2, "interrupt_twice": 1, "damage": 4, "truncate_input": 1, "replace_old": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with fault_server() as running:
        yield running


@pytest.fixture(scope="module")
def scenarios(server: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scenario]:
    return make_scenarios(server, tmp_path_factory.mktemp("faults") / "scenarios")


@pytest.mark.parametrize("kind", SAMPLE)
def test_the_same_command_ends_in_the_same_bytes(
    server: FaultServer, scenarios: dict[str, Scenario], tmp_path: Path, kind: str
) -> None:
    trials = list(campaign(server, scenarios, tmp_path, {kind: SAMPLE[kind]}, seed=7))
    assert [wrong for _, _, wrong in trials if wrong] == []
    assert len(trials) == SAMPLE[kind]


def test_two_runs_at_once_are_kept_apart(
    server: FaultServer, scenarios: dict[str, Scenario], tmp_path: Path
) -> None:
    scenario = scenarios["gguf"]
    pause = {"kind": "pause", "call": "pwrite", "at": 40, "seconds": 1, "background": True}
    server.run(scenario.arguments, tmp_path / "out.gguf", pause)
    while not (tmp_path / "out.gguf.part").exists():
        time.sleep(0.01)
    refused = server.run(scenario.arguments, tmp_path / "out.gguf")
    assert refused.status == 1
    assert "another run is writing" in refused.stderr
    assert is_clean(refused.stderr)
    while (tmp_path / "out.gguf.part.journal").exists():
        time.sleep(0.01)
    assert rerun(server, scenario, tmp_path, "two at once") == ""


def test_the_order_of_shards_does_not_matter(server: FaultServer, tmp_path: Path) -> None:
    demo = ROOT / "ggplan" / "demo_model"
    outputs = set()
    for seed in range(3):
        place = tmp_path / str(seed)
        place.mkdir()
        folder = shard_checkpoint(demo, place / "demo", n_shards=2 + seed, seed=seed)
        arguments = (str(folder), "--pre", "glm4", "-q", "-t", str(1 + seed))
        assert server.run(arguments, place / "out.gguf").status == 0
        outputs.add((place / "out.gguf").read_bytes())
    assert len(outputs) == 1


@pytest.mark.parametrize(
    "target", ["/dev/full", "{folder}", "{folder}/" + "x" * 250 + ".gguf", "{folder}/no/out"]
)
def test_impossible_outputs_are_one_clean_line(
    server: FaultServer, scenarios: dict[str, Scenario], tmp_path: Path, target: str
) -> None:
    refused = server.run(scenarios["gguf"].arguments, Path(target.format(folder=tmp_path)))
    assert refused.status == 1
    assert is_clean(refused.stderr)
    assert list(tmp_path.iterdir()) == []
