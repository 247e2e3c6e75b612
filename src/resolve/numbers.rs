//! What is asked of a source that tells numbers and no events.

/// Which numbers: `Q` is how one is asked for.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Numbers<Q> {
    /// What waits.
    Lag {
        /// Events that wait.
        pending: Q,
        /// Age of the oldest of them in seconds.
        staleness: Option<Q>,
        /// A counter of events that came.
        arrived: Option<Q>,
    },
    /// Any number, which has a target of its own.
    Value(Q),
}

impl<Q> Numbers<Q> {
    /// Of what a spec may say; absent where it says neither or both of `pending` and `value`.
    pub(super) fn of(pending: Option<Q>, staleness: Option<Q>, arrived: Option<Q>, value: Option<Q>) -> Option<Self> {
        match (pending, value) {
            (Some(pending), None) => Some(Self::Lag { pending, staleness, arrived }),
            (None, Some(value)) if staleness.is_none() && arrived.is_none() => Some(Self::Value(value)),
            _ => None,
        }
    }

    /// All that is asked for.
    pub fn all(&self) -> impl Iterator<Item = &Q> {
        let all = match self {
            Self::Lag { pending, staleness, arrived } => [Some(pending), staleness.as_ref(), arrived.as_ref()],
            Self::Value(value) => [Some(value), None, None],
        };
        all.into_iter().flatten()
    }

    /// True for a value.
    pub fn is_value(&self) -> bool {
        matches!(self, Self::Value(_))
    }
}
