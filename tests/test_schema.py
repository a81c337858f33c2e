"""The schema holds no default: YAML does, once, and a key that is missing there is an error."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from optbench import schema

CLASSES = [
    value for _, value in inspect.getmembers(schema, inspect.isclass)
    if issubclass(value, schema.Options) and value is not schema.Options
]  # fmt: skip


def test_the_groups_are_found() -> None:
    assert {schema.RunConfig, schema.TrainOptions, schema.OptimizerTraits} <= set(CLASSES)


@pytest.mark.parametrize("group", CLASSES, ids=lambda group: group.__name__)
def test_a_group_has_no_default_and_cannot_be_changed(group: type) -> None:
    assert dataclasses.is_dataclass(group)
    fields = dataclasses.fields(group)
    given = [
        field.name
        for field in fields
        if field.default is not dataclasses.MISSING
        or field.default_factory is not dataclasses.MISSING
    ]
    assert not given, f"written a second time: {given}"
    assert all(field.kw_only for field in fields)
    value = group(**{field.name: None for field in fields})
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, fields[0].name, 1)
    assert not hasattr(value, "__dict__")
