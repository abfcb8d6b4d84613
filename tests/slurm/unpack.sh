#!/bin/sh
# unpack.sh FOLDER: Debian's Slurm and munge as files in FOLDER/usr. Nothing is installed or started, so nothing has to
# be removed from the system afterwards; it needs no rights of root where the package lists are fresh.
set -eu
mkdir -p "$1/packages/partial"
folder=$(cd "$1" && pwd)
apt-get install --download-only --no-install-recommends --yes --quiet=2 \
  -o Debug::NoLocking=1 -o Dir::Cache::archives="$folder/packages" slurm-wlm munge
for package in "$folder"/packages/*.deb; do
  dpkg -x "$package" "$folder"
done
