"""The direction of imports (docs/design.md): a layer uses what lies beneath it, a library only where it belongs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxlm"

# From the bottom up: a module may import its own layer and those before it.
LAYERS = [
    "errors cpu cluster launch distributed",
    "config schema_doc configfile chips topology sharding mesh hlo flops hf.table metrics track manifest rundir "
    "interrupt",
    "layers dropout attention splash",
    "models heads",
    "hf objectives optim data generate",
    "tasks",
    "state step checkpoint placement",
    "prepare baselines loaders samples train progress finish evaluate predict report convert dryrun bench chain",
    "cli __main__",
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
# Within those, what must not know of what.
NEVER = {
    "data": ("jaxlm.models", "jaxlm.heads", "jaxlm.hf", "jaxlm.tasks"),
    "tasks": ("jaxlm.models", "jaxlm.heads", "jaxlm.hf"),
    "models": ("optax", "grain", "orbax", "tokenizers", "sentencepiece", "jaxlm.data", "jaxlm.tasks"),
}
ANYWHERE_NEVER = ("tensorflow", "torch", "transformers")
FLAX = {"sharding", "layers", "attention", "models", "heads"}


def layer_of(module: str) -> str:
    """The name in LAYERS that a module such as `hf.table`, `models.bert` or `report_charts` falls under."""
    package = module.split(".")[0]
    return next((name for name in (module, package) if name in RANK), package.split("_")[0])


def imports() -> list[tuple[str, str, int]]:
    """Returns (module without `jaxlm.`, what it imports, line), imports inside functions included."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [(module, alias.name, node.lineno) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}:{node.lineno}: import absolutely"
                found += [(module, f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def under(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def mistakes(module: str, target: str) -> str | None:
    """What is wrong with one import, if anything."""
    layer = layer_of(module)
    if any(under(target, library) for library in ANYWHERE_NEVER):
        return "is never needed at run time"
    if under(target, "flax") and layer not in FLAX:
        return f"only {', '.join(sorted(FLAX))} know Flax"
    if any(under(target, other) for other in NEVER.get(layer, ())):
        return f"{layer} must not know it"
    if not under(target, "jaxlm") or target.startswith("jaxlm.__"):
        return None
    inner = target.removeprefix("jaxlm.").split(".")
    other = layer_of(".".join(inner[:2]))
    if layer not in RANK or other not in RANK:
        return f"{layer if layer not in RANK else other} has no place in LAYERS"
    return None if RANK[other] <= RANK[layer] else f"{layer} lies beneath {other}"


def test_direction():
    bad = [
        f"jaxlm.{module}:{line} imports {target}: {why}"
        for module, target, line in imports()
        if module not in ("", "__init__") and (why := mistakes(module, target))
    ]
    assert not bad, "\n".join(bad)


def test_tensorflow_datasets_is_lazy():
    """It is an extra, and slow to import: only inside functions of `data`."""
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        top = [ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not any("tensorflow_datasets" in line for line in top), file
    assert {layer_of(m) for m, target, _ in imports() if under(target, "tensorflow_datasets")} <= {"data"}


@pytest.mark.parametrize(
    "module, target, allowed",
    [
        ("layers", "jaxlm.models.bert.Bert", False),
        ("models.bert", "optax.adamw", False),
        ("models.bert", "jaxlm.hf.table.Row", True),
        ("models.bert", "jaxlm.hf.io.load", False),
        ("hf.table", "jaxlm.hf.io.load", False),
        ("tasks.classification", "jaxlm.models.base.Model", False),
        ("data.loader", "jaxlm.tasks.classification.Task", False),
        ("step", "flax.linen", False),
        ("attention", "flax.linen", True),
        ("data.sources", "tensorflow_datasets", True),
        ("data.sources", "tensorflow.data", False),
        ("train", "jaxlm.step.make_step", True),
        ("step", "jaxlm.train.train", False),
        ("brand_new", "jaxlm.errors.UserError", False),
        ("cli", "jaxlm.__version__", True),
    ],
)
def test_the_rules_themselves(module, target, allowed):
    assert (mistakes(module, target) is None) == allowed
