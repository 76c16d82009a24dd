"""The doctor on a machine: each part is broken for real where that can be done, and named with what mends it."""
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from finetune_lib.pipeline.config import load_config
from finetune_lib.pipeline.doctor import (
    adapter_size,
    check_config,
    check_four_bits,
    check_hardware,
    check_packages,
    examine_machine,
)

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc: a place that even root cannot write to")


def bad(findings):
    return {finding.symptom: finding for finding in findings if finding.level != "ok"}


def test_the_libraries_of_this_environment_are_in_the_tested_range():
    assert bad(check_packages()) == {}
    assert check_four_bits().level == "ok"


def test_bitsandbytes_that_is_not_there_is_named_with_the_command_that_brings_it(monkeypatch):
    from importlib import metadata

    real = metadata.version

    def version(name):
        if name == "bitsandbytes":
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # what makes `import bitsandbytes` fail
    found = bad(examine_machine())
    assert found["bitsandbytes"].fix.startswith("pip install 'bitsandbytes") and ">=" in found["bitsandbytes"].fix
    assert "is not installed" in found["bitsandbytes"].evidence
    assert "quantization.backend=own" in found["4 bits"].fix and found["4 bits"].cause


def test_an_old_transformers_is_named_with_the_range_that_was_tested(tmp_path, monkeypatch):
    note = tmp_path / "transformers-4.40.0.dist-info"
    note.mkdir()
    (note / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.40.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = bad(check_packages())["transformers"]
    assert found.evidence == "4.40.0" and "tested with" in found.cause
    assert found.fix.startswith("pip install 'transformers")


@only_linux
def test_a_folder_that_cannot_be_written_to_is_named(monkeypatch):
    monkeypatch.chdir("/proc")
    found = bad(check_hardware())["folder"]
    assert found.level == "error" and "/proc cannot be written to" in found.evidence and "cd " in found.fix


@only_linux
def test_a_disk_without_room_is_named(monkeypatch):
    monkeypatch.chdir("/proc")  # a file system without a single free block
    found = bad(check_hardware())["disk"]
    assert found.level == "error" and found.evidence == "0.0 GiB free" and "rm -r runs/" in found.fix


@pytest.mark.parametrize("override", ["model.dtype=float16", "training.mixed_precision=fp16"])
def test_float16_on_a_processor_is_named_with_the_settings_that_mend_it(override):
    found = bad(check_config(load_config("tiny", [override, "training.use_cpu=true"], {}), "tiny"))["precision"]
    assert found.level == "error" and "--set model.dtype=float32" in found.fix
    assert bad(check_config(load_config("tiny", ["training.use_cpu=true"], {}), "tiny")) == {}


def test_a_training_that_cannot_fit_is_named_before_it_starts():
    huge = load_config("tiny", ["training.per_device_train_batch_size=4096", "data.max_length=100000",
                                "training.use_cpu=true"], {})
    assert "GiB needed" in bad(check_config(huge, "tiny"))["memory"].evidence


def test_an_adapter_has_r_times_in_plus_out_parameters():
    one, two = (adapter_size(choice="all-linear", rank=rank)["all"][1] for rank in (4, 8))
    assert two == 2 * one
