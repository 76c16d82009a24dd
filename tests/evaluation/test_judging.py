"""A judge is asked in both orders, raters are blind, and agreement is what is more than chance."""
import csv
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finetune_lib.core import DataError, read_json
from finetune_lib.data.records import Conversation, Turn
from finetune_lib.evaluation.judging import (
    COLUMNS,
    PROMPT,
    agreement,
    both_orders,
    by_metric,
    judge_answers,
    majority,
    model_judge,
    preferred,
    read_sheet,
    write_sheet,
)
from finetune_lib.evaluation.tasks import Prediction, summarize

LABELS = ("base", "tuned", "tie")
VERDICT_LISTS = st.lists(st.sampled_from(LABELS), min_size=1, max_size=30)


def scores(answers: list[str], wanted: str = "an owl in the elm"):
    return summarize([Prediction(f"q{n}", "a", f"<s> question {n}", wanted, one, True, {"exact_match": 0.0})
                      for n, one in enumerate(answers)], {"decoding": "greedy"})


def chats(count: int) -> list[Conversation]:
    return [Conversation(f"q{n}", (Turn("user", f"question {n}?"), Turn("assistant", "an owl in the elm")))
            for n in range(count)]


def named(verdicts: list[str]) -> dict[str, str]:
    return {f"q{number}": one for number, one in enumerate(verdicts)}


def test_the_better_answer_wins_wherever_it_stands():
    judge = by_metric()
    assert both_orders(judge, "?", "an owl", "a hut", "an owl") == ("tuned", True)
    assert both_orders(judge, "?", "an owl", "an owl", "a hut") == ("base", True)
    assert both_orders(judge, "?", "an owl", "owl", "owl") == ("tie", True)
    assert both_orders(by_metric(margin=2.0), "?", "an owl", "a hut", "an owl") == ("tie", True)


@pytest.mark.parametrize("place", ["first", "second"])
def test_a_judge_that_prefers_a_place_decides_nothing(place):
    found = judge_answers(scores(["a", "b", "c"]), scores(["x", "y", "z"]), chats(3), lambda *shown: place)
    assert found.counts == {"base": 0, "tuned": 0, "tie": 3} and found.consistent == 0.0
    assert found.preference.difference == 0 and found.p_value == 1.0


def test_a_judge_sees_the_question_the_reference_and_both_answers():
    shown = []
    judge_answers(scores(["old"]), scores(["new"]), chats(1), lambda *seen: shown.append(seen) or "tie")
    asked = ("question 0?", "an owl in the elm")
    assert shown == [(*asked, "old", "new"), (*asked, "new", "old")]


def test_preference_is_won_less_lost_with_its_interval():
    base, tuned = scores(["a hut"] * 30 + ["an owl"] * 10), scores(["an owl"] * 30 + ["a hut"] * 10)
    found = judge_answers(base, tuned, chats(40), by_metric())
    assert found.counts == {"base": 10, "tuned": 30, "tie": 0} and found.consistent == 1.0
    assert found.preference.difference == pytest.approx(0.5) and found.preference.low > 0 and found.p_value < 0.01
    assert found.to_dict()["counts"]["tuned"] == 30


def test_a_word_that_is_no_verdict_and_other_questions_are_refused():
    with pytest.raises(DataError, match="first, second, tie, got 'A'"):
        judge_answers(scores(["a"]), scores(["b"]), chats(1), lambda *shown: "A")
    with pytest.raises(DataError, match="same questions"):
        judge_answers(scores(["a"]), scores(["a", "b"]), chats(2), by_metric())
    with pytest.raises(DataError, match="at least one verdict"):
        preferred({})


def test_a_model_as_judge_says_the_same_every_time_and_follows_its_own_likelihoods(make_model, tokenizer):
    judge = model_judge(make_model(max_position_embeddings=512), tokenizer)
    shown = ("Where?", "an owl", "a hut", "an {owl}")
    assert judge(*shown) == judge(*shown) in ("first", "second")
    assert model_judge(make_model(max_position_embeddings=512), tokenizer, margin=1e9)(*shown) == "tie"


def test_a_model_as_judge_prefers_the_likelier_letter(make_model, tokenizer):
    said = set()
    for seed in range(6):
        model, shown = make_model(seed=seed, max_position_embeddings=512), ("Where?", "an owl", "a hut", "an owl")
        asked = PROMPT.format(question=shown[0], reference=shown[1], first=shown[2], second=shown[3])
        text = tokenizer.apply_chat_template([{"role": "user", "content": asked}], tokenize=False,
                                             add_generation_prompt=True)
        start, likelihoods = len(tokenizer(text)["input_ids"]), []
        for letter in "AB":
            ids = tokenizer(f"{text} {letter}<|end|>")["input_ids"]
            with torch.no_grad():
                chances = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            likelihoods.append(sum(chances[place - 1, ids[place]].item() for place in range(start, len(ids))))
        said.add(model_judge(model, tokenizer)(*shown))
        assert model_judge(model, tokenizer)(*shown) == ("first" if likelihoods[0] > likelihoods[1] else "second")
    assert said == {"first", "second"}, "models that agree prove little"


def test_a_question_that_the_judge_cannot_read_whole_is_refused(llama, tokenizer):
    with pytest.raises(DataError, match="read the whole question"):
        model_judge(llama, tokenizer)("?", "r", "word " * 200, "y")


def filled(sheet, choose):
    """The sheet with choose(row) in its last column, in a file beside it."""
    with open(sheet, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    path = sheet.with_name("filled.csv")
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *([*list(row.values())[:-1], choose(row)] for row in rows)])
    return path


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)).filter(lambda pair: pair[0] != pair[1]),
                min_size=1, max_size=8), st.integers(0, 99))
def test_what_raters_choose_comes_back_under_the_right_name(tmp_path_factory, pairs, seed):
    folder = tmp_path_factory.mktemp("sheet")
    old, new = ([pair[side].replace("\0", "").replace("\r", "") for pair in pairs] for side in (0, 1))
    assume(all(one != other for one, other in zip(old, new, strict=True)))
    sheet = write_sheet(scores(old), scores(new), chats(len(pairs)), folder, seed=seed)
    key = read_json(folder / "key.json")
    for choice in LABELS:
        letters = lambda row, choice=choice: {key[row["row"]]["A"]: "a", key[row["row"]]["B"]: " B",  # noqa: E731
                                              "tie": "Tie"}[choice]
        assert read_sheet(filled(sheet, letters), folder / "key.json") == dict.fromkeys(
            [f"q{n}" for n in range(len(pairs))], choice)


def test_the_sheet_is_blind_and_balanced_and_the_key_lies_apart(tmp_path):
    old, new = scores([f"old {n}" for n in range(200)]), scores([f"new {n}" for n in range(200)])
    sheet = write_sheet(old, new, chats(200), tmp_path, count=200)
    text, key = sheet.read_text(encoding="utf-8-sig"), read_json(tmp_path / "key.json")
    assert "base" not in text and "tuned" not in text and "<s>" not in text and "question 7?" in text
    assert 70 <= sum(one["A"] == "tuned" for one in key.values()) <= 130  # four standard deviations around a half
    assert [one["id"] for one in key.values()] != [one.id for one in old.predictions]
    again = write_sheet(old, new, chats(200), tmp_path / "again", count=200)
    assert again.read_bytes() == sheet.read_bytes()
    assert write_sheet(old, new, chats(200), tmp_path / "other", count=200, seed=1).read_bytes() != sheet.read_bytes()


def test_equal_answers_are_left_out_and_formulas_are_text(tmp_path):
    sheet = write_sheet(scores(["same", "=1+1", "+x"]), scores(["same", "-2", "@y"]), chats(3), tmp_path, count=9)
    with open(sheet, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and {row[name] for row in rows for name in COLUMNS[2:4]} == {"'=1+1", "'-2", "'+x", "'@y"}
    with pytest.raises(DataError, match="answers that differ"):
        write_sheet(scores(["same"]), scores(["same"]), chats(1), tmp_path)


def test_a_sheet_with_gaps_names_every_row(tmp_path):
    sheet = write_sheet(scores(["a", "b", "c", "d"]), scores(["w", "x", "y", "z"]), chats(4), tmp_path)
    with pytest.raises(DataError, match="rows 2, 4"):
        read_sheet(filled(sheet, lambda row: {"2": "", "4": "C"}.get(row["row"], "A")), tmp_path / "key.json")
    lines = sheet.read_text(encoding="utf-8-sig").splitlines()
    sheet.write_text("\n".join([lines[0], lines[1] + "A"]), encoding="utf-8")
    with pytest.raises(DataError, match="rows 2, 3, 4"):
        read_sheet(sheet, tmp_path / "key.json")


def test_kappa_is_what_is_left_when_chance_is_taken_off():
    one = ["base"] * 25 + ["base"] * 20 + ["tuned"] * 10 + ["tuned"] * 45
    other = ["base"] * 25 + ["tuned"] * 20 + ["base"] * 10 + ["tuned"] * 45
    found = agreement(named(one), named(other))
    assert found.observed == pytest.approx(0.7) and found.expected == pytest.approx(0.45 * 0.35 + 0.55 * 0.65)
    assert found.kappa == pytest.approx((0.7 - 0.515) / (1 - 0.515))


@pytest.mark.parametrize("careful", [0.0, 0.4, 0.8, 1.0])
def test_kappa_of_simulated_raters_is_what_their_care_makes_it(careful):
    chance, count = random.Random(1), 20_000
    truth = [chance.choice(LABELS) for _ in range(count)]
    one, other = (named([said if chance.random() < careful else chance.choice(LABELS) for said in truth])
                  for _ in range(2))
    assert agreement(one, other).kappa == pytest.approx(careful**2, abs=0.03)  # both must be careful at once


@given(VERDICT_LISTS, st.randoms(use_true_random=False))
def test_kappa_is_symmetric_at_most_1_and_does_not_know_names(verdicts, chance):
    one, other = named(verdicts), named([chance.choice(LABELS) for _ in verdicts])
    found, back = agreement(one, other), agreement(other, one)
    assert found == back and (found.kappa is None or found.kappa <= 1)
    swapped = {"base": "tuned", "tuned": "base", "tie": "tie"}
    turned = agreement(*({name: swapped[said] for name, said in rater.items()} for rater in (one, other)))
    assert turned == found
    assert agreement(one, one).kappa in (1.0, None) and agreement(one, one).observed == 1.0


def test_raters_of_other_questions_are_refused_and_one_word_has_no_kappa():
    with pytest.raises(DataError, match="same questions, got 2 and 1, of which 1"):
        agreement(named(["tie", "tie"]), named(["tie"]))
    assert agreement(named(["tie"] * 5), named(["tie"] * 5)).kappa is None


def test_a_majority_is_more_than_half():
    raters = [named(["base", "base", "tuned"]), named(["base", "tuned", "tuned"]), named(["tie", "tie", "tuned"])]
    assert majority(raters) == named(["base", "tie", "tuned"])
    with pytest.raises(DataError, match="same questions"):
        majority([named(["base"]), named(["base", "tie"])])


def test_a_judge_reads_the_question_and_not_the_template():
    base = scores(["a"])
    odd = replace(base, predictions=[replace(base.predictions[0], id="elsewhere")])
    with pytest.raises(DataError, match="elsewhere"):
        judge_answers(odd, odd, chats(1), by_metric())
