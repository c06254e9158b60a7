"""A `LazySession` loads its engine at the first use."""

from __future__ import annotations

import pytest

from sdexport.backends.lazy_session import LazySession
from sdexport.backends.session import Engine
from sdexport.errors import EngineError
from tests.pipeline.fakes import Fakes


def test_the_engine_is_loaded_once_at_the_first_use() -> None:
    real = Fakes().vae_encoder
    loads = []

    def load() -> Engine:
        loads.append(1)
        return real

    engine = LazySession("vae_encoder", load)
    assert engine.name == "vae_encoder"
    assert loads == []
    shapes = {"sample": (1, 3, 16, 16), "latent_parameters": (1, 8, 2, 2)}
    assert engine.bind(shapes).buffers["sample"].shape == (1, 3, 16, 16)
    assert (engine.inputs, engine.outputs) == (real.inputs, real.outputs)
    assert engine.bind(shapes) is not None
    assert loads == [1]


def test_an_error_while_loading_is_raised() -> None:
    def load() -> Engine:
        raise EngineError("vae_encoder cannot be loaded")

    with pytest.raises(EngineError, match="cannot be loaded"):
        LazySession("vae_encoder", load).bind({})
