"""One code for every family: a folder of a random model goes the whole way."""
import pytest

from finetune_lib.pipeline.config import load_config
from finetune_lib.pipeline.run import FineTuningPipeline, answer, load_any, share
from finetune_lib.pipeline.stages import load_evaluation

COMBINATIONS = [("llama", "lora", "own", "own"), ("qwen2", "qlora", "peft", "bitsandbytes"),
                ("mistral", "qlora", "own", "own"), ("gpt2", "lora", "peft", "bitsandbytes"),
                ("gpt2", "lora", "own", "own"), ("llama", "qlora", "own", "bitsandbytes"),
                ("llama", "lora", "quick", "own"), ("gpt2", "lora", "quick", "own")]


@pytest.mark.parametrize("family, method, lora, quantization", COMBINATIONS)
def test_a_folder_of_each_family_goes_the_whole_way(model_folder, settings, family, method, lora, quantization):
    pipeline = FineTuningPipeline("tiny", settings(
        f"model={model_folder(family)}", f"method={method}", f"lora.backend={lora}",
        f"quantization.backend={quantization}"))
    report = pipeline.run()
    assert set(report["models"]) == {"base", "tuned"}
    model, tokenizer = load_any(pipeline.folder)
    assert model.config.model_type == family
    assert isinstance(answer(model, tokenizer, ["Where does Mara live?"], max_new_tokens=4)[0], str)


TWINS = {"own": ("lora.backend=own", "quantization.backend=own"),
         "peft": ("lora.backend=peft", "quantization.backend=bitsandbytes")}


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_both_back_ends_learn_alike(settings, method):
    """Their random beginnings differ, so equal numbers would be luck; the base's perplexity would not pass."""
    runs = {}
    for name, backends in TWINS.items():
        more = (f"method={method}", "training.learning_rate=5e-3", "training.max_steps=12", *backends)
        runs[name] = FineTuningPipeline("tiny", settings(*more, folder=name))
        if name == "peft":
            share(runs["own"].folder, runs["peft"].folder, ["prepare", "baseline"])
        runs[name].run(until="evaluate")
    base = load_evaluation(runs["own"].folder / "baseline" / "evaluation.json").response.overall
    own, peft = (load_evaluation(run.folder / "evaluate" / "evaluation.json").response.overall for run in runs.values())
    assert own == pytest.approx(peft, rel=0.15) and max(own, peft) < 0.8 * base


def test_an_unknown_layer_is_refused_before_anything_runs(settings, tmp_path):
    pipeline = FineTuningPipeline("tiny", settings("lora.target_modules=[q_prj]"))
    with pytest.raises(ValueError, match="did you mean 'q_proj'"):
        pipeline.run()
    assert not (pipeline.folder / "prepare").exists()


def test_the_same_code_takes_a_hub_name():
    assert load_config("qwen-0.5b", environment={}).model.name_or_path == "Qwen/Qwen2.5-0.5B-Instruct"
