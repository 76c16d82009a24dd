"""finetune_lib.core: errors, finding the data, seeds, files that are never half written, tokenizers."""
import json
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from finetune_lib import core

ERRORS = [core.FinetuneError, core.ConfigError, core.DataError, core.ResourceError, core.TrainingError,
          core.ExportError]
plain_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


def test_each_error_has_an_exit_code_of_its_own():
    assert [error.exit_code for error in ERRORS] == [1, 2, 3, 4, 5, 6]


def test_errors_are_caught_by_the_builtin_name_a_caller_expects():
    assert issubclass(core.ConfigError, ValueError) and issubclass(core.DataError, ValueError)
    for error in (core.ResourceError, core.TrainingError, core.ExportError):
        assert issubclass(error, RuntimeError) and issubclass(error, core.FinetuneError)
    assert issubclass(core.MissingExtraError, ImportError)


@pytest.mark.parametrize(("error", "right"), [
    (MemoryError(), True), (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
    (RuntimeError("can't start new thread"), True), (RuntimeError("unable to mmap: Cannot allocate memory"), True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False), (ValueError("row 3: 'out of memory'"), False)])
def test_memory_that_was_refused_is_known_by_its_words(error, right):
    assert core.is_out_of_memory(error) is right


def test_a_missing_extra_says_what_to_install():
    error = core.MissingExtraError("onnx export", "onnx")
    assert str(error) == "onnx export needs: pip install 'finetune_lib[onnx]'"
    assert error.exit_code == 2


def test_a_missing_extra_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(core.MissingExtraError("onnx export", "onnx")))
    assert (error.what, error.extra) == ("onnx export", "onnx")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder far from any data, and no FINETUNE_DATA."""
    monkeypatch.delenv("FINETUNE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_environment_names_the_data_folder_before_all_else(elsewhere, monkeypatch):
    for name in ("here/data/base", "named/base"):
        (elsewhere / name).mkdir(parents=True)
    monkeypatch.chdir(elsewhere / "here")
    monkeypatch.setenv("FINETUNE_DATA", str(elsewhere / "named"))
    assert core.data_folder() == (elsewhere / "named").resolve()
    assert core.base_model() == (elsewhere / "named/base").resolve()


def test_the_nearest_parent_with_a_base_is_the_data_folder(elsewhere, monkeypatch):
    for name in ("data/base", "inner/data/base", "inner/work/deep", "inner/work/data/other"):
        (elsewhere / name).mkdir(parents=True)
    monkeypatch.chdir(elsewhere / "inner/work/deep")
    assert core.data_folder() == elsewhere / "inner/data"


def test_elsewhere_the_checkout_of_the_package_is_used(elsewhere):
    assert core.data_folder() == Path(core.__file__).parents[1] / "data"


def test_without_any_data_the_error_says_what_to_do(elsewhere):
    package = elsewhere / "site-packages" / "finetune_lib"
    package.mkdir(parents=True)
    for name in ("__init__.py", "core.py"):  # as from a wheel: no checkout around it
        shutil.copy(Path(core.__file__).with_name(name), package)
    code = ("from finetune_lib import core\n"
            "try: core.data_folder()\n"
            "except core.ConfigError as error: print(core.__file__, error)")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=elsewhere,
                            env={"PYTHONPATH": str(package.parent)})
    assert result.stdout.startswith(str(package)), result.stderr
    assert "no data/base in" in result.stdout and "set FINETUNE_DATA" in result.stdout


def test_a_wrong_environment_variable_is_named_and_never_passed_over(elsewhere, monkeypatch):
    monkeypatch.setenv("FINETUNE_DATA", str(elsewhere / "nowhere"))
    with pytest.raises(core.ConfigError, match="FINETUNE_DATA must name a folder that holds base/, got '.*nowhere'"):
        core.data_folder()


def test_the_same_seed_draws_the_same_from_all_three_generators():
    import numpy as np

    def draws():
        core.seed_everything(2**32 + 5)  # NumPy alone takes no seed above 32 bits
        return random.random(), np.random.rand(), torch.rand(3).tolist()

    first = draws()
    assert draws() == first
    core.seed_everything(6)
    assert (random.random(), np.random.rand(), torch.rand(3).tolist()) != first


def test_the_best_device_can_hold_a_tensor():
    assert torch.ones(2, device=core.best_device()).sum().item() == 2


def test_a_near_name_is_suggested_before_all_are_listed():
    known = ["q_proj", "k_proj", "v_proj", "lm_head"]
    assert core.suggest("q_porj", known).startswith("did you mean 'q_proj'")
    assert core.suggest("zzz", known) == "known: q_proj, k_proj, v_proj, lm_head"
    assert core.suggest("zzz", []) == "none is known here"
    assert core.suggest("zz", [str(number) for number in range(30)]).endswith("and 18 more")


@settings(deadline=None, max_examples=50)
@given(value=plain_json)
def test_json_comes_back_as_it_was_written(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "deep/value.json"
    assert core.read_json(core.write_json(path, value)) == value


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path):
    path = core.write_json(tmp_path / "report.json", {"loss": 1.0})
    for wrong in ({"loss": float("nan")}, {"loss": object()}):
        with pytest.raises((TypeError, ValueError)):
            core.write_json(path, wrong)
    assert core.read_json(path) == {"loss": 1.0}
    assert [item.name for item in tmp_path.iterdir()] == ["report.json"]


def test_json_files_do_not_depend_on_the_order_of_keys(tmp_path):
    one = core.write_json(tmp_path / "one.json", {"b": 1, "a": 2})
    two = core.write_json(tmp_path / "two.json", {"a": 2, "b": 1})
    assert core.sha256(one) == core.sha256(two)


def test_a_written_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").touch()
    written = core.write_json(tmp_path / "report.json", 1)
    assert written.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_broken_json_is_named_with_its_line(tmp_path):
    (tmp_path / "report.json").write_text('{"a": 1,\n "b": }', encoding="utf-8")
    with pytest.raises(core.DataError, match="report.json must be JSON, got .* at line 2, column 7"):
        core.read_json(tmp_path / "report.json")


def test_sha256_is_that_of_the_known_vector(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert core.sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_machine_is_described_in_values_that_json_holds():
    described = core.machine()
    assert described["cores"] >= 1 and described["memory_gb"] >= 1
    assert json.loads(json.dumps(described)) == described


def small_tokenizer(folder: Path, words: list[str], **special) -> Path:
    """A word tokenizer stored in a folder, with the special tokens named."""
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("words", "pad"), [
    (["<unk>", "</s>", "<pad>", "a"], "<pad>"),
    (["<unk>", "</s>", "[PAD]", "a"], "[PAD]"),
    (["<unk>", "</s>", "a"], "<unk>"),
    (["a", "</s>", "b"], "</s>"),
])
def test_a_missing_pad_token_is_taken_from_the_vocabulary_which_keeps_its_size(tmp_path, words, pad):
    tokenizer = core.load_tokenizer(small_tokenizer(tmp_path / "model", words, eos_token="</s>"))
    assert tokenizer.pad_token == pad and len(tokenizer) == len(words)


def test_a_pad_token_that_is_there_is_kept(tmp_path):
    folder = small_tokenizer(tmp_path / "model", ["<unk>", "</s>", "<pad>", "fill"], eos_token="</s>", pad_token="fill")
    assert core.load_tokenizer(folder).pad_token == "fill"


def test_a_tokenizer_without_pad_and_eos_is_refused(tmp_path):
    with pytest.raises(core.ConfigError, match="neither a pad token nor an end of sequence"):
        core.load_tokenizer(small_tokenizer(tmp_path / "model", ["a", "b"]))


def test_a_folder_that_does_not_exist_is_a_clear_error(tmp_path):
    with pytest.raises(core.ConfigError, match="does not exist: '.*nowhere'"):
        core.load_tokenizer(tmp_path / "nowhere")


def test_a_folder_without_a_tokenizer_says_what_it_holds(tmp_path):
    (tmp_path / "weights.bin").touch()
    with pytest.raises(core.ConfigError, match=r"must hold tokenizer.json, got .*weights.bin"):
        core.load_tokenizer(tmp_path)


def test_an_unknown_hub_name_is_a_clear_error():
    code = ("from finetune_lib.core import ConfigError, load_tokenizer\n"
            "try: load_tokenizer('nobody/no-such-model')\n"
            "except ConfigError as error: print(error)")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                            env={"HF_HUB_OFFLINE": "1", "PATH": ""})
    assert "no tokenizer could be loaded for 'nobody/no-such-model'" in result.stdout, result.stderr
