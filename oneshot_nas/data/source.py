"""One door to training data, RecordIO or image folders: what a recipe names is opened here and read the same way."""

from __future__ import annotations

import os

from oneshot_nas.config import Recipe
from oneshot_nas.data.datasets import Dataset, dataset_from_files, load_dataset
from oneshot_nas.data.folder import ImageFolder, load_folder
from oneshot_nas.errors import UserError

Source = Dataset | ImageFolder


def open_source(recipe: Recipe, class_count: int | None = None) -> Source:
    """The data set a recipe names. Raises: UserError when it names none, or when there are not `class_count` classes."""
    if recipe.records is not None:
        files = recipe.records
        names = None if class_count is None else [str(label) for label in range(class_count)]  # single files may lack a class
        return dataset_from_files(files.train, files.train_idx, files.val, files.val_idx, classes=names)
    if not recipe.data:
        raise UserError("no data set given; add --set data=FOLDER (make one with: oneshot-nas data digits FOLDER)")
    if os.path.isdir(os.path.join(recipe.data, "train")):
        return load_folder(recipe.data, class_count)
    return load_dataset(recipe.data, class_count)
