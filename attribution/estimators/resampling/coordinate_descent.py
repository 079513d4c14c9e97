"""LASSO paths by cyclic coordinate descent, compiled for the CPU (Friedman et al. 2010).

For one query, from c = X~'y / M and a path of lambdas: minimise (1/2M) |y - X~ w|^2 + lambda |w|_1
at one lambda after the other. Only the columns that were ever admitted are swept, on their own
Gram matrix; then the gradient of every column is formed afresh and violators are admitted, until
there are none. So the solution is one over all columns, and rounding does not pile up.

One module, for Numba's cache on disk does not notice a change in another file. The functions
release the interpreter lock and start no threads.
"""

import numba
import numpy as np

MOST_SWEEPS = 100_000
# A held-out error so far above the least one belongs to a path that has passed its best lambda.
WORSE = 1.1
ROOM = 64


@numba.njit(nogil=True, fastmath={"contract", "reassoc"})
def _product(left, right):  # type: ignore[no-untyped-def]
    total = 0.0
    for place in range(len(left)):
        total += left[place] * right[place]
    return total


@numba.njit(nogil=True)
def _refresh(held, is_gram, response, correlation, active, count, weights, gradient):  # type: ignore[no-untyped-def]
    """The gradient X~'(y - X~ w) / M of every column."""
    if is_gram:
        gradient[:] = correlation
        for k in range(count):
            if weights[k] != 0.0:
                row, weight = held[active[k]], weights[k]
                for j in range(len(gradient)):
                    gradient[j] -= weight * row[j]
        return
    left = response.copy()
    for k in range(count):
        if weights[k] != 0.0:
            row, weight = held[active[k]], weights[k]
            for j in range(len(left)):
                left[j] -= weight * row[j]
    for j in range(len(gradient)):
        gradient[j] = _product(held[j], left) / len(left)


@numba.njit(nogil=True)
def _grown(own, held, is_gram, active, old, count):  # type: ignore[no-untyped-def]
    """The Gram matrix of the active columns, with rows old..count filled in."""
    if count > len(own):
        larger = np.empty((max(count, 2 * len(own)), max(count, 2 * len(own))))
        larger[:old, :old] = own[:old, :old]
        own = larger
    for k in range(old, count):
        for other in range(k + 1):
            if is_gram:
                value = np.float64(held[active[k], active[other]])
            else:
                row = held[active[k]]
                value = _product(row, held[active[other]]) / len(row)
            own[k, other] = value
            own[other, k] = value
    return own


@numba.njit(nogil=True)
def _sweep(own, count, strength, tolerance, weights, left):  # type: ignore[no-untyped-def]
    """Descend on the active columns until no weight moves; left is their gradient."""
    for _ in range(MOST_SWEEPS):
        largest = 0.0
        for k in range(count):
            old, curvature = weights[k], own[k, k]
            target = left[k] + old * curvature
            size = abs(target) - strength
            new = 0.0 if size <= 0.0 else np.sign(target) * size / curvature
            if new != old:
                moved = new - old
                row = own[k]
                for other in range(count):
                    left[other] -= moved * row[other]
                weights[k] = new
                largest = max(largest, abs(moved))
        if largest <= tolerance:
            return True
    return False


@numba.njit(nogil=True)
def _held_out_error(active, count, weights, inverse_sigma, test, test_basis, loadings, target):  # type: ignore[no-untyped-def]
    """Sum of squares of target - X w + Q Q'X w over the held-out rows."""
    left = target.copy()
    explained = np.zeros(test_basis.shape[1])
    for k in range(count):
        weight = weights[k] * inverse_sigma[active[k]]
        if weight != 0.0:
            row = test[active[k]]
            for j in range(len(left)):
                left[j] -= weight * row[j]
            for j in range(len(explained)):
                explained[j] += weight * loadings[j, active[k]]
    total = 0.0
    for j in range(len(left)):
        total += (left[j] + _product(test_basis[j], explained)) ** 2
    return total


@numba.njit(cache=True, nogil=True)
def descend(  # type: ignore[no-untyped-def]
    held, is_gram, response, correlation, lambdas, tolerance, test, patience, found, errors
):
    """The path of one query: fills found [n] at its last lambda, and errors [path].

    Args:
        held: X~'X~ / M [n, n], or X~' [n, M].
        is_gram: Which of the two.
        response: What F leaves of y, [M]; not read where the Gram matrix is held.
        correlation: X~'y / M, [n].
        lambdas: Descending, [path].
        tolerance: Largest move of a weight in a last sweep.
        test: Of held-out rows: masks uint8 [n, rows], Q [rows, r], Q'X [r, n], 1 / sigma [n] and
            outputs less their unpenalised part [rows]; no rows, no errors.
        patience: The path ends when so many lambdas in a row have not improved the error, and it
            has become a tenth worse.
        found: float64 [n].
        errors: float64 [path], infinite where the path did not come.

    Returns:
        Whether every lambda was solved to the tolerance.
    """
    test_masks, test_basis, loadings, inverse_sigma, target = test
    gradient = correlation.copy()
    inside = np.zeros(len(correlation), dtype=np.bool_)
    active = np.empty(len(correlation), dtype=np.int64)
    weights = np.zeros(len(correlation))
    own = np.empty((ROOM, ROOM))
    count, solved, best, waited = 0, True, np.inf, 0
    for level in range(len(lambdas)):
        strength = lambdas[level]
        fresh = True
        while True:
            old = count
            for j in range(len(gradient)):
                if not inside[j] and abs(gradient[j]) > strength + tolerance:
                    inside[j] = True
                    active[count] = j
                    count += 1
            # At a new lambda the active columns move first, and may call in others.
            if count == old and not fresh:
                break
            fresh = False
            own = _grown(own, held, is_gram, active, old, count)
            solved &= _sweep(own, count, strength, tolerance, weights, gradient[active[:count]])
            _refresh(held, is_gram, response, correlation, active, count, weights, gradient)
        if len(target):
            errors[level] = _held_out_error(
                active, count, weights, inverse_sigma, test_masks, test_basis, loadings, target
            )
            waited = 0 if errors[level] < best else waited + 1
            best = min(best, errors[level])
            if waited >= patience and errors[level] > WORSE * best:
                break
    for k in range(count):
        found[active[k]] = weights[k]
    return solved
