"""The words of a report: what each measure and method means, in one line each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A measure: its name in Results, what a reader calls it, its definition, and whether it is shown
    first."""

    name: str
    label: str
    meaning: str
    first: bool = False


TERMS: tuple[Term, ...] = (
    Term(
        "UA",
        "Gone",
        "Unlearning accuracy: share of the concept's prompts on which the judge does not see it.",
        True,
    ),
    Term(
        "kept",
        "Rest kept",
        "Share of all other prompts on whose picture object and style both are as asked.",
        True,
    ),
    Term(
        "IRA",
        "Same domain kept",
        "In-domain retain accuracy: of the prompts asking for another concept of the same domain, the share "
        "on which the judge sees it (other styles for a style, other objects for an object).",
        True,
    ),
    Term(
        "CRA",
        "Other domain kept",
        "Cross-domain retain accuracy: on the same prompts, the share on which the other domain is right "
        "(the object when a style was erased). Prompts asking for the erased concept are left out.",
        True,
    ),
    Term(
        "CRA, target included",
        "Other domain kept, all prompts",
        "CRA as some published scripts compute it: over all prompts, the erased concept's own included.",
    ),
    Term(
        "target elsewhere",
        "Concept where nobody asked",
        "Share of the other prompts on whose picture the judge sees the erased concept.",
    ),
    Term(
        "none on target",
        "Nothing known, on the concept's prompts",
        "Share of the concept's prompts on which the judge says “none of these”: gone, or a degenerate picture.",
    ),
    Term(
        "none on rest",
        "Nothing known, on the rest",
        "Share of the other prompts on which the judge says “none of these” in the erased concept's domain.",
    ),
    Term(
        "pixel change",
        "Pixel change",
        "Mean absolute difference (0 to 1) between the pictures before and after, same prompt and noise.",
    ),
    Term(
        "PSNR",
        "PSNR",
        "Peak signal-to-noise ratio of the same pairs, in dB; equal pictures count as 100 dB.",
    ),
    Term(
        "same verdict",
        "Same verdict",
        "Share of the same pairs on which the judge sees the same object and style before and after.",
    ),
)
"""In the order of reports. A measure that is not listed is shown last, under its own name."""

METHODS: dict[str, str] = {
    "ablate": "Concept Ablation: under the concept's prompt the model learns to predict what the unchanged "
    "model predicts under the anchor's.",
    "doco": "DoCo: a discriminator learns to tell the concept's outputs from the anchor's, and the model "
    "learns to fool it, without the part of the gradient that fights keeping the rest.",
    "esd": "ESD: under the concept's prompt the model learns the opposite of what the concept adds.",
    "uce": "UCE: a closed-form edit of the cross-attention keys and values sends the concept's text to the anchor's.",
}
"""Method name to one line, when the results bring none of their own."""


def term(name: str) -> Term:
    """The term of a measure; an unlisted one is its own label, without a definition."""
    return next((known for known in TERMS if known.name == name), Term(name, name, ""))


def order(name: str) -> int:
    """Rank of a measure in a report."""
    return next((rank for rank, known in enumerate(TERMS) if known.name == name), len(TERMS))
