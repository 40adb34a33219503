//! A client that makes no call without a token.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    Budget, Budgets, Kind, Needs, Place,
    tokens::{Token, Tokens},
};
use crate::{
    cloudrun::{CloudRun, Listing, Method, Observer, Scope},
    fault::{Fault, FaultClass},
    iam::{Policy, RunService},
};

/// A [`CloudRun`] that stays within its budget.
pub struct Limited<C> {
    inner: C,
    pub(super) budgets: Arc<Budgets>,
    observer: Arc<dyn Observer>,
}

impl<C: CloudRun> Limited<C> {
    pub fn new(inner: C, budget: Budget, observer: Arc<dyn Observer>) -> Self {
        Self {
            inner,
            budgets: Budgets::new(budget),
            observer,
        }
    }

    pub fn budgets(&self) -> &Arc<Budgets> {
        &self.budgets
    }

    async fn call<T>(
        &self,
        token: Token,
        method: Method,
        call: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        token.spend();
        let started = Instant::now();
        let result = call.await;
        let code = match &result {
            Ok(_) => "ok",
            Err(fault) => {
                if fault.class == FaultClass::QuotaExceeded {
                    self.budgets.pushed_back(&token.place, token.kind, fault);
                }
                fault.class.row().label
            }
        };
        self.observer.called(method, code, started.elapsed());
        result
    }

    /// Reads the policy of a service.
    ///
    /// # Errors
    /// Those of [`CloudRun::read_policy`].
    pub async fn read(&self, service: &RunService, token: Token) -> Result<Policy, Fault> {
        self.call(token, Method::GetIamPolicy, self.inner.read_policy(service))
            .await
    }

    /// Writes the policy of a service.
    ///
    /// # Errors
    /// Those of [`CloudRun::write_policy`].
    pub async fn write(
        &self,
        service: &RunService,
        policy: &Policy,
        token: Token,
    ) -> Result<Policy, Fault> {
        self.call(
            token,
            Method::SetIamPolicy,
            self.inner.write_policy(service, policy),
        )
        .await
    }

    /// Lists a page of services.
    ///
    /// # Errors
    /// Those of [`CloudRun::list_page`].
    pub async fn list(
        &self,
        project: &str,
        scope: &Scope,
        page: &str,
        token: Token,
    ) -> Result<(Listing, String), Fault> {
        self.call(
            token,
            Method::ListServices,
            self.inner.list_page(project, scope, page),
        )
        .await
    }

    /// Waits for the right to a call: for whoever has nothing else to do meanwhile.
    pub async fn wait(&self, place: &Place, needs: Needs) -> Tokens {
        loop {
            match self.budgets.reserve(place, needs) {
                Ok(tokens) => return tokens,
                Err(wait) => tokio::time::sleep(wait).await,
            }
        }
    }

    async fn wait_for(&self, place: &Place, kind: Kind) -> Token {
        let needs = match kind {
            Kind::Read => Needs::READ,
            Kind::Write => Needs {
                reads: 0,
                writes: 1,
            },
        };
        loop {
            let mut tokens = self.wait(place, needs).await;
            let token = match kind {
                Kind::Read => tokens.read(),
                Kind::Write => tokens.write(),
            };
            if let Some(token) = token {
                return token;
            }
        }
    }
}

/// For the plugin, which does one thing after the other: each call waits for its turn.
impl<C: CloudRun> CloudRun for Limited<C> {
    async fn read_policy(&self, service: &RunService) -> Result<Policy, Fault> {
        let token = self.wait_for(&Place::of(service), Kind::Read).await;
        self.read(service, token).await
    }

    async fn write_policy(&self, service: &RunService, policy: &Policy) -> Result<Policy, Fault> {
        let token = self.wait_for(&Place::of(service), Kind::Write).await;
        self.write(service, policy, token).await
    }

    async fn list_page(
        &self,
        project: &str,
        scope: &Scope,
        page: &str,
    ) -> Result<(Listing, String), Fault> {
        let token = self
            .wait_for(&Place::of_list(&project.into(), scope), Kind::Read)
            .await;
        self.list(project, scope, page, token).await
    }
}
