"""From a config to everything a run needs: task, tokenizer, datasets, mesh and model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from jaxlm.config.schema import Config
from jaxlm.data.dataset import BatchLayout, Dataset
from jaxlm.data.examples.tables import SPLITS, TableSources
from jaxlm.data.examples.token_store import TokenStore
from jaxlm.errors import Stop
from jaxlm.hf.checkpoint import HFCheckpoint, load_params
from jaxlm.models import Family, Model, get_family
from jaxlm.models.adapters import Adapters
from jaxlm.models.base import flatten
from jaxlm.models.freezing import Frozen
from jaxlm.models.places import unflatten
from jaxlm.models.reinit import reinit_layers
from jaxlm.objectives import Apply
from jaxlm.parallel import processes
from jaxlm.parallel.sharding import Rules
from jaxlm.setup.compile_cache import use_compile_cache
from jaxlm.setup.early_checks import check_batches, check_mesh
from jaxlm.setup.few_parameters import make_adapters, make_split
from jaxlm.setup.generation import file_named, make_generation
from jaxlm.setup.generation_checks import check_generation
from jaxlm.setup.layout import make_layout
from jaxlm.setup.model import build_model, decoder_start_id, for_training
from jaxlm.setup.tokenizer import make_tokenizer, open_checkpoint
from jaxlm.tasks import TASKS
from jaxlm.tasks.base import Task
from jaxlm.tasks.records import Context, Request
from jaxlm.tokenizer.tokenizer import Tokenizer

TOKENS = ".tokens"
"""Folder of tokenized corpora in `logging.directory`; no run has such a name."""


@dataclass(frozen=True)
class Setup:
    """The parts of a run, before any parameter exists.

    Attributes:
      datasets: by split.
      cleaned: what the cleaning of rows did, counted.
      checkpoint: where the parameters come from; None: drawn at random.
    """

    config: Config
    task: Task
    tokenizer: Tokenizer
    datasets: Mapping[str, Dataset]
    cleaned: Mapping[str, int]
    model: Model
    checkpoint: HFCheckpoint | None

    @property
    def rules(self) -> Rules:
        return self.model.compute.rules

    @cached_property
    def layout(self) -> BatchLayout:
        return make_layout(self.config, self.rules, self.tokenizer.pad_id)

    @cached_property
    def apply(self) -> Apply:
        """(trained parameters, frozen, batch, key) -> the model's outputs."""
        split, apply = self.split, self.model.apply
        return lambda trained, frozen, batch, key: apply(split.merge(trained, frozen, key), batch, key)

    @cached_property
    def train_apply(self) -> Apply:
        """As `apply`, in training steps."""
        split, apply = self.split, for_training(self.model, self.config.model.matmul).apply
        return lambda trained, frozen, batch, key: apply(split.merge(trained, frozen, key), batch, key)

    @property
    def steps_round_products(self) -> bool:
        """Whether dense maps are computed in less than `model.dtype` in training steps, and there alone."""
        return for_training(self.model, self.config.model.matmul) is not self.model

    @cached_property
    def split(self) -> Frozen:
        """Which parameters are trained, and which are neither trained nor saved."""
        return make_split(self.config.model, self.model, self.adapters, self.checkpoint)

    @cached_property
    def adapters(self) -> Adapters | None:
        """What is trained beside the model's own parameters; in the trees below, as its own are."""
        return make_adapters(self.config.model, self.model)

    @property
    def shapes(self) -> Any:
        """ShapeDtypeStructs of all parameters, with shardings where there is a mesh."""
        return self.model.shapes if self.adapters is None else _joined(self.model.shapes, self.adapters.shapes)

    @property
    def axes(self) -> Any:
        """Logical axes of all parameters."""
        return self.model.axes if self.adapters is None else _joined(self.model.axes, self.adapters.axes)

    def init_params(self) -> tuple[Any, tuple[str, ...]]:
        """Reads or draws the parameters; returns them and the names of the model's own that no checkpoint held."""
        key = jax.random.key(self.config.seed)
        if self.checkpoint is not None:
            imported = load_params(self.checkpoint, self.model, key, new_head=self.config.model.new_head)
            params = reinit_layers(imported.params, self.model, self.config.model.reinit_layers, key)
            if self.adapters is not None:
                params = _joined(params, self.adapters.init(key, params))
            return params, imported.initialized
        shardings = jax.tree.map(lambda s: s.sharding, self.model.shapes)
        return jax.jit(self.model.init, out_shardings=shardings)(key), ()


def _joined(first: Any, second: Any) -> Any:
    """The tree that has the leaves of both."""
    return unflatten({**flatten(first), **flatten(second)})


def make_setup(
    config: Config,
    *,
    tokenizer_cache: Path | None = None,
    splits: Sequence[str] = SPLITS,
    stop: Stop = lambda: None,
    devices: Sequence[Any] | None = None,
    trained: bool = False,
) -> Setup:
    """Loads, checks and tokenizes a config's data and builds its model.

    Args:
      tokenizer_cache: directory where a tokenizer trained for this run is kept.
      splits: those to load of train, validation, test; none: a trained model is to be applied to other data.
      stop: asked while a corpus is read; names the signal that asks for an end, if any.
      devices: of the mesh; absent: all.
      trained: the model is applied as it is, and not trained.
    Raises:
      Interrupted: `stop` named a signal; what is tokenized so far is saved.
      UserError: whatever the user's config, data or checkpoint got wrong.
    """
    if devices is None:
        use_compile_cache(config.logging.compile_cache)
    checkpoint = open_checkpoint(config)
    task_type = TASKS[config.task.kind]
    token_cache = Path(config.data.token_cache or Path(config.logging.directory) / TOKENS)
    sources = None
    check_mesh(config, checkpoint, splits, devices)
    if splits:
        sources = task_type.open(config.task, Request(config.data, splits, token_cache, config.seed, stop))
    tokenizer = processes.first_then_others(lambda: make_tokenizer(config, checkpoint, tokenizer_cache, sources))
    if config.data.split_special_tokens is not None:
        tokenizer = tokenizer.splitting(config.data.split_special_tokens)
    # Edited copies differ from seed to seed, and rows to be answered are seldom answered twice.
    tokens = None if trained or config.data.augment is not None else TokenStore(token_cache)
    context = replace(make_context(config, tokenizer, checkpoint), trained=trained, tokens=tokens)
    task = task_type.create(config.task, context, sources)
    model = build_model(config, task, tokenizer, checkpoint, devices=devices)
    check_batches(config, model.compute.rules, splits)
    datasets = {} if sources is None else task.datasets(sources)
    with file_named(config, checkpoint):
        check_generation(task.generation, model, datasets)
    cleaned = sources.cleaned if isinstance(sources, TableSources) else {}
    return Setup(config, task, tokenizer, datasets, cleaned, model, checkpoint)


def make_context(config: Config, tokenizer: Tokenizer, checkpoint: HFCheckpoint | None) -> Context:
    """What a task is made from."""
    family = family_of(config, checkpoint)
    head = TASKS[config.task.kind].head_of(family.heads)
    taken_over = checkpoint is not None and not config.model.new_head and checkpoint.head == head
    return Context(
        data=config.data,
        tokenizer=tokenizer,
        hf_config=checkpoint.head_config if checkpoint is not None and taken_over else None,
        pool=family.pool,
        label_smoothing=config.train.label_smoothing,
        metric=config.train.metric,
        batch_size=None if config.train.batch_tokens else config.train.batch_size,
        logits_chunk=config.model.chunk,
        seed=config.seed,
        decoder_start_id=decoder_start_id(config, checkpoint),
        generation=make_generation(config, tokenizer, checkpoint),
        head=head,
    )


def family_of(config: Config, checkpoint: HFCheckpoint | None) -> Family:
    """The model family of a run.

    Raises:
      UserError: `model.family` names none.
    """
    return get_family(config.model.family or "", "model.family") if checkpoint is None else checkpoint.family
