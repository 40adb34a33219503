"""Google's own Python clients against the sandbox, over REST: who can invoke a service beyond its own policy."""

import sys

from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import asset_v1, iam_v2, policytroubleshooter_iam_v3, resourcemanager_v3
from google.iam.v1 import iam_policy_pb2, options_pb2, policy_pb2


def client(kind):
    transport = kind.get_transport_class("rest")
    options = {"host": sys.argv[1], "url_scheme": "http", "credentials": AnonymousCredentials()}
    return kind(transport=transport(**options))


SERVICE = "//run.googleapis.com/projects/acme-prod/locations/europe-west1/services/web"
MANAGER = "//cloudresourcemanager.googleapis.com"
INVOKE = "policy.role.permissions:run.routes.invoke"

# Cloud Asset
asset = client(asset_v1.AssetServiceClient)
pages = asset.search_all_iam_policies(request={"scope": "organizations/1", "query": INVOKE, "page_size": 2})
found = {r.resource: r for page in pages.pages for r in page.results}
assert list(found) == [f"{MANAGER}/folders/10", f"{MANAGER}/projects/acme-prod", SERVICE], list(found)
service = found[SERVICE]
assert service.asset_type == "run.googleapis.com/Service" and service.project == "projects/77", service
assert list(service.folders) == ["folders/10"] and service.organization == "organizations/1", service
assert [list(b.members) for b in service.policy.bindings] == [["user:a@acme.com", "user:d@acme.com"]], service

try:
    asset.search_all_iam_policies(scope="folders/404", query=INVOKE)
    raise AssertionError("a folder that does not exist was searched")
except exceptions.Forbidden as e:
    assert e.reason == "IAM_PERMISSION_DENIED", e
    assert e.metadata["permission"] == "cloudasset.assets.searchAllIamPolicies", e

try:
    asset.search_all_iam_policies(scope="projects/acme-prod", query="folders:1 OR folders:2")
    raise AssertionError("a query that is not supported was answered")
except exceptions.BadRequest as e:
    assert "does not support" in e.message, e

# Resource Manager
projects = client(resourcemanager_v3.ProjectsClient)
project = projects.get_project(name="projects/acme-prod")
assert (project.name, project.parent) == ("projects/77", "folders/10"), project
assert project.state == resourcemanager_v3.Project.State.ACTIVE, project
folder = client(resourcemanager_v3.FoldersClient).get_folder(name=project.parent)
assert folder.parent == "organizations/1", folder
organization = client(resourcemanager_v3.OrganizationsClient).get_organization(name=folder.parent)
assert organization.display_name == "acme.example", organization

request = iam_policy_pb2.GetIamPolicyRequest(
    resource="projects/77", options=options_pb2.GetPolicyOptions(requested_policy_version=3)
)
policy = projects.get_iam_policy(request=request)
assert [b.role for b in policy.bindings] == ["roles/editor"], policy
policy.bindings.append(policy_pb2.Binding(role="roles/run.invoker", members=["user:p@acme.com"]))
change = iam_policy_pb2.SetIamPolicyRequest(resource="projects/77", policy=policy)
written = projects.set_iam_policy(request=change)
assert len(written.bindings) == 2 and written.etag != policy.etag, written
try:
    projects.set_iam_policy(request=change)
    raise AssertionError("a stale etag was accepted")
except (exceptions.Aborted, exceptions.Conflict) as e:
    assert "concurrent policy changes" in e.message, e

# IAM v2
deny = client(iam_v2.PoliciesClient)
point = "policies/cloudresourcemanager.googleapis.com%2Ffolders%2F10/denypolicies"
listed = list(deny.list_policies(parent=point))
assert [p.name for p in listed] == [f"{point}/no"] and not listed[0].rules, listed
rules = deny.get_policy(name=listed[0].name).rules
assert list(rules[0].deny_rule.denied_principals) == ["principal://goog/subject/d@acme.com"], rules

# Policy Troubleshooter
troubleshooter = client(policytroubleshooter_iam_v3.PolicyTroubleshooterClient)


def ask(principal):
    tuple_ = {"principal": principal, "full_resource_name": SERVICE, "permission": "run.routes.invoke"}
    return troubleshooter.troubleshoot_iam_policy(request={"access_tuple": tuple_})


expected = {
    "a@acme.com": "CAN_ACCESS",  # the service's own policy
    "p@acme.com": "CAN_ACCESS",  # the project's
    "d@acme.com": "CANNOT_ACCESS",  # the folder denies what the service grants
    "x@acme.com": "UNKNOWN_INFO",  # perhaps in the group that the folder grants
}
states = {principal: ask(principal).overall_access_state.name for principal in expected}
assert states == expected, states
answer = ask("d@acme.com")
resources = answer.deny_policy_explanation.explained_resources
assert [r.deny_access_state.name for r in resources] == [
    "DENY_ACCESS_STATE_NOT_DENIED",
    "DENY_ACCESS_STATE_DENIED",
    "DENY_ACCESS_STATE_NOT_DENIED",
], resources
binding = ask("x@acme.com").allow_policy_explanation.explained_policies[2].binding_explanations[0]
assert binding.memberships["group:ops@acme.com"].membership.name == "MEMBERSHIP_UNKNOWN_INFO", binding
print("witness: all fine")
