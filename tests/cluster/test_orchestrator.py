"""The client of ZenML's orchestrator: what was made although its answer was lost counts as made, once."""

from typing import Any

import pytest
from kubernetes import client, config

from cluster.connection import patient_retries
from cluster.orchestrator import PatientClient
from tests.cluster.test_garbage import job
from tests.k8s.api_server import ApiServer
from tests.k8s.kinds import CORE

OWN = {"run_id": "run-1", "step_name": "split"}


@pytest.fixture
def patient(server: ApiServer) -> PatientClient:
    settings = client.Configuration()
    config.load_kube_config(str(server.kubeconfig("proxykd")), client_configuration=settings)
    settings.retries = patient_retries()
    return PatientClient(settings)


def made(server: ApiServer) -> list[dict[str, Any]]:
    return list(server.store.list(CORE["Job"], "proxykd"))


@pytest.mark.parametrize("code", [429, 503, 504])
def test_a_job_whose_answer_was_lost_is_made_once(server: ApiServer, patient: PatientClient, code: int) -> None:
    server.trouble.add(code, verb="create", resource="jobs", is_after=True)
    found = client.BatchV1Api(patient).create_namespaced_job("proxykd", job("split", OWN))
    (kept,) = made(server)
    assert found.metadata.uid == kept["metadata"]["uid"]


def test_another_job_of_that_name_is_nobodys_own(server: ApiServer, patient: PatientClient) -> None:
    server.apply(job("split", {**OWN, "run_id": "run-2"}))
    with pytest.raises(client.ApiException) as refused:
        client.BatchV1Api(patient).create_namespaced_job("proxykd", job("split", OWN))
    assert refused.value.status == 409
    assert made(server)[0]["metadata"]["labels"]["run_id"] == "run-2"


def test_a_refusal_stays_one(server: ApiServer, patient: PatientClient) -> None:
    server.trouble.add(422, verb="create", resource="jobs")
    with pytest.raises(client.ApiException) as refused:
        client.BatchV1Api(patient).create_namespaced_job("proxykd", job("split", OWN))
    assert (refused.value.status, made(server)) == (422, [])
