"""Metrics, against numbers that are known, other libraries, and labels that are not for them."""

from __future__ import annotations

import contextlib
import io
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.checking.metrics.base import METRICS
from secateur.checking.metrics.catalogue import kind_of_labels, make_metrics, parse_metric
from secateur.checking.metrics.decoding import Detections, decoder, recognized, suppressed
from secateur.checking.metrics.detection import AveragePrecision
from secateur.checking.metrics.texts import edit_distance
from secateur.data.datasets import Dataset, load_dataset
from secateur.data.labels import Boxes
from secateur.ir.errors import SecateurError
from tests.data.folder_cases import reading


def measured(text: str, outputs: Mapping[str, Any], labels: Any, runs: int = 1) -> float:
    """A metric of outputs whose first axis is samples, in so many runs."""
    count = len(labels)
    model = reading(x=["N", 1])
    data = Dataset(load_dataset({"x": np.zeros((count, 1), np.float32)}, model).samples, labels)
    (found,) = make_metrics([text], data)
    for rows in np.array_split(np.arange(count), runs):
        some = {name: np.asarray(array)[rows] for name, array in outputs.items()}
        found.update(some, [labels[k] for k in rows], len(rows))
    return found.result()


RANDOM = np.random.default_rng(0)
SCORES = RANDOM.standard_normal((60, 7)).round(1)
LABELS = RANDOM.integers(0, 7, 60)


@pytest.mark.parametrize("runs", [1, 4])
def test_classifiers_as_scikit_learn_does(runs: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    outputs = {"y": SCORES}
    ranks = np.argsort(-SCORES, 1, kind="stable")[:, :5]
    assert measured("top1", outputs, LABELS, runs) == np.mean(SCORES.argmax(1) == LABELS)
    assert measured("top5", outputs, LABELS, runs) == np.mean((ranks == LABELS[:, None]).any(1))
    wanted = metrics.f1_score(LABELS, SCORES.argmax(1), average="macro")
    assert measured("f1", outputs, LABELS, runs) == pytest.approx(wanted)
    areas = [metrics.roc_auc_score(k == LABELS, SCORES[:, k]) for k in range(7)]
    assert measured("auc", outputs, LABELS, runs) == pytest.approx(np.mean(areas))
    binary, column = LABELS % 2, {"y": SCORES[:, :1]}
    wanted = metrics.roc_auc_score(binary, SCORES[:, 0])
    assert measured("auc", column, binary, runs) == pytest.approx(wanted)
    wanted = metrics.roc_auc_score(binary, SCORES[:, 1] - SCORES[:, 0])
    assert measured("auc", {"y": SCORES[:, :2]}, binary, runs) == pytest.approx(wanted)
    wanted = metrics.f1_score(binary, SCORES[:, 0] > 0.25, average="macro")
    assert measured("f1{threshold=0.25}", column, binary, runs) == pytest.approx(wanted)
    right = np.mean((SCORES[:, 0] > 0.25) == binary)
    assert measured("top1{threshold=0.25}", column, binary, runs) == pytest.approx(right)
    with pytest.raises(SecateurError, match="labels reach from 0 to 6, the model scores 1 classes"):
        measured("top1", column, LABELS, runs)


def test_one_class_has_no_area() -> None:
    assert math.isnan(measured("auc", {"y": SCORES[:, :1]}, np.ones(60, int)))


@pytest.mark.parametrize("runs", [1, 3])
def test_regression_as_scikit_learn_does(runs: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    want = RANDOM.standard_normal((20, 1))
    have = want + 0.3 * RANDOM.standard_normal((20, 1))
    for name, wanted in {
        "mae": metrics.mean_absolute_error(want, have),
        "rmse": math.sqrt(metrics.mean_squared_error(want, have)),
        "r2": metrics.r2_score(want, have),
    }.items():
        assert measured(name, {"y": have}, want, runs) == pytest.approx(wanted)
    with pytest.raises(SecateurError, match="has 2 numbers for a sample, its label 1"):
        measured("mae", {"y": np.zeros((20, 2))}, want)


def test_mean_iou() -> None:
    masks = RANDOM.integers(0, 3, (4, 6, 5))
    found = RANDOM.integers(0, 3, (4, 6, 5))
    masks[0, :2] = 255
    counted = masks != 255
    ratios = [
        np.sum((masks == k) & (found == k)) / np.sum(((masks == k) | (found == k)) & counted)
        for k in range(3)
    ]
    wanted = pytest.approx(np.mean(ratios))
    assert measured("miou", {"y": found}, masks) == wanted
    scores = np.eye(4)[found]
    assert measured("miou", {"y": scores.transpose(0, 3, 1, 2)}, masks, 2) == wanted
    assert measured("miou", {"y": scores}, masks) == wanted
    with pytest.raises(SecateurError, match="gives no classes for masks"):
        measured("miou", {"y": np.zeros((4, 3, 9, 9))}, masks)


@pytest.mark.parametrize("axis", [1, 3])
def test_mean_iou_of_one_class_that_is_scored(axis: int) -> None:
    masks = RANDOM.integers(0, 2, (4, 6, 5))
    scores = RANDOM.random((4, 6, 5))
    for threshold in (0.5, 0.75):
        found = scores > threshold
        ratios = [
            np.sum((masks == k) & (found == k)) / np.sum((masks == k) | (found == k))
            for k in (0, 1)
        ]
        outputs = {"y": np.expand_dims(scores, axis)}
        wanted = pytest.approx(np.mean(ratios))
        assert measured(f"miou{{threshold={threshold}}}", outputs, masks, 2) == wanted


def test_psnr_and_ssim() -> None:
    want = RANDOM.random((2, 3, 24, 20))
    noisy = np.clip(want + 0.1 * RANDOM.standard_normal(want.shape), 0, 1)
    errors = np.mean(np.square(want - noisy), axis=(1, 2, 3))
    wanted = np.mean(10 * np.log10(1 / errors))
    assert measured("psnr", {"y": noisy}, want) == pytest.approx(wanted)
    assert measured("psnr", {"y": want}, want) == 100
    assert measured("psnr", {"y": 255 * noisy}, 255 * want) == pytest.approx(wanted)
    assert measured("ssim", {"y": want}, want) == pytest.approx(1)
    assert measured("ssim", {"y": noisy}, want) == pytest.approx(_direct_ssim(noisy, want))
    whole = measured("ssim{range=255}", {"y": 255 * noisy}, 255 * want)
    assert whole == pytest.approx(measured("ssim{range=1}", {"y": noisy}, want))


def _direct_ssim(a: Any, b: Any) -> float:
    """By the definition, window by window."""
    line = np.exp(-np.square(np.arange(11) - 5) / 4.5)
    window = np.outer(line, line) / np.square(line.sum())
    found = []
    for x, y in zip(a.reshape(-1, *a.shape[2:]), b.reshape(-1, *b.shape[2:]), strict=True):
        for top in range(x.shape[0] - 10):
            for left in range(x.shape[1] - 10):
                p, q = (v[top : top + 11, left : left + 11] for v in (x, y))
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                above = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
                found.append(above / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return float(np.mean(found))


def test_text(tmp_path: Path) -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == 3
    symbols = np.array([[3, 1, -1, 0], [2, 2, 2, -1]])
    labels = np.array([[3, 2, -1], [2, 2, 2]])
    assert measured("cer", {"y": symbols}, labels) == 1 / 5
    path = tmp_path / "alphabet.txt"
    path.write_text("-\na\nb\n \n")
    best = np.array([[1, 1, 0, 1, 3, 2], [0, 2, 2, 0, 0, 0]])
    texts = ["aa b", "ba"]
    option = f"{{alphabet={path}}}"
    assert measured(f"cer{option}", {"y": np.eye(4)[best]}, texts) == 1 / 6
    assert measured(f"wer{option}", {"y": np.eye(4)[best]}, texts) == 1 / 3
    with pytest.raises(SecateurError, match=r"give \{alphabet=FILE\}"):
        measured("cer", {"y": np.eye(4)[best]}, texts)
    with pytest.raises(SecateurError, match="has no symbol 4"):
        measured(f"cer{option}", {"y": np.full((2, 1), 4)}, texts)
    strings = np.array([["aa b"], ["bb"]], object)
    assert measured("cer", {"y": strings}, texts) == 1 / 6


# --- detection ---------------------------------------------------------------------------


def scene(random: Any, classes: int) -> tuple[Detections, Boxes]:
    """Objects, some of them crowds, and boxes found near to some of them, with ties."""
    count = int(random.integers(0, 8))
    corners = random.random((count, 2)) * 80
    boxes = np.concatenate([corners, corners + 2 + random.random((count, 2)) * 40], 1)
    kinds = random.integers(0, classes, count)
    crowd = random.random(count) < 0.15
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], 1)
    labels = Boxes(boxes, kinds, crowd, areas)
    near = random.integers(0, count, 2 * count) if count else np.zeros(0, int)
    found = boxes[near] + random.standard_normal((len(near), 4)) * 3
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    strays = random.random((3, 2)) * 80
    found = np.concatenate([found, np.concatenate([strays, strays + 15], 1)])
    guesses = np.concatenate([kinds[near], random.integers(0, classes, 3)])
    wrong = random.random(len(guesses)) < 0.1
    guesses[wrong] = random.integers(0, classes, wrong.sum())
    return Detections.of(found, random.random(len(guesses)).round(2), guesses), labels


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_pycocotools(seed: int) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    random = np.random.default_rng(seed)
    classes = int(random.integers(1, 5))
    scenes = [scene(random, classes) for _ in range(12)]
    truth: dict[str, Any] = {
        "images": [{"id": k} for k in range(len(scenes))],
        "categories": [{"id": k} for k in range(classes)],
        "annotations": [],
    }
    results = []
    for image, (found, labels) in enumerate(scenes):
        for box, kind, crowd in zip(labels.boxes, labels.classes, labels.crowd, strict=True):
            sides = [*box[:2], *(box[2:] - box[:2])]
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image,
                    "category_id": int(kind),
                    "bbox": sides,
                    "area": sides[2] * sides[3],
                    "iscrowd": int(crowd),
                }
            )
        for box, score, kind in zip(found.boxes, found.scores, found.classes, strict=True):
            sides = [*box[:2], *(box[2:] - box[:2])]
            results.append(
                {"image_id": image, "category_id": int(kind), "bbox": sides, "score": score}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        reference = coco.COCO()
        reference.dataset = truth
        reference.createIndex()
        judge = evaluation.COCOeval(reference, reference.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    ours, half = AveragePrecision(), AveragePrecision(np.array([0.5]))
    for found, labels in scenes:
        ours.add(found, labels)
        half.add(found, labels)
    assert ours.result() == pytest.approx(judge.stats[0], abs=1e-12)
    assert half.result() == pytest.approx(judge.stats[1], abs=1e-12)


def test_nothing_to_find() -> None:
    empty = Boxes.of_rows(np.zeros((0, 5)))
    found = AveragePrecision()
    found.add(Detections.of([[0, 0, 1, 1]], [0.5], [0]), empty)
    assert math.isnan(found.result())
    found.add(Detections.of(np.zeros((0, 4)), [], []), Boxes.of_rows(np.array([[0, 0, 0, 1, 1]])))
    assert found.result() == 0


BOXES = np.array([[10.0, 10, 30, 50], [12, 10, 30, 50], [60, 20, 100, 40]])
CHANCES = np.array([[0.9, 0.0, 0.1], [0.8, 0.3, 0.0], [0.0, 0.0, 0.6]])


def _middles(boxes: Any) -> Any:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)


def heads() -> dict[str, dict[str, Any]]:
    """The same findings as several families put them out."""
    padding = np.zeros((40, 4))
    boxes, chances = np.concatenate([BOXES, padding]), np.concatenate([CHANCES, padding[:, :3]])
    rows = np.array([[*BOXES[0], 0.9, 0], [*BOXES[2], 0.6, 2], [*BOXES[1], 0.3, 1], [0] * 6])
    v8 = np.concatenate([_middles(boxes), chances], 1).T
    v5 = np.concatenate([_middles(boxes), np.ones((43, 1)), chances], 1)
    shares = boxes / [128, 64, 128, 64]
    background = np.concatenate([1 - chances.sum(1, keepdims=True), chances], 1)
    kept, kinds, scores = BOXES[[0, 2, 1]], np.array([0, 2, 1]), np.array([0.9, 0.6, 0.3])
    tensorflow = (kept / [128, 64, 128, 64])[:, [1, 0, 3, 2]]
    return {
        "yolov8": {"output0": v8[None].astype(np.float32)},
        "yolov5": {"output": v5[None].astype(np.float32)},
        "rows": {"output0": rows[None].astype(np.float32)},
        "ssd": {"boxes": shares[None], "scores": background[None]},
        "ssd without background": {"scores": chances[None], "boxes": boxes[None]},
        "detections": {"boxes": kept, "labels": kinds, "scores": scores},
        "efficient": {
            "num_dets": np.array([[3]]),
            "det_boxes": np.concatenate([kept, kept])[None],
            "det_scores": np.concatenate([scores, scores])[None],
            "det_classes": np.concatenate([kinds, kinds])[None],
        },
        "tensorflow": {
            "detection_boxes:0": tensorflow[None],
            "detection_classes:0": kinds[None] + 1.0,
            "detection_scores:0": scores[None],
            "num_detections:0": np.array([3.0]),
        },
    }


@pytest.mark.parametrize("family", heads())
def test_families_of_detectors_are_told_apart(family: str) -> None:
    outputs = {name: np.asarray(array) for name, array in heads()[family].items()}
    (found,) = decoder("auto")(outputs, 3, (64, 128))
    order = np.argsort(-found.scores, kind="stable")
    strong = order[found.scores[order] > 0.2]
    np.testing.assert_allclose(found.scores[strong], [0.9, 0.6, 0.3], atol=1e-6)
    np.testing.assert_array_equal(found.classes[strong], [0, 2, 1])
    np.testing.assert_allclose(found.boxes[strong], BOXES[[0, 2, 1]], atol=1e-4)


def test_what_is_no_detector() -> None:
    with pytest.raises(SecateurError, match=r"'y' \[1, 10\].* say map{decoder"):
        recognized({"y": np.zeros((1, 10))}, 3)
    with pytest.raises(SecateurError, match="none for the decoder yolov5"):
        decoder("yolov5")({"y": np.zeros((1, 9, 5))}, 1, (8, 8))


def test_suppression_goes_by_class() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [5, 5, 15, 15]], float)
    np.testing.assert_array_equal(suppressed(boxes, np.array([0, 0, 1, 0])), [0, 2, 3])
    assert suppressed(np.zeros((0, 4)), np.zeros(0)).shape == (0,)


def detection_data(model: Any, rows: Any) -> Dataset:
    images = np.zeros((len(rows), 3, 64, 128), np.float32)
    return load_dataset({"x": images, "labels": np.asarray(rows, np.float64)}, model, "boxes")


def test_map_from_outputs_to_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = reading(x=[1, 3, 64, 128])
    rows = [[[0, *BOXES[0]], [2, *BOXES[2]], [-1, 0, 0, 0, 0]]]
    data = detection_data(model, rows)
    (found,) = make_metrics([], data)
    assert found.name == "map"
    found.update(heads()["yolov8"], data.labels[0:1], 1)  # type: ignore[index]
    assert found.result() == pytest.approx(1.0)
    (tmp_path / "heads_of_mine.py").write_text(
        "import numpy as np\n"
        "def decode(outputs, size):\n"
        "    assert size == (64, 128)\n"
        "    return [(outputs['b'], [0.9], [0])]\n"
        "def broken(outputs, size):\n    return outputs['nothing']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "heads_of_mine", raising=False)
    (own,) = make_metrics(["map50{decoder=heads_of_mine:decode}"], data)
    own.update({"b": BOXES[:1]}, data.labels[0:1], 1)  # type: ignore[index]
    assert own.result() == pytest.approx(0.5)
    (bad,) = make_metrics(["map{decoder=heads_of_mine:broken}"], data)
    with pytest.raises(SecateurError, match="heads_of_mine:broken': KeyError"):
        bad.update({"b": BOXES}, data.labels[0:1], 1)  # type: ignore[index]


# --- finding them ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("top2", "metric 'top2' is unknown; did you mean top"),
        ("top1{", "written as top5 or"),
        ("map{decode=x}", "option 'decode' is unknown; there are output, decoder, classes"),
        ("map{classes=x}", "classes: 'x' can't be read"),
        ("nowhere.at.all:f", "can't be imported"),
    ],
)
def test_unknown_metrics(text: str, message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        measured(text, {"y": SCORES}, LABELS)


def test_kinds_of_labels() -> None:
    assert kind_of_labels(["top1", "top5"]) == "class"
    assert kind_of_labels([]) is None
    assert kind_of_labels(["os:getcwd"]) is None
    with pytest.raises(SecateurError, match="in runs of their own"):
        kind_of_labels(["top1", "psnr"])
    assert {parse_metric(name).kind for name in METRICS} == {
        "class", "boxes", "mask", "image", "number", "text"
    }  # fmt: skip


def test_functions_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metrics.py").write_text(
        "import numpy as np\n"
        "def error(outputs, label):\n"
        "    return abs(outputs['y'][0, 0] - label)\n"
        "class Largest:\n"
        "    def __init__(self):\n        self.most = 0\n"
        "    def update(self, outputs, labels):\n"
        "        self.most = max(self.most, outputs['y'].max())\n"
        "    def result(self):\n        return self.most\n"
        "def bad(outputs, label):\n    return 'x'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)
    outputs, labels = {"y": np.arange(6.0).reshape(6, 1)}, np.ones(6)
    assert measured("own_metrics:error", outputs, labels, 3) == pytest.approx(11 / 6)
    assert measured("own_metrics:Largest", outputs, labels, 3) == 5
    with pytest.raises(SecateurError, match="returned str"):
        measured("own_metrics:bad", outputs, labels)
