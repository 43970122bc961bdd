from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comity.errors import ConfigError, ModelError
from comity_node.demo.adversary import Adversary, Kind
from comity_node.demo.data import Split, breast_cancer, split
from comity_node.demo.generator import Generator
from comity_node.validators.runtime import MANIFEST_FILE, Manifest
from comity_node.validators.tabular import DEFAULT_MIN_SCORE, RowReview, Validator

SEED = 0


@pytest.fixture(scope="module")
def parts() -> Split:
    return split(breast_cancer(), seed=SEED)


@pytest.fixture(scope="module")
def built(parts: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("validator") / "v"
    mine = parts.parts[0]
    Validator.build(directory, mine.rows, mine.labels, mine.schema, provider="cpu").close()
    return directory


@pytest.fixture
def validator(built: Path) -> Validator:
    (built / "seen.sqlite").unlink(missing_ok=True)
    return Validator.load(built, provider="cpu")


def rows_of(parts: Split, number: int, count: int = 20, seed: int = 1) -> list[dict[str, Any]]:
    return list(Generator(parts.parts[number]).sample(count, seed))


def accepted(reviews: list[RowReview]) -> float:
    return sum(review.score >= DEFAULT_MIN_SCORE for review in reviews) / len(reviews)


def test_good_rows_of_another_hospital_mostly_pass(parts: Split, validator: Validator) -> None:
    reviews = [r for n in range(1, 5) for r in validator.review(f"h{n}", rows_of(parts, n))]
    assert accepted(reviews) >= 0.85
    assert all(review.score == min(review.axes.values()) for review in reviews)
    assert all(bool(review.feedback) == (review.score < DEFAULT_MIN_SCORE) for review in reviews)


@pytest.mark.parametrize(
    ("kind", "axis", "most"),
    [
        (Kind.FLIPPED_LABELS, "labels", 0.0),
        (Kind.SHUFFLED_LABELS, "labels", 0.1),
        (Kind.WRONG_UNITS, "density", 0.0),
        (Kind.COLLAPSED, "collapse", 0.0),
    ],
)
@pytest.mark.invariant("S9")
def test_corrupted_batches_fail_on_their_axis(
    parts: Split, validator: Validator, kind: Kind, axis: str, most: float
) -> None:
    deeds = Adversary(parts.test.schema).apply(rows_of(parts, 1, 40), kind, [3])
    reviews = validator.review("bad", [row for row, _ in deeds])
    bad = [review for review, (_, done) in zip(reviews, deeds, strict=True) if done is kind]
    assert len(bad) >= 10
    assert accepted(bad) <= most
    assert sum(review.axes[axis] < DEFAULT_MIN_SCORE for review in bad) >= 0.9 * len(bad)


@pytest.mark.invariant("S9")
def test_copies_fail_whoever_sends_them_exact_or_near(parts: Split, validator: Validator) -> None:
    rows = rows_of(parts, 1)
    before = accepted(validator.review("h1", rows))
    adversary = Adversary(parts.test.schema)
    adversary.observe(rows)
    copies = [row for row, _ in adversary.apply(rows_of(parts, 2), Kind.COPIED_ROWS, [1])]
    reviews = validator.review("bad", copies)
    assert before >= 0.85
    assert all(review.axes["copy"] < DEFAULT_MIN_SCORE for review in reviews)
    assert any("came before" in text for review in reviews for text in review.feedback)


def test_copies_of_rows_one_made_oneself_fail(parts: Split, validator: Validator) -> None:
    mine = rows_of(parts, 0)
    validator.remember(mine)
    assert accepted(validator.review("bad", mine)) == 0.0


def test_copies_of_the_reviewers_private_rows_fail(parts: Split, validator: Validator) -> None:
    reviews = validator.review("bad", parts.parts[0].take(range(10)).records())
    assert all(review.axes["private"] == 0 for review in reviews)


@pytest.mark.invariant("R2")
def test_a_batch_sent_again_and_a_repair_are_no_copies(parts: Split, validator: Validator) -> None:
    rows = rows_of(parts, 1)
    first = validator.review("h1", rows)
    assert validator.review("h1", rows) == first
    tasks = [f"t{n}" for n in range(20)]
    other = rows_of(parts, 2)
    validator.review("h2", other, tasks=tasks)
    moved = [{**row, "mean_radius": row["mean_radius"] * 1.0001} for row in other[:3]]
    again = validator.review("h2", moved, tasks=tasks[:3])
    assert all(review.axes["copy"] >= DEFAULT_MIN_SCORE for review in again)
    assert all(
        review.axes["copy"] < DEFAULT_MIN_SCORE for review in validator.review("h2", moved, tasks=["a", "b", "c"])
    )


@pytest.mark.invariant("R5")
def test_a_restart_remembers_what_was_seen(parts: Split, built: Path, validator: Validator) -> None:
    rows = rows_of(parts, 1)
    validator.review("h1", rows)
    validator.close()
    reopened = Validator.load(built, provider="cpu")
    assert accepted(reopened.review("bad", rows)) == 0.0


def test_feedback_names_the_worst_field(parts: Split, validator: Validator) -> None:
    row = rows_of(parts, 1, 1)[0]
    wrong = {**row, "worst_texture": row["worst_texture"] * 8}
    (review,) = validator.review("h1", [wrong])
    assert review.score < DEFAULT_MIN_SCORE
    assert any(text.startswith("range: worst_texture is too large") for text in review.feedback)
    assert any(text.startswith("density: worst_texture is too large beside") for text in review.feedback)


GOOD_LOOKING = {"label": 1}
HOSTILE: list[Any] = [
    None,
    [],
    "row",
    {},
    {"label": 1},
    {"mean_radius": "17"},
    {"mean_radius": True},
    {"mean_radius": math.nan},
    {"mean_radius": math.inf},
    {"mean_radius": 10**400},
    {"mean_radius": -1},
    {"mean_radius": [1]},
    {"extra": 1},
    {"label": 0.5},
    {"label": 2},
]


@pytest.mark.parametrize("change", HOSTILE, ids=repr)
def test_what_is_no_row_scores_zero_and_harms_no_other(parts: Split, validator: Validator, change: Any) -> None:
    rows = rows_of(parts, 1, 3)
    hostile = {**rows[0], **change} if isinstance(change, dict) and change and change != GOOD_LOOKING else change
    reviews = validator.review("h1", [hostile, *rows[1:]])
    assert reviews[0].score == 0
    assert reviews[0].feedback[0].startswith("schema: ")
    assert len(reviews) == 3
    assert set(reviews[1].axes) > {"schema", "density", "label"}


def test_the_batch_is_bounded(validator: Validator) -> None:
    with pytest.raises(ConfigError, match="at most 1000"):
        validator.review("h1", [{}] * 1001)
    assert validator.review("h1", []) == []


def test_row_axes_do_not_depend_on_batch_mates(parts: Split, validator: Validator) -> None:
    rows = rows_of(parts, 1)
    whole = validator.review("h1", rows)
    for row, together in zip(rows, whole, strict=True):
        (alone,) = validator.review("h1", [row])
        for axis in ("range", "density", "label", "private"):
            assert abs(alone.axes[axis] - together.axes[axis]) <= 1


def test_onnx_models_agree_with_what_was_fitted(parts: Split, validator: Validator) -> None:
    inner = validator._parts
    rows = inner.transform.apply(parts.parts[1].rows)
    for density, model in zip(inner.densities, inner.density_models, strict=True):
        by_onnx = model.run(rows.astype(np.float32))[-1].reshape(-1)
        np.testing.assert_allclose(by_onnx, density.log_peak - 0.5 * density.deviation(rows), rtol=2e-3)


@pytest.mark.invariant("S6")
@pytest.mark.parametrize("name", ["label.onnx", "density1.onnx", "rows.npy", "validator.json"])
def test_a_changed_file_is_refused(built: Path, tmp_path: Path, name: str) -> None:
    for file in built.iterdir():
        if file.suffix in (".onnx", ".json", ".npy"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelError, match="not the pinned file"):
        Validator.load(tmp_path)


@pytest.mark.parametrize("change", [{"kind": "other/1"}, {"tails": {}}, {"tails": {"label": {"body": [1.0]}}}])
def test_a_validator_of_another_version_is_refused(built: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    files = {file.name: file.read_bytes() for file in built.iterdir() if file.suffix in (".onnx", ".npy")}
    settings = {**json.loads((built / "validator.json").read_bytes()), **change}
    files["validator.json"] = json.dumps(settings).encode()
    files[MANIFEST_FILE] = json.dumps(Manifest.of(files).to_json()).encode()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelError, match="build it again"):
        Validator.load(tmp_path)


@pytest.mark.invariant("S6")
def test_the_manifest_itself_can_be_pinned(built: Path) -> None:
    digest = Validator.load(built, provider="cpu").describe()["manifest"]
    Validator.load(built, manifest=digest, provider="cpu")
    with pytest.raises(ModelError, match="not the pinned one"):
        Validator.load(built, manifest="0" * 64)


@pytest.mark.invariant("S4")
def test_files_are_private(built: Path) -> None:
    assert all(file.stat().st_mode & 0o077 == 0 for file in built.iterdir())


def test_describe_says_what_made_the_scores(validator: Validator) -> None:
    said = validator.describe()
    assert set(said["models"]) == {"label.onnx", "density0.onnx", "density1.onnx"}
    assert said["precision"] == "float32"
    assert said["providers"] == ["CPUExecutionProvider"]
    json.dumps(said)


def test_too_few_rows_of_a_class(parts: Split, tmp_path: Path) -> None:
    mine = parts.parts[0]
    few = np.concatenate([np.flatnonzero(mine.labels == 0), np.flatnonzero(mine.labels == 1)[:5]])
    with pytest.raises(ConfigError, match="class 1 has 5"):
        Validator.build(tmp_path / "v", mine.rows[few], mine.labels[few], mine.schema)
    assert not (tmp_path / "v" / MANIFEST_FILE).exists()


def test_building_twice_gives_the_same_digest(parts: Split, built: Path, tmp_path: Path) -> None:
    mine = parts.parts[0]
    again = Validator.build(tmp_path / "v", mine.rows, mine.labels, mine.schema, provider="cpu")
    assert again.describe() == Validator.load(built, provider="cpu").describe()
