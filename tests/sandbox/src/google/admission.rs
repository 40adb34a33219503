//! What stands before a call: credentials, the project that pays, whether the API is on, a quota, the
//! caller's rights.

use crate::{
    exchange::Call,
    google::refusal::{Api, RUN, disabled, exhausted, invalid_consumer, unable},
    run::{Problem, State},
};

impl State {
    /// Refuses what an API refuses before it looks at a request.
    pub(crate) fn admit(&mut self, call: &Call, api: Api, resource: &str) -> Result<(), Problem> {
        self.authenticate()?;
        let project = resource
            .strip_prefix("projects/")
            .and_then(|r| r.split('/').next());
        let consumer = self.admit_consumer(call, api, project.unwrap_or("-"))?;
        self.spend(api, consumer)
    }

    /// The project that pays, if it may: the quota project if there is one, else that of the
    /// credentials, else the one that the request is about.
    pub(crate) fn admit_consumer(
        &self,
        call: &Call,
        api: Api,
        target: &str,
    ) -> Result<String, Problem> {
        let named = Some(call.header("x-goog-user-project")).filter(|p| !p.is_empty());
        let payer = named.or(self.world.credentials_project.as_deref());
        let consumer = payer.unwrap_or(target);
        if payer.is_some_and(|p| self.world.gone.contains(p)) {
            return Err(invalid_consumer(api, consumer));
        }
        match self.world.consumers.get(consumer) {
            Some(trouble) => Err(unable(*trouble, api, consumer)),
            None if self.is_off(api, consumer) => Err(disabled(api, consumer)),
            None => Ok(consumer.to_owned()),
        }
    }

    /// Whether an API is off in a project.
    pub(crate) fn is_off(&self, api: Api, project: &str) -> bool {
        let entry = |project: &str| (project.to_owned(), api.service.to_owned());
        let off = &self.world.disabled_services;
        off.contains(&entry(project))
            || off.contains(&entry("*"))
            || (api.service == RUN.service && self.world.disabled.contains(project))
    }

    fn spend(&mut self, api: Api, consumer: String) -> Result<(), Problem> {
        let Some(quota) = self.world.quotas.get(api.service).copied() else {
            return Ok(());
        };
        let used = self
            .google
            .used
            .entry((consumer.clone(), api.service))
            .or_default();
        if !used.spend(quota) {
            return Err(exhausted(api, &consumer, quota));
        }
        Ok(())
    }

    /// Whether the caller lacks a permission on a resource: `projects/P`, `folders/N`,
    /// `organizations/N`, or what is in a project.
    pub(crate) fn lacks(&self, resource: &str, permission: &str) -> bool {
        let holder = match resource.strip_prefix("projects/") {
            Some(rest) => rest.split('/').next().unwrap_or_default(),
            None => resource,
        };
        self.world
            .denied
            .contains(&(holder.to_owned(), permission.to_owned()))
    }
}
