"""What README.md says in numbers is made here, never typed: `python -m milestones.readme [--report FILE] [--check]`.

A section stands between `<!-- made: NAME -->` and `<!-- end -->`. `--report` keeps a copy of what `make demo` measured
in data/studies, and its picture; `--check` writes nothing and ends with 1 if README.md would change.
"""
import argparse
import re
import shutil
import sys
from collections.abc import Callable
from configparser import ConfigParser
from datetime import date
from pathlib import Path

from finetune_lib.core import machine, read_json, write_json
from finetune_lib.pipeline.run import side_by_side

from .notebooks import ROOT, TIMES, all_notebooks
from .tasks import DIRECTIVE, read_notebook

REPORT = ROOT / "data/studies/demo.json"
PICTURE = ROOT / "data/studies/demo.png"
SECTION = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.S)
WORDS_A_MINUTE = 150  # slow reading, with the code between
NAMES = {"base": "base, untuned", "lora": "LoRA", "qlora": "QLoRA, 4 bits", "full": "full fine-tuning"}
SHAPES = {  # from the published config.json: width, inner width, layers, heads, key-value heads, vocabulary
    "Qwen2.5-0.5B": (896, 4_864, 24, 14, 2, 151_936),
    "Llama-3.2-1B": (2_048, 8_192, 16, 32, 8, 128_256),
    "Llama-3.2-3B": (3_072, 8_192, 28, 24, 8, 128_256),
    "Mistral-7B": (4_096, 14_336, 32, 32, 8, 32_000),
    "Llama-2-13B": (5_120, 13_824, 40, 40, 40, 32_000),
}
TIED = {"Qwen2.5-0.5B", "Llama-3.2-1B", "Llama-3.2-3B"}  # the head is the embedding
MEASURES = {
    "exact_match": ("exact match", lambda value: f"{value:.1%}"),
    "rouge_l": ("ROUGE-L", lambda value: f"{value:.3f}"),
    "response_perplexity": ("perplexity of the answers", lambda value: f"{value:.2f}"),
    "general_perplexity": ("perplexity of general text", lambda value: f"{value:.2f}"),
}


def address() -> str:
    """The public address, from settings.ini."""
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return f"https://github.com/{config['DEFAULT']['user']}/{config['DEFAULT']['repo']}"


def table(rows: list[list[str]], numbers: int) -> str:
    """A Markdown table; the first row is the head, the last `numbers` columns are set to the right."""
    width = len(rows[0])
    rule = [("---:" if column >= width - numbers else "---") for column in range(width)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def plain(answer: str) -> str:
    """An answer as the cell of a table, whatever the model wrote."""
    return " ".join(answer.split()).replace("|", "\\|").replace("<", "&lt;")


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder, links not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def keep_report(path: Path) -> None:
    """Store what a demo measured, with the machine, the day, three of its answers and its picture."""
    report = read_json(path)
    missing = {"base", "lora", "qlora"} - set(report.get("models", {}))
    if missing:
        raise ValueError(f"a demo's report must hold the models base, lora and qlora, {path} lacks {sorted(missing)}; "
                         "run make demo")
    kept = {key: report[key] for key in ("models", "seconds", "peak_memory_mib")}
    measured = {"machine": machine(), "date": date.today().isoformat(), "answers": side_by_side(path.parent),
                "environment_gb": round(size_of(Path(sys.prefix)) / 1e9, 1)}
    write_json(REPORT, {**measured, **kept})
    shutil.copyfile(path.parent / "picture.png", PICTURE)


def results() -> str:
    """The table and picture of the last demo that was kept."""
    report = read_json(REPORT)
    rows = [["model", *(title for title, _ in MEASURES.values())]]
    for name, scores in report["models"].items():
        rows.append([NAMES.get(name, name), *(form(scores[key]) for key, (_, form) in MEASURES.items())])
    rows.sort(key=lambda row: (row[0] != "model", [*NAMES.values(), row[0]].index(row[0])))
    answers = report["answers"]
    columns = ["question", "wanted", *(name for name in NAMES if name in answers[0])]
    told = [[NAMES.get(name, name) for name in columns]]
    told += [[plain(answer[name]) for name in columns] for answer in answers]
    where, minutes = report["machine"], sum(report["seconds"].values()) / 60
    return (f"{table(rows, len(MEASURES))}\n\n![training loss, and exact match by kind of instruction before and after]"
            f"({PICTURE.relative_to(ROOT)})\n\n{table(told, 0)}\n\nMeasured by `make demo` in {minutes:.1f} minutes on "
            f"{where['cores']} cores ({where['processor']}), {where['system']}, Python {where['python']}, "
            f"torch {where['torch']}, on {report['date']}; one run, one seed.\n")


def describe(path: Path) -> dict[str, str | int]:
    """Title, summary, tasks and minutes of reading of one notebook, from its own cells."""
    cells = read_notebook(path)["cells"]
    first = "".join(cells[0]["source"]).splitlines()
    words = sum(len("".join(cell["source"]).split()) for cell in cells)
    tasks = sum(len(DIRECTIVE.findall("".join(cell["source"]))) for cell in cells if cell["cell_type"] == "code")
    return {"title": first[0].lstrip("# "), "summary": first[1].lstrip("> "), "tasks": tasks,
            "minutes": max(5, 5 * round(words / WORDS_A_MINUTE / 5))}


def course() -> str:
    """One row for each notebook, in reading order."""
    times = read_json(TIMES)
    rows = [["notebook", "what it is about", "tasks", "reading", "runs in"]]
    for path in all_notebooks():
        name = str(path.relative_to(ROOT / "nbs"))
        if name not in times["seconds"]:
            raise ValueError(f"the time of {name} is not measured; run: python -m milestones.notebooks --times")
        about = describe(path)
        rows.append([f"[{name.removesuffix('.ipynb')}](nbs/{name})", f"**{about['title']}** {about['summary']}",
                     str(about["tasks"] or ""), f"{about['minutes']} min", f"{times['seconds'][name]:.0f} s"])
    where, total = times["machine"], sum(times["seconds"].values())
    return (f"{table(rows, 3)}\n\nReading: all words, code too, at {WORDS_A_MINUTE} a minute; writing the "
            f"tasks comes on top. Running: {total / 60:.1f} minutes for all, on {where['cores']} cores "
            f"({where['processor']}), {times['date']}.\n")


def hardware() -> str:
    """What the course itself took, and what published models would take, by estimate."""
    from transformers import LlamaConfig

    from finetune_lib.qlora.memory import estimate_memory

    report = read_json(REPORT)
    rows = [["model", "full fine-tuning", "LoRA", "QLoRA, 4 bits"]]
    for name, (width, inner, layers, heads, pairs, vocabulary) in SHAPES.items():
        config = LlamaConfig(
            hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=pairs, vocab_size=vocabulary, tie_word_embeddings=name in TIED)
        needed = [estimate_memory(config, method, batch=1, length=512, dtype="bfloat16", gradient_checkpointing=True,
                                  device="cuda").total / 2**30 for method in ("full", "lora", "qlora")]
        rows.append([name, *(f"{gibibytes:.1f} GiB" for gibibytes in needed)])
    peak = max(report["peak_memory_mib"].values()) / 1024
    return (f"The course, the demo and the tests run on two CPU cores without a GPU. The demo's largest stage took "
            f"{peak:.1f} GiB of memory, the installed environment {report['environment_gb']:.1f} GB of disk.\n\n"
            "A real model wants a GPU with so much memory, by the estimate behind `finetune fit`, for 512 tokens at a "
            "time in bfloat16, with gradient checkpointing and adapters of rank 16 on all linear layers:\n\n"
            f"{table(rows, 3)}\n")


def troubleshooting() -> str:
    """What `finetune doctor RUN` knows."""
    from finetune_lib.pipeline.doctor import symptom_table

    return f"{symptom_table().strip()}\n"


def badges() -> str:
    """What the public address shows."""
    return (f"[![ci]({address()}/actions/workflows/ci.yml/badge.svg)]({address()}/actions/workflows/ci.yml)\n")


MAKERS: dict[str, Callable[[], str]] = {
    "badges": badges, "results": results, "course": course, "troubleshooting": troubleshooting, "hardware": hardware}


def render(text: str) -> str:
    """README's text with every made section made again."""
    def fill(match: re.Match) -> str:
        if match[2] not in MAKERS:
            raise ValueError(f"README.md may hold the made sections {sorted(MAKERS)}, got {match[2]!r}")
        return f"{match[1]}{MAKERS[match[2]]()}{match[3]}"
    return SECTION.sub(fill, text)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m milestones.readme", description="make README.md's numbers again")
    parser.add_argument("--report", type=Path, help="keep this report of `make demo` in data/studies first")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if README.md would change")
    options = parser.parse_args(words)
    if options.report:
        keep_report(options.report)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    made = render(text)
    if options.check:
        return int(made != text)
    readme.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
