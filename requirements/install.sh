#!/bin/sh
# Make .venv and install the CPU environment: the complete pinned list, then this project, without resolving anything.
set -eu
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
torch=$(grep '^torch==' requirements/cpu.txt)
if ! pip install --quiet --no-deps "$torch"; then
    # The CPU build of torch is not on the default registry everywhere; PyTorch's own index has it.
    pip install --quiet --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"
fi
pip install --progress-bar off --quiet --no-deps -r requirements/cpu.txt
pip install --quiet --no-deps --no-build-isolation -e .
.venv/bin/python -c 'import torch; print("installed: torch", torch.__version__)'
