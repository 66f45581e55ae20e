"""What is said of every setting is what the models take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel, ValidationError

from sumnas import meanings, params
from sumnas.cli import main
from sumnas.errors import UserError

ROOT = Path(__file__).parents[1]


def every_field() -> list[tuple[type[BaseModel], str]]:
    """Return the fields of all models, a block inside another once."""
    found, waiting = list[type[BaseModel]](), [model for _, _, model in meanings.roots()]
    for model in waiting:  # it grows meanwhile
        if model not in found:
            found.append(model)
            waiting += [m for f in model.model_fields.values() if (m := meanings.model_in(f.annotation))]
    return [(model, name) for model in found for name in model.model_fields]


FIELDS = [pytest.param(m, n, id=f"{m.__module__}.{m.__name__}.{n}") for m, n in every_field()]


def refused(model: type[BaseModel], name: str, value: object) -> bool:
    """Return whether the model has anything against this value of this key."""
    try:
        model.model_validate({name: value})
    except ValidationError as failure:
        return any(error["loc"] and error["loc"][0] == name for error in failure.errors())
    return False


@pytest.mark.parametrize(("model", "name"), FIELDS)
def test_every_key_is_described_with_its_kind_and_default(model: type[BaseModel], name: str) -> None:
    field = model.model_fields[name]
    assert len(meanings.described(model, name).split()) >= 2
    kind = meanings.kind(field)
    if not field.is_required():
        written, plain = yaml.safe_load(meanings.default(field)), field.get_default(call_default_factory=True)
        assert written == pytest.approx(plain, rel=1e-5) if isinstance(plain, float) else written == plain_of(plain)
    numeric = re.fullmatch(r"(?:auto or )?(whole number|number)((?: [≥>≤<] \S+)*)( or null)?", kind)
    if numeric:
        step = 1 if numeric[1] == "whole number" else 1e-3
        for sign, text in re.findall(r"([≥>≤<]) (\S+)", numeric[2]):
            bound, inward = (int if step == 1 else float)(text), 1 if sign in "≥>" else -1
            assert refused(model, name, bound - inward * step)
            assert refused(model, name, bound) == (sign in "<>")
            assert not refused(model, name, bound + inward * step)
        if not numeric[2] and step == 1:
            assert not refused(model, name, -1)
        assert refused(model, name, None) == (not numeric[3])
    elif kind == "true or false":
        assert not refused(model, name, False) and refused(model, name, "neither")
    elif " or " in kind and "block" not in kind and "number" not in kind and "text" not in kind:
        assert all(not refused(model, name, yaml.safe_load(word)) for word in kind.split(" or "))
        assert refused(model, name, "another")


def plain_of(value: Any) -> Any:
    """Return a default as YAML would hold it."""
    if isinstance(value, BaseModel):
        return {key: plain_of(getattr(value, key)) for key in type(value).model_fields}
    return [plain_of(item) for item in value] if isinstance(value, list | tuple) else value


def test_all_keys_of_the_settings_file_are_there() -> None:
    known = {name for _, names in meanings.every() for name in names}
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    written = [f"{block}.{key}" for block in raw if block != "methods" for key in raw[block]]
    written += [f"{block['strategy']}.{key}" for block in raw["methods"].values() for key in block]
    assert len(written) > 60 and set(written) <= known
    assert {key.partition(".")[0] for key, _, _ in meanings.roots()} == {
        *params.BLOCKS,
        *params.DYNAMIC,
    }


def test_found_by_block_key_and_strategy() -> None:
    (limit,) = meanings.find(["search.limits"])
    assert limit.kind == "list of number > 0 or null" and limit.default == ""
    assert {m.key for m in meanings.find(["nsas"])} == {m.key for m in meanings.find(["methods.nsas"])}
    assert {m.key.partition(".")[0] for m in meanings.find(["space"])} == {"space (mobilenet)", "space (nasbench201)"}
    assert "supernet.augmentation.flip" in {m.key for m in meanings.find(["supernet"])}
    assert len(meanings.find([])) == len(set(meanings.find([]))) > 300
    with pytest.raises(UserError, match=r"supernet\.epoch: no such setting; did you mean 'supernet\.epochs'\?"):
        meanings.find(["supernet.epoch"])
    with pytest.raises(UserError, match="no such setting; blocks: run, data"):
        meanings.find(["###"])


def test_the_page_is_that_of_the_models() -> None:
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    made = CliRunner().invoke(main, ["settings", "--markdown"])
    assert made.output == page, "make it anew: sumnas settings --markdown > docs/settings.md"
    assert page.count("\n| `") == len(every_field())


def test_the_command_says_what_a_key_means() -> None:
    said = CliRunner().invoke(main, ["settings", "search.mutation_probability"])
    assert said.output == "search.mutation_probability: number > 0 ≤ 1, default 0.1; p, per layer\n"
    wrong = CliRunner().invoke(main, ["settings", "serach.limits"])
    assert wrong.exit_code == 1 and "did you mean 'search.limits'?" in wrong.output
