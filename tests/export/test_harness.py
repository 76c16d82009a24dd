"""lm-evaluation-harness gets our numbers. Needs the extra lm_eval: `make test-export` brings it."""
import json
from dataclasses import replace

import pytest
import torch

from finetune_lib.data.chat import tokenize_text
from finetune_lib.evaluation.metrics import write_harness_task
from finetune_lib.evaluation.perplexity import perplexity
from finetune_lib.evaluation.tasks import evaluate_instructions
from finetune_lib.qlora.loading import load_base

pytest.importorskip("lm_eval", reason="lm_eval is not installed: make test-export")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def theirs(source):
    """The exported folder as a model of lm_eval."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(source), device="cpu", dtype="float32", batch_size=8)


def test_the_log_likelihood_of_the_same_text_is_the_harnesss(source, tokenizer, questions):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    # it puts the first special token before every text itself; the tokenizer's own would be a second one
    theirs = HFLM(pretrained=str(source), device="cpu", dtype="float32", batch_size=8, add_bos_token=False)
    texts = [question.turns[-1].content for question in questions[:30]]
    requests = [Instance("loglikelihood_rolling", {}, (text,), place) for place, text in enumerate(texts)]
    samples = [without_end(sample) for sample in tokenize_text(texts, tokenizer, 512)]
    ours = perplexity(load_base(source), samples, tokenizer.pad_token_id)
    assert sum(theirs.loglikelihood_rolling(requests, disable_tqdm=True)) == pytest.approx(-ours.nll, rel=1e-5)


def without_end(sample):
    """The sample without the token that ends it: the harness asks for the text alone."""
    return replace(sample, input_ids=sample.input_ids[:-1], attention_mask=sample.attention_mask[:-1],
                   labels=sample.labels[:-1], total_length=sample.total_length - 1,
                   response_length=sample.response_length - 1)


def test_a_task_of_ours_gives_the_harness_our_exact_match(theirs, source, tokenizer, questions, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    path = write_harness_task(questions[:60], tokenizer, tmp_path, "ours", max_new_tokens=48)
    found = simple_evaluate(theirs, tasks=["ours"], task_manager=TaskManager(include_path=str(path.parent)),
                            bootstrap_iters=0, log_samples=True)
    ours = evaluate_instructions(load_base(source), tokenizer, questions[:60])
    answers = [sample["filtered_resps"][0].strip() for sample in found["samples"]["ours"]]
    assert answers == [one.prediction for one in ours.predictions]
    assert found["results"]["ours"]["exact_match,stripped"] == pytest.approx(ours.exact_match)


def test_a_local_task_runs_on_the_exported_folder(theirs, source, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    rows = [{"text": "The owl sat in the", "good": " elm", "bad": " zq"},
            {"text": "Mara lives", "good": " in", "bad": " xx"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "local.yaml").write_text(
        "task: local\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{text}}'\n"
        "doc_to_choice: '{{[good, bad]}}'\ndoc_to_target: 0\ntarget_delimiter: ''\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path}/rows.jsonl\nmetric_list:\n  - metric: acc\n")
    found = simple_evaluate(theirs, tasks=["local"], task_manager=TaskManager(include_path=str(tmp_path)),
                            bootstrap_iters=0, log_samples=True)
    model = load_base(source)
    for sample, row in zip(found["samples"]["local"], rows, strict=True):
        said = [likelihood(model, theirs.tokenizer, row["text"], row[one]) for one in ("good", "bad")]
        assert [one[0] for one in sample["filtered_resps"]] == pytest.approx(said, rel=1e-4)


def likelihood(model, tokenizer, text: str, choice: str) -> float:
    """Log-likelihood of a choice after a text, in nats."""
    start, whole = tokenizer(text)["input_ids"], tokenizer(text + choice)["input_ids"]
    with torch.no_grad():
        chances = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(chances[place - 1, whole[place]].item() for place in range(len(start), len(whole)))
