"""Environment variables of the trainers. Runs in the node task."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    pass

OF_ONE_TRAINER = ("TF_CONFIG", "CUDA_VISIBLE_DEVICES", "TMPDIR", "no_grpc_proxy")
"""Variables that TensorFlow and Python read late, so that each fork of a warm parent can have its own values."""
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


def trainer_environment(
    inherited: Mapping[str, str],
    tf_config: str,
    scratch: str,
    import_paths: Sequence[str],
    module_paths: Sequence[str] = (),
) -> dict[str, str]:
    """Return the environment of a trainer.

    Args:
        inherited: the node task's environment.
        tf_config: TensorFlow's description of the cluster, JSON; empty for an independent node.
        scratch: directory for temporary files.
        import_paths: directories in which the node task finds modules.
        module_paths: directories in which the driver's program finds its own modules; see `module_paths`.
    """
    environment = {
        **shared_environment(inherited, [*import_paths, *module_paths]),
        **_no_proxy_between_nodes(inherited, tf_config),
        "TMPDIR": scratch,  # TensorFlow leaves files there, because a trainer ends abruptly.
    }
    if tf_config:  # An inherited one belongs to another cluster.
        environment["TF_CONFIG"] = tf_config
    if "CUDA_VISIBLE_DEVICES" in inherited:
        environment["CUDA_VISIBLE_DEVICES"] = inherited["CUDA_VISIBLE_DEVICES"]
    return environment


def shared_environment(inherited: Mapping[str, str], import_paths: Sequence[str]) -> dict[str, str]:
    """Return the part of the environment that is the same for all trainers of a node task's process.

    Args:
        inherited: the node task's environment.
        import_paths: directories in which to find modules.
    """
    environment = {
        **{name: value for name, value in inherited.items() if name not in OF_ONE_TRAINER},
        "TF_GRPC_REUSE_PORT": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",  # The node task reads UTF-8; another locale could make print() fail.
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path for path in import_paths if path)),
        # The user's `keras.json` may name another backend for other work; the variable overrides it.
        "KERAS_BACKEND": "tensorflow",
    }
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    return environment


def _no_proxy_between_nodes(inherited: Mapping[str, str], tf_config: str) -> dict[str, str]:
    """Return the variable with which TensorFlow's gRPC reaches the nodes directly, also if proxies are set.

    Only the nodes' hosts are excluded from the proxy, because programs may need it for downloads. gRPC reads
    ``no_grpc_proxy`` before ``no_proxy``, so the hosts in ``no_proxy`` are included.
    """
    known = inherited.get("no_grpc_proxy") or inherited.get("no_proxy") or inherited.get("NO_PROXY") or ""
    hosts = [entry.strip() for entry in known.split(",")]
    return {
        "no_grpc_proxy": ",".join(dict.fromkeys(filter(None, [*hosts, *LOCAL_HOSTS, *_hosts(tf_config)])))
    }


def _hosts(tf_config: str) -> list[str]:
    addresses = json.loads(tf_config or "{}").get("cluster", {}).values()
    return [urlsplit(f"//{address}").hostname or "" for of_role in addresses for address in of_role]
