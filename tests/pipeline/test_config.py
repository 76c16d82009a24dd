"""The configuration: layers in their order, frozen, and errors that name the setting."""
import pytest
import yaml

from finetune_lib.core import ConfigError
from finetune_lib.pipeline.config import (
    FinetuneConfig,
    load_config,
    origins,
    read_yaml,
    ready_configs,
    to_yaml,
    validated,
)


@pytest.mark.parametrize("name", ready_configs())
def test_every_ready_config_loads_and_comes_back_from_yaml(name):
    config = load_config(name, environment={})
    assert validated(read_yaml(to_yaml(config))) == config


def test_the_strongest_layer_wins(tmp_path):
    (tmp_path / "low.yaml").write_text("model: low\ndata: a.csv\nlora: {r: 2, lora_alpha: 2}\n")
    (tmp_path / "high.yaml").write_text("base: low.yaml\nlora: {r: 3}\n")
    high = tmp_path / "high.yaml"
    assert load_config(high, environment={}).lora.r == 3
    assert load_config(high, environment={}).lora.lora_alpha == 2
    assert load_config(high, environment={"FINETUNE_LORA__R": "4"}).lora.r == 4
    assert load_config(high, ["lora.r=5"], {"FINETUNE_LORA__R": "4"}).lora.r == 5
    assert load_config(high, ["lora.r=5", {"lora": {"r": 6}}], {}).lora.r == 6


def test_origins_name_the_layer_of_each_setting(tmp_path):
    (tmp_path / "mine.yaml").write_text("model: m\ndata: a.csv\n")
    found = origins(tmp_path / "mine.yaml", ["lora.r=5"], {"FINETUNE_TRAINING__SEED": "1"})
    assert found["model.name_or_path"] == "mine.yaml" and found["lora.r"] == "--set"
    assert found["training.seed"] == "$FINETUNE_TRAINING__SEED" and found["lora.lora_alpha"] == "default"


def test_a_configuration_is_frozen_and_hashable_by_its_text():
    config = load_config(environment={})
    with pytest.raises(ValueError, match="frozen"):
        config.lora.r = 3
    assert to_yaml(config) == to_yaml(load_config(environment={}))


def test_short_forms_stand_for_their_section():
    config = FinetuneConfig(model="m", data=["a.csv", "b.csv"], output="there")
    assert (config.model.name_or_path, config.data.train, config.output.folder) == ("m", ("a.csv", "b.csv"), "there")


def test_yaml_keeps_no_as_a_word_and_reads_exponents_as_numbers():
    assert read_yaml("a: no\nb: 1e-3\nc: true\nd: 08") == {"a": "no", "b": 1e-3, "c": True, "d": 8.0}
    assert yaml.safe_load("a: no")["a"] is False  # why it is needed


@pytest.mark.parametrize("override, said", [
    ("lora.rank=4", "did you mean 'r'"), ("training.learnin_rate=1", "learning_rate"),
    ("lora.r=0", "rank must be at least 1"),
    ("foo.bar=1", "unknown setting foo"), ("model", "section.name=value"), ("data.ratios=[0.5, 0.5, 0.5]", "sum 1.5"),
    ("method=dora", "'lora', 'qlora' or 'full'"), ("training.learning_rate=fast", "valid number"),
    ("lora.target_modules=[]", "at least one"),
    ("training.warmup_steps=1000", "below max_steps"), ("quantization.quant_type=int3", "'nf4' or 'fp4'"),
    ("data.max_length=1", "greater than or equal to 8"), ("lora.r=[1", "must be YAML"),
    ("data.overlong=cut", "truncate_prompt"),
])
def test_a_wrong_setting_is_named_with_what_to_do(override, said):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[override], environment={})
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text, said", [
    ("model: m\nmodel: n\ndata: a", "stands twice at line 2"), ("- a\n- b", "must hold settings"),
    ("model: [", "must be YAML"),
    ("base: gone.yaml", "does not exist"), ("base: mine.yaml", "come back"), ("model: m", "data is missing"),
])
def test_a_broken_file_is_named_with_its_line(tmp_path, text, said):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "mine.yaml", environment={})
    assert said in str(caught.value)
