#!/bin/sh
# Makes .venv and runs the whole pipeline on embedded real images: data, supernet, search, retraining, export, plots.
#
#   sh scripts/quickstart.sh [OUT] [--budget N] [--population N] [--flops LO:HI] [--seed N]
#
# OUT is the folder for the results, by default runs/quickstart. The search evaluates N = 40 architectures, 10 in a generation,
# within FLOPs limits (:3M), from seed 0. PYTHON= names the interpreter (3.10 or 3.11) to make .venv with.
set -eu
. "$(dirname -- "$0")/_venv.sh"

out=runs/quickstart
case ${1-} in
    -h | --help) usage && exit ;;
    -* | '') ;;
    *) out=$1 && shift ;;
esac
setup_venv onnx dashboard
exec "$venv/bin/python" -m oneshot_nas.quickstart --out "$out" "$@"
