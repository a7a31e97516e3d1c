"""The tests' tiny network in place of any backbone, in a process of its own and in those that it starts.

Python imports this file at its start where the folder is in PYTHONPATH. The network: `tests.parity.runs.wide_network`.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Finder:
    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "flowers.model.backbones":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, real: Loader) -> None:
        self._real = real

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)

        def build_backbone(*arguments: Any) -> Any:
            from tests.parity.runs import wide_network

            return wide_network(*arguments)

        module.build_backbone = build_backbone  # type: ignore[attr-defined]


sys.meta_path.insert(0, _Finder())
