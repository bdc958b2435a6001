"""AutoAugment and RandAugment: every operator against its formula, and policies that are functions of the drawn numbers."""

import numpy as np
import pytest

from oneshot_nas.data.augment import ALL_DRAWS, augment_image, draw, make_augment
from oneshot_nas.data.images import Preprocessing
from oneshot_nas.data.policy import AUTO, OPERATORS, POLICY_DRAWS, auto_augment, rand_augment
from oneshot_nas.errors import UserError

IMAGE = np.random.default_rng(0).integers(20, 230, (16, 16, 3), np.uint8)
BLEND = {"brightness": np.zeros_like(IMAGE, float)}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("level", [0, 5, 10])
def test_every_operator_keeps_shape_and_type_and_leaves_its_input_alone(name, level):
    before = IMAGE.copy()
    for sign in (-1.0, 1.0):
        out = OPERATORS[name](IMAGE, level, sign)
        assert out.shape == IMAGE.shape and out.dtype == np.uint8 and np.array_equal(IMAGE, before)
        flat = np.full((8, 8, 3), 77, np.uint8)
        assert OPERATORS[name](flat, level, sign).shape == flat.shape


def test_operators_by_their_formulas():
    x = IMAGE.astype(float)
    assert np.array_equal(OPERATORS["invert"](IMAGE, 3, 1), 255 - IMAGE)
    assert np.array_equal(OPERATORS["solarize"](IMAGE, 5, 1), np.where(x < 128, x, 255 - x))
    assert np.array_equal(OPERATORS["solarize_add"](IMAGE, 10, 1), np.where(x < 128, np.minimum(x + 110, 255), x))
    assert np.array_equal(OPERATORS["posterize"](IMAGE, 10, 1), IMAGE // 16 * 16)  # four bits are kept
    assert np.array_equal(OPERATORS["posterize"](IMAGE, 0, 1), IMAGE // 128 * 128)  # at least one
    assert np.array_equal(OPERATORS["brightness"](IMAGE, 10, 1), np.clip(np.rint(1.9 * x), 0, 255))
    for name in ("brightness", "color", "contrast", "sharpness"):
        assert np.array_equal(OPERATORS[name](IMAGE, 5, 1), IMAGE), name  # factor 1
    grey = x @ [0.299, 0.587, 0.114]
    assert OPERATORS["color"](IMAGE, 0, 1) == pytest.approx(np.clip(0.9 * grey[:, :, None] + 0.1 * x, 0, 255), abs=0.51)
    assert OPERATORS["contrast"](IMAGE, 0, 1) == pytest.approx(0.9 * np.rint(grey.mean()) + 0.1 * x, abs=0.51)
    low, high = x.min(axis=(0, 1)), x.max(axis=(0, 1))
    assert OPERATORS["autocontrast"](IMAGE, 0, 1) == pytest.approx((x - low) * 255 / (high - low), abs=0.51)


def test_geometry_moves_pixels_and_fills_with_grey():
    moved = OPERATORS["translate_x"](IMAGE, 10 / 0.45 / 16 * 4, 1)  # four pixels
    assert np.array_equal(moved[:, :-4], IMAGE[:, 4:]) and (moved[:, -4:] == 128).all()
    moved = OPERATORS["translate_y"](IMAGE, 10 / 0.45 / 16 * 4, -1)
    assert np.array_equal(moved[4:], IMAGE[:-4]) and (moved[:4] == 128).all()
    sheared = OPERATORS["shear_x"](IMAGE, 10, 1)
    assert np.array_equal(sheared[0], IMAGE[0]) and np.array_equal(sheared[10, :-3], IMAGE[10, 3:])
    assert np.array_equal(OPERATORS["rotate"](IMAGE, 0, 1), IMAGE) and (OPERATORS["rotate"](IMAGE, 10, 1)[0, 0] == 128).all()


def test_policies_are_functions_of_their_numbers_and_every_part_is_reached():
    assert len(AUTO) == 25
    rng = np.random.default_rng(1)
    seen = {rand_augment(IMAGE, 1, 9, row).tobytes() for row in rng.random((400, POLICY_DRAWS))}
    assert len(seen) == len(OPERATORS) + 5  # five operators have two directions
    numbers = rng.random(POLICY_DRAWS)
    for policy in (lambda: auto_augment(IMAGE, numbers), lambda: rand_augment(IMAGE, 3, 9, numbers)):
        assert np.array_equal(policy(), policy())


def test_a_recipe_asks_for_a_policy_and_the_other_numbers_stay_what_they_were():
    numbers = draw(3, 1, np.arange(50))
    assert numbers.shape == (50, ALL_DRAWS)
    plain, auto, rand = (make_augment("small", {"policy": policy}) for policy in ("none", "auto", "rand"))
    preprocessing = Preprocessing(16)
    outs = [[augment_image(IMAGE, augment, preprocessing, row) for row in numbers] for augment in (plain, auto, rand)]
    assert all(np.array_equal(a, augment_image(IMAGE, make_augment("small"), preprocessing, row))
               for a, row in zip(outs[0], numbers, strict=True))
    assert sum(not np.array_equal(a, b) for a, b in zip(outs[0], outs[1], strict=True)) > 30
    assert sum(not np.array_equal(a, b) for a, b in zip(outs[0], outs[2], strict=True)) > 45


@pytest.mark.parametrize(("changes", "words"), [
    ({"policy": "fast"}, "augmentation policy 'fast' is not one of"),
    ({"layers": 9}, "layers 9 must be a whole number from 1 to 8"),
    ({"layers": 1.5}, "layers 1.5"), ({"magnitude": 11}, "magnitude 11 a level from 0 to 10"),
    ({"cutout": -1}, "cutout -1 must be a whole number of pixels"), ({"cutout": 1.5}, "cutout 1.5"),
])
def test_impossible_policies_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        make_augment("imagenet", {"policy": "rand", **changes})


def test_cutout_blanks_a_square_around_any_pixel_with_the_mean_colour():
    preprocessing = Preprocessing(IMAGE.shape[0], crop_ratio=1, mean=(10, 20, 30), channels="BGR")
    before = IMAGE.copy()
    masks = []
    for row in draw(3, 1, np.arange(2000)):
        plain, cut = (augment_image(IMAGE, make_augment("none", {"cutout": side}), preprocessing, row) for side in (0, 6))
        assert np.array_equal(plain, IMAGE)
        mask = (cut == (30, 20, 10)).all(axis=2)
        assert np.array_equal(cut[~mask], IMAGE[~mask])
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # a rectangle
        assert max(len(rows), len(columns)) <= 6 and min(len(rows), len(columns)) >= 3  # its centre lies within
        masks.append(mask)
    assert np.array_equal(before, IMAGE)
    often = np.mean(masks, axis=0)
    assert often.min() > 0.01 and often[8, 8] > often[0, 0]
    assert any(mask.sum() == 9 for mask in masks) and any(mask.sum() == 36 for mask in masks)
