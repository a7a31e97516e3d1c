"""What templates read of the records that they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic
from jinja2 import nodes


def followed(tree: nodes.Template, models: Mapping[str, type[pydantic.BaseModel]]) -> int:
    """Follows every attribute that is read of some variables; fails where a model has none of that name.

    Returns:
        How many are read.
    """
    read = 0
    for node in tree.find_all(nodes.Getattr):
        names = [node.attr]
        while isinstance(node.node, nodes.Getattr):
            node = node.node
            names.append(node.attr)
        if isinstance(node.node, nodes.Name) and node.node.name in models:
            model: Any = models[node.node.name]
            for name in reversed(names):
                model = field(model, name) if model is not None else None
            read += 1
    return read


def field(model: Any, name: str) -> Any:
    """What an attribute of a model is declared as; fails when it has none of that name."""
    found = model.model_fields[name].annotation if name in model.model_fields else getattr(model, name)
    return found if isinstance(found, type) and issubclass(found, pydantic.BaseModel) else None
