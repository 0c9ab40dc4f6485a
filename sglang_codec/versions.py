"""Which SGLang versions this plugin was tried with, and the refusal of others."""

from __future__ import annotations

from importlib import metadata

SUPPORTED_SGLANG = ("0.5.17", "0.5.18", "0.5.19", "0.5.20", "0.5.21", "0.5.22", "0.5.23")
OVERRIDE_VARIABLE = "SGLANG_CODEC_ALLOW_UNTESTED_SGLANG"


class UnsupportedSGLang(RuntimeError):
    """The installed SGLang was not tried with this plugin."""


def installed_sglang() -> str | None:
    """Version of the SGLang that is installed, or None; imports nothing of it."""
    try:
        return metadata.version("sglang")
    except metadata.PackageNotFoundError:
        return None


def refusal(version: str | None) -> str | None:
    """Why this SGLang version is refused, or None if it is supported."""
    if version is None:
        return "codec needs SGLang, which is not installed in this environment"
    # a local build label ("0.5.21+cpu") does not change the source that the patches rely on
    if version.partition("+")[0] in SUPPORTED_SGLANG:
        return None
    return (
        f"codec was not tried with SGLang {version}; supported are {', '.join(SUPPORTED_SGLANG)}. "
        f"Install one of them, or set {OVERRIDE_VARIABLE}=1 to try this one at your own risk"
    )


def require_supported(*, allow_untested: bool) -> str:
    """The installed version.

    Raises:
        UnsupportedSGLang: it is not in the list and `allow_untested` is False.
    """
    version = installed_sglang()
    reason = refusal(version)
    if version is None or (reason and not allow_untested):
        raise UnsupportedSGLang(reason)
    return version
