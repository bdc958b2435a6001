#!/bin/sh
# Makes .venv with the test extras and runs ruff, mypy and the test suite.
#
#   sh scripts/test.sh [arguments of pytest, such as tests/test_setup.py -k python]
#
# Paths are relative to the checkout. PYTHON= names the interpreter (3.10 or 3.11) to make .venv with.
set -eu
. "$(dirname -- "$0")/_venv.sh"

case " $* " in *" -h "* | *" --help "*) usage && exit 0 ;; esac
setup_venv onnx dashboard test
cd -- "$root"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # two test processes share the cores
lint=0
"$venv/bin/python" -m ruff check --quiet . || lint=1
"$venv/bin/python" -m mypy || lint=1
[ $lint = 0 ] || say "ruff or mypy failed, see above: the tests run all the same, but this command will fail"
"$venv/bin/python" -m pytest -n 2 "$@"
exit $lint
