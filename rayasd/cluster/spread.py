"""Many clips scored by actors of a Ray cluster, each with the model in its memory."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayasd.errors import UserError
from rayasd.scoring.model import ClipScore, MachineModel, Parts
from rayasd.sweep.executors.ray_cluster import join

_CHUNK = 100  # clips of one call


class Scorer:
    """A model in an actor."""

    def __init__(self, parts: Parts, device: str, num_threads: int) -> None:
        import torch

        torch.set_num_threads(num_threads)
        self._model = MachineModel(parts, device)

    def score(self, clips: Sequence[str], section: str | None) -> list[ClipScore]:
        """Score clips, whose files this host must see."""
        return list(self._model.score(clips, section))


def spread(parts: Parts, clips: Sequence[str], section: str | None, address: str, device: str) -> Iterator[ClipScore]:
    """Score clips on a standing Ray cluster, in their order; every node must see the files under the same names.

    Raises:
        UserError: the cluster cannot be reached, or no node has a CPU.

    """
    absolute = [str(Path(clip).absolute()) for clip in clips]
    names = dict(zip(absolute, clips, strict=True))
    join(address, f"the Ray cluster at {address}", configure_logging=False)
    import ray
    from ray.util import ActorPool

    try:
        total: dict[str, Any] = ray.cluster_resources()
        gpus = int(total.get("GPU", 0)) if device != "cpu" else 0
        number = min(gpus or int(total.get("CPU", 0)), -(-len(clips) // _CHUNK))
        if number < 1:
            raise UserError(f"the Ray cluster at {address} has no CPU")
        shared = ray.put(parts)
        actor = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(Scorer)
        pool = ActorPool([actor.remote(shared, device, 1) for _ in range(number)])
        chunks = [absolute[begin : begin + _CHUNK] for begin in range(0, len(clips), _CHUNK)]
        for scored in pool.map(lambda each, chunk: each.score.remote(chunk, section), chunks):
            for one in scored:
                yield replace(one, clip=names[one.clip])
    finally:
        ray.shutdown()
