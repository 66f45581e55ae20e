"""params.yaml: the one settings file, read, checked as a whole, and handed out block by block.

The models of the blocks stand beside the components that they configure; this file brings them together.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sumnas import files
from sumnas.batchnorm import CalibrationSettings
from sumnas.benchmark.pool import listed
from sumnas.benchmark.settings import COLUMN_NAME, BenchmarkSettings, FurtherSettings
from sumnas.errors import UserError, printable
from sumnas.evaluation import EvaluationSettings
from sumnas.methods import base as methods
from sumnas.preparation import DataSettings
from sumnas.ranking import RankingSettings
from sumnas.retraining import RetrainSettings
from sumnas.sampling import SamplingSettings
from sumnas.search import LABELS, SearchSettings
from sumnas.spaces import base as spaces
from sumnas.training import SupernetSettings

NAME = re.compile(r"[a-z][a-z0-9_-]*")
"""Names of methods: a dot would break the engines' addressing of a block, a capital some file systems."""


class RunSettings(BaseModel):
    """Block `run`: which runs there are, and on what they run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: list[str] = Field(min_length=1, description="names of blocks in `methods`")
    seeds: list[int] = Field(
        min_length=1, description="every method is trained once with each; all its random streams derive from it"
    )
    shards: list[int] = Field(min_length=1, description="[0, 1, ...]: jobs that the pool and the scores are split into")
    threads: int = Field(ge=1, description="of a stage; another number gives other rounding, so it is a setting")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA where there is such a device, else the CPU"
    )
    workers: int = Field(2, ge=0, description="processes that decode an image folder; no result depends on it")
    keep_gb: float = Field(
        1.0,
        ge=0,
        description="an image folder's split that is scored over and over is kept decoded, from its second reading on, "
        "where it takes at most so many GB of memory; no result depends on it",
    )


BLOCKS: dict[str, type[BaseModel]] = {
    "run": RunSettings,
    "data": DataSettings,
    "benchmark": BenchmarkSettings,
    "sampling": SamplingSettings,
    "supernet": SupernetSettings,
    "calibration": CalibrationSettings,
    "evaluation": EvaluationSettings,
    "ranking": RankingSettings,
    "search": SearchSettings,
    "retrain": RetrainSettings,
}
"""Every block whose model is always the same, by its name; DYNAMIC has the others."""
BRANCH = re.compile(r"literal\[.*\]|constrained-.*|int|list\[.*\]")
"""What pydantic puts behind a key that takes one of several kinds: no part of the key."""
DYNAMIC = ("space", "methods", "further")
"""Blocks whose model depends on what they name, or which hold a block of a free name each."""


class Params:
    """The validated settings, or the part of them that a stage declared."""

    def __init__(self, blocks: Mapping[str, Any]) -> None:
        self._blocks = dict(blocks)

    def __getattr__(self, name: str) -> Any:
        """Return a block; AttributeError says so where the stage did not declare it."""
        if name.startswith("_") or name not in self._blocks:
            raise AttributeError(f"this stage does not declare params block {name!r}; it has {sorted(self._blocks)}")
        return self._blocks[name]

    def select(self, blocks: Iterable[str]) -> Params:
        """Return only the blocks named; `run.threads` gives `threads` alone, `methods.<name>` gives it as `method`.

        UserError where there is no such method.
        """
        chosen: dict[str, Any] = {}
        for name in blocks:
            head, _, tail = name.partition(".")
            if head == "methods":
                if tail not in self._blocks["methods"]:
                    raise UserError(_unknown("method", tail, self._blocks["methods"]))
                chosen["method"] = self._blocks["methods"][tail]
            elif tail:
                chosen[tail] = getattr(self._blocks[head], tail)
            else:
                chosen[head] = self._blocks[head]
        return Params(chosen)

    def plain(self) -> dict[str, Any]:
        """Return JSON-ready data, defaults filled in."""
        return {name: _plain(block) for name, block in self._blocks.items()}

    def digest(self) -> str:
        """Return a digest of the settings: equal for equal values, whatever the file's layout and comments."""
        return files.digest(self.plain())


def load(path: Path, named: Iterable[str] = ()) -> Params:
    """Read and check the whole file. UserError has a line per problem: file, key, value, what would be valid.

    `named` are dotted keys that must be written out even where they have a default.
    """
    raw = _read(path)
    problems: list[str] = []
    blocks: dict[str, Any] = {}
    every = [*BLOCKS, *DYNAMIC]
    for name in raw:
        if name not in every:
            problems.append(_unknown("block", name, every))
    for name in every:
        if name not in raw:
            problems.append(f"{name}: missing block")
        elif not isinstance(raw[name], Mapping):
            problems.append(f"{name} = {raw[name]!r}: must be a block of settings")
        elif name in BLOCKS:
            blocks[name] = _validate(BLOCKS[name], raw[name], name, problems)
    if isinstance(raw.get("space"), Mapping):
        blocks["space"] = _validate_named(spaces.module_of, "name", raw["space"], "space", problems)
    if isinstance(raw.get("methods"), Mapping):
        rule = f"a method's name is lower case: letters, digits, '-', '_' ({NAME.pattern})"
        blocks["methods"] = {
            name: _validate_named(methods.module_of, "strategy", block, f"methods.{name}", problems)
            for name, block in _named("methods", raw["methods"], NAME, rule, problems)
        }
    if isinstance(raw.get("further"), Mapping):
        rule = f"such a name is lower case: letters, digits, '_' ({COLUMN_NAME.pattern})"
        blocks["further"] = {
            name: _validate(FurtherSettings, block, f"further.{name}", problems)
            for name, block in _named("further", raw["further"], COLUMN_NAME, rule, problems)
        }
    if not problems:
        problems = [
            f"{key}: missing; write it out, also where its default is meant: {_default(key)}"
            for key in named
            if not _has(raw, key)
        ]
    if not problems:
        problems = _combinations(Params(blocks))
    if problems:
        # A line each, also where a key or a value has several.
        raise UserError("\n".join(f"{path}: {printable(problem)}" for problem in problems))
    return Params(blocks)


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which here refuses a key given twice instead of silently keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                line = node.value[number][0].start_mark.line + 1
                raise yaml.constructor.ConstructorError(None, None, f"line {line}: key {key!r} is given twice")
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # a subclass of SafeLoader
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's root, or `make preset NAME=quick`") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: of what looks like a date but is none
        text = " ".join(str(getattr(error, "problem", None) or error).split())
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{path}: {where}{text}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must hold blocks of settings, found {type(raw).__name__}")
    return raw


def _has(raw: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(raw, Mapping) or part not in raw:
            return False
        raw = raw[part]
    return True


def _default(key: str) -> str:
    """Return the line of the file that says what a key's default is."""
    head, _, name = key.rpartition(".")
    return f"{name}: {json.dumps(BLOCKS[head].model_fields[name].get_default())}"


def _named(
    head: str, raw: Mapping[Any, Any], pattern: re.Pattern[str], rule: str, problems: list[str]
) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the blocks of free names that can be validated, with their names."""
    found = []
    for name, block in raw.items():
        if not pattern.fullmatch(str(name)):
            problems.append(f"{head}.{name}: {rule}")
        elif not isinstance(block, Mapping):
            problems.append(f"{head}.{name} = {block!r}: must be a block of settings")
        else:
            found.append((name, block))
    return found


def _validate_named(
    module_of: Any, field: str, raw: Mapping[str, Any], key: str, problems: list[str]
) -> BaseModel | None:
    """Validate a block whose model is found by its own field `field`."""
    if field not in raw:
        problems.append(f"{key}.{field}: missing")
        return None
    try:
        model: type[BaseModel] = module_of(str(raw[field])).Settings
    except UserError as error:
        text = str(error)
        problems.append(text if text.startswith(key) else f"{key}.{text}")
        return None
    return _validate(model, raw, key, problems)


def _validate(model: type[BaseModel], raw: Mapping[str, Any], key: str, problems: list[str]) -> BaseModel | None:
    try:
        return model.model_validate(dict(raw))
    except ValidationError as failure:
        said: dict[str, str | None] = {}
        for error in failure.errors():
            location = [str(part) for part in error["loc"] if not BRANCH.fullmatch(str(part))]
            name = ".".join([key, *location])
            if error["type"] == "extra_forbidden":
                fields = _fields(model, location[:-1])
                said[_unknown("key", name, [".".join([key, *location[:-1], f]) for f in fields])] = None
            elif error["type"] == "missing":
                said[f"{name}: missing"] = None
            else:
                message = re.sub(r"^(Input|Value error,)\s*(should)?\s*", "", error["msg"])
                message = re.sub(r"^be ", "must be ", message)
                value = f"{name} = {error['input']!r}"
                # Where one of several kinds is wanted, there is an error of each.
                said[value] = f"{said[value]}, or {message.removeprefix('must be ')}" if value in said else message
        problems += [value if message is None else f"{value}: {message}" for value, message in said.items()]
        return None


def _fields(model: type[BaseModel], location: list[str]) -> list[str]:
    """Return the keys that are valid at a place inside a model."""
    for part in location:
        if part.isdecimal():  # the place in a list, whose items are of the model found already
            continue
        field = model.model_fields.get(part)
        kinds = [] if field is None else [*get_args(field.annotation), field.annotation]  # of `Model | None`, or itself
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)


def _unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    valid = list(valid)
    near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    short = [v.rpartition(".")[2] for v in valid]
    return f"{name}: unknown {kind}; " + (f"did you mean '{near[0]}'?" if near else f"valid: {', '.join(short)}")


def _combinations(params: Params) -> list[str]:
    """Return what is wrong with values that are each valid alone."""
    run, problems = params.run, []
    for name in run.methods:
        if name not in params.methods:
            problems.append(_unknown("method", f"run.methods: {name}", [f"run.methods: {m}" for m in params.methods]))
    for key in ("methods", "seeds"):
        values = getattr(run, key)
        if len(set(values)) < len(values):
            problems.append(f"run.{key} = {values}: names one twice")
    if params.supernet.engine == "lockstep":
        for name in run.methods:
            block = params.methods.get(name)
            if block and (why := methods.module_of(block.strategy).METHOD.no_lockstep(block)) is not None:
                problems.append(f"supernet.engine = 'lockstep': methods.{name}: {why}; set supernet.engine: auto")
    if params.supernet.engine == "lockstep" and params.supernet.processes not in ("auto", 1):
        problems.append(
            f"supernet.processes = {params.supernet.processes}: lockstep runs all paths in one process; "
            "set supernet.engine: auto"
        )
    processes, split = params.supernet.processes, params.supernet.split_batch
    if split > params.supernet.batch_size:
        problems.append(
            f"supernet.split_batch = {split}: more than the {params.supernet.batch_size} images of supernet.batch_size"
        )
    if processes != "auto" and processes % split:
        problems.append(
            f"supernet.processes = {processes}: supernet.split_batch = {split} of them share a batch; set a multiple "
            "of it"
        )
    sharers, batch = params.retrain.processes, params.retrain.recipe.batch_size
    if sharers != "auto" and sharers > batch:
        problems.append(f"retrain.processes = {sharers}: more than the {batch} images of retrain.recipe.batch_size")
    if params.search.engine == "lockstep" and params.evaluation.adaptation_steps:
        problems.append(
            f"search.engine = 'lockstep': evaluation.adaptation_steps = {params.evaluation.adaptation_steps}, and "
            "sub-models are fitted one by one; set search.engine: auto"
        )
    if run.shards != list(range(len(run.shards))):
        problems.append(f"run.shards = {run.shards}: must count from 0, such as {list(range(len(run.shards)))}")
    if params.data.validation + params.data.test >= 1:
        shares = params.data.validation + params.data.test
        problems.append(f"data.validation + data.test = {shares:g}: must be below 1, the rest is trained on")
    if not params.data.validation and params.data.source != "imagefolder" and params.evaluation.split != "test":
        problems.append("evaluation.split = 'validation': data.validation is 0, so there are no such images; set: test")
    try:
        space = spaces.build(params.space)
    except ValueError as error:
        return [*problems, str(error)]
    problems += [*_limits(params.search, space), *_recipes(params, space)]
    if params.benchmark.source in ("nats", "nasbench201") and params.space.name != "nasbench201":
        problems.append(f"benchmark.source = {params.benchmark.source!r}: needs space.name: nasbench201")
    for name, source in params.further.items():
        if source.source != "table" and params.space.name != "nasbench201":
            problems.append(f"further.{name}.source = {source.source!r}: needs space.name: nasbench201")
    pool = params.benchmark.pool
    if params.benchmark.source == "pool":
        wanted = pool.architectures
        if isinstance(wanted, list):
            try:
                wanted = len(listed(space, wanted))
            except UserError as error:
                return [*problems, str(error)]
        if wanted > space.size:
            problems.append(f"benchmark.pool.architectures = {wanted}: the space has only {space.size} architectures")
        if params.sampling.strategy == "macs" and params.sampling.count > wanted:
            problems.append(
                f"sampling.count = {params.sampling.count}: the benchmark has only {wanted} architectures "
                "(benchmark.pool.architectures)"
            )
    return problems


def _limits(search: SearchSettings, space: spaces.Space) -> list[str]:
    """Return the limits that no architecture meets, as far as the costs are known before the table is."""
    problems = []
    if (costs := space.additive(search.cost)) is not None:
        smallest, label = costs.base + float(costs.table.min(1).sum()), LABELS[search.cost]
        problems = [
            f"search.limits = {limit}: no architecture has so few {label}; the smallest has {smallest:.6g} million"
            for limit in search.limits
            if limit is not None and limit < smallest
        ]
    return problems


def _recipes(params: Params, space: spaces.Space) -> list[str]:
    """Return what recipes and augmentations ask for that this space, or this data, has not."""
    recipes, problems = {"retrain.recipe": params.retrain.recipe}, []
    if params.benchmark.source == "pool":
        recipes["benchmark.pool.recipe"] = params.benchmark.pool.recipe
    for key, recipe in recipes.items():
        if recipe.dropout and not space.has_dropout:
            problems.append(f"{key}.dropout = {recipe.dropout}: networks of {params.space.name} have none; set it to 0")
    every = {key: recipe.augmentation for key, recipe in recipes.items()} | {"supernet": params.supernet.augmentation}
    for key, augmentation in every.items():
        if params.data.source != "imagefolder" and (name := augmentation.needs_files) is not None:
            problems.append(
                f"{key}.augmentation.{name}: is for data.source: imagefolder only; set it to null, and take flip, "
                "crop_padding, random_erasing"
            )
    return problems


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
