"""Who may use whom, and that importing the package is cheap."""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "peft", "datasets", "bitsandbytes", "matplotlib", "numpy", "pandas", "pydantic")


def run(*words: str | Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, text=True, **options)


def test_no_layer_imports_one_above_it():
    result = run(Path(sys.executable).with_name("lint-imports"), "--no-cache")
    assert result.returncode == 0, result.stdout + result.stderr


def test_importing_the_package_loads_no_heavy_library():
    code = f"import sys, finetune_lib, finetune_lib.core; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_every_top_level_name_can_be_imported():
    code = "import finetune_lib; [getattr(finetune_lib, name) for name in finetune_lib.__all__]; print('all')"
    result = run(sys.executable, "-c", code)
    assert result.stdout == "all\n", result.stderr


def test_an_unknown_top_level_name_is_an_attribute_error_that_lists_the_known():
    result = run(sys.executable, "-c", "import finetune_lib; finetune_lib.attach_laura")
    assert "AttributeError" in result.stderr and "attach_lora" in result.stderr
