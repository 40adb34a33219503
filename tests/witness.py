"""Google's own Python client against the sandbox, over REST: list, get, getIamPolicy, setIamPolicy."""

import sys

from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import run_v2
from google.cloud.run_v2.services.services.transports import ServicesRestTransport
from google.iam.v1 import iam_policy_pb2, options_pb2, policy_pb2
from google.type import expr_pb2

transport = ServicesRestTransport(host=sys.argv[1], url_scheme="http", credentials=AnonymousCredentials())
client = run_v2.ServicesClient(transport=transport)
parent = "projects/acme-prod/locations/europe-west1"

names = [s.name for s in client.list_services(parent=parent)]
assert names == [f"{parent}/services/web{i}" for i in range(5)], names

service = client.get_service(name=f"{parent}/services/web0")
assert service.labels["n"] == "x" and service.uid and service.ingress == run_v2.IngressTraffic.INGRESS_TRAFFIC_ALL

try:
    client.get_service(name=f"{parent}/services/nope")
    raise AssertionError("a service that is not there was found")
except exceptions.NotFound as e:
    assert "not found" in e.message, e

resource = f"{parent}/services/web0"


def get():
    request = iam_policy_pb2.GetIamPolicyRequest(
        resource=resource, options=options_pb2.GetPolicyOptions(requested_policy_version=3)
    )
    return client.get_iam_policy(request=request)


policy = get()
assert policy.etag == b"\x00\x20\x01" and not policy.bindings, policy
policy.version = 3
policy.bindings.append(policy_pb2.Binding(role="roles/run.invoker", members=["user:a@acme.com"]))
policy.bindings.append(
    policy_pb2.Binding(
        role="roles/run.invoker",
        members=["user:b@acme.com"],
        condition=expr_pb2.Expr(title="t", expression="request.path == '/'"),
    )
)
written = client.set_iam_policy(request=iam_policy_pb2.SetIamPolicyRequest(resource=resource, policy=policy))
assert written.version == 3 and written.etag not in (b"", policy.etag), written
assert get() == written

try:
    client.set_iam_policy(request=iam_policy_pb2.SetIamPolicyRequest(resource=resource, policy=policy))
    raise AssertionError("a stale etag was accepted")
except exceptions.Aborted as e:
    assert "concurrent policy changes" in e.message, e
except exceptions.Conflict as e:
    assert "concurrent policy changes" in e.message, e

hidden = client.get_iam_policy(request=iam_policy_pb2.GetIamPolicyRequest(resource=resource))
assert any("_withcond_" in b.role for b in hidden.bindings), hidden

permissions = client.test_iam_permissions(
    request=iam_policy_pb2.TestIamPermissionsRequest(resource=resource, permissions=["run.services.setIamPolicy"])
)
assert list(permissions.permissions) == ["run.services.setIamPolicy"]
print("witness: all fine")
