"""What is measured on one server: a backend, a variant of its flags, and workloads."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from library.servers.workload import Arrivals, Workload

DEFAULT = "default"

AnyWorkload = Workload | Arrivals


@dataclass(frozen=True, slots=True)
class Variant:
    """Flags of a server, besides those that all servers have, under a name."""

    name: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A server to start, and what it is to serve."""

    backend: str
    variant: Variant
    workloads: tuple[AnyWorkload, ...]

    @property
    def name(self) -> str:
        """As a row's backend and variant are shown; the default variant goes without saying."""
        return labelled(self.backend, self.variant.name)

    @property
    def folder(self) -> str:
        """Of its logs."""
        return f"{self.variant.name}-{self.backend.replace('/', '-')}"


def labelled(name: str, variant: str) -> str:
    """A name with that of a variant, if it is not the default one."""
    return name if variant == DEFAULT else f"{name}, {variant}"


def parse_variant(text: str) -> Variant:
    """The type of an option that takes `NAME=FLAGS`."""
    name, equals, flags = text.partition("=")
    if not equals or not re.fullmatch(r"\w[\w-]*", name):
        raise argparse.ArgumentTypeError(
            f"{text!r}: give a name of letters and digits, `=` and flags of SGLang's server, as in"
            " mixed=--enable-mixed-chunk"
        )
    try:
        return Variant(name, tuple(shlex.split(flags)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def jobs_of(
    backends: Sequence[str],
    variants: Sequence[Variant],
    workloads: Sequence[AnyWorkload],
    *,
    every_variant: bool,
) -> list[Job]:
    """A job per variant and backend; what decodes together is of the first variant only, unless
    `every_variant`."""
    arrivals = tuple(workload for workload in workloads if isinstance(workload, Arrivals))
    return [
        Job(backend, variant, tuple(workloads) if every_variant or not place else arrivals)
        for place, variant in enumerate(variants)
        for backend in backends
    ]
