"""A prepared TFDS directory, which tests share: TFDS registers a dataset's name once in a process."""

from __future__ import annotations

import numpy as np
import pytest

TFDS_ROWS = {"train": 30, "test": 5}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A dataset as TFDS writes it, once in ArrayRecord and once in Parquet."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features

    class ReviewsForTest(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            spec = {
                "text": features.Text(),
                "label": features.ClassLabel(names=["neg", "pos"]),
                "bare": features.ClassLabel(num_classes=3),
                "stars": features.Scalar(np.float32),
                "tags": features.Sequence(features.ClassLabel(names=["a", "b"])),
                "words": features.Sequence(features.Text()),
                "spans": features.Sequence({"kind": features.ClassLabel(names=["x", "y"]), "at": np.int32}),
            }
            return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(spec))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in TFDS_ROWS}

        def _generate_examples(self, split="train"):
            for i in range(TFDS_ROWS[split]):
                label = i % 2 if split == "train" else -1
                lists = {"tags": ["b", "a"], "words": ["x"], "spans": [{"kind": "y", "at": i}]}
                yield i, {"text": f"é{i}", "label": label, "bare": 2, "stars": i / 2} | lists

    folder = tmp_path_factory.mktemp("tfds")
    for file_format in ("array_record", "parquet"):
        ReviewsForTest(data_dir=folder / file_format, file_format=file_format).download_and_prepare()
    return folder
