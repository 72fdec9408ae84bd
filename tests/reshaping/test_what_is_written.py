"""What of a model is written, as a user asks for it: MTP blocks, layers, experts, fused tensors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from program import run
from quantized_folders import with_tokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "arch"))

from tiny_checkpoints import read_case, write_case

import ggplan
from ggplan.model import Model

EXPERTS = "1: 0 2\n2: 1-2\n3: 3, 0 # the MTP block\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of three layers, the first of them dense, and an MTP block, with four experts each."""
    return write_case(tmp_path / "glm4moe_mtp", read_case("glm4moe_mtp"))


def convert(source: Path, target: Path, *options: str | Path) -> Model:
    """Convert with options, check that the file is sound and can be made again, and open it."""
    pre = ["--pre", "glm4"] if source.is_dir() else []
    done = run("convert", source, target, *pre, *options)
    assert done.returncode == 0, done.stderr
    imatrix = (
        options[options.index("--imatrix") : options.index("--imatrix") + 2] if "--imatrix" in options else ()
    )
    again = run("reproduce", target, source, *imatrix)
    assert again.returncode == 0, again.stdout + again.stderr
    assert run("verify", target, "--against", source, "--exact", *pre, *imatrix).returncode == 0
    return ggplan.open_model(target)


def values(model: Model, name: str) -> np.ndarray:
    tensor = model[name]
    assert tensor.rows is not None
    return tensor.rows.read_float32(0, tensor.n_rows).reshape(tensor.shape)


def stored_bytes(model: Model, name: str) -> bytes:
    stored = model[name].stored
    assert stored is not None
    return bytes(stored.read_bytes(0, model[name].n_rows))


def key(model: Model, name: str) -> object:
    value = model.metadata.get(f"{model.architecture}.{name}")
    return None if value is None else value.decode()


def refused(*arguments: str | Path, code: int = 1) -> str:
    done = run(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_mtp_blocks_are_kept_dropped_or_alone(folder: Path, tmp_path: Path) -> None:
    kept = convert(folder, tmp_path / "keep.gguf")
    dropped = convert(folder, tmp_path / "drop.gguf", "--mtp", "drop")
    alone = convert(folder, tmp_path / "only.gguf", "--mtp", "only")
    assert (key(kept, "block_count"), key(kept, "nextn_predict_layers")) == (4, 1)
    assert (key(dropped, "block_count"), key(dropped, "nextn_predict_layers")) == (3, None)
    assert (key(alone, "block_count"), key(alone, "nextn_predict_layers")) == (4, 1)
    of_mtp = {t.name for t in kept if t.name.startswith("blk.3.")}
    assert {t.name for t in dropped} == {t.name for t in kept} - of_mtp
    shared = {"token_embd.weight", "output.weight", "output_norm.weight"}
    assert {t.name for t in alone} == of_mtp | shared
    # From a GGUF file that has them, the same keys and tensors come out.
    again = convert(tmp_path / "keep.gguf", tmp_path / "again.gguf", "--mtp", "drop")
    own = {k: v for k, v in again.metadata.items() if not k.startswith("ggplan.")}
    assert own == {k: v for k, v in dropped.metadata.items() if not k.startswith("ggplan.")}
    assert [t.name for t in again] == [t.name for t in dropped]


def test_mtp_of_a_model_without_such_blocks(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "drop.gguf", "--mtp", "drop")
    done = run("plan", tmp_path / "drop.gguf", "--mtp", "drop")
    assert done.returncode == 0
    assert "note: the model has no MTP blocks: `--mtp drop` changes nothing" in done.stderr
    message = refused("convert", tmp_path / "drop.gguf", tmp_path / "x.gguf", "--mtp", "only")
    assert "the model has no MTP blocks to write alone" in message
    assert not (tmp_path / "x.gguf").exists()


def test_mtp_blocks_count_in_no_figure_of_memory(folder: Path, tmp_path: Path) -> None:
    kept, dropped = (
        json.loads(run("plan", folder, "--pre", "glm4", "--mtp", mtp, "--json").stdout)
        for mtp in ("keep", "drop")
    )
    assert kept["totals"]["tensor_bytes"] > dropped["totals"]["tensor_bytes"]
    for figure in ("gpu_bytes", "ram_bytes", "ram_bytes_per_token"):
        assert kept["memory"][figure] == dropped["memory"][figure]
    assert kept["memory"]["nextn_bytes"] > 0
    assert dropped["memory"]["nextn_bytes"] == 0


def test_mtp_tensors_below_q8_0_are_told(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "my.recipe"
    recipe.write_text("# mine\nattn = q8_0\n.* = q4_0\n")
    done = run("rules", "check", recipe, "-m", folder, "--json")
    found = [d for d in json.loads(done.stdout)["recipes"][0]["diagnostics"] if d["severity"] == "warning"]
    assert [d["code"] for d in found] == ["GP217"]
    assert "q4_0 in an MTP block" in found[0]["message"]
    run("rules", "check", recipe, "-m", folder, "--fix", "--unsafe-fixes")
    assert recipe.read_text() == "# mine\n@role nextn = q8_0\nattn = q8_0\n.* = q4_0\n"
    assert run("rules", "check", recipe, "-m", folder).returncode == 0
    assert "GP217" in run("plan", folder, "-r", "Q4_0").stderr
    assert "GP217" not in run("plan", folder, "-r", "Q4_0", "--mtp", "drop").stderr


def test_layers_are_pruned_and_the_others_numbered_anew(folder: Path, tmp_path: Path) -> None:
    whole = convert(folder, tmp_path / "whole.gguf")
    pruned = convert(folder, tmp_path / "pruned.gguf", "--prune-layers", "1")
    assert (key(pruned, "block_count"), key(pruned, "leading_dense_block_count")) == (3, 1)
    for tensor in pruned:
        name = tensor.name.replace("blk.2.", "blk.3.").replace("blk.1.", "blk.2.")
        assert np.array_equal(values(pruned, tensor.name), values(whole, name)), name
    assert len(pruned.tensors) == sum(not t.name.startswith("blk.1.") for t in whole)
    no_dense = convert(folder, tmp_path / "no_dense.gguf", "--prune-layers", "0")
    assert key(no_dense, "leading_dense_block_count") == 0


@pytest.mark.parametrize(
    ("layers", "code", "words"),
    [
        ("4", 1, "there is no layer 4 to prune"),
        ("0,1,2", 1, "no layer is left"),
        ("1,x", 2, "is not a list of"),
    ],
)
def test_layers_that_cannot_be_pruned(folder: Path, layers: str, code: int, words: str) -> None:
    assert words in refused("plan", folder, "--prune-layers", layers, code=code)


def test_experts_of_a_list_are_kept(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text(EXPERTS)
    (tmp_path / "kept.json").write_text('{"1": [0, 2], "2": [2, 1], "3": [0, 3]}')
    whole = convert(folder, tmp_path / "whole.gguf")
    kept = convert(folder, tmp_path / "kept.gguf", "--keep-experts", tmp_path / "kept.txt")
    convert(folder, tmp_path / "json.gguf", "--keep-experts", tmp_path / "kept.json")
    assert (tmp_path / "kept.gguf").read_bytes() == (tmp_path / "json.gguf").read_bytes()
    assert key(kept, "expert_count") == 2
    for tensor in kept:
        expected = values(whole, tensor.name)
        layer = tensor.name.split(".")[1]
        if "_exps." in tensor.name or "ffn_gate_inp" in tensor.name or "exp_probs_b" in tensor.name:
            expected = expected[{"1": [0, 2], "2": [1, 2], "3": [0, 3]}[layer]]
        assert np.array_equal(values(kept, tensor.name), expected), tensor.name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1: 0 2\n2: 1 2\n", "no experts are named for layer 3"),
        ("1: 0 2\n2: 1 2\n3: 0 1 2\n", "2 experts are named for layer 1, 3 for layer 3"),
        ("1: 0 4\n2: 1 2\n3: 0 1\n", "layer 1 has no expert 4: it has 0 to 3"),
        ("1: 0 0\n2: 1 2\n3: 0 1\n", "expert 0 of layer 1 is named twice"),
        ("1: 0\n2: 1\n3: 0\n", "1 experts are too few: each token is routed to 2"),
        ("0: 0 1\n1: 0 1\n2: 1 2\n3: 0 1\n", "experts are named for layer 0, which has none"),
        ("1: 0 1\n1: 0 1\n", "line 2 is a second one for layer 1"),
        ("1: 3-0\n", "3-0 counts down"),
        ("one: 0\n", "line 1 is not `LAYER: EXPERT"),
        ('{"1": [true]}', "layer 1 has no list of experts' numbers"),
        ("[1]", "it is JSON, but no object"),
        ("", "lists no experts"),
    ],
)
def test_lists_of_experts_that_are_wrong(folder: Path, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "kept.txt").write_text(text)
    assert words in refused("plan", folder, "--keep-experts", tmp_path / "kept.txt")


def write_imatrix(path: Path, counts: list[int], layers: tuple[int, ...]) -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    n = len(counts)
    for layer in layers:
        for part, columns in (("gate", 64), ("up", 64), ("down", 32)):
            sums = np.arange(1, n * columns + 1, dtype=np.float32).reshape(n, columns) * 8
            writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight.in_sum2", sums)
            writer.add_tensor(
                f"blk.{layer}.ffn_{part}_exps.weight.counts", np.array(counts, np.float32).reshape(n, 1)
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_experts_are_kept_by_the_counts_of_an_imatrix(folder: Path, tmp_path: Path) -> None:
    imatrix = write_imatrix(tmp_path / "i.gguf", [5, 9, 5, 7], (1, 2))
    (tmp_path / "my.recipe").write_text("_exps = q4_0\n@default bf16\n")
    options = ("--mtp", "drop", "--imatrix", imatrix, "-r", tmp_path / "my.recipe")
    made = convert(folder, tmp_path / "kept.gguf", "--keep-experts", "2", *options)
    assert made.metadata["ggplan.kept_experts"].decode() == "1: 1 3\n2: 1 3"
    assert key(made, "expert_count") == 2
    # The importance goes with the experts: they have the bytes that they have in the whole model.
    whole = convert(folder, tmp_path / "whole.gguf", *options)
    for name in ("blk.1.ffn_gate_exps.weight", "blk.2.ffn_down_exps.weight"):
        assert np.array_equal(values(made, name), values(whole, name)[[1, 3]])
    # A tie goes to the lower number.
    tied = convert(folder, tmp_path / "tied.gguf", "--keep-experts", "3", *options)
    assert tied.metadata["ggplan.kept_experts"].decode() == "1: 0-1 3\n2: 0-1 3"


def test_counts_that_do_not_tell_which_experts(folder: Path, tmp_path: Path) -> None:
    imatrix = write_imatrix(tmp_path / "i.gguf", [5, 9, 5, 7], (1, 2))
    assert "told by the counts of an imatrix" in refused("plan", folder, "--keep-experts", "2")
    message = refused("plan", folder, "--keep-experts", "2", "--imatrix", imatrix)
    assert "no counts of the experts of layer 3" in message
    assert "--mtp drop" in message
    message = refused("plan", folder, "--mtp", "drop", "--keep-experts", "9", "--imatrix", imatrix)
    assert "9 experts cannot be kept: the model has 4" in message
    done = run("plan", folder, "--mtp", "drop", "--keep-experts", "2", "--imatrix", imatrix)
    assert "13 times the perplexity" in done.stderr


def test_numbers_are_those_of_the_model_that_is_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text(EXPERTS)
    both = convert(
        folder, tmp_path / "both.gguf", "--keep-experts", tmp_path / "kept.txt", "--prune-layers", "1"
    )
    whole = convert(folder, tmp_path / "whole.gguf")
    name = "ffn_down_exps.weight"
    assert np.array_equal(values(both, f"blk.1.{name}"), values(whole, f"blk.2.{name}")[[1, 2]])


def test_an_imatrix_follows_pruned_layers(folder: Path, tmp_path: Path) -> None:
    imatrix = write_imatrix(tmp_path / "i.gguf", [1, 2, 3, 4], (2,))
    (tmp_path / "my.recipe").write_text("_exps = q4_0\n@default bf16\n")
    options = ("--mtp", "drop", "--imatrix", imatrix, "-r", tmp_path / "my.recipe")
    pruned = convert(folder, tmp_path / "pruned.gguf", "--prune-layers", "1", *options)
    whole = convert(folder, tmp_path / "whole.gguf", *options)
    name = "ffn_gate_exps.weight"
    assert np.array_equal(values(pruned, f"blk.1.{name}"), values(whole, f"blk.2.{name}"))
    assert pruned.metadata["quantize.imatrix.entries_count"].decode() == 3


def test_q_k_and_v_are_fused_and_cut_apart_again(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "llama_bias", read_case("llama_bias"))
    apart = convert(folder, tmp_path / "apart.gguf")
    fused = convert(folder, tmp_path / "fused.gguf", "--fuse", "qkv")
    for ending in ("weight", "bias"):
        parts = [values(apart, f"blk.1.attn_{part}.{ending}") for part in "qkv"]
        assert np.array_equal(values(fused, f"blk.1.attn_qkv.{ending}"), np.concatenate(parts))
    assert not any(".attn_q." in t.name for t in fused)
    again = convert(tmp_path / "fused.gguf", tmp_path / "again.gguf", "--split", "qkv")
    assert [t.name for t in again] == [t.name for t in apart]
    assert all(np.array_equal(values(again, t.name), values(apart, t.name)) for t in apart)


def test_quantized_rows_of_one_type_are_fused_and_cut_as_they_are(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "qwen3moe", read_case("qwen3moe"))
    (tmp_path / "one.recipe").write_text("attn = q5_0\n.* = q8_0\n")
    (tmp_path / "two.recipe").write_text("attn_v = q8_0\n.* = q5_0\n")
    convert(folder, tmp_path / "one.gguf", "-r", tmp_path / "one.recipe")
    convert(folder, tmp_path / "two.gguf", "-r", tmp_path / "two.recipe")
    fused = convert(tmp_path / "one.gguf", tmp_path / "fused.gguf", "--fuse", "qkv")
    again = convert(tmp_path / "fused.gguf", tmp_path / "again.gguf", "--split", "qkv")
    one = ggplan.open_model(tmp_path / "one.gguf")
    assert str(fused["blk.0.attn_qkv.weight"].type) == "q5_0"
    for tensor in one:
        assert tensor.stored is not None
        same = again[tensor.name].stored
        assert same is not None
        assert same.read_bytes(0, tensor.n_rows) == tensor.stored.read_bytes(0, tensor.n_rows)
    message = refused("convert", tmp_path / "two.gguf", tmp_path / "x.gguf", "--fuse", "qkv")
    assert "blk.0.attn_v.weight q8_0" in message


def test_gate_and_up_of_experts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "moe.gguf", "qwen35moe")
    writer.add_block_count(1)
    parts = {part: rng.standard_normal((3, 8, 32), np.float32) for part in ("gate", "up")}
    for part, weights in parts.items():
        writer.add_tensor(f"blk.0.ffn_{part}_exps.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fused = convert(tmp_path / "moe.gguf", tmp_path / "fused.gguf", "--fuse", "gate-up")
    expected = np.concatenate([parts["gate"], parts["up"]], axis=1)
    assert np.array_equal(values(fused, "blk.0.ffn_gate_up_exps.weight"), expected)
    again = convert(tmp_path / "fused.gguf", tmp_path / "again.gguf", "--split", "gate-up")
    for part, weights in parts.items():
        assert np.array_equal(values(again, f"blk.0.ffn_{part}_exps.weight"), weights)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--fuse", "gate-up"), 1, "llama.cpp does not read gate and up of glm4moe in two forms"),
        (("--split", "qkv"), 1, "the model has no fused q, k and v to cut"),
        (("--fuse", "all"), 2, "'all' is no form of fused tensors: there are gate-up and qkv"),
        (("--fuse", "qkv", "--split", "qkv"), 2, "--fuse and --split both name qkv"),
        (("--mtp", "only", "--prune-layers", "1"), 2, "--mtp only writes no layers to prune"),
        (("--mtp", "dorp"), 2, "'dorp' is not one of"),
    ],
)
def test_what_cannot_be_done(folder: Path, options: tuple[str, ...], code: int, words: str) -> None:
    assert words in refused("plan", folder, *options, code=code)


def test_damaged_records_are_refused(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "drop.gguf", "--mtp", "drop")
    data = (tmp_path / "drop.gguf").read_bytes()
    at = data.index(b"ggplan.mtp") + len(b"ggplan.mtp") + 4 + 8
    assert data[at : at + 4] == b"drop"
    (tmp_path / "bad.gguf").write_bytes(data[:at] + b"dorp" + data[at + 4 :])
    assert "damaged" in refused("reproduce", tmp_path / "bad.gguf", folder, code=2)


def test_moved_codes_pass_where_whole_rows_move(tmp_path: Path) -> None:
    source = with_tokenizer("ct-mxfp4a16", tmp_path)
    (tmp_path / "kept.txt").write_text("0: 1\n")
    plain, fused, kept = tmp_path / "plain.gguf", tmp_path / "fused.gguf", tmp_path / "kept.gguf"
    for target, options in (
        (plain, ()),
        (fused, ("--fuse", "qkv")),
        (kept, ("--keep-experts", tmp_path / "kept.txt")),
    ):
        done = run("convert", source, target, "--pre", "qwen2", *options)
        assert done.returncode == 0, done.stderr
        assert run("reproduce", target, source).returncode == 0
    before, joined, chosen = map(ggplan.open_model, (plain, fused, kept))
    assert joined["blk.0.attn_qkv.weight"].type.name == "mxfp4"
    parts = [stored_bytes(before, f"blk.0.attn_{part}.weight") for part in "qkv"]
    assert stored_bytes(joined, "blk.0.attn_qkv.weight") == b"".join(parts)
    whole = stored_bytes(before, "blk.0.ffn_up_exps.weight")
    assert stored_bytes(chosen, "blk.0.ffn_up_exps.weight") == whole[len(whole) // 2 :]


def test_tensors_with_scales_of_their_own(tmp_path: Path) -> None:
    source, plain = with_tokenizer("modelopt-nvfp4", tmp_path), tmp_path / "plain.gguf"
    plan = json.loads(run("plan", source, "--pre", "qwen2", "--fuse", "qkv", "--json").stdout)
    (found,) = [t for t in plan["tensors"] if t["name"] == "blk.0.attn_qkv.weight"]
    assert found["type"] == "bf16"
    assert run("convert", source, plain, "--pre", "qwen2").returncode == 0
    message = refused("plan", plain, "--fuse", "qkv")
    assert "q, k and v of layer 0 have scales of their own, such as blk.0.attn_" in message
    # Of experts that stay, the scales stay.
    (tmp_path / "kept.txt").write_text("0: 1\n")
    kept = convert(plain, tmp_path / "kept.gguf", "--keep-experts", tmp_path / "kept.txt")
    before = values(ggplan.open_model(plain), "blk.0.ffn_up_exps.scale")
    assert np.array_equal(values(kept, "blk.0.ffn_up_exps.scale"), before[1:])


def test_keys_with_an_item_for_each_layer_follow(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(4)
    writer.add_head_count_kv([1, 2, 4, 8])
    writer.add_rope_dimension_sections([8, 8, 8, 0])
    writer.add_array("general.tensor_extra.name", ["blk.1.attn_q.weight", "blk.3.attn_q.weight"])
    writer.add_array("general.tensor_extra.prec_a4", [True, False])
    for layer in range(4):
        for part in "qkv":
            writer.add_tensor(f"blk.{layer}.attn_{part}.weight", np.full((32, 32), layer, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    made = convert(tmp_path / "m.gguf", tmp_path / "out.gguf", "--prune-layers", "0,1", "--fuse", "qkv")
    assert key(made, "block_count") == 2
    assert key(made, "attention.head_count_kv") == [4, 8]
    assert key(made, "rope.dimension_sections") == [8, 8, 8, 0]
    assert made.metadata["general.tensor_extra.name"].decode() == ["blk.1.attn_qkv.weight"]
    assert made.metadata["general.tensor_extra.prec_a4"].decode() == [False]
    assert values(made, "blk.1.attn_qkv.weight").shape == (96, 32)


@pytest.mark.parametrize("name", ["128gb", "balanced", "hq4_k", "ik-iq4_k", "small"])
def test_the_shipped_recipes_draft_well_and_do_without_the_block(folder: Path, name: str) -> None:
    codes = "GP217" if name == "128gb" else "GP217,GP101"  # that names blocks which this model has not
    given = ("rules", "check", f"glm4moe/{name}", "-m", folder, "--select", codes)
    for more in ((), ("--mtp", "drop")):
        done = run(*given, *more)
        assert done.returncode == 0, done.stdout
        assert "GP" not in done.stdout
    # And what `rules new` writes.
    (start := folder.parent / "start.recipe").write_text(run("rules", "new", "-m", folder, "-q").stdout)
    done = run("rules", "check", start, "-m", folder, "--select", "GP217,GP101")
    assert done.returncode == 0, done.stdout


def test_every_command_that_opens_a_model_takes_the_options(folder: Path, tmp_path: Path) -> None:
    (recipe := tmp_path / "r.recipe").write_text("blk.3 = f32\n@default bf16\n")
    (plain := tmp_path / "plain.recipe").write_text("@default bf16\n")
    given = ("--pre", "glm4", "--mtp", "drop")
    for command, code in (
        (("inspect", folder), 0),
        (("plan", folder, "-r", plain), 0),
        (("rules", "check", plain, "-m", folder), 0),
        (("rules", "explain", "token_embd.weight", "-r", plain, "-m", folder), 0),
        (("rules", "test", plain, "-m", folder), 0),
        (("rules", "new", "-m", folder), 0),
        (("rules", "from", folder), 0),
        (("rules", "export", plain, "--dialect", "llama-quantize", "-m", folder), 0),
        (("diff", recipe, plain, "-m", folder), 0),
        (("diff", folder, plain), 0),
        (("chart", folder, "-o", tmp_path / "types.svg"), 0),
    ):
        done = run(*command, *given)
        assert done.returncode == code, (command, done.stdout, done.stderr)
        assert "MTP block 3 is left out" in done.stderr, command
    assert run("diff", recipe, plain, "-m", folder, "--pre", "glm4").returncode == 1
    # A rule of the block that is not there matches nothing.
    assert "GP101" in run("rules", "check", recipe, "-m", folder, *given).stdout
    # A file beside the checkpoint it was made from is as it is.
    assert run("convert", folder, tmp_path / "o.gguf", *given).returncode == 0
    assert run("diff", folder, tmp_path / "o.gguf", *given).returncode == 0
    assert run("verify", tmp_path / "o.gguf", "--against", folder, *given, "--exact").returncode == 0
    assert "--mtp is for the model of -m" in refused("rules", "check", recipe, "--mtp", "drop", code=2)
    assert "by a FILE" in refused("inspect", folder, "--keep-experts", "2", code=2)
    (experts := tmp_path / "experts.txt").write_text(EXPERTS)
    done = run("inspect", folder, "--keep-experts", experts, "--tensors")
    assert done.returncode == 0, done.stderr
    assert "2 of 4 experts are kept" in done.stderr


def test_forms_that_are_there_already(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "gemma4_moe", read_case("gemma4_moe"))  # gate and up of experts in one
    both = convert(folder, tmp_path / "both.gguf", "--fuse", "gate-up,qkv")
    names = {t.name.split(".", 2)[2] for t in both if t.name.startswith("blk.")}
    assert {"ffn_gate_up_exps.weight", "attn_qkv.weight"} <= names
    done = run("plan", folder, "--fuse", "gate-up")
    assert "gate and up are fused already: `--fuse gate-up` changes nothing" in done.stderr


def test_an_mtp_block_that_the_converter_leaves_apart(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "nemotron", read_case("nemotron_h_moe_mtp"))
    fused = convert(folder, tmp_path / "fused.gguf", "--fuse", "qkv")
    count, nextn = key(fused, "block_count"), key(fused, "nextn_predict_layers")
    assert nextn == 1
    assert f"blk.{int(str(count)) - 1}.attn_q.weight" in fused
    assert any(t.name.endswith(".attn_qkv.weight") for t in fused)
    told = run("plan", folder, "--fuse", "qkv").stderr
    assert f"MTP block {int(str(count)) - 1}: no change, as llama.cpp's converter makes none" in told


def test_any_part_that_was_measured_measures_the_fused_tensor(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "llama", read_case("llama"))
    (tmp_path / "my.recipe").write_text("attn_qkv = q4_0\n@default bf16\n")
    names = ("attn_q", "attn_k", "attn_v")
    made = []
    for given in (names, ("attn_v",)):
        writer = gguf.GGUFWriter(tmp_path / "i.gguf", "")
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", ["text"])
        writer.add_uint32("imatrix.chunk_count", 1)
        writer.add_uint32("imatrix.chunk_size", 512)
        for layer in range(3):
            for name in given:
                sums = np.arange(1, 65, dtype=np.float32).reshape(1, 64)
                writer.add_tensor(f"blk.{layer}.{name}.weight.in_sum2", sums)
                writer.add_tensor(f"blk.{layer}.{name}.weight.counts", np.ones((1, 1), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        target = tmp_path / f"{len(given)}.gguf"
        options = ("-r", tmp_path / "my.recipe", "--imatrix", tmp_path / "i.gguf", "--fuse", "qkv")
        made.append(convert(folder, target, *options))
    plain = convert(folder, tmp_path / "plain.gguf", "-r", tmp_path / "my.recipe", "--fuse", "qkv")
    name = "blk.0.attn_qkv.weight"
    assert stored_bytes(made[0], name) == stored_bytes(made[1], name) != stored_bytes(plain, name)


def test_a_draft_model_is_not_told_to_leave_out_its_only_block(folder: Path) -> None:
    told = run("plan", folder, "-r", "Q4_0", "--mtp", "only").stderr
    assert "GP217" in told
    assert "put `@role nextn = q8_0` above its rules" in told
    assert "--mtp drop" not in told


def test_forms_that_llama_cpp_reads_and_its_converter_does_not_write(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "hy_v3_mtp", read_case("hy_v3_mtp"))
    convert(folder, tmp_path / "fused.gguf", "--fuse", "qkv,gate-up")
    done = run("plan", folder, "--fuse", "qkv")
    assert "llama.cpp's converter would leave those of hy_v3 apart; llama.cpp reads both" in done.stderr
