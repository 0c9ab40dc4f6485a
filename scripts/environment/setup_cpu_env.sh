#!/usr/bin/env bash
# usage: scripts/environment/setup_cpu_env.sh VENV
#
# Makes (or updates) the environment for a machine without a GPU: CPU torch, Triton, the unmodified
# SGLang, and this checkout installed in place. About 2.3 GB. Running it again is harmless.
#   PYTHON=python3.12 scripts/environment/setup_cpu_env.sh .venv     another interpreter, 3.11 or newer
set -euo pipefail

venv=${1:?usage: scripts/environment/setup_cpu_env.sh VENV}
python=${PYTHON:-python3}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup_cpu_env: $python is $("$python" -V 2>&1), need 3.11 or newer:" \
        "name another one, as in 'make venv PYTHON=python3.12'" >&2
    exit 1
fi

echo "[1/4] virtual environment in $venv ($("$python" -V))"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip -qq --disable-pip-version-check)

# PyTorch's own index has the small CPU build; PyPI's build of the same version works too, but
# brings some gigabytes of CUDA libraries along
torch_index=https://download.pytorch.org/whl/cpu
extra=()
if "$python" - "$torch_index" <<'PY' 2>/dev/null; then
import sys, urllib.request
urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=10)
PY
    extra=(--extra-index-url "$torch_index")
fi

echo "[2/4] torch, Triton and what SGLang imports (one to three minutes)"
"${pip[@]}" install ${extra[@]+"${extra[@]}"} -r "$root/requirements-cpu.txt"

echo "[3/4] SGLang, unmodified"
"${pip[@]}" install --no-deps ${extra[@]+"${extra[@]}"} -r "$root/requirements-cpu-nodeps.txt"
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
cp "$root"/scripts/environment/cpu_env/codec_cpu_env.{py,pth} "$site/"

echo "[4/4] this checkout, in place"
"${pip[@]}" install --no-deps --no-build-isolation -e "$root"

"$venv/bin/python" - <<'PY'
from importlib.metadata import entry_points, version

names = [entry.name for entry in entry_points(group="sglang.srt.plugins")]
if "codec" not in names:
    raise SystemExit(f"setup_cpu_env: SGLang's plugin group lists {names}, not 'codec'")
print("ready: " + ", ".join(f"{p} {version(p)}" for p in ("torch", "triton", "sglang", "sglang-codec")))
PY
