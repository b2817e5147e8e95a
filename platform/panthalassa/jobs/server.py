"""The door to a cluster's job server: an address comes in, a client that has been let in goes out.

Address, authentication and version are looked at one after the other before anything is sent, so that
each of them that is wrong is named by itself. The token comes from Ray's own variables and files.
"""

import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from panthalassa.cluster import ANSWER, TOKEN, check_answer, set_authentication
from panthalassa.errors import PanthalassaError
from panthalassa.redact import without_secrets

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

LOCAL = "http://127.0.0.1:8265"
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
TALKERS = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
"""Modules of Ray that tell people of each package and connection."""


def connect(address: str | None) -> "JobSubmissionClient":
    """A client of the job server at `address`, else at Ray's variables', else on this machine.

    Raises PanthalassaError when no cluster answers there, it does not let us in, or it runs another
    Ray.
    """
    given = next((os.environ[name] for name in VARIABLES if os.environ.get(name)), LOCAL)
    address = (address or given).rstrip("/")
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # for Ray it goes before what a call says
    set_authentication()
    with _refusals(address):
        is_dashboard = address.startswith(("http://", "https://"))
        (_check_dashboard if is_dashboard else check_answer)(address)
        from ray.job_submission import JobSubmissionClient  # reads the environment

        for talker in TALKERS:
            logging.getLogger(talker).setLevel(logging.ERROR)
        client = JobSubmissionClient(address)
    os.environ["RAY_API_SERVER_ADDRESS"] = client.get_address()
    _check_version(client)
    return client


def _check_dashboard(address: str) -> None:
    """Ask what needs no token: whether Ray is there, and whether it wants one."""
    try:
        with urllib.request.urlopen(f"{address}/api/authentication_mode", timeout=ANSWER) as answer:
            mode = json.load(answer)["authentication_mode"]
    except urllib.error.HTTPError as error:
        raise _no_cluster(address, f"HTTP {error.code}, as no dashboard of Ray answers") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise _no_cluster(address, str(getattr(reason, "strerror", None) or reason)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _no_cluster(address, "what answers is no dashboard of Ray") from error
    if mode == "token" != os.environ["RAY_AUTH_MODE"].lower():
        raise PanthalassaError(
            f"the cluster at {without_secrets(address)} wants a token. Set {TOKEN}."
        )


def _no_cluster(address: str, reason: str) -> PanthalassaError:
    return PanthalassaError(
        f"no cluster at {without_secrets(address)}: {reason}. Start one with `ray start --head`, or "
        f"give the address of a dashboard, such as {LOCAL}, with --address or {VARIABLES[0]}."
    )


@contextmanager
def _refusals(address: str) -> Iterator[None]:
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        found = "this token" if "Forbidden" in error.message else "no token"
        raise PanthalassaError(
            f"the cluster at {without_secrets(address)} wants its token and got {found}. Set {TOKEN}."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise _no_cluster(address, without_secrets(reason)) from error


def _check_version(client: "JobSubmissionClient") -> None:
    import ray

    found = client._server_ray_version  # it asked for it, and tells nobody
    if found != ray.__version__:
        raise PanthalassaError(
            f"the cluster at {without_secrets(client.get_address())} runs Ray {found}, and this machine "
            f"Ray {ray.__version__}. Install ray=={found} here, or start the cluster with "
            f"ray=={ray.__version__}, which pyproject.toml names."
        )
