"""The report of a real run, opened in a real browser: one file, plots inside, worse as plain to see as better."""
import json
import os
import shutil
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

pytestmark = [pytest.mark.browser, pytest.mark.slow]
BLUE, RED = "rgb(0, 114, 178)", "rgb(213, 94, 0)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """report.html and report.json of a short training on the course's base."""
    from finetune_lib.core import base_model, data_folder, load_tokenizer, seed_everything
    from finetune_lib.data.chat import tokenize_all
    from finetune_lib.data.records import load_conversations
    from finetune_lib.evaluation.compare import evaluate_model, write_report
    from finetune_lib.lora.adapter import LoRAConfig, adapter_disabled, attach_lora
    from finetune_lib.qlora.loading import load_base
    from finetune_lib.training.loop import TrainingConfig, train

    seed_everything(0)
    tokenizer, folder = load_tokenizer(base_model()), tmp_path_factory.mktemp("report")
    examples, questions = (load_conversations(data_folder() / "instructions" / f"{part}.jsonl")[0]
                           for part in ("train", "test"))
    model = attach_lora(load_base(base_model()), LoRAConfig(r=8, lora_alpha=16, lora_dropout=0.0))
    train(model, tokenize_all(examples, tokenizer)[0], TrainingConfig(
        learning_rate=3e-3, per_device_train_batch_size=16, max_steps=120, warmup_steps=10), tokenizer.pad_token_id)
    lines = (data_folder() / "text" / "general.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    prose = [json.loads(line)["text"] for line in lines]
    tuned = evaluate_model(model, tokenizer, questions[::8], prose)
    with adapter_disabled(model):
        base = evaluate_model(model, tokenizer, questions[::8], prose)
    write_report({"base": base, "tuned": tuned}, folder, [questions[0].id], steps=120)
    return folder


@pytest.fixture
def page():
    with playwright.sync_playwright() as started:
        path = shutil.which("chromium") or shutil.which("google-chrome") or started.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("there is no Chromium: apt-get install chromium, or python -m playwright install chromium")
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser.new_page(viewport={"width": 1000, "height": 900})
        browser.close()


def test_the_report_of_a_run_is_whole_in_a_browser(folder, page, tmp_path):
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    shutil.copy(folder / "report.html", tmp_path / "alone.html")  # one file is enough
    page.goto((tmp_path / "alone.html").as_uri())
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))

    assert [url for url in asked if not url.startswith(("file:", "data:"))] == [] and errors == []
    for picture in page.locator("img").all():
        assert picture.evaluate("image => image.complete && image.naturalWidth > 400")
    assert page.locator("img").count() == 2
    rows = page.locator("table").first.locator("tr").all_inner_texts()[1:]
    for row, (name, one) in zip(rows, report["models"].items(), strict=True):
        shown = row.split("\t")
        assert shown[0].strip() == name
        assert [shown[1], shown[5]] == [f"{one['exact_match']:.3f}", f"{one['general_perplexity']:.3f}"]

    change = report["comparisons"]["tuned"]
    assert change["wins"], "a training that wins nothing shows nothing"
    assert f"{len(change['wins'])} won, {len(change['losses'])} lost" in page.inner_text("body")
    won, lost = page.locator("td.good"), page.locator("td.bad")
    assert won.count() == min(5, len(change["wins"]))
    assert won.first.evaluate("cell => getComputedStyle(cell).color") == BLUE
    assert page.locator("p.bad").first.evaluate("line => getComputedStyle(line).color") == RED
    assert lost.count() >= min(5, len(change["losses"]))
    if report["models"]["tuned"]["forgetting"] > 0.05:
        assert "%" in lost.first.inner_text()
    wide = page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert wide, "nothing may stick out of the page"
    page.screenshot(path=Path(os.environ.get("REPORT_PICTURE", tmp_path / "report.png")), full_page=True)
