import subprocess
import sys
from types import ModuleType

import krea_expander


def test_all_equals_the_public_names() -> None:
    public = {
        name for name, value in vars(krea_expander).items() if name[0] != "_" and not isinstance(value, ModuleType)
    }
    assert public == set(krea_expander.__all__)


def test_the_core_needs_nothing_but_the_standard_library() -> None:
    code = (
        "import sys, krea_expander\n"
        "from krea_expander.testing import ScriptedModel\n"
        "import krea_expander.train\n"
        "krea_expander.expand('red apple', ScriptedModel(['a red apple, dew']))\n"
        "krea_expander.expand_by_rules('red apple')\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "transformers", "httpx", "numpy", "krea_rl"}


def test_missing_extras_are_named() -> None:
    for module, package in (("http", "httpx"), ("local", "torch")):
        code = f"import sys; sys.modules['{package}'] = None\nimport krea_expander.{module}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"install krea-expander[{module}]" in done.stderr
