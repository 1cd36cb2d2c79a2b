# Make .venv with Cipherward in it, once per pyproject.toml. Sourced by run, test, check and bench.

project="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$project/.venv"
stamp="$venv/.installed"   # the pyproject.toml and the extra that were installed; written last

find_python() {
    local candidate
    for candidate in python3.11 python3 python3.12 python3.13; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "Cipherward needs Python 3.11, 3.12 or 3.13, and finds none of them on PATH." >&2
    return 1
}

wanted() { echo "$(cksum < "$project/pyproject.toml") $1"; }

is_sound() {   # false for a .venv that an interrupted start left, that lost its Python, or that was made elsewhere
    [[ -x "$venv/bin/python" ]] && grep -qsF "$venv/bin/" "$venv/bin/pip"
}

is_installed() {   # $1: "run", or "dev", which includes it
    local found
    if ! is_sound || [[ ! -f "$stamp" ]]; then return 1; fi
    found="$(< "$stamp")"
    [[ "$found" == "$(wanted "$1")" || "$found" == "$(wanted dev)" ]]
}

install() {
    local python what="$project"
    if [[ "$1" == dev ]]; then what="$project[dev]"; fi
    echo "Installing Cipherward ($1) into .venv: only the first start does, and it takes a few minutes." >&2
    rm -f "$stamp"
    if ! is_sound; then
        python="$(find_python)"
        "$python" -m venv --clear "$venv"
    fi
    if ! "$venv/bin/python" -m pip install --disable-pip-version-check -e "$what" > "$venv/install.log" 2>&1; then
        cat "$venv/install.log" >&2
        return 1
    fi
    wanted "$1" > "$stamp"
}

bootstrap() {
    is_installed "$1" && return
    (
        # of two starts at once, the second waits and then finds everything done
        flock 9 2> /dev/null || true
        is_installed "$1" || install "$1"
    ) 9< "$project/pyproject.toml"
}
