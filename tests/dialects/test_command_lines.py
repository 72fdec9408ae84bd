"""Command lines of llama-quantize as people paste them, and what becomes of each of their options."""

import contextlib
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ggplan.dialects import import_recipe
from ggplan.dialects.quantize_command import OPTIONS
from ggplan.errors import RecipeError
from ggplan.inventories import inventory
from ggplan.linting.check import check_text
from ggplan.model import Model
from ggplan.planning import assign, decide, fit
from ggplan.rules import parse_recipe
from ggplan.stock import find_mix

CASES = Path(__file__).parents[1] / "data" / "cases"
PROGRAM = "llama-quantize"


def case(name: str) -> str:
    return (CASES / name).read_bytes().decode()


def rules_of(text: str, **options: object) -> list[tuple[str, str]]:
    imported = import_recipe(text, "theirs.txt", **options)
    return [(rule.pattern, rule.choice.text) for rule in parse_recipe(imported.text).rules]


def notes_of(text: str, **options: object) -> tuple[str, ...]:
    imported = import_recipe(text, "theirs.txt", **options)
    for note in imported.notes:  # each stands in the recipe, too
        assert note.replace("#", "") in imported.text
    return imported.notes


def default_of(text: str, **options: object) -> str:
    default = parse_recipe(import_recipe(text, "theirs.txt", **options).text).default
    return "" if default is None else default.text


def message(text: str, **options: object) -> str:
    with pytest.raises(RecipeError) as caught:
        import_recipe(text, "theirs.txt", **options)
    return f"{caught.value.message} | {caught.value.hint}"


def types(text: str, name: str, **options: object) -> dict[str, str]:
    model = inventory(name)
    recipe = parse_recipe(import_recipe(text, "theirs.txt", model=model, **options).text)
    return {f.tensor.name: f.type.name for f in fit(model, decide(model, recipe))}


def test_pruning_and_metadata_are_noted() -> None:
    text = case("prune-and-override.txt")
    assert rules_of(text) == [("attn_v", "q6_K")]
    told = "\n".join(notes_of(text))
    assert "--prune-layers: takes the layers 3,7 out" in told
    assert "--override-kv: llama.expert_used_count=int:4" in told
    assert "--exclude-weights: " in told
    assert parse_recipe(import_recipe(text, "x").text).architecture == "llama"


def test_a_batch_file() -> None:
    text = case("quant.bat")
    assert rules_of(text) == [
        (r"^output\.weight$", "q6_K"),
        (r"blk\.0\.attn_k\.weight", "q8_0"),
        (r"blk\.0\.attn_norm\.weight", "f32"),
        (r"blk\.([0-9]|1[0-9])\.ffn_down_exps\.weight", "q6_K"),
    ]
    assert default_of(text) == "q4_K"
    assert any(r"D:\models\my imatrix.gguf" in note for note in notes_of(text))
    assert rules_of(text.replace("\r", "")) == rules_of(text) == rules_of(text.replace("\r\n", "\r\r\n"))
    assert is_clean(text, "Qwen3-30B-A3B")


def is_clean(text: str, name: str) -> bool:
    model = inventory(name)
    return check_text(import_recipe(text, "x", model=model).text, "x.recipe", model=model).clean


ONE_RULE = "--tensor-type attn_v=q8_0"


@pytest.mark.parametrize("text", [
    f"{PROGRAM} {ONE_RULE} in.gguf out.gguf Q4_K_M 8",
    f"{PROGRAM} {ONE_RULE} \\\n  in.gguf \\\n  out.gguf Q4_K_M\n",
    f"{PROGRAM} {ONE_RULE} \\\r\n  in.gguf out.gguf Q4_K_M\r\n",
    f"{PROGRAM} {ONE_RULE} \\  \n  in.gguf out.gguf Q4_K_M\n",
    f"{PROGRAM}.exe ^\n  {ONE_RULE} ^\n  D:\\a\\in.gguf D:\\a\\out.gguf Q4_K_M\n",
    f"{PROGRAM} `\n  {ONE_RULE} `\n  in.gguf out.gguf Q4_K_M\n",
    f"PS C:\\llama> .\\{PROGRAM}.exe {ONE_RULE} in.gguf C:\\out\\ Q4_K_M\n",
    f'"C:\\Program Files\\llama.cpp\\{PROGRAM}.exe" "--tensor-type" "attn_v=q8_0" in.gguf out.gguf Q4_K_M\n',
    f'& "C:\\My Files\\llama.cpp\\{PROGRAM}.exe" --tensor-type \'attn_v=q8_0\' in.gguf out.gguf Q4_K_M\n',
    f"@echo off\nREM {PROGRAM} --tensor-type attn_k=q8_0 a.gguf Q4_0\n:: {PROGRAM} --pure a b Q4_0\n"
    f"set N=8\n{PROGRAM} {ONE_RULE} %IN% out.gguf Q4_K_M %N%\npause\n",
    f"# {PROGRAM} --tensor-type attn_k=q8_0 a.gguf Q4_0\n{PROGRAM} {ONE_RULE} a.gguf b.gguf Q4_K_M\n",
    f"CUDA_VISIBLE_DEVICES=0 numactl -N 1 ./build/bin/{PROGRAM} {ONE_RULE} in.gguf out.gguf Q4_K_M && ls\n",
    f"> I ran\n>\n> ```\n> $ ./{PROGRAM} {ONE_RULE} \\\n>     in.gguf out.gguf Q4_K_M\n> ```\n\nIt's slow.\n",
    f">> ./{PROGRAM} {ONE_RULE} \\\n>> in.gguf out.gguf Q4_K_M\n> no\n",
    f"$ ./{PROGRAM} \\\n> {ONE_RULE} \\\n> in.gguf out.gguf Q4_K_M > log.txt 2>&1\n",
    f"$ ./{PROGRAM} {ONE_RULE} in.gguf out.gguf Q4_K_M \\\n  > log.txt\n",
    f"Don't use {PROGRAM} doesn't matter.\n```sh\n./{PROGRAM} {ONE_RULE} in.gguf out.gguf Q4_K_M\n```\n",
    f"Made with `{PROGRAM} {ONE_RULE} in.gguf out.gguf Q4_K_M`, isn't it?\n",
    f"!./llama.cpp/{PROGRAM} {ONE_RULE} in.gguf out.gguf Q4_K_M; echo done\n",
    f"docker run -v /m:/m ghcr.io/ggml-org/llama.cpp:full --quantize {ONE_RULE} in.gguf out.gguf Q4_K_M\n",
    f"echo {PROGRAM} --pure in.gguf Q8_0\n./quantize {ONE_RULE} in.gguf out.gguf q4_k_m $(nproc --all)\n",
    f"{PROGRAM} {ONE_RULE} in.gguf out.gguf 15 8\n",
    f"{PROGRAM} {ONE_RULE} a.gguf b.gguf Q4_K_M\n./{PROGRAM} {ONE_RULE} c.gguf d.gguf q4_k_m 4\n",
])  # fmt: skip
def test_spellings_of_one_command(text: str) -> None:
    assert rules_of(text) == [("attn_v", "q8_0")]
    assert default_of(text) == "q4_K"


def test_several_commands_are_several_recipes() -> None:
    text = "".join(
        f"{PROGRAM} --tensor-type attn_v={t} in.gguf o-{t}.gguf Q4_K_M\n" for t in ("q8_0", "q6_K")
    )
    assert "there are 2 lists of rules, in lines 1, 2 | choose one: --block N, N from 1 to 2" in message(text)
    assert rules_of(text, block=2) == [("attn_v", "q6_K")]
    assert "there is no list 3; there are 2" in message(text, block=3)
    plain = f"{PROGRAM} in.gguf q8.gguf Q8_0\n{PROGRAM} {ONE_RULE} in.gguf out.gguf Q4_K_M\n"
    assert rules_of(plain) == [("attn_v", "q8_0")]
    assert any("line 1 has no rules, only Q8_0" in note for note in notes_of(plain))
    assert "2 lists" in message(f"{PROGRAM} a.gguf b.gguf Q8_0\n{PROGRAM} a.gguf b.gguf Q4_K_M\n")


def test_what_is_not_read_is_refused_with_its_place() -> None:
    assert (
        "theirs.txt:1: llama-quantize has no option --tensor-typ | the nearest is --tensor-type"
        in message(f"{PROGRAM} --tensor-typ a=q8_0 in.gguf out.gguf Q8_0")
    )
    assert "with a blank between" in message(f"{PROGRAM} --tensor-type=a=q8_0 in.gguf out.gguf Q8_0")
    assert "the nearest is --tensor-type" in message(f"{PROGRAM} –tensor-type a=q8_0 in.gguf out.gguf Q8_0")
    assert "has both --tensor-type and --custom-q" in message(
        f"{PROGRAM} --tensor-type a=q8_0 --custom-q b=q8_0 in.gguf out.gguf Q8_0"
    )
    assert "filled in by the shell" in message(f'{PROGRAM} --tensor-type "a=$T" in.gguf out.gguf Q8_0')
    assert "filled in by the shell" in message(f'{PROGRAM} --pure "${{ARGS[@]}}" in.gguf out.gguf Q8_0')
    assert "are comments (line 1)" in message(f"# {PROGRAM} --pure in.gguf out.gguf Q8_0\n")
    assert "inside a quotation" in message(f"{PROGRAM} --tensor-type 'a=q8_0 in.gguf out.gguf Q8_0\n")
    assert "--imatrix has no value" in message(f"{PROGRAM} --pure --imatrix")


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_a_rule_a_note_or_refused(name: str) -> None:
    option = OPTIONS[name]
    value = {"--custom-q": "attn_k=q6_K", "--tensor-type": "attn_k=q6_K"}.get(
        name, "q6_K" if option.pattern or name == "--extra-output-tensor" else "3"
    )
    base = f"{PROGRAM} {{}} in.gguf out.gguf Q8_0"
    before = import_recipe(
        base.format(""), "x", dialect="ik_llama.cpp" if option.of == "ik_llama.cpp" else ""
    )
    after = import_recipe(base.format(f"{name} {value}" if option.n_values else name), "x")
    if name != "--pure":  # Q8_0 is pure
        assert after.text.split("@recipe")[1] != before.text.split("@recipe")[1] or (
            set(after.notes) - set(before.notes)
        )
    if option.note:
        assert any(note.startswith(f"{name}: ") for note in after.notes)
    if option.of:
        other = {"llama.cpp": "ik_llama.cpp", "ik_llama.cpp": "llama-quantize"}[option.of]
        with pytest.raises(RecipeError, match="this is a command line of"):
            import_recipe(base.format(f"{name} {value}" if option.n_values else name), "x", dialect=other)


IK = (
    "llama-quantize --attn-q-type iq4_k --attn-k-type q8_0 --attn-v-type q6_K --attn-output-type iq5_k"
    " --ffn-gate-type iq3_k --ffn-down-type iq4_ks --ffn-up-type iq3_ks --custom-q 'blk\\.0\\.attn_k=q6_0'"
    " --token-embedding-type q8_0_r8 --output-tensor-type iq6_k --ffn-gate-inp-type q8_0"
    " in.gguf out.gguf IQ3_K 24"
)


def test_parts_have_types_in_ik_llama_cpp() -> None:
    imported = import_recipe(IK, "x")
    assert imported.dialect == "ik_llama.cpp"
    found = types(IK, "Qwen3-30B-A3B")
    assert found["blk.0.attn_k.weight"] == "q6_0"  # --custom-q decides before --attn-k-type
    assert found["blk.1.attn_k.weight"] == "q8_0"
    assert found["blk.1.attn_q.weight"] == "iq4_k"
    assert found["blk.1.attn_v.weight"] == "q6_K"
    assert found["blk.1.attn_output.weight"] == "iq5_k"
    assert found["blk.1.ffn_gate_exps.weight"] == "iq3_k"
    assert found["blk.1.ffn_down_exps.weight"] == "iq4_ks"
    assert found["blk.1.ffn_up_exps.weight"] == "iq3_ks"
    assert found["blk.1.ffn_gate_inp.weight"] == "q8_0"
    assert found["blk.1.attn_q_norm.weight"] == "f32"
    assert found["output.weight"] == "iq6_k"
    assert found["token_embd.weight"] == "q8_0"  # rows that are looked up are not interleaved
    assert types(IK, "DeepSeek-V3")["blk.1.attn_k_b.weight"] == "q8_0"  # whose name contains attn_k


def test_what_ik_llama_cpp_ignores_is_left_out_and_noted() -> None:
    pure = "llama-quantize --pure --custom-q attn=q8_0 --token-embedding-type q8_0 a.gguf b.gguf IQ4_KS"
    assert rules_of(pure) == [(r"^token_embd\.weight$", "q8_0")]
    assert any("ignores --custom-q with --pure" in note for note in notes_of(pure))
    small = "llama-quantize --attn-q-type q8_0 --attn-output-type q8_0 a.gguf b.gguf IQ2_XXS"
    assert rules_of(small) == [(r"attn_output\.weight", "q8_0")]
    assert any("ignores --attn-q-type q8_0 with IQ2_XXS" in note for note in notes_of(small))


def test_a_card_whose_list_is_used_twice() -> None:
    card = 'custom="\nattn_q=iq4_k\n"\n' + "".join(
        f'llama-quantize --custom-q "$custom" in.gguf out-{t}.gguf {t}\n' for t in ("IQ3_K", "IQ4_K")
    )
    assert "2 lists of rules" in message(card)
    assert default_of(card, block=2) == "iq4_k"
    twice = card.replace("IQ4_K", "IQ3_K")
    assert default_of(twice) == "iq3_k"
    lone = card + "llama-quantize --custom-q attn_k=q8_0 in.gguf out.gguf IQ2_KS\n"
    assert rules_of(lone, block=3) == [("attn_k", "q8_0")]
    assert "not set here" in message('llama-quantize --custom-q "$custom" in.gguf out.gguf IQ2_KS\n')


def test_the_mix_is_for_what_no_rule_takes() -> None:
    """llama-quantize does not count a tensor with a rule of its own among the layers that get more bits."""
    text = (
        f"{PROGRAM} --tensor-type 'blk\\.[0-3]\\.ffn_down=q8_0' --leave-output-tensor in.gguf out.gguf Q4_K_M"
    )
    found = types(text, "Qwen3-8B")
    n = 36
    for layer in range(4, n):
        i = layer - 4  # the layers before do not count
        more = i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2
        assert found[f"blk.{layer}.ffn_down.weight"] == ("q6_K" if more else "q4_K")
    assert found["output.weight"] == "bf16"
    assert is_clean(text, "Qwen3-8B")
    whole = types(f"{PROGRAM} in.gguf out.gguf Q4_K_M", "Qwen3-30B-A3B")
    moe = inventory("Qwen3-30B-A3B")
    assert whole == {f.tensor.name: f.type.name for f in fit(moe, assign(moe, find_mix("Q4_K_M")))}


@pytest.mark.parametrize("options", ["--output-tensor-type q6_K", "--pure", "--tensor-type a=q8_0 --pure"])
def test_options_behind_the_type_are_noted(options: str) -> None:
    """llama-quantize takes what follows the type for a number of threads."""
    behind = import_recipe(f"{PROGRAM} in.gguf out.gguf q8_0 {options}", "x").notes
    assert any("reads options only before the file" in n and options.split()[0] in n for n in behind)
    before = import_recipe(f"{PROGRAM} {options} in.gguf out.gguf q8_0", "x").notes
    assert not any("only before the file" in note for note in before)


def test_a_type_that_is_no_type_of_a_whole_file() -> None:
    notes = "\n".join(import_recipe(f"{PROGRAM} --tensor-type a=q8_0 in.gguf out.gguf NVFP4", "x").notes)
    assert "llama.cpp's llama-quantize refuses NVFP4 for a whole file" in notes
    assert "mix of ik_llama.cpp's" not in notes


def test_rules_beside_pure_apply_as_llama_cpp_has_it_now_and_are_noted() -> None:
    text = f"{PROGRAM} --pure --tensor-type attn_v=q8_0 in.gguf out.gguf Q4_K_M"
    assert rules_of(text) == [("attn_v", "q8_0")]
    assert any("beside --pure" in note and "earlier versions" in note for note in notes_of(text))
    assert not any("--pure" in note for note in notes_of(text.replace("--tensor-type attn_v=q8_0", "")))


@pytest.mark.parametrize("file_type", ["F32", "F16", "BF16", "bf16", "32"])
def test_rules_that_a_float_file_has_no_use_for_are_left_out(file_type: str) -> None:
    text = f"{PROGRAM} --output-tensor-type q8_0 --tensor-type attn_v=q4_K in.gguf out.gguf {file_type}"
    assert rules_of(text) == [(r"^output\.weight$", "q8_0")]  # which decides before the file's type does
    assert any("ignores all rules of --tensor-type; they are left out" in note for note in notes_of(text))
    custom = f"{PROGRAM} --custom-q attn_v=q4_K --attn-k-type q8_0 in.gguf out.gguf {file_type}"
    assert rules_of(custom) == []
    told = "\n".join(notes_of(custom))
    assert "ignores all rules of --custom-q, --attn-k-type q8_0; they are left out" in told
    assert not any("ignores" in note for note in notes_of(f"{PROGRAM} in.gguf out.gguf {file_type}"))


def test_an_output_type_that_leaving_the_output_alone_overrides_is_noted() -> None:
    text = f"{PROGRAM} --output-tensor-type q8_0 --leave-output-tensor in.gguf out.gguf Q4_0"
    assert rules_of(text) == []
    assert any(
        note.startswith("--output-tensor-type q8_0: --leave-output-tensor goes before it")
        for note in notes_of(text)
    )
    assert types(text, "Qwen3-8B")["output.weight"] == "bf16"


TWO_RULES = [("attn_v", "q8_0"), ("ffn_down_exps", "q6_K")]
FIRST, SECOND = "--tensor-type attn_v=q8_0", "--tensor-type ffn_down_exps=q6_K"


@pytest.mark.parametrize("text", [
    f"Q=./{PROGRAM}\n$Q {FIRST} \\\n  {SECOND} in.gguf out.gguf Q4_K_M\n",
    f'"$Q" {FIRST} {SECOND} in.gguf out.gguf Q4_K_M\n',
    f'"${{BIN}}/quantize" {FIRST} \\\n {SECOND} in.gguf out.gguf Q4_K_M\n',
    f"set Q={PROGRAM}.exe\n%Q% {FIRST} ^\n  {SECOND} in.gguf out.gguf Q4_K_M\n",
    f'call "%Q%" {FIRST} {SECOND} D:\\in.gguf D:\\out.gguf Q4_K_M\n',
    f"!Q! {FIRST} ^\n{SECOND} in.gguf out.gguf Q4_K_M\n",
    f'$q = ".\\{PROGRAM}.exe"\n& $q {FIRST} `\n  {SECOND} in.gguf out.gguf Q4_K_M\n',
    f"& $env:Q {FIRST} `\n {SECOND} in.gguf out.gguf Q4_K_M\n",
    f"$ CUDA_VISIBLE_DEVICES=0 nice -n 19 $Q --pure {FIRST} \\\n {SECOND} in.gguf out.gguf Q4_K\n",
    f"$Q \\\n  --imatrix x.gguf \\\n  {FIRST} \\\n  {SECOND} \\\n  in.gguf out.gguf Q4_K_M\n",
    f"$(which {PROGRAM}) {FIRST} \\\n {SECOND} in.gguf out.gguf Q4_K_M\n",
    f"./my-quantizer {FIRST} {SECOND} in.gguf out.gguf Q4_K_M\n",
    f"tools/quant.sh {FIRST} \\\n {SECOND} in.gguf out.gguf Q4_K_M\n",
    f"myquant {FIRST} \\\n {SECOND} in.gguf out.gguf Q4_K_M\n",
    f"$Q $IN $OUT {FIRST} {SECOND} Q4_K_M\n",
    f"> $Q {FIRST} \\\n>   {SECOND} in.gguf out.gguf Q4_K_M\n",
    f"# $Q --tensor-type attn_k=q4_0 in.gguf out.gguf Q2_K\n$Q {FIRST} {SECOND} in.gguf out.gguf Q4_K_M\n",
    f"Give --tensor-type attn_k=q4_0 where you like.\n\n$Q {FIRST} {SECOND} in.gguf out.gguf Q4_K_M\n",
])  # fmt: skip
def test_the_program_may_be_a_variable_or_another_name(text: str) -> None:
    assert rules_of(text) == TWO_RULES
    assert default_of(text) == "q4_K"


@pytest.mark.parametrize(("text", "told"), [
    (f'$a = @("--tensor-type", "attn_v=q8_0")\n& .\\{PROGRAM}.exe @a in.gguf out.gguf Q4_K_M\n',
     "`@a` is filled in by the shell"),
    (f'$a = @(\n  "--tensor-type", "attn_v=q8_0"\n)\n& ".\\{PROGRAM}.exe" @a in.gguf out.gguf Q4_K_M\n',
     "`@a` is filled in by the shell"),
    (f"Start-Process .\\{PROGRAM}.exe -ArgumentList $x\n", "`-ArgumentList` is Start-Process's"),
    (f"Start-Process -FilePath .\\{PROGRAM}.exe -Wait -ArgumentList '--tensor-type attn_v=q8_0 a b Q4_0'\n",
     "is Start-Process's"),
    (f'OPTS="--tensor-type attn_v=q8_0"\n{PROGRAM} $OPTS in.gguf out.gguf Q4_K_M\n', "`$OPTS` is filled in"),
    (f"set OPTS=--tensor-type attn_v=q8_0\n{PROGRAM}.exe %OPTS% in.gguf out.gguf Q4_K_M\n",
     "`%OPTS%` is filled in"),
    (f'ARGS=(--tensor-type attn_v=q8_0)\n{PROGRAM} "${{ARGS[@]}}" in.gguf out.gguf Q4_K_M\n',
     "is filled in by the shell"),
])  # fmt: skip
def test_options_in_a_variable_are_refused(text: str, told: str) -> None:
    assert told in message(text)


@pytest.mark.parametrize("mix", ["$quant", "%QUANT%", "${TYPE}"])
def test_a_mix_in_a_variable_says_what_follows(mix: str) -> None:
    notes = "\n".join(notes_of(f"{PROGRAM} {FIRST} in.gguf out.gguf {mix}\n"))
    assert f"`{mix}`, is filled in by the shell" in notes
    assert "what no rule names keeps its type here" in notes
    assert "@default TYPE" in notes


def tied() -> Model:
    """A model without output.weight, whose embeddings are the output."""
    model = inventory("GLM-4.5-Air")
    return replace(model, tensors=tuple(t for t in model.tensors if t.name != "output.weight"))


def test_the_type_of_the_output_is_for_tied_embeddings_but_with_pure() -> None:
    """As llama-quantize of llama.cpp 0.3.36 writes them: with --pure they have the type of the file."""
    flag = "--output-tensor-type q8_0"
    told = f"{PROGRAM} {flag} in.gguf out.gguf Q4_K_M\n"
    assert (r"^token_embd\.weight$", "q8_0") in rules_of(told, model=tied())
    pure = f"{PROGRAM} --pure {flag} in.gguf out.gguf Q4_K\n"
    assert rules_of(pure, model=tied()) == []
    assert default_of(pure, model=tied()) == "q4_K"
    assert any("since --pure is given" in note for note in notes_of(pure, model=tied()))
    assert any("tied embeddings it means the embeddings" in note for note in notes_of(told))
    assert not any("tied" in note for note in notes_of(pure))
    whole = inventory("GLM-4.5-Air")
    assert not any("tied" in note for note in notes_of(told, model=whole))
    assert (r"^output\.weight$", "q8_0") in rules_of(pure, model=whole)


@pytest.mark.parametrize("text", [
    f"echo {PROGRAM} --pure\n" * 40_000,
    f"# {PROGRAM} --pure " * 20_000,
    f"{PROGRAM} is fine " * 20_000,
    "Use --tensor-type attn_v=q8_0 " * 20_000,
    "Use --tensor-type attn_v=q8_0 \\\n" * 20_000,
    "# Use --tensor-type attn_v=q8_0 \\\n" * 20_000,
    f"{PROGRAM} -a " + "$(" * 150_000,
    f"{PROGRAM} --pure a b Q4_0; " * 990 + "x" * 300_000,
    "> " * 200_000 + f"{PROGRAM} --pure",
    "custom" * 60_000,
    "custom=''\n" * 60_000,
    "a=" + "," * 300_000,
    "a=" * 150_000,
    "LAYER_TYPES=[" * 20_000,
    "LAYER_TYPES=" + " " * 200_000,
    "LAYER_TYPES=[]" + " " * 200_000 + "x",
    "LAYER_TYPES='[ [0,\"Q4_K\"" + " " * 200_000 + "]'",
    "bits\n" + "\n" * 200_000 + "layer_config",
    "{" + " " * 200_000 + "'bits' :",
    "blk.0=q8_0\n" + "blk." * 100_000,
    '{"quantization_config": {"quant_method": "fp8", "modules_to_not_convert": ['
    + ", ".join(f'"model.layers.{i}.mlp"' for i in range(4_000)) + "]}}",
])  # fmt: skip
def test_long_texts_take_the_time_of_their_length(text: str) -> None:
    start = time.process_time()
    with contextlib.suppress(RecipeError):
        import_recipe(text, "theirs.txt", model=inventory("Qwen3-8B"))
    with contextlib.suppress(RecipeError):
        import_recipe(text, "theirs.txt", dialect="autoround", model=inventory("Qwen3-8B"))
    assert time.process_time() - start < 10
