"""Every metric against a case small enough to work out by hand."""

import json
import math

import numpy as np
import pytest

from hce_engine.errors import InputError
from hce_engine.training.evaluate import (
    brier_score,
    evaluate_logits,
    expected_calibration_error,
    fit_temperature,
    member_metrics,
    negative_log_likelihood,
    pair_metrics,
    probability_mean,
    scaled_metrics,
    softmax,
    wilson_interval,
)


def logits_of(probabilities):
    return np.log(np.asarray(probabilities, np.float64)).astype(np.float32)


def test_wilson_interval_of_eight_right_in_ten():
    # (p + z^2/2n +- z sqrt(p q / n + z^2 / 4 n^2)) / (1 + z^2/n), with z = 1.96: 0.4902 and 0.9433
    low, high = wilson_interval(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)


def test_wilson_interval_stays_inside_0_and_1():
    assert wilson_interval(0, 5)[0] == 0.0
    low, high = wilson_interval(5, 5)
    assert high == 1.0 and 0.5 < low < 0.6


def test_nll_is_the_mean_of_minus_log_p_true():
    logits = logits_of([[0.5, 0.5], [0.25, 0.75]])
    assert negative_log_likelihood(logits, np.array([0, 1])) == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2, rel=1e-6)


def test_nll_of_huge_logits_is_finite():
    assert negative_log_likelihood(np.array([[1e4, -1e4]], np.float32), np.array([1])) == pytest.approx(2e4)


def test_brier_of_two_images():
    p = np.array([[0.8, 0.2], [0.6, 0.4]])
    # right at 0.8: 0.04 + 0.04; wrong at 0.6: 0.36 + 0.36
    assert brier_score(p, np.array([0, 1])) == pytest.approx((0.08 + 0.72) / 2)


def test_ece_of_two_bins():
    # Two images at confidence 0.9, one right: |0.5 - 0.9| * 2/3; one at 0.6, right: |1 - 0.6| * 1/3.
    p = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
    assert expected_calibration_error(p, np.array([0, 0, 0]), bins=15) == pytest.approx(0.4 * 2 / 3 + 0.4 / 3)


def test_ece_of_certain_and_right_is_zero():
    assert expected_calibration_error(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])) == 0.0


def test_softmax_rows_sum_to_one_for_extreme_logits():
    p = softmax(np.array([[1e30, 0, -1e30], [3, 3, 3]], np.float32))
    np.testing.assert_allclose(p, [[1, 0, 0], [1 / 3] * 3])


def one_hot(predictions, classes=3):
    return np.eye(classes, dtype=np.float32)[np.asarray(predictions)]


def test_pair_metrics_of_eight_images():
    labels = np.zeros(8, np.int64)
    a = one_hot([0, 0, 0, 0, 1, 1, 1, 2])
    b = one_hot([0, 0, 0, 1, 0, 1, 2, 2])
    # wrong in a: 4 5 6 7; in b: 3 5 6 7 -> only a 1, only b 1, both 3, neither 3; predictions differ in 3, 4, 6
    m = pair_metrics(a, b, labels)
    assert m["disagreement"] == 3 / 8
    assert m["double_fault"] == 3 / 8
    assert m["q_statistic"] == (3 * 3 - 1 * 1) / (3 * 3 + 1 * 1)
    assert m["errors"] == {"only_first": 1, "only_second": 1, "both": 3, "either": 5}
    assert m["error_overlap"] == 3 / 5


def test_pair_metrics_without_errors_are_undefined_not_nan():
    m = pair_metrics(one_hot([0, 1]), one_hot([0, 1]), np.array([0, 1]))
    assert m["q_statistic"] is None and m["error_overlap"] is None and m["disagreement"] == 0.0


def test_ensemble_is_the_mean_of_the_voters_only():
    labels = np.array([0, 1])
    q = np.array([[3.0, 0.0], [2.0, 1.0]], np.float32)
    s = np.array([[0.0, 1.0], [0.0, 3.0]], np.float32)
    o = np.array([[0.0, 9.0], [9.0, 0.0]], np.float32)
    result = evaluate_logits({"q": q, "s": s, "o": o}, labels, voters=["q", "s"])
    assert result["correct"] == {"q": 1, "s": 1, "o": 0, "ensemble": 2}
    assert result["accuracy"]["ensemble"] == 1.0 and result["total"] == 2
    assert list(result["pairs"]) == ["q-s"]
    json.dumps(result, allow_nan=False)


def test_nan_logits_are_wrong_and_leave_json_valid():
    logits = np.array([[np.nan, np.nan], [1.0, 0.0]], np.float32)
    m = member_metrics(logits, np.array([0, 0]))
    assert m["correct"] == 1 and m["nll"] is None
    json.dumps(m, allow_nan=False)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_is_wrong_in_pairs_as_it_is_in_members(broken):
    labels = np.zeros(4, np.int64)
    a, b = one_hot([0, 0, 0, 1]), one_hot([0, 0, 1, 0])
    a[0] = a[1] = broken  # argmax of such a row is 0, the right class
    b[1] = broken
    # wrong in a: 0 1 3; in b: 1 2. The two agree about no image but 1, about which neither says anything.
    result = evaluate_logits({"a": a, "b": b}, labels)
    m = result["pairs"]["a-b"]
    assert m["errors"] == {"only_first": 2, "only_second": 1, "both": 1, "either": 4}
    assert m["disagreement"] == 3 / 4 and m["double_fault"] == 1 / 4
    wrong = [m["errors"][key] + m["errors"]["both"] for key in ("only_first", "only_second")]
    assert wrong == [4 - result["correct"]["a"], 4 - result["correct"]["b"]]
    assert m["corrected"]["both"] == 0 and m["corrected"]["either"] <= result["correct"]["ensemble"]
    assert pair_metrics(one_hot([0]), one_hot([0]), labels[:1], np.full((1, 3), broken))["introduced"] == 1
    json.dumps(result, allow_nan=False)


def test_lengths_that_differ_are_refused():
    with pytest.raises(InputError, match="3 rows"):
        evaluate_logits({"q": np.zeros((2, 4), np.float32)}, np.zeros(3, np.int64))


def test_a_hold_out_without_the_voters_is_refused():
    z = np.zeros((2, 4), np.float32)
    with pytest.raises(InputError, match="'q'"):
        evaluate_logits({"q": z}, np.zeros(2, np.int64), holdout=({"s": z}, np.zeros(2, np.int64)))


def test_the_ensemble_corrects_and_introduces_errors():
    labels = np.zeros(6, np.int64)
    a, b = one_hot([0, 1, 1, 0, 1, 0]), one_hot([0, 0, 1, 1, 2, 0])
    # wrong only in a: 1; only in b: 3; in both: 2 4; the ensemble is right about 1 and 4, and wrong about 0
    m = pair_metrics(a, b, labels, one_hot([1, 0, 1, 1, 0, 0]))
    assert m["errors"] == {"only_first": 1, "only_second": 1, "both": 2, "either": 4}
    assert m["corrected"] == {"only_first": 1, "only_second": 0, "both": 1, "either": 2}
    assert m["introduced"] == 1
    assert "corrected" not in pair_metrics(a, b, labels)


def test_probability_mean_is_the_mean_of_probabilities():
    p, r = [[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.6, 0.4]]
    np.testing.assert_allclose(softmax(probability_mean([logits_of(p), logits_of(r)])), [[0.7, 0.3], [0.4, 0.6]], rtol=1e-6)


def test_probability_mean_may_disagree_with_the_mean_of_logits():
    # Arithmetic means of probabilities: .405 .225 .37, class 0. Geometric ones, those of logits: .089 .212 .186, class 1.
    q, s = logits_of([[0.80, 0.15, 0.05]]), logits_of([[0.01, 0.30, 0.69]])
    for label, by_probability, by_logits in ((0, 1, 0), (1, 0, 1), (2, 0, 0)):
        result = evaluate_logits({"q": q, "s": s}, np.array([label]))
        assert result["probability_mean"]["correct"] == by_probability
        assert result["correct"]["ensemble"] == by_logits
    result = evaluate_logits({"q": q, "s": s}, np.array([1]))
    geometric = [math.sqrt(a * b) for a, b in ((0.80, 0.01), (0.15, 0.30), (0.05, 0.69))]
    assert result["probability_mean"]["nll"] == pytest.approx(-math.log(0.225), rel=1e-5)
    assert result["members"]["ensemble"]["nll"] == pytest.approx(-math.log(geometric[1] / sum(geometric)), rel=1e-5)


def test_probability_mean_of_impossible_and_invalid_logits():
    sure = np.array([[1e4, -1e4], [np.nan, 0.0]], np.float32)
    mean = probability_mean([sure, sure])
    assert np.isfinite(mean[0]).all() and np.isnan(mean[1]).all()


def test_temperature_undoes_a_factor():
    # Labels drawn from softmax(z) itself: z is calibrated, so 3 z needs a temperature of 3.
    rng = np.random.default_rng(0)
    z = rng.normal(size=(20_000, 4)) * 2
    labels = np.array([rng.choice(4, p=row) for row in softmax(z)])
    t = fit_temperature(3 * z, labels)
    assert t == pytest.approx(3, rel=0.03)
    grid = [negative_log_likelihood(3 * z / (t * f), labels) for f in (0.99, 1.0, 1.01)]
    assert grid[1] < grid[0] and grid[1] < grid[2]
    scaled = scaled_metrics(3 * z, labels, t)
    assert scaled["ece"] < 0.02 < expected_calibration_error(softmax(3 * z), labels)
    assert scaled["nll"] == pytest.approx(grid[1])


def test_temperature_by_hand():
    # Three of four right with margin 2 over two classes: sigmoid(2 / T) = 3/4, T = 2 / ln 3.
    z, labels = np.array([[2.0, 0.0]] * 4), np.array([0, 0, 0, 1])
    assert fit_temperature(z, labels) == pytest.approx(2 / math.log(3), rel=1e-9)


def test_temperature_without_errors_is_the_lowest():
    assert fit_temperature(np.array([[2.0, 0.0]]), np.array([0])) == pytest.approx(0.01)
    for bad in (np.zeros((0, 2)), np.array([[np.nan, 0.0]])):
        with pytest.raises(InputError, match="temperature"):
            fit_temperature(bad, np.zeros(len(bad), np.int64))


def test_temperatures_are_fitted_on_the_hold_out_for_every_member():
    rng = np.random.default_rng(1)
    labels, z = rng.integers(0, 3, 400), {}
    for name in ("q", "s", "o"):
        z[name] = (rng.normal(size=(400, 3)) * 3 + 2 * one_hot(labels)).astype(np.float32)
    test, rest = slice(0, 200), slice(200, 400)
    result = evaluate_logits(
        {n: v[test] for n, v in z.items()}, labels[test], ["q", "s"],
        holdout=({n: v[rest] for n, v in z.items()}, labels[rest]),
    )
    assert set(result["scaled"]) == {"q", "s", "o", "ensemble", "probability_mean"}
    ensemble = (z["q"] + z["s"]) / 2
    assert result["scaled"]["ensemble"]["temperature"] == pytest.approx(fit_temperature(ensemble[rest], labels[rest]), rel=1e-6)
    assert result["scaled"]["q"]["nll"] < result["members"]["q"]["nll"]
    assert result["scaled"]["q"] == scaled_metrics(z["q"][test], labels[test], fit_temperature(z["q"][rest], labels[rest]))
    json.dumps(result, allow_nan=False)
    broken = {**{n: v[test].copy() for n, v in z.items()}}
    broken["o"][0, 0] = np.nan
    assert "o" not in evaluate_logits(broken, labels[test], ["q", "s"], holdout=(z, labels))["scaled"]
