//! Grants above the services, by Cloud Asset. Only ever read.

use std::sync::Arc;

use futures::future::BoxFuture;

use super::{MAX_PAGES, endless};
use crate::{
    fault::{Fault, FaultClass},
    inherited::{Search, SearchScope, read_ancestry, read_page},
};

/// Cloud Asset, for grants above the services.
pub trait AssetSearch: std::fmt::Debug + Send + Sync {
    /// One page of who may invoke in a scope; `page` is empty for the first.
    ///
    /// # Errors
    /// The fault of the one call that this makes (`cloudasset.assets.searchAllIamPolicies`).
    fn search_page<'a>(
        &'a self,
        scope: &'a SearchScope,
        page: &'a str,
    ) -> BoxFuture<'a, Result<serde_json::Value, Fault>>;

    /// What is above a project.
    ///
    /// # Errors
    /// The fault of the one call that this makes (`resourcemanager.projects.get`).
    fn ancestry<'a>(&'a self, project: &'a str) -> BoxFuture<'a, Result<serde_json::Value, Fault>>;
}

/// One search, to its last page.
///
/// # Errors
/// Those of [`AssetSearch::search_page`], [`FaultClass::ForeignAnswer`] for an answer that is not as
/// documented, and [`FaultClass::Unexpected`] for one without an end.
pub async fn search(client: &dyn AssetSearch, scope: &SearchScope) -> Result<Search, Fault> {
    let mut search = Search::default();
    let mut token = String::new();
    for _ in 0..MAX_PAGES {
        let answer = client.search_page(scope, &token).await?;
        let page = read_page(&answer).map_err(|why| undocumented("Cloud Asset", &why))?;
        token.clone_from(&page.next);
        search.add(page);
        if token.is_empty() {
            return Ok(search);
        }
    }
    Err(endless())
}

/// The names of the folders and the organization above a project, the nearest first.
///
/// # Errors
/// Those of [`AssetSearch::ancestry`], and [`FaultClass::ForeignAnswer`] for an answer that is not as
/// documented.
pub async fn ancestors(client: &dyn AssetSearch, project: &str) -> Result<Vec<Arc<str>>, Fault> {
    let answer = client.ancestry(project).await?;
    read_ancestry(&answer).map_err(|why| undocumented("the Resource Manager", &why))
}

fn undocumented(who: &str, why: &str) -> Fault {
    let message = format!("the answer of {who} is not as documented: {why}");
    Fault::new(FaultClass::ForeignAnswer, message)
}
