"""The standard brain bent onto a picture: where its ventricles, its septum and its falx lie there.

An affine map (`braingemma.volume.appearance`) brings both together within a few millimetres. What is left is a smooth
displacement on two meshes, the coarse one first, that makes a mixture of the standard brain's tissues look like the
picture (brightness = gray · a + white · b + fluid · c, times a slow bias). Errors beyond `ROBUST` of the tissues'
brightness count little, so that lesions, which no standard brain holds, do not pull (Geman and McClure, 1985).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from braingemma.volume.standard import StandardBrain, standard_brain

Float = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

LOW: Final = np.array([-48.0, -98.0, -14.0])
"""The part of the standard brain that is compared, MNI mm, and how finely: ventricles, and the falx before and
behind."""
HIGH: Final = np.array([48.0, 70.0, 40.0])
STEP: Final = 3.0
STAGES: Final = ((24.0, 30, 0.010), (12.0, 40, 0.006))
"""Mesh width, mm, rounds, and the price of bending of each of the two stages."""
RATE: Final = 0.6
ROBUST: Final = 0.15
BRIGHTEST: Final = 1.25
"""Brightness beyond this times the median is cut: lesions."""
BIAS_MM: Final = 30.0


@dataclass(frozen=True)
class Warp:
    """How a picture's places map to the standard brain.

    Attributes:
        to_standard: (3, 4) voxel to MNI mm, the affine part.
        displacement: (3, X, Y, Z) mm to be added there, on the grid of `LOW`, `HIGH`, `STEP`.
        bias: (X, Y, Z) slow brightness on the same grid.
        levels: Brightness of gray matter, white matter and fluid, in the picture's units where `bias` is 1.
        explained: Share of the compared part's variance that the bent standard brain explains.
    """

    to_standard: Float
    displacement: Float32
    bias: Float32
    levels: tuple[float, float, float]
    explained: float

    def at(self, field: Float32, points: Float) -> Float:
        """A field (..., X, Y, Z) of this grid at affine MNI mm (3, N); the border goes on outside."""
        index = (points - LOW[:, None]) / STEP
        parts = field.reshape(-1, *field.shape[-3:])
        found = [ndimage.map_coordinates(part, index, order=1, mode="nearest") for part in parts]
        return np.asarray(found, np.float64).reshape(*field.shape[:-3], points.shape[1])

    def standard(self, voxels: Float) -> tuple[Float, Float]:
        """MNI mm (3, N) of voxel coordinates (3, N): after bending, and by the affine map alone."""
        plain = self.to_standard[:, :3] @ voxels + self.to_standard[:, 3:]
        return plain + self.at(self.displacement, plain), plain

    def place_of(self, point: tuple[float, float, float]) -> Float:
        """(3,) affine MNI mm of the place whose tissue is the standard brain's at `point`."""
        wanted = np.asarray(point, np.float64)[:, None]
        found = wanted.copy()
        for _ in range(20):
            found = wanted - self.at(self.displacement, found)
        return found[:, 0]


def fit_warp(values: Float32, inside: Float32, to_standard: Float) -> Warp | None:
    """Bend the standard brain onto a picture.

    Args:
        values: (X, Y, Z) brightness over the brain's median, at most 3 mm or a slice apart.
        inside: (X, Y, Z) share of brain.
        to_standard: (3, 4) voxel to MNI mm.

    Returns:
        None where less than half of the compared part lies in the picture's brain.
    """
    brain = standard_brain()
    points = _grid()
    shape = points.shape[1:]
    index = np.linalg.inv(np.vstack([to_standard, [0, 0, 0, 1]]))[:3]
    voxels = np.tensordot(index[:, :3], points, 1) + index[:, 3].reshape(3, 1, 1, 1)
    seen = ndimage.map_coordinates(inside, voxels, order=1, mode="constant")
    picture = ndimage.map_coordinates(np.minimum(values, BRIGHTEST), voxels, order=1, mode="nearest")
    if float((seen > 0.5).mean()) < 0.5:
        return None
    weight = torch.from_numpy((seen > 0.9).astype(np.float32))
    target = torch.from_numpy(picture.astype(np.float32))
    fitted = _Fit(brain, points, target, weight)
    control = torch.zeros(1, 3, 2, 2, 2)
    for mesh, rounds, price in STAGES:
        control = fitted.stage(control, mesh, rounds, price)
    displacement = fitted.displacement(control).detach()
    residual = fitted.residual(displacement)[0] * weight
    centred = (target - (target * weight).sum() / weight.sum()) * weight
    explained = 1 - float((residual**2).sum() / (centred**2).sum())
    return Warp(to_standard, displacement.numpy().reshape(3, *shape), fitted.bias.numpy(), fitted.levels, explained)


def _grid() -> Float:
    """(3, X, Y, Z) MNI mm of the compared part."""
    axes = [np.arange(low, high + STEP / 2, STEP) for low, high in zip(LOW, HIGH, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


class _Fit:
    """The search: levels and bias by least squares, the displacement by gradient."""

    def __init__(self, brain: StandardBrain, points: Float, target: Tensor, weight: Tensor) -> None:
        self.shape = target.shape
        self.target, self.weight = target, weight
        self.bias = torch.ones_like(target)
        self.levels = (1.0, 0.9, 0.3)
        maps = np.stack([brain.gray, brain.white])
        self.maps = torch.from_numpy(ndimage.gaussian_filter(maps, (0, 0.5, 0.5, 0.5)))[None]
        self.points = torch.from_numpy(points.astype(np.float32))
        self.origin = torch.tensor(brain.origin, dtype=torch.float32).view(3, 1, 1, 1)
        self.size = torch.tensor([n - 1 for n in brain.gray.shape], dtype=torch.float32).view(3, 1, 1, 1)
        self.spacing = brain.spacing

    def stage(self, control: Tensor, mesh: float, rounds: int, price: float) -> Tensor:
        """Rounds on one mesh, from what a coarser one found."""
        extent = torch.tensor(self.shape, dtype=torch.float32) * STEP
        nodes = [int(n) for n in (extent / mesh).round().clamp(min=2) + 1]
        control = _resized(control, nodes).clone().requires_grad_(True)
        optimiser = torch.optim.Adam([control], lr=RATE)
        for number in range(rounds):
            if number % 10 == 0:
                self._fit_levels(self.displacement(control).detach())
            optimiser.zero_grad()
            residual, _ = self.residual(self.displacement(control))
            squared = residual.square()
            loss = (self.weight * squared / (squared + ROBUST**2)).sum() / self.weight.sum()
            loss = loss + price * _bending(control)
            loss.backward()
            optimiser.step()
        return control.detach()

    def displacement(self, control: Tensor) -> Tensor:
        """(3, X, Y, Z) mm."""
        return _resized(control, list(self.shape))[0]

    def residual(self, displacement: Tensor) -> tuple[Tensor, Tensor]:
        """(X, Y, Z) picture less mixture, and the shares (2, X, Y, Z) of gray and white."""
        place = (self.points + displacement - self.origin) / self.spacing
        unit = (2 * place / self.size - 1).flip(0).permute(1, 2, 3, 0)[None]
        shares = F.grid_sample(self.maps, unit, mode="bilinear", padding_mode="border", align_corners=True)[0]
        gray, white, fluid = self.levels
        mixed = shares[0] * gray + shares[1] * white + (1 - shares[0] - shares[1]) * fluid
        return self.target - mixed * self.bias, shares

    @torch.no_grad()
    def _fit_levels(self, displacement: Tensor) -> None:
        """Levels of the tissues and the slow bias, by robust least squares at this displacement."""
        residual, shares = self.residual(displacement)
        trust = self.weight / (1 + (residual / ROBUST) ** 2) ** 2
        columns = torch.stack([shares[0], shares[1], 1 - shares[0] - shares[1]]) * self.bias
        flat = (columns * trust.sqrt()).reshape(3, -1)
        levels = torch.linalg.lstsq(flat.T.double(), (self.target * trust.sqrt()).reshape(-1, 1).double()).solution
        gray, white, fluid = (float(v) for v in levels[:, 0])
        self.levels = (gray, white, max(fluid, 0.0))
        mixed = shares[0] * gray + shares[1] * white + (1 - shares[0] - shares[1]) * max(fluid, 0.0)
        trust = trust * (shares.sum(0) > 0.7)
        sigma = BIAS_MM / STEP
        above = ndimage.gaussian_filter((trust * self.target * mixed).numpy(), sigma)
        below = ndimage.gaussian_filter((trust * mixed * mixed).numpy(), sigma)
        self.bias = torch.from_numpy((above / np.maximum(below, 1e-4)).clip(0.6, 1.6)) if below.max() > 0 else self.bias


def _resized(control: Tensor, size: list[int]) -> Tensor:
    return F.interpolate(control, size=size, mode="trilinear", align_corners=True)


def _bending(control: Tensor) -> Tensor:
    """Mean squared second difference of neighbouring nodes, and a little of the first, mm²."""
    total = control.new_zeros(())
    for axis in (2, 3, 4):
        first = control.diff(dim=axis)
        total = total + 0.1 * first.square().mean()
        if control.shape[axis] > 2:
            total = total + first.diff(dim=axis).square().mean()
    return total
