"""NPKRidge: kernel ridge regression with the neural path kernel; and what the classifier shares with it."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import assert_all_finite

from gatedops.arrays import as_tensor
from gatedops.operators.base import KernelOperator
from gatedops.ops.checks import require_option
from gatedops.sklearn.base import GateEstimator, whole_or_not_at_all
from gatedops.sklearn.ridges import best_ridge, ridges_of
from gatedops.solve.ridge import kernel_ridge
from gatedops.solve.solution import Solution, SolvedSystem
from gatedops.trace.naming import naming

_METHODS = ("auto", "cholesky", "cg")
# What a Solution tells beside its arrays and its operator.
_REPORT = ("ridge", "iterations", "residuals", "recursive", "reason", "converged", "seconds", "method", "rank")


class RidgeEstimator(GateEstimator):
    """An estimator that solves a kernel ridge regression."""

    def __init__(
        self,
        net: Any = None,
        ridge: Any = 1e-3,
        random_state: Any = None,
        *,
        gates: str = "random",
        width: int = 512,
        depth: int = 2,
        epochs: int = 10,
        input_shape: Any = None,
        sigma: bool = True,
        method: str = "auto",
        tol: float = 1e-3,
        progress: bool | None = False,
    ) -> None:
        self.net = net
        self.ridge = ridge
        self.random_state = random_state
        self.gates = gates
        self.width = width
        self.depth = depth
        self.epochs = epochs
        self.input_shape = input_shape
        self.sigma = sigma
        self.method = method
        self.tol = tol
        self.progress = progress

    @property
    def solution_(self) -> Solution:
        """The :class:`gatedops.solve.Solution`, for leave-one-out and other functions of gatedops.solve. Its operator
        is made anew by each use, so that a fitted estimator keeps the gates but no kernel."""
        return Solution(
            alpha=as_tensor(self._columns(self.dual_coef_), "dual_coef_"),
            mean=as_tensor(np.atleast_1d(self.intercept_), "intercept_"),
            system=SolvedSystem(self._in_dtype(self.kernel_.square()), self._shift, as_tensor(self._targets, "y")),
            **self._report,
        )

    def _fit_ridge(self, X: np.ndarray, targets: np.ndarray, labels: np.ndarray | None) -> Solution:
        """Fits everything that regression and classification share.

        Args:
            X: ``(n, d)``, checked.
            targets: float64 ``(n, c)``.
            labels: int64 ``(n,)``, of which the targets are the one-hot form, or None.
        """
        require_option("method", self.method, _METHODS, listed=True)
        ridges = ridges_of(self.ridge)
        self._fit_network(X, targets if labels is None else labels)
        self._fit_kernel()
        K = self.kernel_.square()
        with naming({"K": "the kernel of X"}):
            self.ridge_ = best_ridge(K, targets, labels, ridges, self.tol)
            solution = kernel_ridge(K, targets, self.ridge_, method=self.method, tol=self.tol, progress=self.progress)
        self.dual_coef_ = solution.alpha.numpy()
        self.intercept_ = solution.mean.numpy()
        self.n_iter_ = solution.iterations if solution.method == "cg" else None
        self._report = {name: getattr(solution, name) for name in _REPORT}
        self._shift, self._targets, self._dtype = solution.system.shift, targets, solution.system.operator.dtype
        return solution

    def _scores(self, X: Any) -> np.ndarray:
        """Returns the predictions of the regression, float64 ``(m, c)``."""
        points = self._new_points(X)
        alpha = as_tensor(self._columns(self.dual_coef_), "dual_coef_")
        return self._in_dtype(self.kernel_.cross(points)).product(alpha).numpy() + self.intercept_

    def _in_dtype(self, operator: KernelOperator) -> KernelOperator:
        """The operator in the dtype in which the solve had it: float64 for ridges that are too small for float32."""
        return operator if operator.dtype == self._dtype else operator.with_dtype(self._dtype)

    def _columns(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(len(values), -1)


class NPKRidge(RegressorMixin, RidgeEstimator):
    """Kernel ridge regression with the neural path kernel ``Sigma * Lambda`` of a ReLU network's gates.

    It solves (K + ridge * mean(diag K) I) alpha = y - mean(y) by :func:`gatedops.solve.kernel_ridge`, for one target or
    several. With net=None the defaults come close to a Gaussian kernel whose width was tuned, on scikit-learn's toy
    data; there widths from 512 and depths from 1 to 4 differ by less than the data's noise. Of all choices the ridge
    matters most: for noisy data use ridge="loo".

    Args:
        net: a torch ReLU net, of which a copy is used; :func:`gatedops.npk` must know its layers. None: a new fully
            connected net for the number of features at hand. Its inputs are centred and divided by one scale, and a
            constant follows them, so that the unit and the origin of X do not matter; but the proportions of features
            do. Use a StandardScaler before if features have different units.
        ridge: a number of at least 0, in units of the mean of the diagonal of the kernel; or a list or array of such
            numbers, of which the one with the smallest sum of squared leave-one-out errors on the training points is
            chosen; or "loo": a list from 1e-8 to 100. Trained gates know the training points, so that their
            leave-one-out errors are too small; then choose by GridSearchCV. For more than 10,000 points each ridge is
            solved for by conjugate gradients: give a short list, of ridges that are not tiny.
        random_state: of the weights and the training of a new net: None, a number, or a numpy RandomState.
        gates: "random": the weights of a new net stay as they are drawn. "trained": the net is trained on X and y
            inside fit, by Adam.
        width, depth, epochs: of a new net: gates in each layer, layers with gates, passes of the training over X.
        input_shape: of one input of a given net, such as (1, 28, 28), to which each row of X is reshaped; None: the
            net takes the rows.
        sigma: whether inner products of inputs are a factor of the kernel. False: it is Lambda alone; for fully
            connected nets.
        method: "auto", "cholesky" or "cg", as in kernel_ridge.
        tol: of the solve, as in kernel_ridge.
        progress: whether to show a bar; None: on a terminal, if tqdm is installed.

    Attributes:
        dual_coef_: float64 ``(n,)`` or ``(n, targets)``, alpha.
        intercept_: the mean of y.
        ridge_: the ridge that is used.
        X_fit_: the training points ``(n, d)``; not copied if they are uint8, float32 or float64.
        n_iter_: steps of conjugate gradients; None if a Cholesky factorisation solved.
        solution_: the :class:`gatedops.solve.Solution`.
        n_features_in_, feature_names_in_: as in every estimator of scikit-learn.
        network_, points_, kernel_: the network, the packed gates of the training points, and their kernel.

    Kernels are float64; for an X of float32 or uint8 they are float32, or float64 if the ridge is too small for that.

    Raises (fit):
        TypeError, ValueError: X or y are not such numbers, a parameter has another type or value, or a given net does
            not take the rows of X.
    """

    @whole_or_not_at_all
    def fit(self, X: Any, y: Any) -> Self:
        """Fits the regression to X ``(n, d)`` and y ``(n,)`` or ``(n, targets)``."""
        X, y = self._checked_pair(X, y, multi_output=True, y_numeric=True)
        targets = self._columns(y).astype(np.float64)
        assert_all_finite(targets, input_name="y")  # None among objects has become NaN.
        self._fit_ridge(X, targets, None)
        if y.ndim == 1:
            self.dual_coef_, self.intercept_ = self.dual_coef_[:, 0], self.intercept_[0]
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Returns predictions for X ``(m, d)``, float64 ``(m,)`` or ``(m, targets)``, like y."""
        scores = self._scores(X)
        return scores[:, 0] if self.dual_coef_.ndim == 1 else scores

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.single_output = True
        tags.target_tags.multi_output = True
        return tags
