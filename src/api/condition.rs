//! The names of conditions and reasons: part of the interface, so they are constants in one place.

use std::fmt;

/// The conditions of a Projection.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ConditionType {
    /// The Projection is understood, measured and running as asked.
    Ready,
    /// The event source and the read store answer.
    SourceReachable,
    /// The read store answers, whether or not a checkpoint is read from it.
    ReadStoreReachable,
    /// Head and checkpoint make sense together, so lag is a number.
    LagKnown,
    /// No event waits longer than `lag.target`.
    WithinTarget,
    /// The checkpoint moves while there is work.
    Progressing,
    /// Committed events may not be read yet, since an open transaction may still commit an earlier one. True is the exception.
    HeldBack,
    /// At least one worker is ready, or none is wanted.
    Available,
    /// Readers see the version that the spec names. Only there with `rollout.strategy: BlueGreen`.
    Promoted,
}

impl ConditionType {
    /// Every condition, in the order in which they are shown.
    pub const ALL: [Self; 9] = [
        Self::Ready,
        Self::SourceReachable,
        Self::ReadStoreReachable,
        Self::LagKnown,
        Self::WithinTarget,
        Self::Progressing,
        Self::HeldBack,
        Self::Available,
        Self::Promoted,
    ];

    /// The name in `status.conditions[].type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::SourceReachable => "SourceReachable",
            Self::ReadStoreReachable => "ReadStoreReachable",
            Self::LagKnown => "LagKnown",
            Self::WithinTarget => "WithinTarget",
            Self::Progressing => "Progressing",
            Self::HeldBack => "HeldBack",
            Self::Available => "Available",
            Self::Promoted => "Promoted",
        }
    }
}

/// The value of a condition.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// It cannot be told.
    Unknown,
}

impl ConditionStatus {
    /// The name in `status.conditions[].status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Why a condition has its value: one CamelCase word for machines, beside a message for people.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum Reason {
            $($(#[$doc])* $name,)+
        }

        impl Reason {
            /// The name in `status.conditions[].reason` and in Events.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }
        }
    };
}

reasons! {
    /// Nothing to complain about.
    AsExpected,
    /// The first sample has not been taken yet.
    NotMeasuredYet,
    /// The Projection is suspended.
    Suspended,
    /// Nothing waits, so that no worker is needed.
    Idle,
    /// The spec cannot be carried out; the message names the field.
    InvalidSpec,
    /// The Secret does not exist in the Projection's namespace.
    SecretNotFound,
    /// The Secret exists without the key.
    SecretKeyMissing,
    /// The operator may not read the Secret.
    SecretForbidden,
    /// The connection string cannot be read.
    ConnectionStringInvalid,
    /// The spec names a server to which the Secret's credential may not go.
    EndpointNotAllowed,
    /// No process listens at the address.
    ConnectionRefused,
    /// The host name has no address.
    HostNotFound,
    /// The host leads to an address that the operator does not ask.
    AddressRefused,
    /// The database refused the user or password.
    AuthenticationFailed,
    /// The server has no such database.
    DatabaseNotFound,
    /// TLS could not be agreed on or the certificate did not verify.
    TlsFailed,
    /// The database did not answer in time.
    TimedOut,
    /// The database has no connection left for us.
    TooManyConnections,
    /// The user may not read the table.
    PermissionDenied,
    /// There is no such table.
    TableNotFound,
    /// There is no such stream.
    StreamNotFound,
    /// There is no such index.
    IndexNotFound,
    /// There is no such queue.
    QueueNotFound,
    /// There is no such replication slot.
    SlotNotFound,
    /// There is no such column.
    ColumnNotFound,
    /// A column has a type that cannot serve its purpose.
    ColumnTypeUnsuitable,
    /// Positions are not proven unique, or an event has one that is never read.
    PositionUnsuitable,
    /// The database is a replica, where writers in flight cannot be seen.
    SourceIsReplica,
    /// The answer made no sense.
    InvalidAnswer,
    /// Workers commit less often than the lag target allows.
    CadenceBreaksTarget,
    /// Only an upper bound of the lag is known, and that is above the target.
    OnlyUpperBound,
    /// Any other failure of the source or read store.
    SourceFailed,
    /// The last sample is too old to act on.
    SampleTooOld,
    /// The projection has never committed a checkpoint.
    NeverCommitted,
    /// The checkpoint is beyond the source's head.
    CheckpointBeyondHead,
    /// The checkpoint went backwards.
    CheckpointRewound,
    /// The checkpoint goes back and forth: more than one projector commits to it.
    CheckpointContested,
    /// Events are dated in the future, so that their times tell no age.
    EventTimeInFuture,
    /// A pooler stands between us and the server, so that notifications do not arrive.
    PooledConnection,
    /// The source gives workers no more events before they have acknowledged those that they hold.
    DeliveryStopped,
    /// Events are held by consumers that do nothing with them.
    HeldByIdleConsumer,
    /// Events wait, and the source has no consumer for them.
    NoConsumer,
    /// Events were set aside after failing.
    EventsParked,
    /// How many events were set aside after failing cannot be told.
    ParkedUnknown,
    /// Handlers of the built-in projector are for types of event that no event has.
    HandlerNeverCalled,
    /// Numbers are older or less precise than they should be.
    Estimated,
    /// Far more events came at once than ever before.
    HeadJumped,
    /// The source deletes events before they are handled.
    RetentionRisk,
    /// Events wait longer than the target.
    BehindTarget,
    /// Committed events wait until a transaction has ended that may still commit an earlier one.
    HeldBackByTransaction,
    /// There is work and the checkpoint has not moved for long.
    CheckpointFrozen,
    /// An event cannot be read or its handler fails: its shard waits before it.
    EventFailed,
    /// Events were committed at positions that the checkpoint had passed already.
    EventsPassedOver,
    /// The workload has no ready worker.
    NoWorkerReady,
    /// The workload's pods are being replaced by those of a newer pod template.
    RollingOut,
    /// The workload's rollout is paused, so that pods of an older template run.
    RolloutPaused,
    /// The workload's rollout has not progressed within its deadline.
    RolloutStalled,
    /// The cluster refuses to create the workload's pods: a quota, a limit range, Pod Security, an admission webhook.
    PodsRefused,
    /// The image of a worker cannot be pulled.
    ImagePullFailed,
    /// A container of a worker cannot be created: something that it refers to is missing.
    ContainerNotCreated,
    /// Workers are ended for the memory that they use.
    OutOfMemory,
    /// Workers end by themselves again and again.
    WorkersCrash,
    /// No node takes a worker.
    Unschedulable,
    /// Workers run and do not become ready.
    WorkersNotReady,
    /// The workload that `projector.existing` names does not exist.
    WorkloadNotFound,
    /// An object that the operator would make exists and belongs to another owner.
    NotOwned,
    /// The API server refused an object that the operator made.
    ApplyFailed,
    /// There is no projector: the Projection is only measured.
    MeasureOnly,
    /// The autoscaler cannot read or use its metric.
    AutoscalerInactive,
    /// The autoscaler reads its metric from another adapter, or no adapter serves it.
    MetricsNotServed,
    /// Autoscalers read our metrics again.
    MetricsServed,
    /// An APIService of another adapter was pointed here, as the administrator wants it.
    ApiServiceTakenOver,
    /// The number of workers changed.
    Scaled,
    /// Readers are led to another version.
    Promoted,
    /// Readers are led back to the version that they saw before.
    RolledBack,
    /// A new version has not caught up yet.
    CatchingUp,
    /// A new version has caught up and waits to be promoted.
    AwaitingPromotion,
    /// Whether a new version holds the same as the one that readers see is not known.
    ParityUnknown,
    /// A new version does not hold the same as the one that readers see.
    ParityBroken,
    /// A new version was not promoted within its deadline, or does not hold the same as the one that readers see.
    RolloutFailed,
    /// Readers could not be led to another version.
    SwitchFailed,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
