"""bigmodel: prepare → train → evaluate → deploy, four commands that can prove what they did.

From Python: `Project` has the stages as methods, `load` gives the model in a bundle.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigmodel_cli.project import Model, Project, load

__version__ = "0.1.0"
__all__ = ["Model", "Project", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Imported when it is first used, so that `bigmodel --help` stays quick (PEP 562)."""
    if name in ("Model", "Project", "load"):
        from bigmodel_cli import project

        return getattr(project, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
