"""A sample of the trials that tools/fault_campaign.py carries out in full, and two runs at once."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_injection import FaultServer, Scenario, fault_server, is_clean, make_scenarios, rerun
from fault_kinds import campaign

SAMPLE = {
    "kill": 6, "kill_twice": 3, "kill_by_clock": 2, "fail": 6, "fail_to_write": 2, "write_short": 1,
    "interrupt": 3, "damage": 4, "truncate_input": 2, "replace_old": 2,
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
