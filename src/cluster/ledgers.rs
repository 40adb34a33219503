//! Ledgers in the store. Every write has a precondition: the version that it was planned from, or
//! that there is none.

use kube::{
    Api,
    api::{DeleteParams, PostParams, Preconditions},
    core::DeserializeGuard,
};

use super::{Cluster, fault, if_there, is_gone};
use crate::{
    api::{FIELD_MANAGER, InvokerLedger},
    fault::Fault,
    iam::RunService,
    ledger::{Ledger, Version, name, to_object},
};

/// How writing a ledger ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LedgerWrite {
    /// It is there in this version.
    Written(Version),
    /// Nothing is left to remember, and the object is gone.
    Deleted,
    /// It is another than the one that this was planned from: read it, and plan anew.
    Conflict,
}

/// A ledger as the store has it.
#[derive(Debug)]
pub enum StoredLedger {
    Absent,
    Present(Box<InvokerLedger>),
    Unreadable { why: String, version: Version },
}

impl Cluster {
    fn ledgers<
        K: Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned
            + kube::Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>,
    >(
        &self,
    ) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// Writes the ledger of a service, or deletes it when nothing is left to remember. `known` is
    /// the version that this was planned from; none: there was no object.
    ///
    /// # Guarantees
    /// Nothing is written over what this was not planned from.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached; then nothing may be written to IAM. The
    /// write may have been carried out: read to know.
    pub async fn write_ledger(
        &self,
        service: &RunService,
        ledger: &Ledger,
        known: Option<&Version>,
    ) -> Result<LedgerWrite, Fault> {
        let api: Api<InvokerLedger> = self.ledgers();
        let name = name(service);
        if ledger.is_empty() {
            let Some(known) = known else {
                return Ok(LedgerWrite::Deleted);
            };
            let preconditions = Preconditions {
                resource_version: Some(known.as_str().to_owned()),
                uid: None,
            };
            let params = DeleteParams::default().preconditions(preconditions);
            return match self.within(api.delete(&name, &params)).await {
                Ok(_) => Ok(LedgerWrite::Deleted),
                Err(e) if is_gone(&e) => Ok(LedgerWrite::Deleted),
                Err(kube::Error::Api(s)) if s.code == 409 => Ok(LedgerWrite::Conflict),
                Err(e) => Err(fault(e)),
            };
        }
        let object = to_object(service, ledger, known);
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        let result = match known {
            Some(_) => self.within(api.replace(&name, &params, &object)).await,
            None => self.within(api.create(&params, &object)).await,
        };
        match result {
            Ok(written) => {
                let version = written.metadata.resource_version.unwrap_or_default();
                Ok(LedgerWrite::Written(Version::new(&version)))
            }
            // Somebody deleted what was to be replaced, or made what was to be made.
            Err(e) if known.is_some() && is_gone(&e) => Ok(LedgerWrite::Conflict),
            Err(kube::Error::Api(s)) if s.code == 409 => Ok(LedgerWrite::Conflict),
            Err(e) => Err(fault(e)),
        }
    }

    /// Reads the ledger of a service.
    ///
    /// # Errors
    /// When the API server refuses or cannot be reached.
    pub async fn read_ledger(&self, service: &RunService) -> Result<StoredLedger, Fault> {
        let api: Api<DeserializeGuard<InvokerLedger>> = self.ledgers();
        let found = if_there(self.within(api.get(&name(service))).await)?;
        Ok(match found {
            None => StoredLedger::Absent,
            Some(DeserializeGuard(Ok(object))) => StoredLedger::Present(Box::new(object)),
            Some(DeserializeGuard(Err(invalid))) => StoredLedger::Unreadable {
                why: invalid.error.to_string(),
                version: Version::new(
                    invalid
                        .metadata
                        .resource_version
                        .as_deref()
                        .unwrap_or_default(),
                ),
            },
        })
    }
}
