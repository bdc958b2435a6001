"""Predicts the fitness of architectures from the candidates a search has evaluated: a small kernel regressor, plain arrays.

Two architectures are as similar as the share of their decisions that agree, where a decision over ordered values agrees in
part; a decision without effect agrees with nothing. Ridge regression on the squared similarity is ridge regression on all
single decisions and all pairs of them. The penalty is the one of least leave-one-out error.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from oneshot_nas.arch import Space, get_space
from oneshot_nas.errors import UserError
from oneshot_nas.files import BROKEN_NPZ, MAX_JSON_BYTES, VERSION, atomic_path, check_kind, parse_json
from oneshot_nas.indicators.ranking import kendall_tau
from oneshot_nas.search.batch import parents_of
from oneshot_nas.search.candidate import Candidate
from oneshot_nas.search.task import SearchTask
from oneshot_nas.values import show

KIND = "predictor"
LEAST = 20  # candidates; fewer say too little
MOST = 1000  # candidates; the last ones count
FOLDS = 5
PENALTIES = tuple(10.0**power for power in range(-4, 2))
CHUNK = 4096
PROBES = 512  # random architectures that show which decisions can be without effect
ARRAYS = ("about", "rows", "weights")

Fitness = Callable[[Candidate], float]


def features(space: Space) -> tuple[str, ...]:
    """Names of the columns of `encode`: 'block[0]=skip', and for ordered values both 'width[1]>=24' and 'width[1]<24'."""
    names: list[str] = []
    for name, position, allowed in (space.positions[column] for column in free(space)):
        if space.choice(name).ordered:
            names += [f"{name}[{position}]{sign}{value}" for sign in (">=", "<") for value in allowed[1:]]
        else:
            names += [f"{name}[{position}]={value}" for value in allowed]
    return tuple(names)


def free(space: Space) -> list[int]:
    """The decisions (columns) that leave a choice."""
    return [column for column, (_, _, allowed) in enumerate(space.positions) if len(allowed) > 1]


def encode(space: Space, indices: np.ndarray) -> np.ndarray:
    """Features (n, len(features)) of index rows (n, decisions); the square sum of each free decision's is 1, without effect 0."""
    effect = effective(space, indices)
    parts = [np.empty((len(indices), 0))]
    for column in free(space):
        name, _, allowed = space.positions[column]
        values, steps = indices[:, column : column + 1], np.arange(len(allowed))
        if space.choice(name).ordered:
            part = np.concatenate([values >= steps[1:], values < steps[1:]], axis=1) / np.sqrt(len(allowed) - 1)
        else:
            part = (values == steps).astype(float)
        parts.append(part * effect[:, column : column + 1])
    return np.concatenate(parts, axis=1)


def effective(space: Space, indices: np.ndarray) -> np.ndarray:
    """Boolean (n, decisions): which decisions change the network, found by asking `Space.canonical` about changed ones.

    Assumed: a decision that can be without effect does not decide about the effect of another one.
    """
    whole = replace(space, choices=get_space(space.name, **space.options).choices)  # a part may lack the values that are reset to
    idle = resettable(whole)
    if not idle:
        return np.ones(indices.shape, bool)
    if whole.positions != space.positions:
        pairs = enumerate(zip(whole.positions, space.positions, strict=True))
        indices = np.stack([np.array([every.index(value) for value in allowed])[indices[:, column]]
                            for column, ((_, _, every), (_, _, allowed)) in pairs], axis=1)
    deciding = np.delete(np.arange(indices.shape[1]), idle)
    kinds, first, place = np.unique(indices[:, deciding], axis=0, return_index=True, return_inverse=True)
    known = np.ones((len(kinds), indices.shape[1]), bool)
    for row, mask in zip(indices[first], known, strict=True):
        home = whole.encode(whole.canonical(whole.decode(row.tolist())))
        probe = list(home)
        for column in idle:
            probe[column] = (home[column] + 1) % len(whole.positions[column][2])
        mask[:] = np.array(whole.encode(whole.canonical(whole.decode(probe)))) == probe
    return known[place.reshape(-1)]


@lru_cache(maxsize=8)
def resettable(space: Space) -> tuple[int, ...]:
    """The decisions (columns) of a whole space that are without effect in some architecture, as random ones show."""
    rng = np.random.default_rng(0)
    sizes = [len(allowed) for _, _, allowed in space.positions]
    rows = [space.encode(space.smallest()), space.encode(space.largest()), *rng.integers(0, sizes, (PROBES, len(sizes))).tolist()]
    found: set[int] = set()
    for row in rows:
        arch = space.decode(row)
        home = space.canonical(arch)
        if home is arch:
            continue
        found |= {column for column, (a, b) in enumerate(zip(row, space.encode(home), strict=True)) if a != b}
    return tuple(sorted(found))


@dataclass(frozen=True, eq=False)
class Predictor:
    """Fitness of architectures of `space` from the training rows (n, decisions), their weights (n,) and an `offset`.

    `about` says what it was trained on, as JSON. Scores are rounded to nine digits of the spread of the training fitness, so
    that equal predictions are equal on every machine.
    """

    space: Space
    rows: np.ndarray
    weights: np.ndarray
    offset: float
    quantum: float
    about: Mapping[str, Any]

    def __call__(self, space: Space, indices: np.ndarray) -> np.ndarray:
        """Predicted fitness (n,) of index rows (n, decisions) of `space`, the predictor's own or a part of it.

        Raises: UserError when `space` is another one or has values that the predictor does not know.
        """
        columns = translation(space, self.space)
        known, count = encode(self.space, self.rows), len(free(self.space))
        scores = np.empty(len(indices))
        for start in range(0, len(indices), CHUNK):
            given = indices[start : start + CHUNK]
            own = np.stack([table[given[:, column]] for column, table in enumerate(columns)], axis=1)
            scores[start : start + CHUNK] = similarity(encode(self.space, own), known, count) @ self.weights
        return self.offset + np.round(scores / self.quantum) * self.quantum


@lru_cache(maxsize=32)
def translation(space: Space, known: Space) -> tuple[np.ndarray, ...]:
    """Per decision the index in `known` of each allowed value of `space`. Raises: UserError that names what is foreign."""
    check_space(space, known)
    return tuple(np.array([theirs.index(value) for value in ours])
                 for (_, _, ours), (_, _, theirs) in zip(space.positions, known.positions, strict=True))


def check_space(space: Space, known: Space, source: str = "the predictor") -> None:
    """Raise UserError unless every architecture of `space` is one of `known`, the space of a predictor."""
    if space.name != known.name:
        raise UserError(f"{source} is of space '{known.name}', this is '{space.name}'; fit one with oneshot-nas predictor")
    for name, value in space.options.items():
        if known.options.get(name) != value:
            raise UserError(f"{source} is of '{known.name}' with option '{name}' = {known.options.get(name)!r}, here it is "
                            f"{value!r}; fit one with oneshot-nas predictor")
    for (name, position, ours), (_, _, theirs) in zip(space.positions, known.positions, strict=True):
        foreign = [value for value in ours if value not in theirs]
        if foreign:
            raise UserError(f"{source} does not know '{name}'[{position}] = {show(foreign)}, it was fitted to {show(theirs)}; "
                            "fit one with oneshot-nas predictor")


def similarity(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """Kernel (n, m) from 1/4 (nothing agrees) to 1 of two sets of features of `count` free decisions."""
    count = max(count, 1)
    return ((count + first @ second.T) / (2 * count)) ** 2


def fit(space: Space, candidates: Sequence[Candidate], fitness: Fitness) -> Predictor | None:
    """A predictor of the last `MOST` candidates with scores, None when there are fewer than `LEAST`: a pure function of them."""
    used = usable(space, candidates)
    if len(used) < LEAST:
        return None
    rows = np.array([space.encode(c.arch) for c in used])
    values = np.array([fitness(c) for c in used])
    x = encode(space, rows)
    weights = _solve(similarity(x, x, len(free(space))), values - values.mean())
    spread, about = float(values.std()) or 1.0, {"candidates": len(used), "digest": digest(rows, values)}
    return Predictor(space, rows, weights, float(values.mean()), 1e-9 * spread, about)


def usable(space: Space, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The last `MOST` candidates that have scores and lie in `space`."""
    return parents_of(space, [c for c in candidates if c.arch.space == space.name])[-MOST:]


def held_out_tau(space: Space, candidates: Sequence[Candidate], fitness: Fitness, seed: int = 0) -> float:
    """Kendall's tau of predictions for candidates that the fit has not seen: the mean over `FOLDS` folds drawn with `seed`.

    Folds in which it is undefined (all fitness equal) count 0. Raises: UserError for too few candidates.
    """
    used = usable(space, candidates)
    if len(used) < LEAST:
        raise UserError(f"a predictor needs at least {LEAST} candidates with scores, got {len(used)}; search longer first")
    x = encode(space, np.array([space.encode(c.arch) for c in used]))
    kernel, values = similarity(x, x, len(free(space))), np.array([fitness(c) for c in used])
    order, taus = np.random.default_rng(seed).permutation(len(used)), []
    for fold in range(FOLDS):
        out, kept = order[fold::FOLDS], np.sort(np.concatenate([order[other::FOLDS] for other in range(FOLDS) if other != fold]))
        guess = kernel[np.ix_(out, kept)] @ _solve(kernel[np.ix_(kept, kept)], values[kept] - values[kept].mean())
        taus.append(kendall_tau(guess.round(12).tolist(), values[out].tolist()))
    return float(np.nan_to_num(taus).mean())


def screening_tau(task: SearchTask, candidates: Sequence[Candidate]) -> float | None:
    """`held_out_tau` of a whole search, None where it has too few candidates for a predictor."""
    if len(usable(task.space, candidates)) < LEAST:
        return None
    return held_out_tau(task.space, candidates, task.objective.fitness)


def _solve(kernel: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weights (n,) of kernel ridge regression, with the penalty of `PENALTIES` that has the least leave-one-out error."""
    sizes, vectors = np.linalg.eigh(kernel)
    projected, best = vectors.T @ values, (np.inf, values)
    for penalty in PENALTIES:
        inverse = 1 / (np.maximum(sizes, 0) + penalty)
        weights = vectors @ (inverse * projected)
        error = float(np.square(weights / (np.square(vectors) @ inverse)).mean())
        if error < best[0]:
            best = error, weights
    return best[1]


def digest(*arrays: np.ndarray) -> str:
    """Sixteen hexadecimal digits of the arrays' values."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array, "<i8" if array.dtype.kind == "i" else "<f8").tobytes())
    return found.hexdigest()[:16]


def save(path: str | Path, predictor: Predictor, about: Mapping[str, Any]) -> None:
    """Write one .npz of plain arrays: 'about' (JSON text as bytes), 'rows' and 'weights'; atomic, so it is never half a file."""
    space = predictor.space
    content = {
        "kind": KIND, "version": VERSION, "space": space.name, "options": dict(space.options),
        "choices": {c.name: [list(allowed) for allowed in c.values] for c in space.choices},
        "features": list(features(space)), "offset": predictor.offset, "quantum": predictor.quantum,
        "arrays": digest(predictor.rows, predictor.weights), **predictor.about, **about,
    }  # fmt: skip
    text = np.frombuffer(json.dumps(content).encode(), np.uint8)
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, about=text, rows=predictor.rows.astype(np.int16), weights=predictor.weights)


def load(path: str | Path) -> Predictor:
    """The predictor in a file. Raises: UserError when it is missing, damaged, of another kind or inconsistent."""
    damaged = f"{path} is no predictor or a damaged one; make it with oneshot-nas predictor --run RUN2 --out FILE.npz"
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_JSON_BYTES:
                raise UserError(damaged)
        with np.load(path, allow_pickle=False) as found:
            text, rows, weights = (found[name] for name in ARRAYS)
    except OSError as error:
        raise UserError(f"cannot read predictor {path}: {error.strerror or error}") from None
    except BROKEN_NPZ as error:
        raise UserError(f"{damaged} ({' '.join(str(error).split())[:100]})") from None
    if text.dtype != np.uint8 or text.ndim != 1:
        raise UserError(damaged)
    about = parse_json(text.tobytes().decode("utf-8", "replace"), str(path))
    check_kind(about, str(path), KIND)
    try:
        space = get_space(about["space"], **about["options"]).restrict(about["choices"])
        offset, quantum, arrays = float(about["offset"]), float(about["quantum"]), about["arrays"]
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{damaged} (about: {error})") from None
    sizes = [len(allowed) for _, _, allowed in space.positions]
    if (rows.dtype.kind != "i" or weights.dtype.kind != "f" or weights.ndim != 1 or rows.shape != (len(weights), len(sizes))
            or not len(rows) or (rows < 0).any() or (rows >= sizes).any() or not np.isfinite([*weights, offset, quantum]).all()
            or quantum <= 0 or arrays != digest(rows, weights)):
        raise UserError(f"{damaged} (its arrays do not fit its description)")
    return Predictor(space, rows.astype(np.int64), weights, offset, quantum, about)


@dataclass(frozen=True)
class Stored:
    """A `Fit` that always gives the predictor of one file, for searches with ``--predictor``; each process loads it once."""

    path: str
    digest: str

    def __call__(self, space: Space, candidates: Sequence[Candidate], fitness: Fitness) -> Predictor:
        return _loaded(self.path, self.digest)


@lru_cache(maxsize=4)
def _loaded(path: str, wanted: str) -> Predictor:
    found = load(path)
    if found.about["arrays"] != wanted:
        raise UserError(f"predictor {path} was replaced while the search ran; start the search again")
    return found
