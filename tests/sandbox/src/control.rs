//! The control API: change the world, order faults, read the journal. `GET /` is a page that shows
//! services live, `GET /help` says what there is.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, http::Response};
use futures::future::BoxFuture;
use serde_json::{Value, json};

use crate::{
    exchange::{Call, Handler, Line, json as answer},
    faults::{Faults, Rule},
    google,
    journal::{Api, Journal},
    kube::Kube,
    run::{Run, World},
};

const HELP: &str = "The sandbox's control API (JSON in, JSON out):
  GET    /services                      every Cloud Run service and its policy
  POST   /services                      {project, region, name, labels?, invokerIamDisabled?, function?} deploys one
  DELETE /services/P/R/NAME             deletes one
  POST   /members                       {project, region, name, role?, add?, remove?} changes IAM behind the operator's back
  POST   /world                         {unknown?, permittedDomains?, denied?, disabled?, gone?, unreachable?, readQuota?, writeQuota?, terse?, expiredCredentials?, pageCap?, sinks?, subscriptions?,
                                        disabledServices?: [{project or *, service}], quotas?: {service: requests a minute}, searchDelayMilliseconds?,
                                        consumers?: {project: invalid|suspended|billingDisabled|denied}, credentialsProject?, perimeters?: [project],
                                        constraints?: [{name, displayName, forbids: [how members begin]}]}
  GET    /faults    POST /faults    DELETE /faults    {api, method?, contains?, times?, skip?, fault: {kind: latency|error|drop|lostResponse|hang, ...}}
  POST   /outage                        {api: kube, milliseconds}
  POST   /compact                       forgets the watch history: older watches get 410
  GET    /audit                         the entries of the audit log
  POST   /sink                          {endpoint, topic} publishes entries of the audit log from now on; {} stops that
  GET    /journal?since=N&api=run       the requests so far
";

fn help() -> String {
    format!("{HELP}{}", google::control::HELP)
}

pub struct Control {
    kube: Arc<Kube>,
    run: Arc<Run>,
    journal: Arc<Journal>,
    faults: Arc<Faults>,
    kube_line: Line,
}

impl Control {
    pub fn new(
        kube: Arc<Kube>,
        run: Arc<Run>,
        journal: Arc<Journal>,
        faults: Arc<Faults>,
        kube_line: Line,
    ) -> Self {
        Self {
            kube,
            run,
            journal,
            faults,
            kube_line,
        }
    }

    async fn act(&self, call: &Call) -> Result<Value, String> {
        let body: Value = if call.body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&call.body).map_err(|e| e.to_string())?
        };
        let text = |k: &str| {
            body[k]
                .as_str()
                .map(str::to_owned)
                .ok_or_else(|| format!("{k} is needed"))
        };
        let set = |v: &Value| {
            v.as_array().map(|l| {
                l.iter()
                    .filter_map(|x| x.as_str().map(str::to_owned))
                    .collect()
            })
        };
        let parts: Vec<&str> = call.path.split('/').filter(|p| !p.is_empty()).collect();
        if let Some(result) = google::control::act(&self.run, call.method.as_str(), &parts, &body) {
            return result;
        }
        match (call.method.as_str(), parts.as_slice()) {
            ("GET", ["services"]) => Ok(self
                .run
                .services()
                .into_iter()
                .map(|(p, r, n)| json!({"project": p, "region": r, "name": n, "policy": self.run.policy(&p, &r, &n)}))
                .collect()),
            ("POST", ["services"]) => {
                let (p, r, n) = (text("project")?, text("region")?, text("name")?);
                let labels: Vec<(String, String)> = body["labels"]
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
                    .collect();
                let borrowed: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                if body["function"] == true {
                    self.run.deploy_function(&p, &r, &n, &borrowed);
                } else {
                    self.run.deploy(&p, &r, &n, &borrowed);
                }
                self.run.set_invoker_iam_disabled(&p, &r, &n, body["invokerIamDisabled"] == true);
                Ok(json!({}))
            }
            ("DELETE", ["services", p, r, n]) => Ok(json!({"deleted": self.run.remove(p, r, n)})),
            ("POST", ["members"]) => {
                let (p, r, n) = (text("project")?, text("region")?, text("name")?);
                let role = body["role"].as_str().unwrap_or("roles/run.invoker");
                if let Some(m) = body["add"].as_str() {
                    self.run.add_member(&p, &r, &n, role, m);
                }
                if let Some(m) = body["remove"].as_str() {
                    self.run.remove_member(&p, &r, &n, role, m);
                }
                Ok(json!({"members": self.run.members(&p, &r, &n, role)}))
            }
            ("GET", ["audit"]) => Ok(self.run.audit.entries().into()),
            ("POST", ["sink"]) => {
                match (body["endpoint"].as_str(), body["topic"].as_str()) {
                    (Some(endpoint), Some(topic)) => self.run.audit.publish_to(endpoint, topic),
                    (None, None) => self.run.audit.cut_sink(),
                    _ => return Err("endpoint and topic are needed, or neither".into()),
                }
                Ok(json!({}))
            }
            ("POST", ["world"]) => {
                const KNOWN: [&str; 13] = [
                    "expiredCredentials",
                    "sinks",
                    "subscriptions",
                    "unknown",
                    "permittedDomains",
                    "denied",
                    "disabled",
                    "gone",
                    "unreachable",
                    "readQuota",
                    "writeQuota",
                    "terse",
                    "pageCap",
                ];
                let is_known = |k: &str| KNOWN.contains(&k) || google::control::WORLD.contains(&k);
                if let Some(odd) =
                    body.as_object().into_iter().flatten().map(|(k, _)| k).find(|k| !is_known(k))
                {
                    return Err(format!("the world has no {odd}; it has {}, {}", KNOWN.join(", "), google::control::WORLD.join(", ")));
                }
                // What is not of its form changes nothing.
                google::control::change_world(&mut World::default(), &body)?;
                let mut result = Ok(());
                self.run.change_world(|w| {
                    result = google::control::change_world(w, &body);
                    if let Some(s) = set(&body["unknown"]) {
                        w.unknown = s;
                    }
                    if body.get("permittedDomains").is_some() {
                        w.permitted_domains = set(&body["permittedDomains"]);
                    }
                    if let Some(list) = body["denied"].as_array() {
                        w.denied = list
                            .iter()
                            .filter_map(|d| {
                                Some((d["project"].as_str()?.to_owned(), d["permission"].as_str()?.to_owned()))
                            })
                            .collect();
                    }
                    for (name, field) in
                        [("disabled", &mut w.disabled), ("gone", &mut w.gone), ("unreachable", &mut w.unreachable)]
                    {
                        if let Some(s) = set(&body[name]) {
                            *field = s;
                        }
                    }
                    for (name, field) in [
                        ("readQuota", &mut w.read_quota),
                        ("writeQuota", &mut w.write_quota),
                        ("pageCap", &mut w.page_cap),
                    ] {
                        if let Some(v) = body.get(name) {
                            *field = v.as_u64().map(|n| n as usize);
                        }
                    }
                    for (name, field) in
                        [("terse", &mut w.terse), ("expiredCredentials", &mut w.expired_credentials)]
                    {
                        if let Some(is) = body[name].as_bool() {
                            *field = is;
                        }
                    }
                    for (project, list) in body["sinks"].as_object().into_iter().flatten() {
                        w.sinks.insert(project.clone(), list.as_array().cloned().unwrap_or_default());
                    }
                    for (name, subscription) in body["subscriptions"].as_object().into_iter().flatten() {
                        w.subscriptions.insert(name.clone(), subscription.clone());
                    }
                });
                result.map(|()| json!({}))
            }
            ("GET", ["faults"]) => Ok(json!(self.faults.rules())),
            ("POST", ["faults"]) => {
                let rule: Rule = serde_json::from_value(body).map_err(|e| e.to_string())?;
                self.faults.add(rule);
                Ok(json!({}))
            }
            ("DELETE", ["faults"]) => {
                self.faults.clear();
                Ok(json!({}))
            }
            ("POST", ["outage"]) => {
                self.kube_line.outage(Duration::from_millis(body["milliseconds"].as_u64().unwrap_or(1000))).await;
                Ok(json!({}))
            }
            ("POST", ["compact"]) => {
                self.kube.compact();
                Ok(json!({}))
            }
            ("GET", ["journal"]) => {
                let since = call.param("since").and_then(|s| s.parse().ok()).unwrap_or(0);
                let api = call.param("api").map(str::to_owned);
                Ok(json!(self.journal.since(since, |e| match api.as_deref() {
                    Some("run") => e.api == Api::Run,
                    Some("kube") => e.api == Api::Kube,
                    _ => true,
                })))
            }
            _ => Err(help()),
        }
    }
}

impl Handler for Control {
    fn handle(self: Arc<Self>, call: Call) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move {
            if call.path == "/help" {
                return Response::new(Body::from(help()));
            }
            if call.path == "/" {
                let mut page = Response::new(Body::from(include_str!("page.html")));
                page.headers_mut().insert(
                    "content-type",
                    axum::http::HeaderValue::from_static("text/html; charset=utf-8"),
                );
                return page;
            }
            match self.act(&call).await {
                Ok(value) => answer(200, &value),
                Err(message) => answer(400, &json!({"error": message})),
            }
        })
    }
}
