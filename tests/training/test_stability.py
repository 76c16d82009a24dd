"""The guard, early stopping, and what a run does when something goes wrong."""
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_lib.core import TrainingError
from finetune_lib.data.batches import collate
from finetune_lib.training.loop import TrainingConfig, train
from finetune_lib.training.stability import (
    EarlyStopping,
    Guard,
    diagnose_failure,
    first_nonfinite,
    stop_on_signals,
    suspects,
)
from finetune_lib.training.step import target_loss

SETTINGS = dict(learning_rate=1e-3, per_device_train_batch_size=4, max_steps=12, lr_scheduler_type="constant")


def judged(guard, *pairs):
    return [guard.judge(loss, norm) for loss, norm in pairs]


def poisoned(bad_ids, value=float("nan")):
    """A loss function that goes wrong on batches that begin with one of these tokens."""
    def loss(model, batch):
        return target_loss(model, batch) * (value if set(batch["input_ids"][:, 0].tolist()) & bad_ids else 1.0)
    return loss


def counted(done):
    """A callback that keeps the steps that were taken, those that were left out too."""
    return lambda kind, record: done.append(record.step) if kind == "step" else None


@pytest.mark.parametrize("loss, norm, kind", [(math.nan, 1.0, "nan_loss"), (math.inf, 1.0, "nan_loss"),
                                              (1.0, math.nan, "nan_gradient"), (1.0, math.inf, "nan_gradient")])
def test_numbers_that_are_not_finite_are_skipped(loss, norm, kind):
    decision = Guard().judge(loss, norm)
    assert (decision.action, decision.kind) == ("skip", kind)
    json.dumps(decision.evidence, allow_nan=False)


def test_so_many_bad_steps_in_a_row_roll_back_and_a_good_one_begins_the_count_again():
    bad, good = (math.nan, 1.0), (1.0, 1.0)
    actions = [decision.action for decision in judged(Guard(3), bad, bad, good, bad, bad, bad)]
    assert actions == ["skip", "skip", "step", "skip", "skip", "roll back"]
    assert judged(Guard(1), bad)[0].action == "roll back"


def test_an_explosion_is_skipped_and_does_not_move_the_median():
    guard = Guard()
    assert {decision.action for decision in judged(guard, *[(1.0, 2.0)] * 10)} == {"step"}
    first, second = judged(guard, (1.0, 101.0), (1.0, 99.0))
    assert (first.action, first.kind) == ("skip", "explosion") and second.action == "step"
    assert 101.0 not in guard.norms


def test_a_spike_is_noted_and_applied():
    guard = Guard()
    judged(guard, *[(0.5, 1.0)] * 10)
    spike, none = judged(guard, (1.6, 1.0), (1.4, 1.0))
    assert (spike.action, spike.kind) == ("step", "spike") and none.kind == ""


def test_nothing_is_compared_before_enough_was_seen():
    assert {decision.kind for decision in judged(Guard(), *[(1.0, 1.0)] * 9, (90.0, 900.0))} == {""}


def test_a_gradient_of_zero_is_named_once():
    kinds = [decision.kind for decision in judged(Guard(), *[(1.0, 0.0)] * 25)]
    assert kinds.count("no_gradient") == 1


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(), st.floats(min_value=0)), max_size=40), st.integers(0, 40))
def test_a_guard_that_was_saved_judges_as_if_it_had_not_been(pairs, cut):
    whole, first, second = Guard(), Guard(), Guard()
    expected = judged(whole, *pairs)
    begun = judged(first, *pairs[:cut])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [d.action for d in begun + judged(second, *pairs[cut:])] == [d.action for d in expected]


def test_a_poisoned_sample_is_skipped_counted_and_named(model, samples, equal, weights_of, tmp_path):
    data = samples(20)
    bad = data[3].input_ids[0]
    named = {sample.id for sample in data if sample.input_ids[0] == bad}
    result = train(model(), data, TrainingConfig(**SETTINGS), 0, folder=tmp_path, loss_function=poisoned({bad}))
    skipped = [record for record in result.history if record.skipped]
    assert result.steps == 12 and 0 < len(skipped) < 12 and all(math.isnan(record.loss) for record in skipped)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events] == [record.step for record in skipped]
    assert all(named & set(event["sample_ids"]) and event["kind"] == "nan_loss" for event in events)
    assert named & set(suspects(events)) == named


def test_a_skipped_step_leaves_weights_and_optimizer_alone(model, samples, equal, weights_of):
    tiny = model()
    before = weights_of(tiny)
    config = TrainingConfig(**{**SETTINGS, "max_steps": 2})
    train(tiny, samples(20), config, 0, loss_function=poisoned(set(range(256)), float("inf")))
    assert equal(weights_of(tiny), before)


def test_without_the_guard_one_bad_step_ruins_the_model(model, samples):
    tiny = model()
    config = TrainingConfig(**{**SETTINGS, "guard": False})
    train(tiny, samples(20), config, 0, loss_function=poisoned({samples(20)[3].input_ids[0]}))
    assert torch.isnan(tiny.lm_head.weight).any()


def test_a_run_that_turns_ill_rolls_back_with_half_the_rate_and_then_stops_with_a_diagnosis(model, samples, tmp_path):
    tiny, done = model(), []

    def ill(model, batch):
        return target_loss(model, batch) * (math.nan if len(done) >= 6 else 1.0)

    config = TrainingConfig(**SETTINGS, save_steps=2, max_rollbacks=2)
    with pytest.raises(TrainingError, match=r"nan_loss 9 times.*the learning rate was 2\.5e-04"):
        train(tiny, samples(20), config, 0, folder=tmp_path, loss_function=ill, callbacks=[counted(done)])
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["evidence"]["to"], event["evidence"]["rate_scale"]) for event in events
            if event["kind"] == "rolled_back"] == [("checkpoint-000006", 0.5), ("checkpoint-000006", 0.25)]


def test_without_a_checkpoint_the_run_stops_and_its_weights_are_those_before(model, samples, equal, weights_of):
    tiny = model()
    before = weights_of(tiny)
    with pytest.raises(TrainingError, match="training stopped.*nan_loss 3 times"):
        train(tiny, samples(20), TrainingConfig(**SETTINGS), 0, loss_function=poisoned(set(range(256))))
    assert equal(weights_of(tiny), before) and not tiny.training


def test_after_an_illness_the_run_ends_and_goes_on_like_others(model, samples, tmp_path):
    done = []

    def ill_for_a_while(model, batch):
        return target_loss(model, batch) * (math.nan if 6 <= len(done) < 9 else 1.0)

    result = train(model(), samples(20), TrainingConfig(**SETTINGS, save_steps=2), 0, folder=tmp_path,
                   loss_function=ill_for_a_while, callbacks=[counted(done)])
    assert [record.step for record in result.history] == list(range(1, 13))
    assert result.history[-1].learning_rate == pytest.approx(5e-4) and not any(r.skipped for r in result.history)


def test_the_first_module_with_broken_weights_is_named(model, samples):
    tiny, batch = model(), collate(samples(2), 0)
    assert first_nonfinite(tiny, batch) is None
    tiny.model.layers[1].mlp.up_proj.weight.data[0, 0] = math.inf
    assert first_nonfinite(tiny, batch) == "model.layers.1.mlp.up_proj"
    assert "up_proj" in diagnose_failure([{"kind": "nan_loss"}], first_nonfinite(tiny, batch), 1e-3)


def test_patience_counts_evaluations_without_a_better_one():
    stopping = EarlyStopping(patience=2)
    answers = [(stopping.seen(step, value), stopping.over) for step, value in enumerate([3.0, 2.0, 2.5, 2.1, 1.0])]
    assert answers == [(True, False), (True, False), (False, False), (False, True), (True, False)]
    assert (stopping.best, stopping.best_step) == (1.0, 4)


def test_better_means_by_more_than_the_threshold_and_nan_is_never_better():
    stopping = EarlyStopping(patience=1, threshold=0.1)
    assert [stopping.seen(0, math.nan), stopping.seen(1, 2.0), stopping.seen(2, 1.95), stopping.seen(3, 1.8)] == [
        False, True, False, True]
    higher = EarlyStopping(greater_is_better=True)
    assert [higher.seen(0, 0.5), higher.seen(1, 0.4), higher.seen(2, 0.6)] == [True, False, True]


def test_signals_ask_and_handlers_come_back():
    import os
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as request:
        assert request.name is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == before


def test_training_works_in_another_thread(model, samples):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        config = TrainingConfig(**{**SETTINGS, "max_steps": 2})
        assert pool.submit(train, model(), samples(8), config, 0).result().stopped_by == "end"
