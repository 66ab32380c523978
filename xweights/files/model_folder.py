"""Folders as model hubs have them, ``config.json`` beside ``model.safetensors``: written whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xweights.errors import FileAccessError, Problems
from xweights.files.io.atomic import replace_file, sync_folder
from xweights.files.io.open_file import inaccessible
from xweights.files.io.transaction import transaction
from xweights.files.save import save

SETTINGS, WEIGHTS = "config.json", "model.safetensors"


class ModelFolder:
    """The place of a folder that is going to be written; raise FileAccessError if it can't be."""

    def __init__(self, folder: str | os.PathLike[str], *, overwrite: bool) -> None:
        self.path = Path(folder).absolute()
        self._overwrite = overwrite
        self._check()

    def write(self, settings: str, target: Any, prove: Callable[[str], None]) -> None:
        """Write both files; ``prove`` gets a folder that has them, and if it raises nothing is left behind."""
        path = self.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
                made = Path(temporary) / "folder"
                made.mkdir()
                with replace_file(str(made / SETTINGS)) as file:
                    file.write(settings.encode())
                save(target, made / WEIGHTS, metadata={"format": "pt"})
                prove(str(made))
                self._check()
                self._put_in_place(made)
        except OSError as cause:
            if isinstance(cause, FileAccessError):
                raise
            raise inaccessible(str(path), cause, "write it") from cause

    def _check(self) -> None:
        path = self.path
        problems = Problems("this folder can't be written, and nothing was changed")
        if path.exists() and not path.is_dir():
            problems.add(FileAccessError, f"{path} is a file", fix="name a folder")
        for name in () if self._overwrite or problems else (SETTINGS, WEIGHTS):
            if (path / name).exists():
                problems.add(FileAccessError, f"{path / name} exists", fix="overwrite=True, or another folder")
        problems.check()

    def _put_in_place(self, made: Path) -> None:
        """Give the new files their names: the folder's by one rename, or both files' in a folder that exists."""
        path = self.path
        if not path.exists():
            made.replace(path)
            sync_folder(str(path))
            return
        with transaction(str(path.resolve() / SETTINGS)) as changes:
            for name in (SETTINGS, WEIGHTS):
                with changes.replace(str(path.resolve() / name)) as file, (made / name).open("rb") as source:
                    shutil.copyfileobj(source, file.file, 1 << 20)
