"""An engine that is loaded when it is first bound: for what few requests need."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sdexport.backends.protocol import Array, Binding, Engine
from sdexport.spec import TensorSpec


class LateEngine:
    """See `protocol.Engine`; every call but `name` may raise what loading raises."""

    def __init__(self, name: str, load: Callable[[], Engine]) -> None:
        self._name = name
        self._load = load
        self._engine: Engine | None = None

    def _loaded(self) -> Engine:
        if self._engine is None:
            self._engine = self._load()
        return self._engine

    @property
    def name(self) -> str:
        """The component."""
        return self._name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Its inputs."""
        return self._loaded().inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Its outputs."""
        return self._loaded().outputs

    def bind(
        self, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, Array] | None = None
    ) -> Binding:
        """See `protocol.Engine.bind`."""
        return self._loaded().bind(shapes, shared)

    def close(self) -> None:
        """Gives back what a loaded engine holds; it is loaded anew when it is needed again."""
        engine, self._engine = self._engine, None
        close = getattr(engine, "close", None)  # Engines on the host hold nothing but memory.
        if close is not None:
            close()
