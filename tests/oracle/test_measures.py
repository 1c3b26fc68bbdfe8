"""The measures of evaluate are those of scikit-learn, which loads PyTorch's names and so is no part of tests/unit."""

from __future__ import annotations

import numpy as np
import pytest
from qwen3guard_apps.evaluation import curves
from qwen3guard_apps.evaluation.metrics import Confusion
from support.later import sklearn_metrics as metrics


@pytest.mark.parametrize("seed", range(10))
def test_measures_are_those_of_scikit_learn(seed: int) -> None:
    source = np.random.default_rng(seed)
    unsafe = source.random(200) < 0.3
    scores = np.round(source.random(200) * 0.7 + 0.3 * unsafe, 2 if seed % 2 else 9).astype(np.float64)
    flagged = scores > 0.5
    found = Confusion.of(unsafe, flagged)
    assert metrics.confusion_matrix(unsafe, flagged).ravel().tolist() == [found.tn, found.fp, found.fn, found.tp]
    assert found.f1 == pytest.approx(metrics.f1_score(unsafe, flagged))
    assert found.precision == pytest.approx(metrics.precision_score(unsafe, flagged))
    assert found.recall == pytest.approx(metrics.recall_score(unsafe, flagged))
    assert curves.area(scores, unsafe) == pytest.approx(metrics.roc_auc_score(unsafe, scores))
    assert curves.average_precision(scores, unsafe) == pytest.approx(metrics.average_precision_score(unsafe, scores))
    points = curves.curve(scores, unsafe)
    false, true, thresholds = metrics.roc_curve(unsafe, scores, drop_intermediate=False)
    assert points.thresholds == pytest.approx(thresholds[1:])
    assert points.false_positive_rate == pytest.approx(false[1:])
    assert points.recall == pytest.approx(true[1:])
