import importlib
import sys

import pytest
from krea_data.tasks.picture import look


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("krea_data.sources.download", "urllib3", "sources"),
        ("krea_data.sources.urls", "pyarrow", "sources"),
        ("krea_data.sources.saved", "pyarrow", "sources"),
        ("krea_data.object_blobs", "boto3", "s3"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(monkeypatch, module, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ImportError, match=rf"install krea-data\[{extra}\]"):
        importlib.import_module(module)


def test_svg_without_its_renderer_is_no_broken_picture(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ImportError, match=r"install krea-data\[sources\]"):
        look(b"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 1 1'/>")
