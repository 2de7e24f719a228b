import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import scipy.linalg
from threadpoolctl import threadpool_info

from mergekern.kernels import lapack


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.mark.parametrize("n", [1, 2, 3, 33, 200])
def test_partial_eigenvectors(n):
    rng = np.random.default_rng(n)
    matrix = rng.standard_normal((n + 3, n))
    gram = np.zeros((n, n))
    lapack.add_gram(matrix, gram, of_rows=False)
    full = matrix.T @ matrix
    np.testing.assert_allclose(np.triu(gram), np.triu(full), atol=1e-12)
    diagonal, off_diagonal, scales = lapack.tridiagonalise(gram)
    values = lapack.tridiagonal_values(diagonal, off_diagonal)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(full), atol=1e-11)
    wanted = np.unique([0, n - 1])
    vectors = lapack.tridiagonal_vectors(diagonal, off_diagonal, values[wanted])
    lapack.back_transform(gram, scales, vectors)
    np.testing.assert_allclose(vectors @ full, values[wanted][:, None] * vectors, atol=1e-10)


@pytest.mark.parametrize("off", [np.zeros(49), np.where(np.arange(49) % 7, 0.5, 0.0)], ids=["diagonal", "split"])
def test_vectors_of_split_and_repeated_tridiagonals(off):
    diagonal = np.repeat([3.0, 2.0, 1.0, 1.0, 0.0], 10)
    values = lapack.tridiagonal_values(diagonal, off)
    vectors = lapack.tridiagonal_vectors(diagonal, off, values[:15])
    matrix = np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)
    np.testing.assert_allclose(vectors @ matrix, values[:15, None] * vectors, atol=1e-12)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(15), atol=1e-10)


def test_a_failed_inverse_iteration_is_seen_and_replaced(monkeypatch):
    diagonal, off = np.arange(20.0), np.full(19, 0.3)
    values = lapack.tridiagonal_values(diagonal, off)
    expected = lapack.tridiagonal_vectors(diagonal, off, values[:5])
    routine = lapack._routine
    idle = {"dstein": lambda *_: None}  # the output is not touched
    monkeypatch.setattr(lapack, "_routine", lambda name: idle.get(name) or routine(name))
    found = lapack.tridiagonal_vectors(diagonal, off, values[:5])
    np.testing.assert_allclose(np.abs(np.sum(found * expected, axis=1)), np.ones(5), atol=1e-12)


def test_products_and_thin_svd():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 5)), rng.standard_normal((5, 7))
    np.testing.assert_allclose(lapack.multiply(a, b), a @ b, atol=1e-14)
    out = np.full((3, 20), np.nan)
    lapack.project(b.T.copy(), a, out, 2, of_rows=False)
    np.testing.assert_allclose(out[:, 2:9], a @ b, atol=1e-14)
    lapack.project(b, a, out, 9, of_rows=True)
    np.testing.assert_allclose(out[:, 9:16], a @ b, atol=1e-14)
    assert np.isnan(out[:, :2]).all()
    assert np.isnan(out[:, 16:]).all()
    rotation, values, vectors = lapack.thin_svd(b.copy(), np.empty_like(b))
    np.testing.assert_allclose(values, scipy.linalg.svdvals(b), atol=1e-13)
    np.testing.assert_allclose(rotation @ b, values[:, None] * vectors, atol=1e-13)


def with_two_blas_threads(program):
    """Run a program in a process of its own: in this one BLAS may have a single thread, and no limit would show."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    return run.stdout.strip()


def overlapping_users():
    lapack.multiply(np.eye(2), np.eye(2))  # the library is there from here on
    before = blas_threads()
    assert set(before) == {2}
    inside, release = threading.Event(), threading.Event()

    def other():
        with lapack.single_threaded_pool(1) as pool:
            pool.submit(inside.set)
            assert release.wait(60)

    thread = threading.Thread(target=other)
    with lapack.single_threaded_pool(2) as pool:
        assert set(pool.submit(blas_threads).result()) == {1}
        thread.start()
        assert inside.wait(60)
    assert set(blas_threads()) == {1}
    release.set()
    thread.join()
    assert blas_threads() == before


def test_blas_threads_are_restored_when_the_last_of_overlapping_users_leaves():
    program = "from tests.kernels import test_lapack; test_lapack.overlapping_users(); print('done')"
    assert with_two_blas_threads(program) == "done"


def test_the_first_pool_of_a_process_limits_the_library_it_uses():
    program = """
import numpy as np
from mergekern.kernels import lapack
from threadpoolctl import threadpool_info
with lapack.single_threaded_pool(2) as pool:
    pool.submit(lapack.multiply, np.eye(2), np.eye(2)).result()
    inside = threadpool_info()
for libraries in (inside, threadpool_info()):
    print(sorted({library["num_threads"] for library in libraries if library["user_api"] == "blas"}))
"""
    assert with_two_blas_threads(program) == "[1]\n[2]"


def test_an_error_drops_the_tasks_that_wait():
    begun = []

    def fails(item):
        begun.append(item)
        if item == 0:
            raise ValueError("no")
        time.sleep(0.01)

    with pytest.raises(ValueError, match="no"), lapack.single_threaded_pool(1) as pool:
        list(pool.map(fails, range(1000)))
    assert len(begun) < 1000
