//! A read store that turns away what it is asked to do: another worker would only be turned away, too.

use std::fmt;

/// What a read store has refused lately for want of room.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Strain {
    /// Writes: its queue or its memory is full.
    Writes,
    /// Connections.
    Connections,
}

impl Strain {
    /// What is refused, for people.
    pub(super) fn refused(self) -> &'static str {
        match self {
            Self::Writes => "writes",
            Self::Connections => "connections",
        }
    }
}

impl fmt::Display for Strain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "; no more workers while the read store refuses {} for want of room", self.refused())
    }
}
