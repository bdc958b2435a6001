#!/bin/sh
# BN-NAS from data to a trained network, in three steps: a supernet of which only BatchNorm is trained, the proved optimum of the
# bn-gamma score inside the FLOPs limit, and the training of that network (Chen et al., ICCV 2021; the published search is an
# evolution of 1,050 candidates, whose optimum this is). Each step goes on where it was interrupted.
#
#   DATA=FOLDER sh scripts/bnnas.sh [arguments of oneshot-nas train, such as --set device=gpu --set contexts=8]
#
# DATA= is a folder with train.rec and val.rec (`oneshot-nas data` makes one), OUT= the folder of the three runs (default:
# runs/bnnas), FLOPS= the limit (default: :475M), RULE= how FLOPs are counted (default: abs-lut), SUPERNET_RECIPE= and
# RETRAIN_RECIPE= the two recipes (default: those of the paper); PYTHON= as in train_fixarch.sh. Arguments go to both trainings.
# At CIFAR-10 size: SUPERNET_RECIPE=recipes/cifar10_bnnas_supernet.yaml, RETRAIN_RECIPE=recipes/cifar10_proxyless_retrain.yaml,
# FLOPS=:12M, RULE=macs. The score looks at no images, so the supernet keeps only a small share of the data from its training.
set -eu
. "$(dirname -- "$0")/_venv.sh"

case " $* " in *" -h "* | *" --help "*) usage && exit 0 ;; esac
[ -n "${DATA:-}" ] || fail "DATA is unset; give a folder with train.rec and val.rec: DATA=FOLDER sh $0"
[ -d "$DATA" ] || fail "DATA=$DATA is no folder; oneshot-nas data makes one"
out=${OUT:-runs/bnnas}
recipe_python

"$python" -m oneshot_nas train --recipe "${SUPERNET_RECIPE:-$root/recipes/bnnas_supernet.yaml}" \
    --set "data=$DATA" --set trainable=scoring-bn --set holdout.calibration=null --set holdout.validation=null "$@" \
    --out "$out/supernet"
"$python" -m oneshot_nas search --supernet "$out/supernet" --out "$out/search" --algorithm exact --indicator bn-gamma \
    --flops "${FLOPS:-:475M}" --rule "${RULE:-abs-lut}"
"$python" -m oneshot_nas train --recipe "${RETRAIN_RECIPE:-$root/recipes/bnnas_retrain.yaml}" \
    --set "data=$DATA" "$@" --arch "$out/search/arch.json" --out "$out/net"
