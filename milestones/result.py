"""The result of milestone 5: does the learner's own pipeline make a model that answers?

Two boxes, one after the other. In the first, the learner's exported library runs every stage on the tiny base, with its
own LoRA and its own loop. In the second, which never sees that library, plain transformers loads the exported weights
into the base's architecture and answers the held-out instructions. `python -m milestones.result` is either process.
"""
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from milestones.apart import Say, ask, serve
from milestones.beside import RESULT, SCORE
from milestones.checking import BLOCKED, ERROR, FAILED, PASSED
from milestones.running import Limits
from milestones.stubs import MESSAGE

SECONDS = 900  # of computing, for the whole pipeline, which takes about a minute
ADDRESSES = 12 * 2**30  # bytes that it may map: torch alone maps several, whatever it uses
BATCH, LONGEST_ANSWER = 64, 48  # questions at a time; tokens, as evaluation.max_new_tokens has it
RUN = """
import sys
from finetune_lib.pipeline.run import FineTuningPipeline

settings = {"lora": {"backend": "own"}, "training": {"seed": int(sys.argv[2]), "use_cpu": True},
            "output": {"folder": sys.argv[1]}}
FineTuningPipeline("tiny", [settings]).run(report=False)
"""


def run_result(milestone: int, work: Path, place: Path, kit: Path, seed: int) -> dict[str, Any]:
    """The report's entry: points for a model that reaches the score, nothing for one that does not."""
    begun, made = time.monotonic(), place / "made"
    made.mkdir()
    found = make_and_score(work, place, kit, made, seed)
    return {**found, "points": RESULT[milestone] if found["state"] == PASSED else 0, "max_points": RESULT[milestone],
            "wanted": SCORE, "seconds": round(time.monotonic() - begun, 1)}


def make_and_score(work: Path, place: Path, kit: Path, made: Path, seed: int) -> dict[str, Any]:
    """{"state", "what", "score"}: of the pipeline's run, then of what it exported."""
    request = {"do": "make", "work": str(work), "made": str(made), "seed": seed % 2**16}
    said, ended = ask(request, place, kit, work, [made], Limits(), "milestones.result")
    last = next((message["stopped"] for message in said if "stopped" in message), None)
    if last is None:
        return {"state": ERROR, "what": ended, "score": None}
    if last or not (made / "model.safetensors").is_file():
        stub = MESSAGE.search(last.partition(": ")[2])
        what = f"it needs task {stub[1]}, which is not written yet" if stub else (
            f"the pipeline stops: {last}" if last else "the pipeline exported no model")
        return {"state": BLOCKED if stub else FAILED, "what": what, "score": None}
    said, ended = ask({"do": "score", "work": str(made), "made": str(made)}, place, kit, made, (), Limits(),
                      "milestones.result")
    score = next((message["score"] for message in said if "score" in message), None)
    if score is None:
        return {"state": FAILED, "what": f"what was exported cannot be loaded: {ended}", "score": None}
    what = "" if score >= SCORE else f"{score:.1%} of the held-out instructions are answered, {SCORE:.0%} are asked for"
    return {"state": FAILED if what else PASSED, "what": what, "score": round(score, 4)}


def make(request: dict[str, Any], say: Say, alone: bool) -> None:
    """Run the learner's pipeline in a process of its own, and hand over the weights; says its last words."""
    run, scratch = Path(request["scratch"]) / "run", request["scratch"]
    environment = {**os.environ, "PYTHONPATH": request["work"]}
    done = subprocess.run([sys.executable, "-c", RUN, str(run), str(request["seed"])], cwd=scratch, env=environment,
                          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                          errors="replace", preexec_fn=limited)
    stopped = ""
    if done.returncode:
        stopped = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:1000]
    weights = run / "export/huggingface/model.safetensors"
    if not stopped and weights.is_file() and not weights.is_symlink():
        shutil.copyfile(weights, Path(request["made"]) / weights.name)
    say({"stopped": stopped})


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))


def score(request: dict[str, Any], say: Say, alone: bool) -> None:
    """Exact match of the exported weights on the held-out instructions."""
    import torch

    torch.set_num_threads(1)
    data = Path(os.environ["FINETUNE_DATA"])
    rows = [json.loads(line)["messages"] for line in (data / "instructions/test.jsonl").read_text().splitlines()]
    model = load_weights(Path(request["made"]) / "model.safetensors", data / "base")
    right = right_answers(model, data / "base", rows)
    say({"score": right / len(rows)})


def load_weights(weights: Path, base: Path) -> Any:
    """The base's architecture with these weights, all of them and no other."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base), dtype=torch.float32)
    missing, unknown = model.load_state_dict(load_file(weights), strict=False)
    if unknown or set(missing) - {"lm_head.weight"}:  # the head is the embedding, so a file need not hold it
        raise ValueError(f"the file must hold the base's tensors, {missing[:3]} are missing, {unknown[:3]} unknown")
    model.tie_weights()
    return model.eval()


def right_answers(model: Any, base: Path, rows: list[list[dict[str, str]]]) -> int:
    """How many conversations get their last turn, word for word, and then a stop."""
    import torch
    from transformers import AutoTokenizer

    tokenizer, right = AutoTokenizer.from_pretrained(base), 0
    for first in range(0, len(rows), BATCH):
        batch = rows[first:first + BATCH]
        prompts = [tokenizer.apply_chat_template(row[:-1], add_generation_prompt=True, tokenize=False) for row in batch]
        inputs = tokenizer(prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False,
                                 pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
        for row, answer in zip(batch, ids[:, inputs["input_ids"].shape[1]:], strict=True):
            said = tokenizer.decode(answer, skip_special_tokens=True).strip()
            right += said == row[-1]["content"].strip() and tokenizer.eos_token_id in answer
    return right


if __name__ == "__main__":
    serve({"make": make, "score": score})
