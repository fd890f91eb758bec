"""What a package lists in `__all__` is what one sees of it, and the other way round."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from tools.workspace import members

MODULES = [path.parent.name for member in members() for path in (member.path / "src").glob("*/__init__.py")]


def visible(module: ModuleType) -> set[str]:
    """Public names of a module, without the modules inside it."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not (isinstance(value, ModuleType) and value.__name__.startswith(module.__name__))
    }


def test_every_member_is_looked_at() -> None:
    assert len(MODULES) == len(members())


@pytest.mark.parametrize("name", MODULES)
def test_all_equals_the_public_names(name: str) -> None:
    module = importlib.import_module(name)
    listed = [public for public in module.__all__ if public != "__version__"]
    assert set(listed) == visible(module)
    assert module.__doc__ is not None
    assert Path(str(module.__file__)).with_name("py.typed").exists()
