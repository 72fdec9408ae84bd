"""Lists of rules on GGUF names: llama-quantize's, ik_llama.cpp's, Thireus'."""

import contextlib
import string
import sys
import time
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggplan.dialects import export_recipe, import_recipe
from ggplan.errors import Error, RecipeError
from ggplan.inventories import inventories, inventory
from ggplan.planning import decide, fit
from ggplan.rules import Recipe, load_recipe, parse_recipe, shipped_recipes

sys.path.insert(0, str(Path(__file__).parent))
from readers import custom_q, first_match, last_match, tensor_type_file, thireus

READERS = {"llama-quantize": tensor_type_file, "ik_llama.cpp": custom_q, "thireus": thireus}

LAYERED = parse_recipe(
    r"""
@role norm, router = f32
^blk\.{first 2, 5, 7..9, last 1}\.ffn_.*$ = q8_0
^blk\.{3..40}\.(attn_(k|v)|ffn_down.*)\.weight$ = q6_K | q8_0
attn_q = q5_K | q5_0
^output\.weight$ = bf16
@default q4_K | q4_0
""",
    "layered.recipe",
)


def types(recipe: Recipe, name: str) -> dict[str, str]:
    model = inventory(name)
    return {f.tensor.name: f.type.name for f in fit(model, decide(model, recipe))}


@cache
def protected_names(name: str) -> frozenset[str]:
    found = decide(inventory(name), LAYERED).decisions
    return frozenset(tensor for tensor, decision in found.items() if decision.protected)


@cache
def wanted_types(number: int, name: str) -> dict[str, str]:
    """The types that one of `recipes` gives."""
    return types(recipes(name)[number], name)


@cache
def shipped() -> list[Recipe]:
    return [load_recipe(recipe) for recipe in shipped_recipes()]


@cache
def recipes(name: str) -> list[Recipe]:
    """A recipe with layers, chains and roles, and the shipped ones for a model.

    Models of one family differ in the numbers of their blocks: all recipes of the family are for the
    smallest, the first two for the others.
    """
    family = inventory(name).architecture
    models = [model for model in map(inventory, inventories()) if model.architecture == family]
    own = [LAYERED, *(r for r in shipped() if r.architecture in ("", family))]
    is_smallest = len(inventory(name).tensors) == min(len(model.tensors) for model in models)
    return own if is_smallest else own[:2]


@pytest.mark.parametrize("dialect", READERS)
@pytest.mark.parametrize("name", [name for name in inventories() if name != "GLM-4.7"])  # GLM-4.5's tensors
def test_round_trips_keep_the_meaning(name: str, dialect: str) -> None:
    model = inventory(name)
    protected = protected_names(name)
    done = 0
    for number, recipe in enumerate(recipes(name)):
        wanted = wanted_types(number, name)
        if dialect == "llama-quantize" and recipe.target == "ik_llama.cpp":
            with pytest.raises(RecipeError, match="llama-quantize has no type"):
                export_recipe(recipe, model, dialect)
            continue
        text = export_recipe(recipe, model, dialect).text
        if recipe is LAYERED:  # `export_recipe` reads every list back; this shows that it does
            back = parse_recipe(import_recipe(text, "list", dialect=dialect).text)
            assert types(back, name) == wanted
        # And as the tool itself reads it, whichever of several matches it takes.
        rules = READERS[dialect](text)
        for choose in (first_match(rules), last_match(rules)):
            for tensor, type_ in wanted.items():
                left_out = tensor in protected and dialect != "thireus"
                assert choose(tensor) == (None if left_out else type_)
        done += 1
    assert done >= 1 + (len(recipes(name)) > 2)


@pytest.mark.parametrize("dialect", READERS)
def test_the_dialect_of_an_export_is_detected_or_read_alike(dialect: str) -> None:
    text = export_recipe(LAYERED, inventory("Qwen3-8B"), dialect).text
    assert import_recipe(text, "list").dialect == dialect


def test_lists_are_compact() -> None:
    text = export_recipe(load_recipe("glm4moe/hq4_k"), inventory("GLM-4.5-Air"), "llama-quantize").text
    assert len(text.splitlines()) < 8
    assert r"^blk\.([1-3][0-9]?|4[0-5]?|[5-9])\.ffn_(gate|up)_exps\.weight$=q4_K" in text.splitlines()


def message(text: str, **options: str) -> str:
    with pytest.raises(RecipeError) as caught:
        import_recipe(text, "theirs.txt", **options)
    return caught.value.message


def test_what_no_recipe_can_say_is_an_error_with_its_place() -> None:
    text = "attn_q=q8_0\nffn_(?!gate)=q4_K\n"
    found = message(text, dialect="llama-quantize")
    assert "look-around is not portable" in found
    assert "theirs.txt:2:5" in found
    assert "theirs.txt:1:2" in message("a(?=b)=q8_0,c=q4_K")
    assert "unknown tensor type `q9_0`" in message("attn_q=q9_0\n")
    assert "is a mix" not in message("attn_q=q9_0\n")
    assert "llama.cpp mix" in message("attn_q=q4_K_M\n")
    assert "no comments" in message("# a\nattn_q=q8_0\n", dialect="llama-quantize")
    assert "is a range of ggplan" in message("blk.{0..4}=q8_0\n", dialect="llama-quantize")
    assert "not a rule" in message("attn_q\n", dialect="thireus")
    assert "no dialect" in message("What a beautiful day.\n")
    assert "no rules" in message("", dialect="llama-quantize")


def test_what_a_dialect_cannot_say_is_an_error() -> None:
    forced = parse_recipe("ffn_gate_inp = q8_0!\n@default q8_0")
    ik_only = parse_recipe("@target ik_llama.cpp\n@default iq4_ks")
    moe = inventory("Qwen3-30B-A3B")
    for dialect in READERS:
        with pytest.raises(
            RecipeError, match=r"blk\.0\.ffn_gate_inp\.weight: .* cannot make it q8_0, for it is the"
        ):
            export_recipe(forced, moe, dialect)
    with pytest.raises(RecipeError, match="llama-quantize has no type iq4_ks"):
        export_recipe(ik_only, moe, "llama-quantize")
    assert "iq4_ks" in export_recipe(ik_only, moe, "ik_llama.cpp").text


CARD = r"""
# GLM
```bash
custom="
# Attention
blk\.([0-9]|[1-3][0-9])\.attn_q.*=q8_0
#blk\.9\.attn_k.*=q4_K
blk\..*\.attn_output.*=iq5_ks

## experts
blk\..*\.ffn_down_exps\.weight=iq4_ks # big
^output\.weight$=iq6_k
"
custom=$(
  echo "$custom" | grep -v '^#' | \
  sed -Ez 's:\n+:,:g;s:,$::;s:^,::'
)
numactl -N 1 -m 1 \
./build/bin/llama-quantize \
    --custom-q "$custom" \
    --token-embedding-type iq4_k \
    --imatrix /mnt/x.dat \
    /mnt/in.gguf \
    /mnt/out.gguf \
    IQ5_K \
    192
```
"""


def rules_of(text: str) -> list[tuple[str, str]]:
    return [(rule.pattern, rule.choice.text) for rule in parse_recipe(text).rules]


def test_the_bash_idiom_of_model_cards() -> None:
    imported = import_recipe(CARD, "README.md")
    assert imported.dialect == "ik_llama.cpp"
    recipe = parse_recipe(imported.text)
    assert recipe.target == "ik_llama.cpp"
    assert rules_of(imported.text) == [
        (r"^token_embd\.weight$", "iq4_k"),
        (r"blk\.([0-9]|[1-3][0-9])\.attn_q.*", "q8_0"),
        (r"blk\..*\.attn_output.*", "iq5_ks"),
        (r"blk\..*\.ffn_down_exps\.weight", "iq4_ks"),
        (r"^output\.weight$", "iq6_k"),
    ]
    assert recipe.default is not None
    assert recipe.default.text == "iq5_k"
    assert "# Attention" in imported.text
    assert "# big" in imported.text


def test_several_lists_in_one_card() -> None:
    two = CARD + CARD.replace("iq5_ks", "iq3_ks")
    assert "choose one: --block N, N from 1 to 2" in _hint(two)
    assert ("blk\\..*\\.attn_output.*", "iq3_ks") in rules_of(import_recipe(two, "README.md", block=2).text)
    assert ("blk\\..*\\.attn_output.*", "iq5_ks") in rules_of(import_recipe(two, "README.md", block=1).text)


def _hint(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        import_recipe(text, "README.md")
    return caught.value.hint


def test_nothing_is_expanded() -> None:
    assert "filled in by the shell" in message('custom="\n${HOME}=q8_0\n"\n')
    assert "filled in by the shell" in message('custom="\nattn_q=$(id)\n"\n')
    assert "never closed" in message('custom="\nattn_q=q8_0\n')


def test_command_lines() -> None:
    text = (
        "# make it\nllama-quantize --imatrix i.gguf --tensor-type 'attn_v=q8_0' \\\n"
        r"  --tensor-type blk\\.[0-9]\\.FFN_\\D=Q6_K --output-tensor-type q6_K in.gguf out.gguf Q8_0 8"
        "\n"
    )
    imported = import_recipe(text, "make.sh")
    assert imported.dialect == "llama-quantize"
    assert rules_of(imported.text) == [
        (r"^output\.weight$", "q6_K"), ("attn_v", "q8_0"), (r"blk\.[0-9]\.ffn_\d", "q6_K"),
    ]  # fmt: skip
    assert any("lower-cases" in note for note in imported.notes)
    default = parse_recipe(imported.text).default
    assert default is not None
    assert default.text == "q8_0"


def test_the_mix_of_a_command_is_written_out_for_a_model() -> None:
    text = "llama-quantize --tensor-type attn_q=q8_0 in.gguf out.gguf Q4_K_M\n"
    without = import_recipe(text, "make.sh")
    assert any("-m MODEL" in note for note in without.notes)
    within = parse_recipe(import_recipe(text, "make.sh", model=inventory("Qwen3-8B")).text)
    found = types(within, "Qwen3-8B")
    assert found["blk.0.attn_q.weight"] == "q8_0"
    assert found["output.weight"] == "q6_K"
    assert found["blk.0.ffn_down.weight"] == "q6_K"
    assert found["blk.5.ffn_down.weight"] == "q4_K"


def test_thireus_recipes_keep_their_comments() -> None:
    text = "## Embeddings — 2 GiB\n^token_embd\\.weight$=q5_K\n\n# +f32\n^output\\.weight$=iq4_ks\n"
    imported = import_recipe(text, "air.recipe")
    assert imported.dialect == "thireus"
    assert "## Embeddings — 2 GiB" in imported.text
    assert parse_recipe(imported.text).name == "air"


PIECES = (
    *string.punctuation, "custom=", "q8_0", "=q4_K", "\n", " ", "attn_q", "--custom-q ", "llama-quantize ",
    "--tensor-type ", "blk\\.", "\x1b", "é",
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    st.sampled_from(["", *READERS]),
)
def test_any_text_is_a_recipe_or_an_error(text: str, dialect: str) -> None:
    try:
        imported = import_recipe(text, "x", dialect=dialect)
    except Error as error:
        assert all(line.isprintable() for line in error.message.split("\n"))  # noqa: PT017
        return
    parse_recipe(imported.text)


@pytest.mark.parametrize("text", [
    "a=q8_0\n" * 200_000,
    "(" * 100_000,
    'custom="\n' + "(a|" * 100_000 + '=q8_0\n"',
    "llama-quantize " * 50_000 + "--tensor-type",
    "llama-quantize '\n" * 5_000,
    "custom=\"a=b\"\n" * 20_000,
    "(.*)*(.*)*X{1000}=q8_0",
    "echo llama-quantize -x " * 20_000,
    "llama-quantize --pure a.gguf \\\n" * 10_000,
    "llama-quantize --pure '" + "x\n" * 150_000,
    "> " * 100_000 + "--tensor-type a=q8_0",
    "llama-quantize --tensor-type " + "blk." * 200 + "=q8_0 a.gguf b.gguf Q8_0",
])  # fmt: skip
def test_nothing_hangs(text: str) -> None:
    start = time.thread_time()
    for dialect in ("", *READERS):
        with contextlib.suppress(Error):
            import_recipe(text, "x", dialect=dialect)
    assert time.thread_time() - start < 4
