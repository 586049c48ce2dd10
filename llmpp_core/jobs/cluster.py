"""Jobs on several processes, GPUs and machines through dask.distributed, which schedules them and runs those of lost workers again.

>>> with connect("tcp://10.0.0.1:8786") as executor:                                        # doctest: +SKIP
...     measurements.measure("synthetic", folder, executor=executor)                        # doctest: +SKIP

Any ``distributed.Client(...).get_executor()`` will do where an executor is asked for; `connect` also checks the workers. Rows come back
to this process, which alone writes tables; other files, such as checkpoints, are in a folder that all machines share.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from dask import config
from distributed import Client, LocalCluster, WorkerPlugin
from distributed import comm as comms
from distributed.scheduler import KilledWorker, NoValidWorkerError, NoWorkerError

from llmpp_core.jobs.table import JobsLost


class ClusterError(JobsLost):
    """The cluster cannot be reached or is not fit for the jobs; the message is one line."""


@contextmanager
def connect(
    address: str, *, resources: Mapping[str, float] | None = None, timeout: float = 30.0, patience: float = 600.0
) -> Iterator[Executor]:
    """Connect to a cluster and yield an executor, having checked the workers.

    Parameters
    ----------
    address : str
        A scheduler, such as "tcp://10.0.0.1:8786", or "local:N" for N processes on this machine that end with the connection.
    resources : mapping, optional
        What each job needs of a worker's ``--resources``, such as {"GPU": 1}.
    timeout : float
        Seconds to wait for the scheduler and for a first worker.
    patience : float
        Seconds without any worker after which the jobs are given up; a queue may take its time to replace them.

    Raises
    ------
    ValueError
        If `address` is not understood.
    ClusterError
        If the scheduler cannot be reached, there is no worker, one runs several jobs in one process or has another version of this
        code, torch, dask or Python, or none has the resources; also for jobs given up because workers die of them or are gone.
    """
    needed = dict(resources or {})
    with _client(address, timeout, needed) as client:
        check = _SameVersion(_versions()())

        def left_behind(dask_scheduler: Any = None) -> bool:
            return _SameVersion.name in dask_scheduler.worker_plugins

        if client.run_on_scheduler(left_behind):
            # By a connection that was killed; it would send away the workers of a newer version.
            client.unregister_worker_plugin(check.name)
        try:
            client.wait_for_workers(1, timeout)
        except TimeoutError:
            raise ClusterError(f"the cluster {address} has no worker after {timeout:g} s") from None
        _check(client, check.wanted, needed)

        def wait(seconds: float | None, dask_scheduler: Any = None) -> float | None:
            before, dask_scheduler.no_workers_timeout = dask_scheduler.no_workers_timeout, seconds
            return before

        before = client.run_on_scheduler(wait, patience)
        client.register_plugin(check)
        try:
            # Not pure: equal arguments need not mean equal jobs, and to find out would cost more than to send them.
            yield client.get_executor(pure=False, resources=needed)
        except (NoWorkerError, NoValidWorkerError):
            raise ClusterError(f"the cluster {address} had no worker for {patience:g} s; what is finished is kept") from None
        except KilledWorker as error:
            lost = f"{error.allowed_failures + 1} workers died of the same job, the last one {error.last_worker.address}"
            why = "it may need more memory than they have, or more time than a queue gives them"
            raise ClusterError(f"{lost}; {why}; what is finished is kept") from None
        finally:
            with suppress(Exception):
                client.unregister_worker_plugin(check.name)
                client.run_on_scheduler(wait, before)


def require_shared(executor: Any, folder: Path) -> None:
    """Raise ClusterError unless the workers of a cluster see a folder of this machine."""
    mark = folder / f".{uuid4().hex}.seen"
    mark.touch()
    try:
        blind = [address for address, seen in executor._client.run(os.path.exists, str(mark)).items() if not seen]
    finally:
        mark.unlink()
    if blind:
        raise ClusterError(f"worker {blind[0]} does not see {folder}; choose a folder that all machines share")


def sent_once(executor: Any, value: Any) -> Any:
    """Return what stands for `value` among the arguments of a cluster's jobs, so that it travels once to each worker."""
    # The result of a job, since that is made again when the workers that hold it are lost. What is large here would be warned of.
    with config.set({"distributed.admin.large-graph-warning-threshold": "1GB"}):
        return executor._client.submit(_itself, value, pure=False)


def _itself(value: Any) -> Any:
    return value


@contextmanager
def _client(address: str, timeout: float, resources: Mapping[str, float]) -> Iterator[Client]:
    kind, _, number = address.partition(":")
    if kind != "local":
        _require_scheduler(address, timeout)
        with Client(address, timeout=timeout, set_as_default=False) as client:
            yield client
        return
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(f"cluster address {address!r}: expected local:N with a positive number of processes, or tcp://HOST:PORT")
    # Jobs share the memory of one machine, which the system keeps watch over; a limit per process would end some that fit.
    options: dict[str, Any] = {"threads_per_worker": 1, "host": "127.0.0.1", "memory_limit": 0}
    # The server of the dashboard cannot be left out, so it has a port that nobody else wants and no pages.
    options |= {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
    # What goes wrong arrives as an exception; the logs would add tracebacks, also critical ones, of processes that end in any order.
    options["silence_logs"] = logging.CRITICAL + 1
    # Otherwise a process that dies again, 15 seconds after the death of the one before it, is not replaced.
    with (
        config.set({"distributed.deploy.lost-worker-timeout": "1 day"}),
        LocalCluster(n_workers=int(number), resources=dict(resources), **options) as cluster,
        Client(cluster, timeout=timeout, set_as_default=False) as client,
    ):
        client.register_plugin(_NoInterrupts())
        yield client


def _require_scheduler(address: str, timeout: float) -> None:
    """Raise ClusterError unless a scheduler answers; a `Client` would wait without end for what hangs or is something else."""

    async def call() -> None:
        (await asyncio.wait_for(comms.connect(address, timeout=timeout), timeout + 1)).abort()

    if address.startswith("inproc://"):
        # In this process, such as that of a `LocalCluster(processes=False)`.
        return
    try:
        if not address.startswith("tcp://"):
            raise ValueError("another kind of address")
        comms.get_address_host_port(address, strict=True)
    except ValueError as error:
        raise ValueError(f"cluster address {address!r}: expected local:N or tcp://HOST:PORT ({error})") from None
    # In a thread, since a notebook's own may have an event loop already.
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(asyncio.run, call()).result()
        except TimeoutError:
            raise ClusterError(f"the scheduler {address} does not answer within {timeout:g} s") from None
        except (OSError, MemoryError, ValueError, TypeError) as error:
            raise ClusterError(f"the scheduler {address} does not answer: {' '.join(str(error).split()) or 'it is none'}") from None


def _versions() -> Callable[[], dict[str, str]]:
    """Return a function that tells the versions where it runs; being local it is sent as code, whatever the other side has."""

    def versions() -> dict[str, str]:
        import hashlib
        import importlib.metadata
        import importlib.util
        import platform
        from pathlib import Path

        found = {"Python": ".".join(platform.python_version_tuple()[:2])}
        for name in ("torch", "distributed"):
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "none"
        for name in ("llmpp_core", "llmpp_book"):
            spec, content = importlib.util.find_spec(name), hashlib.sha256()
            if spec is None or spec.origin is None:
                found[name] = "none"
                continue
            # The text, since a checkout under work has one version number for many states.
            root = Path(spec.origin).parent
            for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".txt", ".tsv")):
                content.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
            found[name] = content.hexdigest()[:12]
        return found

    return versions


def _unfit(address: str, wanted: Mapping[str, str], found: Mapping[str, str], threads: int) -> str:
    """Say in a line what is wrong with a worker; "" if nothing is."""
    if threads != 1:
        # Threads share PyTorch's random numbers, so results would depend on who else runs.
        return f"worker {address} runs {threads} jobs in one process; start it with --nthreads 1"
    other = [f"{name} {found.get(name)}, not {version}" for name, version in wanted.items() if found.get(name) != version]
    return f"worker {address} has {'; '.join(other)}; install there what is here" if other else ""


def _check(client: Client, wanted: Mapping[str, str], resources: Mapping[str, float]) -> None:
    found = client.run(_versions(), on_error="return")
    workers = client.scheduler_info(n_workers=-1)["workers"]
    for address, versions in found.items():
        if isinstance(versions, Exception):
            raise ClusterError(f"worker {address} does not run the check: {' '.join(str(versions).split())}")
        if address in workers and (unfit := _unfit(address, wanted, versions, workers[address]["nthreads"])):
            raise ClusterError(unfit)
    for name, amount in resources.items():
        if all(worker["resources"].get(name, 0) < amount for worker in workers.values()):
            raise ClusterError(f'no worker has {amount:g} {name}; start those that do with --resources "{name}={amount:g}"')


class _NoInterrupts(WorkerPlugin):
    """Leaves Ctrl-C, which a terminal sends to all processes, to the one that ends the others."""

    name = "llmpp-no-interrupts"

    def setup(self, worker: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class _SameVersion(WorkerPlugin):
    """Sends away a worker that comes later, perhaps in the place of a lost one, with another version or several threads."""

    name = "llmpp-same-version"

    def __init__(self, wanted: Mapping[str, str]):
        self.wanted = wanted

    async def setup(self, worker: Any) -> None:
        if unfit := _unfit(worker.address, self.wanted, _versions()(), worker.state.nthreads):
            logging.getLogger("distributed.worker").error("sent away: %s", unfit)
            worker.loop.call_later(0, worker.close, nanny=True, reason=unfit)
