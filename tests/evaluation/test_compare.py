"""Comparisons are on identical data, intervals hold what they promise, reports show everything."""
import html
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_lib.core import DataError
from finetune_lib.evaluation.compare import (
    Evaluation,
    Report,
    compare,
    evaluate_model,
    model_card,
    paired_bootstrap,
    permutation_test,
    report_html,
    seen_in_training,
    without_leaks,
    write_report,
)
from finetune_lib.evaluation.perplexity import Perplexity
from finetune_lib.evaluation.tasks import Prediction, summarize

PROTOCOL = {"decoding": "greedy", "max_new_tokens": 8}


def scores(right: list[int], families: str = "abc", protocol: dict = PROTOCOL):
    """TaskScores with these exact matches."""
    means = [dict.fromkeys(("exact_match", "rouge_l", "token_f1"), float(hit)) for hit in right]
    return summarize([Prediction(f"q{n}", families[n % len(families)], f"question {n}", "yes", "yes" if hit else "no",
                                 True, means[n]) for n, hit in enumerate(right)], protocol)


def evaluation(right: list[int], response: float = 10.0, general: float = 20.0) -> Evaluation:
    return Evaluation(scores(right), Perplexity(response, 10), Perplexity(general, 10))


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    chance, held = np.random.default_rng(0), 0
    for _ in range(300):
        hard = chance.random(150)
        old, new = chance.random(150) < 0.2 + 0.5 * hard, chance.random(150) < 0.3 + 0.5 * hard
        interval = paired_bootstrap(old, new, resamples=300)
        held += interval.low <= 0.1 <= interval.high
    assert 0.91 <= held / 300 <= 0.98  # four standard errors around 0.95


def test_without_a_difference_p_is_below_a_twentieth_about_one_time_in_twenty():
    chance, below = np.random.default_rng(1), 0
    for _ in range(200):
        old, new = chance.random((2, 60))
        below += permutation_test(old, new, permutations=199) <= 0.05
    assert below / 200 <= 0.11  # 0.05 and four standard errors


def test_p_is_that_of_counting_all_swaps():
    old, new = [0, 0, 1, 0, 1, 0, 0, 1], [1, 1, 1, 1, 0, 1, 0, 1]
    change = np.subtract(new, old)
    swaps = [abs(np.dot(signs, change)) >= abs(change.sum()) for signs in itertools.product([-1, 1], repeat=8)]
    assert abs(permutation_test(old, new, permutations=20_000) - np.mean(swaps)) < 0.02


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_swapping_the_models_turns_the_interval_round(pairs):
    old, new = zip(*pairs, strict=True)
    there, back = paired_bootstrap(old, new, 100), paired_bootstrap(new, old, 100)
    assert there.difference == pytest.approx(-back.difference)
    assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))
    assert permutation_test(old, new, 100) == permutation_test(new, old, 100)


def test_the_same_seed_gives_the_same_interval_and_another_one_another():
    old, new = [0, 1, 0, 1, 1, 0, 0, 1, 0], [1, 1, 0, 1, 1, 1, 0, 1, 1]
    assert paired_bootstrap(old, new, seed=3) == paired_bootstrap(old, new, seed=3)
    assert len({paired_bootstrap(old, new, 50, seed=seed).low for seed in range(8)}) > 1


def test_pairs_make_the_interval_narrower_where_questions_differ_in_difficulty():
    old = [0] * 50 + [1] * 50
    new = [0] * 45 + [1] * 55
    paired = paired_bootstrap(old, new)
    shuffled = paired_bootstrap(old, list(np.random.default_rng(0).permutation(new)))
    assert paired.low > 0 > shuffled.low


@pytest.mark.parametrize("old, new", [([], []), ([1], [1, 0])])
def test_a_paired_test_without_pairs_is_refused(old, new):
    for function in (paired_bootstrap, permutation_test):
        with pytest.raises(DataError, match="two scores for each question"):
            function(old, new)


def test_wins_losses_and_ties_are_all_the_questions():
    comparison = compare(scores([0, 1, 0, 1, 0, 0]), scores([1, 1, 0, 0, 1, 0]))
    assert [new.id for _, new in comparison.wins] == ["q0", "q4"]
    assert [new.id for _, new in comparison.losses] == ["q3"] and comparison.ties == 3
    assert comparison.overall.difference == pytest.approx(1 / 6) and comparison.worse == []
    assert compare(scores([1, 0, 1]), scores([0, 0, 1])).worse == ["a"]


def test_other_questions_another_order_or_another_protocol_are_refused():
    base = scores([0, 1, 0])
    with pytest.raises(DataError, match="first that differs is 'q0'"):
        compare(base, replace(base, predictions=base.predictions[::-1]))
    with pytest.raises(DataError, match="got 3 and 2; the first that differs is 'q2'"):
        compare(base, scores([0, 1]))
    changed = [replace(base.predictions[0], reference="no"), *base.predictions[1:]]
    with pytest.raises(DataError, match="first that differs is 'q0'"):
        compare(base, replace(base, predictions=changed))
    with pytest.raises(DataError, match="one protocol"):
        compare(base, scores([0, 1, 0], protocol={**PROTOCOL, "max_new_tokens": 9}))


def test_questions_seen_in_training_are_found_and_left_out(conversations):
    training = [replace(one, id="train" + one.id) for one in conversations[:3]]
    assert seen_in_training(training, conversations[:6]) == ["q0", "q1", "q2"]
    assert seen_in_training(training, conversations[6:9]) == []
    whole = scores([1, 1, 0, 0])
    assert without_leaks(whole, ["q0"]).means["exact_match"] == pytest.approx(1 / 3)
    with pytest.raises(DataError):
        without_leaks(whole, ["q0", "q1", "q2", "q3"])


def test_every_number_of_the_report_comes_from_the_evaluations(tmp_path):
    models = {"base": evaluation([0, 0, 0, 1, 0, 0]), "lora": evaluation([1, 1, 1, 0, 1, 1], 5.0, 21.0)}
    write_report(models, tmp_path, ["q0"], seconds={"train": 3.5})
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["seconds"] == {"train": 3.5} and report["leaked"] == ["q0"]
    for name, one in models.items():
        kept = report["models"][name]
        assert kept["exact_match"] == one.tasks.exact_match and kept["rouge_l"] == one.tasks.rouge_l
        assert kept["response_perplexity"] == one.response.overall and kept["general_perplexity"] == one.general.overall
        assert set(kept["families"]) == {"a", "b", "c"}
    assert report["models"]["lora"]["forgetting"] == pytest.approx(np.exp(2.1) / np.exp(2.0) - 1)
    assert report["without_leaks"]["lora"]["exact_match"] == pytest.approx(4 / 5)
    assert report["comparisons"]["lora"]["losses"] == ["q3"]
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and {row["model"] for row in rows} == {"base", "lora"}


def test_the_page_is_whole_shows_what_got_worse_and_escapes_what_models_say(tmp_path):
    tuned = evaluation([1, 1, 0, 0, 1, 1, 0], general=30.0)
    evil = replace(tuned.tasks.predictions[0], prediction="<script>alert(1)</script>")
    tuned = replace(tuned, tasks=replace(tuned.tasks, predictions=[evil, *tuned.tasks.predictions[1:]]))
    base = evaluation([0, 0, 0, 1, 0, 0, 1])
    page = report_html(Report({"base": base, "tuned": tuned}, ["q1"], {"note": "<b>"}))
    assert "<script>alert" not in page and "&lt;script&gt;" in page and "&lt;b&gt;" in page
    assert "src=\"http" not in page and page.count("data:image/png;base64,") == 2
    assert 'class="bad">\n+171.8 %' in page and "q1" in page and "Worse: a" in page


def test_in_a_notebook_a_report_is_its_page_in_a_frame_where_nothing_runs():
    report = Report({"base": evaluation([0, 1, 0]), "tuned": evaluation([1, 1, 0])}, [], {"note": '"><script>'})
    shown = report._repr_html_()
    assert shown.startswith('<iframe sandbox="" srcdoc="') and shown.count('"') == 8 and "<script>" not in shown
    assert html.unescape(shown.split('srcdoc="')[1].split('"')[0]) == report_html(report)


def test_a_report_needs_a_base(tmp_path):
    with pytest.raises(DataError, match="named 'base', got lora"):
        write_report({"lora": evaluation([1])}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_forgetting_is_not_made_up_where_general_text_was_not_measured():
    silent = replace(evaluation([1, 0, 1]), general=None)
    report = Report({"base": silent, "lora": silent}, [], {})
    assert report.forgetting("lora") is None and "not measured" in report_html(report)


def test_the_model_card_is_in_the_hubs_format():
    from huggingface_hub import ModelCard

    report = Report({"base": evaluation([0, 0, 0]), "lora": evaluation([1, 1, 0])}, [], {"data": "test"})
    card = ModelCard(model_card(report, "lora", "A title", base_model="some/base"))
    assert card.data.base_model == "some/base" and card.data.license == "apache-2.0"
    assert {result.metric_type: result.metric_value for result in card.data.eval_results}["exact_match"] == 0.6667
    assert "| exact match | 0.000 | 0.667 |" in card.text and '"data": "test"' in card.text


def test_a_model_is_measured_whole(llama, tokenizer, conversations):
    one = evaluate_model(llama, tokenizer, conversations[:6], ["an owl in an elm"] * 3, max_new_tokens=4)
    assert len(one.tasks.predictions) == 6 and one.general.tokens > 0 and one.to_dict()["questions"] == 6
    assert evaluate_model(llama, tokenizer, conversations[:2], max_new_tokens=2).general is None


def test_an_item_that_cannot_be_scored_stops_the_evaluation(llama, tokenizer, conversations):
    with pytest.raises(DataError, match="every evaluation item must be scored, got 6"):
        evaluate_model(llama, tokenizer, conversations[:6], max_length=4)
