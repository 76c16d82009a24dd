"""Known mistakes of milestone 4, each with the check that catches it and the words that it says."""
from milestones.listed import Mistake

RISE, DOWN = "test_the_rate_rises_in_a_straight_line", "test_the_rate_comes_down_as_its_name_says"
GROUPS = "test_what_learns_is_grouped_by_rate_and_decay"
SUM, WINDOW = "test_the_loss_is_the_sum_over_target_tokens", "test_a_window_gives_the_gradient_of_one_large_batch"
ORDER, STEP = "test_backward_runs_after_each_micro_batch", "test_a_step_moves_by_the_clipped_gradient_of_its_own_window"
JUDGE, REPLAY = "test_the_judge_can_refuse_a_step", "test_replay_adds_its_own_mean_times_its_weight"
WHOLE, FAILS = "test_a_folder_is_there_whole_or_not_at_all", "test_a_write_that_fails_leaves_what_was_there"
DAMAGE, NEWEST = "test_every_kind_of_damage_is_found", "test_the_highest_number_is_the_latest_whatever_the_clock_says"
BROKEN, BAD = (
    "test_broken_checkpoints_are_passed_over_with_their_reason",
    "test_bad_steps_are_left_out_and_several_in_a_row_roll_back",
)
SPIKE, ZERO = "test_an_explosion_is_left_out_and_a_spike_is_only_noted", "test_gradients_of_zero_are_noticed_once"

MISTAKES = [
    Mistake(
        "warm-up one ahead",
        "4.1",
        "return peak * step / warmup",
        "return peak * (step + 1) / warmup",
        RISE,
        "one step ahead",
    ),
    Mistake(
        "peak forgotten", "4.1", "return peak * step / warmup", "return step / warmup", RISE, "peak is not multiplied"
    ),
    Mistake(
        "down from step 0",
        "4.1",
        "(step - warmup) / max(1, total - warmup)",
        "step / total",
        DOWN,
        "measured from step 0",
    ),
    Mistake(
        "on behind the end",
        "4.1",
        "min(1.0, (step - warmup) / max(1, total - warmup))",
        "(step - warmup) / max(1, total - warmup)",
        DOWN,
        "behind the last step",
    ),
    Mistake(
        "floor cuts",
        "4.1",
        "return peak * (lowest + (1 - lowest) * wave)",
        "return peak * max(lowest, wave)",
        DOWN,
        "squeeze",
    ),
    Mistake(
        "whole wave", "4.1", "math.cos(math.pi * progress)", "math.cos(2 * math.pi * progress)", DOWN, "whole wave"
    ),
    Mistake(
        "frozen base in the optimizer", "4.2", "if not parameter.requires_grad:", "if False:", GROUPS, "frozen base"
    ),
    Mistake(
        "decay on norms", "4.2", "weight_decay if parameter.ndim >= 2 else 0.0", "weight_decay", GROUPS, "decay too"
    ),
    Mistake("A faster", "4.2", '"lora_B" in name', '"lora_A" in name', GROUPS, "A gets the higher rate"),
    Mistake(
        "one rate",
        "4.2",
        "learning_rate * loraplus_lr_ratio if faster else learning_rate",
        "learning_rate",
        GROUPS,
        "same rate",
    ),
    Mistake(
        "adapters left out",
        "4.2",
        "if not parameter.requires_grad:",
        'if not parameter.requires_grad or "lora" in name:',
        GROUPS,
        "not in the optimizer",
    ),
    Mistake(
        "lora_B at the end of a name alone", "4.2", '"lora_B" in name', 'name.endswith("lora_B")', GROUPS, "same rate"
    ),
    Mistake("logits not widened", "4.3", "logits.float(), targets", "logits, targets", SUM, "not widened"),
    Mistake(
        "no attention mask",
        "4.3",
        "attention_mask=mask, ",
        "",
        SUM,
        "attention mask does not reach",
    ),
    Mistake("mean for sum", "4.3", 'reduction="sum"', 'reduction="mean"', SUM, "a mean over the tokens"),
    Mistake(
        "not shifted",
        "4.3",
        'F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED).flatten()',
        'batch["labels"].flatten()',
        SUM,
        "not shifted",
    ),
    Mistake("shifted twice", "4.3", "[:, 1:], (0, 1)", "[:, 2:], (0, 2)", SUM, "shifted twice"),
    Mistake(
        "prompt learned", "4.3", 'batch["labels"][:, 1:]', 'batch["input_ids"][:, 1:]', SUM, "the prompt is learned"
    ),
    Mistake(
        "mean of means",
        "4.4",
        "loss_function(model, batch) / targets",
        "loss_function(model, batch) / len(next(iter(batch.values()))) / len(window)",
        WINDOW,
        "mean of each micro-batch",
    ),
    Mistake("divided by micro-batches", "4.4", "/ targets", "/ len(window)", WINDOW, "by the number of micro-batches"),
    Mistake(
        "not divided",
        "4.4",
        "loss_function(model, batch) / targets",
        "loss_function(model, batch)",
        WINDOW,
        "not divided",
    ),
    Mistake("graph kept", "4.4", "share.detach()", "share", WINDOW, "graph is kept"),
    Mistake(
        "last share returned",
        "4.4",
        "total = total + share.detach()",
        "total = share.detach()",
        WINDOW,
        "last micro-batch's share",
    ),
    Mistake(
        "backward at the end",
        "4.4",
        "        backward(share)\n        # 3. add it up without keeping the graph alive\n"
        "        total = total + share.detach()\n    return total",
        "        total = total + share\n    backward(total)\n    return total.detach()",
        ORDER,
        "waits for the end",
    ),
    Mistake(
        "zeroed before each backward",
        "4.4",
        "        backward(share)",
        "        model.zero_grad()\n        backward(share)",
        WINDOW,
        "only the last micro-batch counts",
    ),
    Mistake("backward not used", "4.4", "        backward(share)", "        share.backward()", ORDER, "not used"),
    Mistake(
        "gradients not cleared",
        "4.5",
        "    optimizer.zero_grad(set_to_none=True)",
        "    pass",
        STEP,
        "last window's gradients",
    ),
    Mistake(
        "cleared after backward",
        "4.5",
        "    # 3. clip",
        "    optimizer.zero_grad(set_to_none=True)\n    # 3. clip",
        STEP,
        "cleared after backward",
    ),
    Mistake(
        "each micro-batch clipped",
        "4.5",
        "loss = replayed = accumulate(model, window, targets, backward, loss_function)",
        "loss = replayed = sum((accumulate(model, [one], targets, backward, loss_function),\n"
        "        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm or math.inf))[0] for one in window)",
        STEP,
        "each micro-batch is clipped",
    ),
    Mistake(
        "norm after clipping",
        "4.5",
        "    norm = clip(trainable(optimizer), max_grad_norm or math.inf)",
        "    clip(trainable(optimizer), max_grad_norm or math.inf)\n"
        "    norm = torch.nn.utils.get_total_norm([weight.grad for weight in trainable(optimizer)])",
        STEP,
        "after clipping",
    ),
    Mistake("not clipped", "4.5", "max_grad_norm or math.inf", "math.inf", STEP, "not clipped"),
    Mistake("judge not heard", "4.5", 'if decision.action == "step":', "if True:", JUDGE, "whatever the judge says"),
    Mistake(
        "replay not weighted",
        "4.5",
        "replay[1] / replay_weight, backward) / replay_weight",
        "replay[1], backward)",
        REPLAY,
        "not weighted",
    ),
    Mistake(
        "written in place",
        "4.6",
        "        write(unfinished)",
        "        folder.mkdir(exist_ok=True)\n        write(folder)",
        WHOLE,
        "in place",
    ),
    Mistake("not waited for the disk", "4.6", "flush_to_disk(path)", "pass", WHOLE, "still be in memory"),
    Mistake("deleted in place", "4.6", "os.replace(folder, aside)", "shutil.rmtree(folder)", FAILS, "has neither"),
    Mistake("interrupted, rubbish left", "4.6", "except BaseException:", "except Exception:", FAILS, "cleared away"),
    Mistake("another disk", "4.6", ", dir=folder.parent", "", WHOLE, "another disk"),
    Mistake(
        "old one deleted first",
        "4.6",
        "        write(unfinished)",
        "        shutil.rmtree(folder, ignore_errors=True)\n        write(unfinished)",
        FAILS,
        "deleted before",
    ),
    Mistake(
        "rubbish left",
        "4.6",
        "        shutil.rmtree(unfinished, ignore_errors=True)\n        raise",
        "        raise",
        FAILS,
        "cleared away",
    ),
    Mistake("sizes alone", "4.7", 'if sha256(folder / name) != file["sha256"]:', "if False:", DAMAGE, "bytes wrong"),
    Mistake("subfolders not looked into", "4.7", "folder.rglob", "folder.glob", DAMAGE, "subfolders"),
    Mistake("seal not checked", "4.7", "if seal != digest(manifest):", "if False:", DAMAGE, "seal"),
    Mistake(
        "extra files accepted",
        "4.7",
        'sorted(there ^ manifest["files"].keys())',
        'sorted(manifest["files"].keys() - there)',
        DAMAGE,
        "files in the manifest",
    ),
    Mistake(
        "latest by name",
        "4.8",
        "sorted(checkpoints(folder).items(), reverse=True)",
        "sorted(checkpoints(folder).items(), key=lambda pair: pair[1].name, reverse=True)",
        NEWEST,
        "compared as text",
    ),
    Mistake(
        "latest by time",
        "4.8",
        "sorted(checkpoints(folder).items(), reverse=True)",
        "sorted(checkpoints(folder).items(), key=lambda pair: -pair[1].stat().st_mtime)",
        NEWEST,
        "time of its files",
    ),
    Mistake("step not compared", "4.8", "if step == number:", "if True:", BROKEN, "not that of its name"),
    Mistake("not reported", "4.8", "broken[path.name] = str(error)", "pass", BROKEN, "not reported"),
    Mistake(
        "NaN step applied",
        "4.9",
        '("nan_loss", "nan_gradient", "explosion")',
        '("explosion",)',
        BAD,
        "NaN step is applied",
    ),
    Mistake(
        "left out and not counted", "4.9", "        guard.skipped_in_a_row += 1\n", "", BAD, "are not counted"
    ),
    Mistake("count goes on", "4.9", "    guard.skipped_in_a_row = 0\n", "", BAD, "count again"),
    Mistake(
        "late",
        "4.9",
        "guard.skipped_in_a_row >= guard.max_skipped_steps",
        "guard.skipped_in_a_row > guard.max_skipped_steps",
        BAD,
        "one step late",
    ),
    Mistake(
        "explosion applied",
        "4.9",
        '("nan_loss", "nan_gradient", "explosion")',
        '("nan_loss", "nan_gradient")',
        SPIKE,
        "is applied",
    ),
    Mistake(
        "said at every step",
        "4.9",
        "guard.without_gradient == guard.at_least",
        "guard.without_gradient >= guard.at_least",
        ZERO,
        "every step",
    ),
    Mistake(
        "zeros not in a row",
        "4.9",
        "guard.without_gradient + 1 if grad_norm == 0 else 0",
        "guard.without_gradient + (grad_norm == 0)",
        ZERO,
        "begin again",
    ),
]

PAGE = {  # mistakes that this milestone must catch → the entry above, or the test of the library, that does
    "loss not scaled": "4.4 not divided",
    "mean of means": "4.4 mean of means",
    "zero_grad before each backward of the window": "4.4 zeroed before each backward",
    "scheduler at each micro-step":
        "tests/training/test_loop.py"
        "::test_the_loop_takes_the_steps_that_a_plain_loop_takes",
    "step off by one in the warm-up": "4.1 warm-up one ahead",
    "last window dropped":
        "tests/training/test_loop.py"
        "::test_a_fraction_of_an_epoch_and_a_short_last_window_are_whole_steps",
    "each micro-batch clipped": "4.5 each micro-batch clipped",
    "norm recorded after clipping": "4.5 norm after clipping",
    "stopping on the training loss": "tests/training/test_loop.py::test_the_best_weights_come_back_at_the_end",
    "patience off by one": "tests/training/test_stability.py::test_patience_counts_evaluations_without_a_better_one",
    "greater-is-better inverted":
        "tests/training/test_stability.py"
        "::test_better_means_by_more_than_the_threshold_and_nan_is_never_better",
    "evaluation leaves the model in eval mode":
        "tests/training/test_step.py"
        "::test_evaluation_leaves_modes_and_generators_as_they_were",
    "dropout on in eval": "tests/lora/test_adapter.py::test_an_adapter_in_eval_does_not_drop",
    "graph kept in the log": "4.4 graph kept",
    "optimizer state not restored": "tests/training/test_checkpoints.py::test_everything_comes_back",
    "scheduler restarted": "tests/training/test_resume.py::test_a_stopped_run_goes_on_as_if_it_had_not",
    "random generators not restored": "tests/training/test_resume.py::test_a_stopped_run_goes_on_as_if_it_had_not",
    "data from the start on resume": "tests/training/test_resume.py::test_a_stopped_run_goes_on_as_if_it_had_not",
    "latest by mtime": "4.8 latest by time",
    "save that is not atomic": "4.6 written in place",
    "checksum not checked": "4.7 sizes alone",
    "NaN step applied": "4.9 NaN step applied",
    "step left out without counting": "4.9 left out and not counted",
    "weight decay on norms": "4.2 decay on norms",
    "frozen inputs with checkpointing":
        "tests/training/test_step.py"
        "::test_checkpointing_gives_frozen_models_the_same_gradients",
    "frozen base in the optimizer": "4.2 frozen base in the optimizer",
}
