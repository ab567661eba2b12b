#!/bin/sh
# Make .venv and install the CPU environment: the complete pinned list, then this project, without resolving anything.
set -eu
cd "$(dirname "$0")/.."
refuse() {
    echo "error: $1" >&2
    exit 2
}
# The CPU builds of torch and vLLM are there for these.
fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }
system=$(uname -sm)
[ "$system" = "Linux x86_64" ] || refuse "the CPU environment is for Linux on x86-64, this is $system"
if [ -x .venv/bin/python ]; then
    fits .venv/bin/python || refuse ".venv has no Python 3.11 to 3.14: make clean, then PYTHON=python3.12 make demo"
else
    python=${PYTHON:-python3}
    fits "$python" || refuse "$python is no Python 3.11 to 3.14; name one that is: PYTHON=python3.12 make demo"
    "$python" -m venv .venv
fi
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
torch=$(grep '^torch==' requirements/cpu.txt)
if ! pip install --quiet --no-deps "$torch"; then
    # The CPU build of torch is not on the default registry everywhere; PyTorch's own index has it.
    pip install --quiet --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"
fi
pip install --progress-bar off --quiet --no-deps -r requirements/cpu.txt
pip install --quiet --no-deps --no-build-isolation -e .
.venv/bin/python -c 'import torch; print("installed: torch", torch.__version__)'
