"""Writes recordings with TFDS. It takes long to import: only what writes imports this module."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cvae_jax.data.contents import Contents


def write(contents: Contents, folder: str | os.PathLike) -> pathlib.Path:
    """Write a TFDS data set below `folder`; return the folder in it that holds the files.

    Raises what `contents.records` raises, OSError or RuntimeError where the files cannot be written.
    """
    builder = ContentsBuilder(contents, os.fspath(folder))
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints messages of its own
            builder.download_and_prepare(download_config=config)
    finally:
        tfds.enable_progress_bar()
    return pathlib.Path(builder.data_dir)


class LocalInfo(tfds.core.DatasetInfo):
    """Dataset information that is never looked up in a bucket."""

    def initialize_from_bucket(self) -> None:
        """Do nothing."""


# TFDS does not show its bases to a type checker.
class ContentsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The TFDS builder of any Contents."""

    VERSION = tfds.core.Version("1.0.0")
    # TFDS would look beside the code for checksums of downloads, of which there are none, and needs
    # a package for it that it does not install.
    code_path = None

    def __init__(self, contents: Contents, folder: str) -> None:
        self.contents = contents
        self.name = contents.name  # TFDS would take it from the class
        super().__init__(file_format="array_record", data_dir=folder)

    def _info(self) -> tfds.core.DatasetInfo:
        video = _tensor(None, *self.contents.frame_size, 3, dtype=np.uint8)
        features = {
            "scene": tfds.features.Text(),
            "name": tfds.features.Text(),
            "start": np.int64,
            "frames": video,
        }
        if self.contents.label_size is None:
            features["labels"] = video
        elif self.contents.label_size:  # TFDS cannot read back an array without entries
            features["labels"] = _tensor(None, self.contents.label_size, dtype=np.float32)
        return LocalInfo(
            builder=self,
            description=self.contents.description,
            license=self.contents.license,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in self.contents.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        fields = list(self.info.features)
        for index, piece in enumerate(self.contents.records(split)):
            yield index, {field: getattr(piece, field) for field in fields}


def _tensor(*shape: int | None, dtype: type) -> tfds.features.Tensor:
    # Without an encoding a uint8 tensor is written as a list of 64-bit integers, which takes a hundred
    # times longer.
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)
