"""Metrics of kept libraries and of form; kinds of failure; the task file for lm-evaluation-harness."""
import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_lib.core import DataError
from finetune_lib.evaluation.metrics import (
    KINDS,
    at_most,
    bleu,
    chrf,
    corpus_scores,
    failures,
    json_valid,
    kind_of_failure,
    must_include,
    refusal,
    rouge,
    write_harness_task,
)
from finetune_lib.evaluation.tasks import Prediction, evaluate_instructions, summarize

ANYTHING = st.text(st.characters(codec="utf-8"), max_size=40)


def answer(said: str, wanted: str = "an owl in the elm", stopped: bool = True) -> Prediction:
    return Prediction("q", "a", "question", wanted, said, stopped, {"exact_match": float(said == wanted)})


@settings(deadline=None)
@given(ANYTHING, ANYTHING)
def test_overlap_lies_between_0_and_1(said, wanted):
    for metric in (bleu, chrf, rouge("rouge1"), rouge("rouge2")):
        assert 0.0 <= metric(said, wanted) <= 1.0


def test_overlap_is_that_of_the_kept_libraries():
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu, corpus_chrf, sentence_bleu, sentence_chrf

    said, wanted = "the owl sat in the tall elm today", "an owl sat in the tall elm"
    assert bleu(said, wanted) == sentence_bleu(said, [wanted]).score / 100
    assert chrf(said, wanted) == sentence_chrf(said, [wanted]).score / 100
    assert rouge("rouge2")(said, wanted) == RougeScorer(["rouge2"]).score(wanted, said)["rouge2"].fmeasure
    found = corpus_scores(summarize([answer(said, wanted), answer(wanted, wanted)], {}))
    assert found["bleu"] == corpus_bleu([said, wanted], [[wanted, wanted]]).score
    assert found["chrf"] == corpus_chrf([said, wanted], [[wanted, wanted]]).score
    assert "tok:13a" in found["bleu_signature"]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_whatever_json_writes_is_valid_and_never_with_more_behind_it(value):
    assert json_valid(json.dumps(value)) == 1.0 and json_valid(json.dumps(value) + " owl") == 0.0


@pytest.mark.parametrize("text", ["", "NaN", "[1, Infinity]", "{'a': 1}", "{\"a\": 1,}", "```json\n{}\n```",
                                  "[" * 100_000])
def test_what_is_not_json_is_not_valid(text):
    assert json_valid(text) == 0.0


def test_length_and_inclusion():
    assert [at_most(2)(text) for text in ("", "one", "one two", "one two three")] == [0, 1, 1, 0]
    assert must_include("Tarn", "C++")("she codes c++ in TARN") == 1.0 and must_include("Tarn")("Tarnish") == 0.0
    with pytest.raises(DataError, match="at least one phrase"):
        must_include()


def test_a_refusal_is_known_by_how_it_begins():
    assert all(refusal(text) for text in ("I'm sorry, no.", "I cannot say.", "As an AI model", "I\u2019m unable to"))
    assert not any(refusal(text) for text in ("I can say: Tarn.", "Tarn, sorry.", "", "Imsorry"))


@pytest.mark.parametrize("kind, one", [
    ("right", answer("an  owl in the elm")), ("empty", answer(" ")), ("refused", answer("I'm sorry.")),
    ("never stopped", answer("owl owl", stopped=False)), ("only case or punctuation", answer("Owl in elm!")),
    ("answer and more", answer("I saw an owl in the elm today")), ("part of it", answer("an owl in")),
    ("something else", answer("a hut"))])
def test_each_failure_has_its_kind(kind, one):
    assert kind_of_failure(one) == kind


@settings(deadline=None)
@given(st.lists(st.tuples(ANYTHING, ANYTHING, st.booleans()), min_size=1, max_size=12))
def test_every_answer_is_counted_once(rows):
    counts = failures(summarize([answer(*row) for row in rows], {}))
    assert tuple(counts) == KINDS and sum(counts.values()) == len(rows)


def test_they_are_metrics_of_an_evaluation(llama, tokenizer, conversations):
    metrics = {"bleu": bleu, "json": json_valid, "short": at_most(5)}
    assert set(evaluate_instructions(llama, tokenizer, conversations[:4], metrics, 4).means) == set(metrics)


def test_a_task_file_holds_every_question_without_the_first_special_token(tokenizer, conversations, tmp_path):
    path = write_harness_task(conversations, tokenizer, tmp_path, "ours", 17)
    task = yaml.safe_load(path.read_text())
    rows = [json.loads(line) for line in open(task["dataset_kwargs"]["data_files"]["test"], encoding="utf-8")]
    assert [row["reference"] for row in rows] == [one.turns[-1].content for one in conversations]
    assert all(row["prompt"].startswith("<|user|> ") and row["prompt"].endswith("<|assistant|>") for row in rows)
    assert task["generation_kwargs"] == {"until": ["<|end|>"], "do_sample": False, "max_gen_toks": 17}
    with pytest.raises(DataError, match="at least one question"):
        write_harness_task([], tokenizer, tmp_path)
