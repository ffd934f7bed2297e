# Sourced by the other scripts: finds Python, makes the virtual environment and installs gantransfer into it.
#
#   setup_environment dev,quickstart     # the extras to install; afterwards $PYTHON is the environment's interpreter
#
# Read from the environment, all optional:
#   GANTRANSFER_PYTHON  the interpreter to make the environment with (3.11 or newer)
#   GANTRANSFER_VENV    where the environment is (default: .venv in the checkout)
#   GANTRANSFER_JAX     an extra of jax for the accelerator, such as cuda12 or tpu (default: none, the CPU)
#
# What is installed already is left alone, so a second run needs neither time nor network.

CHECKOUT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
STAMP=.gantransfer-installed

say() { printf '%s\n' "[setup] $*" >&2; }

is_recent_python() { # Runs it: a name on the PATH may be a shim for a version that is not there.
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local name
    for name in ${GANTRANSFER_PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if is_recent_python "$name"; then
            printf '%s' "$name"
            return
        fi
    done
    say "no Python 3.11 or newer was found (tried: ${GANTRANSFER_PYTHON:-python3 python3.13 python3.12 python3.11});" \
        "set GANTRANSFER_PYTHON to one"
    return 1
}

# Everything that decides what an installation contains; when it changes, pip runs again.
fingerprint() {
    { "$PYTHON" -V; printf '%s\n' "$CHECKOUT" "${GANTRANSFER_JAX:-}"; cat "$CHECKOUT/setup.py" "$1"; } | cksum | tr ' ' '-'
}

setup_environment() {
    local wanted="$1" venv="${GANTRANSFER_VENV:-$CHECKOUT/.venv}" base constraints found="" had="" extra missing=""
    PYTHON="$venv/bin/python"
    if ! is_recent_python "$PYTHON"; then
        base="$(find_python)" || return 1
        say "making a virtual environment in $venv with $("$base" -V)"
        "$base" -m venv --clear "$venv" || {
            say "$base -m venv failed; on Debian and Ubuntu it needs the package python3-venv"
            return 1
        }
    fi

    constraints="$CHECKOUT/constraints/py312.txt" # the newest tested set, for newer versions of Python too
    if "$PYTHON" -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then
        constraints="$CHECKOUT/constraints/py311.txt"
    fi

    local now
    now="$(fingerprint "$constraints")"
    if [ -f "$venv/$STAMP" ]; then
        read -r found had <"$venv/$STAMP" || true
    fi
    [ "$found" = "$now" ] || had=""
    for extra in ${wanted//,/ }; do
        case ",$had," in *",$extra,"*) ;; *) missing="$missing,$extra" ;; esac
    done
    if [ -z "$missing" ]; then
        say "$venv is up to date"
        return
    fi

    wanted="${had:+$had}$missing"
    wanted="${wanted#,}"
    say "installing gantransfer[$wanted] with ${constraints#"$CHECKOUT"/} (a minute or two the first time)"
    local start=$SECONDS target=(-c "$constraints" -e "$CHECKOUT[$wanted]")
    if [ -n "${GANTRANSFER_JAX:-}" ]; then
        target+=("jax[$GANTRANSFER_JAX]")
    fi
    # Modules are compiled when they are first imported: compiling all of them here doubles the time and most are never used.
    "$PYTHON" -m pip install -qq --no-compile --prefer-binary --disable-pip-version-check "${target[@]}" || {
        say "pip could not install; the lines above say why"
        return 1
    }
    printf '%s %s\n' "$now" "$wanted" >"$venv/$STAMP"
    say "installed in $((SECONDS - start)) s"
}
