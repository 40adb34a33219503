# What run-invoker needs on Google's side: a role with five permissions, an account, and who may act as it.
# Tested as text only: no Google project is at hand where this repository is built. `terraform validate` first.

terraform {
  required_version = ">= 1.5"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 5.0"
    }
  }
}

variable "host_project" {
  description = "Project of the operator's service account and of the GKE cluster's workload identity pool."
  type        = string
}

variable "projects" {
  description = "Projects whose Cloud Run services the operator looks after."
  type        = set(string)
}

variable "namespace" {
  description = "Kubernetes namespace of the release."
  type        = string
  default     = "run-invoker"
}

variable "service_account" {
  description = "Name of the Kubernetes ServiceAccount (chart value serviceAccount.name, else the release's name)."
  type        = string
  default     = "run-invoker"
}

variable "enforce" {
  description = "Whether the operator may write. With false it can only report (mode Audit)."
  type        = bool
  default     = true
}

resource "google_service_account" "operator" {
  project      = var.host_project
  account_id   = "run-invoker"
  display_name = "run-invoker operator"
}

resource "google_project_iam_custom_role" "operator" {
  for_each = var.projects
  project  = each.value
  role_id  = "runInvokerOperator"
  title    = "run-invoker operator"
  permissions = concat(
    [
      "run.services.get",
      "run.services.list",
      "run.services.getIamPolicy",
      "run.locations.list",
    ],
    var.enforce ? ["run.services.setIamPolicy"] : [],
  )
}

resource "google_project_iam_member" "operator" {
  for_each = var.projects
  project  = each.value
  role     = google_project_iam_custom_role.operator[each.value].id
  member   = google_service_account.operator.member

  # It may hand out the invoker roles, and nothing else.
  condition {
    title      = "invoker-roles-only"
    expression = "api.getAttribute('iam.googleapis.com/modifiedGrantsByRole', []).hasOnly(['roles/run.invoker','roles/run.servicesInvoker'])"
  }
}

# Workload Identity Federation for GKE: the Pod's ServiceAccount acts as the Google service account.
resource "google_service_account_iam_member" "workload_identity" {
  service_account_id = google_service_account.operator.name
  role               = "roles/iam.workloadIdentityUser"
  member             = "serviceAccount:${var.host_project}.svc.id.goog[${var.namespace}/${var.service_account}]"
}

output "google_service_account" {
  description = "For the chart value serviceAccount.googleServiceAccount."
  value       = google_service_account.operator.email
}
