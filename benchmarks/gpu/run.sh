#!/usr/bin/env bash
# Measures this checkout on a machine with an NVIDIA GPU: benchmarks/gpu/run.sh OUT [--seconds N] [--only STAGE ...]
# Needs python3 (or the interpreter that PYTHON names) with torch, triton, pybind11 and click, and no network. Installs the checkout,
# in place where the interpreter's packages may not be changed. Results and run.log are in OUT; the same call continues.
set -u

if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
    echo "usage: benchmarks/gpu/run.sh OUT [--seconds N] [--only STAGE ...]" >&2
    exit 2
fi
out=$(mkdir -p "$1" && cd "$1" && pwd) || exit 2
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 2
python=${PYTHON:-python3}
budget=${HCE_GPU_SECONDS:-575}
export PYTHONUNBUFFERED=1
unset TRITON_INTERPRET

{
    echo "=== $(date -u +%FT%TZ) $("$python" --version 2>&1)"
    # An externally managed interpreter (PEP 668) or one without write permission refuses; then the extension is built in
    # place, and the checkout is imported from where it stands.
    timeout 240 "$python" -m pip --disable-pip-version-check install -q --no-index --no-deps --no-build-isolation -e . \
        || timeout 240 "$python" setup.py -q build_ext --inplace
} >>"$out/run.log" 2>&1 || { echo "the extension could not be built; see $out/run.log" >&2; }

"$python" -m benchmarks.gpu "$out" --seconds "$((budget - SECONDS))" "$@" 2>&1 | tee -a "$out/run.log"
exit "${PIPESTATUS[0]}"
