"""Two heads and the divergence of their distributions in one, in chunks of tokens: no [T, V] stands in memory.

Legend: T tokens, D student hidden, E teacher hidden, V vocabulary. As in loss.py the gradient of a chunk is made while
its logits are at hand. Both distributions are softened by a temperature, and the loss is multiplied by its square, so
that gradients keep their size (1503.02531).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.ops.logit_chunks import cached_rows, logit_chunks

Direction = Literal["forward", "reverse"]


def linear_kl_reference(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    teacher_TE: Tensor,
    teacher_VE: Tensor,
    direction: Direction,
    temperature: float = 1.0,
) -> Tensor:
    """Sum over tokens of KL(teacher | student) (forward) or KL(student | teacher) (reverse), in nats."""
    student = (F.linear(hidden_TD, weight_VD).float() / temperature).log_softmax(-1)
    teacher = (F.linear(teacher_TE, teacher_VE).float() / temperature).log_softmax(-1)
    p, q = (teacher, student) if direction == "forward" else (student, teacher)
    return (p.exp() * (p - q)).sum() * temperature**2


class _LinearKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        teacher_TE: Tensor,
        teacher_VE: Tensor,
        direction: Direction,
        temperature: float,
    ) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden_TD) if need_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if need_weight else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden_TD.device)
        for chunk, logits in logit_chunks(hidden_TD, weight_VD):
            taught_CV = F.linear(teacher_TE[chunk], teacher_VE)
            for part, rows in cached_rows(chunk, logits):
                known = taught_CV[part.start - chunk.start : part.stop - chunk.start]
                student = (rows.float() / temperature).log_softmax(-1)
                teacher = (known.float() / temperature).log_softmax(-1)
                if direction == "forward":
                    p = teacher.exp()
                    loss += (p * (teacher - student)).sum()
                    grad = student.exp_().sub_(p)  # of the student's logits
                else:
                    p, ratio = student.exp(), student - teacher
                    kl = (p * ratio).sum(-1, keepdim=True)
                    loss += kl.sum()
                    grad = p.mul_(ratio.sub_(kl))
                rows.copy_(grad.mul_(temperature))  # squared, over the temperature of the logits
            if grad_hidden is not None:
                grad_hidden[chunk] = logits @ weight_VD
            if grad_weight is not None:
                grad_weight += logits.t() @ hidden_TD[chunk]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight_VD.dtype
        return loss * temperature**2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grads[0].to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grads[0]).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None


def linear_kl(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    teacher_TE: Tensor,
    teacher_VE: Tensor,
    direction: Direction,
    temperature: float = 1.0,
) -> Tensor:
    """`linear_kl_reference` in chunks; the teacher gets no gradient."""
    teacher_VE = teacher_VE.to(teacher_TE.dtype)
    return _LinearKL.apply(
        hidden_TD, weight_VD.to(hidden_TD.dtype), teacher_TE, teacher_VE, direction, temperature
    )
