"""Repositories of the hub open as folders do, by headers alone, at one commit; what is wrong is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, Handler, Hub, serving
from program import run
from quantized_folders import with_tokenizer
from quantizing import quantized_folder
from served_model import DEMO, write_sharded

import ggplan
from ggplan.cli import planning
from ggplan.errors import CheckpointError, NoSuchCheckpointError
from ggplan.sources.addresses import open_address
from ggplan.sources.files import read_at

Use = Callable[[Hub], Hub]
INVALID = "Invalid credentials in Authorization header"
SECRET = "hf_secretsecretsecret"


def is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sharded(tmp_path_factory.mktemp("served") / "name")


@pytest.fixture
def hub(folder: Path, use: Use) -> Iterator[Hub]:
    with serving(Hub(folder, lfs=is_weights)) as served:
        yield use(served)


def test_a_repository_is_the_model_of_its_folder(hub: Hub, folder: Path) -> None:
    here, there = ggplan.open_model(folder, pre="glm4"), ggplan.open_model("hf://org/name", pre="glm4")
    assert str(there.path) == "hf://org/name"
    assert there.path.name == "name"
    assert there.metadata == here.metadata
    assert [(t.name, t.shape, t.type, t.origin, t.stored_as) for t in there] == [
        (t.name, t.shape, t.type, t.origin, t.stored_as) for t in here
    ]
    assert [path.name for path in there.files] == [path.name for path in here.files]
    assert there.notes == (*here.notes, f"hf://org/name is at commit {COMMIT}")
    tensor = "blk.1.ffn_gate_exps.weight"
    assert (there[tensor].rows.read(5, 90) == here[tensor].rows.read(5, 90)).all()  # type: ignore[union-attr]


def test_plan_reads_headers_alone_and_asks_for_the_commit(hub: Hub, folder: Path) -> None:
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    done = run("plan", "hf://org/name", "-r", "Q4_K_M", "--pre", "glm4", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["model"]["path"] == "hf://org/name"
    blobs = [request for request in hub.requests if request.path.startswith("/blob/")]
    assert 0 < sum(request.sent for request in blobs) <= 3 * (1 << 16) < weights / 30
    revisions = {r.path.split("/")[4] for r in hub.requests if "/resolve/" in r.path}
    assert revisions == {COMMIT}
    # The small files are in the cache of huggingface_hub now.
    hub.requests.clear()
    assert run("plan", "hf://org/name", "-r", "Q4_K_M", "--pre", "glm4", "-q").returncode == 0
    assert {r.path.split("/")[-1].partition("?")[0] for r in hub.requests if "/resolve/" in r.path} == {
        path.name for path in folder.glob("*.safetensors")
    }


@pytest.mark.parametrize(
    "address",
    [
        "hf://org/name@main",
        f"hf://org/name@{COMMIT}",
        "HF://models/org/name",
        "{url}/org/name",
        "{url}/org/name/",
        "{url}/org/name/tree/main",
        f"{{url}}/org/name/tree/{COMMIT}",
    ],
)
def test_ways_to_name_a_repository(hub: Hub, address: str) -> None:
    path = open_address(address.format(url=hub.url))
    assert path.name == "name"
    assert path.is_dir()
    assert (path / "config.json").is_file()
    told = "" if COMMIT in address else f"is at commit {COMMIT}"
    assert path.place.told.endswith(told)


def test_one_file_of_a_repository(hub: Hub) -> None:
    done = run("inspect", "hf://org/name/model-00002-of-00003.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == "ggplan/safetensors@1"
    for address in ("hf://org/name/model-2.safetensors", "{url}/org/name/blob/main/model-2.safetensors"):
        with pytest.raises(NoSuchCheckpointError, match=r"hf://org/name.* has no file model-2\.safetensors"):
            ggplan.open_model(address.format(url=hub.url))
    done = run("plan", "hf://org/name/model-00002-of-00003.safetensors")
    assert "is one file of a Hugging Face checkpoint" in done.stderr


def test_the_listing_comes_in_pages(hub: Hub) -> None:
    hub.page_size = 2
    assert [path.name for path in open_address("hf://org/name").iterdir()] == hub.files()


def test_what_is_in_the_cache_is_read_there(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, snapshot_download

    snapshot_download("org/name", endpoint=hub.url, revision=COMMIT)
    hub.requests.clear()
    model = ggplan.open_model("hf://org/name", pre="glm4")
    for tensor in model:
        assert tensor.rows is not None
        tensor.rows.read(0, 1)
    assert not [request for request in hub.requests if "/resolve/" in request.path]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    (Path(constants.HF_HUB_CACHE) / "models--org--name" / "refs").mkdir(exist_ok=True)
    (Path(constants.HF_HUB_CACHE) / "models--org--name" / "refs" / "main").write_text(COMMIT)
    offline = ggplan.open_model("hf://org/name", pre="glm4")
    assert offline.metadata == model.metadata
    assert offline.path.name == "name"
    assert not hub.requests
    with pytest.raises(CheckpointError, match="is not in huggingface_hub's cache") as caught:
        ggplan.open_model("hf://org/other")
    assert "hf download org/other" in caught.value.hint


def test_a_token_goes_to_the_hub_alone(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    hub.token = SECRET
    with serving(Hub(folder, lfs=is_weights)) as elsewhere:
        hub.blobs_elsewhere = elsewhere.url
        done = run("plan", "hf://org/name", "--json", "--pre", "glm4")
        assert done.returncode == 0, done.stderr
        assert not [r.path for r in hub.requests if r.headers.get("authorization") != f"Bearer {SECRET}"]
        assert len(elsewhere.requests) == 3
        assert all("authorization" not in request.headers for request in elsewhere.requests)
    assert SECRET not in done.stdout + done.stderr
    assert "X-Amz" not in done.stdout + done.stderr


def unauthorized(handler: Handler) -> bool:
    """As the hub answers a token that is not valid."""
    handler.answer(401, b'{"error":"Invalid username or password."}', {"X-Error-Message": INVALID})
    return True


def test_a_token_that_the_hub_does_not_accept(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    hub.api_fault = unauthorized
    first, second = run("plan", "hf://org/name").stderr.splitlines()
    assert "the hub does not accept the token that is set (401)" in first
    assert "hf auth login" in second
    hub.api_fault, hub.token = None, "another"
    (first, _) = run("plan", "hf://org/name").stderr.splitlines()
    assert "and the token that is set may not read it" in first
    assert SECRET not in first


def test_weights_that_the_hub_refuses_say_whether_a_token_is_set(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for token, told in ((None, "and no token is set"), (SECRET, "with the token that is set")):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        hub.token = ""
        repository = open_address("hf://org/name")
        hub.token = "another"
        shard = next(path for path in repository.iterdir() if path.suffix == ".safetensors")
        with pytest.raises(CheckpointError, match=rf"refuses it \(401\), {told}") as caught:
            read_at(shard, 0, 8)
        assert "HF_TOKEN=hf_" in caught.value.hint


@pytest.mark.parametrize(
    ("address", "state", "message", "hint"),
    [
        ("hf://org/other", {}, "no such repository, or it is private", "hf auth login"),
        ("hf://org/name@v9", {}, "hf://org/name has no revision v9", "without @"),
        ("hf://org/name", {"token": "t"}, "it is private, and no token is set", "HF_TOKEN=hf_"),
        ("hf://org/name", {"token": "t", "gated": True}, "and no token is set", "HF_TOKEN=hf_"),
        ("hf://org/name", {"api_fault": unauthorized}, "no token is set", "HF_TOKEN=hf_"),
        ("ftp://x", {}, "ftp://x: addresses that begin with ftp:// are not read", "hf://org/name"),
        ("file:///tmp/x.gguf", {}, "begin with file:// are not read", "give the path"),
        ("hf://org/name/none.gguf", {}, "hf://org/name has no file none.gguf", "files are at"),
    ],
)
def test_what_the_hub_refuses(
    hub: Hub, address: str, state: dict[str, object], message: str, hint: str
) -> None:
    for name, value in state.items():
        setattr(hub, name, value)
    done = run("plan", address)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert message in lines[0]
    assert hint in lines[1]


def test_a_busy_hub_is_asked_again(hub: Hub) -> None:
    answers = [429, 500, 503]

    def busy(handler: Handler) -> bool:
        if not answers:
            return False
        handler.answer(answers.pop(), b"", {"Retry-After": "0"})
        return True

    hub.api_fault = busy
    assert ggplan.open_model("hf://org/name").path.name == "name"
    hub.api_fault = lambda handler: bool(handler.answer(500)) or True
    done = run("plan", "hf://org/name")
    assert done.returncode == 1
    assert "hf://org/name: the hub answers 500" in done.stderr
    hub.api_fault = lambda handler: bool(handler.answer(200, b"<html>login</html>")) or True
    done = run("plan", "hf://org/name")
    assert done.returncode == 1
    assert "the server does not answer as the hub does" in done.stderr
    assert "HF_ENDPOINT" in done.stderr


def test_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://no-such-host.invalid")
    done = run("plan", "hf://org/name")
    assert done.returncode == 1
    assert "hf://org/name: the host's name is not known" in done.stderr
    assert "HF_ENDPOINT" in done.stderr


def test_other_bytes_of_a_small_file(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """The size is right, the hash is not."""
    served = tmp_path / "served"
    shutil.copytree(folder, served)
    hub.folder = served
    for name in hub.files():
        hub.hash(name)
    config = (served / "config.json").read_bytes()
    (served / "config.json").write_bytes(config.replace(b"silu", b"gelu"))
    done = run("plan", "hf://org/name")
    assert done.returncode == 1
    assert "hf://org/name/config.json: what the hub sends does not have the hash that it lists" in done.stderr
    (served / "config.json").write_bytes(config)
    assert run("plan", "hf://org/name").returncode == 0


def test_another_commit_midway(hub: Hub) -> None:
    model = ggplan.open_model("hf://org/name", pre="glm4")
    rows = model["token_embd.weight"].rows
    assert rows is not None
    hub.commit = "d" * 40
    rows.read(1000, 3000)  # where the redirect led is the file of the commit still
    tensor = model["output.weight"].rows
    assert tensor is not None
    for request in hub.requests:
        assert "/resolve/main/" not in request.path


def test_what_the_hub_says_of_a_file_is_compared(hub: Hub) -> None:
    shard = "model-00001-of-00003.safetensors"
    for change, message in {
        "commit": r"answers with commit d{40}, not with c0ffee",
        "hash": "its hash is not the one that the repository lists",
        "size": r"it has 5 bytes, the repository lists [\d,]+",
    }.items():
        path = open_address("hf://org/name") / shard
        file = path.file()

        def other(handler: Handler, told: dict[str, str], change: str = change) -> None:
            key, text = {
                "commit": ("X-Repo-Commit", "d" * 40),
                "hash": ("X-Linked-Etag", '"' + "e" * 64 + '"'),
                "size": ("X-Linked-Size", "5"),
            }[change]
            told[key] = text

        hub.resolve_fault = other
        with pytest.raises(CheckpointError, match=message) as caught:
            file.read_into(0, memoryview(bytearray(100)))
        assert caught.value.message.startswith(f"hf://org/name/{shard}")
        assert file.is_changed
        hub.resolve_fault = None


def test_a_token_that_is_none(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secrét")
    done = run("plan", "hf://org/name")
    assert done.returncode == 1
    assert "the token is none" in done.stderr
    assert "secr" not in done.stderr


def test_names_that_lead_out_of_the_folder(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [*hub.files(), "../../evil.json"]
    monkeypatch.setattr(Hub, "files", lambda self: listed)
    monkeypatch.setattr(Hub, "is_lfs", lambda self, name: False)
    monkeypatch.setattr(Hub, "hash", lambda self, name: "0" * 40)
    (hub.folder.parent.parent / "evil.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"a file of the impossible name '\.\./\.\./evil\.json'"):
        open_address("hf://org/name")


def test_pickles_are_not_read_from_a_server(hub: Hub, tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    shutil.copy(DEMO / "config.json", served)
    (served / "pytorch_model.bin").write_bytes(b"PK\3\4" + bytes(100))
    hub.folder = served
    done = run("plan", "hf://org/name")
    assert done.returncode == 1
    assert "pickles (pytorch_model.bin), which are not read from a server" in done.stderr


def test_a_repository_of_nothing(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "README.md").write_text("hello")
    hub.folder = tmp_path / "served"
    done = run("plan", "hf://org/name")
    assert done.returncode == 1
    assert "hf://org/name is not a checkpoint: it holds no config.json and no GGUF file" in done.stderr


def test_repositories_of_gguf_files(hub: Hub, folder: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    (served / "Q4_K_M").mkdir(parents=True)
    assert run("convert", folder, served / "m.gguf", "--pre", "glm4", "-q").returncode == 0
    split = ("--split-max-tensors", "20", "--pre", "glm4", "-q", "-r", "Q4_K_M")
    assert run("convert", folder, served / "Q4_K_M" / "m-Q4_K_M.gguf", *split).returncode == 0
    for path in served.rglob("*.sha256"):
        path.unlink()
    (served / "mmproj-F16.gguf").write_bytes(b"GGUF")
    shutil.copy(folder / "config.json", served)
    hub.folder = served
    done = run("plan", "hf://org/name")
    assert done.returncode == 1
    first = "Q4_K_M/m-Q4_K_M-00001-of-00003.gguf"
    assert f"error: hf://org/name holds 2 GGUF models: {first}, m.gguf\n" in done.stderr
    assert f"help: name one: hf://org/name/{first}\n" in done.stderr
    here = ggplan.open_model(served / first)
    with serving(Hub(served, lfs=is_weights)) as other:
        for address in (f"hf://org/name/{first}", f"hf://org/name@main/{first}", f"{other.url}/{first}"):
            there = ggplan.open_model(address)
            assert there.metadata == here.metadata
            assert [t.name for t in there] == [t.name for t in here]
            assert len(there.files) == 3
            assert str(there.path) == address
    shutil.rmtree(served / "Q4_K_M")
    assert len(ggplan.open_model("hf://org/name").tensors) == len(here.tensors)
    model = ggplan.open_model("hf://org/name")
    assert model.path.name == "m.gguf"
    assert "hf://org/name: not read: mmproj-F16.gguf, which by the name is no model" in model.notes


def test_a_quantization_by_its_name(hub: Hub, folder: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    (served / "UD-Q4_K_XL").mkdir(parents=True)
    assert run("convert", folder, served / "m-Q8_0.gguf", "--pre", "glm4", "-q", "-r", "Q8_0").returncode == 0
    for name in ("m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "UD-Q4_K_XL/m-UD-Q4_K_XL.gguf", "mmproj-Q8_0.gguf"):
        shutil.copy(served / "m-Q8_0.gguf", served / name)
    hub.folder = served
    for tag, name in {
        "Q8_0": "m-Q8_0.gguf",
        "q4_k_m": "m-Q4_K_M.gguf",
        "UD-Q4_K_XL": "UD-Q4_K_XL/m-UD-Q4_K_XL.gguf",
        "Q4_K_XL": "UD-Q4_K_XL/m-UD-Q4_K_XL.gguf",
    }.items():
        assert str(open_address(f"hf://org/name:{tag}")) == f"hf://org/name/{name}"
        assert str(open_address(f"hf://org/name@main:{tag}")) == f"hf://org/name@main/{name}"
    for tag in ("Q4_K", "Q6_K", "m"):
        done = run("plan", f"hf://org/name:{tag}")
        assert done.returncode == 1
        assert "GGUF models" in done.stderr
        assert "m-Q4_K_S.gguf" in done.stderr


def test_what_is_not_the_file(hub: Hub, tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    (served / "pointer.gguf").write_bytes(pointer)
    (served / "page.gguf").write_bytes(b"<!DOCTYPE html><html>log in</html>" * 99)
    (served / "notes.txt").write_bytes(b"hello")
    hub.folder = served
    for name, what in {"pointer.gguf": "a Git LFS pointer", "page.gguf": "a web page"}.items():
        done = run("plan", f"{hub.url}/{name}")
        assert done.returncode == 1
        assert f"error: {hub.url}/{name} is {what}" in done.stderr
        assert "/resolve/" in done.stderr
    done = run("plan", f"{hub.url}/notes.txt")
    assert done.returncode == 1
    assert f"{hub.url}/notes.txt" in done.stderr


def test_commands_that_read_whole_files_say_so(hub: Hub) -> None:
    for command in (
        ("verify", "hf://org/name/x.gguf"),
        ("reproduce", "hf://org/name/x.gguf", "hf://org/name"),
    ):
        done = run(*command)
        assert done.returncode == 1
        assert "hf://org/name/x.gguf is on a server" in done.stderr
    done = run("plan", "hf://org/name", "--converter", "somewhere")
    assert done.returncode == 1
    assert "hf://org/name is on a server, and llama.cpp's converter reads folders" in done.stderr


def test_diff_and_rules_take_addresses(hub: Hub, folder: Path) -> None:
    done = run("diff", "hf://org/name", folder, "--pre", "glm4")
    assert (done.returncode, done.stderr.count("error")) == (0, 0), done.stdout + done.stderr
    done = run("rules", "check", DEMO / "hq6_k.recipe", "-m", "hf://org/name")
    assert done.returncode == 0, done.stderr


def test_without_the_libraries(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="needs huggingface_hub") as caught:
        ggplan.open_model("hf://org/name")
    assert caught.value.hint == "pip install 'ggplan[hub]'"
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(CheckpointError, match="needs httpx2") as caught:
        ggplan.open_model("http://127.0.0.1:1/x.gguf")
    assert caught.value.hint == "pip install 'ggplan[hub]'"


def test_scales_on_a_server_are_not_read_to_look_at_a_checkpoint(tmp_path: Path, use: Use) -> None:
    source = with_tokenizer("ct-nvfp4a16", tmp_path)
    with serving(Hub(source, lfs=is_weights)) as served:
        use(served)
        done = run("inspect", "hf://org/name")
        assert done.returncode == 0, done.stderr
        assert "the scales of 7 quantized tensors are on the server and are not read here" in done.stderr
        assert "are on the server" not in run("inspect", "hf://org/name", "-q").stderr
        planned = run("plan", "hf://org/name", "--pre", "qwen2")
        assert planned.returncode == 0, planned.stderr
        assert "are on the server" not in planned.stderr
    assert "are on the server" not in run("inspect", source).stderr


def test_many_scales_on_a_server_are_read_by_convert_alone(
    tmp_path: Path, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plan` reads 1 % of the bytes at most; scales of groups of 32 are a ninth of an int4 checkpoint."""
    monkeypatch.setattr(planning, "_MOST_READ", 0)
    source = tmp_path / "source"
    quantized_folder(Path(ggplan.__file__).parent / "demo_model", source, "gptq")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"]["sym"] = False  # which no zero point bears out
    (source / "config.json").write_text(json.dumps(config))
    with serving(Hub(source, lfs=is_weights)) as served:
        use(served)
        read = served.sent
        planned = run("plan", "hf://org/name", "--pre", "glm4", "--json")
        read = served.sent - read
        assert planned.returncode == 0, planned.stderr
        assert "the scales of 27 quantized tensors are on the server and are not read here" in planned.stderr
        types = {t["name"]: t["type"] for t in json.loads(planned.stdout)["tensors"]}
        assert types["blk.1.ffn_down_exps.weight"] == "q5_0"
        small = sum(path.stat().st_size for path in source.iterdir() if path.suffix == ".json")
        assert read < small + (1 << 17)
        made = run("convert", "hf://org/name", tmp_path / "made.gguf", "--pre", "glm4")
        assert made.returncode == 0, made.stderr
    types = {t.name: t.type.name for t in ggplan.open_model(tmp_path / "made.gguf").tensors}
    assert types["blk.1.ffn_down_exps.weight"] == "q4_0"
    local = run("convert", source, tmp_path / "local.gguf", "--pre", "glm4")
    assert local.returncode == 0, local.stderr
    found = [
        {t.name: t.type for t in ggplan.open_model(tmp_path / n).tensors} for n in ("made.gguf", "local.gguf")
    ]
    assert found[0] == found[1]
