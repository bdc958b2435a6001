#!/bin/sh
# Searches a trained supernet by evolution as the paper does: 20 generations of 50 networks of at most 330 M multiply-adds.
#
#   SUPERNET=runs/train_supernet sh scripts/search_supernet.sh [arguments of oneshot-nas search]
#
# SUPERNET= is the run folder of the supernet, OUT= that of the search (default: runs/search_supernet); PYTHON= as in
# train_fixarch.sh. Arguments come last and win.
set -eu
. "$(dirname -- "$0")/_venv.sh"

case " $* " in *" -h "* | *" --help "*) usage && set -- --help && SUPERNET=${SUPERNET:-.} ;; esac
[ -n "${SUPERNET:-}" ] || fail "SUPERNET is unset; give the run folder of a trained supernet: SUPERNET=runs/train_supernet sh $0"
[ -d "$SUPERNET" ] || fail "SUPERNET=$SUPERNET is no folder; give the run folder of a trained supernet"
recipe_python
exec "$python" -m oneshot_nas search --supernet "$SUPERNET" --out "${OUT:-runs/search_supernet}" \
    --algorithm evolution --budget 1000 --population 50 --flops :330M "$@"
