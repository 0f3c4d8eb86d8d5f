"""Jupyter's kernel in a fork of the process that has imported everything."""

import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ipykernel.kernelapp import IPKernelApp
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from tests import processes
from tests.docs import kernels


def main(arguments: Sequence[str]) -> None:
    """Run as its own process.

    Args:
        arguments: The folder it runs in, and those of ``ipykernel_launcher``.
    """
    folder, *rest = arguments
    os.chdir(folder)
    IPKernelApp.launch_instance(rest)


class _Process:
    """What a provisioner asks of `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, fork: processes.Fork) -> None:
        self._fork = fork
        self.poll = lambda: fork.status
        self.wait, self.kill = fork.wait, fork.kill

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        self._fork.send(number)


class _Forking(LocalProvisioner):
    """Starts a fork where others start an interpreter."""

    async def launch_kernel(self, cmd: list[str], **options: Any) -> KernelConnectionInfo:  # noqa: ANN401
        printed = Path(tempfile.mkstemp(suffix='.log', dir=options['cwd'])[1])
        given = options['cwd'], *cmd[cmd.index('-f') :]
        fork = processes.Fork(kernels, *given, output=printed, environment=options['env'])
        self.process = _Process(fork)  # type: ignore[assignment]
        self.cwd = options['cwd']
        return self.connection_info


class ForkedKernel(AsyncKernelManager):
    """Manages a kernel that is a fork."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
        self.provisioner = _Forking(kernel_id='fork', kernel_spec=self.kernel_spec, parent=self)
