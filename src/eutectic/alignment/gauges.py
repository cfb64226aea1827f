"""Bases of vectors between two linear maps: the form that has the least norm, and the rotation between two models.

The vectors of a unit are made by one map and read by another. Of all bases, those in which ‖made‖² + ‖read‖² is least
differ by a rotation alone (a phase in each plane for `rotary`): that norm is convex along the group (Kempf and Ness,
1979). Two models in such bases are compared by rotations, which change no norm, and the best one has a closed form.

A *cross* is what units of A and B have in common, for every pair of them, as any rotation of B's basis needs it:

- `linear`, `orthogonal`: X = Σ A Bᵀ, (…, size, size). ⟨A, R B⟩ = ⟨R, X⟩, which is largest, Σ σ(X), for the polar factor
  R of X (orthogonal Procrustes; Schönemann, 1966).
- `rotary`: c = Σ A* B of the coordinates i and i + size/2 as one complex number, (…, size/2). ⟨A, z B⟩ = Re(z c), which
  is largest, |c|, for z = c*/|c|.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

Kind = Literal["linear", "orthogonal", "rotary"]

# Directions of less than this part of a Gram matrix's largest are rounding: such a basis is left as it is.
RESOLVED = 1e-10
# By how much of its size a cross is drawn to the identity: where the models have nothing in common nothing is turned.
_TOWARDS_IDENTITY = 1e-14


def cross(kind: Kind, a: Tensor, b: Tensor) -> Tensor:
    """(n, size, r) and (m, size, r) → (n, m, …) float64 or complex128."""
    if kind == "rotary":
        left, right = planes(a), planes(b)
        return (left.conj().transpose(0, 1) @ right.permute(1, 2, 0)).permute(1, 2, 0).to(torch.complex128)
    (n, size, r), m = a.shape, len(b)
    made = a.reshape(n * size, r) @ b.reshape(m * size, r).T
    return made.reshape(n, size, m, size).transpose(1, 2).double()


def planes(vectors: Tensor) -> Tensor:
    """(n, size, r) → complex (n, size/2, r)."""
    half = vectors.shape[1] // 2
    return torch.complex(vectors[:, :half].contiguous(), vectors[:, half:].contiguous())


def most(kind: Kind, crossed: Tensor) -> Tensor:
    """The inner product that the best rotation gives, (…,)."""
    return crossed.abs().sum(-1) if kind == "rotary" else torch.linalg.svdvals(crossed).sum(-1)


def best(kind: Kind, crossed: Tensor) -> Tensor:
    """The best rotation, of the form of the cross. Where nothing says which, that which turns least."""
    if kind == "rotary":
        size = crossed.abs()
        return torch.where(size > 0, crossed.conj() / size.clamp_min(torch.finfo(size.dtype).tiny), 1.0 + 0j)
    norm = torch.linalg.matrix_norm(crossed)[..., None, None]
    ridge = torch.where(norm > 0, _TOWARDS_IDENTITY * norm, 1.0)
    left, _, right = torch.linalg.svd(crossed + ridge * torch.eye(crossed.shape[-1], dtype=crossed.dtype))
    found: Tensor = left @ right
    return found


def given(kind: Kind, rotation: Tensor, crossed: Tensor) -> Tensor:
    """The inner product that a rotation gives, (…,)."""
    product = rotation * crossed
    return product.real.sum(-1) if kind == "rotary" else product.sum((-2, -1))


def matrices(kind: Kind, rotation: Tensor) -> Tensor:
    """A rotation as (…, size, size)."""
    if kind != "rotary":
        return rotation
    cosine, sine = torch.diag_embed(rotation.real), torch.diag_embed(rotation.imag)
    return torch.cat([torch.cat([cosine, -sine], -1), torch.cat([sine, cosine], -1)], -2)


def balance(kind: Kind, made: Tensor, read: Tensor) -> Tensor:
    """The symmetric matrices C, (n, size, size), in whose bases the norm is least.

    Args:
        kind: `linear` or `rotary`; orthogonal bases are all alike.
        made: Gram matrices P of the maps that make the vectors, (n, size, size) float64.
        read: Gram matrices Q of those that read them.

    For `linear` C P C = C⁻¹ Q C⁻¹: C² is the geometric mean of P⁻¹ and Q. For `rotary` the two energies of each plane
    are made equal. Units whose vectors do not span the space, or that nobody reads, keep their basis.
    """
    if kind == "rotary":
        p, q = (_energies(gram) for gram in (made, read))
        whole = (p > 0) & (q > 0)
        scale = torch.where(whole, (q / torch.where(whole, p, 1.0)) ** 0.25, 1.0)
        return matrices("rotary", scale.to(torch.complex128))
    eye = torch.eye(made.shape[-1], dtype=torch.float64).expand_as(made)
    whole = (_resolved(made) & _resolved(read))[:, None, None]
    made, read = torch.where(whole, made, eye), torch.where(whole, read, eye)
    root, back = power(made, 0.5), power(made, -0.5)
    return power(back @ power(root @ read @ root, 0.5) @ back, 0.5)


def power(gram: Tensor, exponent: float) -> Tensor:
    """A positive matrix to some power, (…, size, size)."""
    values, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    smallest = values[..., -1:] * torch.finfo(values.dtype).eps
    made: Tensor = (
        vectors * values.clamp_min(torch.finfo(values.dtype).tiny).maximum(smallest)[..., None, :] ** exponent
    ) @ vectors.mT
    return made


def _energies(gram: Tensor) -> Tensor:
    """Of each plane, the sum of squares of its two coordinates, (n, size/2)."""
    squares = gram.diagonal(dim1=-2, dim2=-1)
    return squares.reshape(len(gram), 2, gram.shape[-1] // 2).sum(1)


def _resolved(gram: Tensor) -> Tensor:
    values = torch.linalg.eigvalsh(gram)
    found: Tensor = values[..., 0] > RESOLVED * values[..., -1]
    return found
