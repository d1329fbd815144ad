"""The simulated engine behind our own small server."""

from __future__ import annotations

import json

from pytest_llminfer.worker.backends.serving.command import Command, Order, with_package
from pytest_llminfer.worker.backends.simulated.faults import Faults

KEY_VARIABLE = "LLMINFER_SERVER_KEY"
_MAIN = "from pytest_llminfer.worker.backends.simulated.server import main; main()"
_SERVER = ("server_fault", "server_fault_seconds")


def command(order: Order) -> Command:
    """The key goes in the environment."""
    model = {name: value for name, value in order.arguments.items() if name not in (*_SERVER, "max_batch_tokens")}
    Faults.read({name: value for name, value in model.items() if (name, value) != ("fault", "hang_in_load")})
    cell = {**order.spec.to_dict(), "environment": "", "serve": False}
    settings = {
        "spec": cell,
        "model_path": order.model_path,
        "name": order.name,
        "port": order.port,
        "engine_args": dict(order.arguments),
    }
    return Command(
        argv=(order.interpreter, "-c", with_package(_MAIN), json.dumps(settings)),
        variables={KEY_VARIABLE: order.key},
        dtype="fp32",
    )
