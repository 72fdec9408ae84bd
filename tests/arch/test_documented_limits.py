"""What the README says cannot be read is refused by name, and what it says can be read is all there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tiny_checkpoints import read_case, write_case

from ggplan import ggml_types
from ggplan.arch import to_gguf
from ggplan.arch.families import architectures, families
from ggplan.errors import CheckpointError
from ggplan.sources.huggingface import open_checkpoint
from ggplan.sources.schemes import SCHEMES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def limits() -> str:
    return README.partition("**cannot read yet**")[2].partition("\n## ")[0]


@pytest.mark.parametrize("method", ["AQLM", "VPTQ", "HIGGS", "BitNet"])
def test_quantizations_that_cannot_be_read(tmp_path: Path, method: str) -> None:
    assert method in limits()
    folder = write_case(tmp_path, read_case("llama_tied"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method.lower()}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"(?i){method}"):
        to_gguf(open_checkpoint(folder), pre="glm4")


def test_families_that_cannot_be_read(tmp_path: Path) -> None:
    folder = write_case(tmp_path, read_case("llama_tied"))
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["BloomForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="BloomForCausalLM") as error:
        to_gguf(open_checkpoint(folder), pre="glm4")
    assert "`--converter DIR`" in error.value.hint
    assert "`--converter DIR`" in limits()


def test_types_that_cannot_be_written_or_decoded() -> None:
    assert "ik_llama.cpp" in limits()
    for row in ggml_types.TYPES:
        assert (row.encodable or row.decodable) <= (row.engine == "llama.cpp"), row.name


def test_every_class_that_can_be_read_is_named() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for name, architecture in architectures().items():
        (row,) = re.findall(rf"^\| `{architecture.name}` \|.*$", page, re.M)
        assert f"`{name}`" in row


def test_every_form_that_can_be_read_is_named() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    table = page.partition("<!-- forms -->\n")[2].partition("<!-- end of forms -->")[0]
    for scheme in SCHEMES:
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {scheme.NAME} |")]
        assert (scheme.__doc__ or "").partition("\n")[0].strip(" .") in row, "run tools/make_docs.py families"


def test_links_and_names_of_files_in_the_front_door_exist() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
        paths = re.findall(r"`((?:ggplan|tests|tools|docs|tensor_rules)/[\w./-]+)`", text)
        assert links
        for place in {*links, *paths} - {""}:
            is_example = "gp999" in place
            assert is_example or (ROOT / place).exists(), f"{page}: {place}"


def test_every_model_that_is_compared_is_named() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for path in (ROOT / "tests" / "data" / "goldens").glob("*.json"):
        name = json.loads(path.read_text(encoding="utf-8")).get("keys", {}).get("general.architecture")
        if name is None:
            continue
        (row,) = re.findall(rf"^\| `{name[1]}` \|.*$", page, re.M)
        named = row.split(" | ")[3].removesuffix(" |").split(", ")
        assert path.stem in {one.removesuffix(" (bytes alone)") for one in named}, "run tools/make_docs.py"


def test_a_module_of_several_architectures_names_the_models_of_each() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for module in families():
        names = {architecture.name for architecture in module.CLASSES.values()}
        assert set(getattr(module, "MODELS", {})) == (names if len(names) > 1 else set()), module.__name__
        for name, models in getattr(module, "MODELS", {}).items():
            assert f"| `{name}` | {models} |" in page, "run tools/make_docs.py"


@pytest.mark.parametrize(
    ("case", "said", "told"),
    [
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob false, but llama.cpp computes .* with true"),
        ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob true, but llama.cpp computes .* with false"),
        (
            "gemma3",
            {"query_pre_attn_scalar": 100},
            "query_pre_attn_scalar 100, but llama.cpp .* with 32",
        ),
        ("qwen3moe", {"norm_topk_prob": True}, ""),
        ("olmoe", {"norm_topk_prob": False}, ""),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_noted(
    tmp_path: Path, case: str, said: dict[str, object], told: str
) -> None:
    folder = write_case(tmp_path, read_case(case))
    config = json.loads((folder / "config.json").read_text())
    config.update(said)
    (folder / "config.json").write_text(json.dumps(config))
    model = to_gguf(open_checkpoint(folder), pre="glm4")
    notes = [note for note in model.notes if "its results are not the model's" in note]
    assert len(notes) == bool(told)
    assert re.search(told, "".join(notes))
