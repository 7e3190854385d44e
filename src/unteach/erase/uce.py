"""UCE: unified concept editing in closed form (Gandikota et al., WACV 2024, arXiv 2308.14761; erasure §6).

Every matrix W that reads the text states themselves (the keys and values of cross-attention; in a joint-attention
transformer the layers by which the text comes in) gets new values for the tokens of the target, keeps those of the
prompts to keep, and otherwise stays near itself. It is the minimiser of

    Σ_e s_e ‖W' c_e − W c_g‖² + Σ_p s_p ‖W' c_p − W c_p‖² + λ ‖W' − W‖²

where c_e, c_g and c_p are text states of target, guide and kept prompts. Setting the gradient to zero gives
W' = W (I + E) with one E for all matrices:

    E = (Σ_e s_e (c_g − c_e) c_eᵀ) (λ I + Σ_e s_e c_e c_eᵀ + Σ_p s_p c_p c_pᵀ)⁻¹
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unteach.data.concepts import Concept, PromptPair, spans
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.model import Model
from unteach.diffusion.tokens import last_tokens, limit, name_ends, read, segments
from unteach.erase.job import Job
from unteach.erase.method import Method, methods, setting
from unteach.errors import DataError, ModelError

ERASED, KEPT = 64.0, 240.0
"""Weights of all target prompts and of all kept prompts together, with ``balance``."""


@methods.add("uce")
@dataclass(frozen=True, kw_only=True)
class UCE(Method):
    """Unified concept editing: no training, one linear solve.

    Args:
        lam: λ, how strongly each matrix is held to itself.
        erase_scale: s_e, weight of the target's tokens.
        retain_scale: s_p, weight of the tokens of the prompts to keep.
        tokens: which text states count: the "last" token of the name, or it and "all_following" ones, end
            marks and padding included (the code of 2023).
        templates: edit the name inside each of its prompts, too, not only alone.
        guide: the text whose values the target gets; None is each concept's anchor.
        balance: make the result independent of how many prompts there are and of the size of the text states: the
            target's prompts weigh as :data:`ERASED` together, the kept ones as :data:`KEPT` (with the states of all
            its tokens), and λ counts in units of the states' mean square. False is the sum as written above.
    """

    name: ClassVar[str] = "uce"

    lam: float = setting(0.5, above=0)
    erase_scale: float = setting(1.0, low=0)
    retain_scale: float = setting(1.0, low=0)
    tokens: Literal["last", "all_following"] = "all_following"
    templates: bool = True
    guide: str | None = None
    balance: bool = True

    def run(self, job: Job) -> WeightDelta:
        """Solve for the edit of all matrices; the model is not touched."""
        chosen, reads = self.selected(job.model), job.model.text_layers()
        foreign = [name for name in chosen if name not in reads]
        if foreign:
            raise ModelError(
                "UCE can only edit keys and values of cross-attention, and layers that read nothing but the text",
                found=f"{len(foreign)} other tensors, such as '{foreign[0]}'",
                fix="narrow 'train', or use a trained method",
            )
        edit = {part: self.edit(job, part) for part in dict.fromkeys(reads[name] for name in chosen)}
        widths = {n: param.shape[1] for n, param in chosen.items() if param.shape[1] != len(edit[reads[n]])}
        if widths:
            raise ModelError("the text states do not fit the matrices to edit", found=widths)
        before = {name: param.detach().cpu().double() for name, param in chosen.items()}
        tensors = {name: (weight @ edit[reads[name]]).float() for name, weight in before.items()}
        zero = {name: torch.zeros_like(change) for name, change in tensors.items()}
        delta = WeightDelta.between(zero, tensors, job.record(self.to_dict()))
        return delta.scaled(self.strength)

    def offered(self, model: Model) -> list[str]:
        """Every layer that the formula applies to."""
        return list(model.text_layers())

    def edit(self, job: Job, part: str) -> Tensor:
        """E for the layers that read this part of the conditioning."""
        around = [(concept, job.contexts(concept, self.contexts)) for concept in job.concepts]
        pairs = [pair for concept, more in around for pair in self.edits(job.model, concept, more, part)]
        c_e, c_g = (torch.cat(side) for side in zip(*pairs, strict=True))
        kept = self.retained(job)
        c_p = torch.cat([self.kept_states(job.model, prompt, part) for prompt in kept] or [c_e[:0]])
        lam, s_e, s_p = self.lam, self.erase_scale, self.retain_scale
        if self.balance:
            lam = lam * float(c_e.square().mean())
            s_e, s_p = s_e * ERASED / len(pairs), s_p * KEPT / max(1, len(kept))
        return solve(c_e, c_g, c_p, lam=lam, s_e=s_e, s_p=s_p)

    def edits(
        self, model: Model, concept: Concept, contexts: Sequence[PromptPair] = (), part: str = "hidden"
    ) -> list[tuple[Tensor, Tensor]]:
        """(c_e, c_g), ``(n, D)`` each, of the bare name and, with ``templates``, of its prompts and ``contexts``.

        Raises:
            DataError: two prompts of a pair are the same to the model, or it does not read the whole of a name.
        """
        guide = concept.anchor if self.guide is None else self.guide
        texts = [(concept.target, guide)]
        if self.templates:
            texts += [
                (pair.target, pair.anchor if self.guide is None else guide) for pair in (*concept.pairs(), *contexts)
            ]
        found = []
        for target, anchor in texts:
            if read(model, target) == read(model, anchor):
                raise DataError(
                    f"'{target}' and '{anchor}' are the same prompt to the model",
                    found=f"it reads {limit(model)} tokens of a prompt",
                    fix="choose another anchor or guide, or put the name nearer to the beginning",
                )
            sides = (self.rows(model, target, concept.target, part), self.rows(model, anchor, guide, part))
            # Aligned at the name's last token; the one with the longer beginning has fewer that follow.
            both = [[side[: min(len(a), len(b))] for side in (a, b)] for a, b in zip(*sides, strict=True)]
            c_e, c_g = (torch.cat(side) for side in zip(*both, strict=True))
            found.append((c_e, c_g))
        return found

    def kept_states(self, model: Model, prompt: str, part: str = "hidden") -> Tensor:
        """The text states of a prompt to keep that count, ``(n, D)``: with ``balance`` all but the start mark's."""
        if self.balance and self.tokens == "all_following" and part == "hidden":
            hidden = model.encode([prompt]).hidden[0].detach().cpu().double()
            return torch.cat([hidden[s.start + s.marked : s.start + s.length] for s in segments(model)])
        return self.states(model, prompt, prompt, part)

    def states(self, model: Model, prompt: str, name: str, part: str = "hidden") -> Tensor:
        """The states of ``name`` in ``prompt`` that count, ``(n, D)`` float64 on the CPU."""
        return torch.cat(self.rows(model, prompt, name, part))

    def rows(self, model: Model, prompt: str, name: str, part: str) -> list[Tensor]:
        """As :meth:`states`, one tensor a segment; in a part with one state a prompt, that one."""
        rows = model.encode([prompt])[part].detach().cpu().double()
        if rows.ndim == 2:
            return [rows]
        # A prompt to keep counts up to the last token that is read; a name inside a prompt must be read whole.
        first = last_tokens(model, prompt) if name == prompt else name_ends(model, prompt, name)
        if first is None:
            spans(prompt, name)  # says so when it is not mentioned at all
            raise DataError(
                f"the model does not read the whole of '{name}' in '{prompt}'",
                found=f"it reads {limit(model)} tokens of a prompt",
                fix="put the name nearer to the beginning",
            )
        found = []
        for place, segment in zip(first, segments(model), strict=True):
            begin, end = segment.start + place, segment.start + segment.length
            found.append(rows[0, begin : begin + 1 if self.tokens == "last" else end])
        return found


def solve(c_e: Tensor, c_g: Tensor, c_p: Tensor, *, lam: float, s_e: float, s_p: float) -> Tensor:
    """E, ``(D, D)`` float64, such that W' = W (I + E) for every matrix W.

    Args:
        c_e: text states to change, ``(N, D)``.
        c_g: states whose values they get, ``(N, D)``.
        c_p: states to keep, ``(P, D)``; P may be 0.
        lam: λ > 0.
        s_e: weight of the changed states.
        s_p: weight of the kept states.
    """
    c_e, c_g, c_p = c_e.double(), c_g.double(), c_p.double()
    wanted = s_e * (c_g - c_e).T @ c_e
    metric = lam * torch.eye(c_e.shape[1], dtype=torch.float64) + s_e * c_e.T @ c_e + s_p * c_p.T @ c_p
    edit: Tensor = torch.linalg.solve(metric, wanted.T).T
    return edit


methods.preset("uce-plain", "uce", kept_words=0, contexts=0, balance=False)
methods.preset("uce-official", "uce", kept_words=0, contexts=0, balance=False, tokens="last", templates=False)
