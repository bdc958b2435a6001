"""train_imagenet.py: GluonCV's flags and the predecessor's become a recipe, and its command lines train or end in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

import train_imagenet
from oneshot_nas.arch import get_space, read_arch
from oneshot_nas.config import dump_recipe, parse_recipe, parse_yaml, read_recipe, training_space
from oneshot_nas.costs.analytic import cost
from oneshot_nas.costs.limits import parse_limits
from oneshot_nas.errors import UserError
from oneshot_nas.model_zoo import published
from oneshot_nas.sections import Optimizer, Schedule, Start
from oneshot_nas.train.flag_parser import arguments, parser
from oneshot_nas.train.flags import recipe_of, save_dir
from oneshot_nas.train.sampling import make_sampler

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.yaml"))
REC = "--use-rec --rec-train t.rec --rec-val v.rec"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data"))


def recipe(line):
    return recipe_of(arguments(line.split()))


def test_defaults_are_those_of_gluoncv():
    found = recipe("--model resnet50_v1b")
    assert (found.model, found.data, found.epochs, found.batch_size) == ("resnet50_v1b", "~/.mxnet/datasets/imagenet", 3, 32)
    assert found.optimizer == Optimizer(name="nag", lr=0.1, momentum=0.9, wd=1e-4, no_wd=False)
    assert (found.schedule.mode, found.schedule.decay, found.schedule.decay_epochs) == ("step", 0.1, (40, 60))
    assert (found.loss.label_smoothing, found.loss.mixup_alpha, found.loss.teacher) == (0, 0, None)
    assert (found.options, found.augment.kind, found.input_threads) == ({"input_size": 224}, "imagenet", 4)
    assert recipe("--model resnet50_v1b --use-rec").records.train == "~/.mxnet/datasets/imagenet/rec/train.rec"
    assert save_dir(arguments(["--model", "resnet50_v1b"])) == "runs/resnet50_v1b"


def test_every_flag_of_gluoncv_reaches_the_recipe():
    found = recipe(
        f"{REC} --rec-train-idx t.idx --rec-val-idx w.idx --model resnet50_v1b --batch-size 8 --num-gpus 4 -j 7 "
        "--dtype float16 --num-epochs 90 --lr 0.3 --momentum 0.8 --wd 0.002 --no-wd --lr-mode poly --lr-decay 0.2 "
        "--lr-decay-period 30 --warmup-lr 0.01 --warmup-epochs 5 --last-gamma --use-pretrained --mode hybrid --input-size 160 "
        "--crop-ratio 0.9 --mixup --mixup-alpha 0.4 --mixup-off-epoch 10 --label-smoothing --teacher resnet152_v1 "
        "--teacher-params w.params --temperature 10 --hard-weight 0.25 --save-frequency 5 --log-interval 20 --rgb-mean 1,2,3 "
        "--rgb-std 4,5,6.5 --num-training-samples 5000 --reduced-dataset-scale 4 --num-classes 100 --seed 7 --optimizer sgd "
        "--resume-params p --resume-states s --resume-epoch 3")
    assert found.records.model_dump() == {"train": "t.rec", "train_idx": "t.idx", "val": "v.rec", "val_idx": "w.idx"}
    assert (found.batch_size, found.contexts, found.device, found.dtype, found.input_threads) == (32, 4, "gpu", "float16", 7)
    assert found.optimizer == Optimizer(name="sgd", lr=0.3, momentum=0.8, wd=0.002, no_wd=True)
    assert found.schedule == Schedule(mode="poly", warmup_epochs=5, warmup_lr=0.01, final_lr=0, power=2)
    stepped = recipe(f"{REC} --model resnet18_v1b --num-epochs 90 --lr-mode step --lr-decay 0.2 --lr-decay-period 30").schedule
    assert stepped == Schedule(mode="step", decay=0.2, decay_epochs=(30, 60))
    assert recipe(f"{REC} --model oneshot --num-epochs 9 --lr-mode step --lr-decay-period 30").schedule.mode == "constant"
    assert found.options == {"input_size": 160, "classes": 100, "pretrained": True, "last_gamma": True}
    assert found.loss.model_dump() == {
        "label_smoothing": 0.1, "mixup_alpha": 0.4, "mixup_off_epochs": 10, "teacher": "resnet152_v1",
        "teacher_params": "w.params", "temperature": 10, "hard_weight": 0.25}
    assert (found.crop_ratio, found.mean, found.std) == (0.9, (1, 2, 3), (4, 5, 6.5))
    assert (found.epoch_images, found.epoch_share, found.save_every, found.log_every, found.seed) == (5000, 0.25, 5, 20, 7)
    assert found.start == Start(weights="p", optimizer="s", epoch=3)


def test_the_batch_is_per_device_and_cpus_can_share_it():
    assert recipe("--model oneshot --batch-size 16 --num-cpus 2").batch_size == 32
    assert recipe("--model oneshot --batch-size 16 --num-cpus 2").contexts == 2
    with pytest.raises(UserError, match="give either --num-gpus or --num-cpus"):
        recipe("--model oneshot --num-gpus 2 --num-cpus 2")


def test_depthwise_kernels_start_as_the_flag_says():
    assert recipe("--model oneshot --depthwise-init fan_in").depthwise_init == "fan_in"
    assert recipe("--model oneshot").depthwise_init == "space"
    with pytest.raises(UserError, match="--operator-warmup is for ShuffleNas"):
        recipe("--model oneshot --operator-warmup 3")


def test_the_images_of_a_supernets_search_are_as_the_flags_say():
    flags = "--model ShuffleNas --calibration-images 10 --search-images 20"
    assert recipe(flags).holdout.model_dump() == {"calibration": 10, "validation": 20, "augment": True}
    assert recipe(f"{flags} --plain-calibration").holdout.augment is False
    with pytest.raises(UserError, match="--plain-calibration is for ShuffleNas"):
        recipe("--model oneshot --plain-calibration")


def test_flags_are_taken_with_underscores_too():
    assert recipe("--model ShuffleNas --use_se --num_epochs=5").options["se"] is True
    assert recipe("--model ShuffleNas --use_se --num_epochs=5").epochs == 5


def test_the_fixed_network_of_the_predecessor_is_the_papers_with_a_bias():
    found = read_arch(recipe("--model ShuffleNas_fixArch").arch)
    assert found.choices == published("oneshot").choices
    assert cost(found, "oneshot-mxnet").flops == 327_909_096 and found.options["classes"] == 1000
    assert "classes" not in recipe("--model ShuffleNas_fixArch").arch["options"]  # the data set says it


def test_block_and_channel_choices_are_index_lists():
    blocks = "0, 0, 0, 1, 0, 0, 1, 0, 3, 2, 0, 1, 2, 2, 1, 2, 0, 0, 2, 0"
    scales = "8, 7, 6, 8, 5, 7, 3, 4, 2, 4, 2, 3, 4, 5, 6, 6, 3, 3, 4, 6"
    flags = ["--model", "ShuffleNas_fixArch", "--use-se", "--last-conv-after-pooling", "--channels-layout", "OneShot"]
    found = read_arch(recipe_of(arguments([*flags, "--block-choices", blocks, "--channel-choices", scales])).arch)
    assert found.choices == published("oneshot_s_plus").choices
    assert cost(found, "oneshot-mxnet").flops == 291_475_944
    half = read_arch(recipe_of(arguments([*flags, "--channel-choices", scales])).arch)
    assert half.choices["block"] == published("oneshot").choices["block"]
    for bad, words in (("0,1", "needs a list of 20 indices"), (blocks.replace("3", "4"), "not one of"), ("0,x", "whole numbers")):
        with pytest.raises(UserError, match=words):
            recipe_of(arguments([*flags, "--block-choices", bad]))


@pytest.mark.parametrize(("line", "sampler"), [
    ("", {"first_channel_epoch": 60}),
    ("--epoch-start-cs -1", {"first_channel_epoch": 0}),
    ("--epoch-start-cs 5 --cs-warm-up", {"first_channel_epoch": 5, "warmup": "oneshot"}),
    ("--cs-warm-up --channels-layout ShuffleNetV2+ --ignore-first-two-cs",
     {"first_channel_epoch": 60, "warmup": "shufflenetv2+", "least_scale": 0.6}),
    ("--use-all-blocks --use-all-channels --num-epochs 9", {"average_blocks": True, "first_channel_epoch": 9}),
    ("--operator-warmup 6", {"operator_warmup": 6, "first_channel_epoch": 60}),
    ("--train-upper-constraints flops-330-params-4.5", {"name": "box", "flops": "0M:330M", "params": "0M:4.5M"}),
    ("--train-constraint-method random --train-upper-constraints flops-330-params-0", {"name": "box", "flops": ":330M"}),
    ("--train-bottom-constraints flops-0-params-2", {"name": "box", "params": "2M:"}),
    ("--train-constraint-method evolution --train-upper-constraints flops-330-params-5.0 "
     "--train-bottom-constraints flops-190-params-2.8", {"name": "stroll", "flops": "190M:330M", "params": "2.8M:5.0M"}),
])
def test_supernet_flags_name_a_sampler(line, sampler):
    found = recipe(f"--model ShuffleNas {line}").sampler.model_dump()
    expected = {"name": "uniform", "first_channel_epoch": 60, "warmup": None, "least_scale": None, "average_blocks": False,
                "flops": None, "params": None, "bins": 7, "rule": "macs", "candidates": 3, "sandwich": None,
                "operator_warmup": 0, "predictor": None} | sampler
    if "constraint" in line:
        expected["rule"] = "oneshot-mxnet"  # the predecessor's FLOPs
    parse_limits(found["flops"], found["params"], found["rule"])  # as the sampler will
    assert {**found, "flops": plain(found["flops"]), "params": plain(found["params"])} == {
        **expected, "flops": plain(expected["flops"]), "params": plain(expected["params"])}


def plain(limits):
    """Limits as numbers, so that 0M: and : are one."""
    return limits and [float(word.strip("M") or 0) for word in limits.split(":")]


def test_no_limits_at_all_is_no_error():
    assert recipe_of(arguments(["--model", "ShuffleNas", "--train-upper-constraints", "", "--train-bottom-constraints", "",
                                "--train-constraint-method", ""])).sampler.flops is None


@pytest.mark.parametrize(("line", "words"), [
    ("--model oneshot --block-choices 1", "--block-choices is for ShuffleNas_fixArch, not for --model oneshot"),
    ("--model oneshot --use-se", "--use-se is for ShuffleNas and ShuffleNas_fixArch"),
    ("--model oneshot --last-gamma", "--last-gamma is for GluonCV's models"),
    ("--model resnet50_v1b --cs-warm-up", "--cs-warm-up is for ShuffleNas"),
    ("--model ShuffleNas --use-pretrained", "--use-pretrained is for the networks of our zoo and GluonCV's models"),
    ("--model oneshot --epoch-start-cs 10", "--epoch-start-cs is for ShuffleNas"),
    ("--model oneshot --search-images 0", "--search-images is for ShuffleNas"),
    ("--model oneshot --num-training-samples 9 --batch-size 16", "'epoch_images' 9 are less than one step's 'batch_size' 16"),
    ("--model oneshot --rec-train t.rec", "--rec-train means nothing without --use-rec"),
    ("--model oneshot --resume-states s", "--resume-states means nothing without --resume-params"),
    ("--model oneshot --resume-epoch 3", "--resume-epoch means nothing without --resume-params"),
    ("--model oneshot --teacher-params p", "--teacher-params means nothing without --teacher; give --teacher as well"),
    ("--model oneshot --hard-weight 0.3", "--hard-weight means nothing without --teacher"),
    ("--model oneshot --mixup-alpha 0.4 --mixup-off-epoch 10", "--mixup-alpha means nothing without --mixup"),
    ("--model oneshot --mixup-off-epoch 10", "--mixup-off-epoch means nothing without --mixup"),
    ("--model oneshot --warmup-lr 0.01", "--warmup-lr means nothing without --warmup-epochs"),
    ("--model ShuffleNas --train-upper-constraints 330", "'330' is not flops-NUMBER-params-NUMBER in millions"),
    ("--model ShuffleNas --train-constraint-method random", "needs --train-upper-constraints or --train-bottom-constraints"),
    ("--model oneshot --reduced-dataset-scale 0.5", "must be 1 or more"),
    ("--model oneshot --num-gpus -1", "--num-gpus -1 must be 0 or more"),
    ("--model oneshot --lr-decay-epoch 3,x", "is not a list of whole numbers"),
    ("--model oneshot --rgb-mean 1,2", "--rgb-mean '1,2' is not three numbers"),
    ("--model oneshot --lr 0", "'optimizer.lr' = '0.0': Input should be greater than 0"),
    ("--model oneshot --dtype float16", "dtype float16 needs device gpu"),
    ("--model oneshot --dtype int8", r"int8 quantisation \(int8\) is not there yet"),
    ("--model oneshot --dtype float8", "'dtype' = 'float8': Input should be 'float32' or 'float16'"),
    ("--model oneshot --data-backend dali-gpu", "--data-backend dali-gpu is not there"),
])
def test_flags_that_would_be_passed_over_in_silence_are_refused(line, words):
    with pytest.raises(UserError, match=words):
        recipe(line)


@given(st.text("flops-parm0123456789. ", max_size=30))
def test_any_text_as_limits_is_read_or_refused(text):
    flags = arguments(["--model", "ShuffleNas", f"--train-upper-constraints={text}"])
    try:
        assert recipe_of(flags).sampler.name in ("uniform", "box")
    except UserError as error:
        assert "flops-NUMBER-params-NUMBER" in str(error)


def run(line, cwd=None):
    """Exit code of a command line in this process, in `cwd`."""
    before = Path.cwd()
    os.chdir(cwd or before)
    try:
        return train_imagenet.main(line.split())
    finally:
        os.chdir(before)


TINY = "--use-rec --rec-train {0}/train.rec --rec-train-idx {0}/train.idx --rec-val {0}/val.rec --rec-val-idx {0}/val.idx " \
       "--input-size 16 --batch-size 8 --num-epochs 1 --augment none"


@pytest.mark.parametrize(("model", "following"), [
    ("oneshot", "export --run runs/oneshot"),
    ("ShuffleNas_fixArch --channels-layout small --use-se", "export --run runs/ShuffleNas_fixArch"),
    ("ShuffleNas --channels-layout small --epoch-start-cs -1 --num-training-samples 8",
     "search --supernet runs/ShuffleNas"),
    ("ShuffleNas --channels-layout small --use-all-blocks --num-training-samples 8 --save-dir runs/ShuffleNas-b",
     "search --supernet runs/ShuffleNas-b"),
    ("mobilenetv2_0.25 --lr-mode cosine --warmup-epochs 1", "export --run runs/mobilenetv2_0.25"),
    ("resnet18_v1b --num-cpus 2 --batch-size 4 --label-smoothing --mixup --last-gamma --logging-file own.log",
     "export --run runs/resnet18_v1b"),
])
def test_it_trains_in_any_folder_and_says_what_comes_next(model, following, data, tmp_path, capsys):
    name = model.split()[0]
    assert run(f"{TINY.format(data)} --model {model}", tmp_path) == 0
    captured = capsys.readouterr()
    folder, command = captured.out.splitlines()
    assert folder.startswith(f"run folder: runs/{name}")
    assert command.startswith("next: ") and f"oneshot-nas {following} " in f"{command} "
    out = tmp_path / folder.removeprefix("run folder: ")
    assert json.loads((out / "checkpoint/latest.json").read_text())["epoch"] == 1
    if "own.log" in model:
        assert (tmp_path / "own.log").read_text().splitlines() == captured.err.splitlines()
    if "use-se" in model:
        assert json.loads((out / "arch.json").read_text())["options"]["classes"] == 4


def test_image_folders_train_too(data, tmp_path, capsys):
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("cat", "dog", "eel"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(4):
                cv2.imwrite(str(tmp_path / part / label / f"{number}.png"), rng.integers(0, 256, (20, 18, 3), np.uint8))
    line = f"--model cifar_resnet20_v1 --data-dir {tmp_path} --input-size 16 --batch-size 4 --num-epochs 1"
    assert run(f"{line} --save-dir {tmp_path}/run") == 0
    assert json.loads((tmp_path / "run/checkpoint/weights-0001.params.json").read_text())["classes"] == 3


@pytest.mark.parametrize(("flags", "words"), [
    ("--model resnet18_v1b --num-gpus 2", "2 GPUs asked for, MXNet sees 0"),
    ("--model resnet18_v1bb", "no model 'resnet18_v1bb'"),
    ("--model ShuffleNas_fixarch2", "no model 'ShuffleNas_fixarch2'"),
    ("--model cifar_resnet20_v1 --num-classes 3", "has label 3, beyond the 3 classes"),
    ("--model cifar_resnet20_v1 --rec-val nowhere.rec --rec-val-idx nowhere.idx", "nowhere.rec"),
    ("--model cifar_resnet20_v1 --resume-params {0}/train.rec", "train.rec is not an MXNet array file"),
    ("--model inceptionv3", "cannot take images of 16x16 pixels"),
    ("--model cifar_resnet20_v1 --logging-file {0}/train.rec/own.log", "cannot write --logging-file"),
])
def test_bad_input_is_one_line_and_exit_code_2(flags, words, data, tmp_path, capsys):
    assert run(f"{TINY.format(data)} --save-dir {tmp_path}/run {flags.format(data)}") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert captured.err.startswith("error: ") and words in captured.err


@pytest.mark.parametrize("line", ["", "--model", "--model a --nonsense", "--model a --lr x", "--model a --mode int8", "--mod a"])
def test_wrong_use_is_one_line_and_exit_code_2(line, capsys):
    with pytest.raises(SystemExit) as stop:
        run(line)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and len(captured.err.splitlines()) == 1 and "--help" in captured.err and captured.out == ""


def test_help_explains_every_flag_with_examples_and_imports_no_mxnet(tmp_path):
    code = ("import sys, runpy\ntry:\n  runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
            "finally:\n  assert 'mxnet' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code, str(ROOT / "train_imagenet.py"), "--help"], cwd=tmp_path, text=True,
                          capture_output=True, env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"})
    assert done.returncode == 0 and not done.stderr
    assert "--model oneshot --use-rec --rec-train train.rec" in done.stdout
    for action in parser()._actions:
        assert action.help and all(flag in done.stdout for flag in action.option_strings)


def test_a_failure_while_working_is_exit_code_1(data, tmp_path, capsys):
    line = f"{TINY.format(data)} --model cifar_resnet20_v1 --lr 1e30 --num-epochs 3 --save-dir {tmp_path}/run"
    assert run(line) == 1
    assert "not finite" in (last := capsys.readouterr().err.splitlines()[-1]) or "the loss became nan" in last


# --- recipes ---


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads_and_keeps_its_values_on_the_way_to_config_yaml(name):
    found = read_recipe(ROOT / "recipes" / name)
    assert parse_recipe(parse_yaml(dump_recipe(found), name), (), None, name) == found
    if found.space is not None:
        space = training_space(found.space, found.options, found.allowed)
        sampler = make_sampler(space, found.sampler, found.seed)
        assert all(space.check(arch) for epoch in (0, found.epochs - 1) for arch in sampler(epoch, 0, lambda arch: 0.0))
    elif found.model is not None:
        published(found.model)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith(("spos_", "attentivenas_", "bignas_"))])
def test_recipes_of_publications_say_command_source_numbers_and_differences(name):
    text = (ROOT / "recipes" / name).read_text()
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert f"#   oneshot-nas train --recipe recipes/{name} --set data=FOLDER" in header
    for part in ("Source: ", "Published", "top-1", "Different here: "):
        assert part in header, part
    assert max(map(len, text.splitlines())) <= 130


def test_recipes_state_the_costs_of_their_networks():
    costs = {"spos_retrain.yaml": ("oneshot", "macs"), "spos_supernet.yaml": ("spos_blocks", "macs")}
    for name, (model, rule) in costs.items():
        found = cost(published(model), rule)
        text = (ROOT / "recipes" / name).read_text()
        assert f"{found.flops:,} multiply-adds" in text and f"{found.params:,} parameters" in text
    assert f"{cost(published('spos_mmrazor')).params:,}" in (ROOT / "recipes/spos_mmrazor_retrain.yaml").read_text()


def test_an_arch_replaces_the_network_of_a_recipe_and_keeps_the_rest():
    arch = get_space("spos_shufflenet", classes=10).smallest().to_json()
    for name in ("spos_supernet.yaml", "spos_retrain.yaml"):
        found = read_recipe(ROOT / "recipes" / name, (), arch)
        assert found.arch == arch and found.model is found.space is None and found.schedule.mode == "linear"


def test_gluoncvs_own_defaults_may_be_written_out():
    words = ["--model", "oneshot", "--resume-params", "", "--resume-states", "", "--teacher-params", ""]
    assert recipe_of(arguments(words)) == recipe_of(arguments(["--model", "oneshot"]))
