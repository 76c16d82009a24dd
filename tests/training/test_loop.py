"""`train`, whole: what it moves, records, evaluates and gives back."""
import json
import logging
import math

import pytest
import torch

from finetune_lib.core import ConfigError, DataError
from finetune_lib.lora.adapter import LoRAConfig, attach_lora
from finetune_lib.training.curves import (
    LivePlot,
    append_record,
    describe_curves,
    keep_until,
    plot_frame,
    plot_history,
    read_frame,
    read_records,
)
from finetune_lib.training.loop import TrainingConfig, train
from finetune_lib.training.step import evaluation_loss

SETTINGS = dict(learning_rate=3e-3, per_device_train_batch_size=4, max_steps=12, warmup_steps=2)


def test_the_loss_falls_and_everything_is_recorded(model, samples, tmp_path):
    data = samples(40)
    result = train(model(), data, TrainingConfig(**{**SETTINGS, "max_steps": 40}, eval_steps=20), 0,
                   eval_samples=samples(8, 1), folder=tmp_path)
    assert result.history[-1].loss < result.history[0].loss - 0.3
    assert [record.step for record in result.history] == list(range(1, 41))
    assert [record.eval_step for record in result.evaluations] == [20, 40]
    assert result.evaluations[0].perplexity == pytest.approx(math.exp(result.evaluations[0].eval_loss))
    assert result.tokens == 4 * sum(len(sample.input_ids) for sample in data)
    assert result.history[9].epoch == 1.0
    lines = read_records(tmp_path / "metrics.jsonl")
    assert [line["loss"] for line in lines] == [record.loss for record in result.history]
    assert result.best == min(result.evaluations, key=lambda record: record.eval_loss)


def test_the_loop_takes_the_steps_that_a_plain_loop_takes(model, samples):
    from finetune_lib.data.batches import collate
    from finetune_lib.training.schedule import Windows, count_targets, learning_rate_at

    data, plain, ours = samples(22), model(), model()
    config = TrainingConfig(**SETTINGS, gradient_accumulation_steps=2, weight_decay=0.0)
    result = train(ours, data, config, 0)
    windows, losses = Windows(data, 4, 2, config.seed), []
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=0)
    for step in range(12):
        parts = windows.at(step)
        targets = sum(count_targets(sample.labels) for part in parts for sample in part)
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, 12, 2, "cosine", peak=3e-3)
        losses.append(0.0)
        for part in parts:
            batch = collate(part, 0)
            logits = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(),
                                                     reduction="sum") / targets
            loss.backward()
            losses[-1] += loss.item()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
    assert max(abs(record.loss - loss) for record, loss in zip(result.history, losses, strict=True)) <= 1e-6
    assert max((a - b).abs().max() for a, b in zip(ours.parameters(), plain.parameters(), strict=True)) <= 1e-6


def test_on_a_cpu_no_column_is_padding_alone(model, samples):
    from finetune_lib.evaluation.perplexity import perplexity
    from finetune_lib.training.schedule import Windows

    tiny, data, config, seen = model(), samples(22), TrainingConfig(**SETTINGS), []
    tiny.register_forward_pre_hook(lambda module, args, named: seen.append(tuple(named["input_ids"].shape)),
                                   with_kwargs=True)
    train(tiny, data, config, 0)
    windows = Windows(data, 4, 1, config.seed)
    parts = [part for step in range(12) for part in windows.at(step)]
    shape = lambda part: (len(part), max(len(sample.input_ids) for sample in part))  # noqa: E731
    assert seen == [shape(sorted(data, key=lambda sample: len(sample.input_ids))[-4:]), *map(shape, parts)]
    assert any(width % 8 for _, width in seen)
    for measure in (evaluation_loss, perplexity):
        seen.clear()
        measure(tiny, data, 0, 1)
        assert sorted(seen) == sorted(shape([sample]) for sample in data)


@pytest.mark.parametrize("backend", ["own", "peft"])
def test_only_the_adapter_moves_and_all_of_b_does(model, samples, backend, weights_of):
    tiny = attach_lora(model(), LoRAConfig(r=2), backend=backend)
    before = weights_of(tiny)
    train(tiny, samples(20), TrainingConfig(**SETTINGS), 0)
    moved = {name for name, value in weights_of(tiny).items() if not torch.equal(value, before[name])}
    assert moved == {name for name, parameter in tiny.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in moved) and not tiny.training
    assert all(parameter.grad is None for parameter in tiny.parameters())


def test_own_and_peft_adapters_train_to_the_same_weights(model, samples):
    found = []
    for backend in ("own", "peft"):
        tiny = attach_lora(model(), LoRAConfig(r=2, lora_dropout=0.0), backend=backend)
        torch.manual_seed(1)
        for name, parameter in tiny.named_parameters():
            if "lora_A" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        result = train(tiny, samples(20), TrainingConfig(**SETTINGS), 0)
        found.append([record.loss for record in result.history])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.parametrize("backend", ["own", "bitsandbytes"])
def test_four_bit_models_train_and_resume(model, samples, tmp_path, backend):
    from finetune_lib.qlora.loading import QuantizationConfig, load_base

    model(hidden=64).save_pretrained(tmp_path / "base")

    def quantized():
        torch.manual_seed(0)
        base = load_base(tmp_path / "base", QuantizationConfig(), backend=backend)
        return attach_lora(base, LoRAConfig(r=2, lora_dropout=0.1))

    config, data = TrainingConfig(**SETTINGS, eval_steps=4), dict(samples=samples(20), eval_samples=samples(4, 1))
    whole = train(quantized(), config=config, pad_token_id=0, folder=tmp_path / "whole", **data)
    stop = [lambda kind, record: "stop" if kind == "step" and record.step == 5 else None]
    train(quantized(), config=config, pad_token_id=0, folder=tmp_path / "parts", callbacks=stop, **data)
    again = train(quantized(), config=config, pad_token_id=0, folder=tmp_path / "parts", **data)
    assert [record.loss for record in again.history] == [record.loss for record in whole.history]
    assert whole.history[-1].loss < whole.history[0].loss


def test_evaluating_on_the_way_changes_nothing(model, samples, equal, weights_of):
    found = []
    for settings in ({}, {"eval_steps": 1, "eval_on_start": True}):
        tiny = model(dropout=0.3)
        train(tiny, samples(20), TrainingConfig(**SETTINGS, **settings), 0, eval_samples=samples(6, 1),
              eval_metrics=lambda model: {"exact_match": torch.rand(1).item()})
        found.append(weights_of(tiny))
    assert equal(*found)


def test_the_best_weights_come_back_at_the_end(model, samples, tmp_path, equal, weights_of):
    scores, kept, found = iter([0.1, 0.9, 0.3, 0.2, 0.9]), {}, []

    def metrics(model):
        score = next(scores)
        kept.setdefault(score, weights_of(model))
        return {"exact_match": score}

    for folder in (None, tmp_path):
        tiny, scores = model(), iter([0.1, 0.9, 0.3, 0.2, 0.9])
        result = train(tiny, samples(20), TrainingConfig(
            **SETTINGS, eval_steps=2, load_best_model_at_end=True, metric_for_best_model="exact_match",
            early_stopping_patience=2, save_total_limit=1), 0, eval_samples=samples(4, 1), eval_metrics=metrics,
            folder=folder)
        assert result.stopped_by == "early stopping" and result.steps == 8 and result.best.eval_step == 4
        assert equal(weights_of(tiny), kept[0.9])
        found.append(sorted(path.name for path in tmp_path.glob("checkpoint-*")))
    assert found == [[], ["checkpoint-000004", "checkpoint-000008"]]


@pytest.mark.parametrize(("settings", "evaluated", "saved"), [
    (dict(save_epochs=1, eval_epochs=0.5), [3, 5, 8, 10, 12], [5, 10, 12]),
    (dict(save_steps=4, save_epochs=1), [12], [4, 5, 8, 10, 12]),
    (dict(save_best=True, eval_steps=3), [3, 6, 9, 12], [6, 12]),
], ids=["each epoch", "steps and epochs", "better evaluations"])
def test_evaluations_and_checkpoints_come_when_they_are_asked_for(settings, evaluated, saved, model, samples, tmp_path):
    """20 samples in batches of 4: five steps an epoch."""
    scores = iter([0.2, 0.7, 0.5, 0.4, 0.1])
    result = train(model(), samples(20), TrainingConfig(
        **SETTINGS, **settings, save_total_limit=None, metric_for_best_model="score"), 0, folder=tmp_path,
        eval_samples=samples(4, 1), eval_metrics=lambda model: {"score": next(scores)})
    assert [record.eval_step for record in result.evaluations] == evaluated
    first = [3] if "save_best" in settings else []  # the first evaluation is better than none
    assert [record["step"] for record in read_records(tmp_path / "checkpoints.jsonl")] == first + saved


def test_norms_are_kept_by_layer_and_together_they_are_the_norm(model, samples, tmp_path):
    result = train(model(), samples(20), TrainingConfig(**SETTINGS, max_grad_norm=0.1), 0, folder=tmp_path)
    for record in result.history:
        assert set(record.layer_norms) == {"embed_tokens", "layers.0", "layers.1", "norm"}
        assert math.hypot(*record.layer_norms.values()) == pytest.approx(record.grad_norm, rel=1e-5)
    assert read_records(tmp_path / "metrics.jsonl")[2]["layer_norms"] == result.history[2].layer_norms


def test_a_data_frame_tells_the_run_and_the_picture_has_its_five_curves(model, samples, tmp_path):
    result = train(model(), samples(20), TrainingConfig(**SETTINGS, eval_steps=6, logging_steps=4), 0,
                   eval_samples=samples(4, 1), folder=tmp_path)
    frame = read_frame(tmp_path)
    assert frame["loss"].tolist() == [record.loss for record in result.history]
    assert frame.loc[frame["eval_loss"].notna(), "step"].tolist() == [6, 12]
    assert frame.loc[frame["memory"].notna(), "step"].tolist() == [4, 8, 12] and frame["memory"].min() > 2**20
    axes = plot_frame(frame).axes
    assert len(axes) == 5 and list(axes[4].lines[0].get_ydata()) == frame["tokens_per_second"].tolist()
    assert list(axes[0].lines[1].get_xdata()) == [6, 12] and len(axes[3].lines[0].get_ydata()) == 3
    with pytest.raises(DataError, match="train first"):
        read_frame(tmp_path / "nothing")


def test_a_metric_that_is_not_there_is_named(model, samples):
    with pytest.raises(ConfigError, match="got 'exact_match'"):
        train(model(), samples(8), TrainingConfig(**SETTINGS, metric_for_best_model="exact_match"), 0,
              eval_samples=samples(4, 1))


def test_a_fraction_of_an_epoch_and_a_short_last_window_are_whole_steps(model, samples):
    half = TrainingConfig(per_device_train_batch_size=4, num_train_epochs=0.5)
    assert train(model(), samples(22), half, 0).steps == 3
    config = TrainingConfig(per_device_train_batch_size=4, gradient_accumulation_steps=4)
    assert train(model(), samples(22), config, 0).steps == 2


def test_replay_is_recorded_and_its_weight_counts(model, samples):
    data, text = samples(20), samples(10, 2, all_targets=True)
    without = train(model(), data, TrainingConfig(**SETTINGS), 0)
    silent = train(model(), data, TrainingConfig(**SETTINGS, replay_weight=0.0), 0, replay=text)
    heavy = train(model(), data, TrainingConfig(**SETTINGS, replay_weight=3.0), 0, replay=text)
    assert [r.loss for r in without.history] == [r.loss for r in silent.history]
    assert silent.history[0].replay_loss is None and heavy.history[0].replay_loss > 0
    assert heavy.history[0].loss == without.history[0].loss  # the same model saw the same samples
    assert heavy.history[-1].replay_loss < heavy.history[0].replay_loss


def test_callbacks_hear_of_everything_in_order(model, samples, tmp_path):
    heard = []
    train(model(), samples(8), TrainingConfig(per_device_train_batch_size=4), 0, eval_samples=samples(2, 1),
          folder=tmp_path, callbacks=[lambda kind, record: heard.append(kind)])
    assert heard == ["start", "step", "step", "evaluation", "checkpoint", "end"]


def test_nothing_is_printed_and_the_log_has_a_line_each_so_many_steps(model, samples, capfd, caplog):
    caplog.set_level(logging.INFO, logger="finetune_lib")
    train(model(), samples(20), TrainingConfig(**SETTINGS, logging_steps=5), 0)
    assert capfd.readouterr() == ("", "")
    assert [line.split("  ")[0] for line in caplog.messages] == ["step 5/12", "step 10/12"]


def test_no_samples_are_refused(model):
    with pytest.raises(DataError, match="at least one sample"):
        train(model(), [], TrainingConfig(), 0)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "mistral"])
def test_other_architectures_train(family, samples):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    small = dict(vocab_size=256, num_hidden_layers=1, hidden_size=16, num_attention_heads=2, num_key_value_heads=2,
                 intermediate_size=32, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)
    gpt2 = dict(vocab_size=256, n_layer=1, n_embd=16, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    config = AutoConfig.for_model(family, **(gpt2 if family == "gpt2" else small))
    tiny = attach_lora(AutoModelForCausalLM.from_config(config), LoRAConfig(r=2))
    result = train(tiny, samples(20), TrainingConfig(**SETTINGS), 0)
    assert result.history[-1].loss < result.history[0].loss


def test_bf16_training_learns_too(model, samples):
    settings = {**SETTINGS, "max_steps": 30}
    plain = train(model(), samples(20), TrainingConfig(**settings), 0)
    mixed = train(model(), samples(20), TrainingConfig(**settings, mixed_precision="bf16"), 0)
    assert mixed.history[-1].loss == pytest.approx(plain.history[-1].loss, abs=0.05)
    assert mixed.history[0].loss != plain.history[0].loss


def test_records_survive_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(1, 5):
        append_record(path, {"step": step, "loss": math.nan})
    with open(path, "a") as file:
        file.write('{"step": 5, "lo')
    assert [record["step"] for record in read_records(path)] == [1, 2, 3, 4]
    assert json.loads(path.read_text().splitlines()[0])["loss"] is None
    assert [record["step"] for record in keep_until(path, 2)] == [1, 2]
    append_record(path, {"step": 3})
    assert [record["step"] for record in read_records(path)] == [1, 2, 3]


def test_curves_are_told_apart_in_words():
    falling = [3.0, 2.0, 1.5, 1.2, 1.0]
    assert "overfitting since evaluation 3" in describe_curves(falling, [3.0, 2.5, 2.0, 2.2, 2.5])
    assert "plateau" in describe_curves([3.0, 2.0, 2.0, 2.0, 2.0], [3.0, 2.5, 2.0, 2.0, 2.001])
    assert "still learning" in describe_curves(falling, falling)
    assert "unsteady" in describe_curves([1.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 2.0])
    assert "too few" in describe_curves([1.0], [1.0])


def test_the_picture_shows_every_step(model, samples):
    result = train(model(), samples(20), TrainingConfig(**SETTINGS, eval_steps=6), 0, eval_samples=samples(4, 1),
                   callbacks=[LivePlot(every=100)])
    figure = plot_history(result.history, result.evaluations)
    loss = figure.axes[0].lines[0]
    assert list(loss.get_ydata()) == [record.loss for record in result.history]
