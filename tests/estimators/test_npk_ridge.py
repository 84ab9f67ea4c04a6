"""NPKRidge equals dense kernel ridge regression in float64, for every form of network and of X."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from dense_kernels import dense_npk, dense_ridge, leave_one_out, made_inputs
from sklearn.exceptions import NotFittedError
from torch import nn

import gatedops
from gatedops.sklearn import NPKClassifier, NPKRidge
from gatedops.solve.loo import RIDGES

SMALL = {"width": 48, "depth": 2, "random_state": 0}
X, X_NEW = np.split(np.random.RandomState(0).rand(47, 5), [40])
Y = np.stack([np.sin(5 * X[:, 0]), X[:, 1] * X[:, 2]], 1)
NOISY = Y + 0.2 * np.random.RandomState(1).randn(*Y.shape)


def leaky_net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 30), nn.LeakyReLU(0.25), nn.Linear(30, 20), nn.LeakyReLU(0.25), nn.Linear(20, 1))
    return net.double()


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 2))


def expected(fitted, targets, ridge, **options):
    """The predictions for X_NEW of dense kernel ridge regression."""
    x, x_new = made_inputs(fitted.network_, X), made_inputs(fitted.network_, X_NEW)
    net = fitted.network_.net
    alpha, mean = dense_ridge(dense_npk(net, x, x, **options), targets, ridge)
    return dense_npk(net, x_new, x, **options) @ alpha + mean, alpha


@pytest.mark.parametrize("targets", [Y, Y[:, 0]], ids=["two targets", "one target"])
@pytest.mark.parametrize("sigma", [True, False])
@pytest.mark.parametrize("gates", ["random", "trained"])
def test_equals_dense_kernel_ridge(gates, sigma, targets):
    fitted = NPKRidge(gates=gates, epochs=2, sigma=sigma, ridge=0.05, **SMALL).fit(X, targets)
    predictions, alpha = expected(fitted, targets, 0.05, sigma=sigma)
    np.testing.assert_allclose(fitted.predict(X_NEW), predictions, rtol=1e-9)
    np.testing.assert_allclose(fitted.dual_coef_, alpha, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(fitted.intercept_, targets.mean(0), rtol=1e-12)
    assert fitted.ridge_ == 0.05
    assert fitted.n_iter_ is None


def test_conjugate_gradients_reach_tol():
    fitted = NPKRidge(method="cg", tol=1e-10, ridge=0.05, **SMALL).fit(X, Y)
    np.testing.assert_allclose(fitted.predict(X_NEW), expected(fitted, Y, 0.05)[0], rtol=1e-7)
    assert fitted.n_iter_ > 0
    assert fitted.solution_.method == "cg"


def test_a_given_net_is_used_as_it_is():
    net = leaky_net()
    fitted = NPKRidge(net, ridge=0.05).fit(X, Y)
    alpha, mean = dense_ridge(dense_npk(net, X, X, slope=0.25), Y, 0.05)
    np.testing.assert_allclose(fitted.predict(X_NEW), dense_npk(net, X_NEW, X, slope=0.25) @ alpha + mean, rtol=1e-9)
    assert net.training
    assert fitted.network_.net is not net


def test_a_convolutional_net_takes_rows_as_images():
    images = np.random.RandomState(2).randint(0, 256, (30, 64)).astype(np.uint8)
    net, targets = conv_net(), Y[:20, 0]
    fitted = NPKRidge(net, ridge=0.05, input_shape=(1, 8, 8)).fit(images[:20], targets)
    H = gatedops.npk(net, images.reshape(30, 1, 8, 8), dtype=torch.float64).numpy()
    alpha, mean = dense_ridge(H[:20, :20], targets, 0.05)
    # The entries are float32, because the images are bytes.
    np.testing.assert_allclose(fitted.predict(images[20:]), H[20:, :20] @ alpha + mean, rtol=1e-4)
    assert fitted.X_fit_.dtype == np.uint8


def test_of_several_ridges_the_smallest_squared_leave_one_out_error_wins():
    ridges = [1e-4, 1e-2, 0.3, 10.0]
    fitted = NPKRidge(ridge=np.array(ridges), **SMALL).fit(X, NOISY)
    x = made_inputs(fitted.network_, X)
    K = dense_npk(fitted.network_.net, x)
    errors = [np.square(leave_one_out(K, NOISY, ridge) - NOISY).sum() for ridge in ridges]
    assert fitted.ridge_ == ridges[int(np.argmin(errors))]
    assert fitted.ridge_ in ridges[1:3]
    assert NPKRidge(ridge="loo", **SMALL).fit(X, NOISY).ridge_ in RIDGES


def test_many_points_choose_the_same_ridge_without_an_eigendecomposition(monkeypatch):
    labels = (Y[:, 0] > 0).astype(int) + (Y[:, 1] > 0.3)
    pairs = [(NPKRidge, NOISY), (NPKClassifier, labels)]
    chosen = [kind(ridge="loo", **SMALL).fit(X, y).ridge_ for kind, y in pairs]
    monkeypatch.setattr("gatedops.sklearn.ridges._DECOMPOSED", 10)
    assert [kind(ridge="loo", **SMALL).fit(X, y).ridge_ for kind, y in pairs] == chosen
    assert all(RIDGES[0] < ridge < RIDGES[-1] for ridge in chosen)


def test_the_solution_serves_other_functions():
    fitted = NPKRidge(ridge=0.05, **SMALL).fit(X, Y)
    x = made_inputs(fitted.network_, X)
    residuals = gatedops.solve.loo(fitted.solution_).numpy()
    said = leave_one_out(dense_npk(fitted.network_.net, x, x), Y, 0.05)
    np.testing.assert_allclose(Y - residuals, said, rtol=1e-8, atol=1e-10)
    assert "Cholesky" in str(fitted.solution_)


def test_frames_and_bytes_and_read_only_arrays():
    grey = np.random.RandomState(2).randint(0, 256, (40, 5)).astype(np.uint8)
    plain = NPKRidge(ridge=0.1, **SMALL).fit(grey.astype(np.float64), Y)
    said = plain.predict(grey[:9].astype(np.float64))
    frame = pd.DataFrame(grey, columns=list("abcde"))
    of_frame = NPKRidge(ridge=0.1, **SMALL).fit(frame, pd.DataFrame(Y))
    # Kernels of bytes are float32.
    np.testing.assert_allclose(of_frame.predict(frame[:9]), said, rtol=1e-4)
    assert of_frame.feature_names_in_.tolist() == list("abcde")
    with pytest.raises(ValueError, match="feature names should match"):
        of_frame.predict(frame[["b", "a", "c", "d", "e"]])
    frozen = grey.astype(np.int64)
    frozen.flags.writeable = False
    np.testing.assert_array_equal(NPKRidge(ridge=0.1, **SMALL).fit(frozen, Y).predict(frozen[:9]), said)


@pytest.mark.parametrize("net", [None, leaky_net().float()], ids=["made", "given"])
def test_a_ridge_too_small_for_float32_is_solved_and_predicted_in_float64(net):
    single = X.astype(np.float32)
    fitted = NPKRidge(net, ridge=1e-9, **SMALL).fit(single, Y)
    np.testing.assert_allclose(fitted.predict(single), Y, atol=2e-6)
    residuals = gatedops.solve.loo(fitted.solution_).numpy()
    assert np.square(residuals).sum() < np.square(Y - Y.mean(0)).sum()


@pytest.mark.parametrize(("first", "second"), [(np.uint8, np.float64), (np.float64, np.uint8)])
def test_a_given_net_takes_bytes_after_floats_and_floats_after_bytes(first, second):
    grey = np.random.RandomState(2).randint(0, 4, (40, 5)).astype(np.uint8)
    fitted = NPKRidge(leaky_net(), ridge=0.1).fit(grey.astype(first), Y)
    np.testing.assert_allclose(
        fitted.predict(grey[:9].astype(second)), fitted.predict(grey[:9].astype(first)), rtol=1e-5
    )


def test_one_feature_constant_targets_and_one_point():
    line = np.linspace(-3, 3, 200)[:, None]
    wave = np.sin(2 * line[:, 0])
    assert NPKRidge(width=256, random_state=0).fit(line[::2], wave[::2]).score(line[1::2], wave[1::2]) > 0.99
    for ridge in (1e-3, "loo"):
        np.testing.assert_array_equal(NPKRidge(ridge=ridge, **SMALL).fit(X, np.full(40, 0.1)).predict(X_NEW), 0.1)
    np.testing.assert_array_equal(NPKRidge(ridge="loo", **SMALL).fit(X[:1], [3.0]).predict(X_NEW), 3.0)
    np.testing.assert_allclose(NPKRidge(**SMALL).fit(np.ones((9, 2)), np.arange(9.0)).predict([[1, 1]]), 4.0)


def test_unit_and_origin_of_X_do_not_matter():
    near = NPKRidge(**SMALL).fit(X, Y).predict(X_NEW)
    np.testing.assert_allclose(NPKRidge(**SMALL).fit(1000 * X - 5e3, Y).predict(1000 * X_NEW - 5e3), near, rtol=1e-6)


def test_the_same_random_state_gives_the_same_bits_and_leaves_others_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    made = [NPKRidge(gates="trained", epochs=2, width=16, random_state=seed).fit(X, Y).predict(X) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_training_learns_the_gates():
    """A net that was trained fits y by itself."""
    fitted = NPKRidge(gates="trained", epochs=200, width=48, random_state=0).fit(X, Y)
    outputs = fitted.network_.net(fitted.network_.inputs(X)).detach().numpy()
    assert np.square(outputs - (Y - Y.mean(0)) / Y.std(0)).mean() < 0.02


WRONG = [
    ({"ridge": -1.0}, ValueError, "ridge: got -1, needs a finite number of at least 0"),
    ({"ridge": "best"}, TypeError, "ridge: got 'best', needs a number, a list of numbers, or 'loo'"),
    ({"ridge": []}, ValueError, "ridge: got an empty list"),
    ({"ridge": None}, TypeError, "ridge: got None, needs a number"),
    ({"ridge": [1.0, "a"]}, TypeError, "ridge: got 'a', needs a number"),
    ({"gates": "learned"}, ValueError, "gates: got 'learned', needs 'random' or 'trained'"),
    ({"width": 0}, ValueError, "width: got 0, needs at least 1"),
    ({"depth": 1.5}, TypeError, "depth: got 1.5, needs a whole number"),
    ({"method": "nystrom"}, ValueError, "method: got 'nystrom', needs one of"),
    ({"tol": 2.0}, ValueError, "tol: got 2, needs"),
    ({"net": "mlp"}, TypeError, "net: got str, needs a torch.nn.Module"),
    ({"net": nn.Linear(3, 1)}, ValueError, "net: got one that does not take inputs of shape \\(5,\\), .* needs 3"),
    ({"net": leaky_net(), "gates": "trained"}, ValueError, "gates: got 'trained' and a net"),
    ({"net": leaky_net(), "input_shape": (2, 2)}, ValueError, "input_shape: got \\(2, 2\\), 4 numbers, but X has 5"),
    ({"net": leaky_net(), "input_shape": 5}, TypeError, "input_shape: got 5, needs a sequence of whole numbers"),
    ({"input_shape": (5,)}, ValueError, "input_shape: got \\(5,\\), but no net"),
]


@pytest.mark.parametrize(("given", "error", "message"), WRONG, ids=[str(list(wrong[0])) for wrong in WRONG])
def test_bad_parameters_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        NPKRidge(**given).fit(X, Y)


@pytest.mark.parametrize("exponent", [-538, -900, 660])
def test_variances_that_overflow_or_underflow_change_nothing(exponent):
    unit = 2.0**exponent
    near = NPKRidge(**SMALL).fit(X, Y).predict(X_NEW)
    np.testing.assert_array_equal(NPKRidge(**SMALL).fit(unit * X, Y).predict(unit * X_NEW), near)


def test_a_fit_that_fails_leaves_the_earlier_one():
    fitted = NPKRidge(**SMALL).fit(X, Y)
    before = fitted.predict(X_NEW)
    twice, solved = np.repeat(X[:20, :4], 2, 0), fitted.solution_
    with pytest.raises(ValueError, match=r"the kernel of X: .*, or a float64 kernel if the kernel of X is float32"):
        fitted.set_params(ridge=0).fit(twice, Y)
    np.testing.assert_array_equal(fitted.predict(X_NEW), before)
    assert fitted.n_features_in_ == 5
    assert fitted.ridge_ == solved.ridge
    fresh = NPKRidge(ridge=0, **SMALL)
    with pytest.raises(ValueError, match="the kernel of X"):
        fresh.fit(twice, Y)
    with pytest.raises(NotFittedError):
        fresh.predict(X_NEW)


def test_a_missing_target_is_refused():
    targets = NOISY[:, 0].astype(object)
    targets[3] = None
    with pytest.raises(ValueError, match="Input y contains NaN"):
        NPKRidge(**SMALL).fit(X, targets)


def test_numbers_at_the_end_of_float64_are_refused():
    with pytest.raises(ValueError, match=r"X: got 1e\+307, needs numbers up to 1e\+300"):
        NPKRidge(**SMALL).fit(1e307 * X / np.abs(X).max(), Y)


def test_lambda_alone_is_of_fully_connected_nets():
    with pytest.raises(ValueError, match="sigma: got False, needs True, because the given net is not fully connected"):
        NPKRidge(conv_net(), input_shape=(1, 8, 8), sigma=False).fit(np.random.RandomState(2).rand(5, 64), Y[:5])
