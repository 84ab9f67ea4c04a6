"""npk_kernel: the neural path kernel of a torch net as a kernel for the estimators of scikit-learn."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.gaussian_process.kernels import Kernel
from sklearn.utils import check_array
from torch import nn

from gatedops.sklearn.kernels import GateKernel, Points
from gatedops.sklearn.networks import GivenNetwork
from gatedops.trace.checks import require_model


def npk_kernel(
    net: nn.Module, sigma: bool = True, normalize: bool = False, *, input_shape: Sequence[int] | None = None
) -> NPKKernel:
    """Returns the neural path kernel of a net, for ``SVC(kernel=...)`` and all other estimators that take a kernel.

        kernel = npk_kernel(net)
        SVC(kernel=kernel).fit(X, y)
        GaussianProcessRegressor(ConstantKernel() * kernel + WhiteKernel()).fit(X, y)

    The kernel is an object of :class:`sklearn.gaussian_process.kernels.Kernel`. scikit-learn calls such an object with
    whole matrices: SVC, SVR, OneClassSVM, KernelPCA, KernelRidge, Nystroem, SpectralClustering, LabelPropagation and
    the Gaussian processes do so. A plain function is another matter: ``sklearn.metrics.pairwise.pairwise_kernels``, on
    which KernelRidge, Nystroem, KernelPCA and SpectralClustering rely, calls a function once per pair of rows. So give
    these estimators the object itself, not a lambda or a method that calls it. A pair of rows gives the right number,
    but each call takes some milliseconds. Or give them kernel="precomputed" and the kernel that :class:`NPKTransformer`
    computes, in a Pipeline or once for a whole grid search:

        K = NPKTransformer(net).fit_transform(X)
        GridSearchCV(SVC(kernel="precomputed"), {"C": [1, 10]}).fit(K, y)

    Args:
        net: a torch ReLU net. The kernel takes a copy, so it is that of the net as it is now.
        sigma: whether the inner products of the inputs are a factor: Sigma * Lambda, or Lambda alone. False is for
            fully connected nets.
        normalize: whether to divide by ``sqrt(k(x, x) k(y, y))``; inputs with ``k(x, x) = 0`` give 0.
        input_shape: the shape of one input of the net, such as (1, 28, 28), to which rows are reshaped; None: rows are
            the inputs.

    Raises:
        TypeError: net is not a torch module. ValueError: it is TorchScript.
    """
    require_model(net, "net")
    return NPKKernel(copy.deepcopy(net).eval(), sigma, normalize, input_shape)


class NPKKernel(Kernel):
    """The kernel that :func:`npk_kernel` returns, with its arguments as parameters.

    It has no hyperparameters, so `theta` is empty. It can be pickled, cloned, and added to or multiplied by other
    kernels. For fully connected nets it is Sigma times the product over layers of 2 / width times the number of gates
    that two inputs share. For other nets it is :func:`gatedops.npk` times a power of 2.

    Its net must not be changed in place after the first call.
    """

    # The kernel that was made last, and the parameters and the number of features for which it was made.
    _last: tuple[tuple[Any, ...], GateKernel] | None = None

    def __init__(
        self,
        net: nn.Module,
        sigma: bool = True,
        normalize: bool = False,
        input_shape: Sequence[int] | None = None,
    ) -> None:
        self.net = net
        self.sigma = sigma
        self.normalize = normalize
        self.input_shape = input_shape

    def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
        """Returns the kernel of the rows of X with those of Y.

        Args:
            X: ``(n, d)``, or one row ``(d,)``.
            Y: ``(m, d)``, or one row ``(d,)`` if X is one row; None: X.
            eval_gradient: whether to return the gradient in theta too, which has no entries. Y must be None.

        Returns:
            float64 ``(n, m)``, symmetric if Y is None; a float if X is one row. With eval_gradient: that, and an array
            ``(n, n, 0)``.

        Raises:
            ValueError: X or Y is not an array of finite numbers, or the net does not take their rows.
        """
        if eval_gradient and Y is not None:
            raise ValueError("eval_gradient: got True and Y, needs Y=None: the gradient is that of k(X, X)")
        is_row = np.ndim(X) == 1
        if is_row:
            X, Y = np.asarray(X)[None], None if Y is None else np.asarray(Y)[None]
        rows = _checked(X, "X")
        columns = None if Y is None else _checked(Y, "Y")
        if columns is not None and rows.shape[1] != columns.shape[1]:
            raise ValueError(f"Y: has {columns.shape[1]} features, needs those of X, {rows.shape[1]}")
        matrix = self._matrix(rows, columns)
        if is_row:
            return float(matrix[0, 0])
        return (matrix, np.empty((*matrix.shape, 0))) if eval_gradient else matrix

    def diag(self, X: Any) -> np.ndarray:
        """Returns the diagonal of k(X, X), float64 ``(n,)``."""
        kernel, rows = self._made(_checked(X, "X"))
        diagonal = _diagonal(kernel, rows)
        return (diagonal > 0).astype(np.float64) if self.normalize else diagonal

    def is_stationary(self) -> bool:
        """Returns False: the kernel does not depend on x - y alone."""
        return False

    def __repr__(self) -> str:
        return f"NPKKernel(sigma={self.sigma}, normalize={self.normalize})"

    def __getstate__(self) -> dict[str, Any]:
        return self.get_params()

    def _matrix(self, X: np.ndarray, Y: np.ndarray | None) -> np.ndarray:
        kernel, rows = self._made(X)
        columns = None if Y is None else kernel.new_points(Y)
        operator = kernel.square(rows) if columns is None else kernel.cross(rows, columns)
        matrix = operator.to_dense().numpy()
        if self.normalize:
            left = _inverse_roots(_diagonal(kernel, rows))
            right = left if columns is None else _inverse_roots(_diagonal(kernel, columns))
            matrix *= np.outer(left, right)
        return matrix

    def _made(self, X: np.ndarray) -> tuple[GateKernel, Points]:
        """Returns the kernel for inputs of this number of features, and the inputs with their gates."""
        made_for = (self.net, self.sigma, self.input_shape, X.shape[1])
        # Another thread may replace the last one.
        last = self._last
        if last is None or last[0] != made_for:
            network = GivenNetwork(self.net, X, self.input_shape)
            last = made_for, GateKernel(network, Points.of(network, X[:1]), sigma=self.sigma)
            self._last = last
        kernel = last[1]
        return kernel, kernel.new_points(X)


def _checked(X: Any, name: str) -> np.ndarray:
    return check_array(X, dtype=np.float64, input_name=name)


def _diagonal(kernel: GateKernel, points: Points) -> np.ndarray:
    return kernel.square(points).diag().numpy()


def _inverse_roots(diagonal: np.ndarray) -> np.ndarray:
    """Returns ``diagonal ** -0.5``, or 0 where the diagonal is 0."""
    on = diagonal > 0
    return np.where(on, diagonal, 1.0) ** -0.5 * on
