"""Environments: where the questions of reinforcement learning come from, level by level, with held-out splits.

A task is named by its source: `puzzles:sum`, `microworld:spell`, `gym:chain_sum` (any task of reasoning-gym), or a
file of your own, `tasks.jsonl`, one object per line: `prompt` (a text) or `messages`, and whatever your rewards take.
Example `index` is a pure function of task, level, split and seed, so that a run resumes by its counters.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast

from shoal.data.microworld import generate
from shoal.data.microworld.world import Language, Split, bucket
from shoal.data.puzzles import LEVELS, TASKS, puzzle_at
from shoal.data.splits import split_of
from shoal.data.types import Conversation, Message
from shoal.errors import ShoalError
from shoal.files import read_text
from shoal.tune.rewards import require_gym

HELD_OUT = {"validation": 0.05, "test": 0.05}  # of the rows of a file


@dataclass(frozen=True)
class Example:
    """A question. `fields` is what rewards may take; `solution` is a worked answer where the task has one."""

    id: str
    task: str
    level: int
    messages: tuple[Message, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    solution: Message | None = None

    @property
    def question(self) -> str:
        """The last thing said."""
        return self.messages[-1].content or ""


class Task(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def levels(self) -> Sequence[int]: ...

    def example(self, split: Split, level: int, index: int) -> Example: ...


class _Puzzles:
    def __init__(self, name: str, seed: int):
        if name not in TASKS:
            raise ShoalError(f"there is no puzzle {name!r}", hint=f"One of {', '.join(TASKS)}.")
        self.name, self.levels, self._seed = f"puzzles:{name}", LEVELS, seed

    def example(self, split: Split, level: int, index: int) -> Example:
        puzzle = puzzle_at(self.name.partition(":")[2], level, split, index, self._seed)
        solution = Message("assistant", puzzle.answer, reasoning_content=puzzle.thought)
        return Example("", self.name, level, (Message("user", puzzle.question),), puzzle.fields, solution)


class _Microworld:
    def __init__(self, family: str, seed: int, language: Language):
        if family not in generate.FAMILIES:
            raise ShoalError(
                f"the microworld has no family {family!r}", hint=f"One of {', '.join(generate.FAMILIES)}."
            )
        self.name, self.levels = f"microworld:{family}", generate.FAMILIES[family][1]
        self._seed, self._language = seed, language

    def example(self, split: Split, level: int, index: int) -> Example:
        family = self.name.partition(":")[2]
        task = generate.task_at(self._seed, index, split, self._language, family=family, level=level)
        said = [
            Message(role, text)
            for turn in task.turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        solution = Message("assistant", task.reply, reasoning_content=task.reasoning)
        fields = {"task": task, "answer": task.answer, "options": task.options}
        return Example("", self.name, level, (*said, Message("user", task.question)), fields, solution)


class _Gym:
    """A task of reasoning-gym. Its curriculum gives the levels; a question's hash decides its split."""

    def __init__(self, name: str, seed: int):
        gym = require_gym()
        if name not in gym.factory.DATASETS:
            raise ShoalError(
                f"reasoning-gym has no task {name!r}",
                hint=f"One of {', '.join(sorted(gym.factory.DATASETS))}.",
            )
        self.name, self._seed = f"gym:{name}", seed
        self.levels = range(1, 6) if gym.factory.has_curriculum(name) else range(1, 2)
        self._gym, self._datasets = gym, cast(dict[int, Any], {})

    def example(self, split: Split, level: int, index: int) -> Example:
        if level not in self._datasets:
            self._datasets[level] = self._dataset(level)
        dataset = self._datasets[level]
        for attempt in range(1000):
            entry = dataset[index * 1000 + attempt]
            if bucket(entry["question"]) == split:
                fields = {"answer": entry["answer"], "gym_entry": entry}
                return Example("", self.name, level, (Message("user", entry["question"]),), fields)
        raise ShoalError(f"{self.name} has too few questions to hold some out for {split!r} at level {level}")

    def _dataset(self, level: int) -> Any:
        name, options = self.name.partition(":")[2], {"seed": self._seed, "size": 2**31 - 1}
        if len(self.levels) == 1:
            return self._gym.create_dataset(name, **options)
        curriculum = self._gym.factory.create_curriculum(name)
        for key, attribute in curriculum.attributes.items():
            curriculum.set_attr_level(key, min(level - 1, len(attribute.levels) - 1))
        return self._gym.create_dataset(name, **{**vars(curriculum.generate_configuration()), **options})


class _File:
    """A file of one's own. Rows are held out by their question; training goes through the rest in a new order each
    time round."""

    def __init__(self, path: Path, seed: int):
        self.name, self.levels, self._seed = path.name, range(1, 2), seed
        self._rows: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if line.strip():
                example = _row(line, f"{path}:{number}", self.name)
                self._rows[split_of(Conversation(example.messages), HELD_OUT)].append(example)
        for split in ("validation", "test"):
            if not self._rows[split]:  # a file of a handful of rows: the last ones
                self._rows[split] = self._rows["train"][-max(1, len(self._rows["train"]) // 10) :]
        self._rows["train"] = [x for x in self._rows["train"] if x not in self._rows["test"]]
        if not self._rows["train"]:
            raise ShoalError(
                f"{path} has too few rows to train on", hint="One JSON object per line, some dozens at least."
            )

    def example(self, split: Split, level: int, index: int) -> Example:
        rows = self._rows[split]
        turn, place = divmod(index, len(rows))
        order = list(range(len(rows)))
        random.Random(f"{self._seed}/{split}/{turn}").shuffle(order)
        return rows[order[place]]


def _row(line: str, where: str, task: str) -> Example:
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("not an object")
        if isinstance(row.get("prompt"), str):
            messages: tuple[Message, ...] = (Message("user", row["prompt"]),)
        else:
            messages = tuple(Message(m["role"], m["content"]) for m in row["messages"])
        if (
            not messages
            or messages[-1].role != "user"
            or not all(isinstance(m.content, str) for m in messages)
        ):
            raise ValueError("the last message must be the user's")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ShoalError(
            f"{where} is no task: {why}",
            hint='Each line: {"prompt": "...", "answer": "..."} or {"messages": [...], ...}.',
        ) from error
    fields = {key: value for key, value in row.items() if key not in ("prompt", "messages")}
    return Example("", task, 1, messages, fields)


def open_task(spec: str, *, seed: int = 0, language: str = "en", folder: Path | None = None) -> Task:
    """The task that a recipe names. Raises ShoalError that lists what there is."""
    source, colon, name = spec.partition(":")
    if colon and source == "puzzles":
        return _Puzzles(name, seed)
    if colon and source == "microworld":
        if language not in ("en", "ja"):
            raise ShoalError(f"the microworld does not speak {language!r}", hint="en or ja.")
        return _Microworld(name, seed, cast(Language, language))
    if colon and source == "gym":
        return _Gym(name, seed)
    if spec.endswith(".jsonl"):
        return _File((folder or Path()) / spec, seed)
    raise ShoalError(
        f"there is no task {spec!r}",
        hint="puzzles:NAME, microworld:FAMILY, gym:TASK (reasoning-gym), or a file of your own, FILE.jsonl.",
    )


class Environment:
    """Tasks in turn. `system` and `suffix` are put around every question."""

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        seed: int = 0,
        language: str = "en",
        system: str = "",
        suffix: str = "",
        folder: Path | None = None,
    ):
        if not tasks:
            raise ShoalError("the environment has no tasks", hint='tasks = ["puzzles:sum"]', exit_code=2)
        opened = [open_task(spec, seed=seed, language=language, folder=folder) for spec in tasks]
        self.tasks = {task.name: task for task in opened}
        self._system, self._suffix = system, suffix

    def example(self, task: str, split: Split, level: int, index: int) -> Example:
        """Question `index` of a task at a level, or at the nearest it has."""
        levels = self.tasks[task].levels
        level = min(max(level, levels[0]), levels[-1])
        example = self.tasks[task].example(split, level, index)
        messages = example.messages
        if self._suffix:
            messages = (
                *messages[:-1],
                replace(messages[-1], content=f"{messages[-1].content}{self._suffix}"),
            )
        if self._system:
            messages = (Message("system", self._system), *messages)
        return replace(example, id=f"{task}/{level}/{split}/{index}", messages=messages)

    def held_out(self, split: Split, count: int, level: int | None = None) -> list[Example]:
        """`count` examples, always the same, of the tasks in turn and (without a `level`) of their levels in turn."""
        names = list(self.tasks)
        found = []
        for number in range(count):
            name = names[number % len(names)]
            index = number // len(names)
            levels = self.tasks[name].levels
            chosen = levels[index % len(levels)] if level is None else level
            found.append(self.example(name, split, chosen, index))
        return found

    def traces(self, count: int, *, native: bool, levels: Sequence[int] = ()) -> Iterator[dict[str, Any]]:
        """Worked answers to `count` training questions, as rows for fine-tuning: what plants the thought that rewards
        then sharpen. Tasks in turn, levels (default: all) in turn. `native`: the model has a thinking mode of its own;
        else the marks are text. Raises ShoalError for a task without worked answers."""
        names = list(self.tasks)
        for number in range(count):
            name = names[number % len(names)]
            index = number // len(names)
            own = [n for n in self.tasks[name].levels if not levels or n in levels] or [
                self.tasks[name].levels[0]
            ]
            # Far from the questions that reinforcement learning draws first.
            example = self.example(name, "train", own[index % len(own)], 1_000_000 + index)
            if example.solution is None:
                raise ShoalError(
                    f"{name} has no worked answers",
                    hint="puzzles and microworld have; or write the rows yourself.",
                )
            said = [{"role": m.role, "content": m.content} for m in example.messages]
            thought, answer = example.solution.reasoning_content, example.solution.content
            if native:
                said.append({"role": "assistant", "reasoning_content": thought, "content": answer})
            else:
                said.append({"role": "assistant", "content": f"<think>\n{thought}\n</think>\n{answer}"})
            yield {"messages": said}
