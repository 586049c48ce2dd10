"""Jobs on several processes, GPUs and machines through dask.distributed, which schedules them and runs those of lost workers again.

>>> with connect("tcp://10.0.0.1:8786") as executor:                                        # doctest: +SKIP
...     benchmark.measure("synthetic", folder, executor=executor)                           # doctest: +SKIP

Any ``distributed.Client(...).get_executor()`` will do where an executor is asked for; `connect` also checks the workers. Results come
back to this process, which alone writes files, and what jobs read is sent to the workers (see `sent`), so no disk need be shared.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from dask import config
from distributed import Client, LocalCluster, WorkerPlugin
from distributed import comm as comms
from distributed.scheduler import KilledWorker, NoValidWorkerError, NoWorkerError

from llmpp_core.jobs import table as jobs
from llmpp_core.jobs.files import replace_file
from llmpp_core.jobs.table import JobsLost

#: Seconds without any worker after which jobs are given up; a queue may take its time to replace them.
PATIENCE = 600.0
#: Most training pairs of a task that is sent to workers although it was given by name.
LARGEST = 1_000_000


class ClusterError(JobsLost):
    """The cluster cannot be reached or is not fit for the jobs; the message is one line."""


@contextmanager
def connect(
    address: str, *, resources: Mapping[str, float] | None = None, timeout: float = 30.0, patience: float = PATIENCE
) -> Iterator[Executor]:
    """Connect to a cluster and check its workers.

    Parameters
    ----------
    address : str
        A scheduler, such as "tcp://10.0.0.1:8786", or "local:N" for N processes on this machine that end with the connection.
    resources : mapping, optional
        What each job needs of a worker's ``--resources``, such as {"GPU": 1}.
    timeout : float
        Seconds to wait for the scheduler and for a first worker.
    patience : float
        Seconds without any worker after which the jobs are given up.

    Yields
    ------
    concurrent.futures.Executor

    Raises
    ------
    ValueError
        If `address` is not understood.
    ClusterError
        If the scheduler cannot be reached, there is no worker, one runs several jobs in one process or has another version of
        llmpp_core, torch, dask or Python, or none has the resources; also for jobs given up because workers die of them or are gone.
    """
    with _client(address, timeout, resources or {}) as client:
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
        _check(client, check.wanted, resources or {})

        def wait(seconds: float | None, dask_scheduler: Any = None) -> float | None:
            before, dask_scheduler.no_workers_timeout = dask_scheduler.no_workers_timeout, seconds
            return before

        before = client.run_on_scheduler(wait, patience)
        client.register_plugin(check)
        try:
            # Not pure: equal arguments need not mean equal jobs, and to find out would cost more than to send them.
            yield client.get_executor(pure=False, resources=dict(resources or {}))
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


@contextmanager
def _client(address: str, timeout: float, resources: Mapping[str, float]) -> Iterator[Client]:
    kind, _, number = address.partition(":")
    if kind != "local":
        _knock(address, timeout)
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


def _knock(address: str, timeout: float) -> None:
    """Raise ClusterError unless a scheduler answers; a `Client` would wait for ever for one that hangs, or for something else."""

    async def knock() -> None:
        comm = await asyncio.wait_for(comms.connect(address, timeout=timeout), timeout + 1)
        comm.abort()

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
            pool.submit(asyncio.run, knock()).result()
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
        spec, content = importlib.util.find_spec("llmpp_core"), hashlib.sha256()
        if spec is None or spec.origin is None:
            return found | {"llmpp_core": "none"}
        # The text, since a checkout under work has one version number for many states.
        for path in sorted(Path(spec.origin).parent.glob("*.py")):
            content.update(path.name.encode() + path.read_bytes())
        return found | {"llmpp_core": content.hexdigest()[:12]}

    return versions


def _difference(address: str, wanted: Mapping[str, str], found: Mapping[str, str]) -> str:
    other = [name for name in wanted if found.get(name) != wanted[name]]
    parts = [f"{name} {found.get(name)}, not {wanted[name]}" for name in other]
    return f"worker {address} has {'; '.join(parts)}" if other else ""


def _many_threads(address: str, threads: int) -> str:
    return f"worker {address} runs {threads} jobs in one process; start it with --nthreads 1"


def _check(client: Client, wanted: Mapping[str, str], resources: Mapping[str, float]) -> None:
    for address, found in client.run(_versions(), on_error="return").items():
        if isinstance(found, Exception):
            raise ClusterError(f"worker {address} does not run the check: {' '.join(str(found).split())}")
        if different := _difference(address, wanted, found):
            raise ClusterError(f"{different}; install there what is here")
    workers = client.scheduler_info(n_workers=-1)["workers"]
    for address, worker in workers.items():
        if worker["nthreads"] != 1:
            # Threads share PyTorch's random numbers, so results would depend on who else runs.
            raise ClusterError(_many_threads(address, worker["nthreads"]))
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
        different = _difference(worker.address, self.wanted, _versions()())
        if not different and worker.state.nthreads != 1:
            different = _many_threads(worker.address, worker.state.nthreads)
        if different:
            logging.getLogger("distributed.worker").error("sent away: %s", different)
            worker.loop.call_later(0, worker.close, nanny=True, reason=different)


class _Parcels(WorkerPlugin):
    """Brings tasks and files to every worker, also to one that comes later."""

    def __init__(self, tasks: Mapping[str, Any], files: Mapping[str, bytes]):
        self.name = f"llmpp-parcels-{uuid4().hex}"
        self.tasks, self.files = tasks, files

    def setup(self, worker: Any) -> None:
        jobs.parcels.update(self.tasks)
        for number, path in enumerate(self.files):
            there = Path(worker.local_directory) / self.name / str(number) / Path(path).name
            replace_file(there, self.files[path])
            jobs.parcels[path] = there

    def teardown(self, worker: Any) -> None:
        for name in (*self.tasks, *self.files):
            jobs.parcels.pop(name, None)
        shutil.rmtree(Path(worker.local_directory) / self.name, ignore_errors=True)


def on_cluster(executor: Executor | None) -> bool:
    """Return whether this executor is that of a cluster, whose jobs may run on other machines."""
    return hasattr(executor, "_client")


@contextmanager
def sent(executor: Executor | None, given: Any = None, task: Any = None, files: Iterable[Path] = ()) -> Iterator[Any]:
    """Send to each worker of a cluster, once, what jobs find with `llmpp_core.jobs.table.here`; elsewhere there is nothing to do.

    No other measurement may meanwhile send something else of the same names to the same workers.

    Parameters
    ----------
    executor : Executor or None
        That of the jobs.
    given, task : Task or str, Task
        A task as it was given, perhaps by name, and itself. One given by name of more than `LARGEST` training pairs stays: every machine
        makes it of its own copy of the corpus.
    files : iterable of path
        Files, as far as they are there.

    Yields
    ------
    Task or str
        What to pass to the jobs for the task.
    """
    client = getattr(executor, "_client", None)
    if client is None:
        yield given
        return
    travels = task is not None and (given is task or len(task.pairs["train"]) <= LARGEST)
    plugin = _Parcels({task.name: task} if travels else {}, {str(path): path.read_bytes() for path in files if path.exists()})
    client.register_plugin(plugin)
    try:
        yield task.name if travels else given
    finally:
        # The connection may be what was lost.
        with suppress(Exception):
            client.unregister_worker_plugin(plugin.name)
