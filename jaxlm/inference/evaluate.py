"""A finished run scored once more, on a split of its config or on a file: `jaxlm evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxlm.config.schema import Config
from jaxlm.data.config import SourceConfig
from jaxlm.errors import UserError
from jaxlm.inference.trained import COMPUTE_KEYS, asks_for_mesh, open_trained, run_config
from jaxlm.parallel import processes

_KEPT = {"columns", "rename", "quoting", "encoding", "format", "documents", "separator"}
"""How the run's own files are read, so that a file of the same kind is read likewise."""


def evaluate_run(
    run: str, *, split: str | None = None, data: str | None = None, overrides: Sequence[str] = ()
) -> dict[str, float]:
    """Scores a finished run's model on a split of its config, or on a file.

    Args:
      split: train, validation or test; default: test where the config has it, else validation.
      data: a file instead of a split; read with the settings of the run's validation (else train) source.
      overrides: key=value changes of the run's config, for instance where data lies elsewhere today.
    Raises:
      UserError: no such run, split or file; an override that would change the model.
    """
    for override in overrides:
        if override.startswith("model") and not override.startswith(COMPUTE_KEYS):
            raise UserError(
                f"override '{override}': the model of a finished run is what it is; expected a key of another section, "
                f"or one of {', '.join(COMPUTE_KEYS)}"
            )
    config = run_config(run, overrides)
    if config is None:
        raise UserError(f"--run {run}: no config.yaml; expected a run directory (for a bare checkpoint, use predict)")
    if split and data:
        raise UserError("expected --split or --data, not both")
    if data is not None:
        split, source, key = "test", _file_like(config, data), "--data"
    else:
        split = split or ("test" if config.data.test is not None else "validation")
        source, key = getattr(config.data, split), f"data.{split}"
        if source is None:
            raise UserError(f"--split {split}: the run's config has no {key}")
    only = config.data.model_copy(update={"train": None, "validation": None, "test": None, split: source})
    changed = config.model_copy(update={"data": only})
    trained = open_trained(run, changed, (split,), keep_mesh=asks_for_mesh(overrides))
    dataset = trained.setup.datasets[split]
    processes.assert_same(f"the rows of {key}", dataset.fingerprint)
    with processes.collective_section():
        return trained.evaluator.evaluate(trained.params, trained.setup.frozen, dataset).scores


def _file_like(config: Config, data: str) -> SourceConfig:
    like = config.data.validation or config.data.train
    settings = {} if like is None else like.model_dump(include=_KEPT)
    if Path(data).suffix != Path(str(like and like.path)).suffix:
        settings.pop("format", None)
    return SourceConfig(path=data, **settings)
