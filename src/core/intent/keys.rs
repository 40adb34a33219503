//! Which object of a kind is meant: its namespace and its name, as a type of its own for each kind.

use std::{fmt, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

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
    /// Namespace and name of an InvokerPolicy.
    PolicyKey;
    /// Namespace and name of a ServiceAccount.
    AccountKey;
    /// Namespace and name of an InvokerChange.
    ChangeKey;
    /// Namespace and name of an InvokerApproval.
    ApprovalKey;
}
