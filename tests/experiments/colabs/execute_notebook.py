"""Executes a notebook with the Python that runs this, and saves it again.

    python execute_notebook.py NOTEBOOK FOLDER

A process of its own: what sockets and event loops of a kernel's client leave
behind is no business of the tests.
"""

import asyncio
import sys

import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from traitlets import default


class ThisPython(KernelSpecManager):
  """Knows one kernel, whatever is installed elsewhere."""

  def get_kernel_spec(self, kernel_name):
    launch = ['-m', 'ipykernel_launcher', '-f', '{connection_file}']
    return KernelSpec(
      argv=[sys.executable, *launch],
      display_name=kernel_name,
      language='python',
    )


class Manager(AsyncKernelManager):
  """Starts that kernel."""

  @default('kernel_spec_manager')
  def _this_python(self):
    return ThisPython(parent=self)


def main(path, folder):
  notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
  client = NotebookClient(
    notebook,
    kernel_manager_class=Manager,
    kernel_name='python3',
    timeout=1800,
    startup_timeout=600,
    resources={'metadata': {'path': folder}},
  )
  asyncio.run(client.async_execute())
  nbformat.write(notebook, path)


if __name__ == '__main__':
  main(*sys.argv[1:])
