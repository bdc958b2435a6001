#!/bin/sh
# Trains the paper's searched network on ImageNet with the paper's recipe (Guo et al., ECCV 2020): 240 epochs, batch 1024,
# SGD 0.9, lr 0.5 falling linearly to 0, weight decay 4e-5 on weights only, label smoothing 0.1. Top-1: 74.9 % by the official
# release (its best of several), 73.7 to 74.0 % by others. Its images are GluonCV's, RGB and normalised, with colour noise; those
# of the official release, BGR and not normalised, are those of recipes/spos_retrain.yaml.
#
#   REC_TRAIN=train.rec REC_VAL=val.rec sh scripts/train_fixarch.sh [arguments of train_imagenet.py]
#
# Arguments come last and win, such as --batch-size 32 --lr 0.0156 --num-epochs 1. REC_TRAIN_IDX and REC_VAL_IDX are the .idx
# files when they do not lie beside the .rec; GPUS= the number of GPUs (default: all; they share the batch); PYTHON= the
# interpreter to run, such as one with a CUDA build of MXNet (default: .venv's, which is made when needed).
set -eu
. "$(dirname -- "$0")/_venv.sh"
. "$root/scripts/_imagenet.sh"

exec "$python" "$root/train_imagenet.py" --model oneshot \
    --use-rec --rec-train "$REC_TRAIN" --rec-train-idx "$REC_TRAIN_IDX" --rec-val "$REC_VAL" --rec-val-idx "$REC_VAL_IDX" \
    --num-gpus "$gpus" --batch-size "$batch" --num-epochs 240 --optimizer sgd --lr 0.5 --lr-mode linear --wd 4e-5 --no-wd \
    --label-smoothing --save-dir runs/train_fixarch "$@"
