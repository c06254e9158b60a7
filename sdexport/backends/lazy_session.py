"""An engine that is loaded when it is first bound: for what few requests need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sdexport.backends.session import Array, Binding, Engine
from sdexport.model.shapes import TensorSpec

if TYPE_CHECKING:
    from sdexport.backends.cuda.session import DeviceEngine


class LazySession:
    """See `protocol.Engine`; every call but `name` may raise what loading raises."""

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

    @property
    def optional(self) -> tuple[str, ...]:
        """Inputs that it can do without."""
        return self._loaded().optional

    def bind(
        self, shapes: Mapping[str, tuple[int, ...]], shared: Mapping[str, Array] | None = None
    ) -> Binding:
        """See `protocol.Engine.bind`."""
        return self._loaded().bind(shapes, shared)

    # On a GPU, see `device.DeviceEngine`: nothing is loaded for their sake.

    def keep_cache(self, folder: Path) -> None:
        """Keeps compiled kernels in `folder`, from the time on that the engine is loaded."""
        self._cache = folder

    def save_cache(self) -> None:
        """Writes the kernels that were compiled since."""
        if self._engine is not None:
            cast("DeviceEngine", self._engine).save_cache()

    def close(self) -> None:
        """Gives back what a loaded engine holds; it is loaded anew when it is needed again."""
        engine, self._engine = self._engine, None
        if engine is not None:
            cast("DeviceEngine", engine).close()
