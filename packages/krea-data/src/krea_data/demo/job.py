"""One process's share of the drawing, run as `python -m krea_data.demo.job JOBS BLOBS SIDE_PX`."""

import json
import sys
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from krea_data.blobs import FolderBlobs
from krea_data.demo.render import picture

__all__ = ["work"]


def work(jobs: Path, folder: Path, side_px: int) -> None:
    """Draw every job (a JSON line each) and print a JSON line per picture: its id and its blob or what failed."""
    blobs = FolderBlobs(folder)
    with jobs.open(encoding="utf-8") as lines:
        for line in lines:
            job = json.loads(line)
            path = Path(job["path"]) if job["path"] else None
            answer = {"id": job["id"]}
            try:
                answer["blob"] = blobs.put(picture(side_px, job["extent"], job["svg"], path))
            except (ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
                answer["failed"] = f"{type(error).__name__}: {error}"[:300]
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
