//! What stands before a call of Cloud Run: who pays, whether the target can be reached, the caller's
//! rights, the quota.

use serde_json::json;

use super::{Problem, State};
use crate::{
    exchange::Call,
    google::refusal::{self, Api, RUN},
};

/// What a call wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    pub project: &'a str,
    pub region: &'a str,
    /// None where a call needs no right.
    pub permission: Option<&'a str>,
    pub resource: &'a str,
    pub write: bool,
}

impl State {
    /// In Google's order: credentials, the consumer, the target's project, its perimeter, rights,
    /// quota.
    pub(super) fn gate(&mut self, call: &Call, api: Api, wish: Wish<'_>) -> Result<(), Problem> {
        self.authenticate()?;
        let consumer = self.admit_consumer(call, api, wish.project)?;
        if self.world.gone.contains(wish.project) {
            return Err(refusal::invalid_consumer(api, wish.project));
        }
        if self.is_off(api, wish.project) {
            return Err(refusal::disabled(api, wish.project));
        }
        if self.world.perimeters.contains(wish.project) {
            self.denials += 1;
            return Err(refusal::behind_perimeter(api, wish.project, self.denials));
        }
        if let Some(permission) = wish.permission
            && self.lacks(&format!("projects/{}", wish.project), permission)
        {
            let message = format!(
                "Permission '{permission}' denied on resource '{}' (or resource may not exist).",
                wish.resource
            );
            return Err(refusal::denied(api, message, permission, wish.resource));
        }
        self.spend_regional(consumer, wish)
    }

    /// Cloud Run counts by consumer and region, reads and writes apart.
    fn spend_regional(&mut self, consumer: String, wish: Wish<'_>) -> Result<(), Problem> {
        let quota = if wish.write {
            self.world.write_quota
        } else {
            self.world.read_quota
        };
        let Some(quota) = quota else {
            return Ok(());
        };
        let key = (consumer, wish.region.to_owned(), wish.write);
        if self.used.entry(key).or_default().spend(quota) {
            return Ok(());
        }
        let kind = if wish.write { "Write" } else { "Read" };
        let metadata = json!({"service": RUN.service, "consumer": "projects/1", "quota_location": wish.region,
            "quota_limit": format!("{kind}RequestsPerMinutePerProjectPerRegion"),
            "quota_metric": format!("run.googleapis.com/{}_requests", kind.to_lowercase()),
            "quota_unit": "1/min/{project}/{region}", "quota_limit_value": quota.to_string()});
        Err(refusal::over_quota(
            format!(
                "Quota exceeded for quota metric '{kind} requests' and limit '{kind} requests per minute per region' of service 'run.googleapis.com' for consumer 'project_number:1'."
            ),
            metadata,
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::http::{HeaderMap, Method};
    use bytes::Bytes;
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};

    use crate::{
        clock::Clock,
        exchange::{Call, Handler as _},
        run::{Constraint, ConsumerTrouble, Run, World},
    };

    const WEB: &str = "/v2/projects/shop/locations/europe-west1/services/web";

    fn run() -> Arc<Run> {
        let run = Run::new(Clock::default());
        run.deploy("shop", "europe-west1", "web", &[]);
        Arc::new(run)
    }

    async fn ask(run: &Arc<Run>, payer: &str, policy: Option<Value>) -> (u16, HeaderMap, Value) {
        let mut headers = HeaderMap::new();
        if !payer.is_empty() {
            headers.insert("x-goog-user-project", payer.parse().unwrap());
        }
        let (method, verb) = match policy {
            Some(_) => (Method::POST, "setIamPolicy"),
            None => (Method::GET, "getIamPolicy"),
        };
        let body = policy.map_or(Bytes::new(), |p| json!({"policy": p}).to_string().into());
        let uri = format!("{WEB}:{verb}").parse().unwrap();
        let call = Call::new(method, &uri, headers, body);
        let answer = Arc::clone(run).handle(call).await;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, headers, serde_json::from_slice(&body).unwrap())
    }

    /// Status, reason and consumer of what a read gets in a world.
    async fn refused(payer: &str, change: impl FnOnce(&mut World)) -> (u16, String, String) {
        let run = run();
        run.change_world(change);
        let (status, _, answer) = ask(&run, payer, None).await;
        let details = answer["error"]["details"].as_array().cloned();
        let mut details = details.unwrap_or_default().into_iter();
        let info = details
            .rfind(|d| d["reason"].is_string())
            .unwrap_or_default();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        (
            status,
            text(&info["reason"]),
            text(&info["metadata"]["consumer"]),
        )
    }

    fn of(reason: &str, consumer: &str) -> (u16, String, String) {
        (403, reason.to_owned(), consumer.to_owned())
    }

    #[tokio::test]
    async fn the_consumer_is_told_from_the_target() {
        let trouble = |t: ConsumerTrouble| {
            move |w: &mut World| {
                w.consumers.insert("ops".into(), t);
            }
        };
        for (t, reason) in [
            (ConsumerTrouble::Invalid, "CONSUMER_INVALID"),
            (ConsumerTrouble::Suspended, "CONSUMER_SUSPENDED"),
            (ConsumerTrouble::BillingDisabled, "BILLING_DISABLED"),
            (ConsumerTrouble::Denied, "USER_PROJECT_DENIED"),
        ] {
            assert_eq!(refused("ops", trouble(t)).await, of(reason, "projects/ops"));
            assert_eq!(refused("", trouble(t)).await.0, 200, "shop pays for itself");
        }
        let off =
            |project: &'static str| move |w: &mut World| w.disabled = [project.to_owned()].into();
        assert_eq!(
            refused("ops", off("ops")).await,
            of("SERVICE_DISABLED", "projects/ops")
        );
        assert_eq!(
            refused("ops", off("shop")).await,
            of("SERVICE_DISABLED", "projects/shop")
        );
        let gone =
            |project: &'static str| move |w: &mut World| w.gone = [project.to_owned()].into();
        assert_eq!(
            refused("ops", gone("ops")).await,
            of("CONSUMER_INVALID", "projects/ops")
        );
        assert_eq!(
            refused("", gone("shop")).await,
            of("CONSUMER_INVALID", "projects/shop")
        );
        let own = |w: &mut World| {
            w.credentials_project = Some("ops".into());
            w.consumers.insert("ops".into(), ConsumerTrouble::Suspended);
        };
        assert_eq!(
            refused("", own).await,
            of("CONSUMER_SUSPENDED", "projects/ops")
        );
    }

    #[tokio::test]
    async fn a_perimeter_and_a_missing_right_say_which() {
        let behind = |w: &mut World| w.perimeters = ["shop".to_owned()].into();
        assert_eq!(refused("", behind).await.1, "SECURITY_POLICY_VIOLATED");
        let run = run();
        run.change_world(behind);
        let (_, _, one) = ask(&run, "", None).await;
        let (_, _, other) = ask(&run, "", None).await;
        let id = |a: &Value| a["error"]["details"][0]["violations"][0]["description"].clone();
        assert!(
            id(&one).is_string() && id(&one) != id(&other),
            "each denial has its own"
        );
        let lacks = |w: &mut World| {
            w.denied = [("shop".to_owned(), "run.services.getIamPolicy".to_owned())].into();
        };
        assert_eq!(refused("", lacks).await.1, "IAM_PERMISSION_DENIED");
    }

    #[tokio::test]
    async fn a_custom_constraint_judges_what_is_new() {
        let run = run();
        run.change_world(|w| {
            w.constraints = vec![Constraint {
                name: "customConstraints/custom.noGroups".into(),
                display_name: "no groups".into(),
                forbids: vec!["group:".into()],
            }];
        });
        let policy = |member: &str| json!({"bindings": [{"role": "roles/run.invoker", "members": [member]}]});
        assert_eq!(ask(&run, "", Some(policy("user:a@acme.com"))).await.0, 200);
        let (status, _, answer) = ask(&run, "", Some(policy("group:g@acme.com"))).await;
        assert_eq!(status, 400);
        let error = &answer["error"];
        assert_eq!(
            error["message"],
            "Operation denied by custom org policy: [\"customConstraints/custom.noGroups\": \"no groups\"]."
        );
        assert_eq!(error["details"][0]["reason"], "CUSTOM_ORG_POLICY_VIOLATION");
    }

    #[tokio::test]
    async fn quotas_are_by_consumer_region_and_kind_and_do_not_say_when_to_come_back() {
        let run = run();
        run.change_world(|w| w.read_quota = Some(2));
        for wanted in [200, 200, 429] {
            assert_eq!(ask(&run, "", None).await.0, wanted);
        }
        let (_, headers, answer) = ask(&run, "", None).await;
        assert!(!headers.contains_key("retry-after"));
        let details = &answer["error"]["details"];
        assert_eq!(details[0]["metadata"]["quota_limit_value"], "2");
        assert!(!details.to_string().contains("RetryInfo"), "{details}");
        assert_eq!(ask(&run, "ops", None).await.0, 200, "another project pays");
        let empty = Some(json!({"bindings": []}));
        assert_eq!(ask(&run, "", empty).await.0, 200, "writes have their own");
    }
}
