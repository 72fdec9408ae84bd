"""The process that runs llama.cpp's model classes: what a checkpoint becomes, and its tensors on request.

    python server.py TREE FOLDER SOCKET HEADERS PRE

TREE is llama.cpp's, with `conversion/` and `gguf-py/`; FOLDER the checkpoint; SOCKET the number of an open
socket; HEADERS a folder for two GGUF headers; PRE the pre-tokenizer's name, or nothing. This file imports
nothing of ggplan, since the tree's own `gguf` comes first on its path.

The model is made twice: with the types that the converter chooses by itself (`types.gguf`), and with all
floats as they are (`rows.gguf`). Nothing is computed for that: tensors are lazy. Then it answers requests, 24
bytes each:

    n, -1, -1        compute tensor n
    n, start, stop   the bytes from start up to stop of the tensor computed last

An answer is a status byte (0 done, 1 failed), a length (u64), and the bytes or the words of the error. Each
tensor is computed in a fork of this process, so that all memory it took is free afterwards.

No code of the checkpoint is run: what the converter asks transformers to trust is not trusted.
"""

import importlib
import json
import os
import socket
import struct
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

REQUEST, ANSWER = struct.Struct("<qqq"), struct.Struct("<BQ")
COMPUTE = -1
_PIECE = 1 << 24
# torch's names of types as safetensors has them.
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64",
           "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "uint8": "U8", "int8": "I8"}  # fmt: skip


def _distrust() -> None:
    """Make transformers refuse the code of a checkpoint, whatever its caller says."""
    dynamic = importlib.import_module("transformers.dynamic_module_utils")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("it needs code of its own (auto_map), which is never run")

    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("transformers"):
            for name in ("get_class_from_dynamic_module", "resolve_trust_remote_code"):
                if name in getattr(module, "__dict__", {}):
                    setattr(module, name, _never_trusted if name.startswith("resolve") else refuse)
    dynamic.__dict__["get_class_from_dynamic_module"] = refuse
    dynamic.__dict__["resolve_trust_remote_code"] = _never_trusted


def _never_trusted(
    _trust: object, _name: object, has_local_code: bool, has_remote_code: bool, *_: object, **__: object
) -> bool:
    if has_remote_code and not has_local_code:
        raise ValueError("it needs code of its own (auto_map), which is never run")
    return False


def _make(folder: Path, ftype: str, pre: str) -> tuple[Any, list[str], str]:
    """The converter's model with all tensors and keys, none of them computed, and how they are stored.

    With them goes why it cannot make the keys of the tokenizer, which then are not there; or "".
    """
    import gguf

    conversion = importlib.import_module("conversion")
    hparams = conversion.ModelBase.load_hparams(folder, False)
    name = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
    model_class = conversion.get_model_class(name)
    if pre:
        model_class.get_vocab_base_pre = lambda self, tokenizer: pre
    model = model_class(folder, gguf.LlamaFileType[ftype], folder / "unused.gguf")
    stored_as = _watch(model)
    failures = _forgive_tokenizer(model)
    model.prepare_tensors()
    model.prepare_metadata(vocab_only=False)
    stored = [stored_as[name] for part in model.gguf_writer.tensors for name in part]
    return model, stored, "".join(failures)


def _forgive_tokenizer(model: Any) -> list[str]:
    """Let a model be made whose tokenizer the converter refuses; its words are put into the list."""
    set_vocab = model.set_vocab
    failures: list[str] = []

    def forgiving() -> None:
        before = [dict(part) for part in model.gguf_writer.kv_data]
        try:
            set_vocab()
        except Exception as error:
            traceback.print_exc()
            failures.append(_in_words(error).decode("utf-8", "replace"))
            model.gguf_writer.kv_data[:] = before

    model.set_vocab = forgiving
    return failures


def _watch(model: Any) -> dict[str, str]:
    """The type that each tensor's weights are stored in, by its GGUF name, as the converter meets them."""
    found: dict[str, str] = {}
    now = "computed"
    get_tensors, add_tensor = model.get_tensors, model.gguf_writer.add_tensor

    def watched() -> Any:
        nonlocal now
        for name, tensor in get_tensors():
            stated = str(tensor.dtype).removeprefix("torch.")
            now = _DTYPES.get(stated, stated.upper())
            yield name, tensor

    def add(name: str, *arguments: Any, **named: Any) -> None:
        found[name] = now
        add_tensor(name, *arguments, **named)

    model.get_tensors, model.gguf_writer.add_tensor = watched, add
    return found


def _write_header(model: Any, path: Path) -> None:
    model.gguf_writer.write_header_to_file(path=path)
    model.gguf_writer.write_kv_data_to_file()
    model.gguf_writer.write_ti_data_to_file()
    model.gguf_writer.close()


def _bytes_of(tensor: Any) -> memoryview:
    """The bytes of a lazy tensor, computed now."""
    import gguf
    import numpy as np

    if isinstance(tensor, np.ndarray):
        return np.ascontiguousarray(tensor).reshape(-1).data.cast("B")
    if isinstance(tensor, gguf.LazyNumpyTensor):
        return _bytes_of(gguf.LazyNumpyTensor.to_eager(tensor))
    with tempfile.TemporaryFile() as file:  # for those of the converter's tensors that are written in pieces
        tensor.tofile(file)
        file.flush()
        return np.memmap(file, np.uint8, "r").data.cast("B") if tensor.nbytes else memoryview(b"")


def _answer(link: socket.socket, status: int, data: bytes | memoryview) -> None:
    link.sendall(ANSWER.pack(status, len(data)))
    for at in range(0, len(data), _PIECE):
        link.sendall(data[at : at + _PIECE])


def _request(link: socket.socket) -> tuple[int, int, int] | None:
    """The next request; None if nobody asks any more."""
    data = b""
    while len(data) < REQUEST.size:
        part = link.recv(REQUEST.size - len(data))
        if not part:
            return None
        data += part
    n, start, stop = REQUEST.unpack(data)
    return n, start, stop


def _in_words(error: BaseException) -> bytes:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if words else ''}{words}"[:2000].encode()


def _serve_one(link: socket.socket, tensor: Any, back: int) -> None:
    """Compute a tensor and answer for it; the first request for another goes back to the main process."""
    try:
        data = _bytes_of(tensor)
    except BaseException as error:
        traceback.print_exc()
        _answer(link, 1, _in_words(error))
        return
    _answer(link, 0, b"")
    while (asked := _request(link)) is not None:
        if asked[1] == COMPUTE:
            os.write(back, REQUEST.pack(*asked))
            return
        _answer(link, 0, data[asked[1] : asked[2]])


def _serve(link: socket.socket, tensors: list[Any]) -> None:
    asked = _request(link)
    while asked is not None:
        ours, back = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ours)
            try:
                _serve_one(link, tensors[asked[0]], back)
            finally:
                os._exit(0)
        os.close(back)
        pending = os.read(ours, REQUEST.size)
        os.close(ours)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            words = f"the process that computes it was ended by signal {os.WTERMSIG(status)}"
            _answer(link, 1, f"{words}; is there memory for the whole tensor in float32?".encode())
        asked = REQUEST.unpack(pending) if pending else _request(link)


def main() -> None:
    """Make the headers, and answer requests until the socket is closed."""
    tree, folder, number, headers, pre = sys.argv[1:]
    link = socket.socket(fileno=int(number))
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    sys.path[:0] = [tree, f"{tree}/gguf-py"]
    try:
        importlib.import_module("conversion")  # and with it torch and transformers
        torch = importlib.import_module("torch")
        torch.set_num_threads(1)  # its threads do not survive a fork
        torch.set_grad_enabled(False)
        _distrust()
        types, _, _ = _make(Path(folder), "GUESSED", pre)
        rows, stored_as, tokenizer = _make(Path(folder), "ALL_F32", pre)
        _write_header(types, Path(headers) / "types.gguf")
        _write_header(rows, Path(headers) / "rows.gguf")
        tensors = [info.tensor for part in rows.gguf_writer.tensors for info in part.values()]
        files = [str(path) for path in _files(rows)]
        about = {"class": type(rows).__name__, "files": files, "stored_as": stored_as, "tokenizer": tokenizer}
        (Path(headers) / "about.json").write_text(json.dumps(about), encoding="utf-8")
    except BaseException as error:  # SystemExit too; whatever it is, it is told
        traceback.print_exc()
        _answer(link, 1, _in_words(error))
        return
    _answer(link, 0, b"")
    _serve(link, tensors)


def _files(model: Any) -> list[Path]:
    """The files of weights, by the converter's rule."""
    for prefix, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        if names := model.get_model_part_names(model.dir_model, prefix, suffix):
            return [model.dir_model / name for name in names]
    return []


if __name__ == "__main__":
    main()
