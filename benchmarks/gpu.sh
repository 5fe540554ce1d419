#!/usr/bin/env bash
# Check and time rayasd on this machine's GPU, in 8 minutes at most: benchmarks/gpu.sh [PART…] [--seconds N] [--tiny]
# [--out DIR]. It writes gpu.json and gpu.md to DIR, to $OUT, or to the current folder. $PYTHON names the interpreter
# (python3). The exit code is 1 if a correctness part failed, and 2 if nothing could be run.
#
# The machine needs no Ray and no installed rayasd. Wheels of packages that it lacks travel in the folder .whl of the
# repository (git ignores it). For Python 3.12 on x86-64 this makes it, run where packages can be downloaded:
#
#   python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#     --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
#     -d .whl soundfile cffi
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

if compgen -G "$root/.whl/*.whl" >/dev/null; then
    carried=$(mktemp -d)
    trap 'rm -rf "$carried"' EXIT
    if "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
        --target "$carried" "$root"/.whl/*.whl; then
        export PYTHONPATH="$carried:$PYTHONPATH"
    else
        echo "the wheels in .whl do not fit $("$python" --version): they are not used" >&2
    fi
fi
"$python" -m benchmarks.gpu "$@"
