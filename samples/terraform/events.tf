# Audit events for the operator: sinks for projects, a folder or an organization, one topic, one subscription.
# Tested as text only, as main.tf is.

variable "events" {
  description = "Where changes are to be seen: projects as in main.tf, and, instead of or beside them, a folder or an organization by number."
  type = object({
    projects     = optional(bool, true)
    folder       = optional(string)
    organization = optional(string)
  })
  default = {}
}

locals {
  events_filter = <<-EOT
    log_id("cloudaudit.googleapis.com/activity")
    protoPayload.serviceName="run.googleapis.com"
    protoPayload.methodName=~"\\.(Services\\.(SetIamPolicy|CreateService|UpdateService|ReplaceService|DeleteService)|InternalServices\\.(Create|Update|Replace|Delete)InternalService)$"
  EOT
  events_topic  = "pubsub.googleapis.com/${google_pubsub_topic.events.id}"
}

resource "google_pubsub_topic" "events" {
  project = var.host_project
  name    = "run-invoker-events"
}

resource "google_pubsub_subscription" "events" {
  project                    = var.host_project
  name                       = "run-invoker-events"
  topic                      = google_pubsub_topic.events.id
  ack_deadline_seconds       = 60
  message_retention_duration = "3600s"
  expiration_policy {
    ttl = ""
  }
}

resource "google_logging_project_sink" "events" {
  for_each               = var.events.projects ? var.projects : []
  project                = each.value
  name                   = "run-invoker-events"
  destination            = local.events_topic
  filter                 = local.events_filter
  unique_writer_identity = true
}

resource "google_logging_folder_sink" "events" {
  count            = var.events.folder == null ? 0 : 1
  folder           = var.events.folder
  name             = "run-invoker-events"
  destination      = local.events_topic
  filter           = local.events_filter
  include_children = true
}

resource "google_logging_organization_sink" "events" {
  count            = var.events.organization == null ? 0 : 1
  org_id           = var.events.organization
  name             = "run-invoker-events"
  destination      = local.events_topic
  filter           = local.events_filter
  include_children = true
}

# Each sink writes as an account of its own, which may publish on this topic and nothing else.
resource "google_pubsub_topic_iam_member" "project_writers" {
  for_each = google_logging_project_sink.events
  project  = var.host_project
  topic    = google_pubsub_topic.events.name
  role     = "roles/pubsub.publisher"
  member   = each.value.writer_identity
}

resource "google_pubsub_topic_iam_member" "folder_writer" {
  count   = length(google_logging_folder_sink.events)
  project = var.host_project
  topic   = google_pubsub_topic.events.name
  role    = "roles/pubsub.publisher"
  member  = google_logging_folder_sink.events[count.index].writer_identity
}

resource "google_pubsub_topic_iam_member" "organization_writer" {
  count   = length(google_logging_organization_sink.events)
  project = var.host_project
  topic   = google_pubsub_topic.events.name
  role    = "roles/pubsub.publisher"
  member  = google_logging_organization_sink.events[count.index].writer_identity
}

# The operator may read this subscription and nothing else.
resource "google_pubsub_subscription_iam_member" "operator" {
  project      = var.host_project
  subscription = google_pubsub_subscription.events.name
  role         = "roles/pubsub.subscriber"
  member       = google_service_account.operator.member
}

output "event_subscription" {
  description = "For the chart value events.subscriptions."
  value       = google_pubsub_subscription.events.id
}
