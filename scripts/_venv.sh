# Sourced by the scripts of this folder. Sets $root (the checkout) and $venv; `setup_venv EXTRA...` makes and fills .venv.
#
# .venv/.stamps belongs to these scripts: `place` holds the folder that .venv was made for, a file named like an extra the
# checksum of the requirements it was installed from, and `unfinished` is there while pip works, so that a kill is noticed.

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
venv=$root/.venv
stamps=$venv/.stamps

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "error: $*"
    exit 2
}

# Prints the comment at the head of the running script.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

# Prints why the interpreter $1 does not fit, or nothing. It must really run: pyenv has shims for versions that are switched off.
misfit() {
    command -v -- "$1" >/dev/null 2>&1 || { echo "is not there"; return; }
    "$1" -c '
import sys
if sys.version_info[:2] not in ((3, 10), (3, 11)):
    print("is Python %d.%d" % sys.version_info[:2])
else:
    try:
        import ensurepip, venv
    except ImportError:
        print("lacks the modules venv and ensurepip (Debian and Ubuntu: apt-get install -y python3-venv)")
' 2>/dev/null || echo "does not run"
}

# Sets $python: PYTHON= when given, otherwise the first that fits.
find_python() {
    tried=
    for python in ${PYTHON:+"$PYTHON"} $([ -n "${PYTHON:-}" ] || echo python3.11 python3.10 python3); do
        why=$(misfit "$python")
        [ -n "$why" ] || return 0
        tried="$tried
  $python $why"
    done
    fail "Python 3.10 or 3.11 is needed (MXNet 1.9.1 runs on no newer one). Tried:$tried
Install python3.11, or name an interpreter: PYTHON=/path/to/python3.11 sh $0"
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

# Prints why .venv cannot be used as it is, or nothing.
venv_fault() {
    if [ ! -d "$venv" ]; then
        echo "is not there"
    elif [ -e "$stamps/unfinished" ]; then
        echo "was left half-made"
    elif [ -e "$stamps/place" ] && [ "$(cat "$stamps/place")" != "$root" ]; then
        echo "was made for another folder"
    elif [ -n "$(misfit "$venv/bin/python")" ]; then
        echo "has a Python that $(misfit "$venv/bin/python")"
    elif [ -n "${PYTHON:-}" ] && [ "$(version_of "$PYTHON")" != "$(version_of "$venv/bin/python")" ]; then
        echo "has Python $(version_of "$venv/bin/python"), not that of PYTHON=$PYTHON"
    fi
}

# True when .venv is usable and has every extra of the arguments from today's setup.py and constraints.txt.
venv_is_right() {
    [ -z "$(venv_fault)" ] || return 1
    for extra in "$@"; do
        [ "$(cat "$stamps/$extra" 2>/dev/null)" = "$requirements" ] || return 1
    done
}

# Makes .venv with the extras of the arguments; returns at once when it is right. Processes wait for each other.
setup_venv() {
    [ -z "${PYTHON:-}" ] || find_python
    requirements=$(cat "$root/setup.py" "$root/constraints.txt" | cksum)
    ! venv_is_right "$@" || return 0
    find_python
    exec 9>>"$root/.venv.lock"
    "$python" -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.stderr.write("another process is setting up .venv; waiting for it\n")
    fcntl.flock(9, fcntl.LOCK_EX)
'  # the lock stays with descriptor 9, which this shell and the pip it starts hold
    venv_is_right "$@" || fill_venv "$@"
    exec 9>&-
}

fill_venv() {
    missing=$("$python" -c '
import ctypes
for library, package in (("libgomp.so.1", "libgomp1"), ("libquadmath.so.0", "libquadmath0")):
    try:
        ctypes.CDLL(library)
    except OSError:
        print(package)
' | tr '\n' ' ')
    [ -z "$missing" ] || fail "MXNet needs system packages that are not installed: ${missing% }
Install them, for example: apt-get install -y ${missing% }"

    why=$(venv_fault)
    if [ -n "$why" ]; then
        if [ -e "$venv" ]; then
            [ -d "$stamps" ] || fail "$venv $why, and these scripts did not make it: move it away and try again"
            say "making .venv anew: it $why"
            rm -rf "$venv"
        fi
        mkdir -p "$stamps"
        : >"$stamps/unfinished"
        "$python" -m venv "$venv" >&2 || fail "$python cannot make a virtual environment in $venv; see the lines above"
    fi
    mkdir -p "$stamps"
    : >"$stamps/unfinished"
    printf '%s\n' "$root" >"$stamps/place"

    say "installing into .venv with Python $(version_of "$venv/bin/python"): a minute or two, and up to 400 MB to download"
    extras=$(echo "$*" | tr ' ' ',')
    (cd -- "$root" && pip_install -c constraints.txt -e ".[$extras]")
    if ! "$venv/bin/python" -c 'import cv2' 2>/dev/null; then
        say "OpenCV's windows need libGL, which is not installed: taking opencv-python-headless instead"
        version=$(sed -n 's/^opencv-python==//p' "$root/constraints.txt")
        pip_install --no-deps --force-reinstall "opencv-python-headless==$version"
    fi
    "$venv/bin/python" -c 'import cv2, mxnet' || { say "error: .venv is complete, but the import above fails"; exit 1; }

    for extra in "$@"; do
        printf '%s\n' "$requirements" >"$stamps/$extra"
    done
    rm "$stamps/unfinished"
}

pip_install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2 || {
        say "error: pip could not install everything, the lines above say why; the same command tries again"
        exit 1
    }
}

# Sets $python for a recipe: PYTHON= exactly as it is (such as one with a CUDA build of MXNet), otherwise that of .venv.
recipe_python() {
    python=${PYTHON:-}
    if [ -z "$python" ]; then
        setup_venv onnx
        python=$venv/bin/python
    fi
}
