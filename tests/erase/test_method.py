"""Configurations: types, bounds, contradictions, names and presets."""

import dataclasses

import pytest
import yaml
from tests.erase.common import CONCEPT

from unteach.erase import erase, make, methods
from unteach.erase.ablate import Ablate
from unteach.erase.doco import DoCo
from unteach.erase.method import setting
from unteach.erase.uce import UCE
from unteach.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, found 0"),
        ({"steps": 3.5}, "steps must be a whole number, found 3.5"),
        ({"steps": True}, "steps must be a whole number, found True"),
        ({"learning_rate": 0}, "learning_rate must be above 0, found 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"learning_rate": "much"}, "learning_rate must be a finite number, found 'much'"),
        ({"t_max": 1.5}, "t_max must be at most 1"),
        ({"t_min": 0.5, "t_max": 0.5}, "t_min must be below t_max"),
        ({"space": "v"}, "space must be one of 'x0', 'eps', found 'v'"),
        ({"leak": 1}, "leak must be true or false, found 1"),
        ({"train": [""]}, "train must be a list of texts"),
        ({"steps": 100, "warm_up": 100}, "warm_up must leave updates"),
        ({"projection": -1}, "projection must be at least 0"),
    ],
)
def test_each_mistake_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        DoCo(**settings)
    with pytest.raises(ConfigError, match=message):
        make("doco", **settings)


def test_all_mistakes_at_once():
    with pytest.raises(ConfigError) as error:
        make("doco", steps=0, learning_rate=-1, spaec="x0", t_min=2)
    text = str(error.value)
    assert "the method 'doco' has 4 mistakes" in text and "did you mean 'space'" in text


def test_values_are_brought_to_their_types():
    # PyYAML reads a number like 2e-5 as text.
    method = make("doco", **yaml.safe_load("{learning_rate: 2e-5, clip: 1, train: ['.*attn2.*']}"))
    assert method == DoCo(learning_rate=2e-5, clip=1.0, train=(".*attn2.*",)) and isinstance(method.clip, float)
    assert hash(method) == hash(make("doco", learning_rate=2e-5, train=(".*attn2.*",)))
    assert UCE(guide="art").guide == "art" and UCE().guide is None
    with pytest.raises(ConfigError, match="guide must be text, found 3"):
        UCE(guide=3)


def test_methods_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DoCo().steps = 3  # type: ignore[misc]


def test_unknown_names_list_near_misses_among_methods_and_presets():
    with pytest.raises(ConfigError, match="no method or preset is called 'dcoo'; to do: did you mean 'doco'"):
        make("dcoo")
    with pytest.raises(ConfigError, match="did you mean 'doco-paper'"):
        make("doco-papr")
    with pytest.raises(ConfigError, match="called None"):
        make(None)


@pytest.mark.parametrize("name", methods.presets.names())
def test_every_preset_can_be_made_and_overridden(name):
    method, settings = methods.presets[name]
    made = make(name)
    assert made == methods[method](**settings) and made.to_dict()["method"] == method
    assert make(name, strength=0.5) == dataclasses.replace(made, strength=0.5)
    assert settings.items() <= {k: getattr(made, k) for k in settings}.items()
    assert name not in methods


def test_the_presets_carry_the_papers_numbers():
    november, october = make("doco-official-2024-11"), make("doco-official-2024-10")
    # doco §1.4: warm-up runs one step longer, so 2000/1000 gives 999 updates and 1000/200 gives 799.
    assert (november.updates(), october.updates()) == (999, 799)
    assert (november.formula, november.space, november.clip, november.leak) == (
        "official_cosine",
        "x0",
        1.0,
        True,
    )
    assert (october.formula, october.space, october.clip, october.leak) == ("orthogonal", "eps", 0.0, True)
    # Objects and nudity (doco §1.6): D learns at 1e-4, and the older state takes half of a conflict out.
    for name, projection in [("doco-paper", 1.0), ("doco-official-2024-11", 1.0), ("doco-official-2024-10", 0.5)]:
        style, thing = make(name), make(f"{name}-object")
        assert (style.d_learning_rate, style.projection) == (5e-4, 1.0) and (
            thing.d_learning_rate,
            thing.projection,
        ) == (1e-4, projection)
        assert dataclasses.replace(thing, d_learning_rate=5e-4, projection=1.0) == style
    clean = make("doco-paper")
    assert (clean.updates(), clean.leak, clean.formula) == (1000, False, "orthogonal")
    assert make("ablate-paper") == Ablate(
        steps=100, learning_rate=1.6e-5, retain_weight=0.0, guidance_scale=6.0, num_inference_steps=50,
        teacher="current", retain_target="noise", kept_words=0, contexts=0, look_every=0,
    )  # fmt: skip


def test_settings_go_with_a_name_only(sd):
    with pytest.raises(ConfigError, match="not with a configured method; found: strength"):
        erase(sd, CONCEPT, UCE(), strength=0.5)
    by_name = erase(sd, CONCEPT, "uce", strength=0.5)
    assert by_name.meta["config"]["strength"] == 0.5


def test_a_method_of_ones_own_is_one_class(sd):
    # Not registered: a configured instance is enough.
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Twice(UCE):
        factor: float = setting(2.0, low=0)

        def run(self, job):
            return super().run(job).scaled(self.factor)

    twice, once = erase(sd, CONCEPT, Twice()), erase(sd, CONCEPT, UCE())
    assert twice.norm() == pytest.approx(2 * once.norm())


def test_earlier_names_of_settings_work_with_a_word(caplog):
    old = make("doco", lr=2e-5, batch=4, lr_warm_up=3, d_lr=1e-3)
    assert old == make("doco", learning_rate=2e-5, batch_size=4, lr_warmup_steps=3, d_learning_rate=1e-3)
    assert not caplog.records or "is called" in caplog.text
    with pytest.raises(ConfigError, match="unknown setting 'lr'"):
        make("doco", lr=1e-5, learning_rate=2e-5)
