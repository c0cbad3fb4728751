"""What a run keeps of itself: network files for applications, and states that it goes on from or back to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from engine.bench import Bench
from engine.checkpoints import load_state, network_tensors, save_network, save_state
from engine.events import CheckpointSaved, Event, PhaseStarted, RunFinished, Warned
from engine.loss_watch import TrainingBrokeError
from engine.metadata import network_metadata
from engine.recovery import Marks, drop_spoilt_states, marks
from engine.trouble import out_of_memory
from engine.verification import verify
from knowledge.answers import PlainError


def save(bench: Bench, step: int) -> Iterator[Event]:
    """The network as a file that applications load; where an average is kept, the plain weights beside it on wish."""
    if not bench.accelerator.is_main_process:
        return
    yield PhaseStarted(phase="saving")
    path = network_file(bench, step)
    yield from write_network(bench, step, path, "network")
    if bench.average is not None and bench.config.ema.saved == "both":
        yield from write_network(bench, step, path.parent / "plain" / path.name, "plain")


def write_network(bench: Bench, step: int, path: Path, kind: Literal["network", "plain"]) -> Iterator[Event]:
    """One network file, checked before it is written; older ones go when only the last few are kept."""
    config = bench.config
    with bench.at_rest(averaged=kind == "network"):
        tensors = network_tensors(bench.network, config.saving.precision)
    metadata = network_metadata(
        config,
        bench.dataset,
        bench.length,
        tensors,
        step=step,
        epoch=bench.epoch_of(step),
        started_at=bench.started_at,
        held_out=len(bench.held_out),
    )
    verified = verify(tensors, bench.network.base_shapes(), config.base_model.family)
    size = save_network(tensors, path, metadata)
    yield CheckpointSaved(
        step=step,
        epoch=bench.epoch_of(step),
        kind=kind,
        path=path.relative_to(bench.run.path).as_posix(),
        bytes=size,
        final=step == bench.length.total_steps,
        applications=verified.applications,
    )
    if len(verified.silent) == verified.layers:
        yield Warned(
            message=f"The network saved after step {step} changes nothing: what its layers multiply is still zero, or "
            "was rounded to zero. Pictures drawn with it look like the base model's.",
            parameters=("optimizer.learning_rate", "saving.precision"),
        )
    if config.saving.keep_last is not None:
        kept = path.parent.glob(f"{config.output.name}-step*.safetensors")
        for old in by_step(kept)[: -config.saving.keep_last]:
            old.unlink()


def keep_state(bench: Bench, step: int) -> Iterator[Event]:
    """All that the next update depends on, so that a resumed run goes on as if it had never stopped."""
    if not bench.accelerator.is_main_process:
        return
    yield PhaseStarted(phase="saving", detail="state")
    with bench.run.new_state(step) as folder:
        size = save_state(folder, step, bench.network, bench.remembering())
    name = bench.run.states()[0].relative_to(bench.run.path).as_posix()
    yield CheckpointSaved(step=step, epoch=bench.epoch_of(step), kind="state", path=name, bytes=size)


@contextmanager
def state_kept_when_memory_ends(bench: Bench, step: int, before: Marks | None = None) -> Iterator[None]:
    """Where memory runs out meanwhile, the state after `step` is kept, so that the run can go on from the same step.

    Not where a part of the weights was updated already, as the marks of `before` tell: such a state is of no step, and
    the run goes on from the one that was kept last.
    """
    try:
        yield
    except Exception as problem:
        whole = before is None or marks(bench.network, bench.optimizer) == before
        if step and whole and out_of_memory(problem):
            bench.optimizer.zero_grad()
            list(keep_state(bench, step))
        raise


def back_where_training_broke(bench: Bench, step: int, loss: float, gradient_norm: float) -> Iterator[Event]:
    """Judge the loss and the gradient norm of the update after `step`; nothing as long as they are sound.

    Raises TrainingBrokeError when they are not, after taking over the last state from before the trouble and saving
    its network.
    """
    try:
        bench.watch.check(loss, gradient_norm, norm_may_overflow=bool(bench.accelerator.scaler))
    except TrainingBrokeError:
        if bench.together.leads and (good := drop_spoilt_states(bench.run, step)) is not None:
            yield from save(bench, load_state(good, bench.network, bench.remembering()))
        raise


def load_newest_state(bench: Bench) -> int:
    """Take over the newest state that can be read; the number of updates that it has behind it, 0 without one.

    Of several processes the first one chooses it. Raises PlainError when the run is finished, or when none of its
    states can be read.
    """
    step, state = bench.together.decided(lambda: _newest_loaded(bench))
    if state and not bench.together.leads:
        load_state(bench.run.state / state, bench.network, bench.remembering())
    return step


def _newest_loaded(bench: Bench) -> tuple[int, str]:
    """The step to go on from, and the name of the state that was loaded for it, if any; damaged ones are removed."""
    if network_file(bench, bench.length.total_steps).exists():
        if any(isinstance(event, RunFinished) and event.reason == "completed" for event in bench.run.events()):
            raise PlainError(f"{bench.run.name} is finished; there is nothing left to train. Start a new run instead.")
        return bench.length.total_steps, ""  # it was cut after its last file, before it could say so
    states = bench.run.states()
    for number, state in enumerate(states, start=1):
        try:
            step = load_state(state, bench.network, bench.remembering())
        except PlainError:
            if number == len(states):
                raise
        else:
            for damaged in states[: number - 1]:  # not before another was found whole: they may be of use to somebody
                bench.run.remove_state(damaged)
            return step, state.name
    return 0, ""


def by_step(files: Iterable[Path]) -> list[Path]:
    """Files of one network in the order of their steps: a longer number is a later one."""
    return sorted(files, key=lambda file: (len(file.name), file.name))


def network_file(bench: Bench, step: int) -> Path:
    """Where the network after this step is saved."""
    suffix = "" if step == bench.length.total_steps else f"-step{step:06d}"
    return bench.run.checkpoints / f"{bench.config.output.name}{suffix}.safetensors"
