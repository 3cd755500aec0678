"""`Task`: one kind of learning, from data to losses, predictions and scores; `RowTask` and `CorpusTask`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from jaxlm.data.augmentation.copies import add_copies, cut_tokens, edit_texts
from jaxlm.data.augmentation.editor import Editor
from jaxlm.data.config import DataConfig
from jaxlm.data.corpus.build import Wrap
from jaxlm.data.corpus.dataset import CorpusDataset, CorpusSources, EmptyDataset
from jaxlm.data.corpus.row_plan import Cost, Segment
from jaxlm.data.dataset import Dataset
from jaxlm.data.examples.dataset import RowDataset
from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.examples.tables import ColumnRoles, TableSources, open_tables
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.fields import Batch, Field
from jaxlm.report.sections import ReportSection
from jaxlm.tasks.records import Answer, Context, Generation, Metric, Outputs, Request, Sources, TaskConfig
from jaxlm.tokenizer.tokenizer import Tokenizer


class Task(ABC):
    """One kind of learning, with the labels and settings of one run.

    The methods stand in the order of the data's way: sources -> datasets of examples -> packed batches -> `loss` and
    `measure` (on the device) -> `decode` (one example) -> `answer` (one row) -> `scores` and `report` (one split). A
    task knows no model, mesh, optimizer or directory. To add one: a file with a subclass and its config section, and a
    line in `TASKS`.
    """

    Config: ClassVar[type[TaskConfig]]
    """The section `task` of the config; the default of its `kind` is the key in `TASKS`."""
    reads: ClassVar[Literal["rows", "corpus"]]
    """What it learns from: labelled rows (`jaxlm finetune`) or documents (`jaxlm pretrain`)."""
    unused_data_keys: ClassVar[tuple[str, ...]]
    """Keys of the section `data` that mean nothing to it."""
    head: ClassVar[str]
    """Kind of the model's head, a key of `Family.heads`; `head_of` may choose another."""
    predicts: ClassVar[bool] = True
    """Whether a trained model answers rows by itself."""
    vectors: ClassVar[bool] = False
    """Whether its predictions are vectors, which have files of their own."""

    @classmethod
    def head_of(cls, heads: Collection[str]) -> str:
        """Returns the kind of head that it takes of those that a family has."""
        return cls.head

    @property
    def fields(self) -> tuple[Field, ...]:
        """What batches hold in addition to the tokens, segment ids and positions of their streams."""
        return ()

    @property
    def num_outputs(self) -> int:
        """Outputs of the head; 0: the head's kind decides."""
        return 0

    @property
    def distribution(self) -> Literal["softmax", "sigmoid"] | None:
        """What its outputs [..., C] at the places of `weights` are the logits of, for `train.r_drop`; None: nothing."""
        return None

    @property
    def generation(self) -> Generation | None:
        """How answers are written token by token; None: they are read off one forward pass."""
        return None

    @property
    def written_rows(self) -> int | None:
        """How many rows of a split are written at an evaluation during training; None: all of them."""
        return None

    def longest_row(self, data: DataConfig) -> tuple[str, int]:
        """Returns the most positions that one of its examples takes, and the key of `data` that says so."""
        return "data.max_length", data.max_length

    @classmethod
    @abstractmethod
    def open(cls, config: Any, request: Request) -> Sources:
        """Opens the data that a config names.

        Args:
          config: a `cls.Config`.
        Raises:
          UserError: data that is missing or cannot be read, or a key of `data` that the task does not use.
        """

    @classmethod
    @abstractmethod
    def create(cls, config: Any, context: Context, sources: Sources | None) -> Task:
        """Settles labels and settings.

        Args:
          config: a `cls.Config`.
          sources: what `open` returned; None where a trained model is applied, or only shapes are asked for.
        Raises:
          UserError: config, data and checkpoint do not fit together.
        """

    @abstractmethod
    def datasets(self, sources: Any) -> dict[str, Dataset]:
        """Tokenizes the splits; by name."""

    @classmethod
    def text_columns(cls, config: Any) -> tuple[str, ...]:
        """The columns of rows that hold texts: cleaned, and read to train a tokenizer."""
        raise _answers_no_rows(cls)

    @classmethod
    def input_columns(cls, config: Any, columns: Sequence[str]) -> tuple[str, ...]:
        """The columns that rows to be answered must have, of rows that have `columns`."""
        return cls.text_columns(config)

    @classmethod
    def label_columns(cls, config: Any) -> tuple[str, ...]:
        """The columns of rows that hold names of labels: what `data.clean.labels` is applied to."""
        return ()

    @classmethod
    def group_columns(cls, config: Any) -> tuple[str, ...]:
        """The columns whose texts keep rows together, on one side, where validation rows are split off."""
        return cls.text_columns(config)

    def examples(self, table: Table, *, labelled: bool, key: str) -> Examples:
        """Tokenizes rows: a split, or the input of `jaxlm predict`.

        Args:
          labelled: read labels; otherwise examples carry any label of the right shape.
          key: config key of the table, for errors.
        Raises:
          UserError: a missing column, or a bad row (unless `data.on_bad_row` is skip).
        """
        raise _answers_no_rows(type(self))

    def dataset(self, table: Table, *, labelled: bool, key: str) -> RowDataset:
        """One table as a dataset; arguments as in `examples`."""
        return RowDataset(self.examples(table, labelled=labelled, key=key), self.fields)

    @property
    @abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """Every score that it can give; the first chooses the best checkpoint unless `train.metric` names another."""

    # On the device.

    @abstractmethod
    def loss(self, outputs: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Returns (sum of weighted losses, sum of weights); divided once, after all micro-batches and devices."""

    def measure(self, outputs: Any, batch: Mapping[str, jax.Array]) -> Outputs:
        """Returns what evaluation keeps of a batch: small enough to leave the device (an argmax, not the logits)."""
        total, weight = self.loss(outputs, batch)
        return Outputs({"loss": total, "weight": weight})

    # On the host.

    def decode(self, example: Example, outputs: Mapping[str, Any]) -> Any:
        """Returns what is kept of one example until all examples of its row are there.

        Args:
          outputs: its entries of `Outputs.slots`, and of `Outputs.tokens` those of its tokens, [T, ...]; with
            `generation`, `generated`, the ids of the best text that was written, int32 [T], and of several texts
            `hypotheses`, all of them, best first: (ids, score or None) each.
        """
        return dict(outputs)

    def answer(self, row: Mapping[str, Any], parts: Sequence[tuple[Example, Any]]) -> Any:
        """Returns what is kept of a row, from its examples in order (windows, choices, texts) and what `decode` kept of
        each; scores and predictions are made of it."""
        [(_, part)] = parts
        return part

    def prediction(self, row: Mapping[str, Any], kept: Any) -> dict[str, Any]:
        """Returns the prediction of a row, as predictions/<split>.jsonl has it."""
        raise _answers_no_rows(type(self))

    def scores(self, sums: Mapping[str, float], answers: Sequence[Answer], dataset: Dataset) -> dict[str, float]:
        """Returns the scores of a split, those of `metrics`; one that is undefined is left out."""
        return {"loss": sums["loss"] / max(sums["weight"], 1e-9)}

    def signatures(self, answers: Sequence[Answer]) -> dict[str, str]:
        """Returns what scores are computed with where a package's version and settings matter, by name, for
        summary.json."""
        return {}

    def tune(self, answers: Sequence[Answer]) -> Task:
        """Settles what is chosen after training on the validation split (a threshold, a temperature); it is kept in
        `hf_config`, and read back by `create`."""
        return self

    # For people and other programs.

    def describe(self) -> dict[str, Any]:
        """Returns its entries of summary.json: `problem` in a word, `label_names`, and `task`, its settings."""
        kind = self.Config.model_fields["kind"].default
        return {"problem": kind, "label_names": [], "task": {"kind": kind}}

    @abstractmethod
    def show(self, batch: Batch) -> list[str]:
        """Returns lines for `--dry-run`: the first row, decoded, and what is asked of it."""

    def remarks(self, metric: str, answers: Sequence[Answer]) -> list[str]:
        """Returns what a person should know who reads only the metric that chose the checkpoint; for log and report.

        Args:
          answers: those of `report`.
        """
        return []

    def report(self, answers: Sequence[Answer]) -> list[ReportSection]:
        """Returns its sections of report.html, from the answers on the test (else validation) split."""
        return []

    def samples(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """Returns some of the texts that it wrote, {"prompt", "text", "reference"} each, for the log and the report."""
        return []

    def baselines(self, train: Dataset, test: Dataset) -> dict[str, dict[str, float]]:
        """Returns the scores of simple systems on the same rows; {}: none."""
        return {}

    @classmethod
    def model_overrides(cls, config: Any) -> dict[str, Any]:
        """Fields of the model's config that the section `task` decides."""
        return {}

    def hf_config(self) -> dict[str, Any]:
        """Returns its entries of the exported config.json: id2label, problem_type."""
        return {}

    def hf_tokenizer(self, tokenizer: Tokenizer) -> Tokenizer:
        """Returns the tokenizer that is exported, which puts around texts what the task puts there."""
        return tokenizer

    def hf_files(self, width: int) -> dict[str, str]:
        """Returns further files of the export by name, as sentence-transformers' modules.json.

        Args:
          width: of the trunk's states.
        """
        return {}

    @classmethod
    def check_data_keys(cls, data: DataConfig) -> None:
        """Refuses keys of `data` that mean nothing to the task.

        Raises:
          UserError: names the key.
        """
        kind = cls.Config.model_fields["kind"].default
        for key in cls.unused_data_keys:
            if getattr(data, key) != type(data).model_fields[key].get_default(call_default_factory=True):
                if key == "max_target_length":
                    raise UserError(f"data.{key}: task.kind={kind} writes no texts and does not use it; leave it out")
                if key == "sampling" and cls.reads == "rows":
                    raise UserError(
                        f"data.sampling: rows of task.kind={kind} have no one class to sample by; leave it out"
                    )
                what = "labelled rows" if cls.reads == "rows" else "a corpus"
                raise UserError(f"data.{key}: task.kind={kind} reads {what} and does not use it; leave it out")


class RowTask(Task):
    """A task that learns from the rows of tables."""

    context: Context
    """Settings and tokenizer."""
    reads = "rows"
    unused_data_keys = ("concat_documents", "corpus", "max_target_length", "sampling")
    labels_inside: ClassVar[bool] = False
    """Words or characters of the texts carry the labels."""

    @classmethod
    def open(cls, config: Any, request: Request) -> TableSources:
        cls.check_data_keys(request.data)
        columns = ColumnRoles(
            cls.text_columns(config),
            cls.label_columns(config),
            getattr(config, "label_separator", None),
            cls.group_columns(config),
            config.key_of,
        )
        sources = open_tables(request.data, request.splits, columns)
        sources = replace(sources, added_texts=cls.added_texts(config), seed=request.seed)
        augment, train = request.data.augment, sources.tables.get("train")
        if augment is None or train is None:
            return sources
        edited = add_copies(train, augment, request.seed, partial(cls.edit_row, config))
        return replace(sources, tables={**sources.tables, "train": edited}, copies=len(edited) - len(train))

    @classmethod
    def added_texts(cls, config: Any) -> tuple[str, ...]:
        """What the task puts beside the texts of every row, which a tokenizer is trained on, too: a prefix."""
        return ()

    @classmethod
    def edit_row(cls, config: Any, row: dict[str, Any], editor: Editor) -> dict[str, Any] | None:
        """Returns an edited copy of a training row (`data.augment`), what labels it moved along; None: none is made."""
        return edit_texts(row, cls.text_columns(config), editor)

    def datasets(self, sources: TableSources) -> dict[str, Dataset]:
        made: dict[str, Dataset] = {}
        for split, table in sources.tables.items():
            examples = self.examples(table, labelled=True, key=f"data.{split}")
            if split == "train":
                examples = self._cut_off(examples, len(table) - sources.copies, sources.seed)
            if not examples.examples:
                raise UserError(f"data.{split}: no usable row in {table.name}")
            made[split] = RowDataset(examples, self.fields)
        return made

    def _cut_off(self, examples: Examples, originals: int, seed: int) -> Examples:
        """Masks tokens of the copies as `data.augment.cutoff` says."""
        augment, tokenizer = self.context.data.augment, self.context.tokenizer
        if augment is None or not augment.cutoff:
            return examples
        if tokenizer.mask_id is None:
            raise UserError("data.augment.cutoff: the tokenizer has no mask token; leave it out, or take `delete`")
        stays = tokenizer.special_ids
        cut = cut_tokens(examples, originals, augment.cutoff, seed, mask_id=tokenizer.mask_id, special=stays)
        return replace(examples, examples=cut)


class CorpusTask(Task):
    """An objective that learns from documents: how rows are cut from text, their targets, and their metrics."""

    reads = "corpus"
    predicts = False
    unused_data_keys = (
        "long_text", "stride", "packing", "batch_order", "sampling", "keep_labels", "row_length", "max_shapes",
        "corpus", "max_target_length", "fold", "augment",
    )  # fmt: skip
    wrap: ClassVar[Wrap]
    """Special tokens in the tokenized corpus: "documents" (around each) or "none" (the row adds its own)."""
    lookahead: ClassVar[int]
    """Tokens that a segment carries beyond its inputs: 1 where the next token is predicted."""

    @property
    def overhead(self) -> int:
        """Columns that a segment takes up in addition to its tokens."""
        return 0

    @property
    def cost(self) -> Cost | None:
        """Columns of a segment by its tokens, where that is not their number and `overhead`."""
        return None

    @classmethod
    def open(cls, config: Any, request: Request) -> CorpusSources:
        cls.check_data_keys(request.data)
        for split in request.data.shares:
            raise UserError(f"data.{split}.fraction: only of labelled rows; expected documents of their own "
                            f"(data.{split}.path)")  # fmt: skip
        data, splits = request.data, [s for s in request.splits if getattr(request.data, s) is not None]
        return CorpusSources(data, splits, config.text, request.token_cache, request.seed, request.stop)

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """That of the run."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a row other than its text, for the loader's fingerprint."""
        return {}

    @abstractmethod
    def row(self, segments: Sequence[Segment], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns the arrays of one row; of no segments, padding of weight 0."""

    def datasets(self, sources: CorpusSources) -> dict[str, Dataset]:
        opened: dict[str, CorpusDataset] = sources.datasets(self, self.tokenizer)
        return dict(opened)

    def empty_dataset(self) -> EmptyDataset:
        """The shapes of its batches without data, for a step that is compiled and not run."""
        return EmptyDataset(self)


def _answers_no_rows(task: type[Task]) -> UserError:
    kind = task.Config.model_fields["kind"].default
    return UserError(f"task.kind={kind}: a model of this kind answers no rows; fine-tune it on a labelled task")
