"""The config schema of data: where rows and documents come from, cleaning, and how they become batches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jaxlm.data.augmentation.config import AugmentConfig
from jaxlm.local_paths import LocalPath
from jaxlm.section import Section


class SourceConfig(Section):
    """Where one split comes from: exactly one of `path`, `rows`, `tfds`, `builtin`, `mixture`."""

    path: LocalPath | tuple[LocalPath, ...] | dict[str, LocalPath | tuple[LocalPath, ...]] | None = None
    """A file, relative to where the command runs, a glob pattern, or a list of them, read one after another. Of
    parallel texts, a file to a column, `{en: train.en, de: train.de}`, whose lines belong together; or as many to each
    column, the first of one belonging to the first of another."""
    rows: tuple[dict[str, Any], ...] | None = None
    """The rows themselves, each a mapping of column names to values."""
    tfds: str | None = None
    """A TensorFlow Datasets name such as `glue/sst2`, prepared as ArrayRecord."""
    builtin: Literal["stdlib_docstrings", "installed_docstrings"] | None = None
    """A data set made on the machine: docstrings of the Python standard library, labelled by topic; or, for
    pretraining, those of it and of all installed packages, less what stands in the first one's validation and test."""
    fraction: float | None = Field(default=None, gt=0, lt=1)
    """Validation and test: this share of the rows of `data.train`, which are then not trained on. A hash of the texts
    chooses them; labels have their share each, and equal or nearly equal texts stay on one side."""
    seed: int = Field(default=0, ge=0)
    """Decides which rows a `fraction` holds out."""
    mixture: tuple[SourceConfig, ...] | None = None
    """Pretraining: several sources, drawn from in proportion to their `weight`."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the rows that come from this source of a mixture, relative to the others."""
    split: str | None = None
    """TFDS or built-in split; absent: the name of the key it stands under."""
    data_dir: LocalPath | None = None
    """TFDS directory; absent: TFDS's own default."""
    format: Literal["auto", "jsonl", "csv", "tsv", "parquet", "conll", "squad", "text"] = "auto"
    """Format of the file at `path`; `auto`: by its suffix (`.txt` is plain text in pretraining), and of `.json` by its
    content: SQuAD's form, a list of objects, or an object to a line."""
    documents: Literal["file", "line", "blank_line"] = "file"
    """Plain text: what one document is, the whole file, each line, or what stands between blank lines."""
    columns: tuple[str, ...] | None = None
    """Column names of a csv or tsv file that has no header line; absent: the first line is the header. Of a conll
    file, the names of its columns; absent: tokens, tags."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Column mapping, file's name -> name used by the task."""
    separator: str | None = Field(default=None, min_length=1, max_length=1)
    """What stands between the fields of a csv, tsv or conll file; absent: a comma in csv, a tab in tsv, white space in
    conll."""
    quoting: bool | Literal["auto"] = "auto"
    """csv/tsv quotes; `auto`: on for csv, off for tsv."""
    encoding: str = "utf-8"
    """Text encoding of the file, by the name Python knows it under."""
    limit: int | None = Field(default=None, gt=0)
    """Only the first rows."""

    @property
    def first_path(self) -> str | None:
        """The file or pattern at `path`, of several the first; None: none, or a file to a column."""
        return self.path[0] if isinstance(self.path, tuple) else self.path if isinstance(self.path, str) else None

    @model_validator(mode="after")
    def _one_source(self) -> SourceConfig:
        kinds = ("path", "rows", "tfds", "builtin", "fraction", "mixture")
        given = [k for k in kinds if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of {', '.join(kinds)}; found {', '.join(given) or 'none'}")
        if self.fraction is None and self.seed:
            raise ValueError("seed: only beside fraction, whose rows it decides; leave it out")
        if self.fraction is not None:
            for name, info in type(self).model_fields.items():
                default = info.get_default(call_default_factory=True)
                if name not in ("fraction", "seed") and getattr(self, name) != default:
                    raise ValueError(f"{name}: not beside fraction, whose rows are read as data.train says")
        if self.path == {}:
            raise ValueError("path: expected a file to each column, found none")
        if self.path == ():
            raise ValueError("path: expected at least one file, found an empty list")
        if self.mixture is not None and any(part.mixture is not None for part in self.mixture):
            raise ValueError("expected sources in a mixture, found another mixture")
        if self.mixture is not None and any(part.fraction is not None for part in self.mixture):
            raise ValueError("mixture: expected sources of their own, found a fraction")
        return self


class CleanConfig(Section):
    """Text preprocessing; each action is counted in the log."""

    unicode: Literal["none", "NFC", "NFKC"] = "none"
    """Unicode normal form."""
    control_characters: bool = False
    """Remove control and zero-width characters (tab and line feed stay)."""
    whitespace: bool = False
    """Fold runs of white space into one space and strip the ends."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels to be replaced: as a row has it -> as it is meant, for instance {Spam: spam}."""
    deduplicate: bool = False
    """Drop training rows whose texts occurred earlier in the training rows."""
    leaks: Literal["ignore", "warn", "drop"] = "warn"
    """Training rows whose texts stand in validation or test."""


class FoldConfig(Section):
    """One run of a cross-validation: a fold of the training rows becomes the validation rows."""

    number: int = Field(ge=0)
    """Fold that is held out, from 0."""
    folds: int = Field(ge=2)
    """How many there are."""
    seed: int = Field(default=0, ge=0)
    """Decides which texts share a fold."""

    @model_validator(mode="after")
    def _one_of_them(self) -> FoldConfig:
        if self.number >= self.folds:
            raise ValueError(f"expected number below folds ({self.folds}), found {self.number}")
        return self


class TemperatureConfig(Section):
    """Sampling by temperature."""

    temperature: float = Field(ge=1)
    """T: a class of n rows is drawn with probability proportional to n^(1/T); 1 is natural, 2 is sqrt."""


Sampling = Literal["natural", "balanced", "sqrt", "under"] | TemperatureConfig


class DataConfig(Section):
    """The rows, and how they become batches."""

    train: SourceConfig | None = None
    """Training rows."""
    validation: SourceConfig | None = None
    """Rows of the evaluations during training, which choose the best checkpoint."""
    test: SourceConfig | None = None
    """Rows that the best checkpoint is scored on at the end."""
    corpus: SourceConfig | None = None
    """Sentence embeddings: further texts that the positives of validation and test are searched among, in the column of
    the positives, or `text`."""
    fold: FoldConfig | None = None
    """Hold out a fold of the training rows for validation; `train.folds` sets it, one fold to a run."""
    max_length: int = Field(default=128, gt=0)
    """Longest example in tokens, special tokens included; in pretraining, the length of every row."""
    max_target_length: int | None = Field(default=None, gt=0)
    """Tasks that write: longest target in tokens, special tokens included; absent: as `max_length`."""
    concat_documents: bool = False
    """Pretraining: cut rows from the documents laid end to end, attention crossing from one into the next; false:
    documents stay whole where they fit a row, several to a row, kept apart by segment masks."""
    token_cache: LocalPath | None = None
    """Folder of the tokenized corpora, and of the tokens of 50,000 labelled rows and more; absent: `.tokens` in
    `logging.directory`."""
    split_special_tokens: bool | None = None
    """Whether a special token that a text spells (`[MASK]`, `</s>`) is split like other characters; false: it is that
    token, as in Transformers; absent: as tokenizer_config.json says, else false."""
    long_text: Literal["truncate", "window"] = "truncate"
    """What becomes of a longer text: cut at the end, or read in overlapping windows (`task.pool_windows`).
    Question answering always reads windows."""
    stride: int = Field(default=32, ge=0)
    """Tokens shared by neighbouring windows."""
    packing: bool = True
    """Several examples to a row, kept apart by segment masks; false: one to a row, padded."""
    batch_order: Literal["random", "balanced"] = "random"
    """Order of the examples of an epoch: drawn at random; or drawn, and then dealt to the batches so that each holds
    nearly the same number of tokens: less padding and fewer batch shapes to compile. Packed batches of
    `train.batch_size` only."""
    sampling: Sampling = "natural"
    """Classification: how many rows of each label an epoch holds. natural: each row once; balanced: as many of each
    label as of the most frequent one, rows of the others repeated; sqrt, {temperature: T}: in between; under: as many
    of each as of the rarest, drawn anew in every epoch."""
    augment: AugmentConfig | None = None
    """Changed copies of the training rows; absent: the rows as they are."""
    keep_labels: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)
    """Training rows: of these labels only a share is kept, chosen by a hash of the texts, to study skewed data:
    {spam: 0.1}."""
    row_length: int | None = Field(default=None, gt=0)
    """Packed row length; absent: the multiple of 8, from the longest example to `max_length`, that wastes least."""
    max_shapes: int = Field(default=4, gt=0)
    """Most distinct batch shapes, hence compilations, of the training loader."""
    eval_rows: int | None = Field(default=None, gt=0)
    """Rows of an evaluation batch; absent: as many as give about 4,096 tokens."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A row that cannot be used stops the run, or is skipped and counted."""
    clean: CleanConfig = CleanConfig()
    """Text preprocessing."""

    @model_validator(mode="after")
    def _one_validation(self) -> DataConfig:
        if self.fold is not None and self.validation is not None:
            raise ValueError(
                "expected validation or fold, not both: the fold that is held out is the validation split; set "
                "data.validation=null"
            )
        return self

    @property
    def shares(self) -> dict[str, SourceConfig]:
        """The splits that are fractions of the training rows, and their sources."""
        named = {"validation": self.validation, "test": self.test}
        return {split: source for split, source in named.items() if source is not None and source.fraction is not None}

    @model_validator(mode="after")
    def _shares_of_rows(self) -> DataConfig:
        for split in ("train", "corpus"):
            source: SourceConfig | None = getattr(self, split)
            if source is not None and source.fraction is not None:
                raise ValueError(
                    f"{split}.fraction: only of validation and test, which it splits off the training rows"
                )
        if self.shares and self.train is None:
            raise ValueError(f"{next(iter(self.shares))}.fraction: expected train, whose rows it is a share of")
        if sum(source.fraction or 0.0 for source in self.shares.values()) >= 1:
            raise ValueError(
                "validation.fraction, test.fraction: together they leave no row to train on; expected less"
            )
        return self

    @model_validator(mode="after")
    def _windows_advance(self) -> DataConfig:
        if self.long_text == "window" and self.stride >= self.max_length:
            raise ValueError(f"expected stride below max_length ({self.max_length}), found {self.stride}")
        return self
