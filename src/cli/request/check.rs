//! Whether what is asked for is there, before anybody has to decide about it.

use std::time::Duration;

use super::RequestCommand;
use crate::{
    cli::{
        context::Context,
        world::{known_region, no_service},
    },
    cloudrun::{Listing, list_services},
    fault::{Fault, FaultClass},
    iam::{is_region, nearest_region},
    index::Scope,
};

/// How long Google is waited for: who asks needs no rights there, and nobody is kept waiting for a
/// check that need not be possible.
const WITHIN: Duration = Duration::from_secs(10);

/// Refuses a region and services that are not there, as `access` does. Where Google cannot be
/// asked that is said, and a region is refused that is a known one with a slip.
pub(super) async fn services_are_there(
    context: &Context,
    command: &RequestCommand,
    project: &str,
) -> anyhow::Result<()> {
    let region = command.region.as_str();
    let asked = tokio::time::timeout(WITHIN, list(context, command, project)).await;
    let listing = asked.unwrap_or_else(|_| Err(anyhow::anyhow!("Google did not answer in time")));
    let listing = match listing {
        Ok(listing) => listing,
        Err(why) => {
            if !is_region(region) && nearest_region(region).is_some() {
                known_region(region)?;
            }
            context.complain(&unchecked(context, project, &why));
            return Ok(());
        }
    };
    // A region that did not answer is unknown, not empty.
    if listing.unreachable.iter().any(|r| **r == *region) {
        return Ok(());
    }
    if listing.services.is_empty() {
        known_region(region)?;
    }
    let is_there = |name: &&String| {
        let mut there = listing.services.iter();
        there.any(|s| *s.service.name == ***name)
    };
    match command.services.iter().find(|name| !is_there(name)) {
        Some(absent) => anyhow::bail!(no_service(absent, Some(region), project)),
        None => Ok(()),
    }
}

/// That nobody looked, and why. Who asks for access need not have this right: it is no error.
fn unchecked(context: &Context, project: &str, why: &anyhow::Error) -> String {
    let what = "note: whether the service is there is not checked";
    let fault = why.downcast_ref::<Fault>();
    if fault.is_some_and(|f| f.class == FaultClass::PermissionDenied) {
        return format!("{what}: you may not list the services of {project}");
    }
    let why = context.explain(why);
    format!("{what}: {}", why.lines().next().unwrap_or_default())
}

async fn list(
    context: &Context,
    command: &RequestCommand,
    project: &str,
) -> anyhow::Result<Listing> {
    let cloud = context.limited(&command.cloud).await?;
    let scope = Scope::Region(command.region.as_str().into());
    Ok(list_services(&cloud, project, &scope).await?)
}
