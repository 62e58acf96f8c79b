"""The identities of HiPPO-LegS and what is made of it."""

import numpy as np
import pytest

from ssm import initializers
from tests import golden
from tests.ssm.published import close


@pytest.mark.parametrize("n", [1, 4, 7, 8, 64])
def test_legs_is_normal_plus_rank_one(n):
    a, b = initializers.hippo_legs(n)
    eigenvalues, p, b_diagonal, v = initializers.legs_dplr(n)
    skew = a + np.outer(b, b) / 2 + np.eye(n) / 2  # P = B / sqrt(2)
    # Entries are of the size of n, sums of n of them.
    tolerance = n**2 * 2.0**-50
    np.testing.assert_allclose(skew, -skew.T, atol=tolerance)
    np.testing.assert_allclose(v @ v.conj().T, np.eye(n), atol=tolerance)
    whole = v @ (np.diag(eigenvalues) - np.outer(p, p.conj())) @ v.conj().T
    np.testing.assert_allclose(whole, a, atol=n * tolerance)
    np.testing.assert_allclose(v @ b_diagonal, b, atol=tolerance)
    np.testing.assert_allclose(b_diagonal, np.sqrt(2) * p, atol=tolerance)
    np.testing.assert_array_equal(eigenvalues.real, -0.5)
    np.testing.assert_allclose(
        eigenvalues, eigenvalues.conj()[::-1], atol=n * tolerance
    )
    if n <= 8:  # the problem is ill-conditioned beyond
        own = np.sort(np.linalg.eigvals(a).real)
        np.testing.assert_allclose(own, -np.arange(n, 0, -1), atol=1e-8)


def test_worked_numbers():
    eigenvalues, p, _, _ = initializers.legs_dplr(4)
    np.testing.assert_allclose(
        eigenvalues.imag[:2], [-4.6032930071, -0.5565011151], atol=1e-10
    )
    np.testing.assert_allclose(
        np.abs(p[:2]) ** 2, [3.5325220564, 0.4674779436], atol=1e-10
    )
    for n, least, most in (
        (8, 0.4274887123, 19.8574103710),
        (64, 0.2638569311, 1303.2738429812),
        (256, 0.2124502439, 20860.2331114166),
    ):
        phases = initializers.s4d(n, kind="legs").imag
        np.testing.assert_allclose(
            (phases[-1], phases[0]), (least, most), rtol=1e-12, atol=1e-10
        )
        assert np.sum(np.abs(initializers.legs_dplr(n)[1]) ** 2) == pytest.approx(
            n**2 / 2
        )


@pytest.mark.parametrize("n", [4, 8, 16])
def test_published_legs(n):
    file = golden.load("s5_layer.npz")
    a, b = initializers.hippo_legs(n)
    eigenvalues, p, b_diagonal, _ = initializers.legs_dplr(n)
    kind = f"out64/hippo{n}" if f"out64/hippo{n}/A" in file else f"out/hippo{n}"
    tolerance = 1e-12 if kind.startswith("out64") else 3e-6
    close(a, file[f"{kind}/A"], tolerance)
    close(np.sort(eigenvalues.imag), np.sort(file[f"{kind}/Lambda"].imag), tolerance)
    # Of vectors in a basis of arbitrary phases, the sizes.
    for ours, theirs in ((p, "P"), (b_diagonal, "B")):
        theirs = file[f"{kind}/{theirs}"]
        if np.iscomplexobj(theirs):
            ours = ours[np.argsort(eigenvalues.imag)]
            theirs = theirs[np.argsort(file[f"{kind}/Lambda"].imag)]
        else:
            ours = np.sqrt(np.arange(n) + 0.5) if ours is p else b
        close(np.abs(ours), np.abs(theirs), tolerance)


def test_blocks_of_s5():
    eigenvalues, basis = initializers.s5_legs(16, n_blocks=2)
    alone, _, _, v = initializers.legs_dplr(8)
    np.testing.assert_array_equal(eigenvalues, np.tile(alone[:4], 2))
    np.testing.assert_array_equal(basis[:8, :4], v[:, :4])
    np.testing.assert_array_equal(basis[8:, 4:], v[:, :4])
    assert not basis[8:, :4].any() and not basis[:8, 4:].any()
    # With the conjugates the columns span everything.
    np.testing.assert_allclose(
        2 * (basis @ basis.conj().T).real, np.eye(16), atol=1e-14
    )


@pytest.mark.parametrize(("n", "n_blocks"), [(16, 3), (12, 4), (4, 0)])
def test_blocks_of_no_pairs_are_refused(n, n_blocks):
    with pytest.raises(ValueError, match="blocks of an even number of states"):
        initializers.s5_legs(n, n_blocks=n_blocks)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind='linear' is unknown"):
        initializers.s4d(4, kind="linear")
