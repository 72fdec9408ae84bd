"""Files that were renamed are found in their manifest, and the flipped byte in them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from pathlib import Path
from unittest import mock

import gguf
import numpy as np
import pytest
from program import run
from sound_files import WEIGHTS, write_converted, write_manifest, write_source, write_split

import ggplan
from ggplan.conversion.manifest import manifest_path, read_manifest
from ggplan.errors import CheckpointError
from ggplan.sources.gguf import find_set
from ggplan.sources.gguf_header import read_header
from ggplan.verification import HEADER, Verification, verify
from ggplan.verification.reproducing import reproduce

QUERY = "blk.0.attn_q.weight"


def flip(path: Path, tensor: str | None = QUERY) -> None:
    """A bit of a tensor's last byte, or of the header's."""
    data = bytearray(path.read_bytes())
    records = {record.name: record for record in read_header(path).tensors}
    at = data.index(b"tiny") if tensor is None else records[tensor].offset + records[tensor].n_bytes - 1
    data[at] ^= 1
    path.write_bytes(data)


def faults_of(found: Verification) -> list[tuple[str, str, str]]:
    return [(fault.where, fault.kind, fault.file) for fault in found.faults]


def split_set(folder: Path, name: str = "set") -> list[Path]:
    """A split set of three files by ggplan, with its manifest."""
    source = write_source(folder / "source.gguf")
    plan = ggplan.make_plan(ggplan.open_model(source), ggplan.parse_recipe("@default q8_0 | bf16"))
    return list(
        ggplan.convert(plan, folder / f"{name}.gguf", ggplan.ConvertOptions(split_max_tensors=2)).paths
    )


@pytest.mark.parametrize("manifest", ["with it", "stays", "elsewhere"])
def test_a_renamed_file_is_found_in_its_manifest(tmp_path: Path, manifest: str) -> None:
    _, path = write_converted(tmp_path)
    new = path.rename(tmp_path / "new name.gguf")
    sums = tmp_path / "out.gguf.sha256"
    options: dict[str, object] = {}
    if manifest == "with it":
        sums = sums.rename(tmp_path / "new name.gguf.sha256")
    elif manifest == "elsewhere":
        (tmp_path / "sums").mkdir()
        sums = options["manifest"] = sums.rename(tmp_path / "sums" / "any.txt")
    found = verify(new, **options)
    assert found.is_sound
    assert found.manifest == sums
    assert found.notes == (f"new name.gguf is listed as out.gguf in {sums.name}",)
    flip(new)
    assert faults_of(verify(new, **options)) == [(QUERY, "checksum", "new name.gguf")]
    flip(new)
    flip(new, None)
    assert (HEADER, "checksum", "new name.gguf") in faults_of(verify(new, **options))


def test_the_command_says_the_other_name_once(tmp_path: Path) -> None:
    source, path = write_converted(tmp_path)
    new = path.rename(tmp_path / "new.gguf")
    done = run("verify", new)
    assert done.returncode == 0
    assert done.stderr == "note: new.gguf is listed as out.gguf in out.gguf.sha256\n"
    assert "checksums agree" in done.stdout
    flip(new)
    done = run("verify", new)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: new.gguf: {QUERY}: its sha256 is not the manifest's",
        "note: new.gguf is listed as out.gguf in out.gguf.sha256",
    ]
    found = json.loads(run("verify", new, "--json").stdout)
    assert found["manifest"] == str(tmp_path / "out.gguf.sha256")
    assert found["listed_as"] == {"new.gguf": "out.gguf"}
    assert len(found["notes"]) == 1
    assert [fault["where"] for fault in found["faults"]] == [QUERY]
    done = run("reproduce", new, source)
    assert done.returncode == 1
    assert f"new.gguf: {QUERY}: row 5 is not what the plan encodes, though its weights are" in done.stderr
    assert done.stderr.count("listed as out.gguf") == 1
    assert json.loads(run("reproduce", new, source, "--json").stdout)["notes"] == found["notes"]


def test_what_is_listed_by_its_name_is_what_was_meant(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source.gguf")
    for name in ("q8_0", "q4_0", "q5_0"):
        plan = ggplan.make_plan(ggplan.open_model(source), ggplan.parse_recipe(f"@default {name} | bf16"))
        ggplan.convert(plan, tmp_path / f"{name}.gguf")
    # A file that was copied over another contradicts the manifest of its name, whatever another says.
    kept = (tmp_path / "q8_0.gguf").read_bytes()
    shutil.copy(tmp_path / "q4_0.gguf", tmp_path / "q8_0.gguf")
    found = verify(tmp_path / "q8_0.gguf")
    assert (found.is_sound, found.manifest) == (False, tmp_path / "q8_0.gguf.sha256")
    assert {kind for _, kind, _ in faults_of(found)} == {"checksum"}
    assert found.notes == (
        "q8_0.gguf has the header of q4_0.gguf in q4_0.gguf.sha256: if it was renamed, rename "
        "q8_0.gguf.sha256 with it, and if it was copied over the file that was meant, make that again",
    )
    assert run("verify", tmp_path / "q8_0.gguf").returncode == 1
    # So it does where one list has both, or another than its own lists it.
    both = tmp_path / "SHA256SUMS"
    both.write_text("".join((tmp_path / f"{n}.gguf.sha256").read_text() for n in ("q8_0", "q4_0")))
    assert not verify(tmp_path / "q8_0.gguf", manifest=both).is_sound
    assert verify(tmp_path / "q4_0.gguf", manifest=both).is_sound
    own = (tmp_path / "q8_0.gguf.sha256").rename(tmp_path / "zz.sha256")
    found = verify(tmp_path / "q8_0.gguf")
    assert (found.is_sound, found.manifest) == (False, own)
    own.rename(tmp_path / "q8_0.gguf.sha256")
    (tmp_path / "q8_0.gguf").write_bytes(kept)
    # Two files that changed their names, and their manifests did not.
    (tmp_path / "q8_0.gguf").rename(tmp_path / "x.gguf")
    (tmp_path / "q4_0.gguf").rename(tmp_path / "q8_0.gguf")
    (tmp_path / "x.gguf").rename(tmp_path / "q4_0.gguf")
    found = verify(tmp_path / "q8_0.gguf")
    assert (found.is_sound, found.manifest) == (False, tmp_path / "q8_0.gguf.sha256")
    assert "q8_0.gguf has the header of q4_0.gguf in q4_0.gguf.sha256" in found.notes[0]
    (tmp_path / "q8_0.gguf.sha256").rename(tmp_path / "else.sha256.old")
    found = verify(tmp_path / "q8_0.gguf")
    assert (found.is_sound, found.manifest) == (True, tmp_path / "q4_0.gguf.sha256")
    assert found.notes == ("q8_0.gguf is listed as q4_0.gguf in q4_0.gguf.sha256",)
    # One manifest of many files: by the header, and where that is damaged by the bytes.
    sums = tmp_path / "SHA256SUMS"
    sums.write_text("".join(path.read_text() for path in sorted(tmp_path.glob("*.gguf.sha256"))))
    new = (tmp_path / "q5_0.gguf").rename(tmp_path / "new.gguf")
    assert verify(new, manifest=sums).is_sound
    flip(new, None)
    assert faults_of(verify(new, manifest=sums)) == [(HEADER, "checksum", "new.gguf")]


def test_the_manifest_of_another_quantization_is_not_taken(tmp_path: Path) -> None:
    source, path = write_converted(tmp_path)
    plan = ggplan.make_plan(ggplan.open_model(source), ggplan.parse_recipe("exps = q8_0\n@default bf16"))
    (tmp_path / "other.gguf.sha256").unlink(missing_ok=True)
    other = ggplan.convert(plan, tmp_path / "other.gguf")
    other.manifest.unlink()
    assert verify(other.path).manifest is None
    assert verify(other.path).notes == ()
    # Nor if it is the only one left.
    path.unlink()
    assert verify(other.path).manifest is None


def test_a_manifest_of_llama_gguf_hash_is_found_by_the_tensors(tmp_path: Path) -> None:
    _, path = write_converted(tmp_path)
    sums = tmp_path / "out.gguf.sha256"
    own = [line for line in sums.read_text().splitlines() if line.startswith("sha256 ")]
    data = hashlib.sha256(b"".join(t.data.tobytes() for t in gguf.GGUFReader(path).tensors)).hexdigest()
    theirs = [line.replace("  out.gguf", "  models/out.gguf") for line in own]
    sums.write_text("\n".join([*theirs, f"sha256    {data}  models/out.gguf"]) + "\n")
    assert verify(path).is_sound
    assert verify(path).notes == ()  # only the folder is another
    new = path.rename(tmp_path / "new.gguf")
    assert verify(new).manifest == sums
    assert verify(new).notes == ("new.gguf is listed as models/out.gguf in out.gguf.sha256",)
    flip(new, "token_embd.weight")
    assert [where for where, _, _ in faults_of(verify(new, manifest=sums))] == [HEADER, "token_embd.weight"]


@pytest.mark.parametrize("style", ["gnu", "binary", "bsd"])
def test_the_hash_of_a_whole_file(tmp_path: Path, style: str) -> None:
    _, path = write_converted(tmp_path)
    flag = {"gnu": [], "binary": ["-b"], "bsd": ["--tag"]}[style]
    sums = tmp_path / "out.gguf.sha256"
    done = subprocess.run(["sha256sum", *flag, path.name], cwd=tmp_path, capture_output=True, check=True)
    sums.write_bytes(done.stdout)
    assert verify(path).is_sound
    assert verify(path).manifest == sums
    path.rename(tmp_path / "new.gguf")
    sums.rename(tmp_path / "new.gguf.sha256")
    found = verify(tmp_path / "new.gguf")
    assert found.is_sound
    assert found.notes == ("new.gguf is listed as out.gguf in new.gguf.sha256",)
    flip(tmp_path / "new.gguf")
    (fault,) = verify(tmp_path / "new.gguf").faults
    assert fault.message == "the file's sha256 is not the one in new.gguf.sha256"


def test_what_a_given_manifest_does_not_list_is_a_fault(tmp_path: Path) -> None:
    _, path = write_converted(tmp_path)
    other = write_source(tmp_path / "other.gguf", {"another.weight": np.ones((2, 64), np.float32)})
    (fault,) = verify(path, manifest=write_manifest(other)).faults
    assert fault.message == "other.gguf.sha256 does not list it; it lists other.gguf"


@pytest.mark.parametrize(
    "names",
    [
        ["new-00001-of-00003.gguf", "new-00002-of-00003.gguf", "new-00003-of-00003.gguf"],
        ["new-00001-of-00003.gguf", "set-00002-of-00003.gguf", "other.gguf"],
        ["set-00002-of-00003.gguf", "set-00003-of-00003.gguf", "set-00001-of-00003.gguf"],
        ["a.gguf", "b.gguf", "c.gguf"],
    ],
)
def test_a_split_set_whose_files_were_renamed(tmp_path: Path, names: list[str]) -> None:
    paths = split_set(tmp_path)
    source = ggplan.open_model(tmp_path / "source.gguf")
    for number, path in enumerate(paths):
        path.rename(tmp_path / f"{number}")
    new = [(tmp_path / f"{number}").rename(tmp_path / name) for number, name in enumerate(names)]
    for path in new:
        found = verify(path)
        assert found.is_sound, found.faults
        assert found.files == tuple(new)
        assert found.manifest == tmp_path / "set.gguf.sha256"
    listed, *rest = reversed(found.notes)
    assert f"{names[0]} is listed as set-00001-of-00003.gguf in set.gguf.sha256" in listed
    fits = names[1:] == [f"{names[0][:-20]}-0000{n}-of-00003.gguf" for n in (2, 3)]
    assert [note.startswith("llama.cpp finds the files of a split set by their names") for note in rest] == (
        [] if fits else [True]
    )
    assert reproduce(new[1], source).is_equal
    where = read_header(new[2]).tensors[0].name
    flip(new[2], where)
    assert faults_of(verify(new[0])) == [(where, "checksum", names[2])]
    done = run("verify", new[1], "--against", tmp_path / "source.gguf", "--exact", "--json")
    faults = json.loads(done.stdout)["faults"]
    assert [(fault["where"], fault["kind"]) for fault in faults] == [(where, "checksum"), (where, "bytes")]


def test_renamed_files_of_two_sets_are_told_apart_by_the_manifest(tmp_path: Path) -> None:
    paths = [write_split(tmp_path), write_split(tmp_path)][0]
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    write_manifest(paths[0]).rename(mixed / "a.gguf.sha256")
    for number, path in enumerate(paths):
        path.rename(mixed / f"a{number}.gguf")
    for number, path in enumerate(write_split(tmp_path, ("q4_0", "f16"))):
        path.rename(mixed / f"b{number}.gguf")
    found = verify(mixed / "a0.gguf")
    assert found.is_sound
    assert [path.name for path in found.files] == ["a0.gguf", "a1.gguf"]
    (fault,) = verify(mixed / "b0.gguf").faults
    assert "2 files may be the same part of the split model: a1.gguf, b1.gguf" in fault.message


def test_a_set_with_fitting_names_lends_no_file(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    lone = tmp_path / "lone.gguf"
    lone.write_bytes(paths[0].read_bytes())
    (fault,) = verify(lone).faults
    assert "its name does not end in" in fault.message
    (tmp_path / "elsewhere").mkdir()
    paths[1].rename(tmp_path / "elsewhere" / paths[1].name)
    (fault,) = verify(paths[0]).faults
    assert "1 of 2 files of the set are missing" in fault.message


def test_a_set_that_was_merged_or_split_since(tmp_path: Path) -> None:
    paths = split_set(tmp_path)
    sums = tmp_path / "set.gguf.sha256"
    whole = ggplan.make_plan(ggplan.open_model(paths[0]))
    one = ggplan.convert(whole, tmp_path / "one.gguf")
    one.manifest.unlink()
    found = verify(one.path, manifest=sums)
    assert found.is_sound
    (note,) = found.notes
    assert note.startswith("its tensors are listed in set.gguf.sha256 under 3 files")
    assert note.endswith("it was split or merged since, so its metadata was not compared")
    flip(one.path)
    assert faults_of(verify(one.path, manifest=sums)) == [(QUERY, "checksum", "one.gguf")]
    # And the other way: one file's manifest, and the set.
    flip(one.path)
    alone = write_manifest(one.path)
    assert verify(paths[1], manifest=alone).is_sound
    flip(paths[1], name := read_header(paths[1]).tensors[0].name)
    assert faults_of(verify(paths[0], manifest=alone)) == [(name, "checksum", paths[1].name)]


def test_a_manifest_beside_it_that_is_broken_is_an_error(tmp_path: Path) -> None:
    _, path = write_converted(tmp_path)
    (tmp_path / "notes.sha256").write_text("nothing")  # no manifest of anything
    assert verify(path).is_sound
    (tmp_path / "out.gguf.sha256").write_text("nothing")
    with pytest.raises(CheckpointError, match="is not a manifest"):
        verify(path)


def test_all_tensors_are_hashed(tmp_path: Path) -> None:
    _, path = write_converted(tmp_path)
    new = path.rename(tmp_path / "n.gguf")
    for name in WEIGHTS:
        flip(new, name)
    assert {where for where, _, _ in faults_of(verify(new))} == set(WEIGHTS)


def test_a_list_of_a_stranger_does_not_hang(tmp_path: Path) -> None:
    _, path = write_converted(tmp_path)
    hexes = "ab" * 32
    header = f"header-sha256  {hexes}  x.gguf\n"
    started = time.monotonic()
    (tmp_path / "colons.sha256").write_text(f"{header}sha256  {hexes}  {':' * 2_000_000}\n")
    assert verify(path).is_sound
    many = tmp_path / "many.txt"
    many.write_text("".join(f"{hexes}  {n}.bin\n" for n in range(20_000)) + manifest_path(path).read_text())
    assert verify(path, manifest=many).is_sound
    alike = "".join(f"sha256    {hexes}  {n}.gguf:{QUERY}\n" for n in range(5_000))
    many.write_text(alike + manifest_path(path).read_text())
    assert verify(path, manifest=many).is_sound
    assert time.monotonic() - started < 30


def test_a_folder_of_many_sets_is_read_once(tmp_path: Path) -> None:
    paths = split_set(tmp_path)
    for number in range(30):
        for part, path in enumerate(paths, start=1):
            shutil.copy(path, tmp_path / f"s{number}-{part:05d}-of-00003.gguf")
    paths[0].rename(tmp_path / "lost.gguf")
    with mock.patch("ggplan.sources.gguf.read_header", wraps=read_header) as counted:
        found = find_set(tmp_path / "lost.gguf")
    assert [len(candidates) for candidates in found] == [1, 1, 1]
    assert counted.call_count < 250  # about two for each of the 93 files


def test_a_renamed_part_without_the_first_says_which_is_missing(tmp_path: Path) -> None:
    first, second, third = split_set(tmp_path)
    new = second.rename(tmp_path / "part b.gguf")
    first.unlink()
    third.rename(tmp_path / "part c.gguf")
    done = run("verify", new)
    assert done.returncode == 1
    assert "1 of 3 files of the set is missing: the first; " in done.stderr
    assert done.stderr.count(new.name) == 1
    assert "-00002-of-00003.gguf" in done.stderr
    (tmp_path / "part c.gguf").unlink()
    done = run("verify", new)
    assert "2 of 3 files of the set are missing: the first, number 3; " in done.stderr
    with pytest.raises(CheckpointError, match=r"does not end in -00002-of-00003\.gguf"):
        ggplan.open_model(new)


def fine_tunes(folder: Path) -> list[Path]:
    """Two models of one header and other weights, m1.gguf and m2.gguf, each with its manifest."""
    made = []
    for n in (1, 2):
        (folder / f"in{n}" / "tune").mkdir(parents=True)
        rng = np.random.default_rng(n)
        weights = {
            name: values if "norm" in name else rng.standard_normal(values.shape, np.float32)
            for name, values in WEIGHTS.items()
        }
        source = write_source(folder / f"in{n}" / "tune" / "source.gguf", weights)
        plan = ggplan.make_plan(ggplan.open_model(source), ggplan.parse_recipe("@default q8_0 | bf16", "r"))
        ggplan.convert(plan, folder / f"m{n}.gguf")
        made.append(folder / f"m{n}.gguf")
    return made


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("which", ["manifests", "one list"])
def test_of_two_models_with_one_header_the_renamed_one_is_known(tmp_path: Path, n: int, which: str) -> None:
    made = fine_tunes(tmp_path)
    if which == "one list":
        sums = [manifest_path(path) for path in made]
        (tmp_path / "all.sha256").write_text("".join(path.read_text() for path in sums))
        for path in sums:
            path.unlink()
    new = made[n - 1].rename(tmp_path / "z.gguf")
    found = verify(new)
    assert found.is_sound
    assert found.listing is not None
    assert found.listing.renamed == {"z.gguf": f"m{n}.gguf"}
    assert run("verify", new).returncode == 0
    source = tmp_path / f"in{n}" / "tune" / "source.gguf"
    plan = ggplan.make_plan(ggplan.open_model(source), ggplan.parse_recipe("@default q8_0 | bf16", "r"))
    done = ggplan.convert(plan, tmp_path / "again.gguf", ggplan.ConvertOptions(reuse=new))
    assert done.reuse is not None
    assert QUERY in done.reuse.tensors
    assert not any("damaged" in reason for reason in done.reuse.reasons.values())
    # And the flipped bit in it is found, as that of the model it is.
    flip(new)
    damaged = verify(new)
    assert faults_of(damaged) == [(QUERY, "checksum", "z.gguf")]
    assert damaged.listing is not None
    assert damaged.listing.renamed == {"z.gguf": f"m{n}.gguf"}


def whole_sums(paths: list[Path]) -> list[tuple[str, str]]:
    return [(hashlib.sha256(path.read_bytes()).hexdigest(), path.name) for path in paths]


@pytest.mark.parametrize("name", ["list.txt", "set.gguf.sha256"])
@pytest.mark.parametrize("flipped", [False, True])
def test_a_list_without_some_files_of_a_set_agrees_with_nothing_of_them(
    tmp_path: Path, name: str, flipped: bool
) -> None:
    paths = split_set(tmp_path)
    manifest_path(paths[0]).unlink()
    (tmp_path / name).write_text("".join(f"{digest}  {file}\n" for digest, file in whole_sums(paths)[:-1]))
    if flipped:
        data = bytearray(paths[-1].read_bytes())
        data[-1] ^= 1
        paths[-1].write_bytes(data)
    given = ["--manifest", tmp_path / name] if name == "list.txt" else []
    done = run("verify", paths[0], *given)
    assert done.returncode == 1
    assert "agree" not in done.stdout
    assert f"{paths[-1].name}: header: {name} does not list it" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    with (tmp_path / name).open("a") as file:
        file.write("{}  {}\n".format(*whole_sums(paths)[-1]))
    assert run("verify", paths[0], *given).returncode == 0


def test_a_hash_of_the_header_alone_says_nothing_of_the_data(tmp_path: Path) -> None:
    _, path = write_converted(tmp_path)
    sums = manifest_path(path)
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(line for line in lines if line.startswith("header-sha256")))
    done = run("verify", path)
    assert done.returncode == 1
    assert "has a hash of its header, and none of its data" in done.stderr
    # Tensors that have no line of their own are those of a file that has one.
    sums.write_text("".join(f"{digest}  {name}\n" for digest, name in whole_sums([path])) + lines[0])
    assert run("verify", path).returncode == 0


TABLE = (
    "\nAlgorithm       Hash                                                                   Path\n"
    "---------       ----                                                                   ----\n"
    "SHA256          {HEX}       C:\\models\\{name}\n\n\n"
)
WINDOWS = {
    "Get-FileHash": TABLE,
    "its path is cut": TABLE.replace("{name}", "a long folder\\a lo..."),
    "Format-List": "\n\nAlgorithm : SHA256\nHash      : {HEX}\nPath      : D:\\some folder\\{name}\n\n",
    "Export-Csv": '"Algorithm","Hash","Path"\n"SHA256","{HEX}","D:\\m, n\\{name}"\n',
    "certutil": "SHA256 hash of {name}:\n{hex}\nCertUtil: -hashfile command completed successfully.\n",
    "older certutil": "SHA256 hash of file {name}:\n{pairs}\nCertUtil: -hashfile command completed.\n",
    "German certutil": "SHA256-Hash von {name}:\n{hex}\nCertUtil: -hashfile-Befehl wurde ausgeführt.\n",
    "a hash alone": "{hex}\n",
    "sha256sum": "{hex} *{name}\n",
    "sha256sum --tag": "SHA256 ({name}) = {hex}\n",
    "openssl": "SHA2-256({name})= {hex}\n",
    "a backslash": "\\{hex}  C:\\\\m\\\\{name}\n",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("program", WINDOWS)
def test_lists_of_other_programs_are_read(tmp_path: Path, program: str, encoding: str) -> None:
    _, path = write_converted(tmp_path)
    manifest_path(path).unlink()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    pairs = " ".join(digest[i : i + 2] for i in range(0, 64, 2))
    text = WINDOWS[program].format(HEX=digest.upper(), hex=digest, pairs=pairs, name=path.name)
    sums = tmp_path / "out.gguf.sha256"
    sums.write_bytes(text.replace("\n", "\r\n").encode(encoding))
    found = verify(path)
    assert found.is_sound
    assert found.manifest == sums
    flip(path)
    assert faults_of(verify(path)) == [(HEADER, "checksum", "out.gguf")]
    assert not verify(path, manifest=sums.rename(tmp_path / "sums.txt")).is_sound


def test_a_list_of_another_hash_says_what_is_read(tmp_path: Path) -> None:
    _, path = write_converted(tmp_path)
    (tmp_path / "md5.txt").write_text("d41d8cd98f00b204e9800998ecf8427e  out.gguf\n")
    done = run("verify", path, "--manifest", tmp_path / "md5.txt")
    assert done.returncode == 1
    assert "no line gives a SHA-256 of a tensor or a file" in done.stderr
    assert "certutil -hashfile FILE SHA256" in done.stderr


def test_faults_of_a_set_come_with_a_remedy(tmp_path: Path) -> None:
    paths = split_set(tmp_path)
    shutil.copy(paths[1], tmp_path / "copy.gguf")
    other = paths[2].rename(tmp_path / "renamed.gguf")
    manifest_path(paths[0]).unlink()
    done = run("verify", other)
    assert done.returncode == 1
    other.rename(tmp_path / "away")
    done = run("verify", paths[0])
    assert done.returncode == 1
    assert "help: download them into the same folder" in done.stderr
    assert "ggplan inspect --header-only" in done.stderr
    (tmp_path / "empty.gguf").touch()
    done = run("verify", tmp_path / "empty.gguf")
    assert "this is not a GGUF file: it is empty" in done.stderr


@pytest.mark.parametrize("line", [
    "SHA256 (" + ") = " * 40_000, "SHA256 " * 30_000, "0" * 200_000, "SHA256 hash of " * 20_000,
    ":" * 200_000, "sha256  " + "a" * 64 + " " * 100_000 + ":" * 100_000, "Hash : " * 30_000,
    "a" * 64 + " " * 200_000, "Path : a\n" + " x\n" * 60_000, "\\" * 200_000, "-00001-of-00002" * 20_000,
])  # fmt: skip
def test_long_lines_of_a_list_take_the_time_of_their_length(tmp_path: Path, line: str) -> None:
    path = tmp_path / "sums.txt"
    path.write_text(f"{line}\n{line}\n{'a' * 64}  x.gguf\n")
    start = time.process_time()
    read_manifest(path)
    assert time.process_time() - start < 2
