"""From what the user calls a model to its checkpoint, opened: a whole model, or an adapter of PEFT over one."""

from __future__ import annotations

from jaxlm.errors import UserError
from jaxlm.hf.adapted_tensors import is_adapter, read_adapter_config
from jaxlm.hf.checkpoint import HFCheckpoint
from jaxlm.hf.hub import find_model_dir


def open_model(name: str, *, key: str, revision: str | None = None, base: str | None = None) -> HFCheckpoint:
    """Opens a model; nothing of it but its adapter's settings is read.

    Args:
      name: as in `hub.find_model_dir`; or a folder, or hub id, of an adapter.
      key: the config key or option that `name` came from, for errors.
      revision: of a hub id.
      base: the model that an adapter stands over; absent: the one that adapter_config.json names.
    Raises:
      As `find_model_dir`; UserError for an adapter of a kind that is not read, or one that names no base.
    """
    folder = find_model_dir(name, key=key, revision=revision)
    if not is_adapter(folder):
        if base is not None:
            raise UserError(f"model.base: {name} is a whole model, and no adapter over another; leave it out")
        return HFCheckpoint(folder)
    config = read_adapter_config(folder)
    named = base or config.get("base_model_name_or_path")
    if not isinstance(named, str):
        raise UserError(f"{key}: the adapter in {folder} names no base_model_name_or_path; name it in model.base")
    where = "model.base" if base is not None else f"{folder}/adapter_config.json: base_model_name_or_path"
    return HFCheckpoint(find_model_dir(named, key=where, revision=None if base else config.get("revision")), folder)
