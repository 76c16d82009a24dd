"""Metrics of kept libraries and of form; kinds of failure; the task file for lm-evaluation-harness."""
import importlib.util
import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_lib.core import DataError, MissingExtraError
from finetune_lib.evaluation.metrics import (
    KINDS,
    as_evaluate,
    at_most,
    bleu,
    chrf,
    corpus_scores,
    failures,
    from_evaluate,
    json_valid,
    kind_of_failure,
    must_include,
    refusal,
    rouge,
    similarity,
    whole_set,
    write_harness_task,
)
from finetune_lib.evaluation.tasks import Prediction, evaluate_instructions, exact_match, summarize

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


@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is not None, reason="it is installed")
def test_without_the_extra_similarity_names_it():
    with pytest.raises(MissingExtraError, match=r"pip install 'finetune_lib\[similarity\]'"):
        similarity("anywhere")


MODULE = """
import datasets
import evaluate


class SharedLetters(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(description="d", citation="c", inputs_description="", features=datasets.Features(
            {"predictions": datasets.Value("string"), "references": datasets.Value("string")}))

    def _compute(self, predictions, references, least=0):
        shared = [len(set(said) & set(wanted)) for said, wanted in zip(predictions, references)]
        return {"shared": sum(max(one, least) for one in shared) / len(shared), "count": len(shared)}
"""


@pytest.fixture(scope="module")
def shared_letters(tmp_path_factory):
    """A metric that somebody wrote for `evaluate`, in a local folder."""
    import evaluate

    folder = tmp_path_factory.mktemp("modules") / "shared_letters"
    folder.mkdir()
    (folder / "shared_letters.py").write_text(MODULE)
    return evaluate.load(str(folder), cache_dir=str(folder / "cache"), keep_in_memory=True)


def test_a_module_of_evaluate_is_a_metric_of_an_evaluation(shared_letters, llama, tokenizer, conversations):
    metrics = {"shared": from_evaluate(shared_letters, "shared"),
               "at least 3": from_evaluate(shared_letters, "shared", least=3)}
    found = evaluate_instructions(llama, tokenizer, conversations[:5], metrics, 4)
    for one in found.predictions:
        shared = len(set(one.prediction) & set(one.reference))
        assert one.scores == {"shared": shared, "at least 3": max(3, shared)}
    whole = whole_set(shared_letters, found)
    assert whole == {"shared": pytest.approx(found.means["shared"]), "count": 5}


@pytest.mark.parametrize("result, key, message", [
    ({"a": 1.0, "b": 2.0}, None, "got a, b; name one"), ({"a": 1.0}, "b", "got a; name one"), ({}, None, "one number"),
    ({"a": "much"}, None, "give a number, got 'much'"), ({"a": [1, 2]}, "a", "give a number"),
    ({"a": float("nan")}, "a", "finite number, got nan")])
def test_what_is_not_one_number_is_refused(result, key, message):
    class Module:
        def compute(self, predictions, references):
            return result

    with pytest.raises(DataError, match=message):
        from_evaluate(Module(), key)("said", "wanted")


def test_a_list_of_one_number_is_a_number():
    class Module:
        def compute(self, predictions, references):
            return {"scores": [0.25]}

    assert from_evaluate(Module())("said", "wanted") == 0.25


def test_ours_are_a_module_of_evaluate():
    import evaluate

    said, wanted = ["an owl", "a hut", "elm"], ["an owl", "a pony", "elm"]
    ours = as_evaluate({"exact_match": exact_match, "chrf": chrf})
    means = {"exact_match": pytest.approx(2 / 3), "chrf": pytest.approx(sum(map(chrf, said, wanted)) / 3)}
    assert isinstance(ours, evaluate.EvaluationModule) and ours.compute(predictions=said, references=wanted) == means
    for pair in zip(said, wanted, strict=True):
        ours.add(prediction=pair[0], reference=pair[1])
    assert ours.compute() == means
    both = evaluate.combine([ours, as_evaluate({"json": json_valid})])
    assert both.compute(predictions=said, references=wanted) == {**means, "json": 0.0}
    with pytest.raises(DataError, match="at least one answer"):
        ours.compute(predictions=[], references=[])
