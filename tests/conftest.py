"""For every test: no network, and one thread an operation. Set before torch or a hub client is imported."""

import os

from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# At toy size more threads only wait for each other; one also makes sums come out in one order everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# No time limits: on a busy machine they fail right tests. In CI the examples are the same every time.
settings.register_profile(
    "unteach",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unteach")
