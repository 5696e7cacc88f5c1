#!/usr/bin/env bash
# Keeps .venv where it is whole, and of the Python and the torch that are asked for; else makes it.
#   PYTHON=python3.12 TORCH_INDEX=https://download.pytorch.org/whl/cpu tools/venv.sh
# Without PYTHON: the newest that there is. TORCH_INDEX is only written down, in .venv/python.
set -euo pipefail
names=${PYTHON:-python3.14 python3.13 python3.12 python3.11 python3}

# Version and path of an interpreter that makes environments: its own path, not that of a version
# manager's shim or of an environment, which may vanish. Shims may exist and fail.
suits() {
    "$1" - 2> /dev/null << 'END'
import ensurepip, sys, venv
print("%d.%d" % sys.version_info[:2], sys._base_executable)
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
END
}

is_kept() {
    [ -e .venv/installed ] && [ ! -e .venv/unfinished ] && has=$(suits .venv/bin/python) &&
        grep -qF "$(pwd -P)/.venv" .venv/pyvenv.cfg &&  # else moved: its commands are broken
        [ "$(cat .venv/python)" = "${TORCH_INDEX:-}" ] || return 1
    [ -z "${PYTHON:-}" ] || { wanted=$(suits "$PYTHON") && [ "${wanted%% *}" = "${has%% *}" ]; }
}

if is_kept; then exit; fi
for name in $names; do
    if found=$(suits "$name"); then
        echo "making .venv with Python $found"
        rm -rf .venv
        "${found#* }" -m venv .venv
        echo "${TORCH_INDEX:-}" > .venv/python
        exit
    fi
done
echo "error: no Python of 3.11 to 3.14 with venv and ensurepip among: $names. Install one" \
    "(Debian, Ubuntu: apt install python3-venv; macOS: brew install python@3.13)" >&2
exit 1
