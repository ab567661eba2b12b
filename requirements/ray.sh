#!/bin/sh
# Make build/ray-env: Ray, in an environment that sees this project and .venv's packages, so that one Python has both.
set -eu
cd "$(dirname "$0")/.."
rm -rf build/ray-env
mkdir -p build
.venv/bin/python -m venv build/ray-env
paths() { build/ray-env/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
{ pwd; .venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; } > "$(paths)/mi_prun.pth"
echo "installing $(grep -c == requirements/ray.txt) packages into build/ray-env"
build/ray-env/bin/python -m pip --disable-pip-version-check install --progress-bar off -qq --no-deps -r requirements/ray.txt
build/ray-env/bin/python -c 'import ray; print("installed: ray", ray.__version__)'
