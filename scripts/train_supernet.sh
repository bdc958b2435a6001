#!/bin/sh
# Trains the SPOS supernet on ImageNet as the paper does (Guo et al., ECCV 2020): 120 epochs, batch 1024, SGD 0.9, lr 0.5 falling
# linearly to 0, weight decay 4e-5 on weights only, label smoothing 0.1, one uniform path a step. Channels are chosen from epoch
# 60 on, the widest ones first, as in the MXNet predecessor.
#
#   REC_TRAIN=train.rec REC_VAL=val.rec sh scripts/train_supernet.sh [arguments of train_imagenet.py]
#
# Arguments come last and win. Variables: as in train_fixarch.sh. Next: SUPERNET=runs/train_supernet sh scripts/search_supernet.sh
set -eu
. "$(dirname -- "$0")/_venv.sh"
. "$root/scripts/_imagenet.sh"

exec "$python" "$root/train_imagenet.py" --model ShuffleNas \
    --use-rec --rec-train "$REC_TRAIN" --rec-train-idx "$REC_TRAIN_IDX" --rec-val "$REC_VAL" --rec-val-idx "$REC_VAL_IDX" \
    --num-gpus "$gpus" --batch-size "$batch" --num-epochs 120 --optimizer sgd --lr 0.5 --lr-mode linear --wd 4e-5 --no-wd \
    --label-smoothing --epoch-start-cs 60 --cs-warm-up --save-dir runs/train_supernet "$@"
