"""`convert --correct`: the blocks of corrected layers are written, and what stands in the way is said."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from full_disk import small_files
from program import run
from safetensors.numpy import save_file

import ggplan
from ggplan import correcting
from ggplan.calibration import Calibration
from ggplan.cli.guidance import uncorrected_notes
from ggplan.conversion import ConvertOptions, convert
from ggplan.conversion.correction import layers_folder
from ggplan.correcting import Corrected, require_correctable
from ggplan.correcting.kept import KeptLayers
from ggplan.errors import CalibrationError, CheckpointError, ConversionError, PlanError
from ggplan.forward.building import require_transformers
from ggplan.planning import Feedback, Plan
from ggplan.reshaping import Reshaping, reshape
from ggplan.rules import parse_recipe

sys.path[:0] = [str(Path(__file__).parent.parent / name) for name in ("arch", "calibration")]
from filling import filled  # noqa: E402
from tiny_checkpoints import read_case, write_case  # noqa: E402

RECIPE = "@default q8_0\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(tmp_path_factory.mktemp("models") / "tiny", read_case("glm4moe"))


@pytest.fixture
def plan(checkpoint: Path, tmp_path: Path) -> Plan:
    calibration = filled(tmp_path / "calibration", 32, layers=(7,))
    model = ggplan.open_model(checkpoint, pre="glm4")
    feedback = Feedback(calibration, corrected=True)
    return ggplan.make_plan(model, parse_recipe(RECIPE), imatrix=calibration.imatrix, feedback=feedback)


def made(plan: Plan, value: int) -> dict[str, np.ndarray]:
    """Blocks of q8_0 of which every byte is the same."""
    tensors = [t for t in plan.tensors if t.type.is_quantized and t.name.startswith("blk.1.")]
    assert len(tensors) > 5
    return {
        t.name: np.full((t.tensor.n_rows, t.type.row_bytes(t.tensor.n_columns)), value, np.uint8)
        for t in tensors
    }


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """In place of torch: layer 1 is of bytes 17. What is appended is called before they are given."""
    before: list[Callable[[], None]] = []

    def correct(
        plan: Plan,
        tokens: np.ndarray,
        folder: Path,
        run: str,
        options: object,
        *,
        progress: Callable[[int], None],
    ) -> Corrected:
        assert tokens.shape == (1, 32)
        kept = KeptLayers(folder, run)
        kept.open()
        kept.finish(0, made(plan, 17))
        for call in before:
            call()
        tensors = {t.name: t for t in plan.tensors}
        found = kept.corrected(range(1), tensors)
        progress(sum(rows.dtype.tensor_bytes(rows.shape) for rows in found.blocks.values()))
        return found

    monkeypatch.setattr(correcting, "correct", correct)
    monkeypatch.setattr(correcting, "engine_versions", dict)
    return before


def test_the_output_has_the_blocks_and_says_so(
    plan: Plan, tmp_path: Path, stub: list[Callable[[], None]]
) -> None:
    output, told = tmp_path / "out.gguf", []
    convert(plan, output, progress=told.append)
    model = ggplan.open_model(output)
    assert model.metadata["ggplan.calibration.corrected"].decode() is True
    for name, blocks in made(plan, 17).items():
        stored = model[name].stored
        assert stored is not None
        assert bytes(stored.read_bytes(0, model[name].n_rows)) == blocks.tobytes(), name
    assert not layers_folder(output).exists()
    assert sum(told) == plan.tensor_bytes, "progress counts each byte once"
    assert_no_sources(tmp_path / "out.gguf.sha256", made(plan, 17))


def assert_no_sources(manifest: Path, names: Mapping[str, object]) -> None:
    """A corrected tensor is not made of its weights alone, so no later conversion may take it for that."""
    lines = [line for line in manifest.read_text().splitlines() if "source" in line]
    assert not [line for line in lines if any(name in line for name in names)]


def test_stopped_work_keeps_its_layers(plan: Plan, tmp_path: Path, stub: list[Callable[[], None]]) -> None:
    output = tmp_path / "out.gguf"

    def stopped() -> None:
        raise KeyboardInterrupt

    stub.append(stopped)
    with pytest.raises(KeyboardInterrupt) as told:
        convert(plan, output)
    assert "1 corrected layer is kept in" in told.value.__notes__[0]
    assert (layers_folder(output) / "layer-000.safetensors").exists()
    assert (tmp_path / "out.gguf.part.journal").exists(), "which knows the state of the inputs"
    with pytest.raises(ConversionError, match="begun under another plan"):
        convert(ggplan.make_plan(plan.model, "Q8_0"), output)
    stub.clear()
    convert(plan, output)
    assert not layers_folder(output).exists()
    assert [path.name for path in sorted(tmp_path.iterdir()) if path.is_file()] == [
        "out.gguf",
        "out.gguf.sha256",
    ]


def test_a_full_disk_keeps_the_layers(plan: Plan, tmp_path: Path, stub: list[Callable[[], None]]) -> None:
    """The library that writes a layer's file has an error of its own for it."""
    output = tmp_path / "out.gguf"
    folder = layers_folder(output)

    def full() -> None:
        with small_files(100):
            save_file({"blocks": np.zeros(1000, np.uint8)}, folder / "layer-001.safetensors.part")

    stub.append(full)
    with pytest.raises(ConversionError, match=r"cannot write .*out.gguf.layers: File too large") as error:
        convert(plan, output)
    assert "1 corrected layer is kept" in error.value.hint
    assert "the same command continues from there" in error.value.hint
    stub.clear()
    convert(plan, output)
    assert not folder.exists()


def test_what_cannot_be_corrected_leaves_nothing(
    plan: Plan, tmp_path: Path, stub: list[Callable[[], None]]
) -> None:
    output = tmp_path / "out.gguf"

    def refused() -> None:
        raise ConversionError("a weight is not finite")

    stub.append(refused)
    with pytest.raises(ConversionError, match="not finite"):
        convert(plan, output, ConvertOptions(resume=True))
    assert [path.name for path in tmp_path.iterdir()] == ["calibration"]


def test_a_folder_of_others_is_left_alone(plan: Plan, tmp_path: Path, stub: list[Callable[[], None]]) -> None:
    output = tmp_path / "out.gguf"
    layers_folder(output).mkdir()
    (layers_folder(output) / "thesis.txt").write_text("precious")
    with pytest.raises(ConversionError, match=r"is none of ggplan's"):
        convert(plan, output)
    assert not list(tmp_path.glob("*.part*"))
    convert(ggplan.make_plan(plan.model, "Q8_0"), output)
    assert (layers_folder(output) / "thesis.txt").read_text() == "precious"


def test_layers_that_a_killed_run_left_are_removed(
    plan: Plan, tmp_path: Path, stub: list[Callable[[], None]]
) -> None:
    """Without a journal nothing says what they were made of."""
    output = tmp_path / "out.gguf"
    KeptLayers(layers_folder(output), "f" * 64).open()
    convert(plan, output)
    assert not layers_folder(output).exists()


def test_torch_and_transformers_are_asked_for_when_they_are_needed(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match="needs torch and transformers") as error:
        require_transformers()
    assert "pip install 'ggplan[calibrate]'" in error.value.hint
    with pytest.raises(CheckpointError, match="needs torch and transformers"):
        convert(plan, tmp_path / "out.gguf")


def test_the_engine_torch_runs_folders_alone(tmp_path: Path, plan: Plan) -> None:
    from ggplan.calibration.torch_engine import TorchEngine, TorchOptions

    gguf = tmp_path / "model.gguf"
    convert(ggplan.make_plan(plan.model), gguf)
    with pytest.raises(CalibrationError, match="not a Hugging Face folder"):
        TorchEngine(ggplan.open_model(gguf), [], [], 512, TorchOptions(1, 1 << 30))


def test_a_gguf_is_not_corrected(tmp_path: Path, plan: Plan) -> None:
    gguf = tmp_path / "model.gguf"
    convert(ggplan.make_plan(plan.model), gguf)
    with pytest.raises(ConversionError, match="correction runs the checkpoint"):
        require_correctable(ggplan.make_plan(ggplan.open_model(gguf), parse_recipe(RECIPE)))


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        (Reshaping(prune_layers=(0,)), "all layers, and --prune-layers leaves some out"),
        (Reshaping(keep_experts={1: (0, 1), 2: (0, 1)}), "all experts, and --keep-experts leaves some out"),
        (Reshaping(fuse=("qkv",)), ""),
        (Reshaping(mtp="drop"), ""),
    ],
)
def test_what_reshaped_models_are_corrected(plan: Plan, wishes: Reshaping, told: str) -> None:
    """Forms are rows in another place; without some layers or experts the checkpoint is another model."""
    model, _ = reshape(plan.model, wishes)
    reshaped = ggplan.make_plan(model, parse_recipe(RECIPE))
    if not told:
        require_correctable(reshaped)
        return
    with pytest.raises(ConversionError, match=told) as caught:
        require_correctable(reshaped)
    assert "leave --correct out" in caught.value.hint


@pytest.mark.parametrize("token", [-1, 10_000_000])
def test_tokens_that_the_model_lacks_are_refused_before_work(
    plan: Plan, tmp_path: Path, stub: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch, token: int
) -> None:
    monkeypatch.setattr(Calibration, "tokens_of_run", lambda self: np.full((1, 32), token, np.int32))
    with pytest.raises(PlanError, match=f"was made with the token {token}, and the model has"):
        convert(plan, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["calibration"]


def test_what_was_not_corrected_is_told(
    plan: Plan, tmp_path: Path, stub: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "blk.1.attn_q.weight"
    finish = KeptLayers.finish
    monkeypatch.setattr(
        KeptLayers, "finish", lambda self, layer, blocks: finish(self, layer, blocks, {name: "it is odd"})
    )
    assert convert(plan, tmp_path / "out.gguf").uncorrected == {name: "it is odd"}
    assert uncorrected_notes({name: "it is odd"}) == [f"{name}: not corrected: it is odd"]


def test_correct_needs_a_calibration(checkpoint: Path, tmp_path: Path) -> None:
    done = run("convert", checkpoint, tmp_path / "out.gguf", "--correct", "--pre", "glm4")
    assert done.returncode == 2
    assert "--correct is for --calibration" in done.stderr
