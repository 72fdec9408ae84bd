"""Run llama.cpp's convert_hf_to_gguf.py on many folders, importing torch and transformers only once.

    python run_converter.py LLAMA_CPP JOBS.json
    python run_converter.py LLAMA_CPP < lists of jobs, one a line

For each line an answer is printed, a line too: what went wrong, as JSON, or null.

A job is {"folder", "output", "outtype", "pre"}, and "options" for further ones of the converter. It knows a
pre-tokenizer by a hash that depends on the vocabulary, which no tokenizer trained anew can meet. "pre" then
says the name; null leaves it to the converter. Each job runs in a process of its own, forked after the
imports, since the converter keeps state in its classes.
"""

import json
import os
import runpy
import sys
import traceback
from pathlib import Path

tree = Path(sys.argv[1])
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever else is printed
sys.path[:0] = [str(tree), str(tree / "gguf-py")]

import conversion  # noqa: E402, F401
import torch  # noqa: E402
import transformers  # noqa: E402, F401
from conversion.base import ModelBase, TextModel  # noqa: E402
from conversion.deepseek import DeepseekV32Model  # noqa: E402
from conversion.hunyuan import HunYuanMoEModel  # noqa: E402

# Kinds that transformers 5.24 renames the keys of, on which the converter fails: it was written for configs
# that no class reads.
UNREAD = ("step3p5", "step3p7")
load_hparams = ModelBase.load_hparams


def load_unread(folder: Path, is_mistral_format: bool) -> dict:
    config = json.loads((folder / "config.json").read_text())
    return config if config.get("model_type") in UNREAD else load_hparams(folder, is_mistral_format)


ModelBase.load_hparams = staticmethod(load_unread)


def convert(job: dict) -> None:
    torch.set_num_threads(1)
    if job["pre"] is not None:
        TextModel.get_vocab_base_pre = lambda self, tokenizer: job["pre"]
        # It only checks that the tokenizer begins a text with BOS, which transformers forgets of this one.
        DeepseekV32Model.set_vocab = DeepseekV32Model._set_vocab_gpt2
        # It wants the tokenizer that is code in the folder.
        HunYuanMoEModel.set_vocab = HunYuanMoEModel._set_vocab_gpt2
    script = str(tree / "convert_hf_to_gguf.py")
    sys.argv = [script, job["folder"], "--outfile", job["output"], "--outtype", job["outtype"]]
    sys.argv += job.get("options", [])
    runpy.run_path(script, run_name="__main__")


def start(job: dict) -> int:
    """The number of a process that does a job."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with log_of(job).open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        convert(job)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def log_of(job: dict) -> Path:
    return Path(job["output"] + ".log")


def run(jobs: list[dict]) -> str | None:
    """Run all jobs; what went wrong."""
    waiting, running, failed = jobs[::-1], {}, []
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            job = waiting.pop()
            running[start(job)] = job
        child, status = os.wait()
        job = running.pop(child)
        if os.waitstatus_to_exitcode(status) != 0:
            failed.append(f"the converter failed on {job['folder']}:\n{log_of(job).read_text()[-1500:]}")
    return "\n".join(failed) or None


if sys.argv[2:]:
    sys.exit(run(json.loads(Path(sys.argv[2]).read_text())))
for line in sys.stdin:
    print(json.dumps(run(json.loads(line))), file=answers, flush=True)
