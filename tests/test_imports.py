"""The direction of imports (docs/design.md): each folder lies on one layer and imports only lower ones."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

PACKAGE = REPOSITORY / "jaxlm"

# From the bottom up. A folder's files may import each other, and whatever lies on a lower layer.
LAYERS = [
    "errors section fields",
    "plugins local_paths",
    "files console parallel tokenizer metrics",
    "data nn run optim",
    "models objectives report",
    "hf tasks",
    "config",
    "setup",
    "check new_config",
    "inference",
    "training",
    "cost",
    "bench",
    "sweep",
    "api",
    "commands",
    "options",
    "cli",
    "__main__",
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}
# Beyond their layer, what a folder must not know.
NEVER = {
    "models": ("optax", "grain", "orbax", "tokenizers", "sentencepiece"),
    "nn": ("optax", "grain", "orbax", "tokenizers", "sentencepiece"),
    "tasks": ("jaxlm.nn", "jaxlm.models", "jaxlm.hf", "jaxlm.parallel.sharding"),
}
NEVER_ANYWHERE = ("tensorflow", "torch", "transformers")
FLAX = ("nn", "models", "parallel.sharding")


def module_name(file: Path) -> str:
    """jaxlm/nn/layers.py -> nn.layers; jaxlm/nn/__init__.py -> nn."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def modules() -> dict[str, ast.Module]:
    return {module_name(file): ast.parse(file.read_text(encoding="utf-8")) for file in sorted(PACKAGE.rglob("*.py"))}


def imports_of(module: str, tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Each import, those inside functions included, and its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: import absolutely"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def under(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def mistake(module: str, target: str) -> str | None:
    """What is wrong with one import, if anything."""
    folder = module.split(".")[0]
    if any(under(target, library) for library in NEVER_ANYWHERE):
        return "it is never needed at run time"
    if under(target, "flax") and not any(under(module, part) for part in FLAX):
        return f"only {', '.join(FLAX)} know Flax"
    if any(under(target, other) for other in NEVER.get(folder, ())):
        return f"{folder} must not know it"
    if not under(target, "jaxlm") or target.startswith("jaxlm.__"):
        return None
    other = target.split(".")[1]
    if unknown := [name for name in (folder, other) if name not in RANK]:
        return f"{unknown[0]} has no place in LAYERS"
    return None if folder == other or RANK[other] < RANK[folder] else f"{folder} does not lie above {other}"


def test_each_folder_imports_only_lower_layers():
    bad = [
        f"jaxlm.{module}:{line} imports {target}: {wrong}"
        for module, tree in modules().items()
        if module
        for target, line in imports_of(module, tree)
        if (wrong := mistake(module, target))
    ]
    assert not bad, "\n".join(bad)


def test_no_circle():
    """Between modules, imports inside functions included."""
    trees = modules()
    graph: dict[str, set[str]] = {}
    for module, tree in trees.items():
        if not module:  # the package itself: its API is imported when it is first asked for
            continue
        targets = (target.removeprefix("jaxlm.") for target, _ in imports_of(module, tree) if under(target, "jaxlm"))
        graph[module] = {
            name for t in targets for name in (t, t.rpartition(".")[0]) if name in trees and name != module
        }
    list(TopologicalSorter(graph).static_order())


def test_tensorflow_datasets_is_lazy():
    """It is an extra, and slow to import: only inside functions of `data`."""
    for module, tree in modules().items():
        top = [ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not any("tensorflow_datasets" in line for line in top), module
        inside = any(under(target, "tensorflow_datasets") for target, _ in imports_of(module, tree))
        assert not inside or module.split(".")[0] == "data"


@pytest.mark.parametrize(
    "module, target, allowed",
    [
        ("nn.layers", "jaxlm.models.bert.Bert", False),
        ("models.bert", "optax.adamw", False),
        ("models.bert", "jaxlm.models.weight_map.Rule", True),
        ("models.bert", "jaxlm.hf.checkpoint.load", False),
        ("tasks.classification", "jaxlm.models.base.Model", False),
        ("hf.checkpoint", "jaxlm.tasks.base.Task", False),
        ("data.examples.loader", "jaxlm.tasks.classification.Task", False),
        ("training.step", "flax.linen", False),
        ("nn.attention", "flax.linen", True),
        ("parallel.mesh", "flax.linen", False),
        ("data.sources.tfds", "tensorflow_datasets", True),
        ("data.sources.tfds", "tensorflow.data", False),
        ("training.loop", "jaxlm.training.step.make_step", True),
        ("inference.evaluator", "jaxlm.training.loop.run", False),
        ("data.sources.files", "jaxlm.run.run_dir", False),
        ("brand_new", "jaxlm.errors.UserError", False),
        ("cli", "jaxlm.__version__", True),
    ],
)
def test_the_rules_themselves(module, target, allowed):
    assert (mistake(module, target) is None) == allowed
