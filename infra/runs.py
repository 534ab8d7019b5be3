"""Runs that are there already, by what they were given: for forgetting, which names them and deletes what they logged of samples."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from infra.errors import UserError
from infra.tracking import ANSWER_SECONDS, quieten, within

KEPT = ("config.yaml", "environment.yaml", "checkpoints/*.json", "models/*")
"""What of a run's artifacts shows nobody: its settings, where its checkpoints lie, its models. All else may: grids, pages, scores of samples, alarms that name
them, and what somebody added, of whatever kind."""


def check_tracking(uri: str) -> None:
    """Whether a tracking server or database is there: MLflow makes a database or a folder of any name that it is given.

    Raises:
        UserError: It is not, or does not answer.
    """
    scheme, _, rest = uri.rpartition("://")
    place = Path(rest.removeprefix("/") if scheme == "sqlite" else rest)
    if scheme in ("sqlite", "file", "") and not place.exists():
        raise UserError(f"tracking: there is no MLflow database at {place} ({uri}). Give the address that the runs were made with")
    quieten()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        within(ANSWER_SECONDS, lambda: MlflowClient(uri).search_experiments(max_results=1))
    except (MlflowException, TimeoutError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"tracking: MLflow at {uri} does not answer ({said}). Start it, or mend the address") from error


def runs_that_read(uri: str, digests: list[str]) -> list[str]:
    """Runs that were given one of these dataset versions, as `experiment / name (run id)`."""
    import mlflow

    quieten()
    client = mlflow.MlflowClient(uri)
    wanted = {digest[:36] for digest in digests}
    found = []
    for experiment in client.search_experiments():
        page = client.search_runs([experiment.experiment_id])
        while True:
            for run in page:
                if any(given.dataset.digest in wanted for given in run.inputs.dataset_inputs):
                    found.append(f"{experiment.name} / {run.info.run_name} ({run.info.run_id})")
            if not page.token:
                break
            page = client.search_runs([experiment.experiment_id], page_token=page.token)
    return sorted(found)


def delete_artifacts(uri: str, run: str) -> int:
    """Deletes all that a run logged but what is known to show nobody (`KEPT`), and in its folder, if that is here, pictures and what failed ranks said;
    returns how many files.

    Args:
        uri: Of the tracking server.
        run: As `runs_that_read` names it.
    """
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    quieten()
    client = mlflow.MlflowClient(uri)
    run_id = run_id_of(run)
    stored = client.get_run(run_id)
    repository = get_artifact_repository(stored.info.artifact_uri, tracking_uri=uri)
    deleted, folders = 0, [""]
    while folders:
        for entry in client.list_artifacts(run_id, folders.pop() or None):
            if entry.is_dir:
                folders.append(entry.path)
            elif not any(fnmatchcase(entry.path, kept) for kept in KEPT):
                repository.delete_artifacts(entry.path)
                deleted += 1
    if "folder" in stored.data.tags:
        for name in ("pictures", "failures"):
            for file in (Path(stored.data.tags["folder"]) / name).glob("*"):
                file.unlink()
                deleted += 1
    return deleted


def run_id_of(run: str) -> str:
    """The id in a name that `runs_that_read` gave."""
    return run.rsplit("(", 1)[1].rstrip(")")
