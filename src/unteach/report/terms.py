"""The words of a page: what each measure and method means, in one line each."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Term:
    """A measure.

    Attributes:
        name: in the records.
        label: what a reader calls it.
        meaning: definition, with formula and source.
        first: whether it is shown before the others.
        lower: whether less is better.
        share: whether it is shown in per cent.
    """

    name: str
    label: str
    meaning: str
    first: bool = False
    lower: bool = False
    share: bool = True


ERASURE: tuple[Term, ...] = (
    Term(
        "UA",
        "Gone",
        "Unlearning accuracy: share of the concept's prompts on which the judge does not see it.",
        first=True,
    ),
    Term(
        "kept",
        "Rest kept",
        "Share of all other prompts on whose picture object and style both are as asked.",
        first=True,
    ),
    Term(
        "IRA",
        "Same domain kept",
        "In-domain retain accuracy: of the prompts asking for another concept of the same domain, the share "
        "on which the judge sees it (other styles for a style, other objects for an object).",
        first=True,
    ),
    Term(
        "CRA",
        "Other domain kept",
        "Cross-domain retain accuracy: on the same prompts, the share on which the other domain is right "
        "(the object when a style was erased). Prompts asking for the erased concept are left out.",
        first=True,
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
    Term("PSNR", "PSNR", "Peak signal-to-noise ratio of the same pairs, in dB; equal pictures count as 100 dB."),
    Term(
        "same verdict",
        "Same verdict",
        "Share of the same pairs on which the judge sees the same object and style before and after.",
    ),
)
"""Measures of an erasure in the order of pages. One that is not listed is shown last, under its own name."""

LEARNING: tuple[Term, ...] = (
    Term(
        "final_average_accuracy", "final accuracy", "Mean over tasks after the last one: (1/T) Σ_i R[T][i] (GEM 2017)."
    ),
    Term(
        "average_incremental_accuracy_pooled",
        "incremental accuracy, pooled",
        "Mean over t of the accuracy on the pooled test sets of tasks 1 to t (iCaRL 2017).",
    ),
    Term(
        "average_incremental_accuracy_tasks",
        "incremental accuracy, tasks",
        "Mean over t of the mean accuracy of tasks 1 to t: (1/T) Σ_t (1/t) Σ_{i≤t} R[t][i].",
    ),
    Term(
        "average_anytime_accuracy",
        "anytime accuracy",
        "Mean over evaluation points, those within a task too, of the mean accuracy so far (Caccia 2022).",
    ),
    Term(
        "backward_transfer",
        "backward transfer",
        "(1/(T−1)) Σ_{i<T} (R[T][i] − R[i][i]) (GEM 2017); negative when tasks were forgotten.",
    ),
    Term(
        "backward_transfer_triangular",
        "backward transfer, triangular",
        "(2/(T(T−1))) Σ_{t≥2} Σ_{i<t} (R[t][i] − R[i][i]) (Diaz-Rodriguez 2018).",
    ),
    Term(
        "positive_backward_transfer",
        "positive backward transfer",
        "max(triangular backward transfer, 0) (Diaz-Rodriguez 2018).",
    ),
    Term("remembering", "remembering", "1 − |min(triangular backward transfer, 0)| (Diaz-Rodriguez 2018)."),
    Term(
        "forward_transfer",
        "forward transfer",
        "(1/(T−1)) Σ_{i≥2} (R[i−1][i] − b[i]), b of the untrained network (GEM 2017).",
    ),
    Term(
        "forgetting",
        "forgetting",
        "(1/(T−1)) Σ_{i<T} (max_{i≤t<T} R[t][i] − R[T][i]) (Chaudhry 2018); may be negative.",
        lower=True,
    ),
    Term(
        "forgetting_incl_last",
        "forgetting, last row included",
        "The same with the last row in the maximum, as Mammoth and PyCIL compute it; never negative.",
        lower=True,
    ),
    Term(
        "intransigence",
        "intransigence",
        "(1/T) Σ_t (R*[t] − R[t][t]), R* of a network trained jointly on tasks 1 to t (Chaudhry 2018).",
        lower=True,
    ),
    Term(
        "learning_accuracy",
        "learning accuracy",
        "Accuracy on each task just after training it: (1/T) Σ_i R[i][i] (Riemer 2019).",
    ),
    Term(
        "final_calibration_error",
        "calibration error",
        "Expected calibration error after the last task, 15 bins of equal width (Guo 2017).",
        lower=True,
    ),
    Term(
        "final_nll",
        "negative log-likelihood",
        "After the last task, over the test samples of seen tasks, in nats.",
        lower=True,
        share=False,
    ),
)
"""Metrics of continual learning."""

COSTS: tuple[Term, ...] = (
    Term("passes", "passes", "Forward-backward passes of training.", lower=True, share=False),
    Term("seconds", "training time", "Wall time of training.", lower=True, share=False),
    Term("peak_memory", "peak memory", "Peak memory.", lower=True, share=False),
)
TERMS = {term.name: term for term in (*ERASURE, *LEARNING, *COSTS)}

FIRST = (
    "class_il/final_average_accuracy",
    "task_il/final_average_accuracy",
    "class_il/average_incremental_accuracy_tasks",
    "class_il/forgetting",
    "class_il/learning_accuracy",
    "task_il/forward_transfer",
    "final_calibration_error",
)
"""Metrics that are shown first."""

KINDS = {
    "class_il": "Class-IL: the network is asked among all classes of its head",
    "task_il": "Task-IL: the network is told the task, classes of others are masked",
    "class_il_all_heads": "Class-IL over the whole head: classes not seen yet may be answered too",
}
_SHORT = {"class_il": "Class-IL", "task_il": "Task-IL", "class_il_all_heads": "whole head"}


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
    """The term of a measure; "class_il/forgetting" is "forgetting, Class-IL", an unlisted one its own label."""
    kind, _, plain = name.rpartition("/")
    if kind not in _SHORT:
        return TERMS.get(name) or TERMS.get(plain) or Term(name, name, "", share=False)
    found = TERMS.get(plain) or Term(plain, plain, "", share=False)
    return replace(found, label=f"{found.label}, {_SHORT[kind]}")


def order(name: str) -> int:
    """Rank of a measure on a page."""
    return list(TERMS).index(name) if name in TERMS else len(TERMS)
