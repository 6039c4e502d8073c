"""ZenML's Kubeflow orchestrator, whose pods get what their placement says and no credential in clear text.

The orchestrator compiles, uploads and follows as ZenML's own. Two things differ: resources, node pools, volumes and
secrets of each step's pod come from its placement (``cluster.kubeflow_task``), and of the environment that ZenML would
write into the pipeline only names of ``PUBLIC_VARIABLES`` pass. Address and key of the ZenML server reach a pod from a
Secret, by reference.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zenml.integrations.kubeflow.orchestrators.kubeflow_orchestrator import KubeflowOrchestrator
from zenml.orchestrators import SubmissionResult

from cluster.kubeflow_flavor import PlacedKubeflowSettings
from cluster.kubeflow_runs import RUN_ID, connecting
from cluster.kubeflow_task import TaskPlacement, place_task
from cluster.step_entry import use_step_entry
from proxykd.config.variables import is_credential
from proxykd.exceptions import ClusterError, ClusterUnreachableError, ConfigError

PUBLIC_VARIABLES = frozenset(
    {
        "ZENML_ACTIVE_PROJECT_ID",
        "ZENML_ACTIVE_STACK_ID",
        "ZENML_ANALYTICS_OPT_IN",
        "ZENML_DISABLE_CREDENTIALS_DISK_CACHING",
        "ZENML_USER_ID",
    }
)
"""All that passes of the environment that ZenML gives to pods."""


class PlacedKubeflowOrchestrator(KubeflowOrchestrator):
    """Compiles a pipeline with the placement of each step and runs it on Kubeflow Pipelines."""

    _placements: Mapping[str, TaskPlacement] = {}
    _withheld: frozenset[str] = frozenset()
    _started = ""

    @property
    def settings_class(self) -> type[PlacedKubeflowSettings]:
        """Settings that a step or a pipeline may have."""
        return PlacedKubeflowSettings

    def submit_pipeline(
        self,
        snapshot: Any,
        stack: Any,
        base_environment: dict[str, str],
        step_environments: dict[str, dict[str, str]],
        placeholder_run: Any = None,
    ) -> Any:
        """Compile, upload and start, as ZenML's own does.

        Args:
            snapshot: What is to be run.
            stack: Where.
            base_environment: Variable -> value for every pod.
            step_environments: Step -> the same.
            placeholder_run: The run in ZenML's store.

        Returns:
            How to wait for the run's end.

        Raises:
            ConfigError: if a value that must not be in the pipeline is in it.
        """
        self._placements = {
            task_name(name): TaskPlacement.model_validate(self.get_settings(step).task)
            for name, step in snapshot.step_configurations.items()
        }
        environments = (base_environment, *step_environments.values())
        use_step_entry()
        self._withheld = frozenset(
            value for one in environments for name, value in one.items() if value and is_credential(name)
        )
        return super().submit_pipeline(
            snapshot=snapshot,
            stack=stack,
            base_environment=public(base_environment),
            step_environments={name: public(variables) for name, variables in step_environments.items()},
            placeholder_run=placeholder_run,
        )

    def _configure_container_resources(self, dynamic_component: Any, *_: Any, **__: Any) -> Any:
        return place_task(dynamic_component, self._placements[dynamic_component.name])

    def pipelines_client(self) -> Any:
        """The client of the server that runs are sent to."""
        return super()._get_kfp_client(PlacedKubeflowSettings())

    def _get_kfp_client(self, settings: PlacedKubeflowSettings) -> Any:
        with connecting():
            client: Any = super()._get_kfp_client(settings)
        start = client.create_run_from_pipeline_package

        def start_and_note(*arguments: Any, **named: Any) -> Any:
            # ZenML calls it without the account, and forgets the run's identity.
            result = start(*arguments, service_account=settings.service_account, **named)
            self._started = str(result.run_id)
            return result

        client.create_run_from_pipeline_package = start_and_note
        return client

    def _upload_and_run_pipeline(self, snapshot: Any, pipeline_file_path: str, run_name: str) -> Any:
        check_withheld(Path(pipeline_file_path).read_text(encoding="utf-8"), self._withheld)
        self._started = ""
        try:
            result = super()._upload_and_run_pipeline(snapshot, pipeline_file_path, run_name)
        except (TimeoutError, RuntimeError) as error:
            raise untaken(run_name, error) from error
        if snapshot.schedule:
            return result
        if not self._started:  # which ZenML takes for a warning
            raise untaken(run_name)
        wait = None if result is None else result.wait_for_completion
        return SubmissionResult(wait_for_completion=wait, metadata={RUN_ID: self._started})


def untaken(run_name: str, error: BaseException | None = None) -> BaseException:
    """What to raise of a run that Kubeflow Pipelines did not take.

    Args:
        run_name: Of the run.
        error: What ended it: kfp's, of a server that is not healthy, or ZenML's, of a refusal; None = no answer came.
    """
    from kfp_server_api import ApiException

    expected = f"expected Kubeflow Pipelines to take the run {run_name}, but it"
    refusal = None if error is None else error.__context__
    if isinstance(refusal, ApiException):
        return ClusterError(
            f"{expected} refused: {refusal.status} {refusal.reason} {refusal.body or ''}; give the identity that "
            "submits what Kubeflow Pipelines asks for, or correct the stack"
        )
    if error is None or isinstance(error, TimeoutError):
        return ClusterUnreachableError(
            f"{expected} did not answer{'' if error is None else f' ({error})'}; look whether the stack's hostname or "
            "context reaches it, then run the same command again"
        )
    return error


def task_name(step: str) -> str:
    """The name that kfp gives to a step's task."""
    return step.replace("_", "-")


def public(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that may stand in a pipeline."""
    return {name: value for name, value in environment.items() if name in PUBLIC_VARIABLES}


def check_withheld(text: str, withheld: frozenset[str]) -> None:
    """Refuse a pipeline in which a credential stands.

    Args:
        text: The compiled pipeline.
        withheld: Values of credentials.

    Raises:
        ConfigError: if one of them is in the text; the message does not repeat it.
    """
    if any(value in text for value in withheld):
        raise ConfigError(
            "expected a pipeline without credentials, but one of the environment's stands in it in clear text; name it "
            "under `secrets` of the placement instead"
        )
