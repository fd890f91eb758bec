"""Models by their id on the Hugging Face hub, such as `krea/Krea-2-Turbo`: fetched once, then read from the cache."""

import re
from pathlib import Path

try:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
except ImportError as error:
    raise ImportError(
        'fetching a model from the hub needs huggingface_hub; install "krea-model[text,vae]", or give a folder'
    ) from error

__all__ = ["PATTERNS", "fetch"]

PATTERNS = (
    *("model_index.json", "*/*.json", "*/*.txt", "*/*.safetensors"),  # not the second copy of the weights at the root
    *("manifest.json", "model.safetensors", "autoencoder.safetensors", "text.safetensors"),  # a bundle
)
"""What is fetched: weights as safetensors, sizes and vocabularies as text; never pickles, never code."""

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def fetch(name: str, *, revision: str | None = None, cache: Path | None = None, offline: bool = False) -> Path:
    """The folder of a repository in the local cache, downloaded if it is not there or has changed.

    revision: branch, tag or commit; cache: None is the hub's own place; offline: never ask the network. ValueError for
    a name or revision that does not exist or needs an accepted licence, OSError without network and cache.
    """
    if not ID.fullmatch(name):
        raise ValueError(f"{name!r} is no id of the hub; it has the form owner/name")
    try:
        found = snapshot_download(
            name, revision=revision, cache_dir=cache, local_files_only=offline, allow_patterns=list(PATTERNS)
        )
    except GatedRepoError as error:
        raise ValueError(
            f"{name} asks for its licence to be accepted: do so on its page, then `hf auth login` on this machine"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"there is no folder {name} here, and the hub knows no such model{f' at {revision}' if revision else ''}"
        ) from error
    except OSError as error:
        raise OSError(
            f"{name} is neither a folder here nor in the hub's cache, and the hub cannot be reached "
            f"({type(error).__name__}); connect once, or give the path of a folder"
        ) from error
    assert isinstance(found, str)
    return Path(found)
