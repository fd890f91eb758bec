"""Where pictures come from: folders, WebDataset tars, lists of URLs, saved Hugging Face datasets; `ingest` takes them.

The sources that need packages of their own are imported from their modules: `urls.UrlSource`, `saved.SavedSource`.
"""

from krea_data.sources.entries import Content, Entry, Source, Unavailable, lost
from krea_data.sources.folder import FolderSource
from krea_data.sources.ingest import Fillable, Ingested, ingest, row_id
from krea_data.sources.licences import spdx
from krea_data.sources.webdataset import WebDatasetSource

__all__ = [
    "Content",
    "Entry",
    "Fillable",
    "FolderSource",
    "Ingested",
    "Source",
    "Unavailable",
    "WebDatasetSource",
    "ingest",
    "lost",
    "row_id",
    "spdx",
]
