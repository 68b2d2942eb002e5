#!/bin/sh
# Installs edgespec for this user. No root, no network.
#   ./install.sh [TARGET]      default: ~/.local/opt/edgespec
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
target=${1:-"$HOME/.local/opt/edgespec"}
exec "$here/python/bin/python3" -I "$here/apply.py" install "$here" "$target"
