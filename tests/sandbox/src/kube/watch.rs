//! Watches, and Events, which are one kind under two groups.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, http::Response};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    Kube,
    registry::Resource,
    status::Refusal,
    store::{Kind, Table},
    table,
};
use crate::exchange::Call;

/// How often a quiet watch is told where it stands.
const BOOKMARK: Duration = Duration::from_secs(10);

/// `GET …?watch=true`.
pub fn serve(
    kube: &Arc<Kube>,
    call: &Call,
    resource: &Resource,
    table: &Table,
    namespace: Option<&str>,
) -> Result<Response<Body>, Refusal> {
    let selector = kube.selector(call, resource)?;
    let bookmarks = call.flag("allowWatchBookmarks");
    let initial = call.param("sendInitialEvents").map(|v| v == "true");
    let as_table = call.header("accept").contains("as=Table");
    let include = call.param("includeObject").unwrap_or("Metadata").to_owned();
    let as_meta = call.header("accept").contains("as=PartialObjectMetadata");
    let timeout = call
        .param("timeoutSeconds")
        .and_then(|t| t.parse().ok())
        .map_or(Duration::from_secs(3600), Duration::from_secs);
    let asked = call.param("resourceVersion").unwrap_or_default();
    if initial == Some(true) && call.param("resourceVersionMatch") != Some("NotOlderThan") {
        return Err(Refusal::invalid(
            "meta.k8s.io",
            "ListOptions",
            "",
            &[super::Cause {
                reason: "FieldValueForbidden",
                field: "resourceVersionMatch".into(),
                message: "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan".into(),
            }],
        ));
    }
    // Without a version (or with 0) a watch begins with what is there.
    let from_start =
        initial == Some(true) || (initial.is_none() && (asked.is_empty() || asked == "0"));
    let (mut position, first) = {
        let state = kube.lock();
        if from_start {
            (state.store.version(), state.store.list(table, namespace))
        } else {
            let position = if asked.is_empty() || asked == "0" {
                state.store.version()
            } else {
                asked.parse().map_err(|_| {
                    Refusal::bad_request(format!("invalid resource version {asked:?}"))
                })?
            };
            (position, vec![])
        }
    };
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(64);
    let (kube, resource, table) = (kube.clone(), resource.clone(), table.clone());
    let namespace = namespace.map(str::to_owned);
    tokio::spawn(async move {
        let shape = |object: &Value| -> Value {
            let shown = Kube::present(&resource, object);
            if as_table {
                let meta = json!({"resourceVersion": shown["metadata"]["resourceVersion"]});
                table::table(&resource, &[&shown], meta, &include, kube.clock.now())
            } else if as_meta {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": shown["metadata"]})
            } else {
                shown
            }
        };
        let line = |type_: &str, object: Value| {
            let mut text = json!({"type": type_, "object": object}).to_string();
            text.push('\n');
            Ok(Bytes::from(text))
        };
        let bookmark = |version: u64, end: bool| {
            let mut object = json!({"kind": resource.kind, "apiVersion": resource.api_version(), "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null}});
            if end {
                object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
            }
            line("BOOKMARK", object)
        };
        for object in first
            .iter()
            .filter(|o| selector.matches(&Kube::present(&resource, o)))
        {
            if sender.send(line("ADDED", shape(object))).await.is_err() {
                return;
            }
        }
        // A watch list ends its first part with a bookmark that says so.
        if from_start
            && initial == Some(true)
            && bookmarks
            && sender.send(bookmark(position, true)).await.is_err()
        {
            return;
        }
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            let changed = kube.changed.next();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let (now_at, changes) = {
                let state = kube.lock();
                (state.store.version(), state.store.since(&table, position))
            };
            let Some(changes) = changes else {
                let gone = Refusal::new(
                    410,
                    "Expired",
                    format!(
                        "too old resource version: {position} ({})",
                        kube.lock().store.compacted()
                    ),
                );
                let _ = sender.send(line("ERROR", gone.to_value())).await;
                return;
            };
            for change in changes.into_iter().filter(|c| {
                namespace
                    .as_deref()
                    .is_none_or(|n| c.object["metadata"]["namespace"] == n)
            }) {
                let fits = |o: &Value| selector.matches(&Kube::present(&resource, o));
                let was = change.before.as_deref().is_some_and(fits);
                let is = change.kind != Kind::Deleted && fits(&change.object);
                let type_ = match (was, is) {
                    (false, true) => "ADDED",
                    (true, true) => "MODIFIED",
                    (true, false) => "DELETED",
                    (false, false) => continue,
                };
                if sender
                    .send(line(type_, shape(&change.object)))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            position = now_at;
            tokio::select! {
                biased;
                () = changed => {}
                () = sender.closed() => return,
                () = tokio::time::sleep_until(deadline) => return,
                () = tokio::time::sleep(BOOKMARK), if bookmarks => {
                    if sender.send(bookmark(position, false)).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    let stream = futures::stream::unfold(receiver, |mut r| async move {
        r.recv().await.map(|item| (item, r))
    });
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(
        "content-type",
        axum::http::HeaderValue::from_static("application/json;stream=watch"),
    );
    Ok(response)
}

/// An event as it is stored: in the form of `events.k8s.io/v1`.
pub fn stored_event(event: &Value) -> Value {
    if event["apiVersion"] != "v1" {
        return event.clone();
    }
    let mut e = event.clone();
    if let Some(map) = e.as_object_mut() {
        for (old, new) in [
            ("involvedObject", "regarding"),
            ("message", "note"),
            ("reportingComponent", "reportingController"),
            ("firstTimestamp", "deprecatedFirstTimestamp"),
            ("lastTimestamp", "deprecatedLastTimestamp"),
            ("count", "deprecatedCount"),
            ("source", "deprecatedSource"),
        ] {
            if let Some(v) = map.remove(old) {
                map.insert(new.into(), v);
            }
        }
        map.insert("apiVersion".into(), json!("events.k8s.io/v1"));
    }
    e
}

/// An event in the form of the group that was asked for.
pub fn event_in(resource: &Resource, event: &Value) -> Value {
    let mut e = stored_event(event);
    e["apiVersion"] = json!(resource.api_version());
    if !resource.group.is_empty() {
        return e;
    }
    if let Some(map) = e.as_object_mut() {
        for (new, old) in [
            ("regarding", "involvedObject"),
            ("note", "message"),
            ("reportingController", "reportingComponent"),
            ("deprecatedFirstTimestamp", "firstTimestamp"),
            ("deprecatedLastTimestamp", "lastTimestamp"),
            ("deprecatedCount", "count"),
            ("deprecatedSource", "source"),
        ] {
            if let Some(v) = map.remove(new) {
                map.insert(old.into(), v);
            }
        }
        let time = map.get("eventTime").cloned().unwrap_or_default();
        let last = map
            .get("series")
            .map_or_else(|| time.clone(), |s| s["lastObservedTime"].clone());
        for (key, value) in [("firstTimestamp", time), ("lastTimestamp", last)] {
            if map.get(key).is_none_or(Value::is_null) && !value.is_null() {
                map.insert(key.into(), value);
            }
        }
    }
    e
}
