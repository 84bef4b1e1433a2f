"""The model in the newest checkpoint of a run that is not finished."""

import sys
from pathlib import Path

from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.training import checkpoint

CONFIG = "config"
"""The key of a checkpoint under which the configuration of the averaged model stands."""


def load_latest(run: Path) -> Preconditioned:
    """The first average in the newest sound checkpoint of a run's folder, in evaluation mode.

    A newer one that is damaged is passed over with a warning.

    Raises UserError where there is no such checkpoint or only that of the start beside damaged ones, or one
    of a version that did not keep what to build.
    """
    state, damaged = checkpoint.load_newest(run / "checkpoints")
    if state is None or (damaged and not state["step"]):
        found = f", but {len(damaged)} damaged one(s)" if damaged else ""
        raise UserError(f"there is no sound checkpoint{found}", str(run), "give a run's folder")
    if damaged:
        what = f"{run}: {len(damaged)} newer checkpoint(s) are damaged; that of step {state['step']} is taken"
        print(f"warning: {what}", file=sys.stderr)
    if CONFIG not in state:
        raise UserError(
            "its checkpoints do not say what to build", str(run), "continue the run, which writes new ones"
        )
    model = store.build(state[CONFIG], str(run))
    model.load_state_dict(state["averages"][0])
    return model.eval()
