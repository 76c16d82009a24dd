"""Properties 16 to 19 of an evaluation, over inputs nobody chose; and planted truths that statistics must find."""
import json
import math
import random
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_lib.core import DataError
from finetune_lib.data.chat import TokenizedSample
from finetune_lib.data.records import Conversation, Turn
from finetune_lib.evaluation.compare import (
    COLUMNS,
    Evaluation,
    compare,
    paired_bootstrap,
    seen_in_training,
    write_report,
)
from finetune_lib.evaluation.perplexity import Perplexity, perplexity, token_nll
from finetune_lib.evaluation.tasks import Prediction, evaluate_instructions, left_pad, summarize

SHARED = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.lists(st.tuples(st.lists(st.integers(3, 287), min_size=2, max_size=30), st.integers(1, 29)),
                 min_size=1, max_size=8)


def sample(ids: list[int], start: int, number: int = 0) -> TokenizedSample:
    """Targets from place `start` on, at least the last token."""
    start = min(start, len(ids) - 1)
    labels = [-100] * start + ids[start:]
    return TokenizedSample(f"s{number}", ids, [1] * len(ids), labels, start, len(ids) - start, len(ids))


@SHARED
@given(TEXTS, st.integers(1, 9), st.randoms(use_true_random=False))
def test_property_16_perplexity_is_that_of_a_plain_loop_for_every_batch_order_and_padding_side(
        llama, texts, batch_size, chance):
    samples = [sample(*text, number) for number, text in enumerate(texts)]
    total = count = 0
    with torch.no_grad():
        for one in samples:
            chances = llama(input_ids=torch.tensor([one.input_ids])).logits[0].double().log_softmax(-1)
            for place, label in enumerate(one.labels):
                if label != -100:
                    total, count = total - chances[place - 1, label].item(), count + 1
        ids, mask = left_pad([one.input_ids for one in samples], 2)
        labels = torch.tensor([[-100] * (ids.shape[1] - len(one.labels)) + one.labels for one in samples])
        logits = llama(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    wanted = math.exp(total / count)
    for order in (samples, chance.sample(samples, len(samples))):
        found = perplexity(llama, order, 2, batch_size)
        assert found.tokens == count and math.isclose(found.overall, wanted, rel_tol=1e-5)
    assert math.isclose(math.exp(token_nll(logits, labels).double().sum().item() / count), wanted, rel_tol=1e-5)


ANSWERS = st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("abc")), min_size=1, max_size=20)


def scores(rows: list[tuple[bool, str]], protocol: str = "greedy"):
    """TaskScores of (right?, family)."""
    return summarize([Prediction(f"q{number}", family, f"question {number}", "yes", "yes" if right else "no", True,
                                 dict.fromkeys(("exact_match", "rouge_l", "token_f1"), float(right)))
                      for number, (right, family) in enumerate(rows)], {"decoding": protocol})


@SHARED
@given(ANSWERS, st.data())
def test_property_17_a_comparison_is_on_identical_data_or_refused(rows, data):
    base, tuned = scores([(old, family) for old, _, family in rows]), scores([(new, family) for _, new, family in rows])
    found = compare(base, tuned, resamples=20)
    assert len(found.wins) + len(found.losses) + found.ties == len(rows)
    assert all(old.id == new.id and old.reference == new.reference for old, new in [*found.wins, *found.losses])
    place = data.draw(st.integers(0, len(rows) - 1))
    field = data.draw(st.sampled_from(["id", "prompt", "reference"]))
    changed = list(tuned.predictions)
    changed[place] = replace(changed[place], **{field: "another"})
    for other in (replace(tuned, predictions=changed), replace(tuned, protocol={"decoding": "sampled"}),
                  replace(tuned, predictions=tuned.predictions[:place] + tuned.predictions[place + 1:])):
        with pytest.raises(DataError):
            compare(base, other, resamples=20)


@SHARED
@given(st.lists(st.tuples(st.text("owl elm", min_size=1, max_size=30).filter(str.strip),
                          st.text("owl elm", min_size=1, max_size=9).filter(str.strip), st.sampled_from("abc")),
                min_size=1, max_size=9), st.integers(1, 9))
def test_property_18_all_cases_are_evaluated_once_and_in_order(llama, tokenizer, rows, batch_size):
    chats = [Conversation(f"q{number}", (Turn("user", asked), Turn("assistant", wanted)), metadata={"family": family})
             for number, (asked, wanted, family) in enumerate(rows)]
    found = evaluate_instructions(llama, tokenizer, chats, max_new_tokens=2, batch_size=batch_size)
    assert [one.id for one in found.predictions] == [chat.id for chat in chats]
    assert {name: one["count"] for name, one in found.families.items()} == {
        family: sum(row[2] == family for row in rows) for family in {row[2] for row in rows}}
    without = replace(chats[-1], turns=chats[-1].turns[:1])
    with pytest.raises(DataError):
        evaluate_instructions(llama, tokenizer, [*chats[:-1], without], max_new_tokens=2)


@settings(deadline=None, max_examples=4)
@given(ANSWERS, st.floats(1, 100), st.floats(1, 100), st.booleans())
def test_property_19_a_report_is_complete_and_its_numbers_are_those_of_its_files(rows, response, general, leaky):
    models = {"base": scores([(old, family) for old, _, family in rows]),
              "tuned": scores([(new, family) for _, new, family in rows])}
    made = {name: Evaluation(one, Perplexity(math.log(response) * 7, 7), Perplexity(math.log(general) * 9, 9))
            for name, one in models.items()}
    leaked = ["q0"] if leaky and len(rows) > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        write_report(made, folder, leaked, data="test")
        report = json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))
        page = (Path(folder) / "report.html").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in (Path(folder) / "predictions.jsonl").open(encoding="utf-8")]
    for name, one in report["models"].items():
        mine = [line for line in lines if line["model"] == name]
        assert len(mine) == len(rows) == one["questions"]
        assert one["exact_match"] == pytest.approx(np.mean([line["scores"]["exact_match"] for line in mine]))
        shown = re.search(rf"<tr><td>{name}\n(.*?)</tr>", page, re.S)[1]
        assert all(f"{one[key]:.3f}" in shown for key in COLUMNS)
    right = {name: [line["scores"]["exact_match"] for line in lines if line["model"] == name] for name in models}
    change = report["comparisons"]["tuned"]
    assert change["difference"] == pytest.approx(np.mean(right["tuned"]) - np.mean(right["base"]))
    assert len(change["wins"]) + len(change["losses"]) + change["ties"] == len(rows)
    assert report["leaked"] == leaked and (report["without_leaks"] is not None) == bool(leaked)
    assert ("Worse: " in page) == bool(change["worse"]) and all(family in page for family in change["worse"])


def test_95_of_100_intervals_hold_the_truth_over_a_thousand_simulations():
    chance, held, truth = np.random.default_rng(0), 0, 0.1
    for number in range(1_000):
        hard = chance.random(200)
        old, new = chance.random(200) < 0.2 + 0.5 * hard, chance.random(200) < 0.2 + truth + 0.5 * hard
        interval = paired_bootstrap(old, new, resamples=400, seed=number)
        held += interval.low <= truth <= interval.high
    assert 0.93 <= held / 1_000 <= 0.97


WORDS = ("owl pony elm oak well hut mara tarn river stone bread honey north south winter summer green yellow ladder "
         "window candle basket feather copper silver barley clover thistle harbor valley meadow anchor lantern").split()


def chat(name: str, words: list[str]) -> Conversation:
    return Conversation(name, (Turn("user", " ".join(words[:-6])), Turn("assistant", " ".join(words[-6:]))))


def test_planted_leaks_are_found_and_little_else():
    chance = random.Random(0)
    text = lambda: [chance.choice(WORDS) for _ in range(60)]  # noqa: E731
    training = {f"t{number}": text() for number in range(300)}
    planted, questions = set(), []
    for number, words in enumerate(list(training.values())[:60]):
        copy = list(words)
        if number % 2:  # every other one is nearly the same: one word of sixty is another
            copy[chance.randrange(60)] = "different"
        planted.add(f"leak{number}")
        questions.append(chat(f"leak{number}", copy))
    questions += [chat(f"clean{number}", text()) for number in range(100)]
    for number, words in enumerate(list(training.values())[60:100]):  # hard: half of the words are shared
        questions.append(chat(f"alike{number}", words[:30] + text()[:30]))
    found = set(seen_in_training([chat(name, words) for name, words in training.items()], questions))
    assert len(found & planted) / len(planted) >= 0.95
    assert len(found & planted) / len(found) >= 0.9
