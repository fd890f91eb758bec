"""Pictures for the tests of the tasks, drawn by Pillow."""

import io
from collections.abc import Callable

import pytest
from krea_data.rows import Row
from krea_data.testing import MemoryBlobs
from PIL import Image


@pytest.fixture
def blobs() -> MemoryBlobs:
    return MemoryBlobs()


@pytest.fixture
def stored(blobs: MemoryBlobs) -> Callable[..., Row]:
    """A row of a picture or of bytes."""

    def store(picture: Image.Image | bytes, row_id: str = "test/1", form: str = "PNG", **meta: object) -> Row:
        if not isinstance(picture, bytes):
            file = io.BytesIO()
            picture.save(file, form)
            picture = file.getvalue()
        return Row(id=row_id, blob=blobs.put(picture), meta=meta)

    return store
