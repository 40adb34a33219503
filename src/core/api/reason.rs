//! The closed vocabularies of conditions, reasons and events. Docs, conditions, events and metrics
//! all take from here.

use std::fmt;

macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }
        impl $name {
            /// The name as users see it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant)),+ }
            }
            /// Every value, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

names! {
    /// Why a condition stands as it does (product.md §4).
    Reason {
        /// Everything declared is real.
        InSync,
        /// The last look succeeded; nothing is written in this mode.
        Audited,
        /// A selector matches no service; everything else that is declared is real.
        NothingSelected,
        /// Reality differs from the declaration.
        Drifted,
        /// Not every service was looked at since the last change of the spec.
        Progressing,
        Suspended,
        ApprovalRequired,
        GuardrailViolated,
        InvalidMember,
        CannotInvoke,
        NoGoogleServiceAccount,
        MemberLimit,
        OrganizationPolicy,
        PermissionDenied,
        ServiceNotFound,
        ProjectNotFound,
        ApiDisabled,
        /// The project that pays for the operator's calls may not.
        ConsumerUnavailable,
        /// VPC Service Controls stand in between.
        PerimeterDenied,
        QuotaExceeded,
        Conflict,
        Unavailable,
        CircuitOpen,
        InvalidSpec,
        /// Somebody whom no policy lists may invoke by a grant above the services.
        InheritedAccess,
        /// A rollback is in force: on some services the state before a change stands in for the spec.
        RolledBack,
    }
}

names! {
    /// Types of status conditions (product.md §3).
    ConditionType {
        /// The last look succeeded and, if enforced, everything declared is real.
        Ready,
        /// Present and True only while work is under way.
        Reconciling,
        /// Present and True only while a person is needed.
        Stalled,
        /// Reality differs from the declaration, in either mode.
        Drifted,
        /// False while a recent change may not be in force everywhere yet.
        Propagated,
        /// Present and True only while somebody else keeps changing the same grants.
        Contested,
        /// Present and True only while anyone can call a targeted service.
        Exposed,
        /// Somebody whom no policy lists may invoke by a grant on the project, a folder or the
        /// organization. Present only where the operator searches for it.
        Bypassed,
        /// Present and True only while a rollback is in force.
        RolledBack,
    }
}

names! {
    /// Reasons of Kubernetes events (product.md §3).
    EventReason {
        Granted,
        Revoked,
        DriftDetected,
        DriftCorrected,
        ApprovalRequired,
        GuardrailViolated,
        Contested,
        Exposed,
        /// Somebody whom no policy lists may invoke by a grant above the services.
        InheritedAccess,
        /// Nobody whom no policy lists may any more.
        InheritedAccessEnded,
        InvalidMember,
        /// A rollback is in force.
        RolledBack,
        /// The spec is in force again.
        RollbackEnded,
        /// An entry's expires has passed.
        Expired,
        /// Somebody asks for access and waits for approval.
        AccessRequested,
        /// A request for access was approved.
        AccessApproved,
        /// What was requested is granted.
        AccessGranted,
        /// What was requested has ended.
        AccessEnded,
        /// An approver said no to a request.
        AccessDenied,
        CloudError,
    }
}
