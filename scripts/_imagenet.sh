# Sourced by the ImageNet recipes after _venv.sh. Checks the RecordIO paths, sets $gpus and $batch (images of one device).

REC_TRAIN_IDX=${REC_TRAIN_IDX:-${REC_TRAIN:+${REC_TRAIN%.rec}.idx}}
REC_VAL_IDX=${REC_VAL_IDX:-${REC_VAL:+${REC_VAL%.rec}.idx}}

case " $* " in
    *" -h "* | *" --help "*)
        usage
        recipe_python
        exec "$python" "$root/train_imagenet.py" --help
        ;;
esac

faults=
for name in REC_TRAIN REC_TRAIN_IDX REC_VAL REC_VAL_IDX; do
    eval "path=\${$name:-}"
    case $name:$path in
        *_IDX:) ;; # follows from the .rec that is reported
        *:) faults="$faults${faults:+, }$name is unset" ;;
        *) [ -f "$path" ] || faults="$faults${faults:+, }$name=$path is no file" ;;
    esac
done
[ -z "$faults" ] || fail "this recipe needs ImageNet as RecordIO files: $faults; give them as variables:" \
    "REC_TRAIN=/path/to/train.rec REC_VAL=/path/to/val.rec sh $0; the .idx files are beside them or in REC_TRAIN_IDX and" \
    "REC_VAL_IDX, 'oneshot-nas data folder' makes both"

gpus=${GPUS:-$(nvidia-smi -L 2>/dev/null | grep -c GPU || true)}
batch=$((1024 / (gpus > 0 ? gpus : 1)))
recipe_python
