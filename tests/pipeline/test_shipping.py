"""`finetune export --format`: refused before the work where it cannot be, and made again when the model has changed."""
import shutil
from importlib.util import find_spec

import pytest

from finetune_lib.core import sha256
from finetune_lib.evaluation.export import write_manifest
from finetune_lib.pipeline.command import main
from finetune_lib.pipeline.shipping import is_current, ship


@pytest.mark.parametrize("options, words", [
    (["--format", "gguf-q8"], ["a format must be one of gguf-f16", "gguf-q8_0"]),
    (["--push-to-hub", "my model"], ["a model on the hub must be called NAME/MODEL", "got 'my model'"])])
def test_what_cannot_be_is_refused_before_anything_is_trained(options, words, settings, tmp_path, capsys):
    overrides = [word for one in settings() for word in ("--set", one)]
    assert main(["export", "tiny", *overrides, *options]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words) and not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("llama_cpp") is not None, reason="llama-cpp-python is installed here")
def test_a_runtime_that_is_not_installed_is_named_with_its_extra_before_anything_is_trained(settings, tmp_path, capsys):
    overrides = [word for one in settings() for word in ("--set", one)]
    assert main(["export", "tiny", *overrides, "--format", "gguf-q4_0"]) == 2
    assert "pip install 'finetune_lib[gguf]'" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.fixture
def shipped(finished, tmp_path):
    """A finished run's export, and a folder that says it was made from it."""
    shutil.copytree(finished.folder / "export", tmp_path / "export")
    made = tmp_path / "formats" / "gguf-f16"
    made.mkdir(parents=True)
    (made / "model.gguf").write_bytes(b"GGUF")
    source = tmp_path / "export" / "huggingface"
    write_manifest(made, "gguf-f16", export=sha256(source / "manifest.json"))
    return made, source


def test_a_format_is_current_until_the_export_or_a_byte_of_it_changes(shipped):
    made, source = shipped
    assert is_current(made, source)
    (made / "model.gguf").write_bytes(b"GGUf")
    assert not is_current(made, source)
    write_manifest(made, "gguf-f16", export=sha256(source / "manifest.json"))
    assert is_current(made, source)
    write_manifest(source, trained="again")
    assert not is_current(made, source)
    assert not is_current(made.parent / "gguf-q4_0", source)


def test_what_is_current_is_kept_and_said(shipped, tmp_path):
    assert list(ship(tmp_path, "gguf-f16")) == ["  nothing changed, kept", f"gguf-f16  {shipped[0]}"]
