#!/bin/sh
# setup.sh SOURCE FOLDER LOCK EXTRAS: a checkout of SOURCE's commit in FOLDER, and its environment from the lock. What both recipes
# run; it works outside of an image as well.
set -eu
git clone --quiet "$1" "$2"
cd "$2"
make install PYTHON=python3.11 LOCK="$3" EXTRAS="$4"
