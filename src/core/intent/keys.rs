//! Which object of a kind is meant: its namespace and its name, as a type of its own for each kind.

use std::{fmt, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::{REQUEST_PREFIX, request_of};

macro_rules! keys {
    ($($(#[$doc:meta])* $key:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $key {
            pub namespace: Arc<str>,
            pub name: Arc<str>,
        }

        impl $key {
            pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
                Self {
                    namespace: namespace.into(),
                    name: name.into(),
                }
            }

            /// That of an object.
            pub fn of(meta: &ObjectMeta) -> Self {
                Self::new(
                    meta.namespace.as_deref().unwrap_or_default(),
                    meta.name.as_deref().unwrap_or_default(),
                )
            }
        }

        /// As messages and commands write it.
        impl fmt::Display for $key {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.namespace, self.name)
            }
        }
    )*};
}

keys! {
    /// Namespace and name of an InvokerPolicy, or of what declares as one does: an
    /// InvokerAccessRequest has `request/` in front of its name.
    PolicyKey;
    /// Namespace and name of a ServiceAccount.
    AccountKey;
    /// Namespace and name of an InvokerChange.
    ChangeKey;
    /// Namespace and name of an InvokerApproval.
    ApprovalKey;
}

impl PolicyKey {
    /// That of an InvokerAccessRequest.
    pub fn of_request(namespace: impl Into<Arc<str>>, name: &str) -> Self {
        Self::new(namespace, format!("{REQUEST_PREFIX}{name}"))
    }

    /// The name of the InvokerAccessRequest that it stands for, if it does.
    pub fn request(&self) -> Option<&str> {
        request_of(&self.name)
    }
}
