//! The list of services over every region, in the Knative form in which v1 gives it: v2 and the SDK
//! have none.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Listing, errors::foreign};
use crate::{
    fault::{Fault, FaultClass},
    iam::{Ingress, RunService, ServiceInfo},
};

/// Reads one page of the v1 list of services; the second part is the token of the next page, empty
/// at the end.
///
/// # Errors
/// [`FaultClass::Unexpected`] if any entry is not as documented: a service that is skipped would
/// look deleted.
pub fn read_page(project: &str, body: &[u8]) -> Result<(Listing, String), Fault> {
    let page: ServiceList = serde_json::from_slice(body).map_err(|e| {
        Fault::new(
            FaultClass::Unexpected,
            format!("the list of services is not as documented: {e}"),
        )
    })?;
    // Every field is optional, so any JSON would be an empty list.
    if page.kind != "ServiceList" {
        let what = format!("the list of services is a {:?}", page.kind);
        return Err(foreign(&what));
    }
    let mut services = Vec::with_capacity(page.items.len());
    for item in page.items {
        services.push(item.into_info(project).ok_or_else(|| {
            Fault::new(
                FaultClass::Unexpected,
                "the list of services has an entry without a proper name or region",
            )
        })?);
    }
    Ok((
        Listing {
            services,
            unreachable: page.unreachable.into_iter().collect(),
        },
        page.metadata.r#continue,
    ))
}

#[derive(Deserialize)]
struct ServiceList {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    items: Vec<Item>,
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default)]
    unreachable: Vec<String>,
}
#[derive(Deserialize, Default)]
struct ListMeta {
    #[serde(default)]
    r#continue: String,
}
#[derive(Deserialize)]
struct Item {
    metadata: Meta,
}
#[derive(Deserialize)]
struct Meta {
    name: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Carries the region of a service in v1.
const LOCATION: &str = "cloud.googleapis.com/location";

impl Item {
    fn into_info(self, project: &str) -> Option<ServiceInfo> {
        let Meta {
            name,
            uid,
            mut labels,
            annotations,
        } = self.metadata;
        let region = labels.remove(LOCATION)?;
        // They become part of URLs.
        let is_name = |s: &str| {
            !s.is_empty()
                && s.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if !is_name(&name) || !is_name(&region) {
            return None;
        }
        let says = |name: &str| {
            let value = annotations.get(&format!("run.googleapis.com/{name}"));
            value.map(String::as_str).unwrap_or_default()
        };
        let is_on = |name: &str| says(name).eq_ignore_ascii_case("true");
        Some(ServiceInfo {
            service: RunService::new(project, region, name),
            uid: uid.into(),
            labels: labels.into(),
            invoker_iam_disabled: is_on("invoker-iam-disabled"),
            ingress: Ingress::from_v1(says("ingress")),
            iap: is_on("iap-enabled"),
        })
    }
}
