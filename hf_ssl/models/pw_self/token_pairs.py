"""Which tokens of the student's views are compared with which tokens of the teacher's."""

from dataclasses import dataclass

import torch
from torch import Tensor


# Scores in a block of images: few enough for the memory, and enough to keep a processor busy.
_SCORES_ON_CPU, _SCORES = 1 << 22, 1 << 27
# Sums over the tokens of a block have to fit into float16.
_TOKENS = 1 << 14


@dataclass
class TokenPairs:
    """
    Which tokens of the student are compared with which of the teacher. Tokens that no pair has are in neither list, and those
    of an image follow each other.

    Args:
        student_rows (`torch.Tensor` of shape `(num_student_tokens,)`, int64):
            Places of the student's tokens among all of its tokens: large views first, view by view, image by image.
        teacher_rows (`torch.Tensor` of shape `(num_teacher_tokens,)`, int64):
            Places of the teacher's tokens among all of its tokens, in the same order.
        positions (`torch.Tensor` of shape `(num_teacher_tokens,)`, int64):
            Place of each in its own view, which has a center of its own.
        is_class (`torch.Tensor` of shape `(num_student_tokens,)`, bool):
            Which of the student's tokens are class tokens.
        targets (`torch.Tensor` of shape `(num_student_tokens, 2)`, int64):
            For each of the student's tokens, the number of a teacher's token of either large view; 0 where there is none.
        compared (`torch.Tensor` of shape `(num_student_tokens, 2)`, bool):
            Which of these comparisons there are.
        weights (`torch.Tensor` of shape `(num_student_tokens, 2)`, float64):
            Weight of each comparison in the loss; 0 where there is none.
        pair_numbers (`torch.Tensor` of shape `(num_student_tokens, 2)`, int64):
            The pair of views that a comparison belongs to: the teacher's first view with the student's second, with its small
            ones, and then the teacher's second with the student's first, with its small ones.
        num_pairs (`int`):
            Pairs of views.
        blocks (`list[tuple[slice, slice]]`):
            Tokens of the student and of the teacher in each block of images.
    """

    student_rows: Tensor
    teacher_rows: Tensor
    positions: Tensor
    is_class: Tensor
    targets: Tensor
    compared: Tensor
    weights: Tensor
    pair_numbers: Tensor
    num_pairs: int
    blocks: list[tuple[slice, slice]]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # other crops have other numbers of matches: each would be compiled
def pair_tokens(
    global_matches: Tensor,
    local_matches: Tensor,
    batch_size: int,
    num_tokens: tuple[int, int],
    num_prototypes: int,
    class_loss_weight: float | None = None,
    device: torch.device | None = None,
) -> TokenPairs:
    """
    Lay matched patches of pairs of views out as pairs of tokens. Each of the teacher's two large views is compared with every
    view of the student but itself; class tokens are always compared.

    Where the matches are on the CPU, nothing is read back from the device.

    Args:
        global_matches (`torch.Tensor` of shape `(2, batch_size, num_places, 2)`, int64):
            For each large view of the teacher, and the other one of the student, the matched patches: the teacher's and the
            student's, from 0, or -1 where a place is free. For one image in the place of the batch, if all are cropped alike.
        local_matches (`torch.Tensor` of shape `(2, num_local_views, batch_size, num_places, 2)`, int64):
            The same for each small view of the student.
        batch_size (`int`):
            Images.
        num_tokens (`tuple[int, int]`):
            Tokens of a large and of a small view, class token included.
        num_prototypes (`int`):
            Scores of a token; they decide how many images make a block.
        class_loss_weight (`float`, *optional*):
            Share of the class token in the loss of a pair; unset, it counts as much as each matched patch.
        device (`torch.device`, *optional*):
            Where the result is needed.

    Returns:
        [`TokenPairs`]: of all images.

    Raises:
        `ValueError`: the matches are neither those of all images nor those of one.
    """
    if {global_matches.shape[1], local_matches.shape[2]} not in ({1}, {batch_size}):
        raise ValueError(
            f"There are matches of {global_matches.shape[1]} images between large views, and of {local_matches.shape[2]} "
            f"with small ones: {batch_size} images need those of all, or of one if all are cropped alike."
        )
    large, small = num_tokens
    lists, counts = _lists(global_matches, local_matches, large, small, class_loss_weight)
    # From the host these are copies that nothing waits for, as long as they are short.
    lists = {name: tensor.to(device, non_blocking=True) for name, tensor in lists.items()}
    if len(counts[0]) < batch_size:
        lists = _for_all_images(lists, batch_size)
        counts = counts[0] * batch_size, counts[1] * batch_size
    view, place, teacher = lists["view"], lists["place"], lists["teacher"]
    rows = torch.where(
        view < 2,
        (view * batch_size + lists["image"]) * large + place,
        (2 * large + (view - 2) * small) * batch_size + lists["image"] * small + place,
    )
    return TokenPairs(
        student_rows=rows,
        teacher_rows=(teacher // large * batch_size + lists["teacher_image"]) * large + teacher % large,
        positions=teacher % large,
        is_class=place == 0,
        targets=lists["targets"],
        compared=lists["compared"],
        weights=lists["weights"] / batch_size,
        pair_numbers=lists["pair_numbers"],
        num_pairs=2 + 2 * local_matches.shape[1],
        blocks=_blocks(*counts, min(_TOKENS, max(1, (_SCORES_ON_CPU if rows.is_cpu else _SCORES) // num_prototypes))),
    )


def _lists(
    global_matches: Tensor, local_matches: Tensor, large: int, small: int, class_loss_weight: float | None
) -> tuple[dict[str, Tensor], tuple[list[int], list[int]]]:
    """
    The tokens that are compared, image by image, with all that [`TokenPairs`] says of them: the student's with their view and
    their place in it, the teacher's as numbers from 0 to twice `large`; and how many an image has of either.
    """
    targets, num_pairs = _targets(global_matches, local_matches, large, small), 2 + 2 * local_matches.shape[1]
    compared = targets >= 0
    token, of_teacher = torch.arange(targets.shape[1], device=targets.device), torch.arange(2, device=targets.device)
    is_large = token < 2 * large
    view = torch.where(is_large, token // large, 2 + (token - 2 * large) // small)
    place = torch.where(is_large, token % large, (token - 2 * large) % small)
    pair_numbers = of_teacher * (num_pairs // 2) + (view - 1).clamp(min=0)[:, None]
    weights = _weights(compared, pair_numbers, place == 0, num_pairs, class_loss_weight)

    # The teacher's tokens that are wanted, and their numbers among these.
    wanted_tokens = torch.where(compared, targets + large * of_teacher, 2 * large)
    wanted = torch.zeros(len(targets), 2 * large + 1, dtype=torch.bool, device=targets.device)
    wanted = wanted.scatter_(1, wanted_tokens.flatten(1), True)[:, :-1]
    numbers = (wanted.flatten().cumsum(0) - 1).view_as(wanted)
    targets = numbers.gather(1, wanted_tokens.clamp(max=2 * large - 1).flatten(1)).view_as(targets)
    targets = torch.where(compared, targets, 0)

    used = compared.any(-1)
    image, student = used.nonzero(as_tuple=True)
    teacher_image, teacher = wanted.nonzero(as_tuple=True)
    lists = {"image": image, "teacher_image": teacher_image, "teacher": teacher}
    for name, values in (("view", view), ("place", place), ("pair_numbers", pair_numbers)):
        lists[name] = values[student]
    for name, values in (("targets", targets), ("compared", compared), ("weights", weights)):
        lists[name] = values[image, student]
    return lists, (used.sum(1).tolist(), wanted.sum(1).tolist())


def _for_all_images(lists: dict[str, Tensor], batch_size: int) -> dict[str, Tensor]:
    """Lists of one image, repeated for a batch of images that are all cropped alike."""
    num_student, num_teacher = len(lists["view"]), len(lists["teacher"])
    offset = torch.arange(batch_size, device=lists["image"].device)
    lists = {name: tensor.repeat(batch_size, *[1] * (tensor.ndim - 1)) for name, tensor in lists.items()}
    image = offset.repeat_interleave(num_student)
    targets = torch.where(lists["compared"], lists["targets"] + image[:, None] * num_teacher, 0)
    return lists | {"image": image, "teacher_image": offset.repeat_interleave(num_teacher), "targets": targets}


def _targets(global_matches: Tensor, local_matches: Tensor, large: int, small: int) -> Tensor:
    """
    For each token of the student's views of an image, one after the other, the place of its match in either large view of the
    teacher, or -1: `(num_images, 2 * large + num_local_views * small, 2)`.
    """
    first, second = _scatter(global_matches, large)
    none = torch.full_like(first, -1)
    views = [torch.stack([none, second], dim=-1), torch.stack([first, none], dim=-1)]
    views += _scatter(local_matches, small).permute(1, 2, 3, 0).unbind()
    return torch.cat(views, dim=1)


def _scatter(matches: Tensor, count: int) -> Tensor:
    """Matches, `(..., num_places, 2)`, as the teacher's token of each of the student's `count`: `(..., count)`."""
    teacher, student = matches.unbind(-1)
    place = torch.where(student < 0, count, student + 1)  # free places go to the end, which is cut off
    found = torch.full((*matches.shape[:-2], count + 1), -1, dtype=torch.int64, device=matches.device)
    found = found.scatter_(-1, place, teacher + 1)[..., :-1]
    found[..., 0] = 0  # the class token
    return found


def _weights(
    compared: Tensor, pair_numbers: Tensor, is_class: Tensor, num_pairs: int, class_loss_weight: float | None
) -> Tensor:
    """Weight of each comparison, `(num_images, num_tokens, 2)`, in the mean over the pairs of views of an image."""
    is_class = is_class[:, None]
    counts = compared.new_zeros(len(compared), num_pairs, dtype=torch.float64)
    numbers = pair_numbers.flatten().expand(len(compared), -1)
    counted = compared if class_loss_weight is None else compared & ~is_class
    counts = counts.scatter_add_(1, numbers, counted.flatten(1).double()).gather(1, numbers).view_as(compared)
    if class_loss_weight is None:
        return compared / (counts.clamp(min=1) * num_pairs)
    share = torch.where(is_class, class_loss_weight, (1 - class_loss_weight) / counts.clamp(min=1))
    return compared * share / num_pairs


def _blocks(student: list[int], teacher: list[int], most: int) -> list[tuple[slice, slice]]:
    """Tokens of each block of images, which have `most` tokens together or are one image."""
    blocks = []
    begin, end = (0, 0), (0, 0)
    for count in zip(student, teacher, strict=True):
        if end > begin and sum(end) - sum(begin) + sum(count) > most:
            blocks.append((slice(begin[0], end[0]), slice(begin[1], end[1])))
            begin = end
        end = end[0] + count[0], end[1] + count[1]
    return [*blocks, (slice(begin[0], end[0]), slice(begin[1], end[1]))]
