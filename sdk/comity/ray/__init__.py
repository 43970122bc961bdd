"""Workers on Ray: as many as the node's queue needs, on as many machines as the cluster has.

    serve_on_ray("my_agents.py:generator", "node.example:7443", tls=tls, minimum=1, maximum=16)

runs workers as Ray actors against the control API, adds some while calls wait and lets some leave when they have been
idle. `review_stage` scores rows with an agent's skill inside of a Ray Data pipeline, without a node:

    ray.data.read_parquet(path).map_batches(review_stage("my_agents.py:validator"), batch_size=256)

It takes the extra `ray`. A Ray that is started here listens on loopback, has no dashboard and reports nothing about its
use to anybody; how a cluster of one's own is set up is up to oneself. Ray's own connections are neither encrypted nor
authenticated unless it is told so: a cluster belongs to one organization and into a network of its own.
"""

from __future__ import annotations

from comity.ray.pool import RayReport, serve_on_ray
from comity.ray.scaling import Scaler, ScalingSettings
from comity.ray.stage import ReviewStage, review_stage
from comity.ray.start import local_ray

__all__ = ["RayReport", "ReviewStage", "Scaler", "ScalingSettings", "local_ray", "review_stage", "serve_on_ray"]
