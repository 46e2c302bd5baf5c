"""Creates commands from requests: each field is an option, with its description as help."""

import functools
import inspect
import operator
from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from reco_ray.cli.commands import app
from reco_ray.errors import UsageError
from reco_ray.requests import Request, names_field, usage_error

R = TypeVar("R", bound=Request)


def add_command(request: type[R], run: Callable[[R], None], name: str) -> None:
    """Adds a command that makes a request of its options and runs it.

    Args:
        request: fields become options, `POSITIONAL` ones arguments; its docstring is the help of the command.
        run: called with the request.
        name: of the command.
    """

    def command(**values: Any) -> None:
        given = {key: value for key, value in values.items() if value not in (None, [])}
        try:
            made = request(**given)
        except ValidationError as error:
            line = str(usage_error(error))
            option = f"--{line.replace('_', '-', 1)}" if names_field(error) else line
            raise UsageError(option) from error
        run(made)

    # A class's own fields before those of its bases.
    own = [key for base in request.__mro__ for key in vars(base).get("__annotations__", ())]
    fields = [(key, request.model_fields[key]) for key in dict.fromkeys(own) if key in request.model_fields]
    command.__name__, command.__doc__ = name, request.__doc__
    parameters = [_parameter(key, field, key in request.POSITIONAL) for key, field in fields]
    # Typer reads the signature.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    app.command(name)(command)


def _parameter(name: str, field: FieldInfo, positional: bool) -> inspect.Parameter:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    options: dict[str, Any] = {"help": field.description}
    if "envvar" in extra:
        options["envvar"] = extra["envvar"]
    for rule in field.metadata:
        for bound, key in (("ge", "min"), ("le", "max")):
            if (limit := getattr(rule, bound, None)) is not None:
                options[key] = limit
    annotation = _without_validators(field.annotation)
    default: Any = inspect.Parameter.empty if field.is_required() else field.default
    if annotation == str | list[str] | None:
        annotation = str | None  # a list is for Python and YAML
    if default == []:
        annotation, default = annotation | None, None
    if positional:
        marker: Any = typer.Argument(**options)
    else:
        # Named explicitly, or a flag would get a second, negative form.
        marker = typer.Option(f"--{name.replace('_', '-')}", **options)
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=Annotated[annotation, marker])


def _without_validators(annotation: Any) -> Any:
    """`Annotated[str, ...] | None` -> `str | None`: typer shows the type in the help."""
    if get_origin(annotation) is Annotated:
        return _without_validators(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return functools.reduce(operator.or_, map(_without_validators, get_args(annotation)))
    return annotation
