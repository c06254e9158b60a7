"""Families are found by configurations and by name, and what they say is one value."""

from __future__ import annotations

import msgspec
import pytest

from sdexport.errors import UsageError
from sdexport.model import families
from sdexport.model.configs import TextConfig, UNetConfig, VaeConfig
from sdexport.model.families import Configs, Family, sd1
from sdexport.model.spec import Condition, ModelSpec
from sdexport.model.step import Role, step_contract
from tests.specs import make_spec

SIZE = Condition(name="size", per="image")


def configs(*, activation: str = "quick_gelu", guidance: int | None = None) -> Configs:
    return Configs(
        unet=UNetConfig(sample_size=64, time_cond_proj_dim=guidance),
        vae=VaeConfig(block_out_channels=(64, 64, 64, 64)),
        text_encoder=TextConfig(hidden_act=activation, hidden_size=768),
        tokens=77,
        skippable_layers=12,
    )


@pytest.mark.parametrize(("activation", "name"), [("quick_gelu", "sd1"), ("gelu", "sd2")])
def test_a_family_is_detected(activation: str, name: str) -> None:
    found = families.spec_of(configs(activation=activation))
    assert found.family == name
    assert families.family_named(name).spec(configs(activation=activation)) == found
    assert (found.native_size, found.latents.scale, found.tokens) == ((512, 512), 8, 77)


def test_a_distilled_model_embeds_its_guidance() -> None:
    assert not families.spec_of(configs()).embeds_guidance
    assert families.spec_of(configs(guidance=256)).embeds_guidance


def test_a_specification_is_a_document() -> None:
    made = make_spec(
        conditions=(Condition(name="x", per="branch", shape=(4, "height")),), embeds_guidance=True
    )
    assert msgspec.json.decode(msgspec.json.encode(made), type=ModelSpec) == made
    assert hash(made) == hash(make_spec(conditions=made.conditions, embeds_guidance=True))


def test_the_first_family_that_detects_is_taken() -> None:
    mine = Family("mine", "Mine", lambda configs: True, lambda c: sd1.spec(c, "mine"))
    families.register(mine)
    try:
        assert families.spec_of(configs()).family == "mine"
        with pytest.raises(UsageError, match="a family's name must be new, got 'mine'"):
            families.register(mine)
    finally:
        families.unregister("mine")
    assert families.spec_of(configs()).family == "sd1"
    with pytest.raises(UsageError, match="the family 'mine' is not known here, which has sd1, sd2"):
        families.family_named("mine")


def test_conditions_are_rows_of_the_contract() -> None:
    conditions = (
        Condition(name="size", per="image", shape=(6,), neutral=2.0),
        Condition(name="map", per="branch", shape=(1, "height", "width")),
    )
    plain = step_contract(make_spec())
    found = step_contract(make_spec(conditions=conditions))
    assert found[: len(plain) - 1] == plain[:-1]
    size, depth = found[len(plain) - 1 : -1]
    assert (size.shape, size.role, size.neutral) == (("batch", 6), Role.CONDITION, 2.0)
    assert depth.shape == ("batch", "branches", 1, "height", "width")
    sizes = {"batch": 3, "branches": 2, "height": 8, "width": 5}
    assert depth.resolved(sizes) == (3, 2, 1, 8, 5)
    assert found[-1].role is Role.OUTPUT


def test_guidance_embedding_is_a_row_of_the_contract() -> None:
    names = [one.name for one in step_contract(make_spec(embeds_guidance=True))]
    assert "embedded_guidance" in names
    assert "embedded_guidance" not in [one.name for one in step_contract(make_spec())]


def test_the_packages_own_cannot_be_removed() -> None:
    from sdexport.export import components

    with pytest.raises(UsageError, match="a family that was registered must be given, got 'sd1'"):
        families.unregister("sd1")
    with pytest.raises(UsageError, match="a kind that was registered must be given, got 'unet'"):
        components.unregister("unet")


def test_a_family_names_its_own_specification() -> None:
    families.register(Family("mine", "Mine", lambda configs: True, sd1.spec))
    try:
        with pytest.raises(ValueError, match="the family mine gave a specification of sd1"):
            families.spec_of(configs())
    finally:
        families.unregister("mine")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conditions": (SIZE, SIZE)}, "conditions must have different names, got size, size"),
        ({"family": ""}, "family"),
        ({"components": ()}, "components"),
        ({"latents": msgspec.structs.replace(make_spec().latents, scaling_factor=0.0)}, "0"),
    ],
)
def test_what_no_model_is_is_refused(changes: dict[str, object], said: str) -> None:
    value = msgspec.to_builtins(make_spec()) | msgspec.to_builtins(changes)
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(value, ModelSpec)
