"""The words of a report on continual learning: what each metric means, and which formula it is."""

from dataclasses import dataclass

ACC = "final_average_accuracy"
FIRST = (
    f"class_il/{ACC}",
    f"task_il/{ACC}",
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


@dataclass(frozen=True, kw_only=True)
class Term:
    """A metric for a reader: short label, definition with formula and source, and whether less is better."""

    label: str
    meaning: str
    lower: bool = False
    share: bool = True


TERMS: dict[str, Term] = {
    ACC: Term(label="final accuracy", meaning="Mean over tasks after the last one: (1/T) Σ_i R[T][i] (GEM 2017)."),
    "average_incremental_accuracy_pooled": Term(
        label="incremental accuracy, pooled",
        meaning="Mean over t of the accuracy on the pooled test sets of tasks 1 to t (iCaRL 2017).",
    ),
    "average_incremental_accuracy_tasks": Term(
        label="incremental accuracy, tasks",
        meaning="Mean over t of the mean accuracy of tasks 1 to t: (1/T) Σ_t (1/t) Σ_{i≤t} R[t][i].",
    ),
    "average_anytime_accuracy": Term(
        label="anytime accuracy",
        meaning="Mean over evaluation points, those within a task too, of the mean accuracy so far (Caccia 2022).",
    ),
    "backward_transfer": Term(
        label="backward transfer",
        meaning="(1/(T−1)) Σ_{i<T} (R[T][i] − R[i][i]) (GEM 2017); negative when tasks were forgotten.",
    ),
    "backward_transfer_triangular": Term(
        label="backward transfer, triangular",
        meaning="(2/(T(T−1))) Σ_{t≥2} Σ_{i<t} (R[t][i] − R[i][i]) (Diaz-Rodriguez 2018).",
    ),
    "positive_backward_transfer": Term(
        label="positive backward transfer", meaning="max(triangular backward transfer, 0) (Diaz-Rodriguez 2018)."
    ),
    "remembering": Term(
        label="remembering", meaning="1 − |min(triangular backward transfer, 0)| (Diaz-Rodriguez 2018)."
    ),
    "forward_transfer": Term(
        label="forward transfer",
        meaning="(1/(T−1)) Σ_{i≥2} (R[i−1][i] − b[i]), b of the untrained network (GEM 2017).",
    ),
    "forgetting": Term(
        label="forgetting",
        meaning="(1/(T−1)) Σ_{i<T} (max_{i≤t<T} R[t][i] − R[T][i]) (Chaudhry 2018); may be negative.",
        lower=True,
    ),
    "forgetting_incl_last": Term(
        label="forgetting, last row included",
        meaning="The same with the last row in the maximum, as Mammoth and PyCIL compute it; never negative.",
        lower=True,
    ),
    "intransigence": Term(
        label="intransigence",
        meaning="(1/T) Σ_t (R*[t] − R[t][t]), R* of a network trained jointly on tasks 1 to t (Chaudhry 2018).",
        lower=True,
    ),
    "learning_accuracy": Term(
        label="learning accuracy",
        meaning="Accuracy on each task just after training it: (1/T) Σ_i R[i][i] (Riemer 2019).",
    ),
    "final_calibration_error": Term(
        label="calibration error",
        meaning="Expected calibration error after the last task, 15 bins of equal width (Guo 2017).",
        lower=True,
    ),
    "final_nll": Term(
        label="negative log-likelihood",
        meaning="After the last task, over the test samples of seen tasks, in nats.",
        lower=True,
        share=False,
    ),
}
_COSTS = {
    "passes": Term(label="passes", meaning="Forward-backward passes of training.", lower=True, share=False),
    "seconds": Term(label="training time", meaning="Wall time of training.", lower=True, share=False),
    "peak_memory": Term(label="peak memory", meaning="Peak memory.", lower=True, share=False),
}


def term(metric: str) -> Term:
    """The term of a metric's name, with its kind in the label: "class_il/forgetting" is "forgetting, Class-IL"."""
    kind, _, name = metric.rpartition("/")
    found = TERMS.get(name) or _COSTS.get(name) or Term(label=name, meaning="", share=False)
    if kind in _SHORT:
        return Term(label=f"{found.label}, {_SHORT[kind]}", meaning=found.meaning, lower=found.lower, share=found.share)
    return found


def is_share(metric: str) -> bool:
    """Whether a metric is a share, shown in per cent."""
    return term(metric).share
