"""Ways into a model beside `forward`, which offloading and device maps see, too: their hooks are on `forward` alone."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Model = TypeVar("Model", bound="ModelWithEntries")


class ModelWithEntries:
    """A model, beside `ModelMixin`, whose methods marked as `entry` run inside of a call of it, as `forward` does."""

    _is_running = False
    __call__: Callable[..., Any]
    forward: Callable[..., Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let `forward` run an entry where one is asked for."""
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__:
            cls.forward = _or_entry(cls.forward)


def entry(
    method: Callable[Concatenate[Model, Arguments], Result],
) -> Callable[Concatenate[Model, Arguments], Result]:
    """Make a method run inside of a call of its model, whose hooks then bring weights and inputs to where they belong.

    From inside of another entry, or of `forward`, it runs as it is: the weights are there.
    """

    @wraps(method)
    def call(self: Model, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if self._is_running:
            return method(self, *args, **kwargs)
        return self(*args, **kwargs, _entry=method)

    return call


def _or_entry(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A `forward` that runs the method `_entry` in its place, where it is given."""

    @wraps(forward)
    def run(self: ModelWithEntries, *args: Any, _entry: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
        was_running, self._is_running = self._is_running, True
        try:
            return (_entry or forward)(self, *args, **kwargs)
        finally:
            self._is_running = was_running

    return run
