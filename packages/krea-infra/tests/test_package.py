import subprocess
import sys
from types import ModuleType

import krea_infra


def test_all_equals_the_public_names() -> None:
    public = {name for name, value in vars(krea_infra).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert public == set(krea_infra.__all__)


def test_importing_needs_nothing_but_the_standard_library() -> None:
    code = "import sys, krea_infra; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split()) - {"krea_infra"}
    assert not loaded & {"torch", "kubernetes", "numpy", "urllib3"}


def test_a_missing_client_names_the_extra() -> None:
    code = "import sys; sys.modules['kubernetes'] = None\nimport krea_infra.kubernetes"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "install krea-infra[kubernetes]" in done.stderr
