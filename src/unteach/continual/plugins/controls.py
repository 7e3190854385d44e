"""The controls that refresh must be compared with (refresh §2.4), and the host method alone."""

from dataclasses import dataclass, replace

from unteach.continual.plugins.base import GradientPlugin, Gradients, Plugin, plugins, setting
from unteach.continual.plugins.refresh import Refresh
from unteach.continual.step import StepContext
from unteach.errors import ConfigError


@plugins.add("none")
@dataclass(frozen=True, kw_only=True)
class Plain(GradientPlugin):
    """The host method as it is."""

    def gradient(self, context: StepContext) -> Gradients:
        """The host's own."""
        return context.gradient()


@plugins.add("reweight")
@dataclass(frozen=True, kw_only=True)
class Reweight(GradientPlugin):
    """The host with the current batch's task loss × (1 − ratio): what refresh does to first order.

    Args:
        ratio: γ/η of the refresh step to compare with.
    """

    ratio: float = setting(1 / 3, low=0, high=1)

    def gradient(self, context: StepContext) -> Gradients:
        """The host's own; the weight comes in through :meth:`data_weight`."""
        return context.gradient()

    def data_weight(self, lr: float) -> float:
        """1 − ratio."""
        return 1.0 - self.ratio


@plugins.add("reduced-rate")
@dataclass(frozen=True, kw_only=True)
class ReducedRate(GradientPlugin):
    """The host with its learning rate × (1 − ratio): what refresh on the host's whole loss does to first order.

    Args:
        ratio: γ/η of the refresh step to compare with.
    """

    ratio: float = setting(1 / 3, low=0, high=1)

    def gradient(self, context: StepContext) -> Gradients:
        """The host's own; the factor comes in through :meth:`lr_factor`."""
        return context.gradient()

    def lr_factor(self) -> float:
        """1 − ratio."""
        return 1.0 - self.ratio


def controls(refresh: Refresh, lr: float) -> dict[str, Plugin]:
    """The arms that a run of ``refresh`` must be compared with at learning rate ``lr`` (refresh §2.4), by name.

    The noise arms are there only when ``refresh`` has noise. ``restored`` is SAM with refresh's own ascent, so
    that the radius is the same in every step; ``reweight`` and ``reduced-rate`` take P for 1, J steps for J γ.

    Raises:
        ConfigError: γ is 0 or rescaled, so that no ratio γ/η matches it, or too large for one.
    """
    ratio = refresh.steps * refresh.rate(lr) / lr if lr > 0 else 0.0
    if refresh.normalise != "none" or not 0 < ratio <= 1:
        raise ConfigError(
            "no re-weighting matches this refresh: that takes 0 < J γ/η ≤ 1 and normalise='none'",
            found=f"J γ/η = {ratio:.3g}, normalise='{refresh.normalise}'",
            fix="choose gamma by its ratio to the learning rate, or pick the ratios of the controls by hand",
        )
    arms: dict[str, Plugin] = {
        "host": Plain(),
        "refresh": refresh,
        "reweight": Reweight(ratio=ratio),
        "reduced-rate": ReducedRate(ratio=ratio),
        "restored": replace(refresh, restore=True),
        "identity": replace(refresh, preconditioner="none"),
    }
    if refresh.noisy:
        arms["quiet"] = replace(refresh, temperature=0.0, noise=0.0)
        arms["noise-only"] = replace(refresh, drift=False)
    return arms
