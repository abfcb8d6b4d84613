# Sourced by the Makefile: making an environment, and the CPU build of torch in it. uv comes from the PATH or from pip, and looks for
# packages where pip is told to.
UV_VERSION=0.13.9

# create PYTHON FOLDER: a new environment there, uv ready to install into it. Sets $uv.
create() {
  command -v "$1" >/dev/null || { echo "alp: error: $1 not found: install Python 3.11 with its venv module, or use environment.yml"; return 2; }
  "$1" -m venv --clear "$2" || return
  uv=$(command -v uv) || { "$2/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION" && uv=$2/bin/uv; } || return
  links=${PIP_FIND_LINKS:-$("$2/bin/python" -m pip config get global.find-links 2>/dev/null || true)}
  index=${PIP_INDEX_URL:-$("$2/bin/python" -m pip config get global.index-url 2>/dev/null || true)}
  export VIRTUAL_ENV="$2" UV_INDEX_STRATEGY=unsafe-best-match UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-${PIP_DEFAULT_TIMEOUT:-120}}"
  [ -z "$links" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$links}"
  [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
  [ -z "${PIP_EXTRA_INDEX_URL:-}" ] || export UV_INDEX="${UV_INDEX:-$PIP_EXTRA_INDEX_URL}"
  [ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$PIP_CERT}"
}

# cpu_torch VERSION INDEX [options]: a CPU build that the configured sources have, else from INDEX; fails where neither has one.
cpu_torch() {
  version=$1+cpu; from=$2; shift 2
  $uv pip install --quiet --compile-bytecode "$@" "torch==$version" || { echo "trying $from" && $uv pip install --quiet --compile-bytecode "$@" --index "$from" "torch==$version"; }
}
