"""Which patch of one crop belongs to which patch of another: by where they lie in the image, by what they say, or by both.

A crop is cut, mirrored and turned, then divided into cells. Its ``Frame`` says where that put the cells in the source image, so that flips, quarter
turns, grids and cells of any shape need no case of their own: all of it is the origin of the crop as it is shown and the two steps from cell to cell.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gnothi.contracts import SettingError
from gnothi.randomness import expand

# For 0 to 3 quarter turns anticlockwise, as parts of the box: where the shown crop's left upper corner lies, and where a step right and a step down
# lead. One turn takes the place (u, v) of the shown crop to (1 - v, u) of the crop before it.
_TURNED = ((0, 0, 1, 0, 0, 1), (1, 0, 0, 1, -1, 0), (1, 1, -1, 0, 0, -1), (0, 1, 0, -1, 1, 0))
SHEAR = 1e-6
"""Cosine of the two steps above which cells are no rectangles."""


class Frame(NamedTuple):
    """The cells of a crop as the network sees it, in pixels of the source."""

    origin: Tensor
    """[B, 2] x and y of the left upper corner of the crop as shown."""
    across: Tensor
    """[B, 2] step from a column to the next."""
    down: Tensor
    """[B, 2] step from a row to the next."""
    grid: tuple[int, int]
    """Rows, columns."""
    room: tuple[float, float] | None = None
    """For how many rows and columns the crop has room; None where that is the grid."""


def room_of(height: int, width: int, stride: int | None) -> tuple[float, float] | None:
    """For how many rows and columns of a network's stride a crop has room, pixels all; None where the stride is not known."""
    return None if stride is None else (height / stride, width / stride)


def frame(boxes: Tensor, grid: tuple[int, int], flips: Tensor, turns: Tensor, offset: float = 0.0, room: tuple[float, float] | None = None) -> Frame:
    """Where the cells of crops lie.

    Args:
        boxes: [B, 4] left, top, width, height in source pixels (edge coordinates).
        grid: rows and columns of the crop as the network sees it.
        flips: [B] bool, mirrored left-right after the cut.
        turns: [B] quarter turns anticlockwise, after the flip.
        offset: of the point that a token looks at from the centre of its cell, in cells, right and down in the crop as shown.
        room: for how many rows and columns of cells the crop has room, where that is not the grid: a network of stride 8 has 4 columns on 28 pixels,
            the last of which sticks out, and room for 3.5.
    """
    boxes = boxes if boxes.device.type == "mps" else boxes.double()  # differences of places decide; MPS has no float64
    table = boxes.new_tensor(_TURNED)[turns.long() % 4]  # [B, 6]
    origin, across, down = table[:, :2], table[:, 2:4], table[:, 4:]
    mirror = torch.stack([flips, torch.zeros_like(flips)], 1)  # [B, 2]: x only
    origin = torch.where(mirror, 1 - origin, origin)
    across, down = (torch.where(mirror, -step, step) * boxes[:, 2:] for step in (across, down))
    rows, columns = room or grid
    across, down = across / columns, down / rows
    return Frame(boxes[:, :2] + origin * boxes[:, 2:] + offset * (across + down), across, down, grid, room)


def centres(at: Frame) -> Tensor:
    """What the tokens look at: [B, N, 2] x and y in source pixels, row by row."""
    rows, columns = (torch.arange(n, dtype=at.origin.dtype, device=at.origin.device) + 0.5 for n in at.grid)
    places = at.origin[:, None, None] + rows[None, :, None, None] * at.down[:, None, None] + columns[None, None, :, None] * at.across[:, None, None]
    return places.flatten(1, 2)


# ---- by place -----------------------------------------------------------------------------------
def geometric_matches(
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    student_grid: tuple[int, int],
    teacher_grid: tuple[int, int],
    student_flips: Tensor,
    teacher_flips: Tensor,
    student_turns: Tensor,
    teacher_turns: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """For every patch of the student's crop the patch of the teacher's crop whose centre is nearest in the source image, in closed form.

    Ties go to the cell in which the student's centre lies when a cell begins at its upper left edge as shown (floor).

    Args:
        student_boxes: [B, 4] left, top, width, height in source pixels (edge coordinates).
        teacher_boxes: [B, 4] of the same images, in the same pixels.
        student_grid: rows and columns of the crop as the network sees it.
        teacher_grid: rows and columns.
        student_flips: [B] bool, mirrored left-right after the cut.
        teacher_flips: [B].
        student_turns: [B] quarter turns anticlockwise, after the flip.
        teacher_turns: [B].

    Returns:
        index [B, Ns] into the teacher's patches, row by row; distance [B, Ns] of the two centres in source pixels; valid [B, Ns]: the distance is
        less than half the diagonal of the larger cell (GLSD's rule, arXiv 2207.14676).
    """
    student = frame(student_boxes, student_grid, student_flips, student_turns)
    teacher = frame(teacher_boxes, teacher_grid, teacher_flips, teacher_turns)
    index, distance = nearest(student, teacher)
    return index, distance.to(student_boxes.dtype), distance < reach(student, teacher)[:, None]


def nearest(student: Frame, teacher: Frame, *, check: bool = False) -> tuple[Tensor, Tensor]:
    """The nearest patch for frames at any angle whose cells are rectangles.

    Args:
        student: whose patches ask.
        teacher: whose patches answer.
        check: refuse sheared cells, for which this is wrong; a GPU has to be waited for.

    Returns:
        index [B, Ns] and distance [B, Ns] in source pixels.

    Raises:
        SettingError: the teacher's cells are sheared.
    """
    if check:
        lengths = teacher.across.norm(dim=-1) * teacher.down.norm(dim=-1)
        if bool(((teacher.across * teacher.down).sum(-1).abs() > SHEAR * lengths).any()):
            raise SettingError("patches are matched in closed form for cells that are rectangles, got sheared ones; compare all centres instead")
    # The steps stand at right angles, so the squared distance is a part along the columns plus a part along the rows, and each is least by itself.
    u, v = placed(student, teacher)
    column, row = u.floor().clamp(0, teacher.grid[1] - 1), v.floor().clamp(0, teacher.grid[0] - 1)
    wide, high = (step.square().sum(-1)[:, None] for step in (teacher.across, teacher.down))
    squared = (u - column - 0.5).square() * wide + (v - row - 0.5).square() * high
    return (row * teacher.grid[1] + column).long(), squared.sqrt()


def placed(student: Frame, teacher: Frame) -> tuple[Tensor, Tensor]:
    """Where the student's centres lie in the teacher's grid: column and row, [B, Ns] each, in cells from its upper left corner as shown."""
    away = centres(student) - teacher.origin[:, None]  # [B, Ns, 2]
    u, v = ((away * step[:, None]).sum(-1) / step.square().sum(-1)[:, None] for step in (teacher.across, teacher.down))
    return u, v


def inside(student: Frame, teacher: Frame) -> Tensor:
    """Whether a student's centre lies in the teacher's crop: [B, Ns] bool."""
    u, v = placed(student, teacher)
    rows, columns = teacher.room or teacher.grid
    return (u >= 0) & (u < columns) & (v >= 0) & (v < rows)


def reach(student: Frame, teacher: Frame) -> Tensor:
    """Half the diagonal of the larger cell, [B] in source pixels."""
    squares = [at.across.square().sum(-1) + at.down.square().sum(-1) for at in (student, teacher)]
    return torch.maximum(*squares).sqrt() / 2


def apart(student: Frame, teacher: Frame, index: Tensor) -> Tensor:
    """Distance of each student's centre from that of a chosen patch of the teacher's: index [B, Ns] -> [B, Ns] in source pixels."""
    chosen = centres(teacher).gather(1, index[..., None].expand(-1, -1, 2))
    distances: Tensor = (centres(student) - chosen).norm(dim=-1)
    return distances


# ---- by what they say ---------------------------------------------------------------------------
@torch.no_grad()
def cosines(student: Tensor, teacher: Tensor) -> Tensor:
    """[B, Ns, D], [B, Nt, D] -> [B, Ns, Nt]; 0 for a vector of zeros."""
    return F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).mT


def similar(student: Tensor, teacher: Tensor) -> Tensor:
    """The teacher's patch of largest cosine: [B, Ns, D], [B, Nt, D] -> index [B, Ns] (EsViT, arXiv 2106.09785, eq. 2)."""
    return cosines(student, teacher).argmax(-1)


def blended(student: Tensor, teacher: Tensor, at: Frame, to: Frame, alpha: float) -> Tensor:
    """The patch of least 1 - cosine + ``alpha`` x distance over the largest distance in the image (as CrIBo, arXiv 2310.07855, weighs them).

    Args:
        student: [B, Ns, D] tokens.
        teacher: [B, Nt, D].
        at: where the student's lie.
        to: where the teacher's lie.
        alpha: 0 is similarity alone.

    Returns:
        index [B, Ns].
    """
    far = torch.cdist(centres(at), centres(to), compute_mode="donot_use_mm_for_euclid_dist")  # [B, Ns, Nt]
    far = far / far.amax((1, 2), keepdim=True).clamp(min=1e-12)
    return (alpha * far - cosines(student, teacher)).argmin(-1)


# ---- by chance ----------------------------------------------------------------------------------
def chance(seeds: Tensor, count: int, patches: int) -> Tensor:
    """Any patch, each as likely: seeds [B] -> index [B, count]."""
    return (expand(seeds, count) * patches).long()


def hidden(seeds: Tensor, crops: int, patches: int, share: float, portion: tuple[float, float]) -> Tensor:
    """Patches to hide, single ones at random places (the "rand" masks of iBOT, arXiv 2111.07832).

    Args:
        seeds: [B] of the images.
        crops: G to an image, each with masks of its own.
        patches: N of a crop.
        share: part of the crops that hide any.
        portion: smallest and largest part of the patches that such a crop hides.

    Returns:
        [G, B, N] bool.
    """
    u = expand(seeds, crops * (patches + 2)).view(len(seeds), crops, patches + 2)
    wanted = (portion[0] + (portion[1] - portion[0]) * u[..., 0]) * (u[..., 1] < share)
    rank = u[..., 2:].argsort(-1).argsort(-1)
    return (rank < (wanted * patches).round()[..., None]).transpose(0, 1)


# ---- what tokens know of places ------------------------------------------------------------------
def decodability(tokens: Tensor, grid: tuple[int, int]) -> float | None:
    """How well a linear probe (ridge regression) tells the row and column of a patch; learnt on half of the images, asked on the others.

    Args:
        tokens: [B, N, D], row by row.
        grid: rows and columns.

    Returns:
        Share of the variance of rows and columns that is explained, at most 1, 0 or less where nothing is; None for a single image or patch.
    """
    half, count = len(tokens) // 2, tokens.shape[1]
    if not half or count < 2:
        return None
    rows, columns = ((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) / n for n in grid)
    place = torch.cartesian_prod(rows, columns)  # [N, 2]; its mean is 0
    x = tokens.detach().double().cpu()
    mean, std = x[:half].mean((0, 1)), x[:half].std((0, 1)).clamp(min=1e-6)
    x = (x - mean) / std
    known, asked = x[:half].flatten(0, 1), x[half:]
    strength = 1e-2 * len(known) * torch.eye(known.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(known.T @ known + strength, known.T @ place.repeat(half, 1))
    missed = (asked @ weight - place).square().sum()
    return float(1 - missed / (len(asked) * place.square().sum()))
