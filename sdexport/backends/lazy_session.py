"""An engine that is loaded at its first use: for components that few requests need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sdexport.backends.session import Array, Binding, Engine
from sdexport.model.shapes import TensorSpec

if TYPE_CHECKING:
    from sdexport.backends.cuda.session import DeviceEngine


class LazySession:
    """An `Engine` that is loaded at its first use; all but `name` may raise what `load` raises."""

    def __init__(self, name: str, load: Callable[[], Engine]) -> None:
        self._name = name
        self._load = load
        self._engine: Engine | None = None
        self._cache: Path | None = None

    def _loaded(self) -> Engine:
        if self._engine is None:
            self._engine = self._load()
            if self._cache is not None:
                cast("DeviceEngine", self._engine).keep_cache(self._cache)
        return self._engine

    @property
    def name(self) -> str:
        """The component's name."""
        return self._name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The engine's inputs."""
        return self._loaded().inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The engine's outputs."""
        return self._loaded().outputs

    @property
    def optional(self) -> tuple[str, ...]:
        """See `Engine.optional`."""
        return self._loaded().optional

    def bind(
        self, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, Array] | None = None
    ) -> Binding:
        """See `Engine.bind`."""
        return self._loaded().bind(shapes, shared)

    # The methods of `cuda.session.DeviceEngine`; none of them loads the engine.

    def keep_cache(self, folder: Path) -> None:
        """Keeps compiled kernels in `folder` once the engine is loaded."""
        self._cache = folder

    def save_cache(self) -> None:
        """Writes the kernels compiled so far, if the engine is loaded."""
        if self._engine is not None:
            cast("DeviceEngine", self._engine).save_cache()

    def close(self) -> None:
        """Closes the engine if it is loaded; the next use loads it again."""
        engine, self._engine = self._engine, None
        if engine is not None:
            cast("DeviceEngine", engine).close()
