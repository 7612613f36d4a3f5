"""What Python files say of imports and names, read by ast: nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def sources(folder: Path, package: str) -> dict[str, ast.Module]:
    """The modules of a package in the folder, by their dotted names; a package by its own."""
    found = {}
    for path in sorted((folder / package).rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Those that run when the module is imported, also inside of if, try and with."""
    for node in body:
        yield node
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if isinstance(node, ast.If | ast.Try | ast.With) and not typing_only:
            yield from statements(node.body)


def origins(modules: dict[str, ast.Module], name: str) -> dict[str, str]:
    """The modules that the names come from which a module imports when it is imported itself."""
    is_package = any(other.startswith(f"{name}.") for other in modules)
    own, found = (name if is_package else name.rpartition(".")[0]).split("."), {}
    for node in statements(modules[name].body):
        if isinstance(node, ast.Import):
            found |= {alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = own[: len(own) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found[alias.name] = full if full in modules else base
    return found


def imported(modules: dict[str, ast.Module], name: str) -> set[str]:
    """The modules among these that one of them imports.

    A name that the package passes on is imported from the module that has it. The package itself
    does not count: Python imports it before any of its modules.
    """
    package = name.partition(".")[0]
    passed_on = origins(modules, package)
    found = {
        passed_on.get(alias, package) if module == package else module
        for alias, module in origins(modules, name).items()
    }
    return {other for other in found if other in modules} - {name, package}


def longest_chain(modules: dict[str, ast.Module]) -> list[str]:
    """A module, one that it imports, and so on: the longest such list."""
    chains: dict[str, list[str]] = {}

    def chain(name: str, above: tuple[str, ...] = ()) -> list[str]:
        assert name not in above, f"circle of imports: {' > '.join((*above, name))}"
        if name not in chains:
            rest = [chain(other, (*above, name)) for other in sorted(imported(modules, name))]
            chains[name] = [name, *max(rest, key=len, default=[])]
        return chains[name]

    return max(map(chain, modules), key=len)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def private_names(package: str, modules: dict[str, ast.Module]) -> list[str]:
    """Where the package imports, reaches or spells a private name that it does not define."""
    nodes = [(name, node) for name, tree in modules.items() for node in ast.walk(tree)]
    own = {"_replace", "_asdict", "_fields"}  # the public names of a NamedTuple
    for _, node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.id if isinstance(node, ast.Name) else node.attr)
    found = []
    for name, node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            base = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            paths = [f"{base}.{alias.name}" for alias in node.names]
            local = isinstance(node, ast.ImportFrom) and node.level > 0
            others = [p for p in paths if not local and p.strip(".").split(".")[0] != package]
            used = [path for path in others if any(map(is_private, path.split(".")))]
        elif isinstance(node, ast.Attribute):
            used = [node.attr] if is_private(node.attr) and node.attr not in own else []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used = [node.value] if node.value.isidentifier() and is_private(node.value) else []
        else:
            continue
        found += [f"{name}:{node.lineno}: {part}" for part in used]
    return found
