#!/usr/bin/env bash
# Puts other SGLang versions beside the installed one, without their dependencies, so that the tests
# in tests/sglang run on them too:
#
#     scripts/environment/install_sglang_overlays.sh [PYTHON [VERSION ...]]      default: python 0.5.17 0.5.23
#
# Each lies in .sglang/VERSION (ignored by git) and is used by putting that folder on PYTHONPATH.
# They share the torch, Triton and most other packages of PYTHON's environment; 0.5.17 to 0.5.22 run
# with its transformers, 0.5.23 brings the ones that it pins. A complete overlay is left as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${1:-python}
shift || true
[ $# -gt 0 ] || set -- 0.5.17 0.5.23

for version in "$@"; do
    folder=.sglang/$version
    if [ -f "$folder/.complete" ]; then
        echo "$folder: already installed"
        continue
    fi
    extra=()
    if [ "$version" = 0.5.23 ]; then
        extra=("transformers==5.19.0" "tokenizers>=0.23.1,<0.24" "openai==2.8.0")
    fi
    rm -rf "$folder"
    "$python" -m pip install --quiet --no-deps --no-compile --target "$folder" \
        "sglang==$version" "${extra[@]}"
    touch "$folder/.complete"
    echo "$folder: installed"
done
