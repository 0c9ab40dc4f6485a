"""Lets torchvision be imported where its compiled operators cannot be loaded.

transformers' image classes, which SGLang registers when it is imported, need the package
torchvision. Its wheel is built for CUDA: with the CPU build of torch the operators do not load,
and the two modules that attach shapes and gradients to them raise. Without the operators there is
nothing to attach, so these modules are left empty.

scripts/environment/setup_cpu_env.sh copies this file into the CPU environment's site-packages. The
.pth file beside it loads it in every Python process there, because SGLang's processes are spawned;
until torchvision is imported it costs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_OPERATOR_MODULES = ("torchvision._meta_registrations", "torchvision._autograd_registrations")


class _LoaderIfOperatorsExist(Loader):
    def __init__(self, original: Loader) -> None:
        self.original = original

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.original.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        import torch

        if hasattr(torch.ops.torchvision, "nms"):
            self.original.exec_module(module)


class _OperatorModuleFinder(MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname not in _OPERATOR_MODULES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _LoaderIfOperatorsExist(spec.loader)
        return spec


sys.meta_path.insert(0, _OperatorModuleFinder())
